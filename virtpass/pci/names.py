"""Names of devices from udev's hardware database."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import Device
from virtpass.pci.sysfs import device_path
from virtpass.system.host import Host

_RECORDS = "/run/udev/data"


@dataclass(frozen=True, slots=True)
class Name:
    """What the hardware database calls a device; each part is empty when it does not know.

    Attributes:
        vendor: the maker.
        model: the product.
        kind: the class, such as "VGA compatible controller".
    """

    vendor: str = ""
    model: str = ""
    kind: str = ""

    @property
    def text(self) -> str:
        """Vendor and model; the class where both are unknown."""
        return " ".join(part for part in (self.vendor, self.model) if part) or self.kind or "unknown device"


def device_names(host: Host, devices: Iterable[Device]) -> dict[PciAddress, Name]:
    """Return the names of devices.

    Of a host that is not this machine, the names are those that its udev has written down, as in a snapshot.
    A machine without udev has no names.
    """
    if host.root:
        return {device.address: _written_down(host, device.address) for device in devices}
    try:
        import pyudev

        context = pyudev.Context()
    except (ImportError, OSError):
        return {}
    names: dict[PciAddress, Name] = {}
    known: dict[tuple[Any, ...], Name] = {}
    for device in devices:
        # The name depends on nothing else, and a host may have thousands of equal virtual functions.
        kind = (*device.identity[:4], device.class_code)
        if kind not in known:
            known[kind] = _look_up(pyudev, context, device.address)
        names[device.address] = known[kind]
    return names


def _look_up(pyudev: Any, context: Any, address: PciAddress) -> Name:  # noqa: ANN401 (pyudev has no types)
    try:
        properties = pyudev.Devices.from_path(context, device_path(address)).properties
    except pyudev.DeviceNotFoundError:
        return Name()
    return _name(properties)


def _written_down(host: Host, address: PciAddress) -> Name:
    """Return a name from udev's own records: lines "E:NAME=VALUE" among others."""
    lines = (host.read(f"{_RECORDS}/+pci:{address}") or "").splitlines()
    return _name(dict(line[2:].split("=", 1) for line in lines if line.startswith("E:") and "=" in line))


def _name(properties: Mapping[str, str]) -> Name:
    fields = (properties.get(f"ID_{key}_FROM_DATABASE", "") for key in ("VENDOR", "MODEL", "PCI_SUBCLASS"))
    return Name(*(field if field.isprintable() else "" for field in fields))
