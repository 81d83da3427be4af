"""What a hand-over changes beside drivers, and how each of it is undone.

An effect is a kind and the fields that it takes to undo it. It is on record before it happens
(`Journal.add`), so that undoing must work whether it happened or not, and twice. Records are read from a file
that only root can write; their fields are checked all the same where they become part of a path or a command.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import time

from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError, VirtpassError, one_line
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # Raises VirtpassError, OSError or ValueError when it cannot be undone now.
    Undo = Callable[[Host, tuple[str, ...]], None]
    # Is told what was done, to what, the seconds, and what went wrong and was said if anything.
    Tell = Callable[..., None]


# References of errors after which the record need not stay: a step of the administrator's has failed, which
# it would for ever; and what was changed is gone, or cannot be as it was any more.
RELEASE_STEP, GONE = "release-step", "gone"
FORGOTTEN = (RELEASE_STEP, GONE)
# Of an error that is none when a domain stops: what it stands for stays on record, should the host go on.
LEFT = "left"

# Where steps of the administrator's are. Here, because most domains do without the module that runs them.
STEPS_DIRECTORY = "/etc/virtpass/hooks.d"

# Seconds. A line in the log takes its time too, and a wait that is over sooner is not worth one.
NOTICED = 0.1

# Effects whose undo starts something, or waits for what does.
_STARTING = frozenset(("unit", "user-units", "display"))

# Effects on PCI devices themselves, whose undo accesses them.
_ON_DEVICES = frozenset(("attribute", "framebuffer"))

# How the kernel refuses what it will never do: what was changed has gone, or does not know the value any
# more.
_NEVER = frozenset((errno.EINVAL, errno.ENODEV, errno.ENOENT, errno.ENXIO))


# Undone effects in words, with the fields of the record by number, the first one left out, and all of them.
_WORDS = {
    "allowed-cpus": "let {2} use CPUs {1} again",
    "attribute": "set {0} back to {1}",
    "display": "wait for the display of {all}",
    "framebuffer": "bind {0} to {1} again",
    "governor": "set {1} back to governor {2}",
    "huge-pages": "take huge pages of {1} KiB back",
    "interrupt": "move interrupt {2} back to CPUs {3}",
    "module": "load {0} again",
    "steps": "run the administrator's steps for {0}",
    "steps-running": "wait until the step in {1}.d has ended that a killed hook has left",
    "unit": "start {0} again",
    "user-units": "start {rest} of {0} again",
}

# What only tells how far another effect went: there is nothing to undo, hence nothing to tell.
NOTES = frozenset(("huge-pages-back", "huge-pages-got", "huge-pages-home"))


def nobody(*_: object) -> None:
    """Ignore what is told."""


def tell_wait(tell: Tell, detail: str, began: float) -> None:
    """Tell of a wait that has ended, unless it was too short to be noticed.

    Args:
        tell: is told: "wait", for what, and how many seconds it took.
        detail: for what.
        began: when, on the monotonic clock.
    """
    seconds = time.monotonic() - began
    if seconds >= NOTICED:
        tell("wait", detail, seconds)


def gone(what: str, error: OSError) -> FailedError | OSError:
    """Return the error to raise when the kernel refuses to take something back.

    Args:
        what: what stays as it is, as the beginning of a sentence.
        error: how the kernel refused. As long as it does not answer, or is busy, another attempt may work.
    """
    if isinstance(error, NoAnswer) or error.errno not in _NEVER:
        return error
    return FailedError(GONE, f"{what}: {error.strerror}; it stays as it is")


def in_words(kind: str, fields: Sequence[str]) -> str:
    """Return what it is to undo an effect; kind and fields as they are where they are not known.

    Args:
        kind: the kind.
        fields: the effect's fields on record.
    """
    everything = " ".join(fields)
    try:
        return _WORDS[kind].format(*fields, rest=" ".join(fields[1:]), all=everything)
    except LookupError:
        return f"{kind} {everything}"


def undoer(kind: str, tell: Tell = nobody) -> Undo | None:
    """Return how effects of a kind are undone; None for a kind that is not known.

    Args:
        kind: the kind.
        tell: is told of the programs that run for it.
    """
    # Not at the top, and not all of them: a stop waits for what it loads, and most have kept devices awake
    # and done nothing else.
    if kind == "attribute":
        from virtpass.binding import attributes

        return attributes.UNDO[kind]
    if _group(kind) == "steps":
        from virtpass.binding import steps

        return steps.undoer(kind, tell)
    from virtpass.binding import audio, display, framebuffers, nvidia, tuning

    known: dict[str, Undo] = {
        **audio.UNDO,
        **display.UNDO,
        **framebuffers.UNDO,
        **nvidia.UNDO,
        **tuning.UNDO,
    }
    return known.get(kind)


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
    # systemd refuses to start anything then, or stops it at once.
    asleep, may_go_on = frozenset[str](), False
    if any(kind in _STARTING for kind, *_ in wanted):
        from virtpass.binding import services

        if services.host_is_stopping(host) or (may_go_on := services.host_is_about_to_stop(host)):
            asleep = _STARTING
    # Where no display tells: the driver is not back, of which they are services.
    is_dark = stays and all(kind != "display" for kind, *_ in wanted)
    failed: set[str] = set()
    untouched: list[tuple[str, ...]] = []
    for kind, *fields in wanted:
        began = time.monotonic()
        count = len(problems)
        words = in_words(kind, fields)
        if kind in asleep:
            tell("undo", f"{words}: left, the host shuts down", 0.0)
            if may_go_on:
                untouched.append((kind, *fields))
            continue
        try:
            if _is_of_stuck_device(host, kind, fields):
                # Any access would wait for the driver that hangs. That the device is not back has been told.
                untouched.append((kind, *fields))
                tell("undo", f"{words}: left, a driver hangs with the device", 0.0)
                continue
            undo_one = undoer(kind, tell)
            if undo_one is None:
                raise FailedError(
                    "effect",
                    f"'{kind}' on record is not known to this version of virtpass",
                    "install the newer one again that wrote it, then run virtpass recover",
                )
            if kind == "unit" and is_dark and not fields[0].startswith("getty@"):
                raise FailedError("effect", f"{fields[0]} is not started: its display is not there")
            undo_one(host, tuple(fields))
        except VirtpassError as error:
            is_dark = is_dark or kind == "display"
            problems.append(error)
        except Exception as error:  # whatever it is, the others have their turn
            what = one_line(f"cannot {words}: {error!r}")
            problems.append(FailedError("effect", what))
        if len(problems) > count and problems[-1].reference != GONE:
            failed.add(_group(kind))
        problem = problems[-1].line if len(problems) > count else ""
        if problem or kind not in NOTES:
            tell("undo", words, time.monotonic() - began, problem)
    if may_go_on:
        what = "what the hand-over has stopped is not started, because the host is about to shut down"
        problems.append(FailedError(LEFT, what, "if it does not, run virtpass recover"))
    if problems or stays:
        # The record stays: what is undone must neither be undone once more nor count for other domains.
        try:
            journal.mark_undone(
                [one for one in wanted if _group(one[0]) not in failed and one not in untouched]
            )
        except VirtpassError as error:
            problems.append(error)
    return problems


def _is_of_stuck_device(host: Host, kind: str, fields: list[str]) -> bool:
    """Tell whether an effect is one on a PCI device whose driver hangs.

    Raises:
        VirtpassError: it cannot be told.
    """
    from virtpass.binding import engine
    from virtpass.pci import sysfs

    # A path of an attribute, or a field that is an address: both name the device between slashes.
    words = [word for field in fields for word in field.split("/")] if kind in _ON_DEVICES else []
    return any(engine.is_stuck(host, address) for address in sysfs.parsed(words))


def _group(kind: str) -> str:
    """Return what kinds of one thing have in common, such as ``huge-pages`` and ``huge-pages-got``."""
    return kind.partition("-")[0]
