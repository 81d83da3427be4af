"""/etc/default/grub and its drop-ins, as far as plain assignments tell: nothing in them is run."""

import re
from collections.abc import Iterable

from virtpass.host.facts import HostFacts

DEFAULTS = "/etc/default/grub"
DROP_INS = "/etc/default/grub.d"
# Read in the order of their names, and others assign what we add to.
DROP_IN = f"{DROP_INS}/zz-virtpass.cfg"
_ASSIGNMENT = re.compile(
    r"^[ \t]*(?:export[ \t]+)?(GRUB_[A-Z0-9_]+)=(?:\"([^\"]*)\"|'([^']*)'|(\S*))", re.MULTILINE
)


def drop_ins(facts: HostFacts) -> list[str]:
    """Return the drop-ins in the order in which Debian's grub-mkconfig reads them; upstream's reads none."""
    return [f"{DROP_INS}/{name}" for name in facts.host.names(DROP_INS) if name.endswith(".cfg")]


def settings(facts: HostFacts, paths: Iterable[str]) -> dict[str, str]:
    """Return the variables that files assign one after the other; the last assignment counts.

    A value that a shell would work out comes as it stands, but for a variable's own value before.

    Args:
        facts: the host.
        paths: the files in the order in which they are read.
    """
    values: dict[str, str] = {}
    for path in paths:
        for found in _ASSIGNMENT.finditer(facts.text(path)):
            name = found[1]
            value = next((one for one in found.groups()[1:] if one is not None), "")
            before = values.get(name, "")
            value = value.replace(f"${{{name}:+${name} }}", f"{before} " if before else "")
            values[name] = value.replace(f"${{{name}}}", before).replace(f"${name}", before)
    return values
