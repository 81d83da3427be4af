"""Huge pages for a domain's memory: what the host's free ones lack is added, and taken back exactly.

Counts are those of persistent pages: pages in use beyond these are the kernel's surplus, which it frees when
they go out of use (Documentation/admin-guide/mm/hugetlbpage.rst). So taking pages back harms nobody: what
somebody else uses by then becomes surplus.

Records (fields after the kind; a node ``-`` is the pool of the whole host):

    huge-pages UUID SIZE NODE OLD NEW NEEDED USED    the pool before and after; the share of the
                                                     domain; pages in use before
    huge-pages-got UUID SIZE NODE COUNT              the pool as the kernel left it
    huge-pages-back UUID SIZE NODE COUNT             giving back begins, with that many in the pool
    huge-pages-home UUID SIZE NODE                   it is done

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os

from virtpass.binding.demand import Demand
from virtpass.binding.journal import Journal, is_uuid, journals, read_journal
from virtpass.binding.others import effects_of_others
from virtpass.binding.pools import (
    Pool,
    count_of,
    default_size,
    meminfo,
    page_sizes,
    persistent,
    recorded_pool,
)
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.host import Host

HUGE_PAGES = "huge-pages"
_GOT, _BACK, _HOME = "huge-pages-got", "huge-pages-back", "huge-pages-home"

_COMPACT = "/proc/sys/vm/compact_memory"
# The kernel may have to move memory about for each page.
DEADLINE = 60.0


class Addition:
    """What one pool has to get.

    Attributes:
        pool: the pool.
        old: persistent pages in it.
        needed: pages that the domain takes from it.
        used: pages in use.
        lacking: how many of the needed ones are not free.
        surplus: pages in use beyond the persistent ones.
    """

    def __init__(self, pool: Pool, total: int, surplus: int, free: int) -> None:
        self.pool = pool
        self.old = total - surplus
        self.needed = 0
        self.used = total - free
        self.lacking = 0
        self.surplus = surplus

    @property
    def new(self) -> int:
        """Persistent pages that the pool is to have: a growing pool takes the surplus in first."""
        return self.old + self.surplus + self.lacking if self.lacking else self.old

    def __str__(self) -> str:
        """A sentence for people."""
        mib = self.needed * self.pool.size >> 10
        return f"reserve {self.needed} huge pages of {self.pool} ({mib} MiB; {self.lacking} to be added)"


def plan(host: Host, uuid: str, demand: Demand) -> list[Addition]:
    """Work out which pools need how many pages; writes nothing.

    Raises:
        RefusedError: the domain asks for no huge pages, or the host cannot have them.
    """
    if not demand.has_huge_pages:
        raise RefusedError(
            "no-huge-pages",
            "the policy huge-pages=yes needs a domain whose memory is of huge pages",
            "add <memoryBacking><hugepages/></memoryBacking> to the domain, or set huge-pages=no",
        )
    needs = _needs(host, demand)
    additions: dict[Pool, Addition] = {}
    # Free pages of nodes are free pages of the host too: those that must come from a node go first.
    for size, nodes, count in sorted(needs, key=lambda need: need[1] is None):
        pools = [Pool(size, None)] if nodes is None else [Pool(size, node) for node in sorted(nodes)]
        shares = _shares(host, uuid, pools, count, additions)
        for pool, (free, lacking) in shares.items():
            if free + lacking == 0:
                continue
            addition = additions.get(pool)
            if addition is None:
                counts = (count_of(host, pool, name) for name in ("nr", "surplus", "free"))
                addition = additions[pool] = Addition(pool, *counts)
            addition.needed += free + lacking
            addition.lacking += lacking
    _refuse_too_much(host, list(additions.values()))
    return list(additions.values())


def bound(addition: Addition) -> float:
    """Return the seconds after which an addition is given up: a write, compaction, and a write again."""
    return 3 * DEADLINE if addition.lacking else 0.0


def take(host: Host, journal: Journal, additions: list[Addition]) -> list[str]:
    """Add pages, recorded first; what cannot be added is refused, and given back by the undo.

    Returns:
        sentences of what was done.

    Raises:
        RefusedError: the kernel found fewer.
        VirtpassError: it could not be recorded.
    """
    for size in {one.pool.size for one in additions}:
        _settle(host, size)
    # Shares without addition are recorded too: they are promised until the domain has them in use.
    journal.add(
        *(
            (HUGE_PAGES, journal.uuid, *one.pool.fields, *map(str, (one.old, one.new, one.needed, one.used)))
            for one in additions
        )
    )
    is_compacted = False
    for one in additions:
        if not one.lacking:
            continue
        _write(host, one)
        if persistent(host, one.pool) < one.new and not is_compacted:
            is_compacted = True
            _compact(host)
            _write(host, one)
        got = persistent(host, one.pool)
        journal.add((_GOT, journal.uuid, *one.pool.fields, str(got)))
        if got < one.new:
            size = one.pool.size
            had = max(one.needed - (one.new - got), 0)
            raise RefusedError(
                "huge-pages",
                f"huge pages of {one.pool}: needs {one.needed * size >> 10} MiB, got {had * size >> 10} MiB",
                "free memory, or reserve at boot (kernel arguments hugepagesz= and hugepages=)",
            )
    return [str(one) for one in additions]


def give_back(host: Host, fields: tuple[str, ...]) -> None:
    """Take back what was added to a pool, whatever others have added or taken meanwhile; once.

    Raises:
        OSError: the kernel refused.
        ValueError: the record is none.
        VirtpassError: that it begins could not be recorded; doing it unrecorded might do it twice.
    """
    uuid, size, node, old, new, *_ = fields
    pool = recorded_pool(size, node)
    low, high = int(old), int(new)
    if not is_uuid(uuid):
        raise ValueError("not a domain's UUID")
    if not host.exists(pool.path) or high <= low:
        return
    _settle(host, pool.size)
    journal = read_journal(host, uuid)
    known = {
        kind: rest
        for kind, *rest in (journal.effects if journal else ())
        if kind in (_GOT, _BACK, _HOME) and rest[1:3] == [size, node]
    }
    present = persistent(host, pool)
    if _HOME in known or (_BACK in known and int(known[_BACK][3]) != present):
        return
    added = min(int(known[_GOT][3]), high) - low if _GOT in known else 0
    if journal is None or added <= 0:
        return
    if _BACK not in known:
        journal.add((_BACK, uuid, size, node, str(present)))
    host.write_attribute(f"{pool.path}/nr_hugepages", str(max(present - added, 0)), DEADLINE)
    try:
        journal.add((_HOME, uuid, size, node))
    except (VirtpassError, OSError):
        # The pool itself tells almost as well, and all is back.
        pass


def _settle(host: Host, size: int) -> None:
    """Put on record what the kernel added where a hook was cut off before it could say so.

    Whoever changes pools does so first: the pool tells only as long as nobody has changed it since.
    """
    for uuid in journals(host):
        try:
            journal = read_journal(host, uuid)
        except VirtpassError:
            continue
        told = [fields[2:4] for fields in journal.effects if fields[0] == _GOT] if journal else []
        for kind, *fields in journal.effects if journal else ():
            if journal is None or kind != HUGE_PAGES or fields[1] != str(size) or tuple(fields[1:3]) in told:
                continue
            present = persistent(host, recorded_pool(fields[1], fields[2]))
            got = min(max(present, int(fields[3])), int(fields[4]))
            journal.add((_GOT, uuid, fields[1], fields[2], str(got)))


def _nothing(_host: Host, _fields: tuple[str, ...]) -> None:
    """What only tells how far another effect went needs no undo of its own."""


UNDO = {HUGE_PAGES: give_back, _GOT: _nothing, _BACK: _nothing, _HOME: _nothing}


def _needs(host: Host, demand: Demand) -> list[tuple[int, frozenset[int] | None, int]]:
    """Return page size, NUMA nodes of the host and number of pages for each part of the memory."""
    default = default_size(host)
    sizes = page_sizes(host)
    cells: list[tuple[int | None, int]] = [*demand.cells.items()] or [(None, demand.memory)]
    needs: list[tuple[int, frozenset[int] | None, int]] = []
    for cell, memory in cells:
        size = _page_size(demand, cell, default)
        if size is None or size << 10 == os.sysconf("SC_PAGE_SIZE"):
            continue
        if size not in sizes:
            known = ", ".join(f"{one} KiB" for one in sizes) or "none"
            raise RefusedError(
                "huge-page-size", f"this host has no huge pages of {size} KiB", f"its sizes: {known}"
            )
        nodes = demand.host_nodes if cell is None else demand.cell_nodes.get(cell, demand.host_nodes)
        for node in sorted(nodes or ()):
            if not host.exists(Pool(size, node).path):
                raise RefusedError("numa-node", f"this host has no NUMA node {node} with huge pages")
        needs.append((size, nodes, -(-memory // size)))
    return needs


def _page_size(demand: Demand, cell: int | None, default: int) -> int | None:
    """Return the page size in KiB of a guest's NUMA node; None where it has ordinary memory."""
    if not demand.pages:
        return default
    for size, nodes in demand.pages:
        if nodes is not None and (cell or 0) in nodes:
            return size
    return next((size for size, nodes in demand.pages if nodes is None), None)


