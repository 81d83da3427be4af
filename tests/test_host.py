"""Files and locks of a host, on real files."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.simulation import CARD, SimulatedHost, domain_xml
from virtpass.binding import engine
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover
from virtpass.system import device_users, own_files, waiting
from virtpass.system import host as host_files
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.worker import Worker


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


def test_the_end_of_a_program_is_waited_for_and_not_looked_for(
    own: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(time, "sleep", unexpected)
    before = os.listdir("/proc/self/fd")
    assert own.run(["/bin/sh", "-c", "sleep 0.2; exit 3"], 10) == 3
    assert own.run(["/bin/sh", "-c", "kill -9 $$"], 10) == -9
    assert own.run(["/bin/sleep", "5"], 0.0) is None
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        # No descriptor is left; those of ours are closed in the program.
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); fill()", "3 None"),
        # The kernel is too old, or forbids it.
        ("os.pidfd_open = lambda process: os.close(9999)", "3 None"),
        # Nobody keeps how it ended.
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "None None"),
    ],
    ids=["EMFILE", "ENOSYS", "SIGCHLD"],
)
def test_the_end_of_a_program_is_found_also_where_it_cannot_be_waited_for(
    own: Host, condition: str, expected: str
) -> None:
    program = f"""
import os, resource, signal, sys
from virtpass.system.host import Host
def fill():
    try:
        while True:
            os.open("/dev/null", os.O_RDONLY)
    except OSError:
        pass
