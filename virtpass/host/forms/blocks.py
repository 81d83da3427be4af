"""Parts of virtpass that are whole: a file, or lines between two marks."""

from dataclasses import dataclass
from typing import ClassVar

from virtpass.system.errors import RefusedError

BEGIN = b"# BEGIN virtpass"
END = b"# END virtpass"
_NEWLINE_ADDED = b" (a line break was added before)"
_FILE_MADE = b" (the file was made for it)"


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
