"""A PCI address, parsed once.

Imported by the hook: no imports beyond `virtpass.system.errors`.
"""

from virtpass.system.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_OCTAL = frozenset("01234567")
_DECIMAL = frozenset("0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")


class PciAddress(tuple[int, int, int, int]):
    """Domain, bus, slot and function of one PCI function; immutable, hashable, ordered.

    The domain may be wider than 16 bits (VMD controllers number theirs from 0x10000), up to 32 bits.

    Raises:
        UsageError: a part is out of range.
    """

    __slots__ = ()

    def __new__(cls, domain: int, bus: int, slot: int, function: int) -> "PciAddress":
        """Check the ranges: domain 32 bits, bus 8, slot 5, function 3."""
        for part, value, limit in (
            ("domain", domain, 0xFFFFFFFF),
            ("bus", bus, 0xFF),
            ("slot", slot, 0x1F),
            ("function", function, 7),
        ):
            if not 0 <= value <= limit:
                raise UsageError("address-range", f"PCI {part} {value:#x} is out of range (0 to {limit:#x})")
        return super().__new__(cls, (domain, bus, slot, function))

    @classmethod
    def parse(cls, text: str) -> "PciAddress":
        """Parse ``DDDD:BB:SS.F`` or, in domain 0, ``BB:SS.F``; ASCII hexadecimal digits only.

        The domain has four to eight digits, bus and slot two, the function one, as in sysfs and in the
        output of lspci.

        Raises:
            UsageError: ``text`` is anything else.
        """
        head, _, function = text.rpartition(".")
        parts = head.split(":")
        if len(parts) == 2:
            parts.insert(0, "0000")
        widths = [len(part) for part in parts]
        digits = "".join(parts) + function
        well_formed = (
            len(parts) == 3
            and 4 <= widths[0] <= 8
            and widths[1:] == [2, 2]
            and len(function) == 1
            and _HEX.issuperset(digits)
        )
        if not well_formed:
            raise UsageError(
                "address-syntax",
                f"'{text}' is not a PCI address",
                "write it like 01:00.0 or 0000:01:00.0 (virtpass devices lists them)",
            )
        return cls(int(parts[0], 16), int(parts[1], 16), int(parts[2], 16), int(function, 16))

    @classmethod
    def from_attributes(cls, attributes: "Mapping[str, str]") -> "PciAddress":
        """Parse the attributes of an ``<address>`` in libvirt's XML; what is left out is 0.

        Raises:
            UsageError: one is no number, or out of range.
        """
        domain, bus, slot, function = (
            libvirt_number(attributes.get(part, "0")) for part in ("domain", "bus", "slot", "function")
        )
        return cls(domain, bus, slot, function)

    @property
    def domain(self) -> int:
        """PCI domain (also called segment)."""
        return self[0]

    @property
    def bus(self) -> int:
        """Bus number."""
        return self[1]

    @property
    def slot(self) -> int:
        """Slot (also called device) number."""
        return self[2]

    @property
    def function(self) -> int:
        """Function number."""
        return self[3]

    @property
    def node_device(self) -> str:
        """Name of libvirt's node device, ``pci_0000_01_00_0``."""
        return f"pci_{self[0]:04x}_{self[1]:02x}_{self[2]:02x}_{self[3]:x}"

    def same_slot(self, other: "PciAddress") -> bool:
        """Tell whether both are functions of one slot, hence of one card."""
        return self[:3] == other[:3]

    def __str__(self) -> str:
        """The name in sysfs, ``0000:01:00.0``."""
        return f"{self[0]:04x}:{self[1]:02x}:{self[2]:02x}.{self[3]:x}"

    def __repr__(self) -> str:
        """``PciAddress(0000:01:00.0)``."""
        return f"PciAddress({self})"


def libvirt_number(text: str) -> int:
    """Parse a number as libvirt does: ``0x`` starts a hexadecimal number, another leading 0 an octal one.

    That is strtoul with base 0, which virXMLPropUInt in libvirt's src/util/virxml.c calls.

    Raises:
        UsageError: it is none.
    """
    if text[:2] in ("0x", "0X"):
        base, digits, allowed = 16, text[2:], _HEX
    elif text[:1] == "0":
        base, digits, allowed = 8, text, _OCTAL
    else:
        base, digits, allowed = 10, text, _DECIMAL
    if not digits or not allowed.issuperset(digits) or len(digits) > 16:
        raise UsageError(
            "xml-number",
            f"'{text[:40]}' in an address of the domain's XML is not a number",
            "write it like 0x1f",
        )
    return int(digits, base)
