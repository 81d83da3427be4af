"""What a user wants of the host, parsed at the door."""

import re
from dataclasses import dataclass, fields
from typing import Any

from virtpass.host.tokens import parse_argument
from virtpass.pci.address import PciAddress
from virtpass.system.errors import UsageError

_MODULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ACS_PART = re.compile(r"downstream|multifunction|id:[0-9a-fA-F]{4}:[0-9a-fA-F]{4}")
ACS_DEFAULT = "downstream,multifunction"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants.

    Attributes:
        bind: devices that vfio-pci shall have from boot on, each with all functions of its slot.
        passthrough: whether the host's own devices shall reach memory untranslated (``iommu=pt``).
        unsafe_interrupts: whether VFIO shall accept interrupts that are not remapped.
        acs_override: value of ``pcie_acs_override=``; empty for none.
        framebuffer_off: whether the firmware's framebuffer shall not be used.
        softdeps: modules before which vfio-pci is loaded.
        blacklist: modules that are not loaded by themselves.
        arguments: further kernel arguments.
        bootloader: name of the bootloader when it cannot be told; empty for finding out.
        fallback_entry: whether the boot menu keeps an entry without what is added.
        trial: whether it is tried in one boot first.
        accept_risk: whether arguments are written that virtpass warns of.
    """

    bind: tuple[PciAddress, ...] = ()
    passthrough: bool = False
    unsafe_interrupts: bool = False
    acs_override: str = ""
    framebuffer_off: bool = False
    softdeps: tuple[str, ...] = ()
    blacklist: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    bootloader: str = ""
    fallback_entry: bool = True
    trial: bool = False
    accept_risk: bool = False

    def __post_init__(self) -> None:
        """Check what comes as text.

        Raises:
            UsageError: a name or an argument cannot be written safely.
        """
        for name in (*self.softdeps, *self.blacklist):
            if not _MODULE.fullmatch(name):
                raise UsageError(
                    "module-name", f"'{name}' is not the name of a kernel module", "see the names with: lsmod"
                )
            if name.startswith("vfio"):
                raise UsageError(
                    "module-name",
                    f"'{name}' is part of VFIO, which devices are given to",
                    "name the driver that the host uses for the device",
                )
        for argument in self.arguments:
            parse_argument(argument)
        if self.acs_override and not all(_ACS_PART.fullmatch(one) for one in self.acs_override.split(",")):
            raise UsageError(
                "acs-override",
                f"'{self.acs_override}' is no value for the ACS override",
                "give downstream, multifunction or id:VENDOR:DEVICE, with commas between them",
            )


def wishes_to_json(wishes: Wishes) -> dict[str, Any]:
    """Render wishes for the record."""
    # Not asdict(): it would take an address apart.
    values = {one.name: getattr(wishes, one.name) for one in fields(wishes)}
    lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
    return {**values, **lists, "bind": [str(address) for address in wishes.bind]}


def wishes_from_json(data: dict[str, Any]) -> Wishes:
    """Parse wishes from the record. Raises ValueError, KeyError, TypeError or UsageError."""
    values: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in data.items()
    }
    values["bind"] = tuple(PciAddress.parse(text) for text in values["bind"])
    return Wishes(**values)
