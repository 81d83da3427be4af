"""All PCI devices of a host as values."""

from dataclasses import dataclass

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.usage import keyboards, used_by_host
from virtpass.system.host import Host

_DISPLAY_CLASS = 0x03
_BRIDGE_CLASS = 0x06


@dataclass(frozen=True, slots=True)
class Device:
    """One PCI function.

    Attributes:
        address: where it is.
        identity: what it is; with the serial number only when it was read alone (`read_device`).
        class_code: base class, subclass and programming interface, 24 bits.
        header_type: 0 endpoint, 1 bridge, 2 CardBus bridge, None unknown.
        driver: the driver it is bound to, None for none.
        group: number of its IOMMU group, None for none.
        physical_function: for a virtual function, the device that it belongs to.
        is_boot_display: whether the firmware used it as the display.
    """

    address: PciAddress
    identity: Identity
    class_code: int
    header_type: int | None
    driver: str | None
    group: int | None
    physical_function: PciAddress | None
    is_boot_display: bool

    @property
    def base_class(self) -> int:
        """The upper byte of the class, 0x03 for displays."""
        return self.class_code >> 16

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge of any kind, also one to ISA, which never leaves the host."""
        return self.base_class == _BRIDGE_CLASS or self.header_type in (1, 2)

    @property
    def is_display(self) -> bool:
        """Whether it is a graphics card or another display controller."""
        return self.base_class == _DISPLAY_CLASS


@dataclass(frozen=True, slots=True)
class Inventory:
    """The devices of a host at one moment, and what depends on more than one of them.

    Attributes:
        host: where it was read.
        devices: all devices by address, in order.
        groups: members of each IOMMU group, in order.
        needed: what the host needs a device for, as phrases.
        keyboards: what has keyboards of the host, as `virtpass.pci.usage.keyboards` returns it.
        interrupts_are_safe: whether VFIO accepts the interrupts: remapped, or allowed to be unsafe.
    """

    host: Host
    devices: dict[PciAddress, Device]
    groups: dict[int, tuple[PciAddress, ...]]
    needed: dict[PciAddress, list[str]]
    keyboards: frozenset[PciAddress | None]
    interrupts_are_safe: bool

    def card(self, address: PciAddress) -> tuple[PciAddress, ...]:
        """Return the functions of a device's slot that can be given away: all but bridges."""
        functions = (PciAddress(*address[:3], function) for function in range(8))
        return tuple(one for one in functions if one in self.devices and not self.devices[one].is_bridge)

    def resets_with_bus(self, address: PciAddress) -> bool:
        """Tell whether a device can be reset with its bus as a whole, on which its card is alone.

        Of several functions on a bus none is reset alone by the bus, and no ``reset_method`` lists that
        (pci_parent_bus_reset in the kernel's drivers/pci/pci.c: ENOTTY). VFIO resets the whole bus then, when
        all of them go to one user (the hot reset of drivers/vfio/pci/vfio_pci_core.c, since the kernel's
        commit 8b27ee60bfd6). It takes a bridge above, which a root bus has not. Whether a quirk of the kernel
        forbids it for a device shows nowhere.
        """
        functions = [one for one in self.devices if one[:2] == address[:2]]
        above = self.host.real_path(sysfs.device_path(address)).split("/")[-2:-1]
        return len(functions) > 1 and tuple(functions) == self.card(address) and bool(sysfs.parsed(above))

    def device(self, address: PciAddress) -> Device:
        """Return one device.

        Raises:
            NotFoundError: there is none at that address.
        """
        if address not in self.devices:
            raise sysfs.no_device(address)
        return self.devices[address]


def read_inventory(host: Host) -> Inventory:
    """Read all devices of a host; needs no permission."""
    devices = {address: _read(host, address) for address in sysfs.addresses(host)}
    groups: dict[int, list[PciAddress]] = {}
    for device in devices.values():
        if device.group is not None:
            groups.setdefault(device.group, []).append(device.address)
    return Inventory(
        host,
        devices,
        {number: tuple(members) for number, members in sorted(groups.items())},
        used_by_host(host),
        keyboards(host),
        sysfs.interrupts_are_safe(host),
    )


def read_device(host: Host, address: PciAddress) -> Device:
    """Read one device, with its serial number where this user may see it.

    Raises:
        NotFoundError: there is none at that address.
    """
    if not sysfs.is_present(host, address):
        raise sysfs.no_device(address)
    return _read(host, address, sysfs.identity(host, address))


def _read(host: Host, address: PciAddress, identity: Identity | None = None) -> Device:
    path = sysfs.device_path(address)
    # One file has the ids, the class and the driver: a host may have thousands of virtual functions.
    fields = dict(
        line.split("=", 1) for line in (host.read(f"{path}/uevent") or "").splitlines() if "=" in line
    )
    physical = sysfs.parsed([host.link_name(f"{path}/physfn") or ""])
    class_code = _hex(fields.get("PCI_CLASS", ""))
    return Device(
        address=address,
        identity=identity or _identity(fields),
        class_code=class_code,
        header_type=sysfs.header_type(host, address),
        driver=fields.get("DRIVER"),
        group=sysfs.group(host, address),
        physical_function=physical[0] if physical else None,
        is_boot_display=class_code >> 8 == 0x0300 and host.read(f"{path}/boot_vga") == "1",
    )


def _identity(fields: dict[str, str]) -> Identity:
    vendor, _, device = fields.get("PCI_ID", "").partition(":")
    board_vendor, _, board = fields.get("PCI_SUBSYS_ID", "").partition(":")
    return Identity(_id(vendor), _id(device), _id(board_vendor), _id(board))


def _id(text: str) -> int:
    return _hex(text) & 0xFFFF


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0
