"""Devices that vanish or are exchanged, power that fails, hooks that are killed anywhere, and many rounds."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from . import topology
from .confinement import assert_confined, denied
from .guest import Guest, domain_xml, hostdev_xml, without_daemon
from .killed import killed, stopping
from .machine import Machine
from .virtpass import AS_LIBVIRT, HOOK, call_hook, journals, live_xml, prepare, read_json, release, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO, NIC, PLUGGED = topology.CARD, topology.CARD_AUDIO, topology.NIC, topology.PLUGGED
LENT = ("vfio-pci", "vfio-pci")
WAITING, GO = "/run/step-waits", "/run/step-may-go"
STEP = "/etc/virtpass/hooks.d/prepare.d/50-waits"
HOME = ("e1000e", "")
# Before which access of the hook a NIC goes, when another one is on vfio-pci already, or still.
DURING_A_START = {"bound": f"e1000e/unbind {PLUGGED}", "unbound": f"drivers_probe {PLUGGED}"}
DURING_A_STOP = {
    "untouched": f"{PLUGGED}/driver_override e1000e",
    "lent": f"vfio-pci/unbind {PLUGGED}",
    "at-home": f"{PLUGGED}/d3cold_allowed 1",
}
# Milliseconds of a step: less than what a driver that hangs is waited for.
WITHOUT_A_WAIT = 25000
ROUNDS = 200
# So many of them until caches, pools and the log have their size.
WARM_UP = 20
# The guest of the rounds has 16 MiB, and pages of 2 MiB.
SMALL, PAGES = 16, 8
# What one thing in two rounds would come to, 64 KiB in each, and 16 KiB of the kernel's own. Seen: none.
ALLOWED = {"files": 90, "processes": 90, "memory": 11520, "slab": 2880}
BACKED = "<memoryBacking><hugepages/></memoryBacking>"


@pytest.fixture(scope="module", autouse=True)
def hooked(machine: Machine) -> None:
    virtpass(machine, "hook", "install").check()


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    """Whatever a test does, the host is afterwards what it was before."""
    before = traces(machine)
    yield
    machine.wait_until(lambda: traces(machine) == before, "everything is as before")
    assert journals(machine) == []


def traces(machine: Machine) -> tuple[object, ...]:
    """Return what a hand-over could leave behind: drivers, huge pages, files, processes."""
    memory = meminfo(machine)
    files = machine.run(["find", "/run/virtpass", "-type", "f", "!", "-name", "lock"]).text
    hooks = machine.run(["pgrep", "-f", "virtpass.hook.entry"]).text
    return machine.state(), memory["HugePages_Total"], memory["HugePages_Free"], files, hooks


def meminfo(machine: Machine) -> dict[str, int]:
    """Return what the kernel says of its memory, in KiB or pages."""
    fields = (line.split() for line in machine.get("/proc/meminfo").decode().splitlines())
    return {name.rstrip(":"): int(value) for name, value, *_ in fields}


def used_up(machine: Machine) -> dict[str, int]:
    """Return where leaks add up: open files, processes, KiB of memory, and those of the kernel's own."""
    machine.run(["sh", "-c", "sync; echo 3 > /proc/sys/vm/drop_caches"], timeout=120).check()
    memory = meminfo(machine)
    # The log lies in memory, and grows by megabytes at a time.
    log = int(machine.run(["du", "-sk", "/run/log/journal"]).check().text.split()[0])
    return {
        "files": int(machine.get("/proc/sys/fs/file-nr").split()[0]),
        # But for the kernel's own, whose children they are: these come and go.
        "processes": machine.run(["ps", "-N", "-p", "2", "--ppid", "2", "--no-headers"]).text.count("\n"),
        "memory": memory["MemTotal"] - memory["MemAvailable"] - log,
        "slab": memory["Slab"],
    }


def give(guest: Guest, *addresses: str) -> None:
    virtpass(guest.machine, "domain", "attach", guest.name, *addresses).check()


