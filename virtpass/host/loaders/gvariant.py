"""A little of GVariant, the format in which OSTree keeps what will become of a staged deployment.

Containers hold their parts in a row, and after them where each part ends, as little-endian numbers of one,
two, four or eight bytes, by the size of the container.
"""

from collections.abc import Iterator


def strings(content: bytes, key: str) -> tuple[str, ...] | None:
    """Return the list of strings (``as``) that a dictionary (``a{sv}``) has for a key.

    Args:
        content: the serialized dictionary.
        key: the key.

    Returns:
        the strings; None when the dictionary has no such key, or another type there.

    Raises:
        ValueError: it is no dictionary.
    """
    for entry in _parts(content, alignment=8):
        size = _offset_size(len(entry))
        end = int.from_bytes(entry[len(entry) - size :], "little")
        if size == 0 or not 0 < end <= len(entry) - size or entry[end - 1 : end] != b"\0":
            raise ValueError("no entry of a dictionary")
        if entry[: end - 1] != key.encode():
            continue
        value, found, kind = entry[_aligned(end, 8) : len(entry) - size].rpartition(b"\0")
        if not found or kind != b"as":
            return None
        return tuple(part.rstrip(b"\0").decode("utf-8", "surrogateescape") for part in _parts(value))
    return None


def _parts(content: bytes, alignment: int = 1) -> Iterator[bytes]:
    """Yield the parts of an array whose parts have no fixed size."""
    if not content:
        return
    size = _offset_size(len(content))
    first = int.from_bytes(content[len(content) - size :], "little")
    count, rest = divmod(len(content) - first, size)
    if rest or count < 1 or first > len(content):
        raise ValueError("no array")
    start = 0
    for number in range(count):
        at = first + number * size
        end = int.from_bytes(content[at : at + size], "little")
        start = _aligned(start, alignment)
        if not start <= end <= first:
            raise ValueError("no array")
        yield content[start:end]
        start = end


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _offset_size(length: int) -> int:
    """Return how many bytes tell where a part ends in a container of a length."""
    if length == 0:
        return 0
    return next(size for size in (1, 2, 4, 8) if length < 1 << (8 * size))
