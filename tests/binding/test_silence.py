"""Drivers that do not answer, and accesses of killed hooks that are still on their way."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.binding.test_display import DEVICES, Desktop, begun, hand_over
from tests.simulation import AUDIO, CARD, GUEST, NIC, SimulatedHost, desktop, domain_xml
from virtpass.binding import attributes, effects, engine, nvidia, power
from virtpass.binding.journal import Journal, journals
from virtpass.hook.entry import run
from virtpass.system.errors import FailedError

Captured = pytest.CaptureFixture[str]
ORPHAN = 7_000_100
# How /proc tells the real, effective, saved and file system user of a process.
ROOT = "Name:\tx\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\n"
USER, SET_USER_ID = ROOT.replace("\t0", "\t1077"), ROOT.replace("Uid:\t0", "Uid:\t1077")


@pytest.fixture
def desk(tmp_path: Path) -> Desktop:
    return Desktop(desktop(os.fspath(tmp_path)).root)


def refused(host: SimulatedHost, capfd: Captured) -> str:
    before = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 1
    assert (host.calls, host.state(), journals(host)) == ([], before, [])
    return capfd.readouterr().err


def test_a_card_whose_driver_does_not_let_it_wake(host: SimulatedHost, capfd: Captured) -> None:
    host.silent.add(f"/sys/bus/pci/devices/{CARD}/config")
    assert f"{CARD} does not answer any more" in refused(host, capfd)


def test_a_device_below_whose_driver_holds_its_lock(host: SimulatedHost, capfd: Captured) -> None:
    node = f"/sys/bus/pci/devices/{CARD}/drm/card0"
    host.put(f"{node}/dev", "226:0\n")
    host.silent.add(f"{node}/uevent")
    assert f"{node}/uevent cannot be read: a driver holds it" in refused(host, capfd)


def test_a_device_that_is_known_to_be_stuck_is_refused_before_all_else(
    host: SimulatedHost, capfd: Captured
) -> None:
    engine.mark_stuck(host, CARD, "unbind")
    host.silent.add(f"/sys/bus/pci/devices/{CARD}/config")
    assert f"a driver hangs with {CARD}" in refused(host, capfd)


def test_consoles_that_do_not_answer_make_the_start_fail(desk: Desktop) -> None:
    real = desk.real_path(f"/sys/bus/pci/devices/{CARD}")
    desk.put(f"{real}/graphics/fb0/dev", "29:0\n")
    desk.link("/sys/class/graphics/fb0", f"{real}/graphics/fb0")
    desk.put("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    desk.put("/sys/class/vtconsole/vtcon1/bind", "1\n")
    desk.silent.add("/sys/class/vtconsole/vtcon1/bind")
    journal = begun(desk)
    with pytest.raises(FailedError, match="vtcon1/bind cannot be read"):
        hand_over(desk, journal)
    assert journal.effects == []


def test_an_attribute_that_does_not_answer_stays_on_record(desk: Desktop) -> None:
    path = f"/sys/bus/pci/devices/{CARD}/power/control"
    desk.put(path, "auto\n")
    journal = begun(desk)
    power.keep_awake(desk, journal, DEVICES)
    desk.silent.add(path)
    assert [one.reference for one in effects.undo(desk, journal)] == ["no-answer"]
    assert journal.effects == [(attributes.ATTRIBUTE, path, "auto", "on")]
    desk.silent.clear()
    assert effects.undo(desk, journal) == []
    assert desk.read(path) == "auto"


# on their way


def test_a_module_on_its_way_out_is_loaded_again_when_it_is_out(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("/sys/module/nvidia/initstate", "going\n")
    looks = [3]
    read = desk.read

    def look(path: str) -> str | None:
        if path == "/sys/module/nvidia/initstate":
            looks[0] -= 1
            if looks[0] == 0:
                shutil.rmtree(desk.path("/sys/module/nvidia"))
        return read(path)

    monkeypatch.setattr(desk, "read", look)
    nvidia.load_again(desk, ("nvidia",))
    assert desk.programs == ["modprobe -- nvidia"]


def test_an_rmmod_that_has_not_come_to_the_kernel_is_waited_for(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("/sys/module/nvidia/initstate", "live\n")
    desk.put("/proc/7000200/comm", "rmmod\n")
    desk.put("/proc/7000200/cmdline", b"/sbin/rmmod\0--\0nvidia\0")
    desk.put("/proc/7000200/status", ROOT)
    desk.link("/proc/7000200/exe", "/usr/bin/kmod")
    monkeypatch.setattr(nvidia, "_PROGRAM_DEADLINE", 0.3)
    # As long as the kernel says that the module is there, it is.
    assert seconds_to_load(desk) >= 0.3
    # One that removes another module is none of its business.
    desk.put("/proc/7000200/cmdline", b"/sbin/rmmod\0--\0nvidia_uvm\0")
    monkeypatch.setattr(nvidia, "_PROGRAM_DEADLINE", 30.0)
    assert seconds_to_load(desk) < 20
    assert desk.programs == []


def test_a_module_that_the_kernel_does_not_let_go_is_told(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.put("/sys/module/nvidia/initstate", "going\n")
    monkeypatch.setattr(nvidia, "DEADLINE", 0.1)
    with pytest.raises(FailedError, match="nvidia is still on its way"):
        nvidia.load_again(desk, ("nvidia",))


@pytest.mark.parametrize(
    ("name", "arguments", "status", "program"),
    [
        ("rmmod", b"rmmod\0nvidia\0", USER, "/usr/bin/kmod"),
        # A link to a set-user-ID program, of which only the effective user is root.
        ("rmmod", b"rmmod\0nvidia\0", SET_USER_ID, "/usr/bin/kmod"),
        ("rmmod", b"rmmod\0nvidia\0", "", "/usr/bin/kmod"),
        ("rmmod", b"x" * 100_000 + b"\0nvidia\0", ROOT, "/usr/bin/kmod"),
        ("xrmmod", b"rmmod\0nvidia\0", ROOT, "/usr/bin/kmod"),
        # One that has become root as a whole, and asks for the password now.
        ("rmmod", b"rmmod\0nvidia\0", ROOT, "/usr/bin/sudo"),
        ("rmmod", b"rmmod\0nvidia\0", ROOT, ""),
    ],
)
def test_a_user_cannot_delay_the_loading_of_a_module(
    desk: Desktop, name: str, arguments: bytes, status: str, program: str
) -> None:
    desk.put("/sys/module/nvidia/initstate", "live\n")
    desk.put("/proc/7000200/comm", f"{name}\n")
    desk.put("/proc/7000200/cmdline", arguments)
    desk.put("/proc/7000200/status", status)
    if program:
        desk.link("/proc/7000200/exe", program)
    assert seconds_to_load(desk) < 4


def seconds_to_load(desk: Desktop) -> float:
    began = time.monotonic()
    nvidia.load_again(desk, ("nvidia",))
    return time.monotonic() - began


def orphan(
    host: SimulatedHost,
    parent: int,
    *,
    state: str = "D",
    age: int = 2,
    name: str = "virtpass4711",
    status: str = ROOT,
    program: str = "/usr/bin/python3.11",
) -> None:
    started = (1000 - age) * os.sysconf("SC_CLK_TCK")
    host.put("/proc/uptime", "1000.25 3000.00\n")
    host.put(f"/proc/{ORPHAN}/comm", f"{name}\n")
    host.put(f"/proc/{ORPHAN}/status", status)
    if program:
        host.link(f"/proc/{ORPHAN}/exe", program)
    host.put(f"/proc/{ORPHAN}/stat", f"{ORPHAN} (virtpass4711) {state} {parent} {'0 ' * 17}{started} 0 0\n")


def seconds_to_give_back(host: SimulatedHost) -> float:
    journal = Journal(host, GUEST, "guest")
    journal.begin(engine.homes(host, [NIC]))
    began = time.monotonic()
    assert engine.give_back(host, journal) == []
    return time.monotonic() - began


# An upgrade may have replaced it meanwhile.
@pytest.mark.parametrize("program", ["/usr/bin/python3.11", "/opt/env/bin/python3.13 (deleted)"])
def test_the_last_write_of_a_killed_hook_is_waited_for(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(engine, "ORPHANS", 0.4)
    orphan(host, 1, program=program)
    assert seconds_to_give_back(host) >= 0.4


@pytest.mark.parametrize(("parent", "state", "age"), [(4711, "D", 2), (1, "Z", 2), (1, "D", 900)])
def test_a_child_with_its_parent_one_that_has_ended_and_one_that_hangs_are_not(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, parent: int, state: str, age: int
) -> None:
    monkeypatch.setattr(engine, "ORPHANS", 5.0)
    orphan(host, parent, state=state, age=age)
    assert seconds_to_give_back(host) < 4


@pytest.mark.parametrize(
    ("name", "status", "program"),
    [
        ("4711", ROOT, "/usr/bin/python3.11"),
        ("virtpass", ROOT, "/usr/bin/python3.11"),
        ("virtpass47x", ROOT, "/usr/bin/python3.11"),
        ("virtpass4711", USER, "/usr/bin/python3.11"),
        ("virtpass4711", SET_USER_ID, "/usr/bin/python3.11"),
        ("virtpass4711", "", "/usr/bin/python3.11"),
        # One that has become root as a whole, and asks for the password now.
        ("virtpass4711", ROOT, "/usr/bin/sudo"),
        ("virtpass4711", ROOT, "/home/user/python/su"),
        ("virtpass4711", ROOT, ""),
    ],
)
def test_a_process_of_somebody_else_delays_nothing(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, name: str, status: str, program: str
) -> None:
    monkeypatch.setattr(engine, "ORPHANS", 5.0)
    orphan(host, 1, name=name, status=status, program=program)
    assert seconds_to_give_back(host) < 4


@pytest.mark.parametrize("when", ["later", "at last"])
def test_an_attribute_that_a_killed_hook_may_still_change_stays_on_record(
    desk: Desktop, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """It was on record, the hook was killed, and its child comes to write after all that is waited for."""
    path = f"/sys/bus/pci/devices/{CARD}/power/control"
    desk.put(path, "auto\n")
    journal = begun(desk)
    journal.add((attributes.ATTRIBUTE, path, "auto", "on"))
    monkeypatch.setattr(engine, "ORPHANS", 0.1)
    orphan(desk, 1)

    def comes_to_write() -> None:
        desk.put(path, "on\n")
        shutil.rmtree(desk.path(f"/proc/{ORPHAN}"))

    if when == "later":
        (problem,) = engine.give_back(desk, journal)
        assert problem.what == f"{path} is as it was, but what a killed hook has left may still write to it"
        assert journals(desk) == [GUEST]
        assert journal.effects == [(attributes.ATTRIBUTE, path, "auto", "on")]
        comes_to_write()
    else:
        orphans, looks = engine.orphans, [0]

        def look(host: SimulatedHost) -> list[int]:
            looks[0] += 1
            # Between the look at the attribute and the one for children.
            if looks[0] == 2:
                comes_to_write()
            return orphans(host)

        monkeypatch.setattr(engine, "ORPHANS", 0.0)
        monkeypatch.setattr(engine, "orphans", look)
    assert engine.give_back(desk, journal) == []
    assert (desk.read(path), journals(desk)) == ("auto", [])


def test_nothing_is_written_to_a_device_whose_driver_hangs(desk: Desktop) -> None:
    stuck, other = (f"/sys/bus/pci/devices/{one}/power/control" for one in (CARD, AUDIO))
    desk.put(stuck, "auto\n")
    desk.put(other, "auto\n")
    journal = begun(desk)
    power.keep_awake(desk, journal, DEVICES)
    engine.mark_stuck(desk, CARD, "unbind")
    desk.silent.add(stuck)
    told: list[str] = []
    assert effects.undo(desk, journal, stays=True, tell=lambda *what: told.append(str(what[1]))) == []
    assert (desk.read(stuck), desk.read(other)) == ("on", "auto")
    assert any("left, a driver hangs" in one for one in told)
    # What was not undone is not said to be.
    assert journal.effects == [(attributes.ATTRIBUTE, stuck, "auto", "on")]


def test_where_a_device_is_stuck_its_child_is_not_waited_for_long(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ORPHANS", 5.0)
    monkeypatch.setattr(engine, "_STUCK_ORPHANS", 0.1)
    engine.mark_stuck(host, CARD, "unbind")
    orphan(host, 1)
    assert 0.1 <= seconds_to_give_back(host) < 4


def test_a_wait_for_what_a_killed_hook_has_left_is_told(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[object, ...]] = []
    assert engine.wait_for_orphans(host, lambda *one: told.append(one))
    assert told == []
    monkeypatch.setattr(engine, "ORPHANS", 0.2)
    orphan(host, 1)
    assert not engine.wait_for_orphans(host, lambda *one: told.append(one))
    ((step, detail, seconds),) = told
    assert (step, detail) == ("wait", "for the last access of a hook that was killed")
    assert isinstance(seconds, float)
    assert 0.15 < seconds < 4
