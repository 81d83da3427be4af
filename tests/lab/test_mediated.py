"""Mediated devices: listed, made, given to a guest, removed.

QEMU has no device that offers them: a module of the lab's own (`faulty/lab_vgpu.c`) makes a parent of a spare
one. All else is real: mdev, VFIO, libvirt, and the guest.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from . import topology
from .guest import Guest
from .machine import Machine, Result
from .virtpass import journals, prepare, read_json, release, told, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NIC, CARD, NEIGHBOUR = topology.NIC, topology.BRIDGED_OTHER, topology.BRIDGED_NIC
SMALL, LARGE = "lab_vgpu-small", "lab_vgpu-large"
ONE, TWO, THREE = (f"83b8f4f2-509f-382f-3c1e-e6bfe0fa100{number}" for number in (1, 2, 3))
IDS = "1234:11ff"


@pytest.fixture
def card(desktop: Machine) -> Iterator[Machine]:
    """A machine with a card that can be shared by three."""
    desktop.run(["modprobe", "lab_vgpu"]).check()
    assert desktop.driver(CARD) == "lab_vgpu"
    before = desktop.state()
    yield desktop
    assert (desktop.state(), mediated(desktop), journals(desktop)) == (before, [], [])
    desktop.run(["modprobe", "-r", "lab_vgpu"]).check()


def shell(machine: Machine, script: str) -> str:
    """Return what a script of the shell prints."""
    return machine.run(["sh", "-c", script]).check().text.strip()


def mediated(machine: Machine) -> list[str]:
    """Return the mediated devices that the kernel has."""
    return machine.run(["ls", "/sys/bus/mdev/devices"]).text.split()


def left(machine: Machine) -> dict[str, tuple[int, list[str]]]:
    """Return for each type how many can be made, and what is made of it."""
    return {
        one["type"]: (one["available"], one["devices"]) for one in read_json(machine, "mdev", "types", CARD)
    }


def make(machine: Machine, type_name: str, name: str, parent: str = CARD) -> Result:
    return virtpass(machine, "mdev", "create", parent, type_name, name)


def remove(machine: Machine, name: str) -> Result:
    return virtpass(machine, "mdev", "remove", name)


def refused(result: Result, status: int, words: str) -> bool:
    """Tell whether a command has refused with one line that has these words."""
    return (result.status, len(told(result))) == (status, 1) and words in result.error_text


def test_mediated_devices_share_a_card(card: Machine) -> None:
    shown = read_json(card, "mdev", "types")
    assert [(one["parent"], one["type"], one["name"], one["api"]) for one in shown] == [
        (CARD, LARGE, "Lab vGPU L", "vfio-pci"),
        (CARD, SMALL, "Lab vGPU S", "vfio-pci"),
    ]
    assert shown[0]["description"] == "shares=2, of=3"
    assert left(card) == {SMALL: (3, []), LARGE: (1, [])}

    create = f"/sys/bus/pci/devices/{CARD}/mdev_supported_types/{SMALL}/create"
    planned = virtpass(card, "mdev", "create", CARD, SMALL, ONE, "--dry-run").check()
    assert planned.text == f"write {ONE} to {create}\n"
    assert mediated(card) == []
    assert make(card, SMALL, ONE).check().text == f"{ONE}\n"
    assert mediated(card) == [ONE]
    assert left(card) == {SMALL: (2, [ONE]), LARGE: (1, [])}
    assert ONE in virtpass(card, "mdev", "types").check().text
    made = read_json(card, "device", "show", CARD)["mediated"]["devices"]
    assert made == [{"uuid": ONE, "type": SMALL}]

    assert refused(make(card, SMALL, ONE), 4, f"there is a mediated device {ONE} already")
    assert refused(make(card, "lab_vgpu-huge", TWO), 3, "has no type 'lab_vgpu-huge'")
    assert refused(make(card, SMALL, TWO, NIC), 4, f"{NIC} offers no mediated devices")
    make(card, LARGE, TWO).check()
    assert left(card) == {SMALL: (0, [ONE]), LARGE: (0, [TWO])}
    assert refused(make(card, SMALL, THREE), 4, "can have no more mediated devices of the type")
    assert mediated(card) == [ONE, TWO]

    remove(card, ONE).check()
    assert refused(remove(card, ONE), 3, f"there is no mediated device {ONE}")
    # Where the driver refuses, nothing is left of it.
    shell(card, "echo 1 > /sys/module/lab_vgpu/parameters/refusals")
    assert refused(make(card, SMALL, ONE), 1, f"virtpass: making the mediated device {ONE}: ")
    assert mediated(card) == [TWO]
    own = virtpass(card, "mdev", "create", CARD, SMALL).check().text.strip()
    assert sorted(mediated(card)) == sorted([own, TWO])
    for name in (own, TWO):
        remove(card, name).check()
    assert left(card) == {SMALL: (3, []), LARGE: (1, [])}


def test_a_mediated_device_in_use_stays(card: Machine, desktop_guest: Guest) -> None:
    make(card, SMALL, ONE).check()
    group = shell(card, f"basename $(readlink /sys/bus/mdev/devices/{ONE}/iommu_group)")
    holder = card.begin(["sh", "-c", f"exec 3<>/dev/vfio/{group}; echo held > /run/held; exec sleep 600"])
    try:
        card.wait_until(lambda: card.run(["test", "-s", "/run/held"]).status == 0, "the group is open")
        assert refused(remove(card, ONE), 4, f"{ONE} is used by a running virtual machine")
    finally:
        holder.signal(signal.SIGKILL)
        holder.wait()
        card.run(["rm", "-f", "/run/held"]).check()

    source = f"<source><address uuid='{ONE}'/></source>"
    desktop_guest.define(f"<hostdev mode='subsystem' type='mdev' model='vfio-pci'>{source}</hostdev>\n")
    desktop_guest.start().check()
    assert IDS in {seen.ids for seen in desktop_guest.wait_ready().values()}
    assert refused(remove(card, ONE), 4, f"{ONE} is used by the domain guest")
    assert mediated(card) == [ONE]
    desktop_guest.destroy()
    remove(card, ONE).check()
    assert mediated(card) == []


def test_mediated_devices_go_with_their_card(card: Machine) -> None:
    make(card, SMALL, ONE).check()
    shell(card, f"echo {CARD} > /sys/bus/pci/drivers/lab_vgpu/unbind")
    assert mediated(card) == []
    assert refused(remove(card, ONE), 3, f"there is no mediated device {ONE}")
    assert refused(make(card, SMALL, ONE), 4, f"{CARD} offers no mediated devices")
    assert read_json(card, "mdev", "types") == []
    shell(card, f"echo {CARD} > /sys/bus/pci/drivers/lab_vgpu/bind")
    assert left(card) == {SMALL: (3, []), LARGE: (1, [])}


def test_a_card_that_is_lent_makes_none(card: Machine, desktop_guest: Guest) -> None:
    virtpass(card, "domain", "attach", desktop_guest.name, NEIGHBOUR, CARD).check()
    prepare(desktop_guest.machine, desktop_guest.name).check()
    assert card.driver(CARD) == "vfio-pci"
    assert refused(make(card, SMALL, ONE), 4, f"{CARD} is lent to the domain guest")
    release(desktop_guest.machine, desktop_guest.name).check()
    assert left(card) == {SMALL: (3, []), LARGE: (1, [])}


def test_a_card_with_mediated_devices_stays(card: Machine, desktop_guest: Guest) -> None:
    """Unbinding its driver would wait for whoever has one of them open."""
    virtpass(card, "domain", "attach", desktop_guest.name, NEIGHBOUR, CARD).check()
    make(card, SMALL, ONE).check()
    kept = prepare(desktop_guest.machine, desktop_guest.name)
    assert kept.status != 0
    assert f"{CARD} has mediated devices, which would vanish from whoever uses them: {ONE}" in kept.error_text
    assert (mediated(card), card.driver(CARD)) == ([ONE], "lab_vgpu")
    remove(card, ONE).check()
