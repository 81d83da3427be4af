"""The bootloader of a boot machine, worked from inside with the distribution's own tools, as a user does.

`of(machine)` returns it. Nothing of virtpass is used here: this is what virtpass is compared with.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod

from .disk import SYSTEMD_BOOT
from .machine import Machine
from .provision import GRUB_FILE

# A run of dracut or update-initramfs takes most of a minute where another machine runs beside it.
TIMEOUT = 600.0


class Bootloader(ABC):
    """The boot menu of a machine, and the kernel arguments in it."""

    def __init__(self, machine: Machine) -> None:
        """Work in `machine`, which has this bootloader."""
        self.machine = machine

    def arguments(self) -> list[str]:
        """Return the kernel arguments of the running system."""
        return self.machine.get("/proc/cmdline").decode().split()

    @abstractmethod
    def entries(self) -> list[str]:
        """Return the identifiers of the entries of the boot menu."""

    @abstractmethod
    def choose_once(self, entry: str) -> None:
        """Let the next boot, and only that, take the entry with the identifier `entry`."""

    @abstractmethod
    def chosen_once(self) -> str:
        """Return the entry that the next boot alone takes; empty when none was chosen."""


class Grub(Bootloader):
    """GRUB as Debian sets it up, under either firmware."""

    CONFIGURATION = "/boot/grub/grub.cfg"

    def entries(self) -> list[str]:
        """Return the identifiers in grub.cfg; those in a submenu as SUBMENU>ENTRY."""
        found = []
        submenu = ""
        for line in self.machine.get(self.CONFIGURATION).decode().splitlines():
            match = re.match(r"\s*(menuentry|submenu) .*\$menuentry_id_option '([^']+)'", line)
            if line == "}":
                submenu = ""
            elif match and match[1] == "submenu":
                submenu = f"{match[2]}>"
            elif match:
                found.append(submenu + match[2])
        return found

    def choose_once(self, entry: str) -> None:
        """Let the next boot take `entry`, through grubenv."""
        self.machine.run(["grub-reboot", entry]).check()

    def chosen_once(self) -> str:
        """Read grubenv with GRUB's own program."""
        listed = self.machine.run(["grub-editenv", "list"]).check().text
        return "".join(line[11:] for line in listed.splitlines() if line.startswith("next_entry="))

    def add_argument(self, word: str) -> None:
        """Add a kernel argument for this and all later kernels: edit Debian's file, run update-grub."""
        text = self.machine.get(GRUB_FILE).decode()
        text = re.sub(r'^(GRUB_CMDLINE_LINUX_DEFAULT=".*)"$', rf'\1 {word}"', text, flags=re.MULTILINE)
        self.machine.put(text, GRUB_FILE)
        self.machine.run(["update-grub"], timeout=TIMEOUT).check()


class SystemdBoot(Bootloader):
    """systemd-boot with the entries that kernel-install makes."""

    ONE_SHOT = "/sys/firmware/efi/efivars/LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

    def entries(self) -> list[str]:
        """Return the identifiers as bootctl lists them."""
        listed = self.machine.run(["bootctl", "list", "--json=short"]).check().text
        return [entry["id"] for entry in json.loads(listed)]

    def choose_once(self, entry: str) -> None:
        """Let the next boot take `entry`, through an EFI variable."""
        self.machine.run(["bootctl", "set-oneshot", entry]).check()

    def chosen_once(self) -> str:
        """Read the EFI variable: four bytes of attributes, then text in UTF-16."""
        if self.machine.run(["test", "-e", self.ONE_SHOT]).status != 0:
            return ""
        return self.machine.get(self.ONE_SHOT)[4:].decode("utf-16-le").rstrip("\0")


def of(machine: Machine) -> Bootloader:
    """Return the bootloader of `machine`."""
    return SystemdBoot(machine) if machine.image.kind == SYSTEMD_BOOT else Grub(machine)
