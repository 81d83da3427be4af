"""`virtpass hook rehearse`: what the next start would do, and that rehearsing does nothing."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import TEST_DRIVER, Captured, call
from tests.domain import documents
from tests.simulation import AUDIO, CARD, GUEST, OTHER, SHARED, SimulatedHost, add_processors, domain_xml
from virtpass.binding import engine
from virtpass.binding.journal import journals, read_journal
from virtpass.doctor.scene import Outside
from virtpass.hook.entry import run
from virtpass.hook.install import HOOK
from virtpass.operations import rehearsal
from virtpass.operations.hooks import install_hook
from virtpass.operations.recovery import recover
from virtpass.pci.address import PciAddress
from virtpass.system.libvirt import Connection

POLICY = "<v:policy display='hand-over' wait='20'/>"
HAND_OVER = f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'>{POLICY}</v:passthrough>"


@pytest.fixture(autouse=True)
def installed(host: SimulatedHost) -> None:
    """Install the hook."""
    host.put("/etc/libvirt/qemu.conf")
    host.put("/usr/bin/python3")
    install_hook(host)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs these tests sees all programs."""
    monkeypatch.setattr(rehearsal, "_sees_all", lambda: True)


class Piped:
    """Standard input from a pipe."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def rehearse(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch, xml: bytes, *more: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", Piped(xml))
    before, calls = host.state(), len(host.calls)
    result = call(host, capfd, "hook", "rehearse", "-", *more)
    assert host.state() == before
    assert len(host.calls) == calls
    return result


def files(host: SimulatedHost) -> set[str]:
    return {os.fspath(path) for path in Path(host.root).rglob("*")}


def test_what_would_be_done_is_what_is_done(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(host)
    status, out, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status == 0
    assert files(host) == before
    assert out.splitlines() == [
        " 1. wait for others who move devices  (ok, at most 120 s)",
        " 2. check the devices, their group, and who uses them  (ok, at most 15 s)",
        f" 3. {AUDIO}: set driver_override to vfio-pci  (ok, at most 30 s)",
        f" 4. {CARD}: set driver_override to vfio-pci  (ok, at most 30 s)",
        f" 5. {AUDIO}: unbind from snd_hda_intel  (ok, at most 30 s)",
        f" 6. {AUDIO}: let vfio-pci bind it  (ok, at most 30 s)",
        f" 7. {CARD}: unbind from bochs-drm  (ok, at most 30 s)",
        f" 8. {CARD}: let vfio-pci bind it  (ok, at most 30 s)",
        "guest would start; all of this is undone when it stops",
    ]
    assert err == ""
    host.calls.clear()
    run(host, "prepare", domain_xml(CARD))
    assert len(host.calls) == 6


def test_a_desktop_that_would_go(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/dev", "226:0\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/uevent", "DEVNAME=dri/card0\n")
    host.put("/proc/7000001/comm", "Xorg\n")
    host.put("/proc/7000001/cgroup", "0::/system.slice/lightdm.service\n")
    host.put("/proc/7000001/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/7000001/fd/11"))
    host.put("/usr/bin/systemctl", "#!/bin/sh\necho Id=lightdm.service\necho ActiveState=active\n")
    os.chmod(host.path("/usr/bin/systemctl"), 0o755)
    _, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD, metadata=HAND_OVER))
    # Who goes down with it is asked for too.
    assert " 2. check the devices, their group, and who uses them  (ok, at most 25 s)\n" in out
    assert " 3. stop lightdm.service  (ok, at most 110 s)\n" in out
    assert " 4. wait until nobody uses the devices any more  (open, at most 35 s)\n" in out
    status, out, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert (status, err) == (1, "")
    lines = out.splitlines()
    assert lines[1] == " 2. check the devices, their group, and who uses them  (refused, at most 15 s)"
    assert lines[2].startswith("the start would be refused: the device is in use by Xorg (process 7000001")


def test_a_session_that_would_end_is_not_said_to_come_back(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/dev", "226:0\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/uevent", "DEVNAME=dri/card0\n")
    host.link("/sys/class/drm/card0", f"{host.real_path(f'/sys/bus/pci/devices/{CARD}')}/drm/card0")
    host.put("/proc/7000001/comm", "sway\n")
    host.put("/proc/7000001/cgroup", "0::/user.slice/user-1000.slice/session-3.scope\n")
    host.put("/proc/7000001/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/7000001/fd/11"))
    host.put("/run/systemd/sessions/3", "UID=1000\nSEAT=seat0\nVTNR=1\n")
    _, out, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD, metadata=HAND_OVER))
    assert " 3. end session 3: what is not saved in it is lost  (ok, at most 10 s)\n" in out
    assert out.endswith("\nguest would start; all of this is undone when it stops, but for 3\n")
    (line,) = err.splitlines()
    assert line.startswith(
        "warning: no screen stays here and no SSH server was found: until the domain stops"
    )
    _, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD, metadata=HAND_OVER), "--json")
    found = json.loads(out)
    assert [one["is_undone"] for one in found["steps"]][:4] == [True, True, False, True]
    assert found["warning"].startswith("no screen stays")


def test_what_is_tuned_kept_awake_and_taken_off_has_its_bound(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_processors(host)
    host.put(f"/sys/bus/pci/devices/{CARD}/power/control", "auto\n")
    real = host.real_path(f"/sys/bus/pci/devices/{CARD}")
    host.put(f"{real}/graphics/fb0/dev", "29:0\n")
    host.link("/sys/class/graphics/fb0", f"{real}/graphics/fb0")
    host.put("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    host.put("/sys/class/vtconsole/vtcon1/bind", "1\n")
    xml = domain_xml(
        CARD,
        metadata=HAND_OVER.replace(
            "wait=", "huge-pages='yes' isolate-cpus='yes' governor='performance' wait="
        ),
        tuning="<memoryBacking><hugepages/></memoryBacking>"
        "<cputune><vcpupin vcpu='0' cpuset='2-3'/></cputune>",
    )
    _, out, _ = rehearse(host, capfd, monkeypatch, xml)
    lines = [line.partition(". ")[2] for line in out.splitlines()]
    assert lines[2:8] == [
        "reserve 128 huge pages of 2 MiB (256 MiB; 128 to be added)  (ok, at most 180 s)",
        "keep the host's programs off CPUs 2-3 (left to them: 0-1,4-7)  (ok, at most 60 s)",
        "move 4 interrupts off CPUs 2-3  (ok, at most 30 s)",
        "set the governor performance for CPUs 2-3  (ok, at most 30 s)",
        f"set /sys/bus/pci/devices/{CARD}/power/control to on  (ok, at most 10 s)",
        "take the consoles off the card (/sys/class/vtconsole/vtcon1/bind)  (ok, at most 10 s)",
    ]


def test_a_stuck_device_would_be_refused(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.mark_stuck(host, AUDIO, "unbind")
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status == 1
    assert f"a driver hangs with {AUDIO}" in out


def test_as_json(host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD), "--json")
    found = json.loads(out)
    assert (status, found["would_start"], found["problem"]) == (0, True, None)
    assert [one["at_most_seconds"] for one in found["steps"]][:3] == [120, 15, 30]
    assert {one["verdict"] for one in found["steps"]} == {"ok"}
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(SHARED[0]), "--json")
    found = json.loads(out)
    assert (status, found["would_start"]) == (1, False)
    assert [one["verdict"] for one in found["steps"]] == ["ok", "refused"]
    assert found["problem"]["reference"] == "group-not-isolated"


@pytest.mark.parametrize("xml", [domain_xml(CARD, metadata=""), domain_xml()])
def test_a_domain_that_is_not_looked_after_starts_as_it_is(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch, xml: bytes
) -> None:
    os.remove(host.path(HOOK))
    status, out, err = rehearse(host, capfd, monkeypatch, xml)
    assert status == 0
    assert "looks after no device of it" in out
    assert "warning" not in err
    found = json.loads(rehearse(host, capfd, monkeypatch, xml, "--json")[1])
    assert (found["ours"], found["would_start"], found["steps"]) == (False, True, [])


def test_what_would_not_happen_because_of_the_hook_itself(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chmod(host.path(HOOK), 0o644)
    _, _, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert err.startswith("warning: the hook is not executable, so libvirt does not run it, so none of this")
    os.remove(host.path(HOOK))
    status, _, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    words = "the hook is not installed, so none of this would happen: sudo virtpass hook install"
    assert (status, err) == (0, f"warning: {words}\n")
    found = json.loads(rehearse(host, capfd, monkeypatch, domain_xml(CARD), "--json")[1])
    assert found["warning"] == words
    # A start that would be refused would not be refused either.
    status, _, err = rehearse(host, capfd, monkeypatch, domain_xml(SHARED[0]))
    assert (status, err) == (1, f"warning: {words}\n")


@pytest.mark.parametrize(("looked", "is_told"), [(999.0, True), (1000.0, False), (None, False)])
def test_a_daemon_that_has_not_looked_for_hooks_since(
    host: SimulatedHost,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    looked: float | None,
    is_told: bool,
) -> None:
    daemon = Outside(daemon="libvirtd.service", daemon_looked=looked, hook_written=1000.5)
    monkeypatch.setattr(rehearsal, "_daemon", lambda _: daemon)
    err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))[2]
    assert ("sudo systemctl reload libvirtd.service\n" in err) is is_told


@pytest.mark.parametrize("columns", [40, 80])
def test_on_a_narrow_terminal_each_line_stays_beside_its_number(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("virtpass.cli.output._columns", lambda _: columns)
    lines = rehearse(host, capfd, monkeypatch, domain_xml(CARD))[1].splitlines()
    assert all(len(line) <= columns for line in lines)
    steps = lines[: next(place for place, line in enumerate(lines) if line.startswith("guest"))]
    assert all(line[:4].strip() == "" or line[2:4] == ". " for line in steps)


@pytest.mark.parametrize(
    ("xml", "expected", "words"),
    [
        (b"", 2, "line 1, column 0; give it the output of: virsh -c qemu:///system dumpxml DOMAIN"),
        (b"<network/>", 2, "not that of a domain"),
        (b"<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>", 2, "document type"),
    ],
)
def test_bad_input(
    host: SimulatedHost,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    xml: bytes,
    expected: int,
    words: str,
) -> None:
    status, out, err = rehearse(host, capfd, monkeypatch, xml)
    assert (status, out, err.count("\n")) == (expected, "", 1)
    assert words in err


def test_a_domain_of_libvirt(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "hook", "rehearse", "test", "-c", TEST_DRIVER)
    assert status == 0
    assert out == "the hook would let test start as it is: virtpass looks after no device of it\n"
    assert err == "next: virtpass domain adopt test, or: virtpass domain attach test ADDRESS\n"
    status, _, err = call(host, capfd, "hook", "rehearse", "nobody", "-c", TEST_DRIVER)
    assert status == 3


def ours(connection: Connection, *, card: PciAddress = CARD) -> None:
    hostdevs = (documents.hostdev(str(card)), documents.hostdev(str(AUDIO)))
    xml = documents.domain(*hostdevs, kind="test", metadata=HAND_OVER)
    connection.define(xml, validate=False)


def test_a_start_that_would_go_well_comes_next(host: SimulatedHost, capfd: Captured) -> None:
    pytest.importorskip("libvirt")
    arguments = ("hook", "rehearse", "guest", "-c", TEST_DRIVER)
    with Connection.open(TEST_DRIVER) as connection:
        ours(connection)
        status, out, err = call(host, capfd, *arguments)
        assert (status, out.endswith("guest would start; all of this is undone when it stops\n")) == (0, True)
        last = err.splitlines()[-1]
        assert last == f"next: virsh -c {TEST_DRIVER} start guest, or the button in virt-manager"
        assert "next" not in call(host, capfd, *arguments, "--json")[2]
        # Without the hook, and where it would refuse, a start is not what helps.
        os.chmod(host.path(HOOK), 0o644)
        assert "next: " not in call(host, capfd, *arguments)[2]
        os.chmod(host.path(HOOK), 0o755)
        ours(connection, card=PciAddress.parse("09:00.0"))
        status, _, err = call(host, capfd, *arguments)
        assert (status, "next: " in err) == (1, False)


def test_the_last_console_of_the_host_does_not_go_where_the_desktop_would_stay(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = host.real_path(f"/sys/bus/pci/devices/{CARD}")
    host.put(f"{real}/drm/card0/dev", "226:0\n")
    host.link("/sys/class/drm/card0", f"{real}/drm/card0")
    host.put("/sys/fs/cgroup/system.slice/cgroup.procs")
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status == 1
    assert "the last screen of this host would go, and no SSH server was found" in out
    host.put("/sys/fs/cgroup/system.slice/ssh.service/cgroup.procs", "9\n")
    status, _, err = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert (status, err) == (0, "")


def recovery_steps(host: SimulatedHost) -> tuple[str, ...]:
    """Return what would be done to give back what is lent."""
    (found,) = recover(host, lambda: None, dry_run=True)
    return found.steps


def test_what_an_ended_domain_keeps_is_given_back_first(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(host, "prepare", domain_xml(CARD, uuid=OTHER, name="ended")) == 0
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status != 0
    assert "lent to the domain ended" in out
    journal = read_journal(host, OTHER)
    assert journal is not None
    journal.mark_ended()
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status == 0
    steps = out.splitlines()
    # For a hook that was killed, for the last close, and for each write.
    writes = sum("driver_override" in one or "bind" in one for one in recovery_steps(host))
    seconds = 15 + 5 + 30 * writes
    assert steps[1].strip() == f"2. give back what ended had borrowed  (ok, at most {seconds} s)"
    # From where its own driver has it again, and not from where it is now.
    assert any(f"{CARD}: unbind from bochs-drm" in step for step in steps)
    assert run(host, "prepare", domain_xml(CARD)) == 0
    assert journals(host) == [GUEST]


def test_what_is_not_seen_is_open(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdict_of_the_checks() -> str:
        out = rehearse(host, capfd, monkeypatch, domain_xml(CARD), "--json")[1]
        (found,) = [one for one in json.loads(out)["steps"] if one["text"].startswith("check ")]
        return str(found["verdict"])

    assert verdict_of_the_checks() == "ok"
    monkeypatch.setattr(rehearsal, "_sees_all", lambda: False)
    assert verdict_of_the_checks() == "open"
    monkeypatch.setattr(rehearsal, "_sees_all", lambda: True)
    assert run(host, "prepare", domain_xml(CARD)) == 0
    # It is given back first, and used by somebody by then perhaps.
    assert verdict_of_the_checks() == "open"


def test_a_record_that_cannot_be_read_is_not_put_down_to_the_devices(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.put(f"/run/virtpass/lent/{GUEST}", "from the future\n")
    status, out, _ = rehearse(host, capfd, monkeypatch, domain_xml(CARD))
    assert status == 1
    assert (
        " 2. look at what is on record, and at the virtual functions that are to be made  (refused)\n" in out
    )
