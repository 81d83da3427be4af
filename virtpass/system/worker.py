"""A child process for sysfs accesses that may block in a driver for ever.

A write to ``unbind`` runs the driver's remove function in the writer, under the device's lock. When that
hangs, a signal makes it worse (the kernel then waits uninterruptibly), so the child is never killed: it is
left behind with no lock, no descriptor and no terminal of its parent.

Imported by the hook: the imports here are on its allow-list.
"""

import errno
import os
import select

_LIMIT = 4096


class NoAnswer(OSError):
    """The access did not come back within the deadline; its process is left behind."""


class Worker:
    """One child process that reads and writes attributes, one at a time."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        self.is_lost = False
        if self.pid == 0:
            _serve(requests, answers, parent)
        os.close(requests)
        os.close(answers)

    def read(self, path: str, deadline: float) -> str:
        """Read an attribute.

        Args:
            path: where it is on this machine.
            deadline: seconds to wait for the answer.

        Returns:
            its content without white space around it.

        Raises:
            NoAnswer: after the deadline; the worker is lost then.
            OSError: the kernel refused.
        """
        return self._ask(b"r", path, "", deadline)

    def write(self, path: str, value: str, deadline: float) -> None:
        """Write an attribute; arguments and errors as in `read`."""
        self._ask(b"w", path, value, deadline)

    def _ask(self, kind: bytes, path: str, value: str, deadline: float) -> str:
        request = b"\0".join((kind, os.fsencode(path), os.fsencode(value)))
        if len(request) > _LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        try:
            os.write(self._requests, request)
        except OSError:
            self._lose()
            raise
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(deadline * 1000):
            self._lose()
            raise NoAnswer(errno.ETIMEDOUT, f"no answer within {deadline:.0f} s", path)
        answer = os.read(self._answers, _LIMIT)
        if not answer:
            self._lose()
            raise OSError(errno.EPIPE, "the process that accesses sysfs ended", path)
        number, _, text = answer.partition(b"\0")
        if code := int(number):
            raise OSError(code, os.strerror(code), path)
        return text.decode("utf-8", "surrogateescape").strip()

    def _lose(self) -> None:
        self.is_lost = True
        os.close(self._requests)
        os.close(self._answers)


def _serve(requests: int, answers: int, parent: int) -> None:
    """Answer requests until the parent is gone; runs in the child and never returns."""
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # Nothing of the parent may stay open here: neither its lock nor the pipes that libvirt waits for.
        kept = sorted((requests, answers))
        os.closerange(3, kept[0])
        os.closerange(kept[0] + 1, kept[1])
        os.closerange(kept[1] + 1, os.sysconf("SC_OPEN_MAX"))
        while request := os.read(requests, _LIMIT):
            # Whoever asked and was killed holds the lock no more: nothing may be written any more.
            if os.getppid() != parent:
                break
            kind, path, value = request.split(b"\0", 2)
            os.write(answers, _access(kind, path, value))
    finally:
        os._exit(0)


def _access(kind: bytes, path: bytes, value: bytes) -> bytes:
    try:
        descriptor = os.open(path, (os.O_WRONLY if kind == b"w" else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            if kind == b"r":
                return b"0\0" + os.read(descriptor, _LIMIT - 2)
            # One write: sysfs takes each write as a whole value.
            os.write(descriptor, value)
            return b"0\0"
        finally:
            os.close(descriptor)
    except OSError as error:
        return b"%d\0" % (error.errno or errno.EIO)
