"""A card of which a domain has one function only: what becomes of the other one while the domain runs."""

from __future__ import annotations

import pytest

from . import topology
from .guest import Guest, hostdev_xml
from .machine import Machine
from .virtpass import journals, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO = topology.CARD, topology.CARD_AUDIO
LENT = ("vfio-pci", "vfio-pci")


@pytest.mark.parametrize(("policy", "companion"), [("bind", LENT), ("free", ("", ""))])
def test_the_other_function_is_taken_from_the_host_and_comes_back(
    machine: Machine, guest: Guest, policy: str, companion: tuple[str, str]
) -> None:
    virtpass(machine, "hook", "install").check()
    before = machine.state()
    assert before[AUDIO][0] == "snd_hda_intel"
    # As virt-manager adds a device: one function, and nobody looks for others.
    guest.define(hostdev_xml(CARD, bus=1))
    virtpass(machine, "domain", "adopt", guest.name).check()
    virtpass(machine, "domain", "policy", guest.name, f"companions={policy}").check()
    guest.start().check()
    assert machine.state() == before | {CARD: LENT, AUDIO: companion}
    # The guest has the one, and it works there.
    seen = guest.wait_ready()
    assert seen["0000:01:00.0"].driver == "bochs-drm"
    assert "0000:01:00.1" not in seen
    # udev's rules load a driver for what is added; theirs is there already, and takes nothing by that.
    machine.run(["udevadm", "trigger", "--action=add", "--settle", f"/sys/bus/pci/devices/{AUDIO}"]).check()
    assert machine.state()[AUDIO] == companion
    guest.shutdown()
    machine.wait_until(lambda: machine.state() == before, "both functions are back")
    assert journals(machine) == []
