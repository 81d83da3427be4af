"""What a domain takes of the host's memory and processors, as far as its XML says.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.system.errors import UsageError


class Demand:
    """Memory and pinned CPUs of one domain.

    Attributes:
        memory: its memory, in KiB.
        has_huge_pages: whether it asks for memory of huge pages.
        pages: sizes of these in KiB, each with the guest's NUMA nodes that it is for; None for all others.
        cells: the guest's NUMA nodes, and their memory in KiB.
        host_nodes: NUMA nodes of the host that its memory has to come from; None for any.
        cell_nodes: the same for single NUMA nodes of the guest.
        vcpu_pins: the host's CPUs to which virtual CPUs are pinned.
        emulator_pins: those to which the emulator's threads are pinned.
        iothread_pins: those to which I/O threads are pinned.
        problem: what of this is not understood; only who obeys it has to care.
    """

    def __init__(self) -> None:
        self.memory = 0
        self.has_huge_pages = False
        self.pages: list[tuple[int, frozenset[int] | None]] = []
        self.cells: dict[int, int] = {}
        self.host_nodes: frozenset[int] | None = None
        self.cell_nodes: dict[int, frozenset[int]] = {}
        self.vcpu_pins: frozenset[int] = frozenset()
        self.emulator_pins: frozenset[int] = frozenset()
        self.iothread_pins: frozenset[int] = frozenset()
        self.problem: UsageError | None = None

    @property
    def pinned(self) -> frozenset[int]:
        """All CPUs of the host to which anything of the domain is pinned."""
        return self.vcpu_pins | self.emulator_pins | self.iothread_pins
