"""What libvirt tells the hook: the domain's XML on standard input, parsed with care and without libraries.

Imported by the hook: the imports here are on its allow-list.
"""

from pyexpat import ExpatError, ParserCreate

from virtpass.binding.policy import NAMESPACE
from virtpass.pci.address import PciAddress, libvirt_number
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

_MAX_XML = 16 << 20
_UUID = ["domain", "uuid"]
_NAME = ["domain", "name"]
_HOSTDEV = ["domain", "devices", "hostdev"]
_SOURCE_ADDRESS = [*_HOSTDEV, "source", "address"]
_PASSTHROUGH = ["domain", "metadata", f"{NAMESPACE} passthrough"]


# Elements of ours are not deeper than this; nothing below is looked at.
_DEEPEST = 5

_IDS = ("vendor", "device", "subsystem-vendor", "subsystem-device")

# Our elements beside the policy, whose attributes are checked when it is obeyed, and their attributes.
_KNOWN = {
    "device": frozenset(("address", *_IDS, "serial")),
    "root-port": frozenset(("index",)),
}


class Request:
    """One domain as libvirt describes it to the hook.

    Attributes:
        uuid: the domain's UUID.
        name: its name.
        is_ours: whether it carries our metadata element.
        policy: the attributes of our policy element.
        devices: source addresses of its PCI hostdevs, in document order.
        identities: what was recorded of devices when they were attached.
        problem: what in the devices or in our element is not understood. A start must not go on with it;
            what is given back at the stop does not depend on it.
    """

    def __init__(self) -> None:
        self.uuid = ""
        self.name = ""
        self.is_ours = False
        self.policy: dict[str, str] = {}
        self.devices: list[PciAddress] = []
        self.identities: dict[PciAddress, Identity] = {}
        self.problem: UsageError | None = None


def parse_request(xml: bytes) -> Request:
    """Parse a domain's XML.

    Args:
        xml: the document, as libvirt formats it.

    Raises:
        UsageError: it is no XML, no domain, too large, or has a document type.
    """
    if len(xml) > _MAX_XML:
        raise UsageError("xml-size", f"the domain's XML is larger than {_MAX_XML >> 20} MiB")
    reader = _Reader()
    parser = ParserCreate(namespace_separator=" ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    # libvirt writes no document type; with one come entities, and with those documents that explode.
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(xml, True)
    except (ExpatError, LookupError, ValueError) as error:
        # The last two: an encoding that Python does not know, or that expat cannot use. libvirt keeps other
        # programs' metadata that expat refuses, with prefixes that nobody declared.
        problem = UsageError("xml-syntax", f"the domain's XML cannot be read: {error}")
        if not reader.request.uuid:
            raise problem from error
        reader.request.problem = problem
    if not reader.request.uuid:
        raise UsageError("xml-domain", "the XML is not that of a domain")
    return reader.request


class _Reader:
    """Collects a request from the parser's events."""

    def __init__(self) -> None:
        self.request = Request()
        self._path: list[str] = []
        self._is_pci = False
        self._has_policy = False
        self._text: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > _DEEPEST:
            return
        try:
            self._take(tag, attributes)
        except UsageError as error:
            self.request.problem = self.request.problem or error

    def _take(self, tag: str, attributes: dict[str, str]) -> None:
        path, request = self._path, self.request
        if path == _HOSTDEV:
            self._is_pci = (
                attributes.get("mode", "subsystem") == "subsystem" and attributes.get("type") == "pci"
            )
        elif path == _SOURCE_ADDRESS and self._is_pci:
            address = PciAddress.from_attributes(attributes)
            if address not in request.devices:
                request.devices.append(address)
        elif path == _PASSTHROUGH:
            is_second, request.is_ours = request.is_ours, True
            if is_second or attributes:
                raise _unknown("a second element" if is_second else f"'{min(attributes)}'")
        elif path[:-1] == _PASSTHROUGH:
            space, _, name = tag.rpartition(" ")
            if name == "policy" and space == NAMESPACE and not self._has_policy:
                self._has_policy = True
                request.policy = attributes
            elif name not in _KNOWN or space != NAMESPACE:
                raise _unknown(f"'{name}'")
            elif unknown := attributes.keys() - _KNOWN[name]:
                raise _unknown(f"'{min(unknown)}' of '{name}'")
            elif name == "device":
                address, identity = _recorded(attributes)
                if address in request.identities:
                    raise _unknown(f"a second record of {address}")
                request.identities[address] = identity
        elif path[:-2] == _PASSTHROUGH:
            raise _unknown(f"'{tag}'")

    def end(self, tag: str) -> None:
        if self._path == _UUID:
            self.request.uuid = "".join(self._text)
        elif self._path == _NAME:
            self.request.name = "".join(self._text)
        self._text.clear()
        self._path.pop()

    def text(self, characters: str) -> None:
        if self._path in (_UUID, _NAME):
            self._text.append(characters)


def _unknown(what: str) -> UsageError:
    return UsageError(
        "metadata",
        f"{what} in the metadata of virtpass is not known to this hook",
        "run virtpass hook install after an update",
    )


def _refuse_doctype(*_: object) -> None:
    raise UsageError("xml-doctype", "the domain's XML has a document type, which libvirt never writes")


def _recorded(attributes: dict[str, str]) -> tuple[PciAddress, Identity]:
    try:
        vendor, device, board_vendor, board = (libvirt_number(attributes[key]) for key in _IDS)
        identity = Identity(vendor, device, board_vendor, board, attributes.get("serial", ""))
        return PciAddress.parse(attributes["address"]), identity
    except KeyError as error:
        raise UsageError(
            "metadata", f"the metadata of virtpass in the domain's XML is not understood: {error}"
        ) from error
