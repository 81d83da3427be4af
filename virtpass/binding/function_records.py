"""Which devices get virtual functions without being asked: at every boot, or when a domain needs one.

A file of root's for each device, ``/etc/virtpass/functions.d/ADDRESS``, with the device's identity: addresses
move when cards are added, and another card must not get what was meant for this one. Its lines, each once:

    # anything
    identity 8086:10c9 8086:0000 SERIAL      vendor:device, that of the board, the serial number if it has one
    count 4
    when demand                              made by the hook; without this line at every boot

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import FailedError, NotFoundError, VirtpassError
from virtpass.system.host import Host

DIRECTORY = "/etc/virtpass/functions.d"
_MODE = 0o644
# More than the specification has, 16 bits; nothing reads beyond it.
_MOST = 0xFFFF
_HEX = frozenset("0123456789abcdef")
_DEMAND = "demand"


class Record(tuple[PciAddress, Identity, int, bool]):
    """What one device gets."""

    __slots__ = ()

    def __new__(cls, address: PciAddress, identity: Identity, count: int, is_on_demand: bool) -> Record:
        """Hold the four together."""
        return super().__new__(cls, (address, identity, count, is_on_demand))

    @property
    def address(self) -> PciAddress:
        """Where the device is."""
        return self[0]

    @property
    def identity(self) -> Identity:
        """What it was when that was asked for."""
        return self[1]

    @property
    def number(self) -> int:
        """How many virtual functions it gets."""
        return self[2]

    @property
    def is_on_demand(self) -> bool:
        """Whether it gets them when a domain needs one, rather than at every boot."""
        return self[3]


def path(address: PciAddress) -> str:
    """Return the file of a device."""
    return f"{DIRECTORY}/{address}"


def names(host: Host) -> list[str]:
    """Return the names of all records; what editors and package managers leave there is none."""
    return [
        name
        for name in host.names(DIRECTORY)
        if not name.startswith(".") and not name.endswith(("~", ".bak")) and ".dpkg-" not in name
    ]


def read(host: Host, address: PciAddress) -> Record | None:
    """Return what is on record for a device, None for nothing.

    Raises:
        RefusedError: others than root may write to it.
        FailedError: it is not understood.
    """
    content = host.read_own(DIRECTORY, str(address))
    return None if content is None else _parse(address, content)


def read_named(host: Host, name: str) -> Record:
    """Return a record by its name.

    Raises:
        VirtpassError: the name is no address, or as `read`.
    """
    address = PciAddress.parse(name)
    if name != str(address):
        raise _not_understood(name)
    record = read(host, address)
    if record is None:
        raise NotFoundError("no-record", f"{path(address)} is gone")
    return record


def write(host: Host, address: PciAddress, record: Record | None) -> None:
    """Write what is on record for a device, or remove it.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: it could not be written; nothing changed.
    """
    if record is None:
        host.remove_own(DIRECTORY, str(address))
        return
    identity = record.identity
    words = [
        f"{identity.vendor:04x}:{identity.device:04x}",
        f"{identity.subsystem_vendor:04x}:{identity.subsystem_device:04x}",
        *([identity.serial] if identity.serial else []),
    ]
    option, when = ("--on-demand", f"when {_DEMAND}\n") if record.is_on_demand else ("--persistent", "")
    text = (
        f"# virtpass device functions {address} 0 {option} removes this\n"
        f"identity {' '.join(words)}\ncount {record.number}\n{when}"
    )
    host.replace_own(DIRECTORY, str(address), text.encode(), _MODE)


def _parse(address: PciAddress, content: bytes) -> Record:
    """Parse a record; whatever is not exactly as it is written here is refused.

    Raises:
        FailedError: it is not understood.
    """
    try:
        lines = [line.split() for line in content.decode("ascii").splitlines()]
        lines = [words for words in lines if words and not words[0].startswith("#")]
        fields = {words[0]: words[1:] for words in lines}
        first, board, *serial = fields.pop("identity")
        (count,) = fields.pop("count")
        when = fields.pop("when", None)
        is_odd = fields or len(lines) != (2 if when is None else 3) or when not in (None, [_DEMAND])
        if is_odd or len(serial) > 1 or not count.isdigit() or not 1 <= int(count) <= _MOST:
            raise ValueError(content)
        identity = Identity(*_ids(first), *_ids(board), *serial)
    except (ValueError, KeyError, VirtpassError) as error:
        raise _not_understood(str(address)) from error
    return Record(address, identity, int(count), when is not None)


def _ids(text: str) -> tuple[int, int]:
    vendor, _, device = text.partition(":")
    if not (len(vendor) == len(device) == 4 and _HEX.issuperset(vendor + device)):
        raise ValueError(text)
    return int(vendor, 16), int(device, 16)


def _not_understood(name: str) -> FailedError:
    return FailedError(
        "functions-record",
        f"{DIRECTORY}/{name} is not understood, and nothing was done for it",
        "remove it, and ask again with virtpass device functions",
    )
