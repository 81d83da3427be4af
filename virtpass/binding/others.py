"""What other domains have on record, where a hand-over has to share with them.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.cpu_lists import parse_list
from virtpass.binding.journal import journals, read_journal
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

# The kind of effect that says which CPUs a domain has for itself, in its second field.
ALLOWED = "allowed-cpus"


def effects_of_others(host: Host, uuid: str, kind: str, length: int) -> list[tuple[str, tuple[str, ...]]]:
    """Return the effects of one kind that other domains have on record, as far as they have so many fields.

    A record that cannot be understood is passed over: the start of a domain is refused because of it
    elsewhere, and a stop must not be.

    Returns:
        the other domain's name and the fields of each.
    """
    found = []
    for other in journals(host):
        if other == uuid:
            continue
        try:
            journal = read_journal(host, other)
        except VirtpassError:
            continue
        if journal is not None:
            found += [(journal.name, fields) for known, *fields in journal.effects if known == kind]
    # Another version of virtpass may have written something else.
    return [(name, tuple(fields)) for name, fields in found if len(fields) == length]


def isolated_by_others(host: Host, uuid: str) -> list[frozenset[int]]:
    """Return the CPUs that each other domain has for itself."""
    cpus = {fields[0]: fields[1] for _, fields in effects_of_others(host, uuid, ALLOWED, 5)}
    return [parse_list(text) for text in cpus.values()]
