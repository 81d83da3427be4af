"""Kernel arguments in the lines of a boot menu that somebody keeps by hand."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from virtpass.host import tokens
from virtpass.host.forms.blocks import MarkedBlock
from virtpass.host.forms.words import appended, without, words
from virtpass.system.errors import RefusedError


@dataclass(frozen=True, slots=True)
class MenuLines:
    """Tokens in the lines of a hand-kept boot menu that give a kernel its arguments, and an entry of our own.

    Attributes:
        pattern: regular expression of such a line, matched from its start; the group ``options`` is what the
            kernel gets.
        needed: a token that the options must have, such as that of this host's root; empty for none.
        which: "all" lines, or the "first" alone.
        tokens: what is added.
        entry: text of an entry that is appended, with ``{options}`` for the options of the first line as they
            were; empty for none.
        before: all lines that match, as they were; known once a base was seen. These texts are Latin-1, so
            that any bytes survive.
        after: the same lines with our tokens.
        block: the entry with its options.
    """

    pattern: str
    needed: str
    which: str
    tokens: tuple[str, ...]
    entry: str = ""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    block: str = ""

    kind: ClassVar[str] = "menu"

    def for_base(self, base: bytes | None) -> "MenuLines":
        """Find the lines."""
        content = base or b""
        MarkedBlock("").for_base(content)
        found = [(line, match) for line in content.split(b"\n") if (match := self._match(line))]
        if not found:
            raise RefusedError("no-entry", "it has no entry that starts this host's Linux")
        after = []
        for number, (line, match) in enumerate(found):
            options = match.group("options")
            is_meant = not number or self.which == "all"
            wanted = tokens.missing(self.tokens, words(options)) if is_meant else ()
            start, end = match.span("options")
            after.append(_latin(line[:start] + appended(options, wanted) + line[end:]))
        first = _latin(found[0][1].group("options"))
        before = tuple(_latin(line) for line, _ in found)
        block = self.entry.encode().decode("latin-1").replace("{options}", first)
        return replace(self, before=before, after=tuple(after), block=block)

    def add(self, base: bytes | None) -> bytes:
        """Write the lines with our tokens, and append our entry."""
        form = self if self.before else self.for_base(base)
        content = MarkedBlock("").remove(base or b"") or b""
        lines = content.split(b"\n")
        for number, position in enumerate(form._positions(lines)):
            if number < len(form.before) and lines[position] == form.before[number].encode("latin-1"):
                lines[position] = form.after[number].encode("latin-1")
        content = b"\n".join(lines)
        return MarkedBlock(form.block).add(content, "latin-1") if form.block else content

    def remove(self, content: bytes) -> bytes | None:
        """Write the lines as they were, and take our entry out."""
        lines = (MarkedBlock("").remove(content) or b"").split(b"\n")
        positions = self._positions(lines)
        if len(positions) == len(self.before):
            for position, before, after in zip(positions, self.before, self.after, strict=True):
                if before != after:
                    lines[position] = self._restored(lines[position], before, after)
        else:
            # Others have added or removed entries: then a line is known by its text alone.
            known = dict(zip(self.after, self.before, strict=True))
            for position in positions:
                after = _latin(lines[position])
                before = known.get(after, "")
                lines[position] = self._restored(lines[position], before, after if before else "")
        return b"\n".join(lines)

    def _restored(self, line: bytes, before: str, after: str) -> bytes:
        if _latin(line) == after:
            return before.encode("latin-1")
        match = self._match(line)
        if match is None:
            return line
        start, end = match.span("options")
        return line[:start] + without(line[start:end], self.tokens) + line[end:]

    def _positions(self, lines: list[bytes]) -> list[int]:
        return [number for number, line in enumerate(lines) if self._match(line)]

    def _match(self, line: bytes) -> re.Match[bytes] | None:
        match = re.match(self.pattern.encode(), line)
        return match if match and (not self.needed or self.needed in words(match.group("options"))) else None


def _latin(line: bytes) -> str:
    return line.decode("latin-1")
