"""Kernel arguments in the value of a variable: of the shell, or of GRUB's environment block."""

import re
from dataclasses import dataclass, replace
from typing import ClassVar

from virtpass.host import tokens
from virtpass.host.forms.words import appended, without, words
from virtpass.system.errors import RefusedError


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
        return replace(self, tokens=self._missing(self._assignment(base or b"")))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the value."""
        content = base or b""
        found = self._assignment(content)
        value = appended(found.group("value"), self._missing(found))
        return content[: found.start("value")] + value + content[found.end("value") :]

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the value; a file that is not understood any more stays as it is."""
        try:
            found = self._assignment(content)
        except RefusedError:
            return content
        value = without(found.group("value"), self.tokens)
        return content[: found.start("value")] + value + content[found.end("value") :]

    def _missing(self, found: re.Match[bytes]) -> tuple[str, ...]:
        return tokens.missing(self.tokens, words(found.group("value")))

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
        return replace(self, tokens=self._missing(self._assignment(base or b"")))

    def add(self, base: bytes | None) -> bytes:
        """Append the tokens to the value, at the cost of the padding."""
        content = base or b""
        found = self._assignment(content)
        wanted = self._missing(found)
        if not wanted:
            return content
        value = appended(found.group("value"), wanted)
        joined = content[: found.start("value")] + value + content[found.end("value") :].rstrip(b"#")
        if len(joined) > len(content):
            raise RefusedError("environment-full", f"there is no room for {' '.join(wanted)} in it")
        return joined.ljust(len(content), b"#")

    def remove(self, content: bytes) -> bytes | None:
        """Take the tokens out of the value; a block that is not understood any more stays as it is."""
        try:
            found = self._assignment(content)
        except RefusedError:
            return content
        value = without(found.group("value"), self.tokens)
        body = content[: found.start("value")] + value + content[found.end("value") :].rstrip(b"#")
        return body.ljust(len(content), b"#")

    def _missing(self, found: re.Match[bytes]) -> tuple[str, ...]:
        return tokens.missing(self.tokens, words(found.group("value")))

    def _assignment(self, content: bytes) -> re.Match[bytes]:
        pattern = rb"^" + self.name.encode() + rb"=(?P<value>[^\\\n]*)$"
        found = re.findall(pattern, content, re.MULTILINE)
        only = re.search(pattern, content, re.MULTILINE)
        if not content.startswith(b"# GRUB Environment Block\n") or len(found) != 1 or only is None:
            raise RefusedError(
                "no-environment", f"it is no environment block of GRUB in which {self.name} is set once"
            )
        return only
