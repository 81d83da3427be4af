"""Signals that end a session: obeyed where that is safe, kept waiting where it is not."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Whether a signal has come, and whether it is obeyed at once."""

    def __init__(self) -> None:
        self._has_come = False
        self._is_heard = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Let a signal interrupt what is done in the block; one that waits does so at once.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        self._is_heard = True
        try:
            if self._has_come:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_heard = False

    def come(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        self._has_come = True
        if self._is_heard:
            # Once: a second one would cut the way back off.
            self._is_heard = False
            raise KeyboardInterrupt

    def dismiss(self) -> None:
        """Forget a signal that came too late to stop anything."""
        self._has_come = False

    def deliver(self) -> None:
        """Obey a signal that waits.

        Raises:
            KeyboardInterrupt: one does.
        """
        if self._has_come:
            raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[Interrupts]:
    """Keep signals waiting while the block runs, outside of its `Interrupts.heard`.

    Raises:
        KeyboardInterrupt: at the end of the block, if one still waits.
    """
    interrupts = Interrupts()
    # Python lets only the main thread have handlers; in others nobody interrupts.
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    try:
        for number, handler in before.items():
            # nohup has switched a signal off.
            if handler is not signal.SIG_IGN:
                signal.signal(number, interrupts.come)
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    interrupts.deliver()