children = open("/proc/thread-self/children")
own = Host(sys.argv[1])
{condition}
ended = own.run(["/bin/sh", "-c", "sleep 0.2; exit 3"], 30)
assert children.read() == ""
print(ended, own.run(["/bin/sleep", "1"], 0.1))
"""
    argv = [sys.executable, "-c", program, own.root]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.parametrize(("limit", "size"), [(0, 4096), (200_000, 200_000)])
def test_all_that_a_program_says_is_kept_where_it_matters(own: Host, limit: int, size: int) -> None:
    Path(own.path("/program")).write_text("#!/bin/sh\nhead -c 200000 /dev/zero | tr '\\0' x\n")
    os.chmod(own.path("/program"), 0o755)
    assert own.run_program(["/program"], {}, 30, limit=limit) == (0, "x" * size)
    with pytest.raises(OSError, match="says more than 199999 bytes") as caught:
        own.run_program(["/program"], {}, 30, limit=199_999)
    assert caught.value.errno == errno.EMSGSIZE


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


# links below another root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be seen from below the root."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "secret").write_text("of the machine that runs")
    return path


@pytest.fixture
def guest(tmp_path: Path, outside: Path) -> Host:
    root = tmp_path / "root"
    for directory in ("etc", "usr/lib", "boot", "sys/devices/d0", "sys/bus"):
        (root / directory).mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("ID=guest\n")
    (root / "sys/devices/d0/vendor").write_text("0x1234\n")
    return Host(os.fspath(root))


def linked(host: Host, path: str, target: str) -> None:
    os.symlink(target, host.path(path))


def test_an_absolute_link_leads_to_what_is_below_the_root(guest: Host) -> None:
    linked(guest, "/etc/os-release", "/usr/lib/os-release")
    linked(guest, "/lib", "/usr/lib")
    assert guest.read("/etc/os-release") == "ID=guest"
    assert guest.read("/lib/os-release") == "ID=guest"
    assert guest.names("/lib") == ["os-release"]
    assert guest.exists("/lib/os-release")
    assert guest.real_path("/lib/os-release") == guest.real_path("/etc/os-release") == "/usr/lib/os-release"
    assert guest.link_target("/etc/os-release") == "/usr/lib/os-release"
    linked(guest, "/usr/lib/alias", "os-release")
    assert guest.link_name("/lib/alias") == "os-release"


@pytest.mark.parametrize("climb", ["", "../../../../../../../../../.."])
def test_no_link_leads_out_of_the_root(guest: Host, outside: Path, climb: str) -> None:
    linked(guest, "/boot/file", f"{climb}{outside}/secret")
    linked(guest, "/boot/directory", f"{climb}{outside}")
    assert guest.read("/boot/file") is None
    assert guest.read("/boot/directory/secret") is None
    assert guest.names("/boot/directory") == []
    linked(guest, "/boot/up", "../../../..")
    assert guest.subdirectories("/boot/up") == ["boot", "etc", "sys", "usr"]
    assert not guest.exists("/boot/directory/secret")
    assert not guest.is_own("/boot/directory/secret")
    assert guest.version("/boot/directory/secret") is None
    assert guest.real_path("/boot/file") == f"{outside}/secret"
    with pytest.raises(OSError, match="No such file"):
        guest.read_attribute("/boot/directory/secret", 5)


def test_a_device_outside_is_not_looked_at(guest: Host) -> None:
    linked(guest, "/boot/null", "/dev/null")
    assert guest.device_number("/boot/null") is None
    assert Host().device_number("/dev/null") == "1:3"


def test_relative_links_as_in_sysfs_are_followed(guest: Host) -> None:
    linked(guest, "/sys/bus/d0", "../devices/d0")
    linked(guest, "/sys/devices/d0/subsystem", "../../bus")
    assert guest.read("/sys/bus/d0/vendor") == "0x1234"
    assert guest.read("/sys/bus/d0/subsystem/d0/vendor") == "0x1234"
    assert guest.names("/sys/bus/d0") == ["subsystem", "vendor"]
    assert guest.real_path("/sys/bus/d0") == "/sys/devices/d0"
    assert guest.link_name("/sys/bus/d0/subsystem") == "bus"


def test_links_that_lead_in_a_circle_lead_to_nothing(guest: Host) -> None:
    linked(guest, "/boot/a", "/boot/b")
    linked(guest, "/boot/b", "a")
    assert guest.read("/boot/a") is None
    assert guest.names("/boot/a") == []
    assert guest.subdirectories("/boot/a/x") == []
    assert not guest.exists("/boot/a/x")
    assert guest.exists("/boot/a")
    assert guest.link_target("/boot/a") == "/boot/b"
    assert guest.link_target("/boot/a/x") is None
    assert guest.real_path("/boot/a/x") == "/boot/a/x"
    assert not guest.device_node_is_busy("/boot/a")
    assert guest.device_number("/boot/a") is None
    assert not guest.is_claimed("/boot/a")
    assert not guest.is_own("/boot/a/x")


def test_of_the_machine_itself_the_kernel_resolves_the_links(
    own: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(path: str) -> str:
        raise AssertionError(f"{path} was looked at")

    linked(own, "/link", own.path("/file"))
    Path(own.path("/file")).write_text("x")
    monkeypatch.setattr(os, "readlink", unexpected)
    assert Host().read(own.path("/link")) == "x"


# directories that others may write to


def test_a_directory_that_others_may_write_to_can_be_mended(own: Host) -> None:
    os.makedirs(own.path("/boot/efi"))
    os.chmod(own.path("/boot"), 0o777)
    with pytest.raises(RefusedError) as caught:
        own.open_directory("/boot/efi")
    assert caught.value.remedy == "chown root /boot; chmod go-w /boot"


@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_on_a_file_system_without_permissions_the_mount_options_are_the_remedy(
    own: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    os.makedirs(own.path("/boot/efi"))
    os.chmod(own.path("/boot/efi"), 0o777)
    number = os.stat(own.path("/boot/efi")).st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 0:9999 / / rw - ext4 /dev/sda2 rw\n"
        f"30 22 {os.major(number)}:{os.minor(number)} / /boot/efi rw shared:3 - {kind} /dev/sda1 rw\n"
    )
    monkeypatch.setattr(own_files, "_MOUNTS", str(mounts))
    with pytest.raises(RefusedError) as caught:
        own.open_directory("/boot/efi")
    assert caught.value.reference == "unsafe-directory"
    assert f"others than root may write to /boot/efi ({kind}" in caught.value.what
    assert "umask=0077" in caught.value.remedy
    assert "dmask=" in caught.value.remedy
    assert "/etc/fstab" in caught.value.remedy
    assert "chmod" not in caught.value.line


# what may block


@pytest.fixture
def stopped(own: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host whose drivers do not answer: the child that asks them stands still."""
    Path(own.path("/node")).write_text("x")
    assert own.read_attribute("/node", 5) == "x"
    worker = own._worker
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    monkeypatch.setattr(host_files, "_OPEN_DEADLINE", 0.1)
    yield own
    os.kill(worker.pid, signal.SIGCONT)


