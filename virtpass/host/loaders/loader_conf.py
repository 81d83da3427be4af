"""The settings of systemd-boot: loader/loader.conf on the partition with its entries. Only read."""

from virtpass.host.efi import PARTITIONS, loader_text
from virtpass.host.facts import HostFacts


def setting(facts: HostFacts, name: str, variable: str = "") -> str:
    """Return what counts for a setting; empty when nothing is set.

    Args:
        facts: the host.
        name: the key in loader.conf.
        variable: the EFI variable that overrules it.
    """
    if variable and (value := loader_text(facts.host, variable)):
        return value
    found = ""
    for partition in PARTITIONS:
        for line in facts.text(f"{partition}/loader/loader.conf").splitlines():
            words = line.split(maxsplit=1)
            if len(words) == 2 and words[0] == name:
                found = words[1].strip()
    return found
