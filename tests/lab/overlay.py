"""The files that the lab adds to the packages of its images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from . import desktop
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
from .topology import AGENT_PORT

HERE = Path(__file__).parent
# Where the lab's own files lie inside; out of the way of everything that a test examines.
INSIDE = "/opt/lab"
AGENT_UNIT = "lab-agent.service"

# Units that cost time at boot and that nothing in the lab needs. serial-getty@ttyS0 would hang up the
# serial line that carries the console log.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty-static.service",
    "libvirt-guests.service",
    "logrotate.timer",
    "machines.target",
    "remote-fs.target",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-pstore.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
)

# The root of the standard machine is mounted for writing from the start.
MASKED_IN_STANDARD = ("systemd-remount-fs.service",)

# Programs that systemd runs at each boot to make units of things that the image does not have.
MASKED_GENERATORS = (
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-factory-reset-generator",
    "systemd-getty-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)

# These two belong to systemd-boot: one counts boots, the other mounts its partition.
MASKED_GENERATORS_WITHOUT_SYSTEMD_BOOT = ("systemd-bless-boot-generator", "systemd-gpt-auto-generator")

# What the guest finds drivers for: the devices that the lab gives to guests, and the power button.
GUEST_MODULES = (
    "bochs",
    "snd-hda-intel",
    "snd-hda-codec-generic",
    "e1000e",
    "e1000",
    "nvme",
    "xhci-pci",
    "button",
    "evdev",
)
HOST_MODULES = ("virtio_blk", "crc32c_generic", "ext4")

FILES = {
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 lab\n",
    # mmdebstrap copies that of the building system.
    "etc/resolv.conf": "",
    "etc/systemd/system.conf.d/lab.conf": (
        "[Manager]\nShowStatus=no\nDefaultTimeoutStartSec=300s\nDefaultTimeoutStopSec=30s\n"
    ),
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\n",
    f"etc/systemd/system/{AGENT_UNIT}": (
        "[Unit]\n"
        "Description=Hand of the lab inside the machine\n"
        "[Service]\n"
        f"ExecStart=/usr/bin/python3 -IS {INSIDE}/agent.py /dev/virtio-ports/{AGENT_PORT}\n"
        "Environment=LC_ALL=C.UTF-8 HOME=/root TERM=dumb\n"
        # What a command has started lives on, and a restart of the agent does not end it.
        "KillMode=process\n"
        "Restart=always\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    ),
}
# An SSH server as far as the way back to a host goes: port 22 listens, and nothing answers there.
REACHED = "ssh.socket"
REACHABLE = {
    f"etc/systemd/system/{REACHED}": (
        "[Unit]\nDescription=Another way to this host\n"
        "[Socket]\nListenStream=22\n"
        "[Install]\nWantedBy=sockets.target\n"
    ),
    "etc/systemd/system/ssh.service": "[Service]\nExecStart=/bin/true\n",
}
FSTAB_ROOT = f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n"
FSTAB_ESP = f"UUID={ESP_ID} /boot/efi vfat umask=0077 0 1\n"
# The image is built where its disk cannot be looked at, so its initial RAM file system is told what it needs.
INITRAMFS_TOOLS = {
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/lab": "virtio_blk\next4\n",
}
# Half the time of update-initramfs.
QUICK_INITRAMFS_TOOLS = {
    **INITRAMFS_TOOLS,
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n",
}
# A tenth of the time of dracut: without the search through all drivers, and without compression.
DRACUT = (
    'compress="cat"\n'
    'do_strip="no"\n'
    'early_microcode="no"\n'
    'drivers+=" virtio_blk ext4 crc32c_generic "\n'
    'omit_dracutmodules+=" kernel-modules-extra nvdimm overlay-root qemu hwdb lunmask resume terminfo virtfs'
    ' virtiofs systemd-ask-password systemd-battery-check systemd-pcrphase "\n'
)
KIND_FILES = {
    # The root is mounted already; a line for it would make the boot wait for udev to announce the disk.
    STANDARD: {"etc/fstab": "", **INITRAMFS_TOOLS},
    GRUB_BIOS: {"etc/fstab": FSTAB_ROOT, **QUICK_INITRAMFS_TOOLS},
    GRUB_UEFI: {"etc/fstab": FSTAB_ROOT + FSTAB_ESP, **QUICK_INITRAMFS_TOOLS},
    SYSTEMD_BOOT: {"etc/fstab": FSTAB_ROOT + FSTAB_ESP, "etc/dracut.conf.d/lab.conf": DRACUT},
}
# kernel-install runs depmod twice, which changes nothing and takes a minute.
SYSTEMD_BOOT_LINKS = {"etc/kernel/install.d/50-depmod.install": "/dev/null"}
LINKS = {f"etc/systemd/system/multi-user.target.wants/{AGENT_UNIT}": f"../{AGENT_UNIT}"}
COPIES = ("agent.py",)
# Debian's kernel uses Intel's IOMMU by itself. Those of other distributions wait for intel_iommu=on, and so
# does one that is told this first.
IOMMU_OFF = "intel_iommu=off"
# Who sits at the monitor and types.
ROOT_AT_THE_MONITOR = "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear %I linux\n"
GRUB_LIBVIRT_FILES = {
    "etc/default/grub.d/lab.cfg": f'GRUB_CMDLINE_LINUX="{IOMMU_OFF}"\n',
    # As on the command line of the standard machine: pictures do not show what KVM says of every guest.
    "etc/modprobe.d/lab.conf": "options kvm ignore_msrs=1 report_ignored_msrs=0\n",
    "etc/systemd/system/getty@tty1.service.d/lab.conf": ROOT_AT_THE_MONITOR,
}


def initramfs(kind: Kind) -> dict[str, tuple[str, ...]]:
    """Return the modules of each initial RAM file system of ours that a machine of `kind` has, by its name.

    That of the host is for booting without a bootloader.
    """
    if kind.base == STANDARD:
        return {"host": HOST_MODULES, "guest": GUEST_MODULES}
    return {"guest": GUEST_MODULES} if kind == GRUB_LIBVIRT else {}


def tar(kind: Kind) -> bytes:
    """Return all files of a machine of `kind` as a tar archive, the same bytes for the same content."""
    copies, masked, generators = list(COPIES), list(MASKED), list(MASKED_GENERATORS)
    if kind.base == STANDARD:
        masked += MASKED_IN_STANDARD
    if made := initramfs(kind):
        copies += ["initramfs.py", *(f"{name}_init.sh" for name in made)]
    if kind != SYSTEMD_BOOT:
        generators += MASKED_GENERATORS_WITHOUT_SYSTEMD_BOOT
    contents = {name: text.encode() for name, text in (FILES | KIND_FILES[kind.base]).items()}
    contents.update({f"{INSIDE[1:]}/{name}": (HERE / name).read_bytes() for name in copies})
    if kind.libvirt:
        contents.update({name: text.encode() for name, text in REACHABLE.items()})
    if kind == GRUB_LIBVIRT:
        contents.update({name: text.encode() for name, text in GRUB_LIBVIRT_FILES.items()})
    if kind == DESKTOP:
        contents.update({name: text.encode() for name, text in desktop.FILES.items()})
        contents.update({f"{INSIDE[1:]}/{name}": data for name, data in desktop.module_sources().items()})
    links = LINKS | {f"etc/systemd/system/{unit}": "/dev/null" for unit in masked}
    links |= {f"etc/systemd/system-generators/{name}": "/dev/null" for name in generators}
    if kind.libvirt:
        links[f"etc/systemd/system/sockets.target.wants/{REACHED}"] = f"../{REACHED}"
    if kind == SYSTEMD_BOOT:
        links |= SYSTEMD_BOOT_LINKS
    if kind == DESKTOP:
        links |= desktop.LINKS
    return _archive(contents, links)


def _archive(contents: dict[str, bytes], links: dict[str, str]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as members:
        for name, data in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.mode = 0o644
            member.size = len(data)
            members.addfile(member, io.BytesIO(data))
        for name, target in sorted(links.items()):
            member = tarfile.TarInfo(name)
            member.type = tarfile.SYMTYPE
            member.linkname = target
            members.addfile(member)
    return archive.getvalue()
