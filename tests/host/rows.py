"""Hosts of the matrix of distributions, as trees of files, and what their programs would do.

A row is a host as it is before virtpass. `tests/host/test_rows.py` plans, applies, cuts off at every effect,
and reverts on each of them, and compares the plan with `tests/host/golden/NAME.txt`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from virtpass.system.commands import Outcome
from virtpass.system.host import Host

# What the trees say about a program that is there.
PROGRAM = "#!/bin/sh\n"

# Given the host and the arguments, does what the program would do to its files; returns the exit status.
Program = Callable[[Host, Sequence[str]], int]


@dataclass(frozen=True)
class Link:
    """A symbolic link to a target."""

    target: str


@dataclass(frozen=True)
class Row:
    """One host.

    Attributes:
        name: kebab-case; names the golden file too.
        files: content by path: text, bytes, a link, or None for an empty directory.
        loader: name of the loader that must be chosen; empty when the host is refused.
        generator: name of the generator of the initramfs; empty when there is none.
        programs: by the base name of the program, what it does. A program that is missing here fails.
        refused: reference of the error with which the host is refused.
        bootloader: what the user answers with --bootloader; empty for nothing.
        binds: whether a device can be bound at boot by its address; where not, the plan is refused.
    """

    name: str
    files: Mapping[str, str | bytes | Link | None]
    loader: str = ""
    generator: str = ""
    programs: Mapping[str, Program] = field(default_factory=dict)
    refused: str = ""
    bootloader: str = ""
    binds: bool = True


def build(root: Path, files: Mapping[str, str | bytes | Link | None]) -> Host:
    """Make a tree of files below `root` and return it as a host."""
    for path, content in files.items():
        target = root / path.lstrip("/")
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            target.symlink_to(content.target)
        else:
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
            if content == PROGRAM or path.startswith(("/usr/bin/", "/usr/sbin/")):
                target.chmod(0o755)
    return Host(os.fspath(root))


def loader_info(text: str) -> bytes:
    """Return an EFI variable of the boot loader interface: four bytes of attributes, then UTF-16."""
    return b"\6\0\0\0" + (text + "\0").encode("utf-16-le")


LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
STUB_INFO = "/sys/firmware/efi/efivars/StubInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def kernel(version: str, *, built_in: Sequence[str] = (), modules: Sequence[str] = ()) -> dict[str, str]:
    """Return the files of an installed kernel's modules; those of VFIO are there unless they are built in."""
    vfio = ("vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci")
    names = [name for name in (*vfio, "e1000e", "snd-hda-intel", *modules) if name not in built_in]
    base = f"/usr/lib/modules/{version}"
    return {
        f"{base}/modules.dep": "".join(f"kernel/drivers/{name}.ko.xz:\n" for name in names),
        f"{base}/modules.builtin": "".join(f"kernel/drivers/{name}.ko\n" for name in built_in),
        f"{base}/modules.alias": (
            "alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e\n"
            "alias pci:v*d*sv*sd*bc04sc03i00* snd_hda_intel\n"
        ),
    }


class Programs:
    """Runs the programs of a row in place of the real ones, and remembers what was asked for.

    It is a `virtpass.transaction.engine.Runner`.
    """

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, host: Host, argv: tuple[str, ...], deadline: float) -> Outcome:
        """Run one."""
        self.calls.append(argv)
        program = self._programs.get(os.path.basename(argv[0]))
        if program is None:
            return Outcome(127, f"{argv[0]}: not found")
        status = program(host, argv[1:])
        return Outcome(status, "" if status == 0 else f"{argv[0]} says no")
