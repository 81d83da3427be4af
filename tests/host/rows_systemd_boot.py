"""Hosts that systemd-boot starts, by whatever tool writes its entries."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.host.rows import LOADER_INFO, PROGRAM, STUB_INFO, Link, Program, Row, kernel, loader_info
from virtpass.system.host import Host

ROOT = "root=UUID=5b4f0d6e-52a1-4c53-9d0e-7f5e2a6b9c11"
MACHINE = "4c1f0a9be7d24f6c8a35d1e0f27b6a93"
BINARY = "EFI/systemd/systemd-bootx64.efi"

Files = dict[str, str | bytes | Link | None]


def write(host: Host, path: str, content: str | bytes) -> None:
    target = Path(host.path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)


def text_of(host: Host, path: str) -> str:
    return Path(host.path(path)).read_text() if os.path.exists(host.path(path)) else ""


def _mounts(esp: str) -> str:
    return (
        "22 1 254:2 / / rw,relatime shared:1 - ext4 /dev/vda2 rw\n"
        f"40 22 254:1 / {esp} rw,relatime shared:20 - vfat /dev/vda1 rw,fmask=0077,dmask=0077\n"
    )


def _nothing(host: Host, words: Sequence[str]) -> int:
    return 0


def _common(name: str, line: str, esp: str, release: str, loader: str = "systemd-boot 257.13") -> Files:
    files: Files = {
        "/etc/os-release": release,
        "/proc/cmdline": f"initrd=\\x {line}\n",
        "/proc/self/mountinfo": _mounts(esp),
        "/proc/sys/kernel/osrelease": f"{name}\n",
        f"{esp}/{BINARY}": b"MZ",
        f"{esp}/loader/loader.conf": "timeout 3\n#console-mode keep\n",
        "/sys/firmware/efi/fw_platform_size": "64\n",
        "/usr/bin/bootctl": PROGRAM,
    }
    if loader:
        files[LOADER_INFO] = loader_info(loader)
    return files


# kernel-install


def _generated(esp: str, version: str, title: str, line: str, initrds: Sequence[str], key: str) -> Files:
    """Return an entry as kernel-install writes it, with what it copies."""
    folder = f"{esp}/{MACHINE}/{version}"
    return {
        f"{esp}/loader/entries/{MACHINE}-{version}.conf": _entry_text(version, title, line, initrds, key),
        f"{folder}/linux": f"kernel {version}",
        **dict.fromkeys((f"{folder}/{name}" for name in initrds), BUILT),
    }


def _entry_text(version: str, title: str, line: str, initrds: Sequence[str], key: str) -> str:
    return (
        "# Boot Loader Specification type#1 entry\n"
        "# File created by /usr/lib/kernel/install.d/90-loaderentry.install (systemd 257.13)\n"
        f"title      {title}\nversion    {version}\nmachine-id {MACHINE}\nsort-key   {key}\n"
        f"options    {line}\nlinux      /{MACHINE}/{version}/linux\n"
        + "".join(f"initrd     /{MACHINE}/{version}/{name}\n" for name in initrds)
    )


def kernel_install(esp: str, title: str, key: str) -> Program:
    """Return what kernel-install does: copies, and the entry from the first command line that it finds."""

    def run(host: Host, words: Sequence[str]) -> int:
        if len(words) < 3 or words[0] != "add":
            return 1
        version, image, initrds = words[1], words[2], list(words[3:])
        if not os.path.exists(host.path(image)) or not all(os.path.exists(host.path(one)) for one in initrds):
            return 1
        content = {os.path.basename(one): text_of(host, one) for one in initrds}
        if not content:
            content = {"initrd": f"built of {_configuration(host)}"}
        sources = ("/etc/kernel/cmdline", "/usr/lib/kernel/cmdline")
        source = next((path for path in sources if os.path.exists(host.path(path))), "/proc/cmdline")
        lines = [line for line in text_of(host, source).splitlines() if not line.lstrip().startswith("#")]
        found = [word for word in " ".join(lines).split() if not word.startswith(("BOOT_IMAGE=", "initrd="))]
        if not any(word.startswith("systemd.machine_id=") for word in found):
            found.append(f"systemd.machine_id={MACHINE}")
        entry = _entry_text(version, title, " ".join(found), list(content), key)
        write(host, f"{esp}/loader/entries/{MACHINE}-{version}.conf", entry)
        write(host, f"{esp}/{MACHINE}/{version}/linux", text_of(host, image))
        for name, text in content.items():
            write(host, f"{esp}/{MACHINE}/{version}/{name}", text)
        return 0

    return run


def _configuration(host: Host) -> str:
    """Return what an initramfs has from the host's files, with their names."""
    folders = (
        "/etc/modprobe.d",
        "/etc/dracut.conf.d",
        "/etc/initramfs-tools/hooks",
        "/etc/mkinitcpio.conf.d",
    )
    paths = [f"{folder}/{name}" for folder in folders for name in host.names(folder)]
    return "".join(f"\n{path}\n{text_of(host, path)}" for path in [*paths, "/etc/mkinitcpio.conf"])


