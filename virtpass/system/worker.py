"""A child process for accesses that may block in a driver for ever.

A write to ``unbind`` runs the driver's remove function in the writer, under the device's lock; reading
``config`` waits for that lock too, and opening a disk for its driver. When that hangs, a signal makes it
worse (the kernel then waits uninterruptibly), so the child is never killed: it is left behind with no lock,
no descriptor and no terminal of its parent.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import os
import select

from virtpass.system import child, waiting

# What a pipe takes at once: neither side waits for the other while it sends.
_LIMIT = 60000
_HEADER = 4
# Seconds in which a child ends that nobody asks anything any more.
_GOING = 1.0

# How a child is called in /proc: this, and the number of its parent. One with another parent lost its own.
COMMAND = "virtpass"
# How many characters of a name the kernel keeps.
_LONGEST_NAME = 15

_READ, _WRITE, _OPEN = b"r", b"w", b"o"


class NoAnswer(OSError):
    """The access did not come back within the deadline; its process is left behind."""


class Worker:
    """One child process that makes accesses, one at a time."""

    def __init__(self) -> None:
        requests, self._requests = child.pipe()
        try:
            self._answers, answers = child.pipe()
        except OSError:
            os.close(requests)
            os.close(self._requests)
            raise
        parent = os.getpid()
        self.is_lost = False
        try:
            self.pid = child.start(lambda: _serve(requests, answers, parent))
        except OSError:
            self._lose()
            raise
        finally:
            os.close(requests)
            os.close(answers)

    def read(self, path: str, deadline: float, limit: int = 4096) -> bytes:
        """Read an attribute.

        Args:
            path: where it is on this machine.
            deadline: seconds to wait for the answer.
            limit: how many bytes at most.

        Returns:
            its content.

        Raises:
            NoAnswer: after the deadline; the worker is lost then.
            OSError: the kernel refused.
        """
        return self._ask(_READ, path, str(limit), deadline)

    def write(self, path: str, value: str, deadline: float) -> None:
        """Write an attribute; arguments and errors as in `read`."""
        self._ask(_WRITE, path, value, deadline)

    def open(self, path: str, flags: int, deadline: float) -> None:
        """Open a node and close it again; arguments and errors as in `read`."""
        self._ask(_OPEN, path, str(flags), deadline)

    def _ask(self, kind: bytes, path: str, value: str, deadline: float) -> bytes:
        request = b"\0".join((kind, os.fsencode(path), os.fsencode(value)))
        if len(request) > _LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        try:
            os.write(self._requests, _framed(request))
        except OSError:
            self._lose()
            raise
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(deadline * 1000):
            self._lose()
            raise NoAnswer(errno.ETIMEDOUT, f"no answer within {deadline:.0f} s", path)
        answer = _received(self._answers)
        if not answer:
            self._lose()
            raise OSError(errno.EPIPE, "the process that accesses sysfs ended", path)
        number, _, content = answer.partition(b"\0")
        if code := int(number):
            raise OSError(code, os.strerror(code), path)
        return content

    def close(self) -> None:
        """Let the child end; one that an access keeps is left behind."""
        if not self.is_lost:
            self._lose()
            waiting.wait_for_child(self.pid, _GOING)

    def _lose(self) -> None:
        self.is_lost = True
        os.close(self._requests)
        os.close(self._answers)


def first_parent(name: str) -> int | None:
    """Return the process that made a child, as the child's name says; None for another process's name."""
    number = name.removeprefix(COMMAND)
    if not name.startswith(COMMAND) or not (number.isascii() and number.isdigit()):
        return None
    return int(number) if len(name) <= _LONGEST_NAME else None


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(_HEADER, "little") + content


def _received(descriptor: int) -> bytes:
    """Return the next message; empty when there will be none."""
    content = b""
    wanted = _HEADER
    while len(content) < wanted:
        chunk = os.read(descriptor, wanted - len(content))
        if not chunk:
            return b""
        content += chunk
        if len(content) == _HEADER:
            wanted = _HEADER + int.from_bytes(content, "little")
    return content[_HEADER:]


def _serve(requests: int, answers: int, parent: int) -> None:
    """Answer requests until the parent is gone; runs in the child."""
    child.cut_off(f"{COMMAND}{parent}", requests, answers)
    while request := _received(requests):
        # Whoever asked and was killed holds the lock no more: nothing may be written any more.
        if os.getppid() != parent:
            break
        kind, path, value = request.split(b"\0", 2)
        os.write(answers, _framed(_answer(kind, path, value)))


def _answer(kind: bytes, path: bytes, value: bytes) -> bytes:
    try:
        return b"0\0" + _access(kind, path, value)
    except OSError as error:
        return b"%d\0" % (error.errno or errno.EIO)


def _access(kind: bytes, path: bytes, value: bytes) -> bytes:
    flags = {_READ: os.O_RDONLY, _WRITE: os.O_WRONLY}.get(kind)
    descriptor = os.open(path, (int(value) if flags is None else flags) | os.O_CLOEXEC)
    try:
        if kind == _READ:
            return os.read(descriptor, min(int(value), _LIMIT))
        if kind == _WRITE:
            # One write: sysfs takes each write as a whole value.
            os.write(descriptor, value)
        return b""
    finally:
        os.close(descriptor)
