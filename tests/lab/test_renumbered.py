"""Cards that are at other addresses in the next boot: the hook gives none away for another one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from . import topology
from .guest import Guest
from .machine import Machine
from .virtpass import journals, read_json, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NIC, TWIN = topology.NIC, topology.SECOND_NIC
BEHIND = (topology.BRIDGED_NIC, topology.BRIDGED_OTHER)
# One bridge more in a slot before theirs.
BEHIND_NOW = tuple(address.replace("0000:07:", "0000:08:") for address in BEHIND)
LENT = ("vfio-pci", "vfio-pci")
TWINS = {
    "nic1": {"netdev": "net1", "mac": "52:54:00:00:00:01"},
    "nic2": {"netdev": "net2", "mac": "52:54:00:00:00:02"},
}


@pytest.fixture(scope="module")
def renumbered(machine: Machine) -> Iterator[Machine]:
    """The machine in its next boot, with a bridge more, and with twins that have changed their slots.

    Three domains were given devices in the boot before: "moved" and "kept" a twin each, "behind" what is
    behind the bridge that has another number now.
    """
    virtpass(machine, "hook", "install").check()
    before = machine.pci()
    guests = {"moved": (NIC,), "kept": (TWIN,), "behind": BEHIND}
    for name, addresses in guests.items():
        Guest(machine, name).define()
        virtpass(machine, "domain", "attach", name, *addresses, "--policy", "wait=20").check()
    rebuild(machine, {"nic1": "port3", "nic2": "port2", "more": topology.EMPTY_PORT})
    yield machine
    for name in guests:
        Guest(machine, name).remove()
    rebuild(machine, {"nic1": "port2", "nic2": "port3"}, out=("more",))
    assert machine.pci() == before


def rebuild(machine: Machine, ports: dict[str, str], out: tuple[str, ...] = ()) -> None:
    """Put devices into slots, and boot with them there; those that are elsewhere, and `out`, go first."""
    for name in (*out, *TWINS):
        machine.unplug(name, timeout=120)
    machine.run(["sync"]).check()
    # Nothing of the old boot sees what comes: its kernel would have no bus number for the bridge.
    machine.qmp("stop")
    for name, port in ports.items():
        machine.plug("e1000e" if name in TWINS else "pcie-pci-bridge", name, port, **TWINS.get(name, {}))
    machine.qmp("system_reset")
    machine.qmp("cont")
    machine.reset()


@pytest.fixture(autouse=True)
def nothing_is_left(renumbered: Machine) -> Iterator[None]:
    """Whatever a test does, the host is afterwards what it was before."""
    before = renumbered.state()
    yield
    renumbered.wait_until(lambda: renumbered.state() == before, "every driver and override is as before")
    assert journals(renumbered) == []


def refused(machine: Machine, name: str) -> str:
    """Start a domain, which must be refused without a change; return what was said."""
    before = machine.state()
    failed = Guest(machine, name).start()
    assert failed.status != 0
    assert machine.state() == before
    assert journals(machine) == []
    # Who has not tried yet learns it too.
    rehearsed = virtpass(machine, "hook", "rehearse", name)
    assert rehearsed.status == 1
    _, verdict, reason = rehearsed.text.partition("the start would be refused: ")
    assert verdict and reason.strip() in failed.error_text
    return failed.error_text


def starts(machine: Machine, name: str, *addresses: str) -> None:
    """Start a domain, which must have these devices, and end it."""
    guest = Guest(machine, name)
    before = machine.state()
    guest.start().check()
    assert machine.state() == before | dict.fromkeys(addresses, LENT)
    guest.destroy()


def misplaced(machine: Machine) -> dict[str, str]:
    """Return what virtpass doctor says of devices that are not where they were, by domain."""
    # Its status tells of all findings.
    found = json.loads(virtpass(machine, "doctor", "--json").text)
    (check,) = (one for one in found["checks"] if one["id"] == "domain-devices")
    return {one["about"]: one["evidence"] for one in check["findings"] if one["verdict"] == "fail"}


def test_a_twin_at_the_address_is_not_taken_for_the_card(renumbered: Machine) -> None:
    """Only their serial numbers tell them apart."""
    line = refused(renumbered, "moved")
    assert f"{NIC} is 8086:10d3" in line
    assert f"as when it was attached; that is at {TWIN}" in line
    assert f"at {NIC} is 8086:10d3" in misplaced(renumbered)["moved"]
    shown = virtpass(renumbered, "domain", "show", "moved").check().text
    assert "as when it was attached" in shown
    # As the line says.
    assert f"virtpass domain attach moved {TWIN} and then virtpass domain detach moved {NIC}" in line
    virtpass(renumbered, "domain", "attach", "moved", TWIN).check()
    virtpass(renumbered, "domain", "detach", "moved", NIC).check()
    assert "moved" not in misplaced(renumbered)
    assert read_json(renumbered, "domain", "show", "moved")["policy"]["wait"] == 20
    starts(renumbered, "moved", TWIN)


def test_whoever_wants_what_is_there_now_says_so(renumbered: Machine) -> None:
    line = refused(renumbered, "kept")
    assert f"{TWIN} is 8086:10d3" in line
    assert ", or virtpass domain adopt kept to keep what is there now" in line
    virtpass(renumbered, "domain", "adopt", "kept").check()
    assert "kept" not in misplaced(renumbered)
    starts(renumbered, "kept", TWIN)


def test_devices_on_a_bus_with_another_number_are_found(renumbered: Machine) -> None:
    """They have no serial number, and nothing like them is left where they were."""
    assert BEHIND_NOW[0] in renumbered.pci()
    line = refused(renumbered, "behind")
    assert f"there is no PCI device {BEHIND[0]} any more, which was 8086:100e" in line
    assert f"one like that is at {BEHIND_NOW[0]}" in line
    assert "which this host has not" in misplaced(renumbered)["behind"]
    virtpass(renumbered, "domain", "attach", "behind", *BEHIND_NOW).check()
    virtpass(renumbered, "domain", "detach", "behind", *BEHIND).check()
    assert "behind" not in misplaced(renumbered)
    starts(renumbered, "behind", *BEHIND_NOW)