BUILT = "built of \n/etc/mkinitcpio.conf\n"


def build_images(host: Host, words: Sequence[str]) -> int:
    """Write every image in /boot anew."""
    for name in host.names("/boot"):
        if name.startswith("initrd.img-"):
            write(host, f"/boot/{name}", f"built of {_configuration(host)}")
    return 0


_DEBIAN_13 = (
    'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nNAME="Debian GNU/Linux"\nVERSION_ID="13"\nID=debian\n'
)
_DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
_TITLE_13, _TITLE_12 = "Debian GNU/Linux 13 (trixie)", "Debian GNU/Linux 12 (bookworm)"
_HOOK = 'kernel-install add "$1" "/boot/vmlinuz-$1" "$2"\n'
_LINE = f"{ROOT} ro quiet"
_MACHINE_LINE = f"{_LINE} systemd.machine_id={MACHINE}"


def debian_kernel(version: str) -> Files:
    return {
        **kernel(version),
        f"/boot/vmlinuz-{version}": f"kernel {version}",
        f"/boot/initrd.img-{version}": BUILT,
    }


def _dracut(esp: str) -> Program:
    """Return what dracut does: images of which nobody says where go to the EFI system partition."""

    def run(host: Host, words: Sequence[str]) -> int:
        text = f"built of {_configuration(host)}"
        if "--regenerate-all" in words:
            for version in host.names("/usr/lib/modules"):
                write(host, f"{esp}/{MACHINE}/{version}/initrd", text)
            return 0
        image, version = words[-2:]
        if not os.path.exists(host.path(f"/usr/lib/modules/{version}")):
            return 1
        write(host, image, text)
        return 0

    return run


def _debian_13() -> Row:
    esp, old, new = "/boot/efi", "6.12.94+deb13-amd64", "6.12.107+deb13-amd64"
    files: Files = {
        **_common(new, _MACHINE_LINE, esp, _DEBIAN_13),
        **debian_kernel(old),
        **debian_kernel(new),
        "/etc/kernel/cmdline": f"{_LINE}\n",
        "/etc/initramfs/post-update.d/systemd-boot": _HOOK,
        "/usr/bin/kernel-install": PROGRAM,
        "/usr/bin/dracut": PROGRAM,
        f"{esp}/loader/entries.srel": "type1\n",
    }
    # dracut's plugin builds one, and Debian's takes that in /boot along.
    initrds = ("initrd", f"initrd.img-{new}")
    files |= _generated(esp, new, _TITLE_13, _MACHINE_LINE, initrds, "debian")
    files |= _generated(esp, old, _TITLE_13, _MACHINE_LINE, (f"initrd.img-{old}",), "debian")
    programs = {
        "kernel-install": kernel_install(esp, _TITLE_13, "debian"),
        "dracut": _dracut(esp),
        "bootctl": _nothing,
    }
    return Row("debian-13-systemd-boot", files, "systemd-boot", "dracut", programs)


