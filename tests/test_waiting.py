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


# What keeps a child from being made or watched.
HINDRANCES = {
    # No process is left. That bound is not for root.
    "EAGAIN": "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0)); os.getuid() or os.setuid(65534)",
    # No descriptor is left.
    "EMFILE": "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)",
    # The kernel is too old, or forbids it.
    "ENOSYS": "os.pidfd_open = lambda process: os.close(9999)",
    # Nobody keeps how a child has ended.
    "SIGCHLD": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    # The lock may have any number then.
    "no standard descriptors": "os.dup2(wanted, 0); os.close(wanted); wanted = 0",
    "nothing": "",
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_a_lock_comes_whatever_becomes_of_the_child(tmp_path: Path, hindrance: str) -> None:
    held = opened(tmp_path / "lock")
    os.chmod(tmp_path / "lock", 0o666)
    assert waiting.lock(held, 0)
    program = f"""
import os, resource, signal, sys
from virtpass.system import waiting
wanted = os.open({os.fspath(tmp_path / "lock")!r}, os.O_RDWR)
children = open("/proc/thread-self/children")
{HINDRANCES[hindrance]}
first = os.dup(2) if {hindrance != "EMFILE"} else None
got = waiting.lock(wanted, 0.2)
os.write(1, b"waits")
got = got, waiting.lock(wanted, {LONG})
if first is not None:
    os.close(first)
    assert os.dup(2) == first, "a descriptor is left"
os.write(1, repr((*got, children.read())).encode())
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as waits:
        assert waits.stdout is not None
        try:
            assert os.read(waits.stdout.fileno(), 100) == b"waits"
            time.sleep(0.2)
            os.close(held)
            assert os.read(waits.stdout.fileno(), 100) == b"(False, True, '')"
            other = opened(tmp_path / "lock")
            assert not waiting.lock(other, 0)
        finally:
            waits.kill()
    assert waiting.lock(other, LONG)
    os.close(other)


def test_the_lock_is_waited_for_also_when_the_child_dies(tmp_path: Path) -> None:
    """As under memory pressure: it is not said then that somebody else has the lock."""
    held, wanted = opened(tmp_path / "lock"), opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    before = children()
    killed: list[str] = []

    def kill() -> None:
        while not (found := children() - before):
            time.sleep(0.01)
        killed.extend(found)
        os.kill(int(killed[0]), signal.SIGKILL)

    killer, timer = threading.Timer(0.1, kill), threading.Timer(0.6, os.close, [held])
    killer.start()
    timer.start()
    began = time.monotonic()
    assert waiting.lock(wanted, LONG)
    assert 0.3 < time.monotonic() - began < LONG / 2
    for one in (killer, timer):
        one.join()
    assert len(killed) == 1
    assert children() == before
    other = opened(tmp_path / "lock")
    assert not waiting.lock(other, 0)
    os.close(other)
    os.close(wanted)


def test_a_child_that_is_interrupted_never_goes_on_as_its_parent(tmp_path: Path) -> None:
    """Ctrl-C reaches both, at whichever instruction the child is."""
    held = opened(tmp_path / "lock")
    assert waiting.lock(held, 0)
    program = f"""
import os, signal, sys
from virtpass.system import waiting
wanted = os.open({os.fspath(tmp_path / "lock")!r}, os.O_RDWR)
parent, fork = os.getpid(), os.fork
def interrupted():
    if not (child := fork()):
        raise KeyboardInterrupt
    return child
os.fork = interrupted
try:
    print(waiting.lock(wanted, 0.2), flush=True)
except BaseException as error:
    print(repr(error), os.getpid() == parent, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=LONG, check=False)
    assert (done.stdout, done.stderr) == (b"False\n", b"")
    os.close(held)


def test_a_file_that_cannot_be_locked_is_no_lock_of_others(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        waiting.lock(os.open(tmp_path, os.O_PATH), 0.1)


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_child_closes_all_but_what_it_needs(tmp_path: Path, is_listed: bool) -> None:
    program = f"""
import os, sys
from virtpass.system import child
kept = [os.open("/dev/null", os.O_RDWR) for _ in range(40)][7::20]
mine, theirs = os.pipe()
if os.fork() == 0:
    listdir = os.listdir
    if not {is_listed}:
        os.listdir = lambda path: os.open("/nowhere", 0)
    child._close_all_but((*kept, theirs))
    left = [int(name) for name in listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{{name}}")]
    os.write(theirs, repr(sorted(left) == sorted([*kept, theirs])).encode())
    os._exit(0)
os.close(theirs)
print(os.read(mine, 100))
"""
    argv = [sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LONG, check=False)
    assert (done.stdout, done.stderr) == ("b'True'\n", "")


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


def test_of_many_processes_some_are_waited_for() -> None:
    """Each costs a descriptor."""
    limit = len(os.listdir("/proc/self/fd")) + 80
    program = f"""
import os, resource, time
from virtpass.system import waiting
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
began = time.monotonic()
waiting.wait_for_end([os.getpid()] * 1000, 0.5)
print(time.monotonic() - began >= 0.5)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=LONG, check=False)
    assert (done.stdout, done.stderr) == (b"True\n", b"")


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


def test_events_without_end_do_not_keep_a_wait_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        """A socket from which there is always something to read."""

        def __init__(self) -> None:
            self.read_end, self._write_end = os.pipe()
            os.write(self._write_end, b"x")

        def fileno(self) -> int:
            return self.read_end

        def recv(self, size: int) -> bytes:
            return b"change@/devices/x"

        def close(self) -> None:
            os.close(self.read_end)
            os.close(self._write_end)

    with waiting.Uevents() as uevents:
        uevents.close()
        monkeypatch.setattr(uevents, "_socket", Endless())
        assert not uevents.wait_until(lambda: False, 0.1)
