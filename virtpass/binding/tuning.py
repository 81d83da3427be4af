"""Tunes the host for a domain that is about to start, as its policy says, and undoes it afterwards.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.binding import governors, interrupts, isolation
from virtpass.binding import huge_pages as pages
from virtpass.binding.demand import Demand
from virtpass.binding.journal import Journal
from virtpass.system.host import Host


class Plan:
    """What is to be changed for one domain; made without a write.

    Attributes:
        huge_pages: additions to pools of huge pages.
        isolation: CPUs to be kept free; None for none.
        interrupts: interrupts to be moved off these; None for none.
        governor: governors to be set; None for none.
    """

    def __init__(self) -> None:
        self.huge_pages: list[pages.Addition] = []
        self.isolation: isolation.Isolation | None = None
        self.interrupts: interrupts.Moves | None = None
        self.governor: governors.Change | None = None

    @property
    def sentences(self) -> list[str]:
        """What is to be done, for people."""
        return [sentence for sentence, _ in self.bounded_sentences]

    @property
    def bounded_sentences(self) -> list[tuple[str, float]]:
        """The same, with the seconds after which each is given up."""
        found = [(str(one), pages.bound(one)) for one in self.huge_pages]
        if self.isolation is not None:
            found.append((str(self.isolation), isolation.BOUND))
        if self.interrupts is not None and self.interrupts.interrupts:
            found.append((str(self.interrupts), interrupts.BOUND))
        if self.governor is not None:
            found.append((self.governor.sentence, governors.BOUND))
        return found


def plan(
    host: Host, uuid: str, demand: Demand, *, huge_pages: bool, isolate_cpus: bool, governor: str
) -> Plan:
    """Work out what a domain's policy asks for, and check everything that can be checked without a write.

    Args:
        host: the host.
        uuid: the domain's UUID.
        demand: what its XML says.
        huge_pages: whether huge pages are to be reserved for it.
        isolate_cpus: whether its pinned CPUs are to be kept free.
        governor: ``performance``, or ``keep``.

    Raises:
        RefusedError: the host or the domain's XML does not allow it.
        UsageError: the XML is not understood where it matters.
    """
    made = Plan()
    asks = huge_pages or isolate_cpus or governor == governors.PERFORMANCE
    if asks and demand.problem is not None:
        raise demand.problem
    if huge_pages:
        made.huge_pages = pages.plan(host, uuid, demand)
    if isolate_cpus:
        made.isolation = isolation.plan(host, uuid, demand)
        made.interrupts = interrupts.plan(host, uuid, made.isolation.cpus)
    if governor == governors.PERFORMANCE:
        made.governor = governors.plan(host, uuid, demand)
    return made


def take(host: Host, journal: Journal, made: Plan) -> list[str]:
    """Carry a plan out, each part recorded first; whoever calls it undoes the journal's effects on an error.

    Returns:
        sentences of what was done, for the log.

    Raises:
        VirtpassError: a part failed.
    """
    done: list[str] = []
    # What fails most easily comes first.
    if made.huge_pages:
        done += pages.take(host, journal, made.huge_pages)
    if made.isolation is not None:
        done += isolation.take(host, journal, made.isolation)
    if made.interrupts is not None:
        done += interrupts.take(host, journal, made.interrupts)
    if made.governor is not None:
        done += governors.take(host, journal, made.governor)
    return done


UNDO = {**pages.UNDO, **isolation.UNDO, **interrupts.UNDO, **governors.UNDO}