def _debian_12() -> Row:
    """Nobody has written /etc/kernel/cmdline: kernel-install takes the running line."""
    esp, version = "/efi", "6.1.0-37-amd64"
    files: Files = {
        **_common(version, _MACHINE_LINE, esp, _DEBIAN_12, "systemd-boot 252.39"),
        **debian_kernel(version),
        **_generated(esp, version, _TITLE_12, _MACHINE_LINE, (f"initrd.img-{version}",), "debian"),
        "/etc/initramfs/post-update.d/systemd-boot": _HOOK,
        "/usr/bin/kernel-install": PROGRAM,
        "/usr/sbin/mkinitramfs": PROGRAM,
        "/usr/sbin/update-initramfs": PROGRAM,
    }
    install = kernel_install(esp, _TITLE_12, "debian")

    def update(host: Host, words: Sequence[str]) -> int:
        build_images(host, words)
        # What the hook of the package systemd-boot does.
        return install(host, ("add", version, f"/boot/vmlinuz-{version}", f"/boot/initrd.img-{version}"))

    programs = {"kernel-install": install, "update-initramfs": update, "bootctl": _nothing}
    return Row("debian-12-systemd-boot", files, "systemd-boot", "initramfs-tools", programs)


def _endeavouros() -> Row:
    esp, version, title = "/efi", "6.17.8-arch1-1", "EndeavourOS"
    line = f"{ROOT} rw nvme_load=YES nowatchdog"
    machine_line = f"{line} systemd.machine_id={MACHINE}"
    fallback = f"{esp}/loader/entries/{MACHINE}-{version}-fallback.conf"
    files: Files = {
        **_common(version, machine_line, esp, 'ID=endeavouros\nID_LIKE=arch\nPRETTY_NAME="EndeavourOS"\n'),
        **kernel(version),
        **_generated(esp, version, title, machine_line, ("initrd",), "endeavouros"),
        fallback: _entry_text(
            version, f"{title} (fallback)", machine_line, ("initrd-fallback",), "endeavouros"
        ),
        f"{esp}/{MACHINE}/{version}/initrd-fallback": BUILT,
        f"/usr/lib/modules/{version}/vmlinuz": f"kernel {version}",
        "/etc/kernel/cmdline": line,
        "/usr/bin/kernel-install": PROGRAM,
        "/usr/bin/reinstall-kernels": PROGRAM,
        "/usr/bin/dracut": PROGRAM,
    }
    install = kernel_install(esp, title, "endeavouros")

    def reinstall(host: Host, words: Sequence[str]) -> int:
        status = install(host, ("add", version, f"/usr/lib/modules/{version}/vmlinuz"))
        normal = text_of(host, f"{esp}/loader/entries/{MACHINE}-{version}.conf")
        text = normal.replace(title, f"{title} (fallback)").replace("/initrd\n", "/initrd-fallback\n")
        write(host, fallback, text)
        write(host, f"{esp}/{MACHINE}/{version}/initrd-fallback", f"built of {_configuration(host)}")
        return status

    programs = {"reinstall-kernels": reinstall, "bootctl": _nothing, "kernel-install": install}
    return Row("endeavouros", files, "systemd-boot", "dracut", programs)


# entries by hand, unified kernel images, sdboot-manage: Arch and its family


def _mkinitcpio(uki: bool = False) -> Files:
    kind, folder = ("uki", "/efi/EFI/Linux/arch-linux") if uki else ("image", "/boot/initramfs-linux")
    end = ".efi" if uki else ".img"
    return {
        "/etc/mkinitcpio.conf": "MODULES=()\nHOOKS=(base udev autodetect modconf kms block filesystems)\n",
        "/etc/mkinitcpio.d/linux.preset": (
            "# mkinitcpio preset file for the 'linux' package\n"
            "ALL_kver=\"/boot/vmlinuz-linux\"\n\nPRESETS=('default' 'fallback')\n\n"
            f'default_{kind}="{folder}{end}"\n\n'
            f'fallback_{kind}="{folder}-fallback{end}"\nfallback_options="-S autodetect"\n'
        ),
        "/usr/bin/mkinitcpio": PROGRAM,
    }


