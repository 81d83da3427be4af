"""The first boot of an image, which is for good: what a real installation does before its first boot.

The standard machine computes there what every later boot would compute anew. A boot machine gets its
bootloader, with the tools that an installer uses; only after that it boots by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .disk import GRUB_BIOS, GRUB_UEFI, ROOT_UUID, STANDARD, SYSTEMD_BOOT, Kind
from .machine import Machine

# As a user may have them: the serial console for the log, and a quick boot.
ARGUMENTS = (
    "quiet",
    "console=tty0",
    "console=ttyS0",
    "consoleblank=0",
    "mitigations=off",
    "init_on_alloc=0",
    "lsm=lockdown,yama",
    # A machine that is starved of the processor fails the kernel's test of its timer, and panics.
    "no_timer_check",
)
# All else in Debian's file stays as it is. The menu is short, and a text that the console log shows.
GRUB_SETTINGS = {
    "GRUB_TIMEOUT": "1",
    "GRUB_CMDLINE_LINUX_DEFAULT": f'"{" ".join(ARGUMENTS)}"',
    "GRUB_TERMINAL": '"console serial"',
    "GRUB_SERIAL_COMMAND": '"serial --unit=0 --speed=115200"',
}
GRUB_FILE = "/etc/default/grub"


def provision(machine: Machine) -> None:
    """Do what the first boot of this kind of machine is for, and power it off. Raises MachineLost."""
    STEPS[machine.image.kind](machine)
    machine.run(["sync"]).check()
    machine.power_off()


def _standard(machine: Machine) -> None:
    # Compiled AppArmor profiles, the machine id and caches of systemd come by themselves.
    machine.run(["virsh", "domcapabilities", "--virttype", machine.domain_type], timeout=120).check()


def _grub(machine: Machine, *words: str) -> None:
    text = machine.get(GRUB_FILE).decode()
    for name, value in GRUB_SETTINGS.items():
        text, found = re.subn(rf"^#?{name}=.*", f"{name}={value}", text, count=1, flags=re.MULTILINE)
        text += "" if found else f"{name}={value}\n"
    machine.put(text, GRUB_FILE)
    # The image that was made while packages were installed knows nothing of /etc/fstab.
    machine.run(["update-initramfs", "-u", "-k", "all"], timeout=300).check()
    machine.run(["grub-install", *words], timeout=300).check()
    machine.run(["update-grub"], timeout=300).check()


def _grub_bios(machine: Machine) -> None:
    _grub(machine, "--target=i386-pc", "/dev/vda")


def _grub_uefi(machine: Machine) -> None:
    _grub(machine, "--target=x86_64-efi", "--removable", "--no-nvram")


def _systemd_boot(machine: Machine) -> None:
    machine.put(f"root=UUID={ROOT_UUID} ro {' '.join(ARGUMENTS)}\n", "/etc/kernel/cmdline")
    machine.run(["bootctl", "install", "--no-variables"], timeout=120).check()
    kernel_install(machine)


def kernel_install(machine: Machine) -> None:
    """Make the boot entries of the running kernel anew, and its initramfs, as the kernel's package does.

    `kernel-install add-all` finds no kernel on Debian, where it lies in /boot. Raises CommandFailed.
    """
    version = machine.run(["uname", "-r"]).check().text.strip()
    machine.run(["kernel-install", "add", version, f"/boot/vmlinuz-{version}"], timeout=600).check()


STEPS: dict[Kind, Callable[[Machine], None]] = {
    STANDARD: _standard,
    GRUB_BIOS: _grub_bios,
    GRUB_UEFI: _grub_uefi,
    SYSTEMD_BOOT: _systemd_boot,
}
