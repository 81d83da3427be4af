"""A terminal on which a command runs, and what somebody sees on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The first terminal that the leader of a session opens is the one from which it gets its Ctrl-C.
_START = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); sys.argv.pop(0); "
_COMMAND = "from virtpass.cli import main; sys.exit(main(sys.argv))"
_DEADLINE = 20.0
_PARTS = re.compile(
    r"\x1b\[(?P<number>[0-9;]*)(?P<action>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n])"
)


class Screen:
    """What a terminal shows: lines of a fixed width, without the colours.

    Attributes:
        has_wrapped: whether a line was longer than the terminal is wide.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.column = 0
        self.has_wrapped = False

    def feed(self, text: str) -> None:
        """Do what a terminal does with some output."""
        for part in _PARTS.finditer(text):
            if part["control"] == "\r":
                self.column = 0
            elif part["control"] == "\n":
                self.lines.append("")
            elif part["action"] == "K":
                self.lines[-1] = self.lines[-1][: self.column]
            elif part["action"] is None:
                self._put(part["text"])
            else:
                assert part["action"] == "m", f"unexpected {part[0]!r}"

    def _put(self, character: str) -> None:
        if self.column == self.columns:
            self.has_wrapped = True
            self.lines.append("")
            self.column = 0
        line = self.lines[-1].ljust(self.column)
        self.lines[-1] = line[: self.column] + character + line[self.column + 1 :]
        self.column += 1


class Session:
    """A command that runs on a terminal.

    Args:
        arguments: of virtpass; or a program's text after ``-c``.
        columns: how wide the terminal is.
        environment: what it has beside the search path.
    """

    def __init__(self, *arguments: str, columns: int = 80, environment: dict[str, str] | None = None) -> None:
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.screen = Screen(columns)
        self.raw = ""
        self.seen: list[str] = []
        self.settings = termios.tcgetattr(other)
        self._other = other
        code = arguments[1] if arguments[0] == "-c" else _COMMAND
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START + code, *([] if arguments[0] == "-c" else arguments)],
            stdin=other,
            stdout=other,
            stderr=other,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TERM": "xterm", **(environment or {})},
            start_new_session=True,
        )

    def read_until(self, is_enough: Callable[[], bool]) -> None:
        """Read what is shown until something holds."""
        end = time.monotonic() + _DEADLINE
        while not is_enough():
            assert time.monotonic() < end, f"not seen: {self.raw!r}"
            if not select.select([self._end], [], [], 0.05)[0]:
                continue
            text = os.read(self._end, 65536).decode()
            self.raw += text
            self.screen.feed(text)
            self.seen.append(self.screen.lines[-1])

    def shows(self, words: str) -> None:
        """Read until the last line has these words."""
        self.read_until(lambda: words in self.screen.lines[-1])

    def press(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def press_until_it_ends(self, key: bytes) -> None:
        """Press a key, and again where nothing comes of it within a second.

        A signal that reaches Python just before it reads a line is noticed when the next key is pressed.
        """
        pressed = -1.0

        def has_ended() -> bool:
            nonlocal pressed
            if self.process.poll() is not None:
                return True
            if time.monotonic() - pressed > 1:
                self.press(key)
                pressed = time.monotonic()
            return False

        self.read_until(has_ended)

    def end(self) -> int:
        """Read to the end; return the exit status."""
        self.read_until(lambda: self.process.poll() is not None)
        self.read_until(lambda: not select.select([self._end], [], [], 0)[0])
        # In order is a terminal whose settings are as they were.
        assert termios.tcgetattr(self._other) == self.settings
        os.close(self._other)
        os.close(self._end)
        return self.process.returncode
