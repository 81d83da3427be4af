"""Services that are stopped together, what goes down with them, sound servers, and a host that shuts down."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from tests.binding.test_display import (
    CARD0,
    DEVICES,
    HAND_OVER,
    MANAGER,
    PIPEWIRE,
    SHELL,
    SOUND,
    SSH,
    USER,
    XORG,
    Desktop,
    begun,
    hand_over,
    with_lightdm,
)
from tests.simulation import AUDIO, CARD, GUEST, SimulatedHost, desktop, domain_xml
from virtpass.binding import audio, display, effects, holders, services
from virtpass.binding.journal import read_journal
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover
from virtpass.operations.rehearsal import rehearse
from virtpass.system.errors import FailedError, RefusedError

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


def active(host: Desktop, *units: str) -> None:
    for unit in units:
        os.makedirs(host.path(f"/sys/fs/cgroup/system.slice/{unit}"))


def started_by_undo(host: Desktop) -> list[str]:
    """Hand over, and return what is started when all comes back, in this order."""
    hand_over(host, begun(host))
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    assert effects.undo(host, found) == []
    return started(host)


def test_units_of_every_kind_that_systemd_can_start_come_back(host: Desktop) -> None:
    with_lightdm(host)
    comes = ["seat.timer", "seat.path", "srv-kiosk\\x2ddata.mount", "srv.automount", "kiosk.target"]
    gone = ["kiosk.scope", "kiosk.slice", "dev-x.device", "by-hand.mount", "run-u1.service", "no.target"]
    host.dependents = {MANAGER: [*comes, *gone]}
    host.properties = {
        "seat.timer": ["CanStart=yes", "Transient=no", "FragmentPath=/etc/systemd/system/seat.timer"],
        "by-hand.mount": ["CanStart=yes", "FragmentPath="],
        "run-u1.service": ["CanStart=yes", "Transient=yes"],
        "no.target": ["CanStart=no"],
    }
    active(host, *comes, *gone)
    assert services.taken_along(host, [MANAGER]) == comes
    assert started_by_undo(host) == [MANAGER, *comes]
    # Not with all that it wants: somebody may have stopped that since.
    (line,) = [one for one in host.programs if one.endswith(" kiosk.target") and " start " in one]
    assert line == "systemctl start --job-mode=ignore-dependencies -- kiosk.target"


def test_units_are_started_in_the_order_of_systemd(host: Desktop) -> None:
    """A socket cannot be started when its service runs; a ring of units is started all the same."""
    with_lightdm(host)
    units = ["all.target", "kiosk.service", "kiosk.socket", "seat.socket", "a.service", "b.service"]
    host.dependents = {MANAGER: units}
    host.properties = {
        MANAGER: ["After=seat.socket basic.target"],
        "all.target": ["After=kiosk.service"],
        "kiosk.service": [f"After={MANAGER} kiosk.socket"],
        "a.service": ["After=b.service a.service"],
        "b.service": ["After=a.service"],
    }
    active(host, *units)
    assert started_by_undo(host) == [
        *("kiosk.socket", "seat.socket", MANAGER, "kiosk.service", "all.target"),
        *("a.service", "b.service"),
    ]


def test_what_depends_on_one_that_is_not_active_goes_down_too(host: Desktop) -> None:
    host.dependents = {"a.service": ["done.target"], "done.target": ["b.service"]}
    active(host, "a.service", "b.service")
    assert services.taken_along(host, ["a.service"]) == ["b.service"]


def test_a_long_chain_is_followed_to_its_end(host: Desktop) -> None:
    names = [f"s{number}.service" for number in range(30)]
    host.dependents = {name: [after] for name, after in pairwise(names)}
    active(host, *names)
    assert services.taken_along(host, names[:1]) == names[1:]


def systemctl(host: SimulatedHost, *lines: str) -> None:
    """Let a script stand for systemctl; it has the units as arguments."""
    until = 'while [ "$1" != -- ]; do shift; done; shift'
    host.put(services.SYSTEMCTL, "\n".join(("#!/bin/sh", until, *lines, "")))
    os.chmod(host.path(services.SYSTEMCTL), 0o755)


@pytest.fixture
def plain(tmp_path: Path) -> SimulatedHost:
    """A host on which a service has five hundred that depend on it: 13 KiB of names."""
    host = SimulatedHost(os.fspath(tmp_path / "plain"))
    systemctl(
        host,
        "for unit; do",
        '[ "$unit" = "$1" ] || echo',
        'echo "Id=$unit"; echo ActiveState=active',
        'case $unit in lightdm*) echo "RequiredBy=$(seq -s " " -f "depends-on-it-%g.service" 500)";; esac',
        "done",
    )
    return host


def test_of_many_dependents_none_is_lost(plain: SimulatedHost) -> None:
    found = services.taken_along(plain, [MANAGER])
    assert found == [f"depends-on-it-{number}.service" for number in range(1, 501)]


def test_an_answer_beyond_all_measure_is_none(plain: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_MOST_SAID", 8000)
    with pytest.raises(FailedError, match=f"the state of {MANAGER} is not known: .*more than 8000 bytes"):
        services.taken_along(plain, [MANAGER])


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"echo Id={MANAGER}; echo ActiveState=active; exit 1", "no whole answer"),
        ("echo Failed to connect to bus", "no whole answer"),
        ("echo ActiveState=active; echo RequiredBy=x.service", "no whole answer"),
        (f"echo Id={MANAGER}; echo; echo Id=", "no whole answer"),
        ("kill -9 $$", "no whole answer"),
        ("sleep 60", "no whole answer"),
    ],
)
def test_dependents_that_are_not_told_are_not_taken_for_none(
    plain: SimulatedHost, monkeypatch: pytest.MonkeyPatch, script: str, words: str
) -> None:
    monkeypatch.setattr(services, "ASK_DEADLINE", 1.0)
    systemctl(plain, script)
    with pytest.raises(FailedError, match=words) as caught:
        services.taken_along(plain, [MANAGER])
    assert caught.value.remedy == f"try: {services.SYSTEMCTL} show {MANAGER}"


def test_a_host_whose_systemd_cannot_be_asked_stops_nothing(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lightdm(host)

    def refuse(*_: object, **__: object) -> tuple[int | None, str]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(host, "run_program", refuse)
    journal = begun(host)
    with pytest.raises(FailedError, match="cannot be asked: No such file"):
        hand_over(host, journal)
    assert (host.programs, journal.effects) == ([], [])


@pytest.mark.parametrize(
    "unit",
    ["libvirtd.service", "virtqemud.service", "sshd.service", "systemd-logind.service", "dbus.service"],
)
def test_what_the_hand_over_needs_must_not_go_down_with_the_display_manager(host: Desktop, unit: str) -> None:
    with_lightdm(host)
    host.dependents = {MANAGER: ["kiosk.service"], "kiosk.service": [unit]}
    active(host, "kiosk.service")
    # It need not run.
    assert display.stoppable(host, DEVICES).marks()
    active(host, unit)
    journal = begun(host)
    with pytest.raises(RefusedError, match=f"{unit} would go down with {MANAGER}"):
        display.stoppable(host, DEVICES)
    with pytest.raises(RefusedError):
        hand_over(host, journal)
    assert (host.programs, journal.effects) == ([], [])


def test_services_that_do_not_stop_are_named_as_a_shell_takes_them(host: Desktop) -> None:
    with_lightdm(host)
    host.begin(SHELL, "nvidia-persiste", f"/system.slice/{PERSISTENCED}", CARD0)
    host.stubborn.add(MANAGER)
    with pytest.raises(FailedError) as caught:
        hand_over(host, begun(host))
    assert caught.value.what == f"{MANAGER}, {PERSISTENCED} cannot be stopped"
    assert caught.value.remedy == f"look at: systemctl status {MANAGER} {PERSISTENCED}"


def test_without_time_nothing_is_stopped(host: Desktop) -> None:
    journal = begun(host)
    with pytest.raises(FailedError, match=f"no time is left to stop {MANAGER}"):
        services.stop(host, journal, [MANAGER], 0.0)
    assert (host.programs, journal.effects) == ([], [])


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
        "/run/user/1000 /usr/bin/systemctl --user stop -- pipewire.service wireplumber.service"
    )
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    assert effects.undo(host, found) == []
    assert [one for one in host.programs if "setpriv" in one] == [
        stop.partition("--user")[0] + "--user start -- pipewire.service wireplumber.service"
    ]


@pytest.mark.parametrize(
    "state", ["active\nno", "online\nno", "lingering\nyes", "closing\nyes", "closing\nno", ""]
)
def test_a_user_who_stays_has_his_sound_back_while_the_card_is_lent(host: Desktop, state: str) -> None:
    """The card cannot be opened any more, and he may have others."""
    with_sound(host)
    host.put("/run/user/1000/systemd/private")
    host.user_state = state
    assert run(host, "prepare", domain_xml(CARD, AUDIO, metadata=HAND_OVER)) == 0
    assert host.state()[AUDIO] == ("vfio-pci", "vfio-pci")
    asked = [one.partition(" --user ")[2].partition(" --")[0] for one in host.programs if "setpriv" in one]
    assert asked == (["stop"] if state in ("closing\nno", "") else ["stop", "start"])


def test_sound_that_does_not_start_while_the_card_is_lent_is_told_and_no_reason_to_fail(
    host: Desktop,
) -> None:
    with_sound(host)
    host.put("/run/user/1000/systemd/private")
    host.user_state = "active"
    host.refusing_to_start.add("pipewire.service")
    told: list[tuple[str, str, str]] = []
    journal = begun(host)
    hand_over(host, journal)
    audio.go_on(host, journal, lambda step, what, _, problem="": told.append((step, what, problem)))
    names = "pipewire.service, wireplumber.service of user 1000"
    ((step, what, problem),) = told
    assert (step, what) == ("start", names)
    assert "do not start again; start them by hand" in problem
    host.refusing_to_start.clear()
    assert effects.undo(host, journal) == []


def test_sockets_of_sound_servers_are_stopped_first_and_started_again(host: Desktop) -> None:
    with_sound(host)
    host.put("/run/user/1000/systemd/private")
    host.listening = {"pulseaudio.socket", "pipewire.socket"}
    journal = begun(host)
    hand_over(host, journal)
    units = "pipewire.socket pulseaudio.socket pipewire.service wireplumber.service"
    assert host.programs[0].endswith(f" --user stop -- {units}")
    assert ("user-units", "1000", *units.split()) in journal.effects
    host.programs.clear()
    assert effects.undo(host, journal) == []
    assert [one.partition(" --user ")[2] for one in host.programs if "setpriv" in one] == [
        f"start -- {units}"
    ]


@pytest.mark.parametrize("slices", ["app.slice/", "app.slice/app-sound.slice/app-sound-deep.slice/", ""])
def test_sound_servers_are_found_in_whichever_slice_they_run(host: Desktop, slices: str) -> None:
    host.begin(PIPEWIRE, "pipewire", f"{USER}/user@1000.service/{slices}pipewire.service", SOUND)
    assert audio.running(host, "1000") == ["pipewire.service"]
    assert hand_over(host, begun(host)) == ["pipewire.service of user 1000 stopped"]


def test_a_user_s_manager_that_does_not_answer_is_told(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sound(host)
    monkeypatch.setattr(host, "run_program", lambda *_, **__: (None, ""))
    journal = begun(host)
    with pytest.raises(FailedError, match=r"the state of pipewire\.socket, .* is not known") as caught:
        hand_over(host, journal)
    assert "--reuid=1000" in caught.value.remedy
    assert (host.programs, journal.effects) == ([], [])


def silent_for_users(host: Desktop, monkeypatch: pytest.MonkeyPatch, *, at_last: bool) -> None:
    """Let managers of users not answer, or not any more when something was stopped."""
    ask = host.run_program

    def unanswered(
        argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        is_silent = "--user" in argv and (host.programs or not at_last)
        return (None, "") if is_silent else ask(argv, environment, deadline, limit=limit)

    monkeypatch.setattr(host, "run_program", unanswered)


def test_a_user_s_manager_is_asked_before_anything_is_stopped(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lightdm(host)
    with_sound(host)
    silent_for_users(host, monkeypatch, at_last=False)
    journal = begun(host)
    with pytest.raises(FailedError, match=r"the state of pipewire\.socket, .* is not known"):
        hand_over(host, journal)
    assert (host.programs, journal.effects) == ([], [])
    with pytest.raises(FailedError):
        display.stoppable(host, DEVICES)


@pytest.mark.parametrize("has_gone", [True, False])
def test_a_user_who_goes_with_the_display_manager_needs_no_answer(
    host: Desktop, monkeypatch: pytest.MonkeyPatch, has_gone: bool
) -> None:
    with_lightdm(host)
    with_sound(host)
    if not has_gone:
        host.put("/run/user/1000/systemd/private")
    run = host.run

    def stop(argv: list[str], deadline: float) -> int | None:
        status = run(argv, deadline)
        if has_gone:
            host.end("user@1000.service")
        return status

    monkeypatch.setattr(host, "run", stop)
    silent_for_users(host, monkeypatch, at_last=True)
    journal = begun(host)
    if has_gone:
        assert hand_over(host, journal) == [f"{MANAGER} stopped"]
    else:
        with pytest.raises(FailedError, match="is not known"):
            hand_over(host, journal)


def rehearsed(host: Desktop) -> list[str]:
    policy = "<v:policy display='hand-over'/>"
    xml = domain_xml(
        CARD,
        AUDIO,
        metadata=f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'>{policy}</v:passthrough>",
    )
    found = rehearse(host, xml.decode())
    assert found.problem is None
    return [step.text for step in found.steps if "of user 1000" in step.text]


def test_a_rehearsal_without_root_asks_one_s_own_manager_and_no_other(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_sound(host)
    asked: list[list[str]] = []
    ask = host.run_program

    def note(
        argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        if "--user" in argv:
            asked.append(argv)
        return ask(argv, environment, deadline, limit=limit)

    monkeypatch.setattr(host, "run_program", note)
    servers = "stop pipewire.service, wireplumber.service of user 1000"
    again = "start the sound servers of user 1000 again, if he stays logged in"
    assert rehearsed(host) == [servers, again]
    assert {argv[0] for argv in asked} == {"/usr/bin/setpriv"}
    asked.clear()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert rehearsed(host) == [servers, again]
    # Without root, nobody may become anybody.
    assert {argv[0] for argv in asked} == {"/usr/bin/env"}
    asked.clear()
    monkeypatch.setattr("os.geteuid", lambda: 1001)
    assert rehearsed(host) == [
        "stop the sound servers of user 1000 (cannot tell without root which ones run)",
        again,
    ]
    assert asked == []


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


def test_what_waits_for_a_shutdown_is_started_by_recover_if_it_does_not_come(
    host: Desktop, capfd: pytest.CaptureFixture[str]
) -> None:
    """logind says so before systemd, and takes it back where something comes between."""
    with_lightdm(host)
    before = host.state()
    xml = domain_xml(CARD, AUDIO, metadata=HAND_OVER)
    assert run(host, "prepare", xml) == 0
    host.programs.clear()
    host.is_about_to_stop = True
    assert run(host, "release", xml) == 0
    assert capfd.readouterr().err == ""
    assert (host.state(), started(host)) == (before, [])
    host.is_about_to_stop = False
    (found,) = recover(host, frozenset)
    assert (found.state, found.problems) == ("recovered", ())
    assert started(host) == [MANAGER]
    assert read_journal(host, GUEST) is None


# mappings, and the last way to the host


def test_who_has_the_card_mapped_holds_it(host: Desktop) -> None:
    host.put(f"/proc/{XORG}/comm", "game\n")
    host.put(f"/proc/{XORG}/cgroup", "0::/machine.slice/docker-1.scope\n")
    host.put(f"/proc/{XORG}/maps", f"7f00-7f10 rw-s 00000000 00:05 1 {CARD0}\n")
    with pytest.raises(RefusedError, match=f"game \\(process {XORG}, {CARD0}\\)"):
        display.stoppable(host, DEVICES)


@pytest.fixture
def stuck(host: Desktop) -> Iterator[int]:
    """A process whose memory map makes everybody wait who opens it, as a fifo does."""
    host.put(f"/proc/{SSH}/comm", "stuck\n")
    path = host.path(f"/proc/{SSH}/maps")
    os.mkfifo(path)
    yield SSH
    with suppress(OSError):  # nobody waits
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_a_process_that_does_not_answer_hides_no_other_one(
    host: Desktop, stuck: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "using", lambda *asked: super(SimulatedHost, host).using(*asked))
    # Where the card's node is, if it were one.
    monkeypatch.setattr(host, "_place", lambda *_: "00:05:1")
    host.put(f"/proc/{XORG}/comm", "game\n")
    host.put(f"/proc/{XORG}/maps", f"7f00-7f10 rw-s 00000000 00:05 1 {CARD0}\n")
    assert holders.holders(host, DEVICES) == [(XORG, "game", CARD0)]
    warning = holders.unseen(host)
    assert f"whether stuck (process {stuck}) has a device open or mapped is not known" in warning
    began = time.monotonic()
    assert holders.holders(host, DEVICES) == [(XORG, "game", CARD0)]
    assert time.monotonic() - began < 0.4  # it is not asked again
    os.unlink(host.path(f"/proc/{XORG}/maps"))
    told: list[tuple[object, ...]] = []
    display.hand_over(host, begun(host), DEVICES, 0.1, tell=lambda *one: told.append(one))
    assert [one for one in told if one[0] == "warning"] == [("warning", warning, 0.0)]
