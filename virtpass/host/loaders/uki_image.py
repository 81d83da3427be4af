"""A unified kernel image: a PE file for UEFI in whose section .cmdline the kernel arguments stand."""

import struct

from virtpass.host import tokens
from virtpass.system.host import Host

# The headers of a PE file; sections may begin far behind them.
_HEAD = 1 << 16
_MAX_SIZE = 512 << 20
_SECTION = struct.Struct("<8sIIII")
_SECTION_SIZE = 40


def read_command_line(host: Host, path: str) -> tuple[str, ...] | None:
    """Return the kernel arguments in an image, empty when it has none; None when it is no image."""
    head = host.read_bytes(path, _HEAD) or b""
    try:
        place = _place_of(head, b".cmdline")
    except (struct.error, ValueError):
        return None
    if place is None:
        return ()
    start, size = place
    if start + size > _MAX_SIZE:
        return None
    content = (host.read_bytes(path, start + size) or b"")[start:]
    return tokens.split(content.rstrip(b"\0").decode("utf-8", "surrogateescape"))


def _place_of(head: bytes, wanted: bytes) -> tuple[int, int] | None:
    """Return position and size of a section; raise ValueError or struct.error for what is no PE file."""
    if head[:2] != b"MZ":
        raise ValueError(head[:2])
    (signature,) = struct.unpack_from("<I", head, 0x3C)
    if head[signature : signature + 4] != b"PE\0\0":
        raise ValueError(signature)
    (count,) = struct.unpack_from("<H", head, signature + 6)
    (optional,) = struct.unpack_from("<H", head, signature + 20)
    for number in range(count):
        at = signature + 24 + optional + number * _SECTION_SIZE
        name, size, _, stored, start = _SECTION.unpack_from(head, at)
        if name.rstrip(b"\0") == wanted:
            return start, min(size, stored) if size else stored
    return None
