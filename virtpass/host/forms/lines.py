"""Kernel arguments in lines that hold them whole: command line files, and boot loader entries."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from virtpass.host import tokens
from virtpass.host.forms.words import appended, refuse_open_quote, without_in_lines, words
from virtpass.system.errors import RefusedError

_OPTIONS = re.compile(rb"[ \t]*options[ \t]")


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
        wanted = tokens.missing(self.tokens, words(_command_line(base)))
        return replace(self, tokens=wanted, line="")

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the first line that counts: some tools read no other."""
        if base is None:
            if not self.line:
                raise RefusedError(
                    "no-command-line", "it does not exist, and with our arguments alone nothing would boot"
                )
            return (" ".join((self.line, *self.tokens)) + "\n").encode()
        wanted = tokens.missing(self.tokens, words(_command_line(base)))
        if not wanted:
            return base
        lines = base.split(b"\n")
        positions = [at for at, line in enumerate(lines) if _counts(line)]
        for position in positions:
            # It would run on into the next line, where words then are none.
            refuse_open_quote(lines[position])
        if not positions:
            raise RefusedError("empty-command-line", "it holds no kernel command line")
        return _with_words(base, positions[0], wanted)

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out; a file that we made goes when only that is left which it began with."""
        if self.line and words(_command_line(content)) == (*tokens.split(self.line), *self.tokens):
            return None
        return without_in_lines(content, self.tokens, _counts)

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
        positions = [at for at, line in enumerate(content.split(b"\n")) if _is_options(line)]
        if not positions:
            raise RefusedError("no-options", "it has no options line")
        return _with_words(content, positions[-1], wanted)

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the options."""
        return without_in_lines(content, self.tokens, _is_options)


def entry_options(content: bytes) -> tuple[str, ...]:
    """Return the tokens of all ``options`` lines of a boot loader entry."""
    lines = [line for line in content.split(b"\n") if _is_options(line)]
    return tuple(word for line in lines for word in words(line)[1:])


def _is_options(line: bytes) -> bool:
    return bool(_OPTIONS.match(line))


def _counts(line: bytes) -> bool:
    """Tell whether a line of a command line file is read: neither empty nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith(b"#")


def _command_line(content: bytes) -> bytes:
    """Return the lines of a command line file as one line, as the tools join them."""
    return b" ".join(line for line in content.split(b"\n") if _counts(line))


def _with_words(content: bytes, position: int, wanted: tuple[str, ...]) -> bytes:
    """Return a content with kernel arguments at the end of one of its lines, before a carriage return."""
    lines = content.split(b"\n")
    line = lines[position]
    end = b"\r" if line.endswith(b"\r") else b""
    lines[position] = appended(line.removesuffix(b"\r"), wanted) + end
    return b"\n".join(lines)
