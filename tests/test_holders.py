"""Who uses a device, asked of real processes: what they have open counts, not how it is called.

Files of the kernel stand for the nodes of a card: a character device is one, whatever drives it.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation import CARD, DISK, SimulatedHost, desktop
from virtpass.binding import holders, safety
from virtpass.pci.address import PciAddress
from virtpass.system import device_users, waiting
from virtpass.system.device_users import _remote_mounts, _Wanted
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.worker import first_parent

FULL, ZERO = "/dev/full", "/dev/zero"
NODES = {FULL: "c1:7", ZERO: "c1:5"}
# In a mount namespace of its own; the words after it are run there.
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc")
WAITS = "import sys; print(flush=True); sys.stdin.read()"

Begin = Callable[..., str]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begin a process of Python, perhaps through another program, and return its number when it waits."""
    running = []

    def start(code: str, *before: str) -> str:
        command = [*before, sys.executable, "-c", f"{code}\n{WAITS}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return str(process.pid)

    yield start
    for process in running:
        process.communicate(b"", timeout=30)


def in_own_mounts(begin: Begin, setup: str, code: str) -> str:
    """Begin a process with mounts of its own, as any user can."""
    if subprocess.run([*OWN_MOUNTS, "true"], check=False, capture_output=True).returncode:
        pytest.skip("nobody may have mounts of his own on this machine")
    return begin(code, *OWN_MOUNTS, f'{setup}; exec "$@"', "sh")


def using(*processes: str) -> dict[str, str]:
    return Host().using(list(processes), NODES, 5.0)


def mapping(path: str, how: str = "MAP_SHARED") -> str:
    """Return code that maps a file, and leaves no descriptor of it open."""
    return (
        f"import mmap, os; f = os.open({path!r}, os.O_RDWR)\n"
        f"m = mmap.mmap(f, 4096, mmap.{how}, mmap.PROT_READ); os.closerange(3, 64)"
    )


def test_who_has_a_node_open_uses_it(begin: Begin) -> None:
    holder = begin(f"f = open({FULL!r})")
    assert using("1", holder, "4194304") == {holder: FULL}


def test_other_devices_are_none(begin: Begin) -> None:
    assert using(begin("f = open('/dev/null'); g = open('/dev/urandom')")) == {}


# fakes: all of these have the path of a node, and none has a device


def test_a_file_with_the_path_of_a_node_is_none(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 4096)
    setup = f"mount --bind {tmp_path}/file {FULL}"
    fake = in_own_mounts(begin, setup, f"f = open({FULL!r})")
    assert os.readlink(f"/proc/{fake}/fd/3") == FULL
    assert using(fake) == {}


def test_a_mapped_file_with_the_path_of_a_node_is_none(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 4096)
    fake = in_own_mounts(begin, f"mount --bind {tmp_path}/file {FULL}", mapping(FULL))
    assert f" {FULL}\n" in Path(f"/proc/{fake}/maps").read_text()
    assert using(fake) == {}


@pytest.mark.parametrize("end", [f" {FULL}", f"\n7f00-7f10 rw-s 00000000 00:06 6 {FULL}"])
def test_a_mapped_file_whose_name_ends_like_a_line_of_a_node_is_none(
    begin: Begin, tmp_path: Path, end: str
) -> None:
    path = f"{tmp_path}/x{end}"
    os.makedirs(os.path.dirname(path))
    Path(path).write_text("x" * 4096)
    fake = begin(mapping(path))
    assert f" {FULL}\n" in Path(f"/proc/{fake}/maps").read_text()
    assert using(fake) == {}


def test_a_device_under_the_path_of_a_node_is_what_it_is(begin: Begin) -> None:
    """The other way round: the path says full, and it is zero."""
    other = in_own_mounts(begin, f"mount --bind {ZERO} {FULL}", f"f = open({FULL!r})")
    assert using(other) == {other: ZERO}


# the node under another path, as in a container


def mknod(path: Path, kind: int = stat.S_IFCHR, number: tuple[int, int] = (1, 5)) -> str:
    """Make a device node, where the tests may do that and the file system lets it be opened."""
    try:
        os.mknod(path, 0o600 | kind, os.makedev(*number))
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        pytest.skip("device nodes cannot be made here")
    return os.fspath(path)


def test_a_node_made_elsewhere_is_the_device(begin: Begin, tmp_path: Path) -> None:
    holder = begin(f"f = open({mknod(tmp_path / 'x')!r})")
    assert using(holder) == {holder: ZERO}


def test_a_node_that_was_mounted_elsewhere_is_the_device(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    holder = in_own_mounts(begin, f"mount --bind {FULL} {tmp_path}/x", f"f = open('{tmp_path}/x')")
    assert using(holder) == {holder: FULL}


def test_a_node_that_is_gone_is_the_device_still(begin: Begin, tmp_path: Path) -> None:
    path = mknod(tmp_path / "x")
    holder = begin(f"f = open({path!r})")
    os.unlink(path)
    assert using(holder) == {holder: ZERO}


# mappings


def test_who_has_a_node_mapped_uses_it(begin: Begin) -> None:
    holder = begin(mapping(ZERO, "MAP_PRIVATE"))
    assert using(holder) == {holder: ZERO}


def test_a_mapped_node_that_was_made_elsewhere_is_the_device(begin: Begin, tmp_path: Path) -> None:
    loop = mknod(tmp_path / "x", stat.S_IFBLK, (7, 0))
    holder = begin(mapping(loop))
    nodes = {"/dev/loop0": "b7:0"}
    assert Host().using([holder], nodes, 5.0) == {holder: "/dev/loop0"}
    # Block devices have numbers of their own.
    assert Host().using([holder], {"/dev/vcs": "c7:0"}, 5.0) == {}


# who does not answer


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Processes about whose mappings there is no answer."""
    found: set[str] = set()
    mapped_by = _Wanted._mapped_by

    def wait(self: _Wanted, process: bytes) -> tuple[int | None, bool]:
        while os.path.basename(os.fsdecode(process)) in found:
            time.sleep(1)
        return mapped_by(self, process)

    monkeypatch.setattr(_Wanted, "_mapped_by", wait)
    monkeypatch.setattr(device_users, "PATIENCE", 0.3)
    return found


def test_who_does_not_answer_hides_nobody(begin: Begin, mute: set[str]) -> None:
    before, dead, holder = begin(f"f = open({FULL!r})"), begin(""), begin(f"f = open({FULL!r})")
    host = Host()
    mute.add(dead)
    assert host.using([before, dead, holder], NODES, 30.0) == {before: FULL, holder: FULL}
    assert host.unseen_processes == {dead}


def test_what_is_open_counts_although_nobody_tells_of_the_mappings(begin: Begin, mute: set[str]) -> None:
    holder = begin(f"f = open({FULL!r})")
    mute.add(holder)
    host = Host()
    assert host.using([holder], NODES, 30.0) == {holder: FULL}
    assert host.unseen_processes == set()


def test_who_did_not_answer_is_not_waited_for_again(begin: Begin, mute: set[str]) -> None:
    dead = begin(
        "g = []\nimport signal\nsignal.signal(signal.SIGUSR1, lambda *_: g.append(open('/dev/full')))"
    )
    host = Host()
    mute.add(dead)
    assert host.using([dead], NODES, 30.0) == {}
    assert host.unseen_processes == {dead}
    began = time.monotonic()
    assert host.using([dead], NODES, 0.2) == {}
    assert time.monotonic() - began < 0.2
    assert host.unseen_processes == {dead}
    # What it opens since is seen all the same.
    os.kill(int(dead), signal.SIGUSR1)
    end = time.monotonic() + 30
    while not host.using([dead], NODES, 5.0) and time.monotonic() < end:
        time.sleep(0.05)
    assert host.using([dead], NODES, 5.0) == {dead: FULL}
    assert host.unseen_processes == set()


def test_no_child_of_a_look_is_left(begin: Begin, mute: set[str]) -> None:
    dead = begin("")
    mute.add(dead)
    Host().using([dead, str(os.getpid())], NODES, 30.0)
    names = {(Path("/proc") / one / "comm").read_text().strip() for one in children()}
    assert device_users.NAME not in names
    # Nor would one be taken for a child that may still write.
    assert first_parent(device_users.NAME) is None


def children() -> set[str]:
    """Return the processes that this one has made."""
    tasks = Path("/proc/self/task").iterdir()
    return {process for task in tasks for process in (task / "children").read_text().split()}


def test_a_process_with_many_files_is_not_taken_for_one_that_does_not_answer(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = device_users._number

    def slow(path: bytes) -> bytes:
        time.sleep(0.005)
        return number(path)

    monkeypatch.setattr(device_users, "_number", slow)
    monkeypatch.setattr(device_users, "PATIENCE", 0.5)
    holder = begin(f"f = [open('/dev/null') for _ in range(200)]\n{mapping(ZERO, 'MAP_PRIVATE')}")
    many = begin("f = [open('/dev/null') for _ in range(200)]")
    assert Host().using([many, holder], NODES, 60.0) == {holder: ZERO}


def test_without_time_nobody_is_said_to_be_free(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Wanted, "named_by", lambda *_: time.sleep(5))
    with pytest.raises(FailedError, match=r"who uses /dev/\w+ cannot be told: process \d+ takes too long"):
        Host().using([begin(f"f = open({FULL!r})")], NODES, 0.0)


def test_many_that_do_not_answer_hide_nobody_and_refuse_nothing(begin: Begin, mute: set[str]) -> None:
    """The path of a node is looked at first; there is no time for all the rest."""
    dead = [begin("") for _ in range(3)]
    holder, mapper = begin(f"f = open({FULL!r})"), begin(mapping(ZERO, "MAP_PRIVATE"))
    mute.update(dead)
    host = Host()
    assert host.using([*dead, holder, mapper], NODES, 0.7) == {holder: FULL}
    assert host.unseen_processes == {*dead, mapper}
    # Who did not answer is remembered, and there is time for others the next time.
    assert host.using([*dead, holder, mapper], NODES, 30.0) == {holder: FULL, mapper: ZERO}
    assert host.unseen_processes == set(dead)


def test_a_stall_hides_nobody(begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child is not given the processor for a while, just then."""
    holder = begin(f"f = open({FULL!r})")
    named_by = _Wanted.named_by
    first = tmp_path / "first"
    first.touch()

    def stall(self: _Wanted, process: bytes) -> int | None:
        if first.exists():
            first.unlink()
            time.sleep(2)
        return named_by(self, process)

    monkeypatch.setattr(_Wanted, "named_by", stall)
    monkeypatch.setattr(device_users, "PATIENCE", 0.3)
    host = Host()
    assert host.using([holder], NODES, 30.0) == {holder: FULL}
    assert not first.exists()
    assert host.unseen_processes == set()


def test_who_is_silent_is_waited_for_as_long_as_is_said(begin: Begin, mute: set[str]) -> None:
    """Else a few of them would leave no time for those behind."""
    dead = [begin("") for _ in range(3)]
    mute.update(dead)
    began = time.monotonic()
    host = Host()
    assert host.using(dead, NODES, 30.0) == {}
    assert host.unseen_processes == set(dead)
    # Half a time more for each, on a slow machine.
    assert time.monotonic() - began < len(dead) * device_users.PATIENCE * 1.5 + 1


def test_who_was_not_asked_is_not_said_to_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child comes to the second stage just when nobody listens any more, and to nobody in it."""
    words = iter([(False, b"next next whole "), (True, b"next 1 next end ")])

    def look(task: device_users._Task, answer: device_users.Answer, _end: float) -> bool:
        came, told = next(words)
        task.where, task.unfinished = -1, b""
        task.take(told, answer)
        return came

    monkeypatch.setattr(device_users, "_look", look)
    silent: set[str] = set()
    answer = device_users.users("/proc", ["7", "8"], [], silent, 30.0)
    assert (answer.found, answer.unseen, silent) == ({"7": 1}, set(), set())


def test_what_is_told_last_counts(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child answers just when nobody listens any more."""
    holder = begin(f"f = open({FULL!r})")
    end_child = waiting.end_child

    def late(process: int) -> None:
        time.sleep(1)
        end_child(process)

    named_by = _Wanted.named_by

    def slow(self: _Wanted, process: bytes) -> int | None:
        time.sleep(0.8)
        return named_by(self, process)

    monkeypatch.setattr(_Wanted, "named_by", slow)
    monkeypatch.setattr(waiting, "end_child", late)
    monkeypatch.setattr(device_users, "PATIENCE", 0.4)
    host = Host()
    assert host.using([holder], NODES, 30.0) == {holder: FULL}
    assert host.unseen_processes == set()


def test_a_node_with_a_path_longer_than_a_page_is_found(begin: Begin, tmp_path: Path) -> None:
    mknod(tmp_path / "probe")
    code = (
        f"import os, stat\nos.chdir({os.fspath(tmp_path)!r})\n"
        "for _ in range(40):\n    os.mkdir('x' * 200)\n    os.chdir('x' * 200)\n"
        "os.mknod('zero', stat.S_IFCHR | 0o600, os.makedev(1, 5))\nf = open('zero')"
    )
    holder = begin(code)
    with pytest.raises(OSError, match="too long"):
        os.readlink(f"/proc/{holder}/fd/3")
    assert using(holder) == {holder: ZERO}


def test_one_who_goes_hides_nobody_who_has_the_same_mapped(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = mknod(tmp_path / "x", stat.S_IFBLK, (7, 0))
    going, holder = begin(mapping(loop)), begin(mapping(loop))
    real = os.stat

    def gone(path: str | bytes) -> os.stat_result:
        if os.fsdecode(path).startswith(f"/proc/{going}/map_files/"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path)

    monkeypatch.setattr(os, "stat", gone)
    assert Host().using([going, holder], {"/dev/loop0": "b7:0"}, 5.0) == {holder: "/dev/loop0"}


def test_mappings_that_root_may_not_look_at_are_told(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = begin(mapping(mknod(tmp_path / "x", stat.S_IFBLK, (7, 0))))
    real = os.stat

    def refuse(path: str | bytes) -> os.stat_result:
        if "/map_files/" in os.fsdecode(path):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(path)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host = Host()
    assert host.using([holder], {"/dev/loop0": "b7:0"}, 5.0) == {}
    assert host.unseen_processes == {holder}


def test_who_may_not_be_looked_at_is_not_said_to_be_free(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root under the rules of a security module; an ordinary user sees what is his own."""
    other, holder = begin(""), begin(f"f = open({FULL!r})")
    listdir = os.listdir

    def refuse(path: object) -> list[object]:
        if path == f"/proc/{other}/fd".encode():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return list(listdir(path))  # type: ignore[call-overload]

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    host = Host()
    assert host.using([other, holder], NODES, 30.0) == {holder: FULL}
    assert host.unseen_processes == {other}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host.using([other, holder], NODES, 30.0) == {holder: FULL}
    assert host.unseen_processes == set()


@pytest.mark.parametrize(
    ("code", "node"), [(f"f = open({FULL!r})", FULL), (mapping(ZERO, "MAP_PRIVATE"), ZERO)]
)
def test_a_process_whose_first_thread_has_ended_uses_it_still(code: str, node: str) -> None:
    waits = (
        f"import ctypes, sys, threading\n{code}\n"
        "threading.Thread(target=lambda: (sys.stdin.read(), __import__('os')._exit(0))).start()\n"
        "print(flush=True); ctypes.CDLL(None).pthread_exit(None)"
    )
    argv = [sys.executable, "-c", waits]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stat_of = Path(f"/proc/{process.pid}/stat")
        end = time.monotonic() + 30
        while ") Z " not in stat_of.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        assert os.listdir(f"/proc/{process.pid}/fd") == []
        try:
            assert using(str(process.pid)) == {str(process.pid): node}
        finally:
            process.communicate(b"", timeout=30)


@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_without_a_child_nobody_is_said_to_be_free(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    holder = begin(f"f = open({FULL!r})")

    def refuse() -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    host = Host()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(FailedError, match="cannot be told"):
            host.using([holder], NODES, 5.0)
    assert host.using([holder], NODES, 5.0) == {holder: FULL}


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_with_standard_descriptors_closed_holders_are_seen(
    begin: Begin, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    holder = begin(f"f = open({FULL!r})")
    (tmp_path / "attribute").write_text("value")
    code = (
        f"import os\nfor one in {closed}: os.close(one)\n"
        "from virtpass.system.host import Host\n"
        f"seen = Host().using([{holder!r}], {NODES!r}, 30.0) == {{{holder!r}: {FULL!r}}}\n"
        f"read = Host({os.fspath(tmp_path)!r}).read_attribute('/attribute', 30) == 'value'\n"
        "os._exit(0 if seen and read else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("has_room", [True, False])
def test_more_is_told_than_a_pipe_takes(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    holder = begin(f"f = open({FULL!r})")
    if not has_room:
        monkeypatch.setattr(device_users, "_ROOM", 1 << 40)
    monkeypatch.setattr(device_users, "PATIENCE", 0.1)
    # Above the highest number that a process can have.
    nobody = [str((1 << 22) + number) for number in range(30000)]
    assert Host().using([*nobody, holder], NODES, 60.0) == {holder: FULL}


def test_many_processes_and_nodes_are_all_asked(begin: Begin) -> None:
    holder = begin(f"f = open({FULL!r})")
    many = {f"/dev/none{number}": f"c250:{number}" for number in range(1000)}
    numbers = [str(4194304 + number) for number in range(500)]
    found = Host().using([*numbers, holder, *numbers], {**many, **NODES}, 5.0)
    assert found == {holder: FULL}


# file servers that are gone


MOUNTS = (
    b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
    b"30 22 0:50 / /mnt/a\\040b rw - nfs4 server:/x rw\n"
    b"31 22 0:51 / /run/user/1000/doc rw,nosuid,nodev - fuse.portal portal rw\n"
    b"32 30 0:6 /dri/card0 /mnt/a\\040b/node rw - devtmpfs udev rw\n"
    b"33 22 0:6 /dri/card0 /srv rw - devtmpfs udev rw\n"
    b"34 33 0:52 / /srv rw - fuse.x x rw\n"
)


def wanted(directory: Path, mounts: bytes) -> _Wanted:
    (directory / "self").mkdir()
    (directory / "self" / "mountinfo").write_bytes(mounts)
    return _Wanted(os.fsencode(directory), [(b"c1:7", b"-", b"/dev/full")], lambda: None)


def a_process(directory: Path, number: int, *links: str, mounts: Sequence[int] = ()) -> bytes:
    """Make up a process that has files open, of mounts with these ids."""
    path = directory / str(number)
    (path / "fd").mkdir(parents=True)
    (path / "fdinfo").mkdir()
    for which, link in enumerate(links):
        os.symlink(link, path / "fd" / str(which))
    for which, mount in enumerate(mounts):
        (path / "fdinfo" / str(which)).write_text(f"pos:\t0\nflags:\t02\nmnt_id:\t{mount}\nino:\t9\n")
    return os.fsencode(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which files are asked what they are."""
    found: list[str] = []

    def number(path: bytes) -> bytes:
        found.append(os.fsdecode(os.readlink(path)))
        return b"c1:7" if found[-1] == "/dev/full" else b""

    monkeypatch.setattr("virtpass.system.device_users._asked", number)
    return found


def test_files_of_servers_are_not_asked(tmp_path: Path, asked: list[str]) -> None:
    """One that is gone would answer nobody, and hide what else the process has open."""
    remote = {"/mnt/a b/x": 30, "/run/user/1000/doc/by-app (deleted)": 31, "/srv/x": 34}
    local = {"/home/x": 22, "/mnt/a b/node": 32, "/srv": 33, "/run/user/1000/doc2": 22}
    links = (*remote, *local, "socket:[7]", "anon_inode:[eventfd]")
    process = a_process(tmp_path, 7, *links, mounts=[*remote.values(), *local.values()])
    assert wanted(tmp_path, MOUNTS).used_by(process) is None
    assert sorted(asked) == sorted(local)


@pytest.mark.parametrize("mounts", [(99, 99), ()])
def test_in_mounts_of_others_all_files_are_asked(
    tmp_path: Path, asked: list[str], mounts: Sequence[int]
) -> None:
    process = a_process(tmp_path, 7, "/mnt/a b/x", "/home/x", "socket:[7]", mounts=mounts)
    assert wanted(tmp_path, MOUNTS).used_by(process) is None
    assert sorted(asked) == ["/home/x", "/mnt/a b/x"]


def test_a_node_from_a_mount_that_is_called_like_one_of_a_server_is_found(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened in mounts of somebody's own, and held by a process that has none."""
    (tmp_path / "node").touch()
    other = in_own_mounts(begin, f"mount --bind {FULL} {tmp_path}/node", "pass")
    holder = begin(f"f = open('/proc/{other}/root{tmp_path}/node')")
    assert os.readlink(f"/proc/{holder}/fd/3") == f"{tmp_path}/node"
    mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    kinds = frozenset(line.partition(b" - ")[2].split()[0] for line in mounts)
    monkeypatch.setattr(device_users, "_REMOTE", kinds)
    assert using(holder) == {holder: FULL}


def test_what_is_called_like_a_node_is_asked_first(tmp_path: Path, asked: list[str]) -> None:
    links = ("/home/a", "/home/b", "/dev/full", "/home/c")
    assert wanted(tmp_path, MOUNTS).used_by(a_process(tmp_path, 7, *links)) == 0
    assert asked == ["/dev/full"]


def test_mappings_of_servers_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def number(path: bytes) -> bytes:
        asked.append(path)
        return b""

    monkeypatch.setattr("virtpass.system.device_users._asked", number)
    process = a_process(tmp_path, 7)
    (tmp_path / "7" / "maps").write_text(
        "00400000-00401000 rw-s 00000000 00:32 9 /mnt/a b/x\n"
        "00401000-00402000 r-xp 00000000 08:01 9 /usr/bin/x\n"
        "00402000-00403000 rw-s 00000000 08:01 8 /usr/bin/x\n"
        "00403000-00404000 rw-s 00001000 08:01 8 /usr/bin/x\n"
        "00404000-00405000 rw-p 00000000 00:00 0 [heap]\n"
    )
    looked = wanted(tmp_path, MOUNTS)
    assert looked.used_by(process) is None
    # Each file once.
    assert asked == [process + b"/map_files/402000-403000"]
    assert looked.used_by(process) is None
    assert len(asked) == 1


def test_without_file_servers_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_bytes(MOUNTS.splitlines(keepends=True)[0])
    nothing: tuple[object, ...] = (set(), set(), set())
    assert _remote_mounts(os.fsencode(tmp_path / "mountinfo")) == nothing
    assert _remote_mounts(os.fsencode(tmp_path / "none")) == nothing


words = st.text("0123456789abcdef:- \n/", max_size=9).map(str.encode)
line = st.binary(max_size=60) | st.lists(words | st.just(b"rw-s"), max_size=8).map(b" ".join)
# As the kernel writes one, but for the numbers.
mapped = st.builds(b"%s-%s rw-s 0 %s:%s %s x".__mod__, st.tuples(*[words] * 5))
mounted = st.builds(b"1 1 %s:%s / /%s rw - nfs x rw".__mod__, st.tuples(*[words] * 3))


@given(maps=st.lists(line | mapped | mounted, max_size=6).map(b"\n".join))
def test_whatever_maps_say_ends_in_an_answer(tmp_path_factory: pytest.TempPathFactory, maps: bytes) -> None:
    directory = tmp_path_factory.mktemp("proc")
    process = a_process(directory, 7)
    (directory / "7" / "maps").write_bytes(maps)
    assert wanted(directory, maps).used_by(process) is None


# the host's side: from sysfs to the message


class Machine(SimulatedHost):
    """A simulated host on which real processes run, with a card whose node is that of full."""

    def __init__(self, root: str) -> None:
        super().__init__(desktop(root).root)
        self.running: list[str] = []
        self.add_node(CARD, "drm/card0", "1:7", "DEVNAME=full\nDEVTYPE=drm_minor\n")

    def add_node(self, address: PciAddress, name: str, number: str, event: str) -> None:
        self.put(f"/sys/bus/pci/devices/{address}/{name}/dev", f"{number}\n")
        self.put(f"/sys/bus/pci/devices/{address}/{name}/uevent", event)

    def names(self, path: str) -> list[str]:
        return self.running if path == "/proc" else super().names(path)

    def using(self, processes: list[str], nodes: dict[str, str], deadline: float) -> dict[str, str]:
        return Host().using(processes, nodes, deadline)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(os.fspath(tmp_path / "machine"))


def test_a_fake_blocks_no_start_and_a_holder_does(begin: Begin, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    fake = in_own_mounts(begin, f"mount --bind {tmp_path}/file {FULL}", f"f = open({FULL!r})")
    machine.running = [fake]
    safety.refuse_in_use(machine, [CARD])
    holder = in_own_mounts(begin, f"mount --bind {FULL} {tmp_path}/file", f"f = open('{tmp_path}/file')")
    machine.running = [fake, holder]
    machine.put(f"/proc/{holder}/comm", "game\x1b[2J\n")
    with pytest.raises(RefusedError) as error:
        safety.refuse_in_use(machine, [CARD])
    assert error.value.what == f"the device is in use by game\\x1b[2J (process {holder}, {FULL})"
    assert holders.holders(machine, [CARD])[0][1].isprintable()


def test_disks_are_block_devices(machine: Machine) -> None:
    machine.add_node(DISK, "nvme/nvme0", "240:0", "DEVNAME=nvme0\n")
    machine.add_node(DISK, "nvme/nvme0/nvme0n1", "259:0", "DEVNAME=nvme0n1\nDEVTYPE=disk\n")
    machine.add_node(DISK, "nvme/nvme0/nvme0n1/nvme0n1p1", "259:1", "DEVTYPE=partition\nDEVNAME=nvme0n1p1\n")
    assert holders.device_nodes(machine, DISK) == {
        "/dev/nvme0": "c240:0",
        "/dev/nvme0n1": "b259:0",
        "/dev/nvme0n1p1": "b259:1",
    }


def test_nodes_of_nvidia_have_their_numbers_from_dev(machine: Machine) -> None:
    machine.put("/dev/nvidia0")
    machine.put("/dev/nvidia-caps/nvidia-cap1")
    machine.numbers["/dev/nvidia0"] = "195:0"
    assert holders.nvidia_nodes(machine) == {"/dev/nvidia0": "c195:0", "/dev/nvidia-caps": ""}
    # One without number, such as a directory, is nobody's.
    assert Host().using([str(os.getpid())], {"/dev/nvidia-caps": ""}, 5.0) == {}
