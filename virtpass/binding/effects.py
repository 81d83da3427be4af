"""What a hand-over changes beside drivers, and how each of it is undone.

An effect is a kind and the fields that it takes to undo it. It is on record before it happens
(`Journal.add`), so that undoing must work whether it happened or not, and twice. Records are read from a file
that only root can write; their fields are checked all the same where they become part of a path or a command.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError, VirtpassError, one_line
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Raises VirtpassError, OSError or ValueError when it cannot be undone now.
    Undo = Callable[[Host, tuple[str, ...]], None]
    # Is told what was done, to what, the seconds, and what went wrong and was said if anything.
    Tell = Callable[..., None]


# What has nothing to do with whether the devices are back.
INDEPENDENT = frozenset(("huge-pages", "allowed-cpus", "interrupt", "governor"))


def nobody(*_: object) -> None:
    """Ignore what is told."""


def undoers() -> dict[str, Undo]:
    """Return by kind how effects are undone."""
    # Not at the top: a domain without any effect must not wait for these modules.
    from virtpass.binding import attributes, display, nvidia, steps, tuning

    return {**attributes.UNDO, **display.UNDO, **nvidia.UNDO, **steps.UNDO, **tuning.UNDO}


def undo(
    host: Host,
    journal: Journal,
    *,
    only: frozenset[str] | None = None,
    tell: Tell = nobody,
) -> list[VirtpassError]:
    """Undo the effects of a journal, the last one first; each is tried even if another fails.

    Args:
        host: the host.
        journal: the record.
        only: kinds to undo; None for all.
        tell: is told of each: "undo", what, how many seconds it took, and what went wrong.

    Returns:
        what could not be undone.
    """
    wanted = [one for one in reversed(journal.effects) if only is None or one[0] in only]
    problems: list[VirtpassError] = []
    if not wanted:
        return problems
    known = undoers()
    is_dark = False
    for kind, *fields in wanted:
        began = time.monotonic()
        count = len(problems)
        try:
            if kind not in known:
                raise FailedError("effect", f"'{kind}' on record is not known to this version")
            if kind == "unit" and is_dark:
                raise FailedError("effect", f"{fields[0]} is not started: its display is not there")
            if kind == "steps":
                from virtpass.binding.steps import release

                release(host, tuple(fields), tell)
            else:
                known[kind](host, tuple(fields))
        except VirtpassError as error:
            is_dark = is_dark or kind == "display"
            problems.append(error)
        except (OSError, ValueError) as error:
            what = one_line(f"{kind} {' '.join(fields)} cannot be undone: {error}")
            problems.append(FailedError("effect", what))
        problem = problems[-1].line if len(problems) > count else ""
        tell("undo", f"{kind} {' '.join(fields)}", time.monotonic() - began, problem)
    return problems
