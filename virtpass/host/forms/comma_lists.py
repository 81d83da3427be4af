"""Names in a list with commas that is the value of one key of a YAML file."""

import itertools
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from virtpass.host.forms.blocks import MarkedBlock
from virtpass.system.errors import RefusedError

# What can neither open nor continue something of several lines, so that a key at the start of a line is one.
_QUOTED = r"'(?:[^'\t]|'')*'|\"(?:[^\"\\\t]|\\[^\t])*\""
_FLOW = r"\[[^\[\]{}\"'#\t]*\]|\{[^\[\]{}\"'#\t]*\}"
_PLAIN = r"(?:[^\s\"'\[\]{}|>&*!%@`?,#:-]|-(?! |$))(?:[^\t:#]|:(?! |$)|(?<! )#)*(?:(?<= )#.*)?"
_VALUE = rf"(?:(?:{_QUOTED}|{_FLOW})(?: +#.*| *)|{_PLAIN})"
_ENTRY = rf"[A-Za-z_][A-Za-z0-9_-]* *:(?: +(?:{_VALUE}|#.*)| *)"
_TOP = re.compile(_ENTRY)
_NESTED = re.compile(rf" +(?:- +)*(?:{_ENTRY}|{_VALUE})")
_NOTHING = re.compile(r" *(?:#.*)?")
_START = re.compile(r"--- *(?:#.*)?")
# A line feed ends a line, with or without a carriage return before it; to YAML these would too.
_OTHER_ENDS = re.compile("\r(?!\n)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029\ufeff]")
_NAMES = r"[A-Za-z0-9_./+, -]"
_NULLS = ("null", "Null", "NULL")


@dataclass(frozen=True, slots=True)
class CommaList:
    """Names at the end of such a list, or a list of our own where the key is not there.

    Attributes:
        key: the key, at the top level.
        names: what is added.
        before: the line with the list as it was; known once a base was seen that has one.
        after: the same line with our names.
    """

    key: str
    names: tuple[str, ...]
    before: str = ""
    after: str = ""

    kind: ClassVar[str] = "comma-list"

    def for_base(self, base: bytes | None) -> "CommaList":
        """Leave out what the list has already."""
        MarkedBlock("").for_base(base)
        found = _List.find(base or b"", self.key)
        if found is None:
            return replace(self, before="", after="")
        names = tuple(name for name in self.names if name not in found.names)
        return replace(self, names=names, before=found.line, after=found.with_names(names))

    def add(self, base: bytes | None) -> bytes:
        """Append the names to the list, or the list to the file."""
        content = (MarkedBlock("").remove(base) if base is not None else None) or b""
        found = _List.find(content, self.key)
        if found is None:
            return MarkedBlock(f"{self.key}: {','.join(self.names)}\n").add(base)
        names = tuple(name for name in self.names if name not in found.names)
        return found.replaced(found.with_names(names))

    def remove(self, content: bytes) -> bytes | None:
        """Take the names out, whatever else the file has come to be.

        Raises:
            RefusedError: the list has names of ours, and is not a plain one on one line any more.
        """
        without_block = MarkedBlock("").remove(content)
        if without_block != content:
            return without_block
        lines = content.split(b"\n")
        after = self.after.encode()
        if after and lines.count(after) == 1:
            lines[lines.index(after)] = self.before.encode()
            return b"\n".join(lines)
        try:
            found = _List.find(content, self.key)
        except RefusedError:
            found = self._alone(content)
        return content if found is None else found.replaced(found.without_names(self.names))

    def _alone(self, content: bytes) -> "_List | None":
        """Return the list in a file of which other lines are not understood.

        Raises:
            RefusedError: there are names of ours, and nobody can tell how to take them out.
        """
        lines = tuple(content.decode("utf-8", "surrogateescape").split("\n"))
        try:
            if (found := _List.within(lines, self.key)) is not None:
                return found
        except RefusedError:
            pass
        for at, line in enumerate(lines):
            if not re.match(rf"[\s{{\"']*{re.escape(self.key)}[\"']? *:", line):
                continue
            following = itertools.takewhile(lambda one: not re.match(r"[A-Za-z_\"']", one), lines[at + 1 :])
            words = re.findall(r"[A-Za-z0-9_]+", "\n".join((line, *following)))
            if ours := [name for name in self.names if name in words]:
                raise RefusedError(
                    "not-plain",
                    f"in line {at + 1}, {self.key} is no plain list on one line any more, and still has "
                    f"{', '.join(ours)}",
                    f"take {', '.join(ours)} out of it by hand, then do this once more",
                )
        return None


