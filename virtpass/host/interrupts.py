"""Interrupts that are not remapped: whether VFIO accepts them, in the kernel that runs now."""

from virtpass.host import tokens
from virtpass.host.facts import HostFacts
from virtpass.host.iommu import UNSAFE_INTERRUPTS
from virtpass.host.record import Attribute, HostRecord

_ACCEPTS, _REFUSES = "Y", "N"


def switch(
    facts: HostFacts, accepts: bool, present: HostRecord
) -> tuple[tuple[Attribute, ...], tuple[Attribute, ...]]:
    """Plan what the parameter says from now on: VFIO looks at it whenever a device is attached.

    Args:
        facts: the host.
        accepts: whether it shall accept them.
        present: what is on record.

    Returns:
        the attributes to write; and those of this boot that virtpass has changed then, as they were before.
    """
    if facts.host.root:
        return (), ()
    values = {path: facts.host.read(path) for path in UNSAFE_INTERRUPTS}
    is_this_boot = facts.host.read("/proc/sys/kernel/random/boot_id") == present.boot_id
    earlier = present.switched if is_this_boot else ()
    if accepts:
        changed = [Attribute(path, value) for path, value in values.items() if value == _REFUSES]
        known = {one.path for one in earlier}
        return (
            tuple(Attribute(one.path, _ACCEPTS) for one in changed),
            (*earlier, *(one for one in changed if one.path not in known)),
        )
    if not present.unsafe_interrupts:
        return (), ()
    if is_this_boot:
        back = [one for one in earlier if values.get(one.path) != one.value]
    else:
        # The parameter was set by our file when the module was loaded; the command line is the user's.
        back = [
            Attribute(path, _REFUSES)
            for path, value in values.items()
            if value == _ACCEPTS and not _asked_for(facts, path)
        ]
    return tuple(one for one in back if values.get(one.path) is not None), ()


def _asked_for(facts: HostFacts, path: str) -> bool:
    module = path.split("/")[3]
    name = f"{module}.allow_unsafe_interrupts"
    said = [word for word in facts.running if tokens.key(word) == name]
    return bool(said) and tokens.truth(said[-1]) is True
