"""The QEMU that runs the lab's machines: always Debian trixie's, in the cache beside the image.

QEMU before 8.1 lets a processor of its multi-threaded TCG translate code that another one is changing: the
machine's kernel then dies with "Oops: int3" (docs/lab.md). Debian 12 has 7.2. So nothing of the system's QEMU
is used: the programs, their libraries and the firmware are unpacked, not installed, and started through their
own dynamic loader, which needs neither root nor a mount.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import debian
from .progress import say

SUITE = "trixie"
PACKAGES = ("ovmf", "qemu-system-x86", "qemu-utils")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
# Where the programs find the parts of theirs that are loaded when needed.
MODULES = "QEMU_MODULE_DIR"


@dataclass(frozen=True)
class Emulator:
    """An unpacked QEMU."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which its programs find their parts."""
        return {**os.environ, MODULES: str(self.folder / LIBRARIES / "qemu")}

    @property
    def qemu(self) -> list[str]:
        """The beginning of a command that runs a machine; QEMU's arguments follow."""
        firmware = [word for name in FIRMWARE for word in ("-L", str(self.folder / name))]
        return [*self._program("qemu-system-x86_64"), *firmware]

    @property
    def qemu_img(self) -> list[str]:
        """The beginning of a command that makes disks; the arguments of qemu-img follow."""
        return self._program("qemu-img")

    @property
    def ovmf_code(self) -> Path:
        """The UEFI firmware, read-only."""
        return self.folder / "usr/share/OVMF/OVMF_CODE_4M.fd"

    @property
    def ovmf_variables(self) -> Path:
        """What a machine's own UEFI variables begin as."""
        return self.folder / "usr/share/OVMF/OVMF_VARS_4M.fd"

    def _program(self, name: str) -> list[str]:
        libraries = self.folder / LIBRARIES
        loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries), "--argv0", name]
        return [*loader, str(self.folder / "usr/bin" / name)]


def unpack(cache: Path) -> Emulator:
    """Return the emulator in the folder `cache`; unpack it if it is not there. Raises BuildError."""
    digest = hashlib.sha256("\0".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]
    final = cache / f"emulator-{digest}"
    if final.exists():
        return Emulator(final)
    say(f"unpacking QEMU of Debian {SUITE} into {cache} (usually ten seconds, once)")
    with tempfile.TemporaryDirectory(prefix=".emulator-", dir=cache) as scratch:
        archive, tree = Path(scratch, "packages.tar"), Path(scratch, "tree")
        options = ["--variant=extract", "--format=tar", f"--include={','.join(PACKAGES)}"]
        debian.mmdebstrap(options, SUITE, archive, cache / "emulator.log")
        tree.mkdir()
        # Debian's own files only: nothing of this needs to belong to root.
        untar = ["tar", "--extract", "--no-same-owner", "--exclude=./dev", f"--file={archive}"]
        subprocess.run([*untar, f"--directory={tree}"], timeout=debian.BUILD_TIMEOUT, check=True)
        tree.rename(final)
    return Emulator(final)
