"""Files and locks of a host, on real files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation import CARD, SimulatedHost, domain_xml
from virtpass.binding import engine
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host


@pytest.fixture
def own(tmp_path: Path) -> Host:
    return Host(str(tmp_path))


def test_who_holds_the_lock_keeps_all_others_waiting(
    host: SimulatedHost, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "LOCK_DEADLINE", 0.2)
    before = host.state()
    held = engine.lock(host)
    assert run(host, "prepare", domain_xml(CARD)) == 1
    assert "another virtpass command holds" in capfd.readouterr().err
    assert host.state() == before
    host.put("/run/virtpass/lent/6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a", "virtpass\t1\n")
    with pytest.raises(FailedError, match="another virtpass command"):
        recover(host, lambda: [])
    os.close(held)


def test_a_lock_is_free_when_its_holder_dies(own: Host) -> None:
    program = (
        "import sys, time; from virtpass.system.host import Host; Host(sys.argv[1]).lock('/run', 'l', 5)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{program}; print('held', flush=True); time.sleep(60)", own.root],
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FailedError):
            own.lock("/run", "l", 0.1)
        holder.kill()
    os.close(own.lock("/run", "l", 5))


def test_a_worker_does_not_keep_the_lock_of_its_parent(own: Host, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "unbind")
    held = own.lock("/run", "l", 1)
    with pytest.raises(OSError, match="no answer"):
        own.write_attribute("/unbind", "x", 0.1)
    os.close(held)
    os.close(own.lock("/run", "l", 1))
    with open(tmp_path / "unbind", "rb") as end:
        end.read()


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_file_that_others_may_write_is_not_believed(own: Host, mode: int) -> None:
    own.append_own("/run/virtpass", "record", b"x")
    os.chmod(own.path("/run/virtpass/record"), mode)
    with pytest.raises(RefusedError):
        own.read_own("/run/virtpass", "record")


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(own: Host) -> None:
    own.replace_own("/etc/hooks/qemu.d", "50-x", b"old", 0o644)
    own.replace_own("/etc/hooks/qemu.d", "50-x", b"new", 0o755)
    path = Path(own.path("/etc/hooks/qemu.d/50-x"))
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o755)
    assert [one.name for one in path.parent.parent.iterdir()] == ["qemu.d"]
    assert [one.name for one in path.parent.iterdir()] == ["50-x"]


def test_a_program_gets_nothing_of_ours_and_is_not_waited_for_for_ever(own: Host) -> None:
    began = time.monotonic()
    assert own.run(["/bin/sleep", "5"], 0.1) is None
    assert time.monotonic() - began < 4
    assert own.run(["/bin/sh", "-c", "exit 3"], 10) == 3
    assert own.run(["/nonexistent"], 10) == 127


def test_what_it_says_does_not_reach_whoever_called_us(own: Host, capfd: pytest.CaptureFixture[str]) -> None:
    own.run(["/bin/sh", "-c", "echo out; echo err >&2"], 10)
    assert capfd.readouterr() == ("", "")


def test_reading_what_is_not_there_is_no_error(own: Host) -> None:
    assert own.read("/none") is None
    assert own.names("/none") == []
    assert own.link_name("/none") is None
    assert own.read_own("/none", "x") is None
    assert not own.device_node_is_busy("/none")
    assert not own.is_claimed("/none")
    own.remove_own("/none", "x")
