"""What a device is, apart from where it is: so that a renumbered card is noticed.

Imported by the hook: no imports beyond `virtpass.system.errors`.
"""

from virtpass.system.errors import UsageError

_CAPABILITIES_START = 0x100
_SERIAL_NUMBER_CAPABILITY = 0x0003
_HEX = frozenset("0123456789abcdef")


class Identity(tuple[int, int, int, int, str]):
    """Vendor, device, subsystem vendor and subsystem device (16 bits each), and the serial number.

    The serial number is that of the PCI Express capability, 16 lower-case hexadecimal digits, most
    significant first; empty when the device has none or it could not be read.
    """

    __slots__ = ()

    def __new__(
        cls, vendor: int, device: int, subsystem_vendor: int, subsystem_device: int, serial: str = ""
    ) -> "Identity":
        """Check the ranges.

        Raises:
            UsageError: a number is wider than 16 bits, or the serial number is not 16 hexadecimal digits.
        """
        for number in (vendor, device, subsystem_vendor, subsystem_device):
            if not 0 <= number <= 0xFFFF:
                raise UsageError("identity-range", f"PCI id {number:#x} is wider than 16 bits")
        if serial and not (len(serial) == 16 and _HEX.issuperset(serial)):
            raise UsageError("identity-serial", f"'{serial}' is not a PCI serial number")
        return super().__new__(cls, (vendor, device, subsystem_vendor, subsystem_device, serial))

    @property
    def vendor(self) -> int:
        """Vendor id."""
        return self[0]

    @property
    def device(self) -> int:
        """Device id."""
        return self[1]

    @property
    def subsystem_vendor(self) -> int:
        """Vendor id of the board."""
        return self[2]

    @property
    def subsystem_device(self) -> int:
        """Device id of the board."""
        return self[3]

    @property
    def serial(self) -> str:
        """Serial number, or an empty string."""
        return self[4]

    def is_same_device(self, seen: "Identity") -> bool:
        """Tell whether ``seen`` may be the device that this identity was recorded from.

        A serial number that is missing on either side proves nothing: reading it takes a device that is
        awake, so its absence must not stop a start.
        """
        return self[:4] == seen[:4] and (not self.serial or not seen.serial or self.serial == seen.serial)

    def __str__(self) -> str:
        """``1234:1111 (1af4:1100)``, with the serial number when there is one."""
        text = f"{self[0]:04x}:{self[1]:04x} ({self[2]:04x}:{self[3]:04x})"
        return f"{text} serial {self.serial}" if self.serial else text


def serial_number(config: bytes) -> str:
    """Return the PCI Express device serial number in a configuration space, or an empty string.

    Args:
        config: the file ``config`` of the device; 4096 bytes when root reads that of a PCI Express device,
            64 or 256 otherwise.

    The extended capabilities start at 0x100; a header is 16 bits of id, 4 of version, 12 of next offset
    (PCI Express Base Specification, "Device Serial Number Extended Capability").
    """
    offset = _CAPABILITIES_START
    seen: set[int] = set()
    while _CAPABILITIES_START <= offset <= len(config) - 12 and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == _SERIAL_NUMBER_CAPABILITY:
            serial = int.from_bytes(config[offset + 4 : offset + 12], "little")
            # All zeros or ones: not programmed, or a device that does not answer.
            return "" if serial in (0, 0xFFFFFFFFFFFFFFFF) else f"{serial:016x}"
        offset = header >> 20
    return ""
