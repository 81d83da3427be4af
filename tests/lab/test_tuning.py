"""What a hand-over does beside drivers: huge pages, the administrator's steps, the log; and its rehearsal."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import product

import pytest

from . import topology
from .guest import Guest, domain_xml
from .killed import NEVER, accesses, killed, telling
from .machine import Machine
from .virtpass import HOOK, journals, release, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO, NIC = topology.CARD, topology.CARD_AUDIO, topology.NIC
# The guest has 256 MiB, and pages of 2 MiB.
PAGES = 128
BACKED = "<memoryBacking><hugepages/></memoryBacking>"
STEPS = "/etc/virtpass/hooks.d"
PREPARE, RELEASE = "prepare", "release"


def pool(machine: Machine) -> int:
    """Return how many huge pages the host has."""
    lines = machine.get("/proc/meminfo").decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("HugePages_Total:")))


@pytest.fixture(scope="module", autouse=True)
def hooked(machine: Machine) -> None:
    virtpass(machine, "hook", "install").check()


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[None]:
    """Whatever a test does, the host is afterwards what it was before."""
    before = (machine.state(), pool(machine))
    yield
    assert (machine.state(), pool(machine)) == before
    assert journals(machine) == []


@pytest.fixture
def backed(machine: Machine, guest: Guest) -> Guest:
    """A guest whose memory is to lie in huge pages, with a NIC."""
    xml = domain_xml(machine, guest.name).replace("<vcpu>", f"{BACKED}<vcpu>")
    machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()
    virtpass(machine, "domain", "attach", guest.name, NIC, "--policy", "huge-pages=yes").check()
    return guest


@pytest.fixture
def steps(machine: Machine) -> Iterator[str]:
    """A folder for steps, each of which tells a file what it was called with."""
    for event in ("prepare", "release"):
        machine.run(["mkdir", "-p", f"{STEPS}/{event}.d"]).check()
        step(machine, event, f'echo "$VIRTPASS_EVENT $1 $VIRTPASS_DEVICES" >> {STEPS}/told\n')
    yield f"{STEPS}/told"
    machine.run(["rm", "-r", STEPS]).check()


def step(machine: Machine, event: str, text: str, name: str = "50-tell") -> None:
    path = f"{STEPS}/{event}.d/{name}"
    machine.put(f"#!/bin/sh\n{text}", path)
    machine.run(["chmod", "755", path]).check()


def test_huge_pages_are_there_for_the_guest_and_gone_after_it(machine: Machine, backed: Guest) -> None:
    before = pool(machine)
    rehearsed = json.loads(virtpass(machine, "hook", "rehearse", backed.name, "--json").check().text)
    assert rehearsed["would_start"] is True
    assert any("huge pages" in one["text"] for one in rehearsed["steps"])
    assert pool(machine) == before
    backed.start().check()
    assert pool(machine) == before + PAGES
    assert machine.run(["grep", "-c", "hugepages", "/proc/mounts"]).status == 0
    backed.destroy()
    assert pool(machine) == before


def test_pages_that_cannot_be_had_stop_the_start(machine: Machine, guest: Guest) -> None:
    xml = domain_xml(machine, guest.name, memory=64 << 10).replace("<vcpu>", f"{BACKED}<vcpu>")
    machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()
    virtpass(machine, "domain", "attach", guest.name, NIC, "--policy", "huge-pages=yes").check()
    failed = guest.start()
    assert failed.status != 0
    assert "MiB" in failed.error_text
    assert "virtpass: " in failed.error_text


def test_a_killed_hook_leaves_pages_that_recover_takes_back(
    machine: Machine, backed: Guest, steps: str
) -> None:
    before = pool(machine)
    # By now the pages are there, and the drivers are not yet touched.
    step(machine, PREPARE, cut_off_in(steps), "60-kill")
    failed = backed.start()
    assert failed.status != 0
    assert str(signal.SIGKILL.value) in failed.error_text or "signal" in failed.error_text
    machine.run(["rm", f"{STEPS}/prepare.d/60-kill"]).check()
    # libvirt calls the hook once more, for the release.
    machine.wait_until(lambda: pool(machine) == before, "the pages are given back")
    told = machine.get(steps).decode().splitlines()
    assert told == [f"{PREPARE} {backed.name} {NIC}", "slow ends", f"{RELEASE} {backed.name} {NIC}"]
    backed.start().check()
    backed.destroy()


def test_steps_of_the_administrator_run_and_roll_back(machine: Machine, guest: Guest, steps: str) -> None:
    virtpass(machine, "domain", "attach", guest.name, CARD).check()
    guest.start().check()
    guest.destroy()
    told = machine.get(steps).decode().splitlines()
    assert told == [f"prepare {guest.name} {CARD} {AUDIO}", f"release {guest.name} {CARD} {AUDIO}"]

    step(machine, "prepare", "echo no licence >&2\nexit 3\n", "70-fails")
    state = machine.state()
    failed = guest.start()
    assert failed.status != 0
    assert f"{STEPS}/prepare.d/70-fails" in failed.error_text
    assert "no licence" in failed.error_text
    assert machine.state() == state
    # What had begun was told of the end.
    assert machine.get(steps).decode().splitlines()[2:] == [
        f"prepare {guest.name} {CARD} {AUDIO}",
        f"release {guest.name} {CARD} {AUDIO}",
    ]

    machine.run(["chmod", "777", f"{STEPS}/prepare.d/70-fails"]).check()
    refused = guest.start()
    assert refused.status != 0
    assert "70-fails" in refused.error_text
    assert len(machine.get(steps).decode().splitlines()) == 4


def test_steps_are_undone_as_documented_wherever_the_hook_was_killed(
    machine: Machine, guest: Guest, steps: str
) -> None:
    """Those of the release run if those of prepare may have begun, and again if they were cut off.

    Killed before every access; of those to the device, which have nothing to do with steps, before the first
    and the last.
    """
    names = ("20-first", "50-tell")
    for event, name in product((PREPARE, RELEASE), names):
        step(machine, event, f'echo "$2 ${{0##*/}}" >> {steps}\n', name)
    undone = [f"{RELEASE} {name}" for name in names]
    virtpass(machine, "domain", "attach", guest.name, NIC).check()
    state = machine.state()

    def lend() -> list[str]:
        return accesses(killed(machine, guest, PREPARE, NEVER).check())

    def make_good(operation: str, accessed: list[str], number: int) -> None:
        machine.run(["rm", "-f", steps]).check()
        ended = killed(machine, guest, operation, number)
        where = f"{operation} was killed before {accessed[number]}"
        assert (ended.status, accesses(ended)[-1]) == (-signal.SIGKILL, accessed[number]), where
        virtpass(machine, "recover").check()
        assert (machine.state(), journals(machine)) == (state, []), where
        # They are on record, by one access, before the first of them runs.
        is_recorded = operation == RELEASE or number >= first_step(accessed)
        told = machine.run(["cat", steps]).text.splitlines()
        assert told == ran(accessed[:number]) + (undone if is_recorded else []), where

    # The first has to load VFIO's modules.
    lend()
    release(machine, guest.name).check()
    whole = lend()
    assert ran(whole) == [f"{PREPARE} {name}" for name in names]
    given_back = accesses(killed(machine, guest, RELEASE, NEVER).check())
    assert ran(given_back) == undone
    for number in telling(whole, "write_attribute "):
        make_good(PREPARE, whole, number)
    for number in telling(given_back, "write_attribute "):
        lend()
        make_good(RELEASE, given_back, number)


def first_step(accessed: list[str]) -> int:
    """Return which access runs the first step."""
    return next(number for number, one in enumerate(accessed) if one.startswith(STEPS))


def ran(accessed: list[str]) -> list[str]:
    """Return the steps among accesses: event and name of each."""
    paths = [one.split()[0].split("/") for one in accessed if one.startswith(STEPS)]
    return [f"{directory.removesuffix('.d')} {name}" for *_, directory, name in paths]


@pytest.mark.parametrize("event", [PREPARE, RELEASE])
def test_a_step_whose_hook_was_killed_ends_before_those_that_undo_it(
    machine: Machine, guest: Guest, steps: str, event: str
) -> None:
    virtpass(machine, "domain", "attach", guest.name, NIC).check()
    state = machine.state()
    # Not so long that it is given up, and long enough to be at work still on a slow machine.
    step(machine, event, cut_off_in(steps, 20), "60-slow")
    if event == RELEASE:
        killed(machine, guest, PREPARE, NEVER).check()
    ended = killed(machine, guest, event, NEVER)
    assert ended.status == -signal.SIGKILL, str(ended)
    pending = virtpass(machine, "recover", "--dry-run").check().text
    assert f"wait until the step in {event}.d has ended that a killed hook has left" in pending
    machine.run(["pgrep", "-f", "60-slow"]).check()
    virtpass(machine, "recover").check()
    assert (machine.state(), journals(machine)) == (state, [])
    told = [line.removesuffix(f" {guest.name} {NIC}") for line in machine.get(steps).decode().splitlines()]
    both = [RELEASE, "slow ends"] if event == RELEASE else [RELEASE]
    assert told == [PREPARE, *both[:-1], "slow ends", *both]


def cut_off_in(steps: str, seconds: int = 3) -> str:
    """Return a step that takes its time after the hook was killed, and no time at all when it runs again."""
    again = f"{steps}.again"
    return (
        f"[ -e {again} ] || {{ : > {again}; kill -9 $PPID; sleep {seconds}; }}\necho slow ends >> {steps}\n"
    )


def test_the_log_tells_where_the_time_went(machine: Machine, guest: Guest) -> None:
    assert machine.run(["test", "-x", HOOK]).status == 0
    virtpass(machine, "domain", "attach", guest.name, CARD).check()
    guest.start().check()
    guest.destroy()
    shown = json.loads(virtpass(machine, "log", guest.name, "--json").check().text)
    prepare, release = shown[-2:]
    assert (prepare["event"], release["event"]) == ("prepare", "release")
    assert prepare["outcome"] == release["outcome"] == "done"
    names = [one["step"] for one in prepare["steps"]]
    # The start of the hook itself has a line where it is noticed.
    assert names.index("check") == names.count("start")
    assert prepare["milliseconds"] >= max(one["milliseconds"] for one in prepare["steps"])
    assert names.count("unbind") == names.count("probe") == 2
    assert all(one["milliseconds"] >= 0 for one in prepare["steps"])
    text = virtpass(machine, "log", guest.name, "-n", "1").check().text
    assert "unbind" in text
