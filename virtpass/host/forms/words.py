"""Kernel arguments in bytes: how forms read them, add to them, and take out again what they have added."""

import re
from collections.abc import Callable

from virtpass.host import tokens
from virtpass.system.errors import RefusedError

# As the kernel splits: at blanks outside double quotes.
_WORD = re.compile(rb'(?:[^ \t\r\n"]|"[^"]*(?:"|$))+')


def words(value: bytes) -> tuple[str, ...]:
    """Return the kernel arguments in a value; bytes that are no text survive."""
    return tokens.split(value.decode("utf-8", "surrogateescape"))


def appended(value: bytes, wanted: tuple[str, ...]) -> bytes:
    """Return a value with more kernel arguments at its end, each with one blank before it.

    Raises:
        RefusedError: it leaves a quote open, so that what is appended would be part of its last argument.
    """
    if not wanted:
        return value
    refuse_open_quote(value)
    return (value + b" " if value else b"") + " ".join(wanted).encode()


def refuse_open_quote(value: bytes) -> None:
    """Refuse a value in which a quote is left open.

    Raises:
        RefusedError: it has one.
    """
    if value.count(b'"') % 2:
        raise RefusedError("open-quote", "a double quote in its command line is not closed")


def without(value: bytes, removed: tuple[str, ...]) -> bytes:
    """Return a value without kernel arguments: the last occurrence of each goes, with one blank before it."""
    for token in reversed(removed):
        places = [found.span() for found in _WORD.finditer(value) if found.group() == token.encode()]
        if not places:
            continue
        start, end = places[-1]
        if start and value[start - 1 : start] in (b" ", b"\t"):
            start -= 1
        elif value[end : end + 1] in (b" ", b"\t"):
            end += 1
        value = value[:start] + value[end:]
    return value


def without_in_lines(content: bytes, removed: tuple[str, ...], concerns: Callable[[bytes], bool]) -> bytes:
    """Return a content without kernel arguments in those of its lines which a form concerns."""
    lines = content.split(b"\n")
    return b"\n".join(without(line, removed) if concerns(line) else line for line in lines)