@pytest.fixture
def extra(machine: Machine) -> Iterator[str]:
    """One more NIC, in a slot from which it can be pulled."""
    plug_in(machine)
    yield PLUGGED
    if PLUGGED in machine.pci():
        machine.unplug("extra")
        machine.wait_until(lambda: PLUGGED not in machine.pci(), "the NIC is gone")


def has_driver(machine: Machine) -> bool:
    return machine.pci().get(PLUGGED) is not None and machine.driver(PLUGGED) == "e1000e"


def test_a_device_is_pulled_out_while_a_guest_has_it(machine: Machine, guest: Guest, extra: str) -> None:
    others = {address: state for address, state in machine.state().items() if address != extra}
    give(guest, NIC, extra)
    guest.start().check()
    assert machine.state()[NIC] == machine.state()[extra] == LENT
    pull(machine)
    guest.destroy()
    machine.wait_until(lambda: machine.state() == others, "the other NIC is back")
    assert journals(machine) == []
    refused = guest.start()
    assert refused.status != 0
    assert extra in refused.error_text
    assert machine.state() == others
    # For whoever looks what this test has left.
    plug_in(machine)


def test_a_device_is_pulled_out_while_it_is_handed_over(machine: Machine, guest: Guest, extra: str) -> None:
    others = {address: state for address, state in machine.state().items() if address != extra}
    give(guest, NIC, extra)
    machine.run(["mkdir", "-p", STEP.rpartition("/")[0]]).check()
    wait = f"#!/bin/sh\n: > {WAITING}\nwhile [ ! -e {GO} ]; do sleep 0.1; done\n"
    machine.put(wait, STEP, mode=0o755)
    try:
        start = machine.begin(["virsh", "start", guest.name], timeout=180)
        machine.wait_until(lambda: machine.run(["test", "-e", WAITING]).status == 0, "the checks are over")
        pull(machine)
        machine.run(["touch", GO]).check()
        failed = start.wait()
    finally:
        machine.run(["rm", "-rf", STEP, WAITING, GO]).check()
    assert failed.status != 0
    assert extra in failed.error_text
    assert guest.state() == "shut off"
    machine.wait_until(lambda: machine.state() == others, "the other NIC is back")
    assert journals(machine) == []
    plug_in(machine)


@pytest.mark.parametrize("access", DURING_A_START.values(), ids=DURING_A_START.keys())
def test_a_device_is_pulled_out_between_the_writes_of_a_start(
    machine: Machine, guest: Guest, extra: str, access: str
) -> None:
    give(guest, NIC, extra)
    with stopping(machine, access) as hook:
        start = machine.begin(["virsh", "start", guest.name], timeout=180)
        hook.wait()
        others = pull(machine)
        assert others[NIC] == LENT
        hook.go_on()
        failed = start.wait()
    assert nothing_was_waited_for(machine)
    (line,) = [line for line in failed.error_text.splitlines() if "virtpass: " in line]
    assert f"virtpass: {extra}" in line
    assert "not everything could be put back" not in line
    assert failed.status != 0
    assert guest.state() == "shut off"
    assert machine.state() == others | {NIC: HOME}
    assert journals(machine) == []
    plug_in(machine)
    prepare(machine, guest.name).check()
    assert machine.state()[NIC] == machine.state()[PLUGGED] == LENT
    release(machine, guest.name).check()


@pytest.mark.parametrize("access", DURING_A_STOP.values(), ids=DURING_A_STOP.keys())
def test_a_device_is_pulled_out_between_the_writes_of_a_stop(
    machine: Machine, guest: Guest, extra: str, access: str
) -> None:
    give(guest, NIC, extra)
    prepare(machine, guest.name).check()
    xml = live_xml(machine, guest.name)
    with stopping(machine, access) as hook:
        stop = machine.begin([*AS_LIBVIRT, HOOK, guest.name, "release", "end", "-"], xml)
        hook.wait()
        others = pull(machine)
        hook.go_on()
        ended = stop.wait()
    assert nothing_was_waited_for(machine)
    # What is gone has nothing to be given back.
    assert ended.status == 0, str(ended)
    assert machine.state() == others | {NIC: HOME}
    assert journals(machine) == []
    plug_in(machine)


