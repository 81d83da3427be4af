"""Our metadata element in the domain XML: the policy, and what each device was when it was attached.

The element is described in ``docs/metadata.md``. The hook reads the same element, without lxml.
"""

import copy
from dataclasses import dataclass

from lxml import etree

from virtpass.binding.policy import DEFAULT_POLICY, NAMESPACE, POLICY_KEYS, Policy, parse_policy
from virtpass.domain.document import insert, insert_after, parse_document, remove
from virtpass.pci.address import PciAddress, libvirt_number
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError, VirtpassError

_ELEMENT = f"{{{NAMESPACE}}}passthrough"
_POLICY = f"{{{NAMESPACE}}}policy"
_DEVICE = f"{{{NAMESPACE}}}device"
_ROOT_PORT = f"{{{NAMESPACE}}}root-port"

_IDS = ("vendor", "device", "subsystem-vendor", "subsystem-device")
# What is told of a device by an attribute that is there, with its only value, or is not.
_FLAGS = (("added", "yes"), ("managed", "no"), ("multifunction", "off"))
_ATTRIBUTES = {
    _ELEMENT: frozenset[str](),
    _POLICY: frozenset(POLICY_KEYS),
    _DEVICE: frozenset({"address", *_IDS, "serial", "added", "managed", "multifunction"}),
    _ROOT_PORT: frozenset({"index"}),
}

# What stands before <metadata> in the XML that libvirt formats (virDomainDefFormatInternalSetRootName in
# libvirt's src/conf/domain_conf.c), last first.
_BEFORE_METADATA = ("description", "title", "hwuuid", "genid", "uuid", "name")


@dataclass(frozen=True, slots=True)
class RecordedDevice:
    """A device and what it was when it was attached.

    Attributes:
        address: where it is on the host.
        identity: what it was.
        is_added: whether virtpass wrote the hostdev; others were there before, and stay when virtpass goes.
        was_unmanaged: whether the hostdev that was there said ``managed='no'``.
        was_single: whether its guest address did not say ``multifunction='on'`` before.
    """

    address: PciAddress
    identity: Identity
    is_added: bool = False
    was_unmanaged: bool = False
    was_single: bool = False


@dataclass(frozen=True, slots=True)
class Passthrough:
    """The content of our element.

    Attributes:
        policy: what the hook may do.
        devices: the devices that virtpass looks after.
        root_ports: indexes of the root ports that virtpass added.
    """

    policy: Policy = DEFAULT_POLICY
    devices: tuple[RecordedDevice, ...] = ()
    root_ports: tuple[int, ...] = ()

    def identity(self, address: PciAddress) -> Identity | None:
        """Return what is recorded of a device, or None."""
        return next((device.identity for device in self.devices if device.address == address), None)


def parse_passthrough(domain_xml: str) -> Passthrough | None:
    """Return what our element in a domain's XML says; None when there is none.

    Raises:
        UsageError: the text is not the XML of a domain, or our element says something that is not known.
    """
    return read_passthrough(parse_document(domain_xml))


def read_passthrough(domain: etree._Element) -> Passthrough | None:
    """Return what our element in a domain document says; arguments and errors as `parse_passthrough`."""
    elements = domain.findall(f"metadata/{_ELEMENT}")
    if len(elements) > 1:
        raise _misunderstood("the element appears twice")
    return _parse(elements[0]) if elements else None


def template_policy(template: str) -> Policy:
    """Return the policy in a template of our element.

    Raises:
        UsageError: the template is not one.
    """
    return _parse(_new_element(template)).policy


def write_passthrough(domain: etree._Element, passthrough: Passthrough | None, template: str) -> None:
    """Let our element in a domain document say ``passthrough``, or take it away when that is None.

    Comments in the element stay, and so do values of the policy that are the defaults and written out all
    the same. ``<metadata>`` goes with the last element in it.

    Raises:
        UsageError: the template is not one.
    """
    element = domain.find(f"metadata/{_ELEMENT}")
    if passthrough is not None:
        if element is None:
            element = _new_element(template)
            metadata = _metadata(domain)
            insert(metadata, len(metadata), element)
        _fill(element, passthrough, template)
    elif element is not None:
        remove(element)
        parent = domain.find("metadata")
        if parent is not None and len(parent) == 0:
            remove(parent)


def _metadata(domain: etree._Element) -> etree._Element:
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = etree.Element("metadata")
        neighbours = (domain.find(tag) for tag in _BEFORE_METADATA)
        neighbour = next((element for element in neighbours if element is not None), None)
        if neighbour is None:
            insert(domain, 0, metadata)
        else:
            insert_after(metadata, neighbour)
    return metadata


def _new_element(template: str) -> etree._Element:
    element = parse_document(template, _ELEMENT, "the template metadata.xml")
    for device in element.findall(_DEVICE):
        remove(device)
    return element


def _fill(element: etree._Element, passthrough: Passthrough, template: str) -> None:
    _fill_policy(element, passthrough.policy, template)
    devices = {device.address: device for device in passthrough.devices}
    for child in element.findall(_DEVICE):
        device = devices.pop(PciAddress.parse(child.get("address", "")), None)
        if device is None:
            remove(child)
        else:
            _fill_device(child, device)
    for device in devices.values():
        child = _new_device(template)
        _fill_device(child, device)
        insert(element, _end_of(element, _DEVICE), child)
    ports = set(passthrough.root_ports)
    for child in element.findall(_ROOT_PORT):
        index = libvirt_number(child.get("index", ""))
        if index in ports:
            ports.remove(index)
        else:
            remove(child)
    for index in sorted(ports):
        insert(element, len(element), etree.Element(_ROOT_PORT, {"index": str(index)}))


