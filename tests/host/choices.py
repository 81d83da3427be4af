"""What the programs do that choose an entry for the next boot alone, and what the next boot makes of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.host.rows import Program
from virtpass.system.host import Host

_ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_BLOCK = "# GRUB Environment Block\n"
_SIZE = 1024
_BLOCKS = ("/boot/grub/grubenv", "/boot/grub2/grubenv", "/boot/efi/EFI/fedora/grubenv")


def _variables(host: Host, path: str) -> dict[str, str]:
    text = (host.read_bytes(path) or b"").decode()
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def _write(host: Host, path: str, variables: Mapping[str, str]) -> None:
    text = _BLOCK + "".join(f"{name}={value}\n" for name, value in variables.items())
    Path(host.path(path)).write_text(text.ljust(_SIZE, "#"))


def _block(host: Host) -> str:
    """Return where GRUB's environment is on a host, whether it exists or not."""
    there = [host.real_path(path) for path in _BLOCKS if host.exists(path)]
    return there[0] if there else next(p for p in _BLOCKS if host.exists(os.path.dirname(p)))


def _reboot(host: Host, arguments: Sequence[str]) -> int:
    path = _block(host)
    _write(host, path, {**_variables(host, path), "next_entry": arguments[0]})
    return 0


def _editenv(host: Host, arguments: Sequence[str]) -> int:
    path, verb, name = arguments
    path = _block(host) if path == "-" else host.real_path(path)
    if verb != "unset" or not host.exists(path):
        return 1
    _write(host, path, {key: value for key, value in _variables(host, path).items() if key != name})
    return 0


def _bootctl(host: Host, arguments: Sequence[str]) -> int:
    verb, identifier = arguments
    variable = Path(host.path(_ONE_SHOT))
    if verb != "set-oneshot":
        return 1
    if identifier:
        variable.write_bytes(b"\7\0\0\0" + (identifier + "\0").encode("utf-16-le"))
    else:
        variable.unlink(missing_ok=True)
    return 0


PROGRAMS: Mapping[str, Program] = {
    "grub-reboot": _reboot,
    "grub2-reboot": _reboot,
    "grub-editenv": _editenv,
    "grub2-editenv": _editenv,
    "bootctl": _bootctl,
}


def boot(host: Host, tokens: Sequence[str]) -> None:
    """Boot an entry with these kernel arguments: whatever was chosen for one boot is forgotten in it."""
    for path in {host.real_path(one) for one in _BLOCKS if host.exists(one)}:
        variables = _variables(host, path)
        if variables.pop("next_entry", None):
            _write(host, path, variables)
    Path(host.path(_ONE_SHOT)).unlink(missing_ok=True)
    Path(host.path("/proc/cmdline")).write_text(" ".join(tokens) + "\n")
    identifier = Path(host.path("/proc/sys/kernel/random/boot_id"))
    identifier.parent.mkdir(parents=True, exist_ok=True)
    identifier.write_text(f"{os.urandom(8).hex()}\n")
