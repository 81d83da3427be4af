"""Programs: their end, their deadline, and what they leave running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtpass.system import commands
from virtpass.system.commands import Outcome, end_marked, output_of, run_command
from virtpass.system.host import Host

HOST = Host()


def shell(script: str, deadline: float = 20.0) -> Outcome:
    return run_command(HOST, ("sh", "-c", script), deadline)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(process: int) -> None:
    end = time.monotonic() + 5
    while is_running(process):
        assert time.monotonic() < end, f"process {process} still runs"
        time.sleep(0.01)


def test_status_and_both_outputs() -> None:
    assert shell("echo out; echo err >&2; exit 3") == Outcome(3, "out\nerr")


def test_a_program_that_is_not_there() -> None:
    outcome = run_command(HOST, ("/nowhere/program",), 1.0)
    assert outcome.status == 127
    assert "No such file" in outcome.output


def test_the_end_of_a_long_output_is_kept() -> None:
    outcome = shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
    assert outcome.output.endswith("line 19999")
    assert len(outcome.output) <= 16384


def test_output_that_is_no_text() -> None:
    assert shell("printf 'a\\377b'").output == "a\ufffdb"


def test_the_environment_is_ours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("GRUB_CMDLINE", "hostile")
    old = os.umask(0o077)
    try:
        lines = shell("env; umask; pwd; cat").output.splitlines()
    finally:
        os.umask(old)
    assert {line.partition("=")[0] for line in lines if "=" in line} <= {
        "PATH", "LC_ALL", "HOME", "VIRTPASS_COMMAND", "PWD", "OLDPWD", "SHLVL", "_",
    }  # fmt: skip
    assert lines[-2:] == ["0022", "/"]


def test_a_program_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    note = tmp_path / "child"
    outcome = shell(f"echo begun; sleep 60 & echo $! > {note}; wait", 0.3)
    assert outcome == Outcome(None, "begun")
    wait_for_end(int(note.read_text()))


def test_a_child_that_does_not_obey_is_ended_once_its_parent_is_gone(tmp_path: Path) -> None:
    note = tmp_path / "child"
    inner = f"trap '' TERM; echo $$ > {note}; while :; do sleep 0.05; done"
    shell(f'sh -c "{inner.replace("$$", chr(92) + "$$")}" & wait', 0.5)
    wait_for_end(int(note.read_text()))


def test_a_child_that_keeps_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    note = tmp_path / "child"
    begun = time.monotonic()
    outcome = shell(f"sleep 60 & echo $! > {note}; echo done")
    assert outcome == Outcome(0, "done")
    assert time.monotonic() - begun < 5
    child = int(note.read_text())
    # It is what the program wanted to leave running, such as a daemon.
    assert is_running(child)
    os.kill(child, 9)


def test_what_a_killed_process_left_running_is_ended(tmp_path: Path) -> None:
    note = tmp_path / "notes"
    script = (
        "import sys\nfrom virtpass.system import commands\nfrom virtpass.system.host import Host\n"
        f"print(commands.mark(), flush=True)\n"
        f"commands.run_command(Host(), ('sh', '-c', 'setsid sleep 60 & echo $! > {note}; sleep 60'), 50)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mark = process.stdout.readline().strip()
        end = time.monotonic() + 10
        while not (note.exists() and note.read_text().strip()):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.kill()
    assert is_running(int(note.read_text()))
    assert end_marked(mark)
    assert not is_running(int(note.read_text()))
    assert not end_marked(mark)
    assert mark != commands.mark()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_processes_of_other_users_are_not_looked_at() -> None:
    """Reading their environment could take for ever, and be made to."""
    mark = "0123456789abcdef"
    with subprocess.Popen(["sleep", "60"], env={"VIRTPASS_COMMAND": mark}, user=65534) as theirs:
        try:
            assert not end_marked(mark)
            assert is_running(theirs.pid)
            # A root of which only the effective user id is ours may be somebody else's.
            with subprocess.Popen(
                [sys.executable, "-c", "import os; os.setresuid(65534, 0, 0); print(flush=True); input()"],
                env={"VIRTPASS_COMMAND": mark},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as half:
                assert half.stdout is not None
                assert half.stdout.readline()
                assert not end_marked(mark)
                half.kill()
        finally:
            theirs.kill()


def test_output_of_a_program_that_fails_or_says_too_much() -> None:
    assert output_of(HOST, ("sh", "-c", "echo a; echo b >&2"), 5) == "a\n"
    assert output_of(HOST, ("sh", "-c", "echo a; exit 1"), 5) is None
    assert output_of(HOST, ("sh", "-c", "echo long"), 5, 3) is None
    assert output_of(HOST, ("sh", "-c", "sleep 9"), 0.1) is None
    assert output_of(HOST, ("/nowhere",), 5) is None