def _arch() -> Row:
    version = "6.17.8-arch1-1"
    line = f'{ROOT} rw rootflags=subvol=@ dyndbg="file drivers/usb/* +p"'
    ucode = "initrd /intel-ucode.img\n"
    entries = "/boot/loader/entries"
    files: Files = {
        **_common(version, line, "/boot", 'ID=arch\nPRETTY_NAME="Arch Linux"\n'),
        **kernel(version),
        **_mkinitcpio(),
        "/boot/vmlinuz-linux": "kernel",
        "/boot/intel-ucode.img": "microcode",
        "/boot/initramfs-linux.img": "initramfs",
        "/boot/initramfs-linux-fallback.img": "fallback initramfs",
        "/usr/bin/kernel-install": PROGRAM,
        f"/usr/lib/modules/{version}/pkgbase": "linux\n",
        f"{entries}/arch.conf": (
            f"title Arch Linux\nlinux /vmlinuz-linux\n{ucode}initrd /initramfs-linux.img\noptions {line}"
        ),
        f"{entries}/arch-fallback.conf": (
            f"title Arch Linux (fallback)\nlinux /vmlinuz-linux\n{ucode}"
            f"initrd /initramfs-linux-fallback.img\noptions {line}\n"
        ),
        f"{entries}/other.conf": "title Other\nlinux /other/vmlinuz\noptions root=UUID=1 rw\n",
        f"{entries}/shell.conf": "title UEFI shell\nefi /shellx64.efi\n",
    }

    def build(host: Host, words: Sequence[str]) -> int:
        for name in ("", "-fallback"):
            write(host, f"/boot/initramfs-linux{name}.img", f"built{name} of {_configuration(host)}")
        return 0

    return Row(
        "arch-systemd-boot", files, "loader-entries", "mkinitcpio", {"mkinitcpio": build, "bootctl": _nothing}
    )


BOOSTER_IMAGE = "init\nusr/lib/modules/nvme.ko\n"


def booster_images(host: Host, words: Sequence[str]) -> int:
    """Write the image of each kernel as the list of what is in it, and copy the kernel."""
    text = text_of(host, "/etc/booster.yaml")
    found = re.search(r"^modules_force_load:([^#\n]*)", text, re.MULTILINE)
    names = [one.strip() for one in found[1].split(",")] if found else []
    for version in host.names("/usr/lib/modules"):
        package = text_of(host, f"/usr/lib/modules/{version}/pkgbase").strip()
        image = BOOSTER_IMAGE + "".join(f"usr/lib/modules/{name}.ko\n" for name in names if name)
        write(host, f"/boot/booster-{package}.img", image)
        write(host, f"/boot/vmlinuz-{package}", text_of(host, f"/usr/lib/modules/{version}/vmlinuz"))
    return 0


def _arch_booster() -> Row:
    """Two kernels, and a menu that somebody keeps by hand."""
    versions = {"linux": "6.17.8-arch1-1", "linux-lts": "6.12.58-1-lts"}
    line, entries = f"{ROOT} rw quiet", "/boot/loader/entries"
    files: Files = {
        **_common(versions["linux"], line, "/boot", 'ID=arch\nPRETTY_NAME="Arch Linux"\n'),
        "/etc/booster.yaml": "# mine\nmodules_force_load: dm_mod  # for the store\ncompression: zstd",
        "/usr/bin/booster": PROGRAM,
        "/usr/lib/booster/regenerate_images": "#!/bin/bash -e\n",
        f"{entries}/memtest.conf": "title Memory test\nefi /memtest86+/memtest.efi\n",
    }
    for package, version in versions.items():
        files |= kernel(version)
        files |= {
            f"/usr/lib/modules/{version}/pkgbase": f"{package}\n",
            f"/usr/lib/modules/{version}/vmlinuz": f"kernel {version}",
            f"/boot/vmlinuz-{package}": f"kernel {version}",
            f"/boot/booster-{package}.img": f"{BOOSTER_IMAGE}usr/lib/modules/dm_mod.ko\n",
            f"{entries}/{package}.conf": (
                f"title Arch Linux ({package})\nlinux /vmlinuz-{package}\n"
                f"initrd /booster-{package}.img\noptions {line}\n"
            ),
        }
    programs: dict[str, Program] = {"regenerate_images": booster_images, "bootctl": _nothing}
    return Row("arch-systemd-boot-booster", files, "loader-entries", "booster", programs)


