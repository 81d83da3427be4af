"""Programs of the administrator at a hand-over: which run, with what, and what if they misbehave."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulation import AUDIO, CARD, GUEST, SimulatedHost
from virtpass.binding import effects, engine, steps
from virtpass.binding.journal import Journal, journals, read_journal
from virtpass.system import program, waiting
from virtpass.system.errors import FailedError, RefusedError

ROOT = Path(__file__).parents[2]
DEVICES = [CARD, AUDIO]

Put = Callable[..., Path]


@pytest.fixture
def put(host: SimulatedHost) -> Put:
    """Make a step of a shell script and return where it is."""

    def _put(path: str, script: str = "", mode: int = 0o755) -> Path:
        full = f"{effects.STEPS_DIRECTORY}/{path}"
        host.put(full, f"#!/bin/sh\n{script}\n")
        os.chmod(host.path(full), mode)
        return Path(host.path(full))

    return _put


def begun(host: SimulatedHost, name: str = "guest") -> Journal:
    journal = Journal(host, GUEST, name)
    journal.begin([])
    return journal


def undone(host: SimulatedHost) -> list[str]:
    """Undo what is on record; return the problems."""
    journal = read_journal(host, GUEST)
    assert journal is not None
    return [problem.line for problem in effects.undo(host, journal)]


def trace(host: SimulatedHost) -> str:
    """Return the line of a script that leaves a trace of its name and arguments."""
    return f'echo "${{0##*/}} $*" >> {host.path("/trace")}'


def traced(host: SimulatedHost) -> list[str]:
    return (host.read("/trace") or "").splitlines()


# which run, and what they are told


def test_steps_run_in_the_order_of_the_bytes_of_their_names(host: SimulatedHost, put: Put) -> None:
    for name in ("b", "B", "10-x", "9-x", "ü"):
        put(f"prepare.d/{name}", trace(host))
    steps.prepare(host, begun(host), DEVICES)
    assert [line.split()[0] for line in traced(host)] == ["10-x", "9-x", "B", "b", "ü"]


def test_what_editors_and_package_managers_leave_does_not_run(host: SimulatedHost, put: Put) -> None:
    for name in (".hidden", "a~", "a.bak", "a.dpkg-old", "a.rpmsave", "a.rpmnew"):
        put(f"prepare.d/{name}", trace(host))
    put("prepare.d/README", trace(host), mode=0o644)
    put("prepare.d/directory/inner", trace(host))
    put("prepare.d/real", trace(host))
    steps.prepare(host, begun(host), DEVICES)
    assert traced(host) == ["real guest prepare"]


def test_a_step_is_told_about_the_domain_and_about_nothing_else(
    host: SimulatedHost, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_NOT", "of the daemon")
    put("prepare.d/env", f"tr '\\0' '\\n' < /proc/$$/environ > {host.path('/env')}")
    put("release.d/env", f"tr '\\0' '\\n' < /proc/$$/environ > {host.path('/env')}")
    steps.prepare(host, begun(host), DEVICES)
    expected = {
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL=C",
        "VIRTPASS_DOMAIN=guest",
        f"VIRTPASS_UUID={GUEST}",
        "VIRTPASS_DEVICES=0000:01:00.0 0000:01:00.1",
    }
    assert set((host.read("/env") or "").splitlines()) == expected | {"VIRTPASS_EVENT=prepare"}
    assert undone(host) == []
    assert set((host.read("/env") or "").splitlines()) == expected | {"VIRTPASS_EVENT=release"}


@pytest.mark.parametrize("name", ["my guest", "-rf", "$(id); 'x'", "a\nb", "日本", "\udcff"])
def test_a_hostile_name_arrives_as_it_is_at_both_ends(host: SimulatedHost, put: Put, name: str) -> None:
    for event in ("prepare", "release"):
        script = f'printf "%s|" "$1" "$VIRTPASS_DOMAIN" "$2" > {host.path(f"/{event}")}'
        put(f"{event}.d/x", script)
    steps.prepare(host, begun(host, name), DEVICES)
    assert undone(host) == []
    for event in ("prepare", "release"):
        assert host.read_bytes(f"/{event}") == os.fsencode(f"{name}|{name}|{event}|")


def test_without_steps_nothing_is_recorded_or_looked_at(host: SimulatedHost) -> None:
    host.put("/etc/virtpass/other")
    os.chmod(host.path("/etc/virtpass"), 0o777)
    journal = begun(host)
    steps.prepare(host, journal, DEVICES)
    assert journal.effects == []


def test_steps_of_the_release_alone_run_too(host: SimulatedHost, put: Put) -> None:
    put("release.d/x", trace(host))
    steps.prepare(host, begun(host), DEVICES)
    assert traced(host) == []
    assert undone(host) == []
    assert traced(host) == ["x guest release"]


# who may write them


def test_a_step_that_others_may_write_stops_the_start_before_any_runs(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/10-good", trace(host))
    for event in ("prepare", "release"):
        bad = put(f"{event}.d/20-bad", trace(host), mode=0o775)
        with pytest.raises(RefusedError, match=rf"others .* {effects.STEPS_DIRECTORY}/{event}.d/20-bad"):
            steps.prepare(host, begun(host), DEVICES)
        bad.unlink()
    assert traced(host) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/etc/virtpass",
        effects.STEPS_DIRECTORY,
        f"{effects.STEPS_DIRECTORY}/prepare.d",
        f"{effects.STEPS_DIRECTORY}/prepare.d/x",
    ],
)
def test_file_and_all_directories_belong_to_root(host: SimulatedHost, put: Put, path: str) -> None:
    put("prepare.d/x", trace(host))
    os.chown(host.path(path), 1234, 0)
    with pytest.raises(RefusedError, match=path):
        steps.refuse_unsafe(host)
    with pytest.raises(RefusedError, match=path):
        steps.prepare(host, begun(host), DEVICES)
    assert traced(host) == []


@pytest.mark.parametrize(
    "path", ["/etc/virtpass", effects.STEPS_DIRECTORY, f"{effects.STEPS_DIRECTORY}/prepare.d"]
)
@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_to(host: SimulatedHost, put: Put, path: str, mode: int) -> None:
    put("prepare.d/x", trace(host))
    os.chmod(host.path(path), mode)
    with pytest.raises(RefusedError, match=f"others than root may write to {path}"):
        steps.prepare(host, begun(host), DEVICES)
    assert traced(host) == []


def test_links_are_not_followed(host: SimulatedHost, put: Put, tmp_path: Path) -> None:
    target = put("elsewhere/x", trace(host))
    link = tmp_path / effects.STEPS_DIRECTORY[1:] / "prepare.d"
    link.mkdir()
    (link / "y").symlink_to(target)
    with pytest.raises(RefusedError, match=r"prepare.d/y is a symbolic link"):
        steps.refuse_unsafe(host)
    (link / "y").unlink()
    link.rmdir()
    link.symlink_to(target.parent)
    with pytest.raises(RefusedError, match=r"prepare.d is a symbolic link"):
        steps.prepare(host, begun(host), DEVICES)
    assert traced(host) == []


# failures


def test_a_step_that_fails_stops_the_start_and_everything_comes_back(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/1", trace(host))
    put("prepare.d/2", f"{trace(host)}; echo 'no such mount' >&2; exit 3")
    put("prepare.d/3", trace(host))
    put("release.d/1", trace(host))
    before = host.state()
    journal = Journal(host, GUEST, "guest")
    with pytest.raises(FailedError) as caught:
        engine.lend(host, journal, engine.homes(host, DEVICES), lambda: steps.prepare(host, journal, DEVICES))
    assert (
        f"{effects.STEPS_DIRECTORY}/prepare.d/2 failed with exit status 3: no such mount" in caught.value.what
    )
    assert traced(host) == ["1 guest prepare", "2 guest prepare", "1 guest release"]
    assert host.state() == before
    assert journals(host) == []


def test_the_devices_are_back_when_the_steps_of_the_release_run(host: SimulatedHost, put: Put) -> None:
    driver = host.path(f"/sys/bus/pci/devices/{CARD}/driver")
    for event in ("prepare", "release"):
        put(f"{event}.d/x", f"readlink {driver} >> {host.path('/trace')}")
    journal = Journal(host, GUEST, "guest")
    engine.lend(host, journal, engine.homes(host, DEVICES), lambda: steps.prepare(host, journal, DEVICES))
    assert host.state()[CARD][0] == "vfio-pci"
    assert engine.give_back(host, journal) == []
    assert [os.path.basename(line) for line in traced(host)] == ["bochs-drm", "bochs-drm"]


def test_in_the_release_each_has_its_turn(host: SimulatedHost, put: Put) -> None:
    put("release.d/1", "exit 1")
    put("release.d/2", "kill -9 $$")
    put("release.d/3", trace(host))
    steps.prepare(host, begun(host), DEVICES)
    put("release.d/0", trace(host), mode=0o777)
    journal = read_journal(host, GUEST)
    assert journal is not None
    (problem,) = effects.undo(host, journal)
    assert problem.reference == effects.RELEASE_STEP
    for words in (
        "release.d/0",
        "release.d/1 failed with exit status 1",
        "release.d/2 was ended by signal 9",
    ):
        assert words in problem.what
    assert traced(host) == ["3 guest release"]


def test_steps_that_have_ended_are_not_waited_for(host: SimulatedHost, put: Put) -> None:
    for number, script in enumerate(("exit 0", "exit 3")):
        put(f"prepare.d/{number}", script)
        journal = begun(host)
        try:
            steps.prepare(host, journal, DEVICES)
        except FailedError:
            assert script == "exit 3"
        on_disk = read_journal(host, GUEST)
        assert on_disk is not None
        for effects_on_record in (journal.effects, on_disk.effects):
            assert [kind for kind, *_ in effects_on_record] == [steps.STEPS]
        journal.remove()


LEFT = "4194000"


def leave(
    host: SimulatedHost,
    *,
    event: str = "prepare",
    uuid: str = GUEST,
    session: str = LEFT,
    state: str = "S",
    age: int = 2,
    user: int = 0,
) -> None:
    """Let there be a process as that of a step whose hook was killed."""
    started = (1000 - age) * os.sysconf("SC_CLK_TCK")
    host.put("/proc/uptime", "1000.25 3000.00\n")
    host.put(f"/proc/{LEFT}/status", f"Name:\tx\nUid:\t{user}\t0\t0\t0\n")
    host.link(f"/proc/{LEFT}/exe", "/usr/bin/dash")
    host.put(f"/proc/{LEFT}/stat", f"{LEFT} (a) b) {state} 1 {LEFT} {session} {'0 ' * 15}{started} 0 0\n")
    variables = ("PATH=/bin", "VIRTPASS_DEVICES=", f"VIRTPASS_EVENT={event}", f"VIRTPASS_UUID={uuid}")
    host.put(f"/proc/{LEFT}/environ", "".join(f"{one}\0" for one in variables).encode())


@pytest.fixture
def ends(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the process sees it end, and that it leaves a trace then."""

    def end(processes: list[int], seconds: float) -> None:
        assert processes == [int(LEFT)]
        assert 0 < seconds <= steps.DEADLINE
        host.put("/trace", f"{host.read('/trace') or ''}it ends\n")
        host.put(f"/proc/{LEFT}/stat", f"{LEFT} (x) Z 1 {LEFT} {LEFT} {'0 ' * 15}0 0 0\n")

    monkeypatch.setattr(waiting, "wait_for_end", end)