def _shares(
    host: Host, uuid: str, pools: list[Pool], count: int, planned: dict[Pool, Addition]
) -> dict[Pool, tuple[int, int]]:
    """Split pages over pools: as many of the free ones as there are, the rest added evenly."""
    shares = {}
    for pool in pools:
        free = _available(host, uuid, pool)
        free -= sum(one.needed - one.lacking for one in planned.values() if one.pool.overlaps(pool))
        shares[pool] = (min(max(free, 0), count), 0)
        count -= shares[pool][0]
    for position, pool in enumerate(pools):
        part = -(-count // (len(pools) - position))
        shares[pool] = (shares[pool][0], part)
        count -= part
    return shares


def _available(host: Host, uuid: str, pool: Pool) -> int:
    """Return how many pages of a pool are free and promised to nobody."""
    free = count_of(host, pool, "free") - count_of(host, Pool(pool.size, None), "resv")
    for _, (_, size, node, _, _, needed, used) in effects_of_others(host, uuid, HUGE_PAGES, 7):
        other = recorded_pool(size, node)
        if other.overlaps(pool):
            # A domain that is being started has not all of its pages in use yet.
            in_use = count_of(host, other, "nr") - count_of(host, other, "free")
            free -= max(int(needed) - max(in_use - int(used), 0), 0)
    return free


def _refuse_too_much(host: Host, additions: list[Addition]) -> None:
    lacking = sum(one.lacking * one.pool.size for one in additions) >> 10
    available = meminfo(host, "MemAvailable")
    if available is not None and lacking > available >> 10:
        raise RefusedError(
            "huge-pages",
            f"huge pages: needs {lacking} MiB more, and {available >> 10} MiB of memory are available",
            "free memory, or reserve at boot (kernel arguments hugepagesz= and hugepages=)",
        )


def _write(host: Host, one: Addition) -> None:
    try:
        host.write_attribute(f"{one.pool.path}/nr_hugepages", str(one.new), DEADLINE)
    except OSError as error:
        raise RefusedError(
            "huge-pages",
            f"huge pages of {one.pool} cannot be added while the host runs: {error.strerror}",
            "reserve them at boot (kernel arguments hugepagesz= and hugepages=)",
        ) from error


def _compact(host: Host) -> None:
    try:
        host.write_attribute(_COMPACT, "1", DEADLINE)
    except OSError:
        # A kernel without it. Whether there are enough pages then is looked at afterwards.
        pass
