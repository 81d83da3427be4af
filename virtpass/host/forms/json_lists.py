"""Kernel arguments in a list of a JSON file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from virtpass.host import tokens
from virtpass.system.errors import RefusedError


@dataclass(frozen=True, slots=True)
class JsonTokens:
    """Tokens at the end of a list of strings in a JSON file, whose layout stays as it is.

    Attributes:
        keys: the names that lead to the list.
        tokens: what is added.
    """

    keys: tuple[str, ...]
    tokens: tuple[str, ...]

    kind: ClassVar[str] = "json"

    def for_base(self, base: bytes | None) -> "JsonTokens":
        """Leave out what the list has already."""
        found = self._list(base or b"")
        present = tuple(word for value in found.values for word in tokens.split(value))
        return replace(self, tokens=tokens.missing(self.tokens, present))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens, laid out as the elements before them; in an empty list as `json.dump` would."""
        content = base or b""
        wanted = self.for_base(content).tokens
        if not wanted:
            return content
        found = self._list(content)
        quoted = [json.dumps(token) for token in wanted]
        if found.spans:
            at, before = found.spans[-1][1], found.lead or " "
            added = "".join(f",{before}{one}" for one in quoted)
        else:
            at, inner = found.start + 1, f"\n{found.indent}  "
            is_bare = found.text[at : found.end - 1] == ""
            added = ", ".join(quoted)
            if is_bare and "\n" in found.text:
                added = inner + f",{inner}".join(quoted) + f"\n{found.indent}"
        return (found.text[:at] + added + found.text[at:]).encode()

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out, the last of each; a file that is not understood any more stays as it is."""
        for token in reversed(self.tokens):
            try:
                found = self._list(content)
            except RefusedError:
                return content
            places = [at for at, value in enumerate(found.values) if value == token]
            if places:
                content = found.without(places[-1]).encode()
        return content

    def _list(self, content: bytes) -> "_JsonList":
        try:
            text = content.decode()
            return _JsonList.find(text, self.keys)
        except (ValueError, IndexError, StopIteration) as error:
            raise RefusedError("not-json", f"it is no JSON with a list {'.'.join(self.keys)}") from error


@dataclass(frozen=True, slots=True)
class _JsonList:
    """A list of strings and where it stands: brackets and elements as positions in the text."""

    text: str
    start: int
    end: int
    indent: str
    values: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def lead(self) -> str:
        """What stands between the opening bracket and the first element."""
        return self.text[self.start + 1 : self.spans[0][0]]

    @classmethod
    def find(cls, text: str, keys: tuple[str, ...]) -> "_JsonList":
        """Find the list. Raises ValueError, IndexError or StopIteration when there is none."""
        json.loads(text)
        at = _after_blanks(text, 0)
        start = at
        for key in keys:
            places = [place for name, place in _members(text, at) if name == key]
            if len(places) != 1:
                raise ValueError(key)
            start, at = places[0]
        values, spans = [], []
        position = _after_blanks(text, at + 1)
        if text[at] != "[":
            raise ValueError(text[at])
        while text[position] != "]":
            value, end = _DECODER.raw_decode(text, position)
            if not isinstance(value, str):
                raise ValueError(value)
            values.append(value)
            spans.append((position, end))
            position = _after_blanks(text, end)
            position = _after_blanks(text, position + 1) if text[position] == "," else position
        line = text[text.rfind("\n", 0, start) + 1 : start]
        indent = line[: len(line) - len(line.lstrip())]
        return cls(text, at, position + 1, indent, tuple(values), tuple(spans))

    def without(self, number: int) -> str:
        """Return the text without one element."""
        start, end = self.spans[number]
        if number:
            start = self.spans[number - 1][1]
        elif len(self.spans) > 1:
            end = self.spans[1][0]
        elif "\n" in self.lead:
            # The layout that an empty list was given goes with its last element.
            start, end = self.start + 1, self.end - 1
        return self.text[:start] + self.text[end:]


_DECODER = json.JSONDecoder()


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\t", "\r", "\n") and at < len(text):
        at += 1
    return at


def _members(text: str, at: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the name of each member of an object, with where that starts, and where the value does."""
    if text[at] != "{":
        raise ValueError(text[at])
    at = _after_blanks(text, at + 1)
    while text[at] != "}":
        start = at
        name, end = _DECODER.raw_decode(text, at)
        at = _after_blanks(text, _after_blanks(text, end) + 1)
        yield name, (start, at)
        _, end = _DECODER.raw_decode(text, at)
        at = _after_blanks(text, end)
        at = _after_blanks(text, at + 1) if text[at] == "," else at
