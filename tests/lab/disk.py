"""The host-under-test image as it lies in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .emulator import Emulator


@dataclass(frozen=True)
class Image:
    """A root file system with the kernel and the initial RAM file system that boot it directly."""

    folder: Path
    # What runs it.
    emulator: Emulator

    @property
    def disk(self) -> Path:
        """The root file system, raw."""
        return self.folder / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The kernel's initial RAM file system."""
        return self.folder / "initrd"
