"""Files of our own below a root: read and written so that no link is followed and nobody else can write them.

Imported by the hook: the imports here are on its allow-list.
"""

import errno
import os
import stat

from virtpass.system import waiting
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError

# Of files of our own: more than any is let grow to.
MAX_OWN = 16 << 20
# What the names of our temporary files begin with; nothing runs or reads files of such a name.
TEMPORARY = ".virtpass-"

# Everybody may see what is lent to whom; only root may change it.
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644
# Who may open a file may lock it; and a file that is being written is nobody else's yet.
_PRIVATE_MODE = 0o600
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Of this process, whatever the root is.
_MOUNTS = "/proc/self/mountinfo"
# How a file system answers that lets nobody change permissions.
_NO_MODES = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP))
# File systems on which owner and permissions come from mount options.
WITHOUT_PERMISSIONS = ("vfat", "msdos", "exfat")


class OwnFiles:
    """Our own files of one host.

    Args:
        root: directory below which the host's files lie; ``/`` for the machine itself.

    All paths that the methods take are absolute paths as the host itself sees them.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")

    def open_directory(self, path: str, *, create: int = 0) -> int:
        """Open a directory, following no link in any component below the root.

        Args:
            path: the directory.
            create: the mode with which missing directories are made; 0 makes none.

        Returns:
            a descriptor, which the caller closes.

        Raises:
            FileNotFoundError: it does not exist and ``create`` is 0.
            RefusedError: a component is a link or no directory, or others than root may write to it.
            PermissionDeniedError: this user may not.
        """
        try:
            descriptor = os.open(self.root or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _explained(error, self.root or "/") from error
        walked = ""
        try:
            state = os.fstat(descriptor)
            if not only_root_writes(state):
                raise _unsafe(self.root or "/", state.st_dev)
            for name in filter(None, path.split("/")):
                walked += "/" + name
                descriptor, parent = self._step(descriptor, name, walked, create), descriptor
                os.close(parent)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _step(self, parent: int, name: str, walked: str, create: int) -> int:
        is_new = bool(create)
        if create:
            try:
                os.mkdir(name, create, dir_fd=parent)
            except FileExistsError:
                is_new = False
            except OSError as error:
                raise _explained(error, walked) from error
        try:
            descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _explained(error, walked) from error
        try:
            if is_new:
                _set_mode(descriptor, create)
            state = os.fstat(descriptor)
            if not only_root_writes(state):
                raise _unsafe(walked, state.st_dev)
        except OSError as error:
            os.close(descriptor)
            raise _explained(error, walked) from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read_own(self, directory: str, name: str) -> bytes | None:
        """Return the content of one of our own files; None when it does not exist.

        Raises:
            RefusedError: it is not a regular file, or not root's.
            PermissionDeniedError: this user may not read it.
            FailedError: it is too large to be ours.
        """
        try:
            parent = self.open_directory(directory)
        except FileNotFoundError:
            return None
        try:
            descriptor = os.open(
                name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _explained(error, f"{directory}/{name}") from error
        finally:
            os.close(parent)
        with open(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode) or not only_root_writes(state):
                raise RefusedError("unsafe-file", f"{directory}/{name} is not a regular file of root")
            content = file.read(MAX_OWN + 1)
            if len(content) > MAX_OWN:
                # A part of it would pass for the whole.
                raise FailedError("file-size", f"{directory}/{name} is larger than {MAX_OWN >> 20} MiB")
            return content

    def append_own(self, directory: str, name: str, content: bytes) -> None:
        """Append to one of our own files and wait until it is on disk."""
        parent = self.open_directory(directory, create=_DIRECTORY_MODE)
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, _FILE_MODE, dir_fd=parent)
            try:
                _write_all(descriptor, content)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.fsync(parent)
        except OSError as error:
            raise _explained(error, f"{directory}/{name}") from error
        finally:
            os.close(parent)

    def replace_own(self, directory: str, name: str, content: bytes, mode: int) -> None:
        """Write one of our own files as a whole: it has the old content or the new one, never a part.

        The temporary file lies beside the directory, not in it: libvirt runs every executable file that it
        finds in a hook directory.

        Args:
            directory: where it belongs; missing directories are made with mode 0755.
            name: its name there.
            content: what it shall hold.
            mode: its permissions.

        Raises:
            RefusedError, PermissionDeniedError, FailedError: it could not be written; nothing changed.
        """
        beside, _, last = directory.rpartition("/")
        parent = self.open_directory(beside, create=_DIRECTORY_MODE)
        target = temporary = None
        try:
            target = self._step(parent, last, directory, _DIRECTORY_MODE)
            temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
            descriptor = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                _PRIVATE_MODE,
                dir_fd=parent,
            )
            try:
                _write_all(descriptor, content)
                os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=target)
            temporary = None
            os.fsync(target)
        except OSError as error:
            raise _explained(error, f"{directory}/{name}") from error
        finally:
            if temporary is not None:
                _unlink_quietly(temporary, parent)
            if target is not None:
                os.close(target)
            os.close(parent)

    def remove_directory(self, directory: str) -> bool:
        """Remove a directory if it is empty; tell whether it is gone."""
        beside, _, last = directory.rpartition("/")
        try:
            parent = self.open_directory(beside)
        except FileNotFoundError:
            return True
        try:
            os.rmdir(last, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise _explained(error, directory) from error
        finally:
            os.close(parent)
        return True

    def remove_own(self, directory: str, name: str) -> None:
        """Remove one of our own files; nothing happens when it is gone already."""
        try:
            parent = self.open_directory(directory)
        except FileNotFoundError:
            return
        try:
            os.unlink(name, dir_fd=parent)
            os.fsync(parent)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _explained(error, f"{directory}/{name}") from error
        finally:
            os.close(parent)

    def lock(self, directory: str, name: str, deadline: float) -> int:
        """Take an exclusive lock on one of our own files.

        Returns:
            a descriptor; closing it gives the lock back.

        Raises:
            FailedError: somebody else held it for longer than ``deadline`` seconds (``locked``), or the file
                cannot be locked.
        """
        parent = self.open_directory(directory, create=_DIRECTORY_MODE)
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(name, flags, _PRIVATE_MODE, dir_fd=parent)
        except OSError as error:
            raise _explained(error, f"{directory}/{name}") from error
        finally:
            os.close(parent)
        try:
            if waiting.lock(descriptor, deadline):
                return descriptor
            raise FailedError(
                "locked",
                f"another virtpass command holds {directory}/{name} for more than {deadline:.0f} s",
                "wait for it, or look for it with: fuser -v " + f"{directory}/{name}",
            )
        except OSError as error:
            os.close(descriptor)
            raise _explained(error, f"{directory}/{name}") from error
        except BaseException:
            os.close(descriptor)
            raise


def only_root_writes(state: os.stat_result) -> bool:
    """Tell whether nobody but root, or this user, may write to what has this state."""
    return state.st_uid in (0, os.geteuid()) and not stat.S_IMODE(state.st_mode) & 0o022


def _set_mode(descriptor: int, mode: int) -> None:
    """Give a directory that was just made the mode that it should have; the umask has narrowed it.

    Raises:
        OSError: that did not work, and it is open to more than it should be.
    """
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        # Servers of files (NFS, 9p, FUSE) may let nobody do that.
        if error.errno not in _NO_MODES or stat.S_IMODE(os.fstat(descriptor).st_mode) & ~mode:
            raise


def _unsafe(directory: str, device: int) -> RefusedError:
    """Return why a directory is not written to, with what helps on its file system."""
    what = f"others than root may write to {directory}"
    kind = _kind_of_file_system(device)
    if kind in WITHOUT_PERMISSIONS:
        return RefusedError(
            "unsafe-directory",
            f"{what} ({kind}, which has permissions from its mount options only)",
            "mount it anew with umask=0077 (or dmask=0077,fmask=0177) and without uid=, in /etc/fstab too",
        )
    return RefusedError("unsafe-directory", what, f"chown root {directory}; chmod go-w {directory}")


def _kind_of_file_system(device: int) -> str:
    """Return the type of a mounted file system; empty when that is not known."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                # Fields: id, parent, major:minor, ..., tags ..., "-", type, source, options.
                head, _, tail = line.partition(" - ")
                if number in head.split(" ")[2:3]:
                    return tail.partition(" ")[0]
    except OSError:
        pass
    return ""


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _unlink_quietly(name: str, parent: int) -> None:
    try:
        os.unlink(name, dir_fd=parent)
    except OSError:
        pass


def _explained(error: OSError, path: str) -> Exception:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionDeniedError("permission", f"{path}: {os.strerror(error.errno)}", "run it as root")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return RefusedError(
            "link-on-path", f"{path} is a symbolic link or not a directory; it is not followed"
        )
    return FailedError("file", f"{path}: {error.strerror}")
