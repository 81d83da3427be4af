"""Whether the domain that has borrowed devices still needs them, from what the kernel and the record say.

The hook cannot ask libvirt, which waits for it. A record is stale when nobody has the devices open, no QEMU
of that domain lives, and one of two things is certain: libvirt has said that the domain has ended (the hook
was killed while it gave back, or could not), or the daemon that started the domain is gone. While that daemon
lives and has not said so, the domain may be about to start: between the hook and QEMU come other hooks, and
much memory to be prepared.

Imported by the hook: the imports here are on its allow-list.
"""

import os

from virtpass.binding.journal import Journal, journals, read_journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system import processes
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

# Where libvirt's system daemons, modular or not, keep the process numbers of their domains.
_PROCESSES = "/run/libvirt/qemu"


def starter(host: Host) -> tuple[int, int] | None:
    """Return process and start time of the daemon that runs this hook; None when that cannot be read."""
    parent = os.getppid()
    started = processes.started(host, parent)
    return None if started is None else (parent, started)


def stale(host: Host, addresses: list[PciAddress], borrower: str) -> list[Journal]:
    """Return the stale records of other domains that keep devices from one.

    Args:
        host: the host.
        addresses: the devices that are wanted.
        borrower: UUID of the domain that wants them.
    """
    found = []
    for uuid in journals(host):
        try:
            journal = read_journal(host, uuid) if uuid != borrower else None
        except VirtpassError:
            continue  # the check for lent devices tells of it
        if journal and any(home.address in addresses for home in journal.homes) and is_stale(host, journal):
            found.append(journal)
    return found


def is_stale(host: Host, journal: Journal) -> bool:
    """Tell whether it is certain that the domain of a record needs it no more."""
    return not may_be_needed(host, journal) and (journal.has_ended or journal.starter is not None)


def may_be_needed(host: Host, journal: Journal) -> bool:
    """Tell whether the domain of a record runs, or may be about to start."""
    if any(sysfs.group_is_open(host, home.address) for home in journal.homes) or _has_process(host, journal):
        return True
    return not journal.has_ended and journal.starter is not None and _lives(host, *journal.starter)


def _has_process(host: Host, journal: Journal) -> bool:
    if not journal.name or "/" in journal.name:
        return False
    path = f"{_PROCESSES}/{journal.name}.pid"
    if not host.exists(path):
        return False
    text = host.read(path) or ""
    # What cannot be read counts as a process; so does another one that has the number by now.
    return not text.isdigit() or processes.find(host, text) is not None


def _lives(host: Host, process: int, started: int) -> bool:
    return processes.started(host, process) == started
