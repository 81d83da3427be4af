"""The host's processors, and how several domains share in what they are kept free of.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.cpu_lists import parse_list
from virtpass.system.host import Host

PROCESSORS = "/sys/devices/system/cpu"


def processors(host: Host, which: str) -> frozenset[int]:
    """Return the ``online`` or ``possible`` CPUs."""
    return parse_list(host.read(f"{PROCESSORS}/{which}") or "")


def is_union(taken: frozenset[int], sets: list[frozenset[int]]) -> bool:
    """Tell whether CPUs may be what domains take away while they come and go: a union of some of the sets.

    Args:
        taken: what is taken away now.
        sets: what each domain takes.
    """
    # Whichever sets make it up, they lie within it; so all that do may be taken.
    return taken == frozenset().union(*(one for one in sets if one <= taken))
