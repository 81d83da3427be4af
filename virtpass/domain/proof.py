"""Did libvirt take a definition as it was meant? It drops without a word what it does not know."""

from collections import Counter

from lxml import etree

from virtpass.domain.addressing import read_topology
from virtpass.domain.document import parse_document
from virtpass.domain.hostdev import Hostdev, hostdev_elements
from virtpass.domain.metadata import read_passthrough


def difference(planned_xml: str, defined_xml: str) -> str:
    """Compare what a plan wanted with what libvirt made of it.

    Looked at are the hostdevs with their guest addresses, our metadata, the root ports, and that no device
    and no section of the definition got lost. What libvirt adds is not a difference.

    Args:
        planned_xml: the XML that libvirt was given.
        defined_xml: the XML that it has now.

    Returns:
        the first difference as half a sentence; empty when there is none.

    Raises:
        UsageError: a text is not the XML of a domain, or its metadata is not understood.
    """
    planned, defined = parse_document(planned_xml), parse_document(defined_xml)
    wanted = {hostdev.source: hostdev for _, hostdev in hostdev_elements(planned)}
    found = {hostdev.source: hostdev for _, hostdev in hostdev_elements(defined)}
    for source in sorted(wanted.keys() ^ found.keys()):
        return f"hostdev {source} is {'missing' if source in wanted else 'there still'}"
    for source, hostdev in wanted.items():
        if not _is_as_meant(hostdev, found[source]):
            return f"hostdev {source} is not as planned"
    if read_passthrough(planned) != read_passthrough(defined):
        return "the metadata of virtpass is not as planned"
    if missing := read_topology(planned).root_ports - read_topology(defined).root_ports:
        return f"root port {min(missing)} is missing"
    if lost := (_elements(planned) - _elements(defined)) or (_sections(planned) - _sections(defined)):
        return f"an element <{min(lost)}> got lost"
    return ""


def _is_as_meant(wanted: Hostdev, found: Hostdev) -> bool:
    return (
        found.is_managed == wanted.is_managed
        and found.is_assigned == wanted.is_assigned
        and found.driver_model == wanted.driver_model
        and found.kind == wanted.kind
        and found.guest == (wanted.guest or found.guest)
        and found.is_multifunction >= wanted.is_multifunction
    )


def _elements(domain: etree._Element) -> Counter[str]:
    return Counter(str(element.tag) for element in domain.iterfind("devices/*"))


def _sections(domain: etree._Element) -> Counter[str]:
    return Counter(str(element.tag) for element in domain.iterfind("*"))
