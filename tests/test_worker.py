"""The child that touches sysfs: it answers, it gives errors back, and it never holds its parent up."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtpass.binding import engine
from virtpass.system.host import Host
from virtpass.system.worker import Worker, first_parent

# The number of the system call that opens a file, on x86 and on all newer architectures.
OPENAT = ("257", "56")


class OneProcess(Host):
    """The machine with one process: others may run the same tests on it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def names(self, path: str) -> list[str]:
        return [self.process] if path == "/proc" else super().names(path)


@pytest.fixture
def worker() -> Worker:
    return Worker()


def test_it_reads_and_writes(worker: Worker, tmp_path: Path) -> None:
    attribute = tmp_path / "driver_override"
    attribute.write_text("(null)\n")
    assert worker.read(str(attribute), 5) == b"(null)\n"
    worker.write(str(attribute), "vfio-pci", 5)
    assert attribute.read_text().startswith("vfio-pci")


def test_the_kernel_s_error_arrives(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        worker.write(str(tmp_path / "none" / "x"), "1", 5)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="No space left"):
        worker.write("/dev/full", "x", 5)


def test_what_does_not_come_back_is_left_alive(worker: Worker, tmp_path: Path) -> None:
    fifo = tmp_path / "unbind"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="no answer within") as caught:
        worker.write(str(fifo), "0000:01:00.0", 0.2)
    assert caught.value.errno == errno.ETIMEDOUT
    assert worker.is_lost
    os.kill(worker.pid, 0)
    with open(fifo, "rb") as end:
        assert end.read() == b"0000:01:00.0"
    os.waitpid(worker.pid, 0)


def test_a_worker_that_died_is_an_error_not_a_wait(worker: Worker, tmp_path: Path) -> None:
    os.kill(worker.pid, 9)
    os.waitpid(worker.pid, 0)
    with pytest.raises(OSError):
        worker.read(str(tmp_path / "x"), 5)
    assert worker.is_lost


def test_a_hanging_worker_does_not_keep_the_caller_s_pipes_open(tmp_path: Path) -> None:
    """libvirt waits until everybody has closed the hook's output."""
    fifo = tmp_path / "unbind"
    os.mkfifo(fifo)
    program = f"""
from virtpass.system.worker import Worker
import os
try:
    Worker().write({str(fifo)!r}, "x", 0.2)
except OSError:
    os._exit(5)
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=20, check=False)
    assert done.returncode == 5, done.stderr
    assert time.monotonic() - began < 10
    with open(fifo, "rb") as end:
        end.read()


def test_an_answer_of_any_size_arrives_whole(worker: Worker, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_bytes(bytes(range(256)) * 16)
    assert worker.read(str(config), 5) == config.read_bytes()
    assert worker.read(str(config), 5, limit=64) == bytes(range(64))


def test_it_says_in_proc_whose_child_it_is(worker: Worker, tmp_path: Path) -> None:
    """A child that has lost its parent may write late, and is waited for."""
    (tmp_path / "x").write_text("")
    worker.read(str(tmp_path / "x"), 5)
    comm = Path(f"/proc/{worker.pid}/comm").read_text().strip()
    assert comm == f"virtpass{os.getpid()}"[:15]


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("virtpass4194304", 4194304),
        ("virtpass1", 1),
        ("4711", None),
        ("xvirtpass4711", None),
        ("virtpass", None),
        ("virtpass\u0664", None),
        ("virtpass" + "9" * 5000, None),
    ],
)
def test_a_name_tells_the_parent_only_if_it_is_a_child_s(name: str, parent: int | None) -> None:
    assert first_parent(name) == parent


def test_the_child_of_a_killed_process_can_be_told_from_others(tmp_path: Path) -> None:
    """By its name and its parent, while it is still in an access."""
    fifo = tmp_path / "nr_hugepages"
    os.mkfifo(fifo)
    program = f"""
from virtpass.system.worker import Worker
worker = Worker()
print(worker.pid, flush=True)
worker.write({str(fifo)!r}, "x", 60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        child = killed.stdout.readline().strip()
        host, end = OneProcess(child), time.monotonic() + 30
        try:
            # Killed before that, the parent would not have asked for anything.
            while (host.read(f"/proc/{child}/syscall") or "").split(" ")[0] not in OPENAT:
                assert time.monotonic() < end
            assert host.read(f"/proc/{child}/comm") == f"virtpass{killed.pid}"
            assert not engine.has_orphans(host)
            killed.kill()
            while not engine.has_orphans(host):
                assert time.monotonic() < end
        finally:
            killed.kill()
            # Whatever was found, the child does not stay.
            os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))
    while engine.has_orphans(host):
        assert time.monotonic() < end


def test_a_host_that_is_closed_leaves_no_child(tmp_path: Path) -> None:
    (tmp_path / "attribute").write_text("value\n")
    with Host(str(tmp_path)) as host:
        assert host.read_attribute("/attribute", 30) == "value"
        assert host._worker is not None
        made = host._worker.pid
    assert not os.path.exists(f"/proc/{made}")
    # It can be used as before.
    assert host.read_attribute("/attribute", 30) == "value"
    host.close()
    host.close()
