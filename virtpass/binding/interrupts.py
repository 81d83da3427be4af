"""Moves interrupts off CPUs that a domain has for itself, and back.

As with programs (`virtpass.binding.isolation`), a record holds the affinity before the first domain, and the
present one follows from it and from the CPUs of all domains on record.

Record (fields after the kind):

    interrupt UUID CPUS NUMBER BASE WANTED    affinities before the first domain, and for this one

Imported by the hook: the imports here are on its allow-list.
"""

import time

from virtpass.binding.cpu_lists import parse_list, render_list
from virtpass.binding.effects import gone
from virtpass.binding.journal import Journal, is_uuid, read_journal
from virtpass.binding.others import effects_of_others, isolated_by_others
from virtpass.binding.processors import is_union, processors
from virtpass.system.errors import FailedError, UsageError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

INTERRUPT = "interrupt"

_INTERRUPTS = "/proc/irq"
_DEADLINE = 10.0
# Seconds for all interrupts of a domain.
BOUND = 30.0


class Moves:
    """What is to be moved.

    Attributes:
        cpus: the CPUs that interrupts leave.
        interrupts: for each interrupt its base and its new affinity.
    """

    def __init__(self, cpus: frozenset[int], interrupts: dict[str, tuple[str, frozenset[int]]]) -> None:
        self.cpus = cpus
        self.interrupts = interrupts

    def __str__(self) -> str:
        """A sentence for people."""
        count = len(self.interrupts)
        many = f"{count} interrupt{'s' if count != 1 else ''}"
        return f"move {many} off CPUs {render_list(self.cpus)}"


def plan(host: Host, uuid: str, cpus: frozenset[int]) -> Moves:
    """Work out which interrupts to move off a domain's CPUs, and to where; writes nothing."""
    records = [fields for _, fields in effects_of_others(host, uuid, INTERRUPT, 5)]
    elsewhere = processors(host, "online").difference(cpus, *isolated_by_others(host, uuid))
    interrupts = {}
    for number in host.names(_INTERRUPTS):
        present = _affinity(host, number)
        if present is None or not present & cpus:
            continue
        base = render_list(present)
        for fields in records:
            if fields[2] == number and _may_be(present, _shared(records, number, fields[3])):
                base = fields[3]
        taken = [parse_list(fields[1]) for fields in _shared(records, number, base)]
        interrupts[number] = (base, parse_list(base).difference(cpus, *taken) or elsewhere)
    return Moves(cpus, interrupts)


def take(host: Host, journal: Journal, moves: Moves) -> list[str]:
    """Move interrupts, recorded first; those that the kernel does not let go stay.

    Returns:
        a sentence of what was done.

    Raises:
        FailedError: the kernel did not answer, or there was no time for all.
        VirtpassError: it could not be recorded.
    """
    if not moves.interrupts:
        return []
    cpus = render_list(moves.cpus)
    journal.add(
        *(
            (INTERRUPT, journal.uuid, cpus, number, base, render_list(wanted))
            for number, (base, wanted) in moves.interrupts.items()
        )
    )
    staying = 0
    end = time.monotonic() + BOUND
    for number, (_, wanted) in moves.interrupts.items():
        left = end - time.monotonic()
        if left <= 0:
            # A write without time to answer would be made, and pass for one that hangs.
            what = f"interrupt {number} is not moved: the others have taken {BOUND:.0f} s"
            raise FailedError("interrupt", what)
        try:
            host.write_attribute(_path(number), render_list(wanted), min(_DEADLINE, left))
        except NoAnswer as error:
            raise FailedError("interrupt", f"interrupt {number} cannot be moved: no answer") from error
        except OSError:
            # The timer, and those that the kernel spreads itself: EIO, in later kernels EPERM.
            staying += 1
    return [f"{moves}, {staying} of which cannot be moved" if staying else str(moves)]


def move_back(host: Host, fields: tuple[str, ...]) -> None:
    """Give an interrupt its affinity again, unless it has gone or somebody else has set it since.

    Raises:
        OSError: the kernel refused.
        FailedError: its reference is `GONE`: the CPUs are, or the interrupt does not move any more.
        ValueError: the record is none.
        VirtpassError: where it goes could not be recorded for another domain.
    """
    uuid, cpus, number, base, _ = fields
    if not (_is_number(number) and is_uuid(uuid) and base):
        raise ValueError("not an interrupt")
    present = _affinity(host, number)
    # Where it may go to a CPU of the domain, it has never left, or is back.
    if present is None or present & parse_list(cpus):
        return
    others = _shared([known for _, known in effects_of_others(host, uuid, INTERRUPT, 5)], number, base)
    if not _may_be(present, [*others, fields]):
        return
    taken = frozenset().union(*(parse_list(known[1]) for known in others))
    target = parse_list(base) - taken
    if not target:
        # It is elsewhere for others alone now; the record of one of them has to tell where.
        target = processors(host, "online").difference(*isolated_by_others(host, uuid))
        journal = read_journal(host, others[0][0])
        if journal is not None and not _may_be(target, others):
            journal.add((INTERRUPT, *others[0][:4], render_list(target)))
    if present != target:
        try:
            host.write_attribute(_path(number), render_list(target), _DEADLINE)
        except OSError as error:
            raise gone(f"interrupt {number} cannot go to CPUs {render_list(target)} again", error) from error


UNDO = {INTERRUPT: move_back}


def _shared(records: list[tuple[str, ...]], number: str, base: str) -> list[tuple[str, ...]]:
    """Return the records of domains that found an interrupt alike."""
    return [fields for fields in records if fields[2:4] == (number, base)]


def _may_be(affinity: frozenset[int], records: list[tuple[str, ...]]) -> bool:
    """Tell whether an interrupt may have an affinity while the domains of some records come and go."""
    if any(affinity == parse_list(fields[4]) for fields in records):
        return True
    base = parse_list(records[0][3])
    return affinity <= base and is_union(
        base - affinity, [parse_list(fields[1]) & base for fields in records]
    )


def _affinity(host: Host, number: str) -> frozenset[int] | None:
    text = host.read(_path(number)) if _is_number(number) else None
    try:
        return parse_list(text) if text else None
    except UsageError:
        return None


def _path(number: str) -> str:
    return f"{_INTERRUPTS}/{number}/smp_affinity_list"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
