"""How virtpass's part of a file looks, and how it is put in and taken out again. Pure functions over bytes.

For each form: ``remove(add(base)) == base`` when ``for_base(base)`` made it, ``add`` changes nothing
when it is repeated, and what others write around our part stays.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from virtpass.host import tokens
from virtpass.system.errors import RefusedError

BEGIN = b"# BEGIN virtpass"
END = b"# END virtpass"
_NEWLINE_ADDED = b" (a line break was added before)"
_FILE_MADE = b" (the file was made for it)"


class Form(Protocol):
    """One way in which virtpass has a part in a file."""

    kind: ClassVar[str]

    def for_base(self, base: bytes | None) -> "Form":
        """Return the form with only that in it which ``base`` does not have already."""

    def add(self, base: bytes | None) -> bytes:
        """Return the content with our part in it; ``base`` is None for a file that does not exist.

        Raises:
            RefusedError: the file is not understood.
        """

    def remove(self, content: bytes) -> bytes | None:
        """Return the content without our part; None when nothing of the file is left."""


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A file that is all ours, such as a drop-in."""

    text: str

    kind: ClassVar[str] = "own-file"

    def for_base(self, base: bytes | None) -> "OwnFile":
        """Refuse a file that somebody else has put there."""
        if base is not None and base != self.text.encode():
            raise RefusedError("not-ours", "a file that virtpass did not write is in the place of its own")
        return self

    def add(self, base: bytes | None) -> bytes:
        """Return our text."""
        return self.text.encode()

    def remove(self, content: bytes) -> bytes | None:
        """Leave nothing."""
        return None


@dataclass(frozen=True, slots=True)
class MarkedBlock:
    """Lines between two marks at the end of a file."""

    text: str

    kind: ClassVar[str] = "block"

    def for_base(self, base: bytes | None) -> "MarkedBlock":
        """Refuse a file that has marks already."""
        if base is not None and (BEGIN in base or END in base):
            raise RefusedError(
                "marks", "it has marks of virtpass that are not on record; take them out by hand"
            )
        return self

    def add(self, base: bytes | None, encoding: str = "utf-8") -> bytes:
        """Append the block; it goes to the end when it is there already."""
        base = self.remove(base) if base is not None else None
        content = base or b""
        # After a backslash our first mark would be part of the line before.
        if content.rstrip(b"\n").endswith(b"\\") and not content.endswith(b"\n\n"):
            raise RefusedError(
                "unfinished-line", "its last line ends with a backslash; end the file with a full line"
            )
        is_open = bool(content) and not content.endswith(b"\n")
        head = b"\n" + BEGIN + _NEWLINE_ADDED if is_open else BEGIN
        head += _FILE_MADE if base is None else b""
        return content + head + b"\n" + self.text.encode(encoding).rstrip(b"\n") + b"\n" + END + b"\n"

    def remove(self, content: bytes) -> bytes | None:
        """Take the block out, and the line break that was added before it if it still stands there."""
        start = content.find(BEGIN)
        end = content.find(END, start)
        if start < 0 or end < 0:
            return content
        after = content.find(b"\n", end)
        rest = content[after + 1 :] if after >= 0 else b""
        head = content[:start]
        mark = content[start + len(BEGIN) :]
        if mark.startswith(_NEWLINE_ADDED) and head.endswith(b"\n") and not rest:
            head = head[:-1]
        return head + rest or (None if mark.startswith(_FILE_MADE) else b"")


@dataclass(frozen=True, slots=True)
class LineTokens:
    """Tokens at the end of the command line in a file that holds it whole, such as /etc/kernel/cmdline.

    Attributes:
        tokens: what is added.
        line: the command line to begin with when the file does not exist.
    """

    tokens: tuple[str, ...]
    line: str = ""

    kind: ClassVar[str] = "line"

    def for_base(self, base: bytes | None) -> "LineTokens":
        """Leave out what the line has already."""
        if base is None:
            return self
        # A file that was there never goes, whatever it holds.
        wanted = tokens.missing(self.tokens, tokens.split(_command_line(base)))
        return replace(self, tokens=wanted, line="")

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the first line that counts: some tools read no other."""
        if base is None:
            if not self.line:
                raise RefusedError(
                    "no-command-line", "it does not exist, and with our arguments alone nothing would boot"
                )
            return (" ".join((self.line, *self.tokens)) + "\n").encode()
        wanted = tokens.missing(self.tokens, tokens.split(_command_line(base)))
        if not wanted:
            return base
        lines = base.split(b"\n")
        position = next((at for at, line in enumerate(lines) if _counts(line)), None)
        if position is None:
            raise RefusedError("empty-command-line", "it holds no kernel command line")
        line, end = _body(lines[position])
        _refuse_open_quote(line)
        lines[position] = (
            line.rstrip(b" \t") + b" " + " ".join(wanted).encode() + line[len(line.rstrip(b" \t")) :] + end
        )
        return b"\n".join(lines)

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out; a file that we made goes when only that is left which it began with."""
        if self.line and tokens.split(_command_line(content)) == (*tokens.split(self.line), *self.tokens):
            return None
        return _without_in_lines(content, self.tokens, _counts)

    def lasting(self, running: tuple[str, ...]) -> bytes | None:
        """Return what must stay of a file that we made, None when it may go.

        Without the file, tools write entries from the command line that runs: our tokens would come back.

        Args:
            running: the tokens of the running kernel's command line.
        """
        is_ours = any(one in self.tokens or tokens.key(one) == "virtpass" for one in running)
        return f"{self.line}\n".encode() if self.line and is_ours else None


