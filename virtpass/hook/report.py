"""What the hook tells the system's log: one line for each step of a hand-over, and one for the whole.

Each line is a list of ``key=value``. A value that has anything but plain printable characters is written as a
JSON string, so that whatever a domain is called neither ends the value nor the line. Keys, in this order:

    event, domain, uuid      what libvirt asked for, and for whom
    id                       the same in all lines of one hand-over
    step, detail             what was done to what; only ``detail`` in the last line, which is about the whole
    ms                       how long it took
    outcome                  done or failed
    problem, output          where there is any: what went wrong, and what a program said
    steps                    in the last line: how many lines came before it

`virtpass.operations.hand_overs` reads them. A line is sent as soon as its step has ended: it costs some
microseconds, and whatever stops the hook then leaves what happened before. Nobody waits for the log: where it
does not take a line at once, the line is lost, and not the domain's start.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import _socket
import os
import time

from virtpass.binding.effects import NOTICED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

IDENTIFIER = "virtpass-hook"
LOG = "/dev/log"
# Priorities within the facility of daemons.
ERROR, INFO = 3, 6
_DAEMON = 3 << 3
DONE, FAILED = "done", "failed"

# Characters of one value. Some system loggers cut off lines of more than 8 KiB.
LONGEST = 1000

# What a value may not have to be written as it is.
_SPECIAL = frozenset(' "=\\')


class Report:
    """What is told of one hand-over.

    Args:
        event: ``prepare`` or ``release``.
        domain: the domain's name, as far as it is known.
        uuid: its UUID, as far as it is known.
        began: when it began, on the monotonic clock; None for now.

    Attributes:
        domain, uuid: may be set when they are known.
        is_open: whether something was told, but not yet of the whole.
    """

    def __init__(self, event: str, domain: str = "", uuid: str = "", began: float | None = None) -> None:
        self.event = event
        self.domain = domain
        self.uuid = uuid
        self.is_open = False
        self._id = os.urandom(4).hex()
        self._began = time.monotonic() if began is None else began
        self._count = 0
        self._start = 0.0

    def started(self) -> None:
        """Note that the hand-over itself begins: the time until now is told with the first line after it.

        Not at once: where nothing is to be done, nothing is told.
        """
        self._start = time.monotonic() - self._began

    def step(self, name: str, detail: str = "", *, is_brief: bool = False) -> Step:
        """Return a context whose duration is told as that of a step; an error in it as its failure.

        Args:
            name: what is done: one word.
            detail: to what; may be empty.
            is_brief: whether it is over at once as a rule: then it is told only if it was not, or failed.
        """
        return Step(self, name, detail, is_brief)

    def done(self, name: str, detail: str, seconds: float, problem: str = "", output: str = "") -> None:
        """Tell of a step that has ended.

        Args:
            name: what was done: one word.
            detail: to what; may be empty.
            seconds: how long it took.
            problem: what went wrong; empty when nothing did.
            output: what a program said; the end of it is told.
        """
        self._tell_start()
        self._count += 1
        self.is_open = True
        self._send([("step", name), ("detail", detail)], seconds, problem, [("output", output[-LONGEST:])])

    def finish(self, detail: str = "", problem: str = "") -> None:
        """Tell of the whole.

        Args:
            detail: what was done.
            problem: why it failed; empty when it did not.
        """
        self._tell_start()
        self.is_open = False
        seconds = time.monotonic() - self._began
        self._send([("detail", detail)], seconds, problem, [("steps", str(self._count))])

    def _tell_start(self) -> None:
        seconds, self._start = self._start, 0.0
        if seconds >= NOTICED:
            self.done("start", "the hook itself", seconds)

    def _send(
        self, head: list[tuple[str, str]], seconds: float, problem: str, tail: list[tuple[str, str]]
    ) -> None:
        fields = [
            ("event", self.event),
            ("domain", self.domain),
            ("uuid", self.uuid),
            ("id", self._id),
            *head,
        ]
        fields += [("ms", f"{seconds * 1000:.0f}"), ("outcome", FAILED if problem else DONE)]
        fields += [("problem", problem), *tail]
        text = " ".join(f"{key}={_written(value)}" for key, value in fields if value)
        send(ERROR if problem else INFO, text)


class Step:
    """The time in which a step is made.

    Attributes:
        detail: to what; may be set anew when that is known better.
    """

    def __init__(self, report: Report, name: str, detail: str, is_brief: bool) -> None:
        self._report = report
        self._name = name
        self.detail = detail
        self._is_brief = is_brief
        self._began = 0.0

    def __enter__(self) -> Step:
        """Begin."""
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell how long it took and what went wrong; the error goes on."""
        problem = "" if error is None else str(error) or type(error).__name__
        seconds = time.monotonic() - self._began
        if problem or not self._is_brief or seconds >= NOTICED:
            self._report.done(self._name, self.detail, seconds, problem)


def send(priority: int, text: str) -> None:
    """Send a line to the system's log, or drop it: what waits for a log that is full waits for ever."""
    # Not the module syslog: it waits.
    moment = time.strftime("%b %e %H:%M:%S")
    line = f"<{_DAEMON | priority}>{moment} {IDENTIFIER}[{os.getpid()}]: {text}"
    try:
        log = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        try:
            log.sendto(line.encode(), LOG)
        finally:
            log.close()
    except (OSError, ValueError):
        pass  # a hand-over does not depend on the log


def _written(value: str) -> str:
    if len(value) > LONGEST:
        value = f"{value[: LONGEST - 1]}…"
    if value.isprintable() and _SPECIAL.isdisjoint(value):
        return value
    return f'"{"".join(map(_escaped, value))}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    code = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{code[at : at + 4]}" for at in range(0, len(code), 4))
