"""System files as whole states: content, owner, permissions, times and labels, read and put back exactly.

Nothing here follows a symbolic link below the root, and nothing is ever half written.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.own_files import TEMPORARY

# No configuration file is larger; an initramfs is copied, never read as a state.
_MAX_SIZE = 8 << 20
_CHUNK = 1 << 20
# Inherited from a directory with a default ACL, and wrong in a file that had none.
_ACL = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class FileState:
    """One regular file at one moment.

    Attributes:
        content: its bytes.
        mode: permission bits.
        owner: user and group id; None takes what a new file gets.
        mtime_ns: time of the last change in nanoseconds; None for now.
        attributes: extended attributes, security labels among them, by name.
    """

    content: bytes
    mode: int = 0o644
    owner: tuple[int, int] | None = None
    mtime_ns: int | None = None
    attributes: tuple[tuple[str, bytes], ...] = ()

    def with_content(self, content: bytes) -> "FileState":
        """Return the state of the same file after its content was written anew."""
        return replace(self, content=content, mtime_ns=None)

    def looks_like(self, other: "FileState | None") -> bool:
        """Tell whether both hold the same for whoever reads them; times and labels do not count."""
        return (
            other is not None
            and self.content == other.content
            and self.mode == other.mode
            and (self.owner == other.owner or None in (self.owner, other.owner))
        )


# reading


def read_state(host: Host, path: str, limit: int = _MAX_SIZE) -> FileState | None:
    """Return the state of a file, None when it does not exist.

    Args:
        host: where it is.
        path: its path there.
        limit: the largest size in bytes that is read.

    Raises:
        RefusedError: it is a symbolic link, has a second name (a hard link), or is no regular file.
        PermissionDeniedError: this user may not read it.
        FailedError: it is larger than ``limit``, or cannot be read.
    """
    try:
        descriptor = _open(host, path)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        if found.st_nlink > 1:
            raise RefusedError(
                "hard-link",
                f"{path} has {found.st_nlink} names (hard links), and the others would keep the old content",
                f"make it a file of its own: cp -p {path} {path}.new && mv {path}.new {path}",
            )
        content = b"".join(_chunks(descriptor, path, limit))
        return _state_of(descriptor, found, content)
    finally:
        os.close(descriptor)


def digest_of(host: Host, path: str) -> str:
    """Return the SHA-256 of a file of any size in hexadecimal; empty when it does not exist.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: as `read_state`.
    """
    try:
        descriptor = _open(host, path)
    except FileNotFoundError:
        return ""
    try:
        total = hashlib.sha256()
        for chunk in _chunks(descriptor, path):
            total.update(chunk)
        return total.hexdigest()
    finally:
        os.close(descriptor)


def regular_files_and_links(host: Host, directory: str) -> tuple[list[str], list[str]]:
    """Return the names of the regular files in a directory, and those of the symbolic links.

    Raises:
        RefusedError: the directory is a link, or others than root may write to it.
        FailedError, PermissionDeniedError: it cannot be read.
    """
    try:
        parent = host.open_directory(directory)
    except FileNotFoundError:
        return [], []
    try:
        with os.scandir(parent) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        files = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        return files, [entry.name for entry in found if entry.is_symlink()]
    except OSError as error:
        raise explained(error, directory) from error
    finally:
        os.close(parent)


def _open(host: Host, path: str) -> int:
    """Open a regular file for reading; raise FileNotFoundError where there is nothing."""
    directory, name = os.path.split(path)
    parent = host.open_directory(directory)
    try:
        # Not blocking: it might be a FIFO.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RefusedError(
                "link-on-path",
                f"{path} is a symbolic link; it is not followed",
                f"put the file itself in its place: cp --remove-destination $(readlink -f {path}) {path}",
            ) from error
        raise explained(error, path) from error
    finally:
        os.close(parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedError("not-a-file", f"{path} is not a regular file")
    return descriptor


def _chunks(descriptor: int, path: str, limit: int | None = None) -> Iterator[bytes]:
    total = 0
    while True:
        try:
            chunk = os.read(descriptor, _CHUNK)
        except OSError as error:
            raise explained(error, path) from error
        if not chunk:
            return
        total += len(chunk)
        if limit is not None and total > limit:
            raise FailedError("file-size", f"{path} is larger than {limit >> 20} MiB")
        yield chunk


def _state_of(descriptor: int, found: os.stat_result, content: bytes) -> FileState:
    return FileState(
        content,
        stat.S_IMODE(found.st_mode),
        (found.st_uid, found.st_gid),
        found.st_mtime_ns,
        tuple(_attributes(descriptor)),
    )


def _attributes(descriptor: int) -> Iterator[tuple[str, bytes]]:
    try:
        names = sorted(os.listxattr(descriptor))
    except OSError:
        return
    for name in names:
        try:
            yield name, os.getxattr(descriptor, name)
        except OSError:
            continue


# writing


def write_state(host: Host, path: str, state: FileState) -> None:
    """Make a file what ``state`` says: it is as before or as wanted, never in between.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: it could not be written; the file is as it was.
    """
    with _replacing(host, path) as descriptor:
        _write(descriptor, state.content)
        _dress(descriptor, state)


def copy_file(host: Host, source: str, target: str, expected: str = "") -> str:
    """Copy a file of any size with all that belongs to it; the target is as it was, or complete.

    Args:
        host: where both are.
        source: the file.
        target: where the copy goes.
        expected: SHA-256 that the content must have, in hexadecimal; empty for whatever it has.

    Returns:
        the SHA-256 of the content.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: as `read_state` and `write_state`; or the content is
            not as expected.
        FileNotFoundError: the source does not exist.
    """
    reading = _open(host, source)
    try:
        total = hashlib.sha256()
        with _replacing(host, target) as writing:
            for chunk in _chunks(reading, source):
                total.update(chunk)
                _write(writing, chunk)
            if expected and total.hexdigest() != expected:
                raise FailedError("copy-damaged", f"{source}, the copy of {target}, is not as it was written")
            _dress(writing, _state_of(reading, os.fstat(reading), b""))
        return total.hexdigest()
    finally:
        os.close(reading)


def write_link(host: Host, path: str, target: str) -> None:
    """Make ``path`` a symbolic link, whatever file or link is there now; errors as `write_state`."""
    directory, name = os.path.split(path)
    with _opened_directory(host, directory, path) as parent:
        temporary = _temporary(name)
        _unlink_quietly(temporary, parent)
        os.symlink(target, temporary, dir_fd=parent)
        os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        os.fsync(parent)


def remove_file(host: Host, path: str) -> None:
    """Remove a file or link; nothing happens when it is gone already.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: it could not be removed.
    """
    directory, name = os.path.split(path)
    if not host.exists(directory):
        return
    try:
        with _opened_directory(host, directory, path) as parent:
            os.unlink(name, dir_fd=parent)
            os.fsync(parent)
    except FileNotFoundError:
        pass


def remove_leftover(host: Host, path: str) -> None:
    """Remove what a write that was cut off by a crash has left beside a file; errors as `remove_file`."""
    directory, name = os.path.split(path)
    remove_file(host, f"{directory}/{_temporary(name)}")


def _temporary(name: str) -> str:
    """Return the name under which a file is written before it gets its own.

    It follows from the file's, so that it is found again after a crash. Tools that take in whole directories
    pass over names that begin with a dot.
    """
    return f"{TEMPORARY}{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"


@contextmanager
def _replacing(host: Host, path: str) -> Iterator[int]:
    """Give a new file to write to, which takes the place of ``path`` at the end."""
    directory, name = os.path.split(path)
    # Beside the target, because a boot partition is another file system.
    temporary = _temporary(name)
    with _opened_directory(host, directory, path) as parent:
        try:
            descriptor = _create(temporary, parent)
            try:
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            _unlink_quietly(temporary, parent)
            raise
        os.fsync(parent)


@contextmanager
def _opened_directory(host: Host, directory: str, path: str) -> Iterator[int]:
    """Open the directory in which something happens to ``path``, and explain what goes wrong there."""
    try:
        parent = host.open_directory(directory)
    except FileNotFoundError as error:
        raise FailedError("no-directory", f"{path}: there is no directory {directory}") from error
    try:
        yield parent
    except FileNotFoundError:
        raise
    except OSError as error:
        raise explained(error, path) from error
    finally:
        os.close(parent)


def _create(temporary: str, parent: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(temporary, flags, 0o600, dir_fd=parent)
    except FileExistsError:
        # Of a run that was cut off; only root can have put it there.
        os.unlink(temporary, dir_fd=parent)
        return os.open(temporary, flags, 0o600, dir_fd=parent)


def _write(descriptor: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]


def _dress(descriptor: int, state: FileState) -> None:
    """Give a file owner, permissions, labels and times; a boot partition (FAT) has none of them."""
    _own(descriptor, state.owner)
    inherited = dict(_attributes(descriptor))
    wanted = dict(state.attributes)
    if _ACL in inherited and _ACL not in wanted:
        _where_known(partial(os.removexattr, descriptor, _ACL))
    for name, value in wanted.items():
        if inherited.get(name) != value:
            _where_known(partial(os.setxattr, descriptor, name, value))
    _where_known(partial(os.fchmod, descriptor, state.mode))
    if state.mtime_ns is not None:
        os.utime(descriptor, ns=(state.mtime_ns, state.mtime_ns))


def _own(descriptor: int, owner: tuple[int, int] | None) -> None:
    new = os.fstat(descriptor)
    if owner is not None and owner != (new.st_uid, new.st_gid):
        _where_known(partial(os.fchown, descriptor, *owner))


def _where_known(change: Callable[[], None]) -> None:
    try:
        change()
    except OSError as error:
        # EPERM is how vfat refuses what it has no place for.
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise


def _unlink_quietly(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        pass


# directories


@dataclass(frozen=True, slots=True)
class DirectoryState:
    """A directory at one moment, whatever is in it.

    Attributes:
        path: where it is.
        mode: permission bits.
        owner: user and group id; None takes what a new directory gets.
    """

    path: str
    mode: int = 0o755
    owner: tuple[int, int] | None = None


def read_directory(host: Host, path: str) -> DirectoryState | None:
    """Return the state of a directory, None when it does not exist; errors as `Host.open_directory`."""
    try:
        descriptor = host.open_directory(path)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(descriptor)
        return DirectoryState(path, stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid))
    finally:
        os.close(descriptor)


def make_directory(host: Host, state: DirectoryState) -> None:
    """Make a directory whose parent exists, or make one that is there what ``state`` says.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: that could not be done.
    """
    directory, name = os.path.split(state.path)
    with _opened_directory(host, directory, state.path) as parent:
        try:
            os.mkdir(name, state.mode, dir_fd=parent)
        except FileExistsError:
            pass
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            # Not left to mkdir, whose mode the umask narrows.
            _own(descriptor, state.owner)
            _where_known(partial(os.fchmod, descriptor, state.mode))
        finally:
            os.close(descriptor)
        os.fsync(parent)


def remove_directory(host: Host, path: str) -> None:
    """Remove a directory; nothing happens when it is gone already, or when something is in it.

    Raises:
        RefusedError, PermissionDeniedError, FailedError: it could not be removed.
    """
    directory, name = os.path.split(path)
    if not host.exists(directory):
        return
    try:
        with _opened_directory(host, directory, path) as parent:
            try:
                os.rmdir(name, dir_fd=parent)
            except OSError as error:
                # EBUSY: something is mounted there by now.
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                    return
                raise
            os.fsync(parent)
    except FileNotFoundError:
        pass


def directories_above(path: str) -> Iterator[str]:
    """Yield the directories above an absolute path, the nearest first, the root left out."""
    while (path := os.path.dirname(path)) not in ("/", ""):
        yield path


def explained(error: OSError, path: str) -> Exception:
    """Return our error for one of the system, in words that say what to do."""
    text = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.EROFS:
            return PermissionDeniedError(
                "read-only", f"{path}: the file system is read-only", "mount it writable first"
            )
        case errno.EACCES | errno.EPERM if os.geteuid() == 0:
            return PermissionDeniedError(
                "immutable", f"{path}: {text}, even for root", "look for the immutable attribute with: lsattr"
            )
        case errno.EACCES | errno.EPERM:
            return PermissionDeniedError("permission", f"{path}: {text}", "run it as root")
        case errno.ELOOP | errno.ENOTDIR:
            return RefusedError(
                "link-on-path", f"{path} is a symbolic link or not below directories; it is not followed"
            )
        case errno.ENOSPC | errno.EDQUOT:
            return FailedError("disk-full", f"{path}: {text}", "make room on that file system")
    return FailedError("file", f"{path}: {text}")
