"""The package manager kept away while files change that its scripts write too: images, boot menus."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

_PAUSE = 0.1
# The locks of package managers, and how each takes its own. Sources: dpkg's doc/frontend.txt and
# lib/dpkg/lock.c (record lock); rpm's lib/rpmlock.c (record lock, in the directory of the database, which
# moved); apk-tools' src/database.c (whole-file lock).
_RECORD_LOCKS = (
    ("dpkg", "/var/lib/dpkg/lock-frontend"),
    ("rpm", "/usr/lib/sysimage/rpm/.rpm.lock"),
    ("rpm", "/var/lib/rpm/.rpm.lock"),
)
_FILE_LOCKS = (("apk", "/lib/apk/db/lock"), ("apk", "/usr/lib/apk/db/lock"))
# libalpm's is held while it exists, so that one of ours would outlive a crash: it is only looked at.
_MARKERS = (("pacman", "/var/lib/pacman/db.lck"),)


@contextmanager
def held_off(host: Host, deadline: float) -> Iterator[None]:
    """Keep the package manager from installing anything, for as long as a block of code lasts.

    Args:
        host: whose package manager.
        deadline: seconds to wait for one that is at work.

    Raises:
        RefusedError: it was at work for longer.
    """
    end = time.monotonic() + deadline
    with ExitStack() as held:
        for name, path in _MARKERS:
            _wait(lambda path=path: not host.exists(path), name, path, end)  # type: ignore[misc]
        for locks, take in ((_RECORD_LOCKS, fcntl.lockf), (_FILE_LOCKS, fcntl.flock)):
            for name, path in locks:
                descriptor = _opened(host, path)
                if descriptor is not None:
                    held.callback(os.close, descriptor)
                    _wait(lambda one=descriptor, take=take: _take(one, take), name, path, end)  # type: ignore[misc]
        yield


def _opened(host: Host, path: str) -> int | None:
    """Open a lock; one that cannot be opened to write to belongs to a package manager that cannot write."""
    real = host.path(host.real_path(path))
    with suppress(OSError):
        return os.open(real, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    return None


def _take(descriptor: int, take: Callable[[int, int], None]) -> bool:
    try:
        take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Anything else is a file system without locks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _wait(is_free: Callable[[], bool], name: str, path: str, end: float) -> None:
    while not is_free():
        if time.monotonic() >= end:
            raise RefusedError(
                "package-manager",
                f"{name} is at work ({path} is locked), and may be writing to the boot partition too",
                "wait until it has ended",
            )
        time.sleep(_PAUSE)