def _fill_policy(element: etree._Element, policy: Policy, template: str) -> None:
    """Write what changes. What is a default again is left out, unless the template has its key."""
    child = element.find(_POLICY)
    present = {} if child is None else _attributes(child)
    before = parse_policy(present).attributes()
    changes = {key: value for key, value in policy.attributes().items() if value != before[key]}
    if not changes:
        return
    if child is None:
        child = etree.Element(_POLICY)
        insert(element, 0, child)
    pattern = _new_element(template).find(_POLICY)
    defaults = DEFAULT_POLICY.attributes()
    for key, value in changes.items():
        if value != defaults[key] or (pattern is not None and key in pattern.attrib):
            child.set(key, value)
        else:
            del child.attrib[key]
    if not child.attrib:
        remove(child)


def _new_device(template: str) -> etree._Element:
    pattern = parse_document(template, _ELEMENT, "the template metadata.xml").find(_DEVICE)
    if pattern is None:
        raise UsageError("template", "the template metadata.xml has no device element as a pattern")
    return copy.deepcopy(pattern)


def _fill_device(element: etree._Element, device: RecordedDevice) -> None:
    element.set("address", str(device.address))
    for name, number in zip(_IDS, device.identity[:4], strict=True):
        element.set(name, f"{number:#06x}")
    if device.identity.serial:
        element.set("serial", device.identity.serial)
    else:
        element.attrib.pop("serial", None)
    flags = (device.is_added, device.was_unmanaged, device.was_single)
    for (name, value), is_set in zip(_FLAGS, flags, strict=True):
        if is_set:
            element.set(name, value)
        else:
            element.attrib.pop(name, None)


def _end_of(element: etree._Element, tag: str) -> int:
    """Return the index behind the last child ``tag``, or else behind the policy."""
    for wanted in (tag, _POLICY):
        children = element.findall(wanted)
        if children:
            return element.index(children[-1]) + 1
    return 0


def _parse(element: etree._Element) -> Passthrough:
    policy: Policy | None = None
    devices: list[RecordedDevice] = []
    ports: list[int] = []
    _check(element)
    for child in element:
        if not isinstance(child.tag, str):
            continue  # a comment
        _check(child)
        if child.tag == _DEVICE:
            devices.append(_parse_device(child))
        elif child.tag == _ROOT_PORT:
            ports.append(_parse_root_port(child))
        elif policy is None:
            policy = _parse_policy(child)
        else:
            raise _misunderstood("the policy appears twice")
    addresses = [device.address for device in devices]
    if len(set(addresses)) != len(addresses):
        raise _misunderstood("a device appears twice")
    return Passthrough(policy or DEFAULT_POLICY, tuple(devices), tuple(ports))


def _check(element: etree._Element) -> None:
    name = str(element.tag).rpartition("}")[2]
    known = _ATTRIBUTES.get(str(element.tag))
    if known is None:
        raise _misunderstood(f"element '{name}' is not known; known: device, policy, root-port")
    unknown = sorted({str(key) for key in element.attrib} - known)
    if unknown:
        names = ", ".join(sorted(known)) or "none"
        raise _misunderstood(f"attribute '{unknown[0]}' of {name} is not known; known: {names}")
    if name != "passthrough" and len(element):
        raise _misunderstood(f"{name} has elements in it")


def _parse_policy(element: etree._Element) -> Policy:
    try:
        return parse_policy(_attributes(element))
    except UsageError as error:
        raise _misunderstood(error.line) from error


def _attributes(element: etree._Element) -> dict[str, str]:
    return {str(key): str(value) for key, value in element.items()}


def _parse_device(element: etree._Element) -> RecordedDevice:
    try:
        address = PciAddress.parse(element.get("address", ""))
        vendor, device, subsystem_vendor, subsystem_device = (
            _parse_id(element.get(name, "")) for name in _IDS
        )
        serial = element.get("serial", "")
        identity = Identity(vendor, device, subsystem_vendor, subsystem_device, serial)
        flags = [_parse_flag(element, name, value) for name, value in _FLAGS]
        return RecordedDevice(address, identity, *flags)
    except VirtpassError as error:
        raise _misunderstood(error.what) from error


def _parse_flag(element: etree._Element, name: str, value: str) -> bool:
    """Return whether an attribute is there; it can have one value only."""
    found = element.get(name)
    if found not in (None, value):
        raise UsageError("metadata", f"{name}='{found}' of a device is not known; known: {value}")
    return found is not None


def _parse_id(text: str) -> int:
    digits = text.removeprefix("0x")
    if len(text) != 6 or len(digits) != 4 or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
        raise UsageError("metadata", f"'{text}' is not a PCI id like 0x10de")
    return int(digits, 16)


def _parse_root_port(element: etree._Element) -> int:
    try:
        return libvirt_number(element.get("index", ""))
    except UsageError as error:
        raise _misunderstood(f"root port '{element.get('index', '')}' is not a number") from error


def _misunderstood(why: str) -> UsageError:
    return UsageError(
        "metadata",
        f"the metadata of virtpass in the domain's XML is not understood: {why}",
        "a newer virtpass may have written it; otherwise correct it with virsh -c qemu:///system edit",
    )