def cut_off(host: SimulatedHost, event: str) -> None:
    """Have on record that steps are at work."""
    journal = begun(host)
    journal.add((steps.STEPS, "guest", GUEST, str(CARD)))
    journal.add((steps.RUNNING, GUEST, event))


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize("event", ["prepare", "release"])
def test_the_step_of_a_killed_hook_ends_before_those_that_undo_it(
    host: SimulatedHost, put: Put, event: str
) -> None:
    put("release.d/x", trace(host))
    cut_off(host, event)
    leave(host, event=event)
    assert undone(host) == []
    assert traced(host) == ["it ends", "x guest release"]


@pytest.mark.usefixtures("ends")
@pytest.mark.parametrize(
    "other",
    [
        {"event": "release"},
        {"uuid": GUEST.replace("a", "b")},
        # What it has started, and what has ended or runs since long.
        {"session": "17"},
        {"state": "Z"},
        {"age": 40},
        # A user may give a set-user-ID program any variables.
        {"user": 1000},
    ],
)
def test_no_other_process_is_waited_for(host: SimulatedHost, put: Put, other: dict[str, Any]) -> None:
    put("release.d/x", trace(host))
    cut_off(host, "prepare")
    leave(host, **other)
    assert undone(host) == []
    assert traced(host) == ["x guest release"]


