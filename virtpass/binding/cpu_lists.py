"""Lists of CPUs and NUMA nodes as the kernel and libvirt write them: ``0-3,7``.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.system.errors import UsageError

# More than any kernel can be built for.
_LIMIT = 1 << 16


def parse_list(text: str) -> frozenset[int]:
    """Parse a list of numbers and ranges; the empty text is the empty list.

    Raises:
        UsageError: it is no such list.
    """
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.partition("-")
        low = _number(first, text)
        high = _number(last, text) if dash else low
        if high < low:
            raise _unknown(text)
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def render_list(numbers: frozenset[int]) -> str:
    """Return numbers as the kernel prints them: sorted, neighbours as one range."""
    parts: list[str] = []
    ordered = sorted(numbers)
    begin = 0
    for position, number in enumerate(ordered):
        if position + 1 == len(ordered) or ordered[position + 1] != number + 1:
            first = ordered[begin]
            parts.append(str(first) if first == number else f"{first}-{number}")
            begin = position + 1
    return ",".join(parts)


def _number(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) < _LIMIT):
        raise _unknown(whole)
    return int(text)


def _unknown(text: str) -> UsageError:
    return UsageError("cpu-list", f"'{text}' is not a list such as 0-3,7")
