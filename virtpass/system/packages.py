"""The package manager kept away while files change that its scripts write too: images, boot menus."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from virtpass.system.errors import RefusedError
from virtpass.system.host import Host
from virtpass.system.tasks import under_way

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
_LOCK_MODE = 0o640
# libalpm's is held while it exists, so that one of ours would outlive a crash: it is only looked at.
_PACMAN = "/var/lib/pacman/db.lck"
# libzypp runs rpm once for each package and scripts of packages in between; its own lock is the number of a
# process in this file (zypp/ZYppFactory.cc).
_ZYPP = "/run/zypp.pid"
_ZYPPER = "/usr/bin/zypper"
# Its service installs packages while kernel-install waits for it: the lock must not be ours then.
_AKMODS = "/usr/lib/kernel/install.d/95-akmodsposttrans.install"


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
        if not host.root:
            # Below another root nobody is at work; such files are what a crash has left.
            _wait(lambda: not _is_of_this_boot(host, _PACMAN), "pacman", _PACMAN, end)
            if host.exists(_ZYPPER):
                _wait(lambda: _take_zypp(host), "zypper", _ZYPP, end)
                held.callback(_leave_zypp, host)
        for locks, take in ((_RECORD_LOCKS, fcntl.lockf), (_FILE_LOCKS, fcntl.flock)):
            for name, path in locks:
                descriptor = _opened(host, path)
                if descriptor is None:
                    continue
                held.callback(os.close, descriptor)
                _wait(lambda one=descriptor, take=take: _take(one, take), name, path, end)  # type: ignore[misc]
                if name == "rpm" and host.exists(_AKMODS):
                    take(descriptor, fcntl.LOCK_UN)
        yield


def _opened(host: Host, path: str) -> int | None:
    """Open a lock, made as the package manager would.

    None where there is no such package manager, or one that cannot write either.
    """
    directory, _, name = path.rpartition("/")
    real = f"{host.path(host.real_path(directory))}/{name}"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with suppress(OSError):
        return os.open(real, flags, _LOCK_MODE)
    return None


def _take(descriptor: int, take: Callable[[int, int], None]) -> bool:
    try:
        take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Anything else is a file system without locks.
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def _is_of_this_boot(host: Host, path: str) -> bool:
    """Tell whether a file was written since the host was started: an older one was left by a crash."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    try:
        return os.lstat(host.path(path)).st_mtime > booted
    except OSError:
        return False


def _take_zypp(host: Host) -> bool:
    """Write our number into libzypp's lock, unless another process has its own there."""
    text = host.read(_ZYPP) or ""
    if text.isdigit() and text not in ("0", str(os.getpid())) and host.exists(f"/proc/{text}"):
        return False
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError), os.fdopen(os.open(host.path(_ZYPP), flags, 0o644), "w") as file:
        file.write(f"{os.getpid()}\n")
    return True


def _leave_zypp(host: Host) -> None:
    if host.read(_ZYPP) == str(os.getpid()):
        with suppress(OSError):
            os.unlink(host.path(_ZYPP))


def _wait(is_free: Callable[[], bool], name: str, path: str, end: float) -> None:
    with under_way(f"waiting for {name} to end", end - time.monotonic()):
        while not is_free():
            if time.monotonic() >= end:
                raise RefusedError(
                    "package-manager",
                    f"{name} is at work ({path} is locked), and may be writing to the boot partition too",
                    f"wait until it has ended; where no {name} runs, remove {path}"
                    if path == _PACMAN
                    else "wait until it has ended",
                )
            time.sleep(_PAUSE)
