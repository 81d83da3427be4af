"""What libvirt tells the hook: the domain's XML on standard input, parsed with care and without libraries.

Imported by the hook: the imports here are on its allow-list.
"""

from pyexpat import ExpatError, ParserCreate

from virtpass.binding.cpu_lists import parse_list
from virtpass.binding.demand import Demand
from virtpass.binding.policy import NAMESPACE
from virtpass.pci.address import PciAddress, libvirt_number
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

MAX_XML = 16 << 20
_UUID = ["domain", "uuid"]
_NAME = ["domain", "name"]
_HOSTDEV = ["domain", "devices", "hostdev"]
_SOURCE_ADDRESS = [*_HOSTDEV, "source", "address"]
_MEMORY = ["domain", "memory"]
_PASSTHROUGH = ["domain", "metadata", f"{NAMESPACE} passthrough"]


# Where the domain says what it takes of the host's memory and processors.
_HUGE_PAGES = ["domain", "memoryBacking", "hugepages"]
_PAGE = [*_HUGE_PAGES, "page"]
_CELL = ["domain", "cpu", "numa", "cell"]
_HOST_NODES = ["domain", "numatune", "memory"]
_CELL_NODES = ["domain", "numatune", "memnode"]
_TUNING = ["domain", "cputune"]

# libvirt's units of memory, in bytes.
_UNITS = {"b": 1, "bytes": 1}
for _power, _letter in enumerate("kmgtpe", start=1):
    _UNITS.update({_letter: 1024**_power, f"{_letter}ib": 1024**_power, f"{_letter}b": 1000**_power})

# Elements of ours are not deeper than this; nothing below is looked at.
_DEEPEST = 5

_IDS = ("vendor", "device", "subsystem-vendor", "subsystem-device")

# Our elements beside the policy, whose attributes are checked when it is obeyed, and their attributes.
_KNOWN = {
    "device": frozenset(("address", *_IDS, "serial", "added", "managed", "multifunction")),
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
        demand: what it takes of the host's memory and processors.
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
        self.demand = Demand()
        self.problem: UsageError | None = None


def parse_request(xml: bytes) -> Request:
    """Parse a domain's XML.

    Args:
        xml: the document, as libvirt formats it.

    Raises:
        UsageError: it is no XML, no domain, too large, or has a document type.
    """
    if len(xml) > MAX_XML:
        raise UsageError("xml-size", f"the domain's XML is larger than {MAX_XML >> 20} MiB")
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
        self._memory_unit = ""

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._path.append(tag)
        if len(self._path) > _DEEPEST:
            return
        try:
            self._take(tag, attributes)
        except UsageError as error:
            self.request.problem = self.request.problem or error
        try:
            self._take_demand(attributes)
        except UsageError as error:
            # Most domains are started without any tuning of the host.
            self.request.demand.problem = self.request.demand.problem or error

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

    def _take_demand(self, attributes: dict[str, str]) -> None:
        path, demand = self._path, self.request.demand
        if path == _MEMORY:
            self._memory_unit = attributes.get("unit", "KiB")
        elif path == _HUGE_PAGES:
            demand.has_huge_pages = True
        elif path == _PAGE:
            nodes = attributes.get("nodeset")
            size = _kib(attributes.get("size", ""), attributes.get("unit", "KiB"))
            demand.pages.append((size, None if nodes is None else parse_list(nodes)))
        elif path == _CELL:
            memory = _kib(attributes.get("memory", ""), attributes.get("unit", "KiB"))
            # Without a number, they are counted.
            demand.cells[_natural(attributes.get("id", str(len(demand.cells))))] = memory
        elif path in (_HOST_NODES, _CELL_NODES):
            # "preferred" binds nothing, and with placement=auto the nodes are not known before the start.
            if attributes.get("mode") == "preferred" or "nodeset" not in attributes:
                return
            nodes_of_host = parse_list(attributes["nodeset"])
            if path == _HOST_NODES:
                demand.host_nodes = nodes_of_host
            else:
                demand.cell_nodes[_natural(attributes.get("cellid", ""))] = nodes_of_host
        elif path[:-1] == _TUNING and path[-1] in ("vcpupin", "emulatorpin", "iothreadpin"):
            pins = parse_list(attributes.get("cpuset", ""))
            if path[-1] == "vcpupin":
                demand.vcpu_pins |= pins
            elif path[-1] == "emulatorpin":
                demand.emulator_pins |= pins
            else:
                demand.iothread_pins |= pins

    def end(self, tag: str) -> None:
        if self._path == _UUID:
            self.request.uuid = "".join(self._text)
        elif self._path == _NAME:
            self.request.name = "".join(self._text)
        elif self._path == _MEMORY:
            try:
                self.request.demand.memory = _kib("".join(self._text).strip(), self._memory_unit)
            except UsageError as error:
                self.request.demand.problem = self.request.demand.problem or error
        self._text.clear()
        self._path.pop()

    def text(self, characters: str) -> None:
        if self._path in (_UUID, _NAME, _MEMORY):
            self._text.append(characters)


def _unknown(what: str) -> UsageError:
    return UsageError(
        "metadata",
        f"{what} in the metadata of virtpass is not known to this hook",
        "run virtpass hook install after an update",
    )


def _kib(text: str, unit: str) -> int:
    """Return an amount of memory in KiB, rounded up as libvirt does.

    Raises:
        UsageError: it is none.
    """
    scale = _UNITS.get(unit.lower())
    if scale is None:
        raise UsageError("memory-unit", f"'{unit}' is not a unit of memory")
    return -(-_natural(text) * scale // 1024)


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise UsageError("memory", f"'{text}' in the domain's XML is not a number")
    return int(text)


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