def nothing_was_waited_for(machine: Machine) -> bool:
    """Tell whether no driver was waited for in the last hand-over, but for the step that a test stopped."""
    (last,) = read_json(machine, "log", "-n", "1")
    longest = sorted(step["milliseconds"] for step in last["steps"])
    return len(longest) > 1 and longest[-2] < WITHOUT_A_WAIT


def pull(machine: Machine) -> dict[str, tuple[str, str]]:
    """Pull the NIC out, and return what is there without it."""
    machine.unplug("extra", timeout=120)
    machine.wait_until(lambda: PLUGGED not in machine.pci(), "the NIC is gone")
    return machine.state()


def plug_in(machine: Machine) -> None:
    """Plug the NIC in, perhaps again: the host has it with its driver."""
    machine.plug("e1000e", "extra", topology.EMPTY_PORT)
    machine.wait_until(lambda: has_driver(machine), "the NIC has its driver")
    assert machine.state()[PLUGGED] == HOME


def test_another_device_at_the_address_is_not_taken(machine: Machine, guest: Guest, extra: str) -> None:
    give(guest, extra)
    pull(machine)
    machine.plug("igb", "extra", topology.EMPTY_PORT)
    machine.wait_until(
        lambda: extra in machine.pci() and machine.driver(extra) == "igb", "the other NIC has its driver"
    )
    refused = guest.start()
    assert refused.status != 0
    assert f"{extra} is 8086:10c9" in refused.error_text
    assert machine.driver(extra) == "igb"
    pull(machine)
    plug_in(machine)


def test_a_nic_is_plugged_into_a_running_guest_by_virsh_and_out(machine: Machine, guest: Guest) -> None:
    """virt-manager does the same; libvirt moves the driver itself, and the hook is not asked."""
    port = "<controller type='pci' model='pcie-root-port'/>"
    guest.define(port * 4)
    give(guest, CARD)
    before = machine.state()
    guest.start().check()
    guest.wait_ready()
    device = hostdev_xml(NIC, bus=1).replace(" bus='0x01'", "").partition("</source>")[0]
    xml = f"{device}</source></hostdev>".encode()
    machine.run(["virsh", "attach-device", guest.name, "/dev/stdin", "--live"], xml).check()
    assert machine.state()[NIC][0] == "vfio-pci"
    assert machine.state()[CARD] == LENT
    machine.run(["virsh", "detach-device", guest.name, "/dev/stdin", "--live"], xml, timeout=120).check()
    machine.wait_until(lambda: machine.state()[NIC] == before[NIC], "the NIC is back", 120)
    assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
    guest.destroy()


@pytest.fixture
def backed(machine: Machine, guest: Guest) -> Guest:
    """A guest with a NIC, whose memory is to lie in huge pages."""
    give_backed(guest, memory=256)
    return guest


def give_backed(guest: Guest, memory: int) -> None:
    """Attach the NIC to the domain, and let its `memory` MiB lie in huge pages."""
    xml = domain_xml(guest.machine, guest.name, memory=memory).replace("<vcpu>", f"{BACKED}<vcpu>")
    guest.machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()
    virtpass(guest.machine, "domain", "attach", guest.name, NIC, "--policy", "huge-pages=yes").check()


def test_a_hook_that_is_killed_anywhere_is_made_good(machine: Machine, backed: Guest) -> None:
    before = traces(machine)
    points = {"prepare": 0, "release": 0}
    for access in range(100):
        ended = killed(machine, backed, "prepare", access)
        if ended.status == 0:
            points["prepare"] = access
            break
        assert ended.status == -signal.SIGKILL, str(ended)
        virtpass(machine, "recover").check()
        assert traces(machine) == before, f"killed before access {access} of prepare"
    for access in range(100):
        assert machine.state()[NIC] == LENT
        ended = killed(machine, backed, "release", access)
        if ended.status == 0:
            points["release"] = access
            break
        assert ended.status == -signal.SIGKILL, str(ended)
        virtpass(machine, "recover").check()
        assert traces(machine) == before, f"killed before access {access} of release"
        call_hook(machine, backed.name, "prepare", "begin", live_xml(machine, backed.name)).check()
    assert traces(machine) == before
    # Records, drivers and pages each way: fewer would mean that nothing was cut off.
    assert points["prepare"] >= 6 and points["release"] >= 4, points