@dataclass(frozen=True, slots=True)
class EntryOptions:
    """Tokens at the end of the ``options`` of a boot loader entry (UAPI.1), which may be several lines."""

    tokens: tuple[str, ...]

    kind: ClassVar[str] = "entry"

    def for_base(self, base: bytes | None) -> "EntryOptions":
        """Leave out what the entry has already."""
        return replace(self, tokens=tokens.missing(self.tokens, entry_options(base or b"")))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the last options line."""
        content = base or b""
        wanted = tokens.missing(self.tokens, entry_options(content))
        if not wanted:
            return content
        lines = content.split(b"\n")
        positions = [at for at, line in enumerate(lines) if _OPTIONS.match(line)]
        if not positions:
            raise RefusedError("no-options", "it has no options line")
        line, end = _body(lines[positions[-1]])
        _refuse_open_quote(line)
        lines[positions[-1]] = line + b" " + " ".join(wanted).encode() + end
        return b"\n".join(lines)

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the options."""
        return _without_in_lines(content, self.tokens, lambda line: bool(_OPTIONS.match(line)))


@dataclass(frozen=True, slots=True)
class VariableTokens:
    """Tokens at the end of the value of a shell variable that one plain line of the file assigns.

    Attributes:
        name: the variable.
        tokens: what is added.
    """

    name: str
    tokens: tuple[str, ...]

    kind: ClassVar[str] = "variable"

    def for_base(self, base: bytes | None) -> "VariableTokens":
        """Leave out what the value has already."""
        found = self._assignment(base or b"")
        return replace(self, tokens=tokens.missing(self.tokens, _tokens(found.group("value"))))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the value."""
        content = base or b""
        found = self._assignment(content)
        value = found.group("value")
        wanted = tokens.missing(self.tokens, _tokens(value))
        if not wanted:
            return content
        joined = (value + b" " if value else b"") + " ".join(wanted).encode()
        return content[: found.start("value")] + joined + content[found.end("value") :]

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the value; a file that is not understood any more stays as it is."""
        try:
            found = self._assignment(content)
        except RefusedError:
            return content
        value = _without(found.group("value"), self.tokens)
        return content[: found.start("value")] + value + content[found.end("value") :]

    def _assignment(self, content: bytes) -> re.Match[bytes]:
        """Return the one assignment that can be edited in place without a shell."""
        assigned = re.escape(self.name.encode()) + rb"\+?="
        plain = rb"^[ \t]*(?:export[ \t]+)?" + assigned
        plain += rb"(?P<quote>[\"'])(?P<value>[^\"'$`\\\n]*)(?P=quote)[ \t]*(?:#[^\n]*)?\r?$"
        # Anywhere on a line, as in "test -e x && NAME=y"; what a comment says does not count.
        anywhere = re.findall(rb"^[^#\n]*?(?<![A-Za-z0-9_])" + assigned, content, re.MULTILINE)
        found = re.search(plain, content, re.MULTILINE)
        if len(anywhere) != 1 or found is None:
            raise RefusedError(
                "not-plain",
                f"{self.name} is not assigned on exactly one plain line with quotes around the value",
            )
        return found