@dataclass(frozen=True, slots=True)
class _List:
    """The line of a file that has the list, and where in it the value stands, quotes left out."""

    lines: tuple[str, ...]
    at: int
    start: int
    end: int

    @property
    def line(self) -> str:
        return self.lines[self.at]

    @property
    def value(self) -> str:
        return self.line[self.start : self.end]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.strip(" ") for one in self.value.split(","))

    @classmethod
    def find(cls, content: bytes, key: str) -> "_List | None":
        """Find the list.

        Returns:
            None when no line begins with the key.

        Raises:
            RefusedError: the file is none of which each line can be understood by itself, or the value is
                not a plain list on one line.
        """
        return cls.within(_lines(content), key)

    @classmethod
    def within(cls, lines: tuple[str, ...], key: str) -> "_List | None":
        """Find the list in lines, whatever the others are; as `find` does."""
        places = [at for at, line in enumerate(lines) if re.match(rf"{re.escape(key)} *:", line)]
        if not places:
            return None
        value = rf"(?P<quote>['\"]?)(?P<value>{_NAMES}*?)(?P=quote)"
        # What is empty may have no blank before it; a plain value begins with a name.
        plain = rf"{re.escape(key)} *:(?: +(?!,|-(?: |\r?$)){value})?(?: +#.*)? *\r?"
        found = re.fullmatch(plain, lines[places[0]])
        following = (line for line in lines[places[0] + 1 :] if not _NOTHING.fullmatch(line.rstrip("\r")))
        if len(places) > 1 or not found or next(following, "").startswith((" ", "\t", "-")):
            raise RefusedError("not-plain", f"{key} is not exactly one plain list on one line")
        if found["value"] is None or (not found["quote"] and not found["value"]):
            start = end = lines[places[0]].index(":") + 1
        else:
            start, end = found.span("value")
            if not found["quote"] and found["value"] in _NULLS:
                raise RefusedError("not-plain", f"{key} is {found['value']}, which is no list")
        return cls(lines, places[0], start, end)

    def with_names(self, names: tuple[str, ...]) -> str:
        """Return the line with names at the end of the list."""
        if not names:
            return self.line
        text = ",".join(names)
        if self.value.strip(" "):
            text = text if self.value.rstrip(" ").endswith(",") else f",{text}"
        elif self.line[self.start - 1] == ":":
            text = f" {text}"
        return self.line[: self.end] + text + self.line[self.end :]

    def without_names(self, names: tuple[str, ...]) -> str:
        """Return the line without names, the last of each."""
        parts = self.value.split(",")
        for name in reversed(names):
            places = [at for at, part in enumerate(parts) if part.strip(" ") == name]
            if places:
                del parts[places[-1]]
        return self.line[: self.start] + ",".join(parts) + self.line[self.end :]

    def replaced(self, line: str) -> bytes:
        """Return the file with another line in the place of this one."""
        text = "\n".join((*self.lines[: self.at], line, *self.lines[self.at + 1 :]))
        return text.encode("utf-8", "surrogateescape")


def _lines(content: bytes) -> tuple[str, ...]:
    """Return the lines of a YAML file that is one mapping, each entry of which begins on a line of its own.

    Raises:
        RefusedError: it is another one, or it cannot be told without a parser.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise RefusedError("not-utf-8", "it is not UTF-8") from error
    if _OTHER_ENDS.search(text):
        raise RefusedError("not-plain", "it has control characters")
    lines = tuple(text.split("\n"))
    is_begun = has_key = False
    for number, line in enumerate(lines, 1):
        bare = line.rstrip("\r")
        if _NOTHING.fullmatch(bare):
            continue
        is_start = _START.fullmatch(bare) is not None and not is_begun
        is_nested = has_key and _NESTED.fullmatch(bare) is not None
        is_top = _TOP.fullmatch(bare) is not None
        if not (is_start or is_nested or is_top):
            raise RefusedError(
                "not-plain",
                f"line {number} is more than an entry of one line can be",
                "write each entry on one line, without lists, anchors, tabs and further documents",
            )
        is_begun, has_key = True, has_key or is_top
    return lines