def unified(line: str, inside: str = "kernel and initramfs") -> bytes:
    """Return a PE file with the sections .linux and .cmdline, as little of one as there can be."""
    cmdline, linux = line.encode() + b"\n\0", inside.encode()
    start = 64 + 24 + 2 * 40
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    head += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 2, 0, 0, 0, 0, 0)
    for name, content in ((b".linux", linux), (b".cmdline", cmdline)):
        head += struct.pack("<8sIIIIIIHHI", name, len(content), 0, len(content), start, 0, 0, 0, 0, 0)
        start += len(content)
    return head + linux + cmdline


def _arch_uki() -> Row:
    version, line = "6.17.8-arch1-1", f"{ROOT} rw quiet"
    files: Files = {
        **_common(version, line, "/efi", 'ID=arch\nPRETTY_NAME="Arch Linux"\n'),
        **kernel(version),
        **_mkinitcpio(uki=True),
        STUB_INFO: loader_info("systemd-stub 258.2"),
        "/boot/vmlinuz-linux": "kernel",
        "/etc/kernel/cmdline": f"# the root file system\n{ROOT} rw\n\n# less to read\nquiet\n",
        "/efi/EFI/Linux/arch-linux.efi": unified(line),
        "/efi/EFI/Linux/arch-linux-fallback.efi": unified(line),
        f"/usr/lib/modules/{version}/pkgbase": "linux\n",
    }
    return Row("arch-uki", files, "uki", "mkinitcpio", {"mkinitcpio": mkinitcpio_uki})


def mkinitcpio_uki(host: Host, words: Sequence[str]) -> int:
    """Build the images of the one preset, sourced by a real shell, with the line that each of them gets."""
    main = "/etc/kernel/cmdline"
    paths = [main] if os.path.exists(host.path(main)) else []
    paths += [f"/etc/cmdline.d/{name}" for name in host.names("/etc/cmdline.d") if name.endswith(".conf")]
    preset = host.path("/etc/mkinitcpio.d/linux.preset")
    script = f'. "{preset}"\n'
    script += 'for p in "${PRESETS[@]}"; do u=${p}_uki o=${p}_options; echo "${!u} ${!o}"; done'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    for variant in done.stdout.splitlines():
        uki, _, options = variant.partition(" ")
        own = options.partition("--cmdline ")[2].split()
        lines = [
            one for path in (own or paths or ["/proc/cmdline"]) for one in text_of(host, path).splitlines()
        ]
        line = " ".join(word for one in lines if not one.startswith("#") for word in one.split())
        write(host, uki, unified(line, f"built of {_configuration(host)}"))
    return 0


def _cachyos() -> Row:
    version, entries = "6.17.8-2-cachyos", "/boot/loader/entries"
    base, options = f"{ROOT} rw", "quiet zswap.enabled=0 nowatchdog splash"
    common = "linux\t/vmlinuz-linux-cachyos\ninitrd\t/intel-ucode.img\n"

    def texts(normal: str, fallback: str) -> dict[str, str]:
        head = f"title\tLinux Cachyos\n{common}initrd\t/initramfs-linux-cachyos"
        return {
            f"{entries}/linux-cachyos.conf": f"{head}.img\noptions\t{base} {normal}\n",
            f"{entries}/linux-cachyos-fallback.conf": f"{head}-fallback.img\noptions\t{base} {fallback}\n",
        }

    files: Files = {
        **_common(version, f"{base} {options}", "/boot", 'ID=cachyos\nID_LIKE=arch\nPRETTY_NAME="CachyOS"\n'),
        **kernel(version),
        **_mkinitcpio(),
        **texts(options, ""),
        "/boot/loader/loader.conf": "default linux-cachyos\ntimeout 5\n",
        "/boot/vmlinuz-linux-cachyos": "kernel",
        "/boot/intel-ucode.img": "microcode",
        "/boot/initramfs-linux-cachyos.img": "initramfs",
        "/boot/initramfs-linux-cachyos-fallback.img": "fallback initramfs",
        "/boot/initramfs-linux.img": "initramfs",
        "/boot/initramfs-linux-fallback.img": "initramfs",
        "/etc/sdboot-manage.conf": (
            f'# kernel options to be appended to the "options" line\nLINUX_OPTIONS="{options}"\n'
            '#LINUX_FALLBACK_OPTIONS=""\nDEFAULT_ENTRY="manual"\n'
        ),
        "/usr/bin/sdboot-manage": PROGRAM,
    }

    def generate(host: Host, words: Sequence[str]) -> int:
        for name in host.names(entries):
            os.unlink(host.path(f"{entries}/{name}"))
        config = host.path("/etc/sdboot-manage.conf")
        script = f'. "{config}"; printf "%s\\n" "$LINUX_OPTIONS" "$LINUX_FALLBACK_OPTIONS"'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        for path, text in texts(*done.stdout.splitlines()).items():
            write(host, path, text)
        return 0

    def build(host: Host, words: Sequence[str]) -> int:
        for name in ("", "-fallback"):
            write(host, f"/boot/initramfs-linux{name}.img", f"built{name} of {_configuration(host)}")
        return 0

    programs: dict[str, Program] = {"sdboot-manage": generate, "mkinitcpio": build, "bootctl": _nothing}
    return Row("cachyos-sdboot-manage", files, "sdboot-manage", "mkinitcpio", programs)


