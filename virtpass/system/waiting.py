"""Waits that end with an event, and never later than they may.

Imported by the hook: the imports here are on its allow-list.
"""

import _socket
import fcntl
import os
import select
import time

from virtpass.system import child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# How the child is called in /proc that waits for a lock.
_NAME = "virtpass-lock"
# Numbers of linux/netlink.h: the kernel's uevents, and the group in which it sends them itself.
_NETLINK_KOBJECT_UEVENT = 15
_OF_KERNEL = 1
# The module signal would import three others.
_SIGKILL = 9
# Seconds in which a child that was ended is gone, unless the kernel keeps it.
_GOING = 1.0
# Bytes of a message that are read; what they say is not looked at.
_MESSAGE = 4096
# Messages that are read before the next look: where they never end, the wait does all the same.
_MESSAGES = 256
# Processes whose end is waited for at once; each costs a descriptor.
_PROCESSES = 64
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
                for _ in range(_MESSAGES):
                    self._socket.recv(_MESSAGE)
            except OSError:
                pass  # all read; or some were lost, which is as good as one
        return True


def wait_for_end(processes: list[int], seconds: float) -> None:
    """Wait until one of some processes has ended, or the time is over.

    Of many, the first 64 are waited for: the caller looks again afterwards, also because a number may belong
    to another process by now.
    """
    poll = select.poll()
    ends = []
    try:
        for process in processes[:_PROCESSES]:
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


def wait_for_child(process: int, seconds: float) -> int | None:
    """Wait for the end of a child of this process; it never fails.

    Args:
        process: its number.
        seconds: how long to wait. It is left alone afterwards.

    Returns:
        its exit status, negative for a signal. None when it has not ended, and when nobody can tell how it
        has: the kernel does not keep that for a process which ignores SIGCHLD.
    """
    end = time.monotonic() + seconds
    try:
        opened = os.pidfd_open(process)
        try:
            _wait_for(opened, seconds)
        finally:
            os.close(opened)
    except OSError:
        pass  # no descriptor is left, or the kernel is too old: it is looked for instead
    while True:
        try:
            ended, status = os.waitpid(process, os.WNOHANG)
        except ChildProcessError:
            return None
        if ended:
            return os.waitstatus_to_exitcode(status)
        left = end - time.monotonic()
        if left <= 0:
            return None
        time.sleep(min(left, OFTEN))


def end_child(process: int) -> None:
    """End a child of this process unless it has ended; one that the kernel keeps is left behind."""
    try:
        # Not killed before it is known to be there: its number might be that of another process.
        if os.waitpid(process, os.WNOHANG)[0] == 0:
            os.kill(process, _SIGKILL)
            wait_for_child(process, _GOING)
    except OSError:
        pass  # it has ended, and nobody keeps its status


def lock(descriptor: int, seconds: float) -> bool:
    """Take an exclusive lock on an open file (``flock``).

    A child waits for it: the lock belongs to the open file, which both have, and a wait in the kernel has no
    bound of its own. Where there can be no child, or it has died, the lock is tried for again and again.

    Returns:
        False when others kept it for all that time.

    Raises:
        OSError: the file cannot be locked at all.
    """
    end = time.monotonic() + seconds
    if _takes(descriptor):
        return True
    if seconds > 0:
        _wait_in_a_child(descriptor, seconds)
    # Whatever became of the child: what it got belongs to this open file, and is got once more.
    while not _takes(descriptor):
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(left, OFTEN))
    return True


def _takes(descriptor: int) -> bool:
    """Take the lock of an open file if that is possible at once; tell whether it was.

    Raises:
        OSError: the file cannot be locked at all.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_in_a_child(descriptor: int, seconds: float) -> None:
    """Let a child take the lock of an open file; come back with its end, or when the time is over."""
    process = 0
    try:
        process = child.start(lambda: _take(descriptor))
        wait_for_child(process, seconds)
    except OSError:
        pass  # there can be no child
    finally:
        if process:
            end_child(process)


def _take(descriptor: int) -> None:
    """Take a lock, however long it takes; for a child."""
    child.cut_off(_NAME, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def _wait_for(descriptor: int, seconds: float) -> bool:
    """Wait until there is something to read, or the time is over; tell which."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0.0) * 1000))
