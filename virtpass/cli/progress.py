"""What is being done, for how long already, and how long it may take: on standard error.

On a terminal it is one line, renewed in place; it stays, with the time that it took, if that was a second or
more. Elsewhere it is a line when something begins that takes long, and no other.

The clock is a timer of the kernel (SIGALRM), not a thread: locks are waited for in a child, and a process of
several threads should not fork. Python goes on with whatever system call the signal interrupts (PEP 475).
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from virtpass.system.errors import one_line
from virtpass.system.tasks import Task

# Seconds after which somebody who waits wants to know what for.
_PATIENCE = 1.0
# Twice a second, so that no second is left out.
_TICK = 0.5
# Columns of the text below which the limit is left out.
_LEAST_TEXT = 16
_ERASE = "\r\x1b[K"


class _Running:
    """A task that has begun."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.began = time.monotonic()
        self.is_told = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def is_due(self) -> bool:
        return self.task.is_long or self.seconds >= _PATIENCE


class Progress:
    """The tasks that run, the outermost first; nothing here raises because of a terminal that is gone."""

    def __init__(self) -> None:
        self._running: list[_Running] = []
        self._drawn = ""
        self._pauses = 0
        self._is_ticking = False
        # A line that is renewed; False where lines cannot be, or are not wanted.
        self.is_live = False

    @contextmanager
    def show(self, task: Task) -> Iterator[None]:
        """Show a task while a block of code lasts."""
        running = _Running(task)
        self._running.append(running)
        self._start()
        self._update()
        try:
            yield
        finally:
            self._running.remove(running)
            if not self._running:
                self.stop()
            self.erase()
            if running.is_told and self.is_live and running.seconds >= _PATIENCE:
                self._write(f"{one_line(task.text)}: {duration(running.seconds)}\n")
            self._update()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the line away while something else is printed."""
        self._pauses += 1
        try:
            self.erase()
            yield
        finally:
            self._pauses -= 1

    def erase(self) -> None:
        """Take the line off the terminal."""
        if self._drawn:
            self._drawn = ""
            self._write(_ERASE)

    def stop(self) -> None:
        """Stop the clock."""
        if self._is_ticking:
            self._is_ticking = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            # The first drops a signal that is on its way to another thread: it would end the process.
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _start(self) -> None:
        # Whoever has the timer already keeps it; then only what is known to take long is told.
        if self._is_ticking or signal.getsignal(signal.SIGALRM) is not signal.SIG_DFL:
            return
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGALRM, self._tick)
            self._is_ticking = True
            signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        self._update()

    def _update(self) -> None:
        due = [one for one in self._running if one.is_due]
        if self._pauses or not due:
            return
        if not self.is_live:
            for one in due:
                self._tell(one)
            return
        due[-1].is_told = True
        line = live_line(due[-1].task, due[-1].seconds, _columns())
        if line != self._drawn:
            self._drawn = line
            # One write: a terminal shows nothing in between.
            self._write(f"\r{line}\x1b[K")

    def _tell(self, one: _Running) -> None:
        if not one.is_told:
            one.is_told = True
            self._write(f"{one_line(one.task.text)}{_limit(one.task)}\n")

    def _write(self, text: str) -> None:
        # AttributeError: it was closed before we began.
        with suppress(OSError, ValueError, AttributeError):
            # Not through the stream's buffer: a tick may come while that is being written to.
            os.write(sys.stderr.fileno(), text.encode(sys.stderr.encoding, "replace"))


def live_line(task: Task, seconds: float, columns: int) -> str:
    """Return the line of a task, cut so that it never reaches the last column.

    Args:
        task: what is being done.
        seconds: for how long already.
        columns: how wide the terminal is.
    """
    room = max(columns - 1, 0)
    passed = f": {duration(seconds)}"
    end = passed + _limit(task)
    if room - len(end) < _LEAST_TEXT:
        end = passed
    return cut(cut(one_line(task.text), room - len(end)) + end, room)


def duration(seconds: float) -> str:
    """Return a time as people say it: 12 s, 1 min 5 s, 2 h."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    parts = [(hours, "h"), (minutes, "min"), (0 if hours else rest, "s")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def cut(text: str, columns: int) -> str:
    """Return ``text`` with an ellipsis in place of what does not fit; some characters take two columns."""
    if columns <= 0:
        return ""
    if width(text) <= columns:
        return text
    taken = used = 0
    while (after := used + width(text[taken])) <= columns - 1:
        used = after
        taken += 1
    return f"{text[:taken]}…"


def width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if character.isascii():
        return 1
    # Not at the top: few names need it.
    from unicodedata import combining, east_asian_width

    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _limit(task: Task) -> str:
    return "" if task.at_most is None else f" (at most {duration(task.at_most)})"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError, AttributeError):
        return 80