@pytest.mark.usefixtures("ends")
def test_nothing_is_waited_for_when_no_hook_was_killed_in_a_step(host: SimulatedHost, put: Put) -> None:
    for event in ("prepare", "release"):
        put(f"{event}.d/x", trace(host))
    leave(host)
    steps.prepare(host, begun(host), DEVICES)
    assert undone(host) == []
    assert traced(host) == ["x guest prepare", "x guest release"]


@pytest.mark.usefixtures("impatient")
def test_a_step_that_a_killed_hook_has_left_has_no_more_time_than_others(
    host: SimulatedHost, put: Put
) -> None:
    put("release.d/x", trace(host))
    cut_off(host, "prepare")
    leave(host, age=0)
    began = time.monotonic()
    assert undone(host) == []
    assert time.monotonic() - began < 10
    assert traced(host) == ["x guest release"]


def test_that_steps_of_the_release_run_is_on_record(host: SimulatedHost, put: Put) -> None:
    put("release.d/x", f"cp {host.path('/run/virtpass/lent')}/* {host.path('/seen')}")
    steps.prepare(host, begun(host), DEVICES)
    assert undone(host) == []
    assert (host.read("/seen") or "").splitlines()[-1].split("\t") == ["did", steps.RUNNING, GUEST, "release"]


