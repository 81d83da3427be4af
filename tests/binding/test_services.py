"""Services that are stopped together, what goes down with them, sound servers, and a host that shuts down."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.binding.test_display import (
    CARD0,
    DEVICES,
    MANAGER,
    PIPEWIRE,
    SHELL,
    SOUND,
    USER,
    XORG,
    Desktop,
    begun,
    hand_over,
    with_lightdm,
)
from tests.simulation import AUDIO, CARD, GUEST, NIC, desktop
from virtpass.binding import display, effects, reach, services
from virtpass.binding.journal import read_journal
from virtpass.system.errors import RefusedError

PERSISTENCED = "nvidia-persistenced.service"


@pytest.fixture
def host(tmp_path: Path) -> Desktop:
    host = Desktop(desktop(os.fspath(tmp_path)).root)
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/dev", "226:0\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/uevent", "DEVNAME=dri/card0\n")
    host.put(f"/sys/bus/pci/devices/{AUDIO}/sound/card0/controlC0/dev", "116:0\n")
    host.put(f"/sys/bus/pci/devices/{AUDIO}/sound/card0/controlC0/uevent", "DEVNAME=snd/controlC0\n")
    return host


def started(host: Desktop) -> list[str]:
    return [one.rpartition(" ")[2] for one in host.programs if " start " in one]


def test_services_are_stopped_together_in_one_deadline(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lightdm(host)
    host.begin(SHELL, "nvidia-persiste", f"/system.slice/{PERSISTENCED}", CARD0)
    deadlines: list[float] = []
    run = host.run

    def timed(argv: list[str], deadline: float) -> int | None:
        if "stop" in argv:
            deadlines.append(deadline)
        return run(argv, deadline)

    monkeypatch.setattr(host, "run", timed)
    hand_over(host, begun(host))
    assert host.programs == [f"systemctl stop -- {MANAGER} {PERSISTENCED}"]
    assert deadlines == [services.STOP_DEADLINE]


def test_the_time_of_what_was_stopped_is_told(host: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    with_lightdm(host)
    clock = [100.0]
    run = host.run

    def slow(argv: list[str], deadline: float) -> int | None:
        clock[0] += 7.0
        return run(argv, deadline)

    monkeypatch.setattr(host, "run", slow)
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    told: list[tuple[object, ...]] = []
    display.hand_over(host, begun(host), DEVICES, 5.0, tell=lambda *one: told.append(one))
    assert told[0] == ("stop", MANAGER, 7.0)


def test_what_a_stopped_service_takes_along_comes_back_after_it(host: Desktop) -> None:
    with_lightdm(host)
    host.dependents = {MANAGER: ["kiosk.service", "off.service"], "kiosk.service": ["badge.service"]}
    for unit in ("kiosk.service", "badge.service"):
        os.makedirs(host.path(f"/sys/fs/cgroup/system.slice/{unit}"))
    journal = begun(host)
    hand_over(host, journal)
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    assert effects.undo(host, found) == []
    # Not the one that was not active before.
    assert started(host) == [MANAGER, "kiosk.service", "badge.service"]


def test_services_that_need_each_other_are_asked_about_once(host: Desktop) -> None:
    host.dependents = {"a.service": ["b.service"], "b.service": ["a.service"]}
    for unit in host.dependents:
        os.makedirs(host.path(f"/sys/fs/cgroup/system.slice/{unit}"))
    assert services.taken_along(host, ["a.service"]) == ["b.service"]


# sound servers


def with_sound(host: Desktop) -> None:
    """A user at the seat, who is logged in from elsewhere too."""
    host.session("3")
    host.session("9", seat="", terminal="")
    host.staying.add("1000")
    manager = f"{USER}/user@1000.service/session.slice"
    host.begin(PIPEWIRE, "wireplumber", f"{manager}/wireplumber.service", SOUND)
    os.makedirs(host.path(f"/sys/fs/cgroup{manager}/pipewire.service"))


def test_sound_servers_of_a_user_who_stays_are_stopped_and_started(host: Desktop) -> None:
    with_sound(host)
    host.put("/run/user/1000/systemd/private")
    journal = begun(host)
    assert hand_over(host, journal) == [
        "pipewire.service of user 1000 stopped",
        "wireplumber.service of user 1000 stopped",
    ]
    (stop,) = host.programs
    assert stop.startswith("setpriv --reuid=1000 --regid=65534 --clear-groups /usr/bin/env XDG_RUNTIME_DIR=")
    assert stop.endswith(
        "/run/user/1000 /usr/bin/systemctl --user stop -- pipewire.socket pipewire-pulse.socket"
        " pulseaudio.socket pipewire.service wireplumber.service"
    )
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    assert effects.undo(host, found) == []
    assert [one for one in host.programs if "setpriv" in one] == [
        stop.partition("--user")[0] + "--user start -- pipewire.service wireplumber.service"
    ]


def test_a_session_that_only_plays_sound_there_goes_on(host: Desktop) -> None:
    with_sound(host)
    assert display.stoppable(host, DEVICES) == display.Asked([], [], ["1000"])


def test_sound_servers_that_do_not_stop_are_named(host: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    with_sound(host)
    monkeypatch.setattr(host, "run", lambda *_: 127)
    with pytest.raises(RefusedError, match=f"still in use by wireplumber \\(process {PIPEWIRE}, {SOUND}\\)"):
        hand_over(host, begun(host))


def test_a_user_who_has_gone_gets_his_sound_at_his_next_login(host: Desktop) -> None:
    with_sound(host)
    journal = begun(host)
    hand_over(host, journal)
    host.programs.clear()
    assert effects.undo(host, journal) == []
    assert not [one for one in host.programs if "setpriv" in one]


def test_sound_that_does_not_come_back_is_told_and_keeps_no_record(host: Desktop) -> None:
    with_sound(host)
    host.put("/run/user/1000/systemd/private")
    journal = begun(host)
    hand_over(host, journal)
    host.refusing_to_start.add("pipewire.service")
    problems = effects.undo(host, journal)
    assert [one.what for one in problems] == [
        "pipewire.service wireplumber.service of user 1000 do not start again"
    ]
    assert journal.effects == []


@pytest.mark.parametrize(
    "fields", [("root", "pipewire.service"), ("1000", "evil.service"), ("1000", "--now"), ("../1", "x")]
)
def test_a_record_names_sound_servers_and_nothing_else(host: Desktop, fields: tuple[str, ...]) -> None:
    host.put("/run/user/1000/systemd/private")
    journal = begun(host)
    journal.add(("user-units", *fields))
    assert len(effects.undo(host, journal)) == 1
    assert [one for one in host.programs if "setpriv" in one] == []


@pytest.mark.parametrize(
    "cgroup",
    [
        f"{USER}/user@1000.service/app.slice/app-x.scope/pipewire.service",
        f"{USER}/user@1001.service/session.slice/pipewire.service",
        f"{USER}/session-3.scope/pipewire.service",
        "/machine.slice/box.scope/user.slice/user-1000.slice/user@1000.service/pipewire.service",
    ],
)
def test_what_only_looks_like_a_sound_server_is_none(host: Desktop, cgroup: str) -> None:
    host.begin(PIPEWIRE, "pipewire", cgroup, SOUND)
    with pytest.raises(RefusedError, match="pipewire"):
        display.stoppable(host, DEVICES)


# a host that shuts down


@pytest.mark.parametrize(("state", "units"), [("stopping", []), ("degraded", [MANAGER])])
def test_nothing_is_started_while_the_host_shuts_down(host: Desktop, state: str, units: list[str]) -> None:
    with_lightdm(host)
    journal = begun(host)
    hand_over(host, journal)
    host.programs.clear()
    host.system_state = state
    told: list[tuple[object, ...]] = []
    assert effects.undo(host, journal, tell=lambda *one: told.append(one)) == []
    assert started(host) == units
    assert [one for one in told if "the host shuts down" in str(one[1])] == ([] if units else told)


# mappings, and the last way to the host


def test_who_has_the_card_mapped_holds_it(host: Desktop) -> None:
    host.put(f"/proc/{XORG}/comm", "game\n")
    host.put(f"/proc/{XORG}/cgroup", "0::/machine.slice/docker-1.scope\n")
    host.put(f"/proc/{XORG}/maps", f"7f00-7f10 rw-s 00000000 00:05 1 {CARD0}\n")
    with pytest.raises(RefusedError, match=f"game \\(process {XORG}, {CARD0}\\)"):
        display.stoppable(host, DEVICES)


def with_screen(host: Desktop) -> None:
    host.link("/sys/class/drm/card0", f"{host.real_path(f'/sys/bus/pci/devices/{CARD}')}/drm/card0")


def test_the_last_screen_of_a_host_without_ssh_is_told(host: Desktop) -> None:
    assert reach.warning(host, DEVICES) == ""
    with_screen(host)
    assert "no SSH server listens" in reach.warning(host, DEVICES)
    assert reach.warning(host, [NIC]) == ""


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/sys/fs/cgroup/system.slice/ssh.service/cgroup.procs", "9\n"),
        ("/sys/fs/cgroup/system.slice/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service/x", ""),
        ("/proc/net/tcp", "head\n  0: 00000000:0016 00000000:0000 0A 0\n"),
        ("/proc/net/tcp6", "head\n  0: 00000000000000000000000000000000:0016 0:0000 0A 0\n"),
    ],
)
def test_another_way_to_the_host_is_enough(host: Desktop, path: str, content: str) -> None:
    with_screen(host)
    host.put(path, content)
    assert reach.warning(host, DEVICES) == ""


@pytest.mark.parametrize(
    "line", ["0100007F:0016 00000000:0000 0A", "00000000:0016 00000000:0000 01", "00000000:1600 0:0 0A"]
)
def test_a_server_for_the_host_alone_and_another_port_are_none(host: Desktop, line: str) -> None:
    with_screen(host)
    host.put("/proc/net/tcp", f"head\n  0: {line} 0\n")
    assert reach.warning(host, DEVICES) != ""


def test_another_screen_is_enough(host: Desktop) -> None:
    with_screen(host)
    host.link("/sys/class/drm/card1", f"{host.real_path(f'/sys/bus/pci/devices/{NIC}')}/drm/card1")
    assert reach.warning(host, DEVICES) == ""
