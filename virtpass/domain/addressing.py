"""Where the guest sees a card: one guest slot for all its functions.

A guest looks for functions 1 to 7 of a slot only when function 0 is there and says that it is one of several
(PCI Local Bus Specification, header type bit 7); libvirt writes the latter as ``multifunction='on'``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lxml import etree

from virtpass.domain.hostdev import Hostdev, address_of
from virtpass.pci.address import PciAddress, libvirt_number
from virtpass.system.errors import RefusedError

Slot = tuple[int, int, int]

# On i440fx libvirt keeps slot 1 for the PIIX3 and slot 2 for the primary video card
# (qemuDomainValidateDevicePCISlotsPIIX3 in libvirt's src/qemu/qemu_domain_address.c).
_FIRST_PCI_SLOT = 3
_LAST_SLOT = 0x1F
_LAST_BUS = 0xFF


@dataclass(frozen=True, slots=True)
class Topology:
    """The guest's PCI buses.

    Attributes:
        root: what bus 0 is; None when the XML tells of no PCI root, so that libvirt has to place devices.
        used: addresses that devices of the guest have.
        controllers: indexes of all PCI controllers; the index is the number of the bus behind it.
        root_ports: indexes of the PCI Express root ports on bus 0.
    """

    root: Literal["pcie-root", "pci-root"] | None
    used: frozenset[PciAddress]
    controllers: frozenset[int]
    root_ports: frozenset[int]

    @property
    def used_buses(self) -> frozenset[int]:
        """Buses that a device's address refers to."""
        return frozenset(address.bus for address in self.used)


@dataclass(frozen=True, slots=True)
class Placement:
    """Guest addresses for new devices.

    Attributes:
        addresses: guest address by host address; without an entry the address is left to libvirt.
        new_root_ports: indexes of root ports to add.
        notes: what a user should know about it.
    """

    addresses: Mapping[PciAddress, PciAddress]
    new_root_ports: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def read_topology(domain: etree._Element) -> Topology:
    """Read the guest's PCI buses from a domain document.

    Raises:
        UsageError: an address or a controller's index is not a number.
    """
    controllers: dict[int, etree._Element] = {}
    for controller in domain.iterfind("devices/controller[@type='pci']"):
        index = controller.get("index")
        if index is not None:
            controllers[libvirt_number(index)] = controller
    root = None if 0 not in controllers else controllers[0].get("model")
    return Topology(
        root="pcie-root" if root == "pcie-root" else "pci-root" if root == "pci-root" else None,
        used=frozenset(used_addresses(domain)),
        controllers=frozenset(controllers),
        root_ports=frozenset(
            index
            for index, controller in controllers.items()
            if controller.get("model") == "pcie-root-port" and _is_on_bus_0(controller)
        ),
    )


def used_addresses(domain: etree._Element) -> Iterable[PciAddress]:
    """Return the guest addresses of all devices in a domain document."""
    # Only a direct child is the device's own address: that in <source> is the host's.
    for element in domain.iterfind("devices/*/address[@type='pci']"):
        address = address_of(element)
        if address is not None:
            yield address


def place(
    topology: Topology,
    present: Sequence[Hostdev],
    new: Iterable[PciAddress],
    virtual: frozenset[PciAddress] = frozenset(),
) -> Placement:
    """Find guest addresses for new devices.

    Functions of one host slot share a guest slot and keep their numbers where these are free; function 0
    exists always. When functions of the card are in the domain already, the new ones join them. A virtual
    function is a card of its own. An address that a device has is never changed: guest operating systems
    remember devices by it.

    Args:
        topology: the guest's buses.
        present: devices that the domain has already.
        new: host addresses of those to place.
        virtual: those of both that are virtual functions.

    Raises:
        RefusedError: the guest has no room left.
    """
    if topology.root is None:
        return Placement(
            {}, notes=("the domain's XML names no PCI root, so libvirt chooses the guest addresses",)
        )
    addresses: dict[PciAddress, PciAddress] = {}
    ports: list[int] = []
    used = set(topology.used)
    physical = [hostdev for hostdev in present if hostdev.source not in virtual]
    for card in _cards(new, virtual):
        slot = None if card[0] in virtual else _slot_of_siblings(card, physical, used)
        if slot is None:
            slot = _free_slot(topology, used)
            if topology.root == "pcie-root" and slot[1] not in topology.root_ports:
                ports.append(slot[1])
        taken = {address.function for address in used if _slot(address) == slot}
        numbers = guest_functions([address.function for address in card], taken)
        addresses |= {address: PciAddress(*slot, numbers[address.function]) for address in card}
        used.update(addresses.values())
    return Placement(addresses, tuple(ports))


def guest_functions(functions: Sequence[int], taken: set[int]) -> dict[int, int]:
    """Choose function numbers in a guest slot.

    Args:
        functions: numbers on the host, different from each other; with ``taken`` eight at most.
        taken: numbers in the guest slot that are in use.

    Returns:
        the number in the guest for each number on the host: the same where it is free, the lowest free one
        where it is not, and 0 for the lowest when nothing else would be function 0.
    """
    numbers = {function: function for function in functions if function not in taken}
    if 0 not in taken and 0 not in numbers:
        numbers[min(functions)] = 0
    for function in functions:
        if function not in numbers:
            numbers[function] = min(set(range(8)) - taken - set(numbers.values()))
    return numbers


def _cards(addresses: Iterable[PciAddress], virtual: frozenset[PciAddress]) -> list[list[PciAddress]]:
    """Return the functions of each card; cards and functions in order."""
    cards: dict[tuple[Slot, PciAddress | None], list[PciAddress]] = {}
    for address in sorted(addresses):
        cards.setdefault((_slot(address), address if address in virtual else None), []).append(address)
    return list(cards.values())


def _slot(address: PciAddress) -> Slot:
    return address[:3]


def _is_on_bus_0(controller: etree._Element) -> bool:
    # A root port elsewhere belongs to an expander bus, which somebody set up for a NUMA node.
    element = controller.find("address[@type='pci']")
    address = None if element is None else address_of(element)
    return address is None or address.bus == 0


def _slot_of_siblings(
    card: Sequence[PciAddress], present: Sequence[Hostdev], used: set[PciAddress]
) -> Slot | None:
    """Return the guest slot where functions of the same card are already, if the others fit in."""
    for hostdev in sorted(present, key=lambda hostdev: hostdev.source):
        if hostdev.guest is not None and hostdev.source.same_slot(card[0]):
            slot = _slot(hostdev.guest)
            if sum(_slot(address) == slot for address in used) + len(card) <= 8:
                return slot
    return None


def _free_slot(topology: Topology, used: set[PciAddress]) -> Slot:
    buses = {address.bus for address in used}
    if topology.root == "pcie-root":
        reusable = topology.root_ports - buses
        free = reusable or (set(range(1, _LAST_BUS + 1)) - topology.controllers - buses)
        if free:
            return (0, min(free), 0)
    else:
        slots = {address.slot for address in used if address.bus == 0}
        for slot in range(_FIRST_PCI_SLOT, _LAST_SLOT + 1):
            if slot not in slots:
                return (0, 0, slot)
    raise RefusedError(
        "guest-full", "the guest has no free PCI slot", "take a device out of the domain first"
    )
