"""Programs of the distribution, run with a deadline and their output kept."""

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache

from virtpass.system import waiting
from virtpass.system.host import Host
from virtpass.system.recorded import RecordedHost
from virtpass.system.tasks import under_way

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# In the environment of every program that `run_command` starts, and of all that these start.
_MARK = "VIRTPASS_COMMAND"
# Enough to see why a program failed.
_TAIL = 16384
_GRACE = 10.0
_UMASK = 0o022


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: its exit status; None when it was ended because it took too long, 127 when it is not there.
        output: the end of what it wrote to its standard output and error.
    """

    status: int | None
    output: str


@cache
def mark() -> str:
    """Return what tells the programs started by this process from those of any other."""
    return os.urandom(16).hex()


def run_command(host: Host, argv: tuple[str, ...], deadline: float) -> Outcome:
    """Run a program on the host, in a change of root where the host's files lie below a directory.

    Args:
        host: where it runs.
        argv: the program, looked up on the usual path, and its arguments.
        deadline: seconds after which it is ended with all that it has started.
    """
    if isinstance(host, RecordedHost):
        return Outcome(127, f"{argv[0]}: nothing of a snapshot is run")
    # A file, not a pipe: what the program leaves running may keep its output open for ever. In memory: there
    # may be no other place to write to.
    with open(os.memfd_create("output"), "w+b") as output:
        try:
            child = subprocess.Popen(
                _rooted(host, argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**environment(), _MARK: mark()},
                cwd="/",
                start_new_session=True,
                umask=_UMASK,
            )
        except OSError as error:
            return Outcome(127, f"{argv[0]}: {error.strerror}")
        try:
            status = _status_within(child, deadline)
        finally:
            if child.returncode is None:
                _end(child)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _TAIL))
        return Outcome(status, output.read().decode("utf-8", "replace").strip())


def output_of(host: Host, argv: tuple[str, ...], deadline: float, limit: int = 16 << 20) -> str | None:
    """Return what a program prints to its standard output; None when it fails or prints too much."""
    if isinstance(host, RecordedHost):
        return None
    try:
        with under_way(f"running {' '.join(argv)}", deadline):
            done = subprocess.run(
                _rooted(host, argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
                cwd="/",
                timeout=deadline,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0 or len(done.stdout) > limit:
        return None
    return done.stdout.decode("utf-8", "replace")


def end_marked(text: str) -> bool:
    """End the programs that a process started which is gone, and tell whether there were any.

    Args:
        text: what `mark` returned in that process.
    """
    found = _marked(text)
    was_there = bool(found)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in found:
            _send(process, number)
        end = time.monotonic() + _GRACE
        while (found := _marked(text)) and (left := end - time.monotonic()) > 0:
            waiting.wait_for_end(found, left)
    return was_there


def _marked(text: str) -> list[int]:
    """Return the processes that have a mark in their environment.

    Only those of this user are looked at: reading the environment waits for the lock of a process's memory,
    which anybody may keep taken (with a page of a FUSE file that never comes), and what a program of ours has
    started as another user writes none of the files that are to be put back.
    """
    entry = f"{_MARK}={text}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if not _is_of_this_user(name):
                continue
            with open(f"/proc/{name}/environ", "rb") as file:
                if entry in file.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue  # gone meanwhile, or another user's
    return found


def _is_of_this_user(process: str) -> bool:
    """Tell whether all user ids of a process are that of this one.

    The owner of its directory in ``/proc`` would not do: that is the effective user, and root's for each
    process that may not be dumped.

    Raises:
        OSError: it has ended.
    """
    with open(f"/proc/{process}/status", "rb") as file:
        fields = next((line.split() for line in file if line.startswith(b"Uid:")), [])
    return set(fields[1:]) == {b"%d" % os.geteuid()}


def _send(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass


def _rooted(host: Host, argv: tuple[str, ...]) -> list[str]:
    return ["chroot", host.root, *argv] if host.root else list(argv)


def environment() -> dict[str, str]:
    """Return the environment of each program that is run, whatever that of the caller is."""
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}


def _status_within(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit status of a program, None when it does not end in time."""
    end = time.monotonic() + seconds
    # Not by subprocess alone, which looks every twentieth of a second.
    waiting.wait_for_end([child.pid], seconds)
    try:
        return child.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a program and whatever belongs to its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        _status_within(child, _GRACE)
    # A process that does not even die of SIGKILL waits in the kernel; it ends when that lets it go.
