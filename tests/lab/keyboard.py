"""The machine's own keyboard, and the text on its console: somebody who sits in front of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from .machine import Machine

# QEMU's names of keys, of an American keyboard, where they are not the character itself.
KEYS = {
    " ": ("spc",),
    "-": ("minus",),
    "=": ("equal",),
    ".": ("dot",),
    "/": ("slash",),
    ":": ("shift", "semicolon"),
    "\n": ("ret",),
}
PROMPT = "root@lab:~#"
# A keyboard holds 16 bytes that the kernel has not fetched yet; more are lost.
SECONDS_PER_KEY = 0.08


class Console:
    """The first virtual terminal of a machine: what it shows, and its keyboard."""

    def __init__(self, machine: Machine) -> None:
        """Sit down in front of `machine`."""
        self._machine = machine

    def text(self) -> str:
        """Return what is on the terminal, whether the monitor shows it or not."""
        # Linux, vcs(4): lines, columns, place of the cursor, then a character and its colour each.
        content = self._machine.get("/dev/vcsa1")
        lines, columns = content[0], content[1]
        characters = content[4::2].decode("cp437")
        rows = (characters[row * columns : (row + 1) * columns].rstrip() for row in range(lines))
        return "\n".join(rows).rstrip()

    def wait_for(self, text: str, timeout: float = 60) -> None:
        """Wait until the terminal shows `text`. Raises AssertionError with what it shows."""
        self._wait(lambda: text in self.text(), f"the console shows {text!r}", timeout)

    def clear(self) -> None:
        """Leave nothing but the prompt of root's shell. Raises AssertionError with what is there."""
        self.command("clear")
        self._wait(lambda: self.text() == PROMPT, "the console is empty")

    def command(self, line: str) -> None:
        """Type `line` as soon as root's shell is ready for it. Raises AssertionError with what is there."""
        self._wait(lambda: self.text().endswith(PROMPT), f"the shell is ready for {line!r}")
        self.type(line)

    def type(self, line: str) -> None:
        """Type `line`, look whether it has arrived, and press Enter. Raises AssertionError with what has."""
        self._press(line)
        self._wait(lambda: self.text().endswith(line), f"{line!r} is typed")
        self._press("\n")

    def _wait(self, condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
        try:
            self._machine.wait_until(condition, what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; there is:\n{self.text()}") from None

    def _press(self, characters: str) -> None:
        for character in characters:
            keys = [{"type": "qcode", "data": key} for key in KEYS.get(character, (character,))]
            self._machine.qmp("send-key", keys=keys, hold_time=30)
            time.sleep(SECONDS_PER_KEY)
