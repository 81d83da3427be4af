"""Virtual functions of an emulated 82576, whose driver is the kernel's igb."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from . import topology
from .guest import Guest
from .killed import NEVER, accesses, killed
from .machine import Machine
from .virtpass import journals, read_json, release, told, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD = topology.PLUGGED
# The 82576 numbers its functions from 16:0 on, two apart.
FIRST, SECOND, THIRD = (CARD.replace("00.0", place) for place in ("10.0", "10.2", "10.4"))
DEVICE = f"/sys/bus/pci/devices/{CARD}"
RECORD = f"/etc/virtpass/functions.d/{CARD}"
MARKS = "/run/virtpass/functions"
UNIT = "virtpass-functions.service"
# Of the function, not of the card.
IDS = "8086:10ca"


@pytest.fixture(scope="module")
def card(machine: Machine) -> Iterator[Machine]:
    """The machine with such a card in it, and with the hook."""
    machine.plug("igb", "igb1", topology.EMPTY_PORT)
    machine.wait_until(lambda: has_driver(machine), "igb has the card")
    virtpass(machine, "hook", "install").check()
    yield machine
    machine.unplug("igb1")
    machine.wait_until(lambda: CARD not in machine.pci(), "the card is gone")


def has_driver(machine: Machine) -> bool:
    return CARD in machine.pci() and machine.driver(CARD) == "igb"


def attribute(machine: Machine, name: str) -> str:
    return machine.get(f"{DEVICE}/{name}").decode().strip()


@pytest.fixture(autouse=True)
def nothing_is_left(card: Machine) -> Iterator[None]:
    """Whatever a test does, the card is afterwards what it was before."""
    before = (card.state(), attribute(card, "sriov_drivers_autoprobe"))
    yield
    virtpass(card, "device", "functions", CARD, "0", "--persistent").check()
    assert (card.state(), attribute(card, "sriov_drivers_autoprobe")) == before
    assert journals(card) == []
    assert card.run(["test", "-e", RECORD]).status == 1


def functions(machine: Machine) -> list[str]:
    """Return the functions as virtpass shows them, after seeing that the kernel has the same."""
    shown = read_json(machine, "device", "show", CARD)["virtual_functions"]
    found: list[str] = shown["addresses"]
    assert shown["count"] == len(found) == int(attribute(machine, "sriov_numvfs"))
    assert set(found) == {address for address in machine.pci() if address.startswith(CARD[:8])} - {CARD}
    return found


def test_functions_come_without_a_driver_and_go(card: Machine) -> None:
    assert read_json(card, "device", "show", CARD)["virtual_functions"]["total"] == 7
    planned = virtpass(card, "device", "functions", CARD, "2", "--dry-run").check().text
    assert planned.splitlines() == [
        f"{CARD}: write 0 to sriov_drivers_autoprobe",
        f"{CARD}: write 2 to sriov_numvfs",
    ]
    assert functions(card) == []
    virtpass(card, "device", "functions", CARD, "2").check()
    assert functions(card) == [FIRST, SECOND]
    # Also when udev has had its turn, igbvf has not taken them.
    card.run(["udevadm", "settle"]).check()
    assert [card.driver(one) for one in (FIRST, SECOND)] == ["", ""]
    assert card.driver(CARD) == "igb"
    assert [group for group in card.groups().values() if FIRST in group] == [{FIRST}]
    verdicts = {one["address"]: one["verdict"] for one in read_json(card, "devices")}
    assert (verdicts[CARD], verdicts[FIRST]) == ("blocked", "ready")
    virtpass(card, "device", "functions", CARD, "3").check()
    assert functions(card) == [FIRST, SECOND, THIRD]
    refused = virtpass(card, "device", "functions", CARD, "8")
    assert (refused.status, len(told(refused))) == (4, 1)
    assert functions(card) == [FIRST, SECOND, THIRD]
    virtpass(card, "device", "functions", CARD, "0").check()
    assert functions(card) == []


def test_a_function_goes_to_a_guest_and_comes_back(card: Machine, guest: Guest) -> None:
    virtpass(card, "device", "functions", CARD, "2").check()
    before = card.state()
    virtpass(card, "domain", "attach", guest.name, SECOND).check()
    guest.start().check()
    assert (card.driver(FIRST), card.driver(SECOND)) == ("", "vfio-pci")
    for count in ("0", "1"):
        refused = virtpass(card, "device", "functions", CARD, count)
        assert refused.status == 4
        assert SECOND in refused.error_text
    assert functions(card) == [FIRST, SECOND]
    assert IDS in [seen.ids for seen in guest.wait_ready().values()]
    guest.destroy()
    card.wait_until(lambda: card.state() == before, "the function is as it was")


def test_the_card_itself_goes_to_a_guest_only_without_functions(card: Machine, guest: Guest) -> None:
    """Its driver would remove them, whoever uses them."""
    virtpass(card, "domain", "attach", guest.name, CARD).check()
    virtpass(card, "device", "functions", CARD, "2").check()
    before = card.state()
    refused = guest.start()
    assert refused.status != 0
    assert f"{CARD} has 2 virtual functions, which would vanish from whoever uses them" in refused.error_text
    assert f"virtpass device functions {CARD} 0" in refused.error_text
    assert (card.state(), functions(card), journals(card)) == (before, [FIRST, SECOND], [])
    # Also when one of them is used by another domain.
    other = Guest(card, "other")
    other.define()
    try:
        virtpass(card, "domain", "attach", "other", SECOND).check()
        other.start().check()
        assert guest.start().status != 0
        assert other.state() == "running"
        assert (card.driver(CARD), card.driver(SECOND)) == ("igb", "vfio-pci")
    finally:
        other.remove()
    card.wait_until(lambda: card.state() == before, "the function is as it was")
    virtpass(card, "device", "functions", CARD, "0").check()
    before = card.state()
    guest.start().check()
    assert card.state() == before | {CARD: ("vfio-pci", "vfio-pci")}
    assert "8086:10c9" in {seen.ids for seen in guest.wait_ready().values()}
    guest.destroy()
    card.wait_until(lambda: card.state() == before, "the card is back")


def test_a_function_of_a_domain_that_is_not_ours_stays(card: Machine) -> None:
    """Whoever has the group open, virtpass has no record of it."""
    virtpass(card, "device", "functions", CARD, "1").check()
    virtpass(card, "device", "detach", FIRST).check()
    group = card.pci()[FIRST].group
    holder = card.begin(["sh", "-c", f"exec 3<>/dev/vfio/{group}; echo held > /run/held; exec sleep 600"])
    try:
        card.wait_until(lambda: card.run(["test", "-s", "/run/held"]).status == 0, "the group is open")
        refused = virtpass(card, "device", "functions", CARD, "0")
        assert refused.status == 4
        assert f"{FIRST} is used by a running virtual machine" in refused.error_text
        assert functions(card) == [FIRST]
    finally:
        holder.signal(9)
        holder.wait()
        card.run(["rm", "-f", "/run/held"]).check()


def test_functions_are_there_after_a_reboot(card: Machine) -> None:
    made = virtpass(card, "device", "functions", CARD, "2", "--persistent").check()
    assert told(made) == [f"{CARD} has 2 virtual functions, at every boot"]
    card.reboot()
    assert card.run(["systemctl", "is-active", UNIT]).text.strip() == "active"
    assert functions(card) == [FIRST, SECOND]
    assert [card.driver(one) for one in (FIRST, SECOND)] == ["", ""]
    # Another card at the address: it gets nothing, and the log says why.
    virtpass(card, "device", "functions", CARD, "0").check()
    record = card.get(RECORD).decode()
    card.put(record.replace("8086:10c9", "8086:1521"), RECORD)
    assert card.run(["systemctl", "restart", UNIT]).status != 0
    assert functions(card) == []
    said = card.run(["journalctl", "-b", "-u", UNIT, "-o", "cat"]).check().text
    assert f"virtpass: {CARD} is 8086:10c9" in said
    assert "not 8086:1521" in said
    card.put(record, RECORD)
    card.run(["systemctl", "restart", UNIT]).check()
    assert functions(card) == [FIRST, SECOND]


@pytest.mark.parametrize("managed", ["yes", "no"])
def test_a_start_makes_functions_on_demand_and_the_stop_removes_them(
    card: Machine, guest: Guest, managed: str
) -> None:
    """libvirt looks at a device after the hook's first call only, however the domain's XML manages it."""
    before = card.state()
    made = virtpass(card, "device", "functions", CARD, "2", "--on-demand").check()
    assert told(made) == [f"{CARD} has 2 virtual functions, and whenever a domain needs one"]
    virtpass(card, "domain", "attach", guest.name, SECOND).check()
    if managed == "no":
        xml = card.run(["virsh", "dumpxml", guest.name]).check().text
        card.put(xml.replace("managed='yes'", "managed='no'"), "/run/unmanaged.xml")
        card.run(["virsh", "define", "/run/unmanaged.xml"]).check()
    # Nobody uses them yet.
    assert f"virtual functions of {CARD}: recovered" in virtpass(card, "recover").check().text
    assert card.state() == before
    rehearsed = virtpass(card, "hook", "rehearse", guest.name).check().text
    assert f"make 2 virtual functions of {CARD}; what does not exist yet ({SECOND})" in rehearsed
    for _ in range(2):
        guest.start().check()
        assert functions(card) == [FIRST, SECOND]
        assert (card.driver(CARD), card.driver(FIRST), card.driver(SECOND)) == ("igb", "", "vfio-pci")
        assert IDS in [seen.ids for seen in guest.wait_ready().values()]
        refused = virtpass(card, "device", "functions", CARD, "0")
        assert refused.status == 4
        guest.destroy()
        card.wait_until(lambda: card.state() == before, "the functions are gone")
        assert (functions(card), attribute(card, "sriov_drivers_autoprobe")) == ([], "1")
    assert f"remove 2 virtual functions of {CARD}" in virtpass(card, "log").check().text


def test_recover_takes_functions_back_wherever_the_hook_was_killed(card: Machine, guest: Guest) -> None:
    """Killed before every access of a start that makes them, and of the stop that removes them.

    But for overrides: what a function is bound to is the same before and after.
    """
    virtpass(card, "device", "functions", CARD, "2", "--on-demand").check()
    virtpass(card, "domain", "attach", guest.name, SECOND).check()
    virtpass(card, "recover").check()
    before = left(card)
    seen = set()

    def lend() -> list[str]:
        return accesses(killed(card, guest, "prepare", NEVER).check())

    def make_good(operation: str, number: int, access: str) -> None:
        ended = killed(card, guest, operation, number)
        where = f"{operation} was killed before {access}"
        assert (ended.status, accesses(ended)[-1]) == (-signal.SIGKILL, access), where
        seen.add((operation, attribute(card, "sriov_numvfs"), attribute(card, "sriov_drivers_autoprobe")))
        virtpass(card, "recover").check()
        assert left(card) == before, where

    # The first has to load VFIO's modules.
    lend()
    release(card, guest.name).check()
    whole = lend()
    given_back = accesses(killed(card, guest, "release", NEVER).check())
    assert left(card) == before
    for number, access in enumerate(whole):
        if "driver_override" not in access:
            make_good("prepare", number, access)
    for number, access in enumerate(given_back):
        if "driver_override" not in access:
            lend()
            make_good("release", number, access)
    # Killed when nothing was done, when all was, and in between.
    assert seen == {
        *(("prepare", *one) for one in (("0", "1"), ("0", "0"), ("2", "0"))),
        *(("release", *one) for one in (("2", "0"), ("0", "0"), ("0", "1"))),
    }


def left(machine: Machine) -> tuple[object, ...]:
    """Return what a start on demand could leave behind: functions, a setting, marks and records."""
    autoprobe = attribute(machine, "sriov_drivers_autoprobe")
    marks = machine.run(["ls", "-A", MARKS]).check().text.split()
    return machine.state(), attribute(machine, "sriov_numvfs"), autoprobe, marks, journals(machine)


def test_without_the_driver_of_the_card_the_start_says_so(card: Machine, guest: Guest) -> None:
    virtpass(card, "device", "functions", CARD, "1", "--on-demand").check()
    virtpass(card, "domain", "attach", guest.name, FIRST).check()
    virtpass(card, "recover").check()
    card.run(["sh", "-c", f"echo {CARD} > /sys/bus/pci/drivers/igb/unbind"]).check()
    try:
        failed = guest.start()
        assert failed.status != 0
        assert f"{CARD} is bound to no driver, and only its own driver makes functions" in failed.error_text
        assert journals(card) == []
    finally:
        card.run(["sh", "-c", f"echo {CARD} > /sys/bus/pci/drivers/igb/bind"]).check()
    card.wait_until(lambda: has_driver(card), "igb has the card again")


def test_a_boot_makes_none_on_demand(card: Machine) -> None:
    virtpass(card, "device", "functions", CARD, "2", "--on-demand").check()
    card.reboot()
    card.wait_until(lambda: has_driver(card), "igb has the card")
    assert card.run(["systemctl", "is-active", UNIT]).text.strip() == "active"
    assert functions(card) == []
