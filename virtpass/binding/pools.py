"""The kernel's pools of huge pages, and what they hold.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

_POOLS = "/sys/kernel/mm/hugepages"
_NODES = "/sys/devices/system/node"
_NONE = "-"


class Pool(tuple[int, "int | None"]):
    """The huge pages of one size in KiB, on one NUMA node or (None) on the whole host."""

    __slots__ = ()

    def __new__(cls, size: int, node: int | None) -> Pool:
        """Hold the two together."""
        return super().__new__(cls, (size, node))

    @property
    def size(self) -> int:
        """Size of a page in KiB."""
        return self[0]

    @property
    def node(self) -> int | None:
        """The NUMA node."""
        return self[1]

    @property
    def fields(self) -> tuple[str, str]:
        """Size and node as in a record."""
        return str(self.size), _NONE if self.node is None else str(self.node)

    @property
    def path(self) -> str:
        """Its directory."""
        above = _POOLS if self.node is None else f"{_NODES}/node{self.node}/hugepages"
        return f"{above}/hugepages-{self.size}kB"

    def overlaps(self, other: Pool) -> bool:
        """Tell whether a page may be in both."""
        return self.size == other.size and (None in (self.node, other.node) or self.node == other.node)

    def __str__(self) -> str:
        """Words for people."""
        shift, unit = next(
            one for one in ((20, "GiB"), (10, "MiB"), (0, "KiB")) if not self.size % (1 << one[0])
        )
        size = f"{self.size >> shift} {unit}"
        return size if self.node is None else f"{size} on NUMA node {self.node}"


def count_of(host: Host, pool: Pool, name: str) -> int:
    """Return a count of a pool: ``nr``, ``free``, ``surplus`` or ``resv``; 0 when there is none."""
    text = host.read(f"{pool.path}/{name}_hugepages") or ""
    return int(text) if text.isdigit() else 0


def persistent(host: Host, pool: Pool) -> int:
    """Return how many pages a pool keeps whether they are in use or not."""
    return count_of(host, pool, "nr") - count_of(host, pool, "surplus")


def recorded_pool(size: str, node: str) -> Pool:
    """Return the pool of a record; its fields become part of a path.

    Raises:
        ValueError: there is no such pool.
    """
    if not (size.isascii() and size.isdigit() and (node == _NONE or (node.isascii() and node.isdigit()))):
        raise ValueError("not a pool of huge pages")
    return Pool(int(size), None if node == _NONE else int(node))


def default_size(host: Host) -> int:
    """Return the size of huge pages, in KiB, for those who name none.

    Raises:
        RefusedError: the kernel has no huge pages.
    """
    size = meminfo(host, "Hugepagesize")
    if size is None:
        raise RefusedError("huge-page-size", "this host's kernel has no huge pages")
    return size


def page_sizes(host: Host) -> list[int]:
    """Return the sizes of huge pages that the host has, in KiB."""
    names = [name for name in host.names(_POOLS) if name.startswith("hugepages-") and name.endswith("kB")]
    return sorted(int(name[10:-2]) for name in names if name[10:-2].isdigit())


def meminfo(host: Host, key: str) -> int | None:
    """Return a value of /proc/meminfo in KiB; None when it is not there."""
    for line in (host.read("/proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name == key and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0])
    return None
