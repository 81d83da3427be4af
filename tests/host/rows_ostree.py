"""Systems from images, which OSTree deploys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.host.rows import PROGRAM, Link, Row, kernel
from tests.host.rows_bls import ENTRIES, Files, environment, mounts, release
from virtpass.host import tokens
from virtpass.host.loaders import gvariant
from virtpass.system.host import Host

STAGED = "/run/ostree/staged-deployment"


def _deployment(number: int, serial: int) -> str:
    return (
        f"title Fedora Linux 44.{number} (Silverblue) (ostree:{2 - number})\n"
        f"version {number}\n"
        "options root=UUID=8e1f rootflags=subvol=root rw rhgb quiet video=HDMI-A-1:d "
        f"ostree=/ostree/boot.1/fedora/{'ab' * 32}/{serial}\n"
        f"linux /ostree/fedora-{'ab' * 32}/vmlinuz-7.0.10-301.fc44.x86_64\n"
        f"initrd /ostree/fedora-{'ab' * 32}/initramfs-7.0.10-301.fc44.x86_64.img\n"
    )


def _sized(parts: Sequence[bytes], alignment: int = 1) -> bytes:
    """Return a container of GVariant: the parts, then where each ends."""
    body, ends = b"", []
    for part in parts:
        body += b"\0" * (-len(body) % alignment) + part
        ends.append(len(body))
    size = next(one for one in (1, 2, 4) if len(body) + one * len(ends) < 1 << (8 * one))
    return body + b"".join(end.to_bytes(size, "little") for end in ends)


def serialized(values: Mapping[str, bytes]) -> bytes:
    """Return a dictionary of GVariant, ``a{sv}``; the values are serialized variants."""
    entries = []
    for key, value in values.items():
        name = key.encode() + b"\0"
        body = name + b"\0" * (-len(name) % 8) + value
        size = next(one for one in (1, 2, 4) if len(body) + one < 1 << (8 * one))
        entries.append(body + len(name).to_bytes(size, "little"))
    return _sized(entries, 8)


def variant(words: Sequence[str]) -> bytes:
    """Return a variant that holds a list of strings."""
    return _sized([word.encode() + b"\0" for word in words]) + b"\0as" if words else b"\0as"


def staged_deployment(words: Sequence[str]) -> bytes:
    """Return what OSTree writes of a staged deployment."""
    target = serialized({"name": b"deadbeef.1\0\0s", "osname": b"fedora\0\0s"}) + b"\0a{sv}"
    return serialized({"target": target, "merge-deployment": target, "kargs": variant(words)})


def rpm_ostree(host: Host, arguments: Sequence[str]) -> int:
    """Stage a deployment with other kernel arguments than the next one to boot."""
    if arguments[0] != "kargs":
        return 1
    written = host.read(f"{ENTRIES}/ostree-2.conf") or ""
    options = next((line for line in written.splitlines() if line.startswith("options ")), None)
    if options is None:
        return 1
    booted = [one for one in options.split()[1:] if tokens.key(one) != "ostree"]
    staged = host.read_bytes(STAGED)
    words = list((gvariant.strings(staged, "kargs") or ()) if staged else booted)
    for argument in arguments[1:]:
        action, _, token = argument.removeprefix("--").partition("=")
        # The real one looks at the key alone, too.
        has_key = any(tokens.key(word) == tokens.key(token) for word in words)
        if action == "append" or (action == "append-if-missing" and not has_key):
            words.append(token)
        elif action == "delete-if-present" and token in words:
            words.remove(token)
    Path(host.path(STAGED)).write_bytes(staged_deployment(words))
    return 0


_OSTREE: Files = {
    "/etc/os-release": release(
        NAME="Fedora Linux",
        ID="fedora",
        VARIANT_ID="silverblue",
        VERSION_ID="44",
        PRETTY_NAME="Fedora Linux 44.20261101.0 (Silverblue)",
    ),
    "/etc/default/grub": 'GRUB_ENABLE_BLSCFG=true\nGRUB_CMDLINE_LINUX="rhgb quiet"\n',
    "/etc/modprobe.d": None,
    "/var/lib": None,
    "/boot/loader": Link("loader.1"),
    "/boot/loader.1/entries/ostree-1.conf": _deployment(1, 1),
    "/boot/loader.1/entries/ostree-2.conf": _deployment(2, 0),
    "/boot/grub2/grub.cfg": "insmod blscfg\nblscfg\n",
    "/boot/grub2/grubenv": environment(boot_success="1"),
    "/proc/cmdline": (
        f"BOOT_IMAGE=(hd0,gpt2)/ostree/fedora-{'ab' * 32}/vmlinuz-7.0.10-301.fc44.x86_64 root=UUID=8e1f "
        f"rootflags=subvol=root rw rhgb quiet video=HDMI-A-1:d ostree=/ostree/boot.1/fedora/{'ab' * 32}/0\n"
    ),
    "/proc/sys/kernel/osrelease": "7.0.10-301.fc44.x86_64\n",
    "/proc/self/mountinfo": mounts(
        ("/", "btrfs", "/dev/vda3"), ("/boot", "ext4", "/dev/vda2"), ("/boot/efi", "vfat", "/dev/vda1")
    ),
    "/run/ostree-booted": "",
    "/run/ostree": None,
    "/sys/firmware/efi/efivars": None,
    **kernel("7.0.10-301.fc44.x86_64"),
}
SILVERBLUE = Row(
    "silverblue",
    {
        **_OSTREE,
        "/usr/bin/rpm-ostree": PROGRAM,
        # An update came in the background, as is usual there, and waits for the next boot.
        STAGED: staged_deployment(
            ("root=UUID=8e1f", "rootflags=subvol=root", "rw", "rhgb", "video=HDMI-A-1:d")
        ),
    },
    "rpm-ostree",
    "rpm-ostree",
    programs={"rpm-ostree": rpm_ostree},
    binds=False,
)
BOOTC = Row("bootc", {**_OSTREE, "/usr/bin/bootc": PROGRAM}, "rpm-ostree", refused="bootc")

ROWS: tuple[Row, ...] = (SILVERBLUE, BOOTC)
