"""What takes a while, told to whoever shows it: the command line.

Waits are at every depth: a lock, the libvirt daemon, a program of the distribution. An argument for whoever
is told would go through each function above them. The hook tells nobody: none of its modules imports this.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """Something that is being done.

    Attributes:
        text: what, such as "running update-grub"; no full stop.
        at_most: seconds after which it is given up; None where nobody counts.
        is_long: whether it is known to take long; any other is worth a word only once it has.
    """

    text: str
    at_most: float | None = None
    is_long: bool = False


Show = Callable[[Task], AbstractContextManager[None]]


def _nobody(_: Task) -> AbstractContextManager[None]:
    return nullcontext()


# Of one thread, so that what others do in theirs is not shown in between.
_show: ContextVar[Show] = ContextVar("show", default=_nobody)


def under_way(
    text: str, at_most: float | None = None, *, is_long: bool = False
) -> AbstractContextManager[None]:
    """Tell what is being done for as long as a block of code lasts; arguments as of `Task`."""
    return _show.get()(Task(text, at_most, is_long))


@contextmanager
def shown_by(show: Show) -> Iterator[None]:
    """Let tasks of this thread be shown while a block of code lasts.

    Args:
        show: called when a task begins; what it returns is left when the task ends. It raises nothing: that
            would cut off what is being done.
    """
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)
