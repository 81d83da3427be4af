"""From the package to a guest on the only card and back to a host without a trace."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import image, topology
from .guest import Guest, draws
from .machine import Machine, Result
from .virtpass import HOOK, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO, NIC = topology.CARD, topology.CARD_AUDIO, topology.NIC
HOOKS = HOOK.rpartition("/")[0]
HAND_OVER = ("--policy", "display=hand-over")
# Names, modes and contents of all that a host keeps, but for what the package and libvirt themselves keep.
TRACES = (
    "find /etc /var/lib -path /var/lib/dpkg -prune -o -path /var/lib/libvirt -prune -o -path /var/lib/systemd"
    " -prune -o -path /etc/apparmor.d/libvirt -prune -o -path /etc/libvirt/qemu -prune"
    " -o -type f -exec md5sum {} + -o -printf '%p %m %u\\n' | sort"
)


@pytest.fixture(scope="module")
def front(package: Path) -> Iterator[Machine]:
    """A machine of this module alone, with virtpass from its package and nothing set up."""
    with Machine(image.ready()) as machine:
        machine.install(package)
        yield machine


@pytest.fixture(scope="module")
def owner(front: Machine) -> Iterator[Guest]:
    """A domain as virt-manager makes it, without devices."""
    guest = Guest(front)
    guest.define()
    yield guest
    guest.remove()


def traces(guest: Guest) -> tuple[str, str]:
    machine = guest.machine
    files = machine.run(["sh", "-c", TRACES], timeout=120).check().text
    return files, machine.run(["virsh", "dumpxml", "--inactive", guest.name]).check().text


def at_a_terminal(machine: Machine, answers: str, *arguments: str) -> Result:
    """Run a command at a terminal of its own, and type answers."""
    command = shlex.join(["virtpass", *arguments])
    return machine.run(["script", "-qec", command, "/dev/null"], answers.encode(), timeout=180)


def test_setup_takes_the_only_card_into_a_guest_and_uninstall_leaves_no_trace(
    front: Machine, owner: Guest
) -> None:
    before, console, drivers = traces(owner), front.picture(), front.state()
    assert "sudo virtpass setup" in virtpass(front).check().text
    refused = virtpass(front, "setup", CARD, owner.name, "--yes")
    assert refused.status == 2
    assert "display=hand-over" in refused.error_text

    done = virtpass(front, "setup", CARD, owner.name, *HAND_OVER, "--yes").check()
    assert "At the next start of" in done.text
    assert traces(owner) != before
    owner.start().check()
    assert front.driver(CARD) == front.driver(AUDIO) == "vfio-pci"
    front.wait_until(lambda: draws(front.picture()), "the guest draws on the card")
    running = virtpass(front, "uninstall", "--yes")
    assert running.status == 4
    assert f"lent to the domain {owner.name}" in running.error_text
    owner.shutdown()
    front.wait_until(lambda: front.state() == drivers, "the card is back")
    front.wait_until(lambda: console.difference(front.picture()) < 0.01, "the console is on the screen")

    virtpass(front, "uninstall", "--yes").check()
    assert traces(owner) == before
    assert front.state() == drivers
    assert "nothing of virtpass" in virtpass(front, "uninstall", "--yes").check().error_text


def test_setup_asks_at_a_terminal(front: Machine, owner: Guest) -> None:
    before = traces(owner)
    declined = at_a_terminal(front, "\n\ny\nn\n", "setup")
    assert declined.status == 4, str(declined)
    assert "Which card?" in declined.text
    assert "Which virtual machine?" in declined.text
    assert traces(owner) == before
    done = at_a_terminal(front, "\n\ny\ny\n", "setup")
    assert done.status == 0, str(done)
    assert "next: virsh -c qemu:///system start" in done.text
    back = at_a_terminal(front, "y\n", "uninstall")
    assert back.status == 0, str(back)
    assert traces(owner) == before
