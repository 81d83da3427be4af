"""Interrupts that are not remapped: whether VFIO accepts them, in the kernel that runs now."""

from virtpass.host import early, tokens
from virtpass.host.facts import HostFacts
from virtpass.host.iommu import UNSAFE_INTERRUPTS
from virtpass.host.record import Attribute, HostRecord

_ACCEPTS, _REFUSES = "Y", "N"
# Where modprobe looks for options.
_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/usr/lib/modprobe.d")


def switch(
    facts: HostFacts, accepts: bool, present: HostRecord
) -> tuple[tuple[Attribute, ...], tuple[Attribute, ...]]:
    """Plan what the parameter says from now on: VFIO looks at it whenever a device is attached.

    Args:
        facts: the host.
        accepts: whether it shall accept them.
        present: what is on record.

    Returns:
        the attributes to write; and all of them as they were in this boot before virtpass came, empty where
        the module was not loaded: it is loaded with what our file for modprobe says.
    """
    if facts.host.root:
        return (), ()
    values = {path: facts.host.read(path) for path in UNSAFE_INTERRUPTS}
    is_this_boot = facts.boot_id == present.boot_id
    earlier = {one.path: one.value for one in present.switched} if is_this_boot else {}
    if accepts:
        before = {path: earlier.get(path, value or "") for path, value in values.items()}
        return (
            tuple(Attribute(path, _ACCEPTS) for path, value in values.items() if value == _REFUSES),
            tuple(Attribute(path, value) for path, value in before.items()),
        )
    if not present.unsafe_interrupts:
        return (), ()
    theirs = {path for path in values if earlier.get(path) == _ACCEPTS or _asked_for(facts, path)}
    back = [path for path, value in values.items() if value == _ACCEPTS and path not in theirs]
    return tuple(Attribute(path, _REFUSES) for path in back), ()


def _asked_for(facts: HostFacts, path: str) -> bool:
    """Tell whether somebody else wants them accepted, on the command line or in a file for modprobe."""
    module = path.split("/")[3]
    name = "allow_unsafe_interrupts"
    said = [word for word in facts.running if tokens.key(word) == f"{module}.{name}"]
    for folder in _FOLDERS:
        for file in facts.host.names(folder):
            if not file.endswith(".conf") or f"{folder}/{file}" == early.MODPROBE:
                continue
            for line in facts.text(f"{folder}/{file}").splitlines():
                words = line.split()
                if words[:1] == ["options"] and len(words) > 2 and tokens.key(words[1]) == module:
                    said += [word for word in words[2:] if tokens.key(word) == name]
    return bool(said) and tokens.truth(said[-1]) is True
