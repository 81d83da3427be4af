"""The host's processors, and how several domains share in what they are kept free of.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.cpu_lists import parse_list
from virtpass.system.host import Host

PROCESSORS = "/sys/devices/system/cpu"


def processors(host: Host, which: str) -> frozenset[int]:
    """Return the ``online`` or ``possible`` CPUs."""
    return parse_list(host.read(f"{PROCESSORS}/{which}") or "")


def unions(sets: list[frozenset[int]]) -> set[frozenset[int]]:
    """Return what may be taken away while domains with these CPUs come and go: unions of some of them."""
    found: set[frozenset[int]] = {frozenset()}
    for one in sets:
        found |= {union | one for union in found}
    return found
