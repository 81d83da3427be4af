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


# The reference of an error of the administrator's steps after which the record need not stay.
RELEASE_STEP = "release-step"


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
    stays: bool = False,
    tell: Tell = nobody,
) -> list[VirtpassError]:
    """Undo the effects of a journal, the last one first; each is tried even if another fails.

    Args:
        host: the host.
        journal: the record.
        stays: whether the record stays for another reason, such as a device that is not back.
        tell: is told of each: "undo", what, how many seconds it took, and what went wrong.

    Returns:
        what could not be undone.
    """
    wanted = list(reversed(journal.effects))
    problems: list[VirtpassError] = []
    if not wanted:
        return problems
    known = undoers()
    is_dark = False
    failed: set[str] = set()
    for kind, *fields in wanted:
        began = time.monotonic()
        count = len(problems)
        try:
            if kind not in known:
                raise FailedError("effect", f"'{kind}' on record is not known to this version")
            if kind == "unit" and is_dark and not fields[0].startswith("getty@"):
                raise FailedError("effect", f"{fields[0]} is not started: its display is not there")
            if kind == "steps":
                from virtpass.binding.steps import release

                release(host, tuple(fields), tell)
            else:
                known[kind](host, tuple(fields))
        except VirtpassError as error:
            is_dark = is_dark or kind == "display"
            problems.append(error)
        except Exception as error:  # whatever it is, the others have their turn
            what = one_line(f"{kind} {' '.join(fields)} cannot be undone: {error!r}")
            problems.append(FailedError("effect", what))
        if len(problems) > count:
            failed.add(_group(kind))
        problem = problems[-1].line if len(problems) > count else ""
        tell("undo", f"{kind} {' '.join(fields)}", time.monotonic() - began, problem)
    if problems or stays:
        # The record stays: what is undone must neither be undone once more nor count for other domains.
        try:
            journal.mark_undone([one for one in wanted if _group(one[0]) not in failed])
        except VirtpassError as error:
            problems.append(error)
    return problems


def _group(kind: str) -> str:
    """Return what kinds of one thing have in common, such as ``huge-pages`` and ``huge-pages-got``."""
    return kind.partition("-")[0]
