"""What the images are made of: packages, the lab's own files, and the size of the root file system."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import desktop, overlay
from .disk import (
    DESKTOP,
    ESP_ID,
    GRUB_BIOS,
    GRUB_LIBVIRT,
    GRUB_UEFI,
    ROOT_UUID,
    STANDARD,
    SYSTEMD_BOOT,
    Kind,
)

SUITE = "trixie"
TAR = "files.tar"
HOOK = Path(__file__).parent / "image_hook.sh"
DESKTOP_HOOK = Path(__file__).parent / "desktop_hook.sh"
PROVISION = Path(__file__).parent / "provision.py"

# A bootable system, and what virtpass needs.
COMMON = (
    "dbus",
    "hwdata",
    "iproute2",
    "kmod",
    "linux-image-amd64",
    "login",
    "pciutils",
    "procps",
    "psmisc",
    "python3-click",
    "python3-libvirt",
    "python3-lxml",
    "python3-pyudev",
    "python3-rich",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
)
PACKAGES = {
    STANDARD: (
        "apparmor",
        "busybox-static",
        "initramfs-tools",
        "libvirt-clients",
        "libvirt-daemon-system",
        "qemu-system-x86",
        "qemu-utils",
    ),
    GRUB_BIOS: ("e2fsprogs", "grub-pc", "initramfs-tools"),
    GRUB_UEFI: ("dosfstools", "e2fsprogs", "grub-efi-amd64", "initramfs-tools"),
    SYSTEMD_BOOT: ("dosfstools", "dracut", "e2fsprogs", "systemd-boot", "systemd-boot-efi"),
}
# What a kind has beside the packages of the one that it extends.
MORE = {
    DESKTOP: desktop.PACKAGES,
    GRUB_LIBVIRT: (
        "busybox-static",
        "libvirt-clients",
        "libvirt-daemon-system",
        "qemu-system-x86",
        "qemu-utils",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the image of a kind becomes."""

    kind: Kind

    @property
    def packages(self) -> tuple[str, ...]:
        """The Debian packages that are asked for."""
        return (*COMMON, *PACKAGES[self.kind.base], *MORE.get(self.kind, ()))

    @property
    def files(self) -> bytes:
        """The lab's own files, as a tar archive."""
        return overlay.tar(self.kind)

    @property
    def scripts(self) -> tuple[Path, ...]:
        """The scripts that the hooks run."""
        return (HOOK, DESKTOP_HOOK) if self.kind == DESKTOP else (HOOK,)

    def hooks(self, scratch: Path, out: Path) -> Iterator[str]:
        """Yield mmdebstrap's hooks, shell text by its own definition, with the new root as $1.

        They find the files they need in `scratch`, and leave the image in `out`.
        """
        tar, script, target = (shlex.quote(str(path)) for path in (scratch / TAR, scratch / HOOK.name, out))
        # Twice: the initial RAM file system is made while packages are installed, and these write files too.
        for stage in ("essential", "customize"):
            yield f"--{stage}-hook=tar-in {tar} /"
        for name, modules in overlay.initramfs(self.kind).items():
            words = f"initramfs.py {name}_init.sh {name}.initramfs {' '.join(modules)}"
            yield f'--customize-hook=chroot "$1" sh -c "cd {overlay.INSIDE} && python3 {words}"'
        if self.kind == GRUB_LIBVIRT:
            yield f'--customize-hook=cp "$1"/boot/vmlinuz-* "$1"{overlay.INSIDE}/guest.vmlinuz'
        if self.kind == DESKTOP:
            user_and_modules = shlex.quote(str(scratch / DESKTOP_HOOK.name))
            yield f'--customize-hook=sh {user_and_modules} "$1" {overlay.INSIDE}'
        disk = self.kind.base.name
        identities = f"{ROOT_UUID} {ESP_ID.replace('-', '')}"
        yield f'--customize-hook=sh {script} "$1" {target} {overlay.INSIDE} {disk} {identities}'

    def key(self) -> str:
        """Return the name of the image in the cache: another recipe, another name."""
        parts = [SUITE, *self.packages, *self.hooks(Path("scratch"), Path("out"))]
        digest = hashlib.sha256("\0".join(parts).encode() + self.files)
        for file in (*self.scripts, PROVISION):
            digest.update(file.read_bytes())
        return f"{self.kind.name}-{digest.hexdigest()[:16]}"
