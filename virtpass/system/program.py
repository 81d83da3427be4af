"""Runs a program of the administrator: what it says is kept, and it ends in time with all that it started.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import os
import select
import time

# Numbers, because the module `signal` would make the hook import `enum`; they are the same on all of Linux.
_SIGKILL, _SIGPIPE, _SIGTERM = 9, 13, 15

# What may still be said between the polite signal and the other one, and between that and giving up: a
# process that waits in the kernel does not even die of SIGKILL.
_GRACE = 5.0
_LAST = 2.0

# A pipe holds 64 KiB, or a little more in odd portions.
_CHUNK, _CHUNKS_IN_PIPE = 65536, 4
# The end of what a program says tells why it failed.
_KEPT = 4096


def run_program(
    path: str, argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
) -> tuple[int | None, str]:
    """Run a program in a session of its own, with nothing of ours but the pipe for what it says.

    What it leaves running when it ends in time is left alone; nobody waits for it, even if it has the pipe
    open.

    Args:
        path: the program on this machine.
        argv: its arguments, the name first.
        environment: all of its environment.
        deadline: seconds after which its process group is ended.
        limit: bytes that it may say where all of it matters; 0 where the end of it does.

    Returns:
        the exit status (negative for a signal, None when it had to be ended), and the end of what it wrote to
        standard output and error, or all of it where there is a limit.

    Raises:
        OSError: it cannot be run, or has said more than the limit (EMSGSIZE).
        ValueError: an argument has a byte 0.
    """
    reading, writing = os.pipe()
    try:
        child = os.posix_spawn(
            path,
            argv,
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
                *((os.POSIX_SPAWN_CLOSE, number) for number in _inherited()),
            ],
            setsid=True,
            # Python ignores it, and shells expect that writing to nobody ends a program.
            setsigdef=[_SIGPIPE],
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    program = _Program(child, reading, limit)
    try:
        status = program.status() if program.wait(deadline, for_silence=False) else None
        if status is None:
            program.end()
        said = program.said()
        if program.has_said_too_much:
            raise OSError(errno.EMSGSIZE, f"it says more than {limit} bytes", path)
        return status, said
    finally:
        program.close()


class _Program:
    """A program that runs, and what it has said so far.

    Attributes:
        has_said_too_much: whether it has said more than the limit, if there is one.
    """

    def __init__(self, child: int, reading: int, limit: int) -> None:
        self._child = child
        self._reading = reading
        self._limit = limit
        self.has_said_too_much = False
        self._kept = b""
        self._is_silent = False
        os.set_blocking(reading, False)
        self._process = os.pidfd_open(child)

    def wait(self, seconds: float, *, for_silence: bool) -> bool:
        """Wait until it has ended.

        Args:
            seconds: how long at most.
            for_silence: wait also until nobody can say anything any more.

        Returns:
            whether it has.
        """
        end = time.monotonic() + seconds
        has_ended = False
        while not has_ended or (for_silence and not self._is_silent):
            poll = select.poll()
            if not has_ended:
                poll.register(self._process, select.POLLIN)
            if not self._is_silent:
                poll.register(self._reading, select.POLLIN)
            ready = {number for number, _ in poll.poll(max(0.0, end - time.monotonic()) * 1000)}
            has_ended = has_ended or self._process in ready
            if self._reading in ready:
                self._read()
            # Also when something was ready: some programs never stop talking.
            if time.monotonic() >= end:
                break
        return has_ended

    def _read(self) -> None:
        try:
            chunk = os.read(self._reading, _CHUNK)
        except BlockingIOError:
            return  # nothing at this moment
        self._is_silent = not chunk
        kept = self._kept + chunk
        self.has_said_too_much = self.has_said_too_much or 0 < self._limit < len(kept)
        self._kept = kept[-(self._limit or _KEPT) :]

    def status(self) -> int:
        """Return the exit status of a program that has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])

    def end(self) -> None:
        """End its process group, politely first."""
        # As long as it is not waited for, no other process group can get its number.
        self._signal(_SIGTERM)
        self.wait(_GRACE, for_silence=True)
        self._signal(_SIGKILL)
        if self.wait(_LAST, for_silence=False):
            self.status()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._child, number)
        except ProcessLookupError:
            pass

    def said(self) -> str:
        """Return what is kept; what it has left running may say more, and is not waited for."""
        for _ in range(_CHUNKS_IN_PIPE):
            if not self._is_silent:
                self._read()
        return self._kept.decode("utf-8", "surrogateescape").strip()

    def close(self) -> None:
        """Give back the descriptors."""
        os.close(self._process)
        os.close(self._reading)


def _inherited() -> list[int]:
    """Return what a program would inherit beside the standard descriptors."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            continue  # that with which the directory was read
    return found
