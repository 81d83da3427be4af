"""From the package to a guest on the only card of a host that has to be rebooted first, and back.

The host has no IOMMU before it is told of it at boot: once a script sets it up, once somebody at its monitor.
Pictures of that monitor go to $VIRTPASS_LAB_PICTURES.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtpass.operations.overview import SETUP_RECORD

from . import bootloader, image, topology
from .disk import GRUB_LIBVIRT
from .guest import Guest, draws
from .keyboard import PROMPT, Console
from .machine import Machine
from .overlay import IOMMU_OFF
from .picture import Picture
from .preparation import TIMEOUT, tree
from .virtpass import virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO = topology.CARD, topology.CARD_AUDIO
SETUP = ("setup", CARD, "guest", "--policy", "display=hand-over", "--yes")
SWITCH = "intel_iommu=on"
START = "virsh -c qemu:///system start guest"
# Names, modes, owners and contents below /var/lib, but for what dpkg, libvirt and systemd keep there.
STATE = (
    "find /var/lib -path /var/lib/dpkg -prune -o -path /var/lib/libvirt -prune -o -path /var/lib/systemd"
    " -prune -o -type f -exec md5sum {} + -o -printf '%p %m %u\\n' | sort"
)


@dataclass
class Front:
    """A host with one card, and the machine of its owner."""

    machine: Machine
    guest: Guest
    pictures: Path
    # What the host was before it had the package.
    pristine: tuple[object, ...]

    def traces(self) -> tuple[object, ...]:
        """Return everything that is to be as before in the end."""
        machine = self.machine
        state = machine.run(["sh", "-c", STATE], timeout=120).check().text
        return tree(machine), state, machine.run(["virsh", "dumpxml", "--inactive", "guest"]).check().text

    def conceal(self) -> None:
        """Let the kernel be one that was built to wait for `SWITCH`: it was told so, where nobody sees it."""
        command = (
            f"sed 's/{IOMMU_OFF} //' /proc/cmdline > /run/cmdline; mount --bind /run/cmdline /proc/cmdline"
        )
        self.machine.run(["sh", "-c", command]).check()
        assert IOMMU_OFF not in self.arguments()
        assert self.machine.groups().keys() == {""}

    def arguments(self) -> list[str]:
        return bootloader.of(self.machine).arguments()

    def reboot_into_setup(self) -> None:
        """Reboot, as setup has asked for."""
        self.machine.reboot()
        assert SWITCH in self.arguments()
        assert self.machine.groups().keys() != {""}

    def picture(self, name: str) -> Picture:
        return self.machine.screendump(self.pictures / f"{name}.png")

    def lend_and_take_back(self, console: Console, prompt: Picture, name: str) -> None:
        """With the domain started: see the guest on the card, shut it down, see the host again."""
        machine, guest = self.machine, self.guest
        assert machine.driver(CARD) == machine.driver(AUDIO) == "vfio-pci"
        assert guest.wait_ready()["0000:01:00.0"].driver == "bochs-drm"
        machine.wait_until(lambda: draws(machine.picture()), "the guest draws on the card")
        self.picture(f"{name}-guest")
        guest.shutdown()
        machine.wait_until(lambda: machine.driver(CARD) == "bochs-drm", "the card is back")
        machine.wait_until(lambda: not draws(machine.picture()), "the guest's picture is gone")
        self.picture(f"{name}-back")
        # Something new: what the monitor shows could still be from before the start.
        console.clear()
        machine.wait_until(lambda: machine.picture().shows(prompt) > 0.9, "the host draws on the card")


@pytest.fixture(scope="module")
def front(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A host that has just got the package, and has a domain without devices."""
    pictures = Path(os.environ.get("VIRTPASS_LAB_PICTURES") or tmp_path_factory.mktemp("pictures"))
    pictures.mkdir(parents=True, exist_ok=True)
    with Machine(image.ready(GRUB_LIBVIRT)) as machine:
        guest = Guest(machine)
        guest.define()
        host = Front(machine, guest, pictures, ())
        host.pristine = host.traces()
        machine.install(package)
        yield host


def test_without_a_terminal(front: Front) -> None:
    machine, console = front.machine, Console(front.machine)
    front.conceal()
    before, drivers = front.traces(), machine.state()
    console.wait_for(PROMPT)
    front.picture("script-1-before")
    assert "no IOMMU is active" in virtpass(machine).check().text

    begun = virtpass(machine, *SETUP).check()
    assert SWITCH in begun.text
    assert "now reboot" in begun.error_text
    # Once more, and too early.
    early = virtpass(machine, "setup")
    assert early.status == 4
    assert "was not rebooted since" in early.error_text

    front.reboot_into_setup()
    console.wait_for(PROMPT)
    front.picture("script-2-rebooted")
    console.clear()
    prompt = machine.picture()
    assert "sudo virtpass setup" in virtpass(machine).check().text
    done = virtpass(machine, "setup").check()
    assert "At the next start of guest:" in done.text
    assert machine.run(["test", "-e", SETUP_RECORD]).status == 1
    assert machine.state() == drivers
    assert "all of this is set up already" in virtpass(machine, *SETUP).check().error_text

    front.guest.start().check()
    front.lend_and_take_back(console, prompt, "script-3")
    assert machine.state() == drivers

    gone = virtpass(machine, "uninstall", "--yes").check()
    assert "reboot it when it suits" in gone.error_text
    assert front.traces() == before
    machine.reboot()
    assert SWITCH not in front.arguments()
    assert machine.groups().keys() == {""}
    assert machine.state() == drivers
    assert front.traces() == before


def test_at_the_monitor(front: Front) -> None:
    """All that somebody types, on the very card that goes away."""
    machine, console = front.machine, Console(front.machine)
    front.conceal()
    before, drivers = front.traces(), machine.state()
    console.clear()
    console.command("virtpass setup")
    console.wait_for("Which card?")
    console.type("")
    console.wait_for("Which virtual machine?")
    console.type("")
    console.wait_for("May the desktop be ended")
    front.picture("1-asks")
    console.type("y")
    console.wait_for("Do all of this?")
    front.picture("2-plan")
    assert front.traces() == before
    console.type("y")
    console.wait_for("now reboot", TIMEOUT)
    front.picture("3-reboot")

    front.reboot_into_setup()
    console.clear()
    prompt = machine.picture()
    console.command("virtpass setup")
    console.wait_for(f"next: {START}")
    front.picture("4-goes-on")
    console.command(START)
    machine.wait_until(lambda: front.guest.state() == "running", "the domain runs", 180)
    front.lend_and_take_back(console, prompt, "5")
    assert machine.state() == drivers

    console.clear()
    console.command("virtpass uninstall")
    console.wait_for("Do all of this?")
    console.type("y")
    console.wait_for("reboot it when it suits", TIMEOUT)
    front.picture("6-uninstalled")
    assert front.traces() == before
    machine.run(["dpkg", "--purge", "virtpass"], timeout=120).check()
    assert front.traces() == front.pristine