def test_steps_of_the_release_run_where_nothing_can_be_recorded(
    host: SimulatedHost, put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    put("release.d/x", trace(host))
    steps.prepare(host, begun(host), DEVICES)

    def full(*_: object) -> None:
        raise FailedError("write", "no space left")

    monkeypatch.setattr(host, "append_own", full)
    assert undone(host) == []
    assert traced(host) == ["x guest release"]


@pytest.mark.parametrize("fields", [(GUEST,), ("../x", "prepare"), (GUEST, "start")])
def test_a_record_that_names_no_steps_is_told_of(host: SimulatedHost, fields: tuple[str, ...]) -> None:
    begun(host).add((steps.RUNNING, *fields))
    (problem,) = undone(host)
    assert "cannot" in problem


def test_a_step_that_cannot_be_run_says_why(host: SimulatedHost, put: Put) -> None:
    path = put("prepare.d/x")
    path.write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(FailedError, match=r"prepare.d/x cannot be run: No such file or directory"):
        steps.prepare(host, begun(host), DEVICES)
    path.write_bytes(b"\x7fnothing that runs")
    with pytest.raises(FailedError, match=r"prepare.d/x cannot be run: Exec format error"):
        steps.prepare(host, begun(host), DEVICES)


def test_a_record_that_names_no_domain_runs_nothing(host: SimulatedHost, put: Put) -> None:
    put("release.d/x", trace(host))
    for fields in (("guest", "../etc", ""), ("guest", GUEST, "card"), ("g\0", GUEST, ""), ("guest", GUEST)):
        with pytest.raises(ValueError, match=r"a domain|not a PCI address|unpack"):
            steps.release(host, fields)
    assert traced(host) == []


def test_it_can_be_undone_twice(host: SimulatedHost, put: Put) -> None:
    put("release.d/x", trace(host))
    steps.prepare(host, begun(host), DEVICES)
    assert undone(host) == undone(host) == []
    assert traced(host) == ["x guest release"] * 2


def test_each_program_is_told_of(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/1", "echo said; echo and more >&2")
    put("prepare.d/2", "exit 9")
    told: list[tuple[str, str, float, str, str]] = []
    with pytest.raises(FailedError):
        steps.prepare(host, begun(host), DEVICES, lambda *what: told.append(what))
    assert [(step, path.rpartition("/")[2]) for step, path, *_ in told] == [("step", "1"), ("step", "2")]
    assert told[0][3:] == ("", "said\nand more")
    assert "exit status 9" in told[1][3]
    assert all(0 <= seconds < 30 for _, _, seconds, _, _ in told)


# time


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "DEADLINE", 0.3)
    monkeypatch.setattr(program, "_GRACE", 0.3)


def is_gone(pid: str | None) -> bool:
    """Tell whether a process has ended, within some seconds."""
    assert pid is not None
    assert pid.isdigit()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("manners", ["", "trap '' TERM;"])
def test_a_step_that_hangs_is_ended_with_what_it_started(host: SimulatedHost, put: Put, manners: str) -> None:
    child = f"{manners} sleep 60 & echo $! > {host.path('/child')}; echo $$ > {host.path('/own')}"
    put("prepare.d/x", f"{child}; echo still here; wait; sleep 60")
    put("prepare.d/y", trace(host))
    began = time.monotonic()
    with pytest.raises(FailedError, match=r"prepare.d/x was ended: it took more than 0 s: still here"):
        steps.prepare(host, begun(host), DEVICES)
    assert time.monotonic() - began < 10
    assert is_gone(host.read("/own"))
    assert is_gone(host.read("/child"))
    assert traced(host) == []


@pytest.mark.usefixtures("impatient")
def test_a_step_that_never_stops_talking_is_ended(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/x", "exec yes")
    began = time.monotonic()
    with pytest.raises(FailedError, match="took more than"):
        steps.prepare(host, begun(host), DEVICES)
    assert time.monotonic() - began < 10


def test_a_child_that_keeps_descriptors_open_is_not_waited_for(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/x", f"sleep 60 & echo $! > {host.path('/child')}; echo begun")
    began = time.monotonic()
    told: list[str] = []
    steps.prepare(host, begun(host), DEVICES, lambda *what: told.append(what[4]))
    assert time.monotonic() - began < 10
    assert told == ["begun"]
    pid = int(host.read("/child") or "")
    os.kill(pid, 0)  # it runs on
    os.kill(pid, 9)


def test_a_step_has_nothing_of_whoever_called_the_hook(host: SimulatedHost, put: Put) -> None:
    """libvirt waits until nobody holds its pipes: neither the step nor what it leaves running may."""
    put("prepare.d/x", f"sleep 60 & echo $! > {host.path('/child')}; echo out; echo err >&2; cat")
    put("prepare.d/y", f"ls /proc/self/fd > {host.path('/fds')}; cat /proc/$$/stat > {host.path('/stat')}")
    code = (
        "import os, sys; from tests.simulation import SimulatedHost, CARD, GUEST;"
        "from virtpass.binding import steps; from virtpass.binding.journal import Journal;"
        "os.dup2(1, 3); os.set_inheritable(3, True);"
        "host = SimulatedHost(sys.argv[1]); journal = Journal(host, GUEST, 'guest'); journal.begin([]);"
        "steps.prepare(host, journal, [CARD])"
    )
    # `run` returns when the last holder of the pipes is gone, as libvirt does.
    result = subprocess.run(
        [sys.executable, "-c", code, host.root],
        input=b"the domain's XML",
        capture_output=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )
    os.kill(int(host.read("/child") or ""), 9)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    # 3 is the directory that `ls` reads.
    assert (host.read("/fds") or "").split() == ["0", "1", "2", "3"]
    pid, *_ = stat = (host.read("/stat") or "").split()
    assert stat[5] == pid  # a session of its own


def test_a_step_dies_of_a_broken_pipe_as_shells_expect(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/x", f"{{ yes; echo status $? > {host.path('/status')}; }} | head -n 1 > /dev/null")
    steps.prepare(host, begun(host), DEVICES)
    assert host.read("/status") == "status 141"


def test_no_descriptor_is_left(host: SimulatedHost, put: Put) -> None:
    path = put("prepare.d/x", "echo x")
    host.run_program([f"{effects.STEPS_DIRECTORY}/prepare.d/x"], {}, 10)
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        assert host.run_program([f"{effects.STEPS_DIRECTORY}/prepare.d/x"], {}, 10) == (0, "x")
    path.write_text("#!/nonexistent\n")
    with pytest.raises(FileNotFoundError):
        host.run_program([f"{effects.STEPS_DIRECTORY}/prepare.d/x"], {}, 10)
    assert os.listdir("/proc/self/fd") == before


def test_of_much_output_the_end_is_kept(host: SimulatedHost, put: Put) -> None:
    put("prepare.d/x", "seq 1 100000; echo last")
    status, output = host.run_program([f"{effects.STEPS_DIRECTORY}/prepare.d/x"], {}, 30)
    assert status == 0
    assert output.endswith("100000\nlast")
    assert len(output) <= 4096
