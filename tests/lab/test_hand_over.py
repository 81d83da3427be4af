"""The main job on a real kernel with the real libvirt: devices go to domains and come back.

Each test asserts on the machine's state: the driver and the override of every PCI function, which must be
afterwards what they were before.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest

from . import topology
from .guest import READY_TIMEOUT, Guest, domain_xml, draws, hostdev_xml, without_daemon
from .machine import Machine
from .virtpass import (
    AS_LIBVIRT,
    HOOK,
    UNBIND,
    covered,
    journals,
    live_xml,
    never_answering,
    read_json,
    told,
    virtpass,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO, NIC, TWIN = topology.CARD, topology.CARD_AUDIO, topology.NIC, topology.SECOND_NIC
LENT = ("vfio-pci", "vfio-pci")
# Those of libvirt itself take ten seconds each; test_survival.py has two hundred calls of the hook.
ROUNDS = int(os.environ.get("VIRTPASS_LAB_ROUNDS", "8"))
# So many of them until the daemon has all its threads, and how many KiB it may grow in the others.
WARM_UP, GROWTH = 3, 4096

State = dict[str, tuple[str, str]]


@pytest.fixture(scope="module", autouse=True)
def hooked(machine: Machine) -> None:
    """The hook, installed as a user installs it."""
    virtpass(machine, "hook", "install").check()


@pytest.fixture
def before(machine: Machine) -> Iterator[State]:
    """The state at the beginning; it must be the state at the end of each test, with nothing on record."""
    state = machine.state()
    yield state
    machine.wait_until(lambda: machine.state() == state, "every driver and override is as before")
    assert journals(machine) == []


@pytest.fixture
def second(machine: Machine) -> Iterator[Guest]:
    """Another domain."""
    guest = Guest(machine, "second one")
    guest.define()
    yield guest
    guest.remove()


def memory(machine: Machine, process: str) -> int:
    """Return how much memory a process has resident, in KiB."""
    lines = machine.get(f"/proc/{process}/status").decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def give(guest: Guest, *addresses: str) -> None:
    """Attach devices to a domain as a user does."""
    virtpass(guest.machine, "domain", "attach", guest.name, *addresses).check()


def test_a_card_with_audio_goes_to_the_guest_draws_there_and_comes_back(
    machine: Machine, guest: Guest, before: State
) -> None:
    console = machine.picture()
    guest.define(confined=True)
    give(guest, CARD)
    guest.start().check()
    assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
    assert re.fullmatch(r"libvirt-[0-9a-f-]{36} \(enforce\)", guest.confinement())
    seen = guest.wait_ready()
    assert seen["0000:01:00.0"].driver == "bochs-drm"
    assert seen["0000:01:00.1"].driver == "snd_hda_intel"
    machine.wait_until(lambda: draws(machine.picture()), "the guest draws on the card")
    lent = {one["address"]: one["lent_to"] for one in read_json(machine, "devices")}
    assert lent[CARD] == lent[AUDIO] == "guest"
    guest.shutdown()
    machine.wait_until(lambda: machine.state() == before, "the card is back after the guest's shutdown")
    machine.wait_until(lambda: console.difference(machine.picture()) < 0.01, "the console is on the screen")


def test_destroy_brings_it_back_too(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    guest.start().check()
    machine.run(["virsh", "destroy", "guest"], timeout=120).check()
    assert machine.state() == before


def test_the_identical_twin_stays_on_the_host(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, NIC)
    guest.start().check()
    assert machine.state() == before | {NIC: LENT}
    guest.destroy()


def test_a_group_that_cannot_be_split_is_refused_before_anything_is_written(
    machine: Machine, guest: Guest, before: State
) -> None:
    xml = live_xml(machine, "guest")
    for address in (topology.CHIPSET[1], topology.BRIDGED_OTHER):
        refused = virtpass(machine, "domain", "attach", "guest", address)
        assert refused.status == 4
        assert len(told(refused)) == 1
        assert "group" in refused.error_text
    assert live_xml(machine, "guest") == xml
    # And if virt-manager puts it there: the hook refuses, and libvirt has touched nothing yet.
    guest.define(hostdev_xml(topology.BRIDGED_OTHER, bus=1))
    virtpass(machine, "domain", "adopt", "guest").check()
    failed = guest.start()
    assert failed.status != 0
    assert f"{topology.BRIDGED_NIC} (e1000) would stay with the host" in failed.error_text


def test_a_device_that_was_on_vfio_pci_stays_there(machine: Machine, guest: Guest, before: State) -> None:
    virtpass(machine, "device", "detach", NIC).check()
    detached = machine.state()
    assert detached[NIC][0] == "vfio-pci"
    give(guest, NIC)
    guest.start().check()
    guest.destroy()
    assert machine.state() == detached
    virtpass(machine, "device", "reattach", NIC).check()


def test_when_the_second_function_cannot_be_bound_everything_is_back(
    machine: Machine, guest: Guest, before: State
) -> None:
    give(guest, CARD)
    with covered(machine, UNBIND.format(driver="bochs-drm"), "/dev/full"):
        failed = guest.start()
        assert failed.status != 0
        assert machine.state() == before
    assert f"virtpass: {CARD}: unbind bochs-drm: No space left on device" in failed.error_text
    assert guest.state() == "shut off"
    guest.start().check()
    assert machine.state()[CARD] == LENT
    guest.destroy()


def killed_half_way(machine: Machine) -> None:
    """Wait until the hook waits at the card with the audio function on vfio-pci already; then kill it."""
    machine.wait_until(lambda: machine.driver(AUDIO) == "vfio-pci", "the hook is half done")
    (hook,) = machine.run(["pgrep", "-f", "-o", "virtpass.hook.entry"]).text.split()
    machine.run(["kill", "-9", hook]).check()
    assert machine.driver(CARD) == "bochs-drm"


def test_a_hook_that_is_killed_half_way_is_made_good_by_recover(
    machine: Machine, guest: Guest, before: State
) -> None:
    give(guest, CARD)
    xml = live_xml(machine, "guest")
    with never_answering(machine, UNBIND.format(driver="bochs-drm")):
        hook = machine.begin([*AS_LIBVIRT, HOOK, "guest", "prepare", "begin", "-"], xml)
        killed_half_way(machine)
        assert hook.wait().status == -signal.SIGKILL
    half_done = machine.state()
    assert half_done[AUDIO] == LENT
    planned = virtpass(machine, "recover", "--dry-run").check()
    assert f"{AUDIO}: unbind from vfio-pci" in planned.text
    assert machine.state() == half_done
    virtpass(machine, "recover").check()
    assert machine.state() == before
    assert "nothing to recover" in virtpass(machine, "recover").check().text


def test_a_hook_that_is_killed_while_libvirt_waits(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    with never_answering(machine, UNBIND.format(driver="bochs-drm")):
        start = machine.begin(["virsh", "start", "guest"])
        killed_half_way(machine)
        assert start.wait().status != 0
    # libvirt called the hook once more, for the release.
    machine.wait_until(lambda: machine.state() == before, "the release has put everything back")


def test_a_driver_that_hangs_does_not_hang_libvirt(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, NIC)
    with never_answering(machine, UNBIND.format(driver="e1000e")):
        start = machine.begin(["virsh", "start", "guest"])
        machine.wait_until(lambda: machine.state()[NIC][1] == "vfio-pci", "the hook waits for the driver")
        assert machine.run(["virsh", "version"], timeout=20).status == 0
        began = time.monotonic()
        failed = start.wait()
        assert time.monotonic() - began < 60
        assert (
            f"{NIC}: unbind e1000e does not come back from the driver; reboot the host" in failed.error_text
        )
        machine.run(["virsh", "list", "--all"], timeout=20).check()
    again = guest.start()
    assert f"a driver hangs with {NIC}" in again.error_text
    # What a reboot does: the mark and the record lie in /run.
    machine.run(["rm", "-r", "/run/virtpass/stuck", "/run/virtpass/lent"]).check()
    machine.run(["sh", "-c", f"echo > /sys/bus/pci/devices/{NIC}/driver_override"]).check()


def test_the_daemon_is_restarted_while_the_guest_runs(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    guest.start().check()
    machine.run(["systemctl", "restart", "libvirtd"], timeout=120).check()
    machine.wait_until(lambda: guest.state() == "running", "libvirt knows the guest again")
    assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
    assert "running, left alone" in virtpass(machine, "recover").check().text
    guest.destroy()
    assert machine.state() == before


def test_two_domains_want_the_same_card(machine: Machine, guest: Guest, second: Guest, before: State) -> None:
    give(guest, CARD)
    noted = virtpass(machine, "domain", "attach", second.name, CARD).check()
    assert "guest" in noted.error_text
    guest.start().check()
    lent = machine.state()
    refused = second.start()
    assert refused.status != 0
    assert f"virtpass: {AUDIO} is lent to the domain guest; shut that down first" in refused.error_text
    assert machine.state() == lent
    assert guest.state() == "running"
    guest.destroy()
    second.start().check()
    assert machine.state() == lent
    second.destroy()


def test_two_domains_race_for_the_same_card(
    machine: Machine, guest: Guest, second: Guest, before: State
) -> None:
    give(guest, CARD)
    give(second, CARD)
    for first, last in ((guest, second), (second, guest), (guest, second)):
        starts = {one: machine.begin(["virsh", "start", one.name]) for one in (first, last)}
        ended = {one: start.wait() for one, start in starts.items()}
        (winner,) = [one for one, result in ended.items() if result.status == 0]
        (loser,) = [one for one in ended if one is not winner]
        # The one line that virt-manager shows of the hook.
        (line,) = [line for line in ended[loser].error_text.splitlines() if "virtpass: " in line]
        assert f" is lent to the domain {winner.name}; shut that down first" in line
        assert (winner.state(), loser.state()) == ("running", "shut off")
        assert machine.state() == before | {CARD: LENT, AUDIO: LENT}
        lent = {one["address"]: one["lent_to"] for one in read_json(machine, "devices")}
        assert lent[CARD] == lent[AUDIO] == winner.name
        assert len(journals(machine)) == 1
        machine.run(["virsh", "destroy", winner.name], timeout=120).check()
        assert machine.state() == before
        assert journals(machine) == []


def test_a_crash_of_qemu_gives_everything_back(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    guest.start().check()
    assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
    guest.kill()
    machine.wait_until(lambda: is_back(machine, before), "libvirt has noticed, and the hook given back")
    assert guest.state() == "shut off"


def test_a_crash_of_qemu_while_the_daemon_is_stopped(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    guest.start().check()
    with without_daemon(machine):
        guest.kill()
        assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
        assert len(journals(machine)) == 1
    machine.wait_until(lambda: is_back(machine, before), "the daemon has noticed at its start")
    assert guest.state() == "shut off"


def is_back(machine: Machine, before: State) -> bool:
    """Return whether all drivers and overrides are as before, with nothing on record."""
    return machine.state() == before and journals(machine) == []


def test_a_guest_that_reboots_keeps_the_card(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    guest.start().check()
    guest.wait_ready()
    machine.wait_until(lambda: draws(machine.picture()), "the guest draws on the card")
    handed_over = read_json(machine, "log", guest.name)
    assert handed_over

    def is_drawn(drawn: bool) -> bool:
        assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
        return draws(machine.picture()) == drawn

    guest.forget_serial()
    machine.run(["virsh", "reboot", guest.name]).check()
    machine.wait_until(lambda: is_drawn(False), "the reboot has cleared the screen")
    machine.wait_until(lambda: is_drawn(True), "the guest draws again", READY_TIMEOUT)
    assert guest.wait_ready()["0000:01:00.0"].driver == "bochs-drm"
    assert read_json(machine, "log", guest.name) == handed_over
    guest.destroy()


def test_a_start_that_fails_after_the_hook(machine: Machine, guest: Guest, before: State) -> None:
    missing = "<disk type='file'><source file='/nonexistent.img'/><target dev='vda' bus='virtio'/></disk>"
    guest.define(missing)
    give(guest, CARD)
    assert guest.start().status != 0
    assert machine.state() == before


def test_a_save_that_qemu_refuses_leaves_the_card_with_the_guest(
    machine: Machine, guest: Guest, before: State
) -> None:
    give(guest, CARD)
    guest.start().check()
    lent = machine.state()
    assert machine.run(["virsh", "managedsave", "guest"], timeout=120).status != 0
    assert guest.state() == "running"
    assert machine.state() == lent
    guest.destroy()


def test_a_domain_without_our_metadata_is_untouched(machine: Machine, guest: Guest, before: State) -> None:
    guest.define(hostdev_xml(NIC, bus=1))
    xml = live_xml(machine, "guest")
    guest.start().check()
    assert machine.driver(NIC) == "vfio-pci"
    assert journals(machine) == []
    guest.destroy()
    assert live_xml(machine, "guest") == xml
    assert machine.state() == before


def test_a_foreign_domain_is_saved_and_restored_as_ever(
    machine: Machine, guest: Guest, before: State
) -> None:
    guest.start().check()
    machine.run(["virsh", "managedsave", "guest"], timeout=300).check()
    assert guest.state() == "shut off"
    machine.run(["virsh", "start", "guest"], timeout=300).check()
    assert guest.state() == "running"
    guest.destroy()


def test_a_domain_that_was_saved_without_its_device_is_restored_without(
    machine: Machine, guest: Guest, before: State
) -> None:
    """QEMU saves no domain that has a device of the host; one that it had comes back with the save."""
    give(guest, NIC)
    guest.start().check()
    guest.wait_ready()
    assert machine.state()[NIC] == LENT
    device = hostdev_xml(NIC, bus=1).partition("</source>")[0] + "</source></hostdev>"
    machine.run(["virsh", "detach-device", "guest", "/dev/stdin", "--live"], device.encode()).check()
    machine.wait_until(lambda: b"<hostdev" not in live_xml(machine, "guest"), "the guest has let it go", 120)
    machine.run(["virsh", "managedsave", "guest"], timeout=300).check()
    assert machine.state() == before
    assert journals(machine) == []
    # The XML that is restored has our metadata, and no device.
    machine.run(["virsh", "start", "guest"], timeout=300).check()
    assert guest.state() == "running"
    assert b"urn:virtpass" in live_xml(machine, "guest")
    assert machine.state() == before
    assert journals(machine) == []
    guest.destroy()
    guest.start().check()
    assert machine.state()[NIC] == LENT
    guest.destroy()


def test_a_card_that_was_exchanged_is_noticed(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, NIC)
    recorded = live_xml(machine, "guest")
    xml = recorded.replace(b'device="0x10d3"', b'device="0x10d4"')
    assert xml != recorded
    machine.run(["virsh", "define", "/dev/stdin"], xml).check()
    refused = guest.start()
    assert f"{NIC} is 8086:10d3" in refused.error_text


def test_a_card_that_a_program_uses_is_not_taken(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    holder = machine.begin(["sh", "-c", "exec sleep 1000 < /dev/dri/card0"])
    machine.wait_until(
        lambda: bool(read_json(machine, "device", "show", CARD)["used_by"]), "the program has the card open"
    )
    refused = guest.start()
    assert refused.status != 0
    assert "in use by sleep (process " in refused.error_text
    assert machine.state() == before
    holder.signal(signal.SIGTERM)
    holder.wait()
    guest.start().check()
    guest.destroy()


def test_node_devices_are_detached_reset_and_reattached(machine: Machine, before: State) -> None:
    virtpass(machine, "device", "detach", topology.NVME).check()
    assert machine.state()[topology.NVME][0] == "vfio-pci"
    assert "already" in virtpass(machine, "device", "detach", topology.NVME).check().error_text
    virtpass(machine, "device", "reset", topology.NVME).check()
    virtpass(machine, "device", "reattach", topology.NVME).check()
    assert machine.state() == before
    assert "already" in virtpass(machine, "device", "reattach", topology.NVME).check().error_text
    virtpass(machine, "device", "detach", topology.CARD, topology.CARD_AUDIO).check()
    assert {machine.driver(one) for one in (topology.CARD, topology.CARD_AUDIO)} == {"vfio-pci"}
    virtpass(machine, "device", "reattach", topology.CARD, topology.CARD_AUDIO).check()
    assert machine.state() == before
    assert virtpass(machine, "device", "detach", topology.CARD, topology.BOOT_DISK).status == 4
    assert machine.state() == before
    assert virtpass(machine, "device", "detach", topology.BRIDGE).status == 4
    assert virtpass(machine, "device", "reattach", "0000:1e:00.0").status == 3


def test_a_domain_comes_back_byte_for_byte(machine: Machine, guest: Guest, before: State) -> None:
    xml = machine.run(["virsh", "dumpxml", "--inactive", "guest"]).check().text
    give(guest, CARD, NIC)
    attached = machine.run(["virsh", "dumpxml", "--inactive", "guest"]).check().text
    assert attached != xml
    give(guest, CARD, NIC)
    assert machine.run(["virsh", "dumpxml", "--inactive", "guest"]).check().text == attached
    virtpass(machine, "domain", "detach", "guest", CARD, NIC).check()
    assert machine.run(["virsh", "dumpxml", "--inactive", "guest"]).check().text == xml


# With double quotes or backslashes in its name, no domain starts under AppArmor, whoever starts it.
@pytest.mark.parametrize("name", ["-x y", "it's", "Größe ⚙", "$(reboot)%s"])
def test_names_that_people_give(machine: Machine, before: State, name: str) -> None:
    from xml.sax.saxutils import escape

    xml = domain_xml(machine, "placeholder").replace("<name>placeholder", f"<name>{escape(name)}")
    machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()
    try:
        virtpass(machine, "domain", "attach", "--", name, NIC).check()
        machine.run(["virsh", "start", "--domain", name], timeout=180).check()
        assert machine.state()[NIC] == LENT
        assert {one["lent_to"] for one in read_json(machine, "devices")} == {None, name}
        machine.run(["virsh", "destroy", "--domain", name], timeout=120).check()
        assert machine.state() == before
    finally:
        machine.run(["virsh", "undefine", "--domain", name]).check()


def test_many_rounds(machine: Machine, guest: Guest, before: State) -> None:
    give(guest, CARD)
    daemon = machine.daemon()
    descriptors = machine.run(["ls", f"/proc/{daemon}/fd"]).text.count("\n")
    resident = []
    for _ in range(ROUNDS):
        guest.start().check()
        assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
        machine.run(["virsh", "destroy", "guest"], timeout=120).check()
        assert machine.state() == before
        resident.append(memory(machine, daemon))
    assert resident[-1] - resident[WARM_UP - 1] < GROWTH, resident
    assert abs(machine.run(["ls", f"/proc/{daemon}/fd"]).text.count("\n") - descriptors) < ROUNDS / 2
    assert machine.run(["pgrep", "-fc", "virtpass.hook.entry"]).text.strip() == "0"
