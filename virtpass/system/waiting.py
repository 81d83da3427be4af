"""Waits that end with an event, and never later than they may.

Imported by the hook: the imports here are on its allow-list.
"""

import _socket
import fcntl
import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Numbers of linux/netlink.h: the kernel's uevents, and the group in which it sends them itself.
_NETLINK_KOBJECT_UEVENT = 15
_OF_KERNEL = 1
# The module signal would import three others.
_SIGKILL = 9
# Bytes of a message that are read; what they say is not looked at.
_MESSAGE = 4096
# Seconds between two looks where events are told, in case one was lost; and where nobody tells.
_RARELY, OFTEN = 1.0, 0.02


class Uevents:
    """What the kernel tells of devices, drivers and modules that come and go.

    Where it cannot be listened to, waits look often instead.
    """

    def __init__(self) -> None:
        self._socket: _socket.socket | None = None
        try:
            kind = _socket.SOCK_RAW | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
            self._socket = _socket.socket(_socket.AF_NETLINK, kind, _NETLINK_KOBJECT_UEVENT)
            self._socket.bind((0, _OF_KERNEL))
        except OSError:
            self.close()

    def __enter__(self) -> "Uevents":
        """Listen from now on."""
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more."""
        self.close()

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def wait_until(self, is_done: "Callable[[], bool]", seconds: float) -> bool:
        """Wait until something holds, and look whenever the kernel tells of anything.

        Args:
            is_done: tells whether it holds; is called at least once.
            seconds: how long to wait.

        Returns:
            whether it holds.
        """
        end = time.monotonic() + seconds
        while not is_done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            if self._socket is None:
                time.sleep(min(left, OFTEN))
                continue
            _wait_for(self._socket.fileno(), min(left, _RARELY))
            try:
                while self._socket.recv(_MESSAGE):
                    pass
            except OSError:
                pass  # all read; or some were lost, which is as good as one
        return True


def wait_for_end(processes: list[int], seconds: float) -> None:
    """Wait until one of some processes has ended, or the time is over.

    A number that belongs to another process by now is the caller's business: he looks again afterwards.
    """
    poll = select.poll()
    ends = []
    try:
        for process in processes:
            try:
                ends.append(os.pidfd_open(process))
            except OSError:
                # It has ended, or cannot be waited for; whoever looks again at once would do nothing else.
                time.sleep(min(max(seconds, 0.0), OFTEN))
                return
            poll.register(ends[-1], select.POLLIN)
        poll.poll(max(seconds, 0.0) * 1000)
    finally:
        for end in ends:
            os.close(end)


def lock(descriptor: int, seconds: float) -> bool:
    """Take an exclusive lock on an open file (``flock``).

    A child waits for it: the lock belongs to the open file, which both have, and a wait in the kernel has no
    bound of its own.

    Returns:
        False when others kept it for all that time.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        pass
    child = os.fork()
    if child == 0:
        _wait_for_lock(descriptor)
    has_ended = False
    try:
        end = os.pidfd_open(child)
        try:
            has_ended = _wait_for(end, seconds)
        finally:
            os.close(end)
    finally:
        if not has_ended:
            os.kill(child, _SIGKILL)
        # One that is killed may have got it in its last moment.
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def _wait_for_lock(descriptor: int) -> None:
    """Take a lock, however long it takes; runs in a child and never returns."""
    status = 1
    try:
        # Whoever waits for the end of the parent's output must not wait for this child too.
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for standard in {0, 1, 2} - {descriptor}:
            os.dup2(null, standard)
        os.closerange(3, max(descriptor, 3))
        os.closerange(max(descriptor + 1, 3), os.sysconf("SC_OPEN_MAX"))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        status = 0
    finally:
        os._exit(status)


def _wait_for(descriptor: int, seconds: float) -> bool:
    """Wait until there is something to read, or the time is over; tell which."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))
