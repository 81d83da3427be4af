"""Waits end with their event, and never later than they may."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from virtpass.system import waiting

# Seconds. What must not be waited for takes this long; what is waited for has it as its bound.
LONG = 60.0


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def children() -> set[str]:
    """Return the processes that this one has made, zombies included."""
    tasks = Path("/proc/self/task").iterdir()
    return {process for task in tasks for process in (task / "children").read_text().split()}


def test_a_lock_comes_when_its_holder_lets_go(tmp_path: Path) -> None:
    held, wanted = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    timer = threading.Timer(0.3, os.close, [held])
    timer.start()
    assert waiting.lock(wanted, LONG)
    timer.join()
    other = opened(tmp_path / "lock")
    assert not waiting.lock(other, 0.05)
    os.close(wanted)
    assert waiting.lock(other, 0)
    os.close(other)


def test_a_lock_that_does_not_come_leaves_no_child(tmp_path: Path) -> None:
    held, wanted = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    before = children()
    assert not waiting.lock(wanted, 0.05)
    assert children() == before
    # Nor does anything get the lock late.
    os.close(held)
    other = opened(tmp_path / "lock")
    assert waiting.lock(other, 0)
    os.close(other)
    os.close(wanted)


def test_an_interrupted_wait_for_a_lock_leaves_no_child(tmp_path: Path) -> None:
    held = opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    program = f"""
import os, signal, sys
from virtpass.system import waiting
signal.signal(signal.SIGALRM, lambda *_: sys.exit(7))
signal.setitimer(signal.ITIMER_REAL, 0.2)
waiting.lock(os.open({str(tmp_path / "lock")!r}, os.O_RDWR), {LONG})
"""
    # The end of its output tells that whoever had it is gone.
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=LONG, check=False)
    assert done.returncode == 7
    os.close(held)


def test_who_waits_for_the_output_does_not_wait_for_the_child(tmp_path: Path) -> None:
    held = opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    program = f"""
import os
from virtpass.system import waiting
os.write(1, b"waits")
waiting.lock(os.open({str(tmp_path / "lock")!r}, os.O_RDWR), {LONG})
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(5) == b"waits"
        time.sleep(0.2)
        child.send_signal(signal.SIGKILL)
        # This ends only when all have closed it.
        assert child.stdout.read() == b""
    os.close(held)


def test_the_end_of_one_process_is_enough() -> None:
    with subprocess.Popen(["sleep", "60"]) as stays, subprocess.Popen(["sleep", "0.2"]) as goes:
        waiting.wait_for_end([stays.pid, goes.pid], LONG)
        assert goes.poll() == 0 or goes.wait(1) == 0
        assert stays.poll() is None
        waiting.wait_for_end([stays.pid], 0.05)
        assert stays.poll() is None
        stays.kill()
    waiting.wait_for_end([stays.pid], LONG)


@pytest.fixture(params=["events", "no events"])
def uevents(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> waiting.Uevents:
    """What is told by the kernel, or cannot be listened to."""
    if request.param == "no events":
        monkeypatch.setattr(waiting, "_NETLINK_KOBJECT_UEVENT", 9999)
    return waiting.Uevents()


def test_a_wait_ends_when_it_holds_and_when_its_time_is_over(uevents: waiting.Uevents) -> None:
    with uevents:
        began = time.monotonic()
        assert uevents.wait_until(lambda: True, 0)
        assert not uevents.wait_until(lambda: False, 0.05)
        # Without any event, too: one may be lost.
        assert uevents.wait_until(lambda: time.monotonic() > began + 0.1, LONG)
        assert time.monotonic() < began + LONG / 2


def test_an_event_ends_a_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    looks: list[float] = []

    def holds() -> bool:
        looks.append(time.monotonic())
        return len(looks) > 1

    with waiting.Uevents() as uevents:
        uevents.close()
        monkeypatch.setattr(uevents, "_socket", mine)
        monkeypatch.setattr(waiting, "_RARELY", LONG)
        timer = threading.Timer(0.2, theirs.send, [b"add@/devices/x"])
        timer.start()
        assert uevents.wait_until(holds, LONG)
        timer.join()
        assert len(looks) == 2
    theirs.close()
