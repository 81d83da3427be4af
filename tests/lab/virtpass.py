"""virtpass as it is installed in a machine: its commands, its hook, and ways to make the kernel misbehave."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .machine import Machine, Result

HOOK = "/etc/libvirt/hooks/qemu.d/50-virtpass"
AS_LIBVIRT = ("aa-exec", "--immediate", "-p", "libvirtd", "--")
JOURNALS = "/run/virtpass/lent"
UNBIND = "/sys/bus/pci/drivers/{driver}/unbind"
# As virtpass.cli.progress writes it where there is no terminal.
WAITING = re.compile(r".+ \(at most [^)]+\)")


def virtpass(machine: Machine, *arguments: str, stdin: bytes = b"") -> Result:
    """Run a command of virtpass inside."""
    return machine.run(["virtpass", *arguments], stdin, timeout=180)


def read_json(machine: Machine, *arguments: str) -> Any:  # noqa: ANN401 (what JSON holds)
    """Run a reading command and return what it printed, parsed."""
    return json.loads(virtpass(machine, *arguments, "--json").check().text)


def told(result: Result) -> list[str]:
    """Return the lines on standard error, without those of progress: a slow machine has more of them."""
    return [line for line in result.error_text.splitlines() if not WAITING.fullmatch(line)]


def journals(machine: Machine) -> list[str]:
    """Return the names of the records of what is lent."""
    return machine.run(["ls", "-A", JOURNALS]).text.split()


def call_hook(machine: Machine, name: str, operation: str, suboperation: str, xml: bytes) -> Result:
    """Run the installed hook as libvirt does, confined by the profile of its daemon."""
    return machine.run([*AS_LIBVIRT, HOOK, name, operation, suboperation, "-"], xml)


def prepare(machine: Machine, name: str) -> Result:
    """Call the hook as libvirt does before a domain's start."""
    return call_hook(machine, name, "prepare", "begin", live_xml(machine, name))


def release(machine: Machine, name: str) -> Result:
    """Call the hook as libvirt does after a domain's stop."""
    return call_hook(machine, name, "release", "end", live_xml(machine, name))


def live_xml(machine: Machine, name: str) -> bytes:
    """Return a domain's XML."""
    return machine.run(["virsh", "dumpxml", name]).check().stdout


@contextmanager
def covered(machine: Machine, attribute: str, with_file: str) -> Iterator[None]:
    """Put another file over an attribute of sysfs, so that writes to it end otherwise than in the kernel.

    /dev/full makes them fail; a FIFO makes them wait until somebody reads.
    """
    machine.run(["mount", "--bind", with_file, attribute]).check()
    try:
        yield
    finally:
        machine.run(["umount", attribute]).check()


@contextmanager
def never_answering(machine: Machine, attribute: str) -> Iterator[None]:
    """Make writes to an attribute of sysfs hang, as with a driver whose remove function does not return."""
    fifo = "/run/hanging"
    machine.run(["mkfifo", "-m", "600", fifo]).check()
    try:
        with covered(machine, attribute, fifo):
            yield
            # Whoever waits there is let go; without a writer this ends at once.
            machine.run(["dd", f"if={fifo}", "iflag=nonblock", "status=none"])
    finally:
        machine.run(["rm", fifo]).check()
