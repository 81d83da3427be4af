"""The kinds of machines, and the images that they boot from, as these lie in the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .emulator import Emulator

# Constants, so that /etc/fstab can be written before there is a disk.
ROOT_UUID = "6c61622d-726f-4f74-8000-000000000001"
ESP_ID = "1AB0-0001"


@dataclass(frozen=True)
class Kind:
    """What a machine has on its disk, and how it comes up."""

    name: str
    # Whether it boots through the bootloader on its disk; else QEMU is given kernel and arguments.
    own_loader: bool = False
    # Whether its firmware is UEFI; else it is the classic BIOS.
    uefi: bool = False
    # Whether it has a libvirt daemon, and is not ready before that answers.
    libvirt: bool = True
    # The root file system, as a kernel that QEMU is given finds it.
    root: str = "/dev/vda"
    # The kind that this one is, with more installed: disk and first boot are the same.
    extends: Kind | None = None

    @property
    def base(self) -> Kind:
        """The kind that decides on the disk and the first boot."""
        return self.extends or self


STANDARD = Kind("trixie")
# Somebody works at the card's monitor.
DESKTOP = Kind("desktop", extends=STANDARD)
# The boot machines: small hosts whose kernel arguments and initramfs can be changed from inside.
_BY_UUID = f"UUID={ROOT_UUID}"
GRUB_BIOS = Kind("grub-bios", own_loader=True, libvirt=False, root=_BY_UUID)
GRUB_UEFI = Kind("grub-uefi", own_loader=True, uefi=True, libvirt=False, root=_BY_UUID)
SYSTEMD_BOOT = Kind("systemd-boot", own_loader=True, uefi=True, libvirt=False, root=_BY_UUID)
# Takes the whole way of a user: a libvirt daemon, and a kernel that waits to be told of the IOMMU.
GRUB_LIBVIRT = Kind("grub-libvirt", own_loader=True, root=_BY_UUID, extends=GRUB_BIOS)
BOOT_KINDS = (GRUB_BIOS, GRUB_UEFI, SYSTEMD_BOOT)
KINDS = {kind.name: kind for kind in (STANDARD, *BOOT_KINDS, DESKTOP, GRUB_LIBVIRT)}


@dataclass(frozen=True)
class Image:
    """A disk, with a kernel and an initial RAM file system that boot it directly."""

    folder: Path
    # What runs it.
    emulator: Emulator
    kind: Kind = STANDARD

    @property
    def disk(self) -> Path:
        """The disk, raw: one root file system, or partitions where the machine has its own bootloader."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The kernel's initial RAM file system."""
        return self.folder / "initrd"

    def under_uefi(self) -> Image:
        """Return the same for a machine with UEFI, whose kernel begins on the framebuffer of the firmware."""
        return replace(self, kind=replace(self.kind, uefi=True))
