"""The PCI devices of the host that a domain's XML names, and where the guest sees them."""

from dataclasses import dataclass
from typing import Literal

from lxml import etree

from virtpass.domain.document import parse_document
from virtpass.pci.address import PciAddress

Kind = Literal["hostdev", "interface", "disk"]

# Children of a hostdev that virtpass or libvirt itself writes; all others are settings of the user.
_PLAIN_CHILDREN = frozenset({"source", "address", "driver"})


@dataclass(frozen=True, slots=True)
class Hostdev:
    """One PCI device of the host in a domain's XML.

    Attributes:
        source: its address on the host.
        is_managed: whether libvirt may bind and give back its driver by itself.
        guest: its address in the guest; None when libvirt has not chosen one.
        is_multifunction: whether it says that its guest slot has more functions.
        is_assigned: False when the XML says that the guest is not to see it (address type unassigned).
        alias: the user's alias, or an empty string.
        driver_model: the kernel driver that libvirt must use, or an empty string.
        kind: the element that names it: ``hostdev``, ``interface`` (a virtual function whose MAC address
            and VLAN libvirt sets) or ``disk`` (an NVMe controller that QEMU drives itself).
        settings: names of the children that the user added, such as ``rom`` or ``boot``.
    """

    source: PciAddress
    is_managed: bool
    guest: PciAddress | None = None
    is_multifunction: bool = False
    is_assigned: bool = True
    alias: str = ""
    driver_model: str = ""
    kind: Kind = "hostdev"
    settings: tuple[str, ...] = ()


def parse_hostdevs(domain_xml: str) -> tuple[Hostdev, ...]:
    """Return the PCI devices of the host that a domain's XML names, in document order.

    Raises:
        UsageError: the text is not the XML of a domain, or an address in it is not one.
    """
    return tuple(hostdev for _, hostdev in hostdev_elements(parse_document(domain_xml)))


def mediated_uuids(domain_xml: str) -> tuple[str, ...]:
    """Return the UUIDs of the mediated devices that a domain's XML names, in lower case.

    Raises:
        UsageError: the text is not the XML of a domain.
    """
    addresses = parse_document(domain_xml).iterfind("devices/hostdev[@type='mdev']/source/address")
    return tuple(address.get("uuid", "").lower() for address in addresses)


def hostdev_elements(domain: etree._Element) -> list[tuple[etree._Element, Hostdev]]:
    """Return the elements that name PCI devices of the host, each with what it says.

    Raises:
        UsageError: an address is not one.
    """
    return [
        (element, _hostdev(element, kind, source))
        for element in domain.iterfind("devices/*")
        if (kind := _kind(element)) and (source := _source(element, kind)) is not None
    ]


def address_of(element: etree._Element) -> PciAddress | None:
    """Return the PCI address in the attributes of an ``<address>`` element.

    As in libvirt, a missing part counts as 0.

    Returns:
        None when it has none of the four parts: libvirt then chooses an address.

    Raises:
        UsageError: a part is not a number, or out of range.
    """
    parts = [element.get(part) for part in ("domain", "bus", "slot", "function")]
    if parts == [None] * 4:
        return None
    return PciAddress.from_attributes(dict(element.attrib))


def write_address(element: etree._Element, address: PciAddress) -> None:
    """Set the attributes of an ``<address>`` element, in the form that libvirt itself writes."""
    element.set("domain", f"{address.domain:#06x}")
    element.set("bus", f"{address.bus:#04x}")
    element.set("slot", f"{address.slot:#04x}")
    element.set("function", f"{address.function:#x}")


def _kind(element: etree._Element) -> Kind | None:
    name, bus_type = element.tag, element.get("type")
    if name == "hostdev" and bus_type == "pci" and element.get("mode", "subsystem") == "subsystem":
        return "hostdev"
    if name == "interface" and bus_type == "hostdev":
        return "interface"
    return "disk" if name == "disk" and bus_type == "nvme" else None


def _source(element: etree._Element, kind: Kind) -> PciAddress | None:
    address = element.find("source/address")
    if address is None or (kind == "interface" and address.get("type", "pci") != "pci"):
        return None
    return address_of(address)


def _hostdev(element: etree._Element, kind: Kind, source: PciAddress) -> Hostdev:
    guest, alias, driver = element.find("address"), element.find("alias"), element.find("driver")
    managed = element.find("source") if kind == "disk" else element
    return Hostdev(
        source,
        is_managed=managed is not None and managed.get("managed") == "yes",
        guest=address_of(guest) if guest is not None and guest.get("type") == "pci" else None,
        is_multifunction=guest is not None and guest.get("multifunction") == "on",
        is_assigned=guest is None or guest.get("type") != "unassigned",
        alias="" if alias is None else alias.get("name", ""),
        driver_model="" if driver is None else driver.get("model", ""),
        kind=kind,
        settings=tuple(
            child.tag for child in element if isinstance(child.tag, str) and child.tag not in _PLAIN_CHILDREN
        ),
    )