# kernelstub


def _pop() -> Row:
    version, esp, entries = "6.16.3-76061603-generic", "/boot/efi", "/boot/efi/loader/entries"
    config = "/etc/kernelstub/configuration"
    folder = f"/EFI/Pop_OS-{ROOT.removeprefix('root=UUID=')}"
    defaults = {
        "kernel_options": ["quiet", "splash"],
        "esp_path": esp,
        "setup_loader": False,
        "manage_mode": False,
        "force_update": False,
        "live_mode": False,
        "config_rev": 3,
    }
    user = {
        **defaults,
        "kernel_options": ["quiet", "loglevel=0", "systemd.show_status=false", "splash"],
        "setup_loader": True,
        "manage_mode": True,
    }

    def entry(names: tuple[str, str], options: Sequence[str]) -> str:
        linux, initrd = names
        files = f"linux {folder}/{linux}\ninitrd {folder}/{initrd}\n"
        return f"title Pop!_OS\n{files}options {ROOT} ro {' '.join(options)}\n"

    made = {
        "Pop_OS-current.conf": ("vmlinuz.efi", "initrd.img"),
        "Pop_OS-oldkern.conf": ("vmlinuz-previous.efi", "initrd.img-previous"),
    }
    found: list[str] = user["kernel_options"]  # type: ignore[assignment]
    files: Files = {
        **_common(
            version,
            f"{ROOT} ro {' '.join(found)}",
            esp,
            'ID=pop\nID_LIKE="ubuntu debian"\nPRETTY_NAME="Pop!_OS 24.04"\n',
        ),
        **debian_kernel(version),
        **{f"{entries}/{name}": entry(names, found) for name, names in made.items()},
        **{f"{esp}{folder}/{one}": "copy" for names in made.values() for one in names},
        f"{entries}/Recovery-9C3E-1B2A.conf": (
            "title Pop!_OS Recovery\nlinux /EFI/Recovery-9C3E-1B2A/vmlinuz.efi\noptions boot=casper quiet\n"
        ),
        f"{esp}/loader/loader.conf": "default Pop_OS-current\n",
        config: json.dumps({"default": defaults, "user": user}, indent=2),
        "/usr/bin/kernelstub": PROGRAM,
        "/usr/sbin/mkinitramfs": PROGRAM,
        "/usr/sbin/update-initramfs": PROGRAM,
    }

    def stub(host: Host, words: Sequence[str]) -> int:
        data = json.loads(text_of(host, config))
        for name, names in made.items():
            write(host, f"{entries}/{name}", entry(names, data["user"]["kernel_options"]))
            for one in names:
                write(host, f"{esp}{folder}/{one}", text_of(host, f"/boot/initrd.img-{version}"))
        write(host, config, json.dumps(data, indent=2))
        return 0

    def update(host: Host, words: Sequence[str]) -> int:
        build_images(host, words)
        return stub(host, ())

    programs: dict[str, Program] = {"kernelstub": stub, "update-initramfs": update, "bootctl": _nothing}
    return Row("pop-os", files, "kernelstub", "initramfs-tools", programs)


ROWS: tuple[Row, ...] = (
    _debian_13(),
    _debian_12(),
    _endeavouros(),
    _arch(),
    _arch_booster(),
    _arch_uki(),
    _cachyos(),
    _pop(),
)