def test_two_hundred_rounds_leave_nothing_behind(machine: Machine, guest: Guest) -> None:
    """What libvirt calls at each start and stop; test_hand_over.py has rounds with libvirt itself."""
    give_backed(guest, memory=SMALL)
    xml = live_xml(machine, guest.name)
    before = traces(machine)
    # It ends by itself when nobody asks it anything: what that sets free would make up for leaks.
    with without_daemon(machine):
        run_rounds(machine, guest.name, xml, WARM_UP)
        warm = used_up(machine)
        run_rounds(machine, guest.name, xml, ROUNDS - WARM_UP)
        grown = {name: now - warm[name] for name, now in used_up(machine).items()}
    assert {name: grown[name] for name, allowed in ALLOWED.items() if grown[name] >= allowed} == {}
    assert traces(machine) == before


def run_rounds(machine: Machine, name: str, xml: bytes, number: int) -> None:
    """Give the NIC and the huge pages to the domain and take them back, so many times."""
    # One command that starts nothing but the hook: else most of the time goes elsewhere.
    hook = " ".join((*AS_LIBVIRT, HOOK))
    driver, drivers = f"/sys/bus/pci/devices/{NIC}/driver", "/sys/bus/pci/drivers"
    rounds = (
        f"i=0; while [ $i -lt {number} ]; do i=$((i + 1))\n"
        f'printf %s "$1" | {hook} {name} prepare begin - || exit 1\n'
        f"[ {driver} -ef {drivers}/vfio-pci ] || exit 2\n"
        f"read -r pages </proc/sys/vm/nr_hugepages; [ $pages = {PAGES} ] || exit 5\n"
        f'printf %s "$1" | {hook} {name} release end - || exit 3\n'
        f"[ {driver} -ef {drivers}/e1000e ] || exit 4\n"
        "done; echo $i"
    )
    said = machine.run(["sh", "-c", rounds, "sh", xml.decode()], timeout=1800).check()
    assert said.text.strip() == str(number)


def test_what_apparmor_denies_a_hook_is_noticed(machine: Machine, denials: list[str]) -> None:
    """Else that it has denied nothing would say nothing."""
    other = f"{HOOK}-that-is-denied"
    machine.put("#!/bin/sh\nexec /run/anything\n", other, mode=0o755)
    machine.put("#!/bin/sh\n", "/run/anything", mode=0o755)
    try:
        call = [*AS_LIBVIRT, other, "guest", "prepare", "begin", "-"]
        assert "Permission denied" in machine.run(call).error_text
    finally:
        machine.run(["rm", other, "/run/anything"]).check()
    machine.wait_until(lambda: len(denied(machine)) > len(denials), "the log tells of it")
    (line,) = [line for line in denied(machine) if line not in denials]
    assert 'profile="libvirtd" name="/run/anything"' in line
    denials.append(line)


def test_the_power_fails_while_a_guest_has_the_card(
    machine: Machine, guest: Guest, denials: list[str]
) -> None:
    """The last test here: the machine boots again."""
    before = traces(machine)
    give_backed(guest, memory=256)
    give(guest, CARD)
    guest.start().check()
    assert machine.state()[CARD] == machine.state()[NIC] == LENT
    assert traces(machine)[1] == 128
    machine.put("written", "/root/written")
    machine.run(["sync"]).check()
    machine.put("lost", "/run/lost")
    # The log goes with the power.
    assert [line for line in denied(machine) if line not in denials] == []
    machine.reset()
    # It was a power cut indeed.
    assert machine.get("/root/written") == b"written"
    assert machine.run(["test", "-e", "/run/lost"]).status == 1
    assert_confined(machine)
    assert traces(machine) == before
    assert journals(machine) == []
    assert guest.state() == "shut off"
    guest.start().check()
    assert machine.state()[CARD] == machine.state()[NIC] == LENT
    guest.destroy()
