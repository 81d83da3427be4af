"""Hosts with boot loader entries as files, and openSUSE with its GRUB."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.host.rows import LOADER_INFO, PROGRAM, Link, Program, Row, kernel, loader_info
from virtpass.host.loaders.bls import SUFFIX
from virtpass.system.host import Host

Files = Mapping[str, str | bytes | Link | None]

MACHINE = "4f1c09c2a1e64a8f9d4be7a03f6b2f61"
ENTRIES = "/boot/loader/entries"


def environment(**variables: str) -> bytes:
    """Return an environment block of GRUB."""
    lines = ["# GRUB Environment Block", *(f"{name}={value}" for name, value in variables.items())]
    return ("\n".join(lines) + "\n").encode().ljust(1024, b"#")


def mounts(*lines: tuple[str, str, str]) -> str:
    """Return mountinfo for what is mounted: where, of what type, and what; "ro:" before it for read-only."""
    rendered = []
    for number, (point, kind, source) in enumerate(lines):
        options = "ro" if source.startswith("ro:") else "rw"
        device = source.removeprefix("ro:")
        rendered.append(
            f"{30 + number} 1 254:{number} / {point} {options},relatime shared:1 - {kind} {device} {options}"
        )
    return "\n".join(rendered) + "\n"


def release(**values: str) -> str:
    """Return an os-release."""
    return "".join(f'{name}="{value}"\n' for name, value in values.items())


def image_content(host: Host, head: str) -> bytes:
    """Return an image: what it is of, and what stands in the configuration."""
    parts = [head.encode()]
    for folder in ("/etc/dracut.conf.d", "/etc/modprobe.d"):
        for name in host.names(folder):
            parts.append(f"{folder}/{name}\n".encode() + (host.read_bytes(f"{folder}/{name}") or b""))
    return b"\n".join(parts)


def dracut(host: Host, arguments: Sequence[str]) -> int:
    """Build each image of what stands in the configuration."""
    for version in host.subdirectories("/usr/lib/modules"):
        for name in (f"initramfs-{version}.img", f"initrd-{version}"):
            if host.exists(f"/boot/{name}"):
                Path(host.path(f"/boot/{name}")).write_bytes(image_content(host, f"image of {version}"))
    return 0 if arguments else 1


def grub_editenv(host: Host, arguments: Sequence[str]) -> int:
    """Change the environment block: ``- set NAME=VALUE`` or ``- unset NAME``."""
    path = Path(os.path.realpath(host.path("/boot/grub2/grubenv")))
    lines = path.read_bytes().rstrip(b"#").decode().splitlines()
    name, _, _ = arguments[2].partition("=")
    kept = [line for line in lines if not line.startswith(f"{name}=")]
    if arguments[1] == "set":
        kept.append(arguments[2])
    path.write_bytes(("\n".join(kept) + "\n").encode().ljust(1024, b"#"))
    return 0


def grub_reboot(host: Host, arguments: Sequence[str]) -> int:
    """Choose an entry for the next boot."""
    return grub_editenv(host, ("-", "set", f"next_entry={arguments[0]}"))


BLS_PROGRAMS: Mapping[str, Program] = {
    "dracut": dracut,
    "grub2-reboot": grub_reboot,
    "grub2-editenv": grub_editenv,
}


# Fedora and RHEL


def fedora_entry(title: str, version: str, options: str, *, rescue: bool = False) -> str:
    """Return an entry as kernel-install writes it there."""
    name = f"0-rescue-{MACHINE}" if rescue else version
    return (
        f"title {title}\n"
        f"version {name}\n"
        f"linux /vmlinuz-{name}\n"
        f"initrd /initramfs-{name}.img\n"
        f"options {options}\n"
        "grub_users $grub_users\n"
        "grub_arg --unrestricted\n"
        f"grub_class {'rescue' if rescue else 'fedora'}\n"
    )


def _red_hat(
    name: str,
    os_release: str,
    title: str,
    versions: Sequence[str],
    *,
    options: str,
    running: str = "",
    rescue: str = "",
    grubenv: bytes = b"",
    defaults: str = "",
    more: Files | None = None,
) -> Row:
    files: dict[str, str | bytes | Link | None] = {
        "/etc/os-release": os_release,
        "/etc/machine-id": f"{MACHINE}\n",
        "/etc/default/grub": defaults,
        "/etc/dracut.conf.d": None,
        "/etc/modprobe.d": None,
        "/run": None,
        "/var/lib": None,
        "/proc/cmdline": f"BOOT_IMAGE=(hd0,gpt2)/vmlinuz-{versions[-1]} {running or options}\n",
        "/proc/sys/kernel/osrelease": f"{versions[-1]}\n",
        "/boot/grub2/grub.cfg": (
            'if [ -s $prefix/grubenv ]; then\n  load_env\nfi\nif [ "${next_entry}" ] ; then\n'
            '   set default="${next_entry}"\n   set next_entry=\n   save_env next_entry\nfi\n'
            "insmod blscfg\nblscfg\n"
        ),
        "/boot/grub2/grubenv": grubenv or environment(saved_entry=f"{MACHINE}-{versions[-1]}"),
        f"{ENTRIES}/{MACHINE}-0-rescue.conf": fedora_entry(
            f"{title} (0-rescue-{MACHINE})", "", rescue or options, rescue=True
        ),
        f"/boot/vmlinuz-0-rescue-{MACHINE}": "rescue kernel\n",
        f"/boot/initramfs-0-rescue-{MACHINE}.img": "rescue image\n",
        "/usr/sbin/grubby": PROGRAM,
        "/usr/sbin/grub2-mkconfig": PROGRAM,
        "/usr/sbin/grub2-reboot": PROGRAM,
        "/usr/bin/grub2-editenv": PROGRAM,
        "/usr/bin/dracut": PROGRAM,
        "/usr/bin/lsinitrd": PROGRAM,
    }
    for version in versions:
        files |= kernel(version)
        files[f"/boot/vmlinuz-{version}"] = f"kernel {version}\n"
        files[f"/boot/initramfs-{version}.img"] = f"image of {version}"
        files[f"{ENTRIES}/{MACHINE}-{version}.conf"] = fedora_entry(f"{title} ({version})", version, options)
    files |= more or {}
    return Row(name, files, "grub-bls", "dracut", BLS_PROGRAMS)


_FEDORA_OPTIONS = (
    "root=UUID=1b6f0a52-3f6b-4b6c-8a55-6f0c54c1b7de ro rootflags=subvol=root rhgb quiet video=HDMI-A-1:d"
)
FEDORA = _red_hat(
    "fedora-grub-bls",
    release(NAME="Fedora Linux", ID="fedora", VERSION_ID="44", PRETTY_NAME="Fedora Linux 44 (Workstation)"),
    "Fedora Linux 44 (Workstation)",
    ("6.19.8-300.fc44.x86_64", "7.0.10-301.fc44.x86_64"),
    options=_FEDORA_OPTIONS,
    defaults=(
        "GRUB_TIMEOUT=5\nGRUB_DISTRIBUTOR=\"$(sed 's, release .*$,,g' /etc/system-release)\"\n"
        'GRUB_DEFAULT=saved\nGRUB_CMDLINE_LINUX="rhgb quiet video=HDMI-A-1:d"\nGRUB_ENABLE_BLSCFG=true\n'
    ),
    more={
        "/proc/self/mountinfo": mounts(
            ("/", "btrfs", "/dev/nvme0n1p3"),
            ("/boot", "ext4", "/dev/nvme0n1p2"),
            ("/boot/efi", "vfat", "/dev/nvme0n1p1"),
        ),
        "/boot/efi/EFI/fedora/grub.cfg": "search --fs-uuid 9f3c\nconfigfile $prefix/grub.cfg\n",
        LOADER_INFO: loader_info("GRUB 2.12"),
    },
)

_EL_DEFAULTS = (
    "GRUB_TIMEOUT=5\nGRUB_DEFAULT=saved\nGRUB_DISABLE_SUBMENU=true\n"
    'GRUB_CMDLINE_LINUX="crashkernel=auto resume=/dev/mapper/rl-swap rd.lvm.lv=rl/root rhgb quiet"\n'
    "GRUB_DISABLE_RECOVERY=true\nGRUB_ENABLE_BLSCFG=true\n"
)
EL8_OPTIONS = (
    "root=/dev/mapper/rl-root ro crashkernel=auto resume=/dev/mapper/rl-swap rd.lvm.lv=rl/root rhgb quiet"
)
ROCKY_8 = _red_hat(
    "rocky-8-grub-bls",
    release(
        NAME="Rocky Linux",
        ID="rocky",
        ID_LIKE="rhel centos fedora",
        VERSION_ID="8.10",
        PRETTY_NAME="Rocky Linux 8.10 (Green Obsidian)",
    ),
    "Rocky Linux 8.10 (Green Obsidian)",
    ("4.18.0-553.16.1.el8_10.x86_64", "4.18.0-553.22.1.el8_10.x86_64"),
    options="$kernelopts $tuned_params",
    running=EL8_OPTIONS,
    rescue="$kernelopts",
    grubenv=environment(
        saved_entry=f"{MACHINE}-4.18.0-553.22.1.el8_10.x86_64",
        kernelopts=EL8_OPTIONS,
        boot_success="0",
        boot_indeterminate="0",
    ),
    defaults=_EL_DEFAULTS,
    more={"/proc/self/mountinfo": mounts(("/", "xfs", "/dev/mapper/rl-root"), ("/boot", "xfs", "/dev/sda1"))},
)

_EL_OPTIONS = "root=/dev/mapper/almalinux-root ro crashkernel=1G-4G:192M,4G-64G:256M rhgb quiet $tuned_params"
_EL_MORE: Files = {
    "/proc/self/mountinfo": mounts(
        ("/", "xfs", "/dev/mapper/almalinux-root"),
        ("/boot", "xfs", "/dev/sda2"),
        ("/boot/efi", "vfat", "/dev/sda1"),
    ),
    "/etc/kernel/cmdline": _EL_OPTIONS.removesuffix(" $tuned_params") + "\n",
    "/boot/efi/EFI/almalinux/grub.cfg": "configfile ($dev)/grub2/grub.cfg\n",
    "/sys/firmware/efi/efivars": None,
}
ALMA_9 = _red_hat(
    "alma-9-grub-bls",
    release(
        NAME="AlmaLinux",
        ID="almalinux",
        ID_LIKE="rhel centos fedora",
        VERSION_ID="9.6",
        PRETTY_NAME="AlmaLinux 9.6 (Sage Margay)",
    ),
    "AlmaLinux (9.6)",
    ("5.14.0-570.12.1.el9_6.x86_64", "5.14.0-570.17.1.el9_6.x86_64"),
    options=_EL_OPTIONS,
    running=_EL_OPTIONS.removesuffix(" $tuned_params"),
    defaults=_EL_DEFAULTS,
    more=_EL_MORE,
)
STREAM_10 = _red_hat(
    "stream-10-grub-bls",
    release(
        NAME="CentOS Stream",
        ID="centos",
        ID_LIKE="rhel fedora",
        VERSION_ID="10",
        PRETTY_NAME="CentOS Stream 10 (Coughlan)",
    ),
    "CentOS Stream 10 (Coughlan)",
    ("6.12.0-90.el10.x86_64",),
    options=_EL_OPTIONS,
    running=_EL_OPTIONS.removesuffix(" $tuned_params"),
    # Somebody has more than one assignment here: it is not edited in place then.
    defaults=_EL_DEFAULTS + 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX mitigations=auto"\n',
    more=_EL_MORE,
)


# openSUSE with sdbootutil

_SNAPSHOT = "root=UUID=5d2e94bb-6a0e-41f1-9f3e-3f5ef1c05d83 rootflags=subvol=@/.snapshots/{}/snapshot"
_SUSE_LINE = f"quiet security=apparmor {_SNAPSHOT.format(1)} systemd.machine_id={MACHINE}"


def sdbootutil(host: Host, arguments: Sequence[str]) -> int:
    """Write the options of the entries of snapshot 1 anew."""
    if tuple(arguments) not in (("update-all-entries",), ("mkinitrd",)):
        return 1
    line = next(
        (
            found
            for path in ("/etc/kernel/cmdline", "/usr/lib/kernel/cmdline", "/proc/cmdline")
            if (found := host.read(path))
        ),
        "",
    )
    words = [token for token in line.split() if not token.startswith(("BOOT_IMAGE=", "initrd="))]
    if "cmdline.d" in (host.read("/usr/bin/sdbootutil") or ""):
        for name in host.names("/etc/kernel/cmdline.d"):
            words += (host.read(f"/etc/kernel/cmdline.d/{name}") or "").split()
    directory = "/boot/efi/loader/entries"
    for name in host.names(directory):
        path = Path(host.path(f"{directory}/{name}"))
        text = path.read_text()
        is_ours = "0-virtpass" in name
        if arguments[0] == "mkinitrd" and f"-1{SUFFIX}" in name and not is_ours:
            text = _with_image(host, text)
        if re.search(r"root=UUID=5d2e94bb\S* .*rootflags=subvol=@/\.snapshots/1/snapshot", text):
            path.write_text(re.sub(r"(?m)^options\s*.*$", "options    " + " ".join(words), text))
    return 0


def _with_image(host: Host, text: str) -> str:
    """Build the image of an entry, and have the entry load it; the one before goes if nobody loads it."""
    found = re.search(r"(?m)^initrd +(/.*)/initrd-(\w+)$", text)
    assert found
    folder = Path(host.path("/boot/efi" + found[1]))
    content = image_content(host, f"image of {folder.name}")
    name = f"initrd-{hashlib.sha1(content).hexdigest()}"
    (folder / name).write_bytes(content)
    old = folder / f"initrd-{found[2]}"
    entries = Path(host.path("/boot/efi/loader/entries"))
    users = [path for path in entries.iterdir() if f"{found[1]}/{old.name}\n" in path.read_text()]
    if old.name != name and len(users) == 1:
        old.unlink()
    return text.replace(f"initrd-{found[2]}", name)


def suse_image(version: str) -> tuple[str, str]:
    """Return the content of an image before virtpass, and the checksum in its name."""
    content = f"image of {version}"
    return content, hashlib.sha1(content.encode()).hexdigest()


def suse_entry(version: str, snapshot: int, options: str) -> str:
    """Return an entry as sdbootutil writes it."""
    return (
        "# Boot Loader Specification type#1 entry\n"
        "title      openSUSE Tumbleweed\n"
        f"version    {snapshot}@{version}\n"
        "sort-key   opensuse-tumbleweed\n"
        f"options    {options}\n"
        f"linux      /opensuse-tumbleweed/{version}/linux-0a1b2c\n"
        f"initrd     /opensuse-tumbleweed/{version}/initrd-{suse_image(version)[1]}\n"
    )


def _sdbootutil_row(name: str, loader_type: str, prefix: str, *, program: str, more: Files) -> Row:
    version = "7.1.3-1-default"
    older = _SNAPSHOT.format(7)
    entries = "/boot/efi/loader/entries"
    snapshot_prefix = prefix.replace("system", "snapper")
    files: dict[str, str | bytes | Link | None] = {
        "/etc/os-release": release(
            NAME="openSUSE Tumbleweed",
            ID="opensuse-tumbleweed",
            ID_LIKE="opensuse suse",
            VERSION_ID="20261101",
            PRETTY_NAME="openSUSE Tumbleweed",
        ),
        "/etc/machine-id": f"{MACHINE}\n",
        "/etc/sysconfig/bootloader": f'## Type: string\nLOADER_TYPE="{loader_type}"\nSECURE_BOOT="yes"\n',
        "/etc/dracut.conf.d": None,
        "/etc/modprobe.d": None,
        "/run": None,
        "/var/lib": None,
        "/proc/cmdline": f"{_SUSE_LINE}\n",
        "/proc/sys/kernel/osrelease": f"{version}\n",
        "/proc/self/mountinfo": mounts(("/", "btrfs", "/dev/vda2"), ("/boot/efi", "vfat", "/dev/vda1")),
        f"{entries}/{prefix}opensuse-tumbleweed-{version}-1.conf": suse_entry(version, 1, _SUSE_LINE),
        f"{entries}/{prefix}opensuse-tumbleweed-7.0.12-1-default-1.conf": suse_entry(
            "7.0.12-1-default", 1, _SUSE_LINE
        ),
        f"{entries}/{snapshot_prefix}opensuse-tumbleweed-{version}-7.conf": suse_entry(
            version, 7, f"quiet {older}"
        ),
        "/usr/bin/sdbootutil": program,
        "/usr/bin/bootctl": PROGRAM,
        "/usr/bin/dracut": PROGRAM,
        **kernel(version),
        **kernel("7.0.12-1-default"),
        **more,
    }
    for one in (version, "7.0.12-1-default"):
        content, digest = suse_image(one)
        files[f"/boot/efi/opensuse-tumbleweed/{one}/linux-0a1b2c"] = f"kernel {one}\n"
        files[f"/boot/efi/opensuse-tumbleweed/{one}/initrd-{digest}"] = content
    return Row(name, files, "sdbootutil", "sdbootutil-dracut", {"sdbootutil": sdbootutil})


TUMBLEWEED_SYSTEMD_BOOT = _sdbootutil_row(
    "tumbleweed-systemd-boot",
    "systemd-boot",
    "",
    program="#!/bin/bash\nfor file in /etc/kernel/cmdline.d/*; do :; done\n",
    more={
        "/etc/kernel/cmdline": f"{_SUSE_LINE}\n",
        LOADER_INFO: loader_info("systemd-boot 258.1+suse"),
    },
)
# An older tool, no file with the line, and the GRUB that reads boot loader entries.
TUMBLEWEED_GRUB_BLS = _sdbootutil_row(
    "tumbleweed-grub2-bls",
    "grub2-bls",
    "system-",
    program="#!/bin/bash\n",
    more={LOADER_INFO: loader_info("GRUB 2.14")},
)


# openSUSE with GRUB and its defaults

_LINUX_SCRIPT = """#!/bin/sh
set -e
for image in "$ROW_ROOT"/boot/vmlinuz-*; do
    version=${image##*/vmlinuz-}
    words="root=UUID=7c1d ${GRUB_CMDLINE_LINUX} ${GRUB_CMDLINE_LINUX_DEFAULT}"
    echo "menuentry '$GRUB_DISTRIBUTOR, with Linux $version' --class os \\
$menuentry_id_option 'gnulinux-$version-advanced' {"
    echo "    linux /boot/vmlinuz-$version $words"
    echo "    initrd /boot/initrd-$version"
    echo "}"
    [ "$GRUB_DISABLE_RECOVERY" = true ] && continue
    echo "menuentry '$GRUB_DISTRIBUTOR, with Linux $version (recovery mode)' \\
$menuentry_id_option 'gnulinux-$version-recovery-1' {"
    echo "    linux /boot/vmlinuz-$version root=UUID=7c1d $GRUB_CMDLINE_LINUX_RECOVERY $GRUB_CMDLINE_LINUX"
    echo "}"
done
exit 0
"""
GRUB_HEAD = (
    "#\n# DO NOT EDIT THIS FILE\n#\n# It is automatically generated by grub2-mkconfig using templates\n"
    "# from /etc/grub.d and settings from /etc/default/grub\n#\n"
)
# Sources the defaults as grub2-mkconfig does, exports what it exports, and runs the scripts of this tree.
_MKCONFIG = """set -e
root=$1
. "$root/etc/default/grub"
export GRUB_DISTRIBUTOR GRUB_CMDLINE_LINUX GRUB_CMDLINE_LINUX_DEFAULT GRUB_CMDLINE_LINUX_RECOVERY
export GRUB_DISABLE_RECOVERY
export ROW_ROOT="$root" menuentry_id_option='$menuentry_id_option'
for script in "$root"/etc/grub.d/[0-9]*; do
    name=/etc/grub.d/${script##*/}
    echo "### BEGIN $name ###"
    sed "s,\\(exec \\|(\\)/etc/grub.d/,\\1sh $root/etc/grub.d/," "$script" | sh -s
    echo "### END $name ###"
done
"""


def grub_menu(host: Host) -> bytes:
    """Return the grub.cfg that comes of a tree's defaults and scripts."""
    done = subprocess.run(
        ["sh", "-c", _MKCONFIG, "grub2-mkconfig", host.root], check=True, stdout=subprocess.PIPE, cwd="/"
    )
    return GRUB_HEAD.encode() + done.stdout


def update_bootloader(host: Host, arguments: Sequence[str]) -> int:
    """Write the menu of GRUB anew."""
    if tuple(arguments) != ("--refresh",):
        return 1
    Path(host.path("/boot/grub2/grub.cfg")).write_bytes(grub_menu(host))
    return 0


LEAP = Row(
    "leap-grub2",
    {
        "/etc/os-release": release(
            NAME="openSUSE Leap",
            ID="opensuse-leap",
            ID_LIKE="suse opensuse",
            VERSION_ID="15.6",
            PRETTY_NAME="openSUSE Leap 15.6",
        ),
        "/etc/sysconfig/bootloader": 'LOADER_TYPE="grub2-efi"\nSECURE_BOOT="yes"\n',
        "/etc/default/grub": (
            "# YaST edits this file\nGRUB_DISTRIBUTOR='openSUSE Leap 15.6'\nGRUB_DEFAULT=saved\n"
            'GRUB_CMDLINE_LINUX=""\n'
            'GRUB_CMDLINE_LINUX_DEFAULT="splash=silent resume=/dev/sda3 preempt=full quiet"\n'
            'GRUB_CMDLINE_LINUX_RECOVERY="single"\n'
        ),
        "/etc/grub.d/10_linux": _LINUX_SCRIPT,
        "/etc/dracut.conf.d": None,
        "/etc/modprobe.d": None,
        "/run": None,
        "/var/lib": None,
        "/boot/grub2/grub.cfg": GRUB_HEAD
        + "### BEGIN /etc/grub.d/10_linux ###\n"
        + "".join(
            f"menuentry 'openSUSE Leap 15.6, with Linux {version}' --class os "
            f"$menuentry_id_option 'gnulinux-{version}-advanced' {{\n"
            f"    linux /boot/vmlinuz-{version} root=UUID=7c1d  splash=silent "
            "resume=/dev/sda3 preempt=full quiet\n"
            f"    initrd /boot/initrd-{version}\n}}\n"
            f"menuentry 'openSUSE Leap 15.6, with Linux {version} (recovery mode)' "
            f"$menuentry_id_option 'gnulinux-{version}-recovery-1' {{\n"
            f"    linux /boot/vmlinuz-{version} root=UUID=7c1d single \n}}\n"
            for version in ("6.4.0-150600.23.50-default",)
        )
        + "### END /etc/grub.d/10_linux ###\n",
        "/boot/grub2/grubenv": environment(saved_entry="openSUSE Leap 15.6"),
        "/boot/vmlinuz-6.4.0-150600.23.50-default": "kernel\n",
        "/boot/initrd-6.4.0-150600.23.50-default": "image of 6.4.0-150600.23.50-default",
        "/proc/cmdline": (
            "BOOT_IMAGE=/boot/vmlinuz-6.4.0-150600.23.50-default root=UUID=7c1d splash=silent "
            "resume=/dev/sda3 preempt=full quiet\n"
        ),
        "/proc/sys/kernel/osrelease": "6.4.0-150600.23.50-default\n",
        "/proc/self/mountinfo": mounts(("/", "btrfs", "/dev/sda2"), ("/boot/efi", "vfat", "/dev/sda1")),
        "/sys/firmware/efi/efivars": None,
        "/usr/sbin/grub2-mkconfig": "#!/bin/sh\n. /etc/default/grub\n",
        "/usr/sbin/update-bootloader": PROGRAM,
        "/usr/bin/dracut": PROGRAM,
        **kernel("6.4.0-150600.23.50-default"),
    },
    "grub",
    "dracut",
    {"update-bootloader": update_bootloader, "dracut": dracut},
)


MICROOS = Row(
    "microos",
    {
        **TUMBLEWEED_SYSTEMD_BOOT.files,
        "/etc/os-release": release(
            NAME="openSUSE MicroOS",
            ID="opensuse-microos",
            ID_LIKE="suse opensuse opensuse-tumbleweed",
            PRETTY_NAME="openSUSE MicroOS",
        ),
        "/proc/self/mountinfo": mounts(
            ("/", "btrfs", "ro:/dev/vda2"), ("/etc", "overlay", "overlay"), ("/boot/efi", "vfat", "/dev/vda1")
        ),
        "/usr/sbin/transactional-update": PROGRAM,
    },
    loader="transactional-update",
    generator="sdbootutil-dracut",
    refused="transactional",
)


ROWS: tuple[Row, ...] = (
    FEDORA,
    ROCKY_8,
    ALMA_9,
    STREAM_10,
    LEAP,
    TUMBLEWEED_SYSTEMD_BOOT,
    TUMBLEWEED_GRUB_BLS,
    MICROOS,
)
