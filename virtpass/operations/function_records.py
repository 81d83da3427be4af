"""Which devices get virtual functions at boot, and which setting of the kernel was changed for them.

A file of root's for each device, ``/etc/virtpass/functions.d/ADDRESS``, with the device's identity: addresses
move when cards are added, and another card must not get what was meant for this one. Its lines:

    # anything
    identity 8086:10c9 8086:0000 SERIAL      vendor:device, that of the board, the serial number if it has one
    count 4

Beside it, ``/run/virtpass/functions/ADDRESS`` says that virtpass has switched automatic probing off.
"""

from dataclasses import dataclass

from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import FailedError, NotFoundError, VirtpassError
from virtpass.system.host import Host

DIRECTORY = "/etc/virtpass/functions.d"
UNIT = "virtpass-functions.service"
_WANTED = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"
_CHANGED = "/run/virtpass/functions"
_MODE = 0o644
# More than the specification has, 16 bits; nothing reads beyond it.
_MOST = 0xFFFF
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Record:
    """What one device gets at boot.

    Attributes:
        address: where it is.
        identity: what it was when that was asked for.
        count: how many virtual functions it gets.
    """

    address: PciAddress
    identity: Identity
    count: int


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
    text = (
        f"# virtpass device functions {address} 0 --persistent removes this\n"
        f"identity {' '.join(words)}\ncount {record.count}\n"
    )
    host.replace_own(DIRECTORY, str(address), text.encode(), _MODE)


def is_applied_at_boot(host: Host) -> bool:
    """Tell whether systemd applies the records at boot."""
    return host.exists(_WANTED)


def keep_autoprobe(host: Host, address: PciAddress) -> None:
    """Record that automatic probing of a device's functions was on, before it is switched off."""
    host.replace_own(_CHANGED, str(address), b"sriov_drivers_autoprobe 1\n", _MODE)


def has_autoprobe(host: Host, address: PciAddress) -> bool:
    """Tell whether it was virtpass that switched automatic probing off."""
    return host.exists(f"{_CHANGED}/{address}")


def forget_autoprobe(host: Host, address: PciAddress) -> None:
    """Forget it: automatic probing is on again."""
    host.remove_own(_CHANGED, str(address))


def _parse(address: PciAddress, content: bytes) -> Record:
    """Parse a record; whatever is not exactly as it is written here is refused.

    Raises:
        FailedError: it is not understood.
    """
    try:
        lines = [line.split() for line in content.decode("ascii").splitlines()]
        fields = {words[0]: words[1:] for words in lines if words and not words[0].startswith("#")}
        first, board, *serial = fields.pop("identity")
        (count,) = fields.pop("count")
        if fields or len(serial) > 1 or not count.isdigit() or not 1 <= int(count) <= _MOST:
            raise ValueError(content)
        identity = Identity(*_ids(first), *_ids(board), *serial)
    except (ValueError, KeyError, VirtpassError) as error:
        raise _not_understood(str(address)) from error
    return Record(address, identity, int(count))


def _ids(text: str) -> tuple[int, int]:
    vendor, _, device = text.partition(":")
    if not (len(vendor) == len(device) == 4 and _HEX.issuperset(vendor + device)):
        raise ValueError(text)
    return int(vendor, 16), int(device, 16)


def _not_understood(name: str) -> FailedError:
    return FailedError(
        "functions-record",
        f"{DIRECTORY}/{name} is not understood, and nothing was done for it",
        "remove it, and ask again with virtpass device functions ADDRESS COUNT --persistent",
    )