def test_a_disk_that_does_not_answer_is_in_use(stopped: Host) -> None:
    assert stopped.is_claimed("/node")


def test_a_group_that_does_not_answer_is_in_use(stopped: Host) -> None:
    assert stopped.device_node_is_busy("/node")


def test_a_configuration_space_that_does_not_answer_is_not_waited_for(stopped: Host) -> None:
    with pytest.raises(OSError, match="no answer"):
        stopped.read_device("/node", 64, 0.1)


NODE = "/dev/dri/card0"
NODES = {NODE: "c226:0"}
SILENT = {"7", "150"}


def with_maps(host: Host, count: int) -> list[str]:
    """Let processes run that have a node mapped."""
    processes = [str(number) for number in range(1, count + 1)]
    for one in processes:
        os.makedirs(host.path(f"/proc/{one}"), exist_ok=True)
        if one not in SILENT:
            # Where `placed` says that the node is.
            Path(host.path(f"/proc/{one}/maps")).write_text(f"7f00-7f10 rw-s 00000000 00:05 1 {NODE}\n")
    return processes


@pytest.fixture
def placed(own: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with a device node, which it takes root to make."""
    monkeypatch.setattr(own, "_place", lambda *_: "00:05:1")
    return own


@pytest.fixture
def silent(own: Host) -> Iterator[set[str]]:
    """Processes whose maps make everybody wait who opens them, as a fifo does."""
    paths = [own.path(f"/proc/{one}/maps") for one in SILENT]
    for path in paths:
        os.makedirs(os.path.dirname(path))
        os.mkfifo(path)
    yield SILENT
    for path in paths:
        with suppress(OSError):  # nobody waits
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def test_processes_beside_one_that_does_not_answer_are_seen(placed: Host, silent: set[str]) -> None:
    own = placed
    processes = with_maps(own, 200)
    for one in silent:
        Path(own.path(f"/proc/{one}/stat")).write_text(f"{one} (x) S {' '.join('1' * 30)}\n")
    assert own.using(processes, NODES, 30.0) == {one: NODE for one in processes if one not in silent}
    assert own.unseen_processes == silent
    began = time.monotonic()
    assert len(own.using(processes, NODES, 30.0)) == 198
    assert time.monotonic() - began < device_users.PATIENCE
    assert own.unseen_processes == silent
    # Another process with that number is asked.
    Path(own.path("/proc/7/stat")).write_text(f"7 (x) S {' '.join('2' * 30)}\n")
    os.unlink(own.path("/proc/7/maps"))
    Path(own.path("/proc/7/maps")).write_text(f"7f00-7f10 rw-s 00000000 00:05 1 {NODE}\n")
    assert "7" in own.using(processes, NODES, 30.0)
    assert own.unseen_processes == silent - {"7"}


@pytest.mark.parametrize(
    ("name", "is_busy"),
    [
        ("ENOENT", False),
        ("ENXIO", False),
        ("ENODEV", False),
        ("ENOMEDIUM", False),
        ("EACCES", False),
        ("EPERM", False),
        ("EBUSY", True),
        ("EIO", True),
        ("EMFILE", True),
        ("EPIPE", True),
        ("EAGAIN", True),
        ("ENOMEM", True),
    ],
)
def test_only_what_is_certainly_free_is_free(
    own: Host, monkeypatch: pytest.MonkeyPatch, name: str, is_busy: bool
) -> None:
    Path(own.path("/node")).write_text("")
    number = getattr(errno, name)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Worker, "open", refuse)
    assert own.is_claimed("/node") is is_busy
    assert own.device_node_is_busy("/node") is is_busy


def test_what_the_kernel_itself_says_of_a_node(own: Host) -> None:
    os.mkdir(own.path("/directory"))
    assert own.device_node_is_busy("/directory")  # EISDIR
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(own.path("/socket"))
        assert not own.device_node_is_busy("/socket")  # ENXIO


def test_a_write_that_has_not_come_back_may_still_be_made(own: Host) -> None:
    os.mkfifo(own.path("/attribute"))
    assert not own.may_be_written_yet("/attribute")
    with pytest.raises(OSError, match="no answer"):
        own.write_attribute("/attribute", "x", 0.1)
    with open(own.path("/attribute"), "rb") as end:
        assert end.read() == b"x"
    assert own.may_be_written_yet("/attribute")
    assert not own.may_be_written_yet("/other")


def test_a_file_of_ours_is_read_whole_or_not_at_all(own: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"x" * (3 << 20)
    own.append_own("/run/virtpass", "record", content)
    assert own.read_own("/run/virtpass", "record") == content
    monkeypatch.setattr(own_files, "MAX_OWN", len(content) - 1)
    with pytest.raises(FailedError, match="is larger than"):
        own.read_own("/run/virtpass", "record")


def test_the_umask_of_whoever_calls_changes_no_directory(own: Host) -> None:
    before = os.umask(0o077)
    try:
        os.close(own.open_directory("/var/lib/virtpass", create=0o755))
        own.append_own("/run/virtpass/lent", "x", b"y")
    finally:
        os.umask(before)
    for path in ("/var/lib/virtpass", "/run/virtpass/lent"):
        assert stat.S_IMODE(os.stat(own.path(path)).st_mode) == 0o755


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_a_directory_whose_mode_cannot_be_set_is_used_if_it_is_ours(
    own: Host, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """On 9p, FUSE and the like."""

    def refusing(descriptor: int, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fchmod", refusing)
    before = os.umask(0o077)
    try:
        os.close(own.open_directory("/var/lib", create=0o755))
        os.umask(0)
        own.open_directory("/run/virtpass", create=0o755)
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EPERM, PermissionDeniedError), (errno.EROFS, PermissionDeniedError), (errno.EIO, FailedError)],
)
def test_a_directory_that_is_open_to_more_than_it_should_be_is_refused(
    own: Host, monkeypatch: pytest.MonkeyPatch, number: int, error: type[VirtpassError]
) -> None:
    def refusing(descriptor: int, mode: int) -> None:
        raise OSError(number, os.strerror(number))

    def made(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(path, 0o755, dir_fd=dir_fd)

    make = os.mkdir
    monkeypatch.setattr(os, "fchmod", refusing)
    monkeypatch.setattr(os, "mkdir", made)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error, match="/run: "):
        own.open_directory("/run/virtpass", create=0o700)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("raised", "comes_out"),
    [(OSError(errno.ENOLCK, "No locks available"), FailedError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_lock_that_fails_leaves_no_descriptor(
    own: Host, monkeypatch: pytest.MonkeyPatch, raised: BaseException, comes_out: type[BaseException]
) -> None:
    def failing(descriptor: int, seconds: float) -> bool:
        raise raised

    monkeypatch.setattr(waiting, "lock", failing)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(comes_out):
        own.lock("/run", "l", 1)
    assert os.listdir("/proc/self/fd") == before


def test_a_root_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="not a directory"):
        Host(str(tmp_path / "file")).open_directory("/run")


def test_a_root_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(RefusedError, match="others than root may write to"):
        Host(str(tmp_path)).append_own("/run/virtpass", "x", b"y")
    assert list(tmp_path.iterdir()) == []
