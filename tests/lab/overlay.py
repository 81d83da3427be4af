"""The files that the lab adds to the packages of the host-under-test image."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

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
    "systemd-remount-fs.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
)

# Programs that systemd runs at each boot to make units of things that the image does not have.
MASKED_GENERATORS = (
    "systemd-bless-boot-generator",
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-factory-reset-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-ssh-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-tpm2-generator",
    "systemd-veritysetup-generator",
)

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
    # The root is mounted already; a line for it would make the boot wait for udev to announce the disk.
    "etc/fstab": "",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 lab\n",
    # mmdebstrap copies that of the building system.
    "etc/resolv.conf": "",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/lab": "virtio_blk\next4\n",
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
LINKS = {f"etc/systemd/system/multi-user.target.wants/{AGENT_UNIT}": f"../{AGENT_UNIT}"}
COPIES = ("agent.py", "guest_init.sh", "host_init.sh", "initramfs.py")


def tar() -> bytes:
    """Return all these files as a tar archive, the same bytes for the same content."""
    contents = {name: text.encode() for name, text in FILES.items()}
    contents.update({f"{INSIDE[1:]}/{name}": (HERE / name).read_bytes() for name in COPIES})
    links = LINKS | {f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED}
    links |= {f"etc/systemd/system-generators/{name}": "/dev/null" for name in MASKED_GENERATORS}
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
