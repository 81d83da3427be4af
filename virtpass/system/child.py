"""Children that look or write for a process which must not wait itself.

Imported by the hook: the imports here are on its allow-list.
"""

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STANDARD = 3
# Descriptors are looked for below this where nothing lists them: as many as the kernel allows unless it was
# told otherwise (fs.nr_open), where the limit of a process may be a billion.
_DESCRIPTORS = 1 << 20


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


def start(work: "Callable[[], object]") -> int:
    """Let a child work, which ends with its work whatever becomes of that.

    Returns:
        its process number.

    Raises:
        OSError: there can be no child.
    """
    here = os.getpid()
    try:
        process = os.fork()
        if process == 0:
            work()
        return process
    finally:
        # Whatever interrupts the child, and wherever: it must never go on as its parent would.
        if os.getpid() != here:
            os._exit(0)


def cut_off(name: str, *kept: int) -> None:
    """Let go of all that this child has of its parent: terminal, directory, locks, pipes others wait for.

    Args:
        name: how the child is called in /proc from now on.
        kept: descriptors that stay open.
    """
    os.setsid()
    os.chdir("/")
    _close_all_but(kept)
    try:
        # What a fault of Python writes to descriptor 2 must not get into a file that is opened here.
        null = os.open("/dev/null", os.O_RDWR)
        for standard in range(_STANDARD):
            if standard not in (null, *kept):
                os.dup2(null, standard)
        comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(comm, name.encode())
        os.close(comm)
    except OSError:
        pass  # only those who look for it after a crash miss the name


def _close_all_but(kept: tuple[int, ...]) -> None:
    """Close all descriptors of this process but some."""
    try:
        # Not up to the limit of this process: some C libraries would make a system call for each number.
        opened = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        first = 0
        for descriptor in sorted(kept):
            os.closerange(first, descriptor)
            first = descriptor + 1
        os.closerange(first, _DESCRIPTORS)
        return
    for descriptor in opened:
        if descriptor not in kept:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the one with which they were listed