@dataclass(frozen=True, slots=True)
class EnvironmentTokens:
    """Tokens at the end of a variable in GRUB's environment block, whose size is fixed.

    Attributes:
        name: the variable.
        tokens: what is added.
    """

    name: str
    tokens: tuple[str, ...]

    kind: ClassVar[str] = "environment"

    def for_base(self, base: bytes | None) -> "EnvironmentTokens":
        """Leave out what the value has already."""
        value = self._assignment(base or b"").group("value").decode("utf-8", "surrogateescape")
        return replace(self, tokens=tokens.missing(self.tokens, tokens.split(value)))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the value, at the cost of the padding."""
        content = base or b""
        found = self._assignment(content)
        value = found.group("value").decode("utf-8", "surrogateescape")
        wanted = tokens.missing(self.tokens, tokens.split(value))
        if not wanted:
            return content
        head, tail = content[: found.end("value")], content[found.end("value") :].rstrip(b"#")
        joined = head + (b" " if value else b"") + " ".join(wanted).encode() + tail
        if len(joined) > len(content):
            raise RefusedError("environment-full", f"there is no room for {' '.join(wanted)} in it")
        return joined.ljust(len(content), b"#")

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the value; a block that is not understood any more stays as it is."""
        try:
            found = self._assignment(content)
        except RefusedError:
            return content
        value = _without(found.group("value"), self.tokens)
        body = content[: found.start("value")] + value + content[found.end("value") :].rstrip(b"#")
        return body.ljust(len(content), b"#")

    def _assignment(self, content: bytes) -> re.Match[bytes]:
        pattern = rb"^" + self.name.encode() + rb"=(?P<value>[^\\\n]*)$"
        found = re.findall(pattern, content, re.MULTILINE)
        only = re.search(pattern, content, re.MULTILINE)
        if not content.startswith(b"# GRUB Environment Block\n") or len(found) != 1 or only is None:
            raise RefusedError(
                "no-environment", f"it is no environment block of GRUB in which {self.name} is set once"
            )
        return only


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
            wanted = tokens.missing(self.tokens, _tokens(options))
            if not wanted or (number and self.which == "first"):
                after.append(_latin(line))
                continue
            _refuse_open_quote(options)
            added = (b" " if options else b"") + " ".join(wanted).encode()
            after.append(_latin(line[: match.end("options")] + added + line[match.end("options") :]))
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
        return line[:start] + _without(line[start:end], self.tokens) + line[end:]

    def _positions(self, lines: list[bytes]) -> list[int]:
        return [number for number, line in enumerate(lines) if self._match(line)]

    def _match(self, line: bytes) -> re.Match[bytes] | None:
        match = re.match(self.pattern.encode(), line)
        return (
            match if match and (not self.needed or self.needed in _tokens(match.group("options"))) else None
        )


def _latin(line: bytes) -> str:
    return line.decode("latin-1")


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


_OPTIONS = re.compile(rb"[ \t]*options[ \t]")


def entry_options(content: bytes) -> tuple[str, ...]:
    """Return the tokens of all ``options`` lines of a boot loader entry."""
    found: list[str] = []
    for line in content.split(b"\n"):
        if _OPTIONS.match(line):
            found += _tokens(_body(line)[0])[1:]
    return tuple(found)


def _tokens(line: bytes) -> tuple[str, ...]:
    return tokens.split(line.decode("utf-8", "surrogateescape"))


def _counts(line: bytes) -> bool:
    """Tell whether a line of a command line file is read: neither empty nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith(b"#")


def _command_line(content: bytes) -> str:
    """Return the lines of a command line file as one line, as the tools join them."""
    lines = [line for line in content.split(b"\n") if _counts(line)]
    return b" ".join(lines).decode("utf-8", "surrogateescape")


def _body(line: bytes) -> tuple[bytes, bytes]:
    """Split a line from the carriage return at its end."""
    return (line[:-1], b"\r") if line.endswith(b"\r") else (line, b"")


def _refuse_open_quote(line: bytes) -> None:
    """Refuse a line that leaves a quote open: what is appended would be part of the last value."""
    if line.count(b'"') % 2:
        raise RefusedError("open-quote", "a double quote in its command line is not closed")


# As the kernel splits: at blanks outside double quotes.
_TOKEN = re.compile(rb'(?:[^ \t\r\n"]|"[^"]*(?:"|$))+')


def _without(line: bytes, removed: tuple[str, ...]) -> bytes:
    """Take tokens out of a line, the last occurrence of each, with one blank before it."""
    for token in reversed(removed):
        places = [found.span() for found in _TOKEN.finditer(line) if found.group() == token.encode()]
        if not places:
            continue
        start, end = places[-1]
        if start and line[start - 1 : start] in (b" ", b"\t"):
            start -= 1
        elif line[end : end + 1] in (b" ", b"\t"):
            end += 1
        line = line[:start] + line[end:]
    return line


def _without_in_lines(content: bytes, removed: tuple[str, ...], concerns: Callable[[bytes], bool]) -> bytes:
    """Take tokens out of those lines which a form concerns."""
    lines = content.split(b"\n")
    return b"\n".join(_without(line, removed) if concerns(line) else line for line in lines)


_FORMS: dict[str, Any] = {
    form.kind: form
    for form in (
        OwnFile,
        MarkedBlock,
        LineTokens,
        EntryOptions,
        VariableTokens,
        EnvironmentTokens,
        MenuLines,
        JsonTokens,
    )
}


def form_to_json(form: Form) -> dict[str, Any]:
    """Render a form."""
    return {"kind": form.kind, **asdict(form)}  # type: ignore[call-overload]


def form_from_json(data: Any) -> Form:  # noqa: ANN401 (whatever JSON holds)
    """Parse a form. Raises ValueError, KeyError or TypeError for anything else."""
    values = {name: tuple(one) if isinstance(one, list) else one for name, one in data.items()}
    form: Form = _FORMS[str(values.pop("kind"))](**values)
    for value in values.values():
        if not all(isinstance(one, str) for one in (value if isinstance(value, tuple) else (value,))):
            raise TypeError(value)
    return form
