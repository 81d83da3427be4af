"""Children that look or write for a process which must not wait itself.

Imported by the hook: the imports here are on its allow-list.
"""

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STANDARD = 3


def pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a pipe, neither of them a standard descriptor.

    Where the caller has closed one of these, a pipe would get its number, and the child put /dev/null there.

    Raises:
        OSError: there can be none.
    """
    ends: list[int] = []
    made = os.pipe()
    try:
        for end in made:
            ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, _STANDARD))
    except OSError:
        for end in ends:
            os.close(end)
        raise
    finally:
        for end in made:
            os.close(end)
    return ends[0], ends[1]


def start(work: "Callable[[], None]") -> int:
    """Let a child work, which ends with its work whatever becomes of that.

    Returns:
        its process number.

    Raises:
        OSError: there can be no child.
    """
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def cut_off(name: str, *kept: int) -> None:
    """Let go of all that this child has of its parent: terminal, directory, locks, pipes others wait for.

    Args:
        name: how the child is called in /proc from now on.
        kept: descriptors that stay open.
    """
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(_STANDARD):
        if standard not in kept:
            os.dup2(null, standard)
    first = _STANDARD
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = max(descriptor + 1, _STANDARD)
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    try:
        comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(comm, name.encode())
        os.close(comm)
    except OSError:
        pass  # only those who look for it after a crash miss it
