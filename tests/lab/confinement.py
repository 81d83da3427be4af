"""AppArmor around libvirt's daemon: that it enforces, and what it has denied the hook.

libvirt's profile lets the hook's gate run as the daemon does, and any program of the system without a profile
of libvirt's. What it forbids the gate, or those programs by profiles of their own, the kernel's log tells.
"""

from __future__ import annotations

import re

from .machine import Machine

DENIED = 'apparmor="DENIED"'
# QEMU of a domain, and what writes its profile: what these are denied is between libvirt and the domain. The
# daemon itself is denied nothing on Debian 13: neither a guest with devices nor a restart shows any line.
_OF_DOMAINS = re.compile(r' profile="(?:libvirt-[0-9a-f-]{36}|virt-aa-helper)(?://[^"]*)?" ')


def assert_confined(machine: Machine) -> None:
    """AppArmor enforces the daemon's profile, else what these tests show of the hook would prove nothing."""
    assert machine.confinement() == "libvirtd (enforce)"


def denied(machine: Machine) -> list[str]:
    """Return what AppArmor has denied since the boot, but to domains: to the hook, or to a program it ran."""
    # The log, not the kernel's own buffer, which forgets.
    argv = ["journalctl", "-k", "-b", "-o", "cat", "--no-pager", "--grep", DENIED]
    found = machine.run(argv)
    # With status 1 there is none.
    assert found.status in (0, 1) and not found.error_text, str(found)
    return [line for line in found.text.splitlines() if DENIED in line and not _OF_DOMAINS.search(line)]


def assert_nothing_denied(machine: Machine) -> None:
    """AppArmor has denied neither the hook nor a program that it ran anything since the boot."""
    assert denied(machine) == []
