"""Files of a host below a root directory: the one place where virtpass reads and writes them.

Imported by the hook: the imports here are on its allow-list.
"""

import errno
import os
import stat

from virtpass.system import waiting
from virtpass.system.device_users import Node, users
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError
from virtpass.system.worker import NoAnswer, Worker

_MAX_READ = 1 << 20
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
# Of the programs that are run.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# Seconds in which a device node opens, or is taken for one that is in use.
_OPEN_DEADLINE = 10.0
# How a node refuses to be opened that nobody uses, or that this user may not ask about. Any other answer,
# such as that of a driver which fails, does not say that it is free.
_FREE = frozenset((errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EACCES, errno.EPERM))
# Fields after the name of the program in /proc/PID/stat: the state, and when the process was started.
_STATE, _START = 0, 19
_DEAD = ("Z", "X")
# As many as the kernel follows for one path.
_MAX_LINKS = 40
# Of this process, whatever the root is.
_MOUNTS = "/proc/self/mountinfo"
# How a file system answers that lets nobody change permissions.
_NO_MODES = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP))
# File systems on which owner and permissions come from mount options.
WITHOUT_PERMISSIONS = ("vfat", "msdos", "exfat")


class Host:
    """The files of one host.

    Args:
        root: directory below which the host's files lie; ``/`` for the machine itself.

    Attributes:
        unseen_processes: numbers of those that could not be looked at the last time (`using`).

    All paths that the methods take are absolute paths as the host itself sees them. Reading methods return
    None (or an empty list) for what is missing or unreadable: sysfs attributes come and go with drivers.
    Links that they meet below another root lead to where they lead the host itself, never out of the root.
    """

    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/")
        self.unseen_processes: set[str] = set()
        self._silent_processes: dict[str, int | None] = {}
        self._worker: Worker | None = None
        self._unanswered: set[str] = set()

    def __enter__(self) -> "Host":
        """Return the host itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Let the child end that makes accesses for this host; the next access makes another."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def path(self, path: str) -> str:
        """Return where ``path`` of the host lies on this machine."""
        return self.root + path

    def _resolved(self, path: str, *, last: bool = True) -> str:
        """Return where ``path`` lies on this machine, its links followed as the host itself does.

        Args:
            path: what is to be read.
            last: whether the last component is followed too.

        Raises:
            OSError: too many links lead to each other.
        """
        # The machine's own links are the kernel's business.
        return self.root + _followed(self.root, path, last) if self.root else path

    # reading

    def read_bytes(self, path: str, limit: int = _MAX_READ) -> bytes | None:
        """Return the content of a file, at most ``limit`` bytes; None when it cannot be read."""
        try:
            descriptor = os.open(self._resolved(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            chunks = []
            left = limit
            while left > 0 and (chunk := os.read(descriptor, min(left, 65536))):
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def read(self, path: str) -> str | None:
        """Return the content of a text file without white space around it; None when it cannot be read."""
        content = self.read_bytes(path)
        return None if content is None else content.decode("utf-8", "surrogateescape").strip()

    def link_name(self, path: str) -> str | None:
        """Return the last component of a symbolic link's target; None when there is no link."""
        try:
            return os.path.basename(os.readlink(self._resolved(path, last=False)))
        except OSError:
            return None

    def link_target(self, path: str) -> str | None:
        """Return a symbolic link's target as it is written there; None when there is no link."""
        try:
            return os.readlink(self._resolved(path, last=False))
        except OSError:
            return None

    def real_path(self, path: str) -> str:
        """Return ``path`` with the symbolic links in it resolved, as the host sees it.

        Where links lead in a circle, it is returned as it is.
        """
        if not self.root:
            return os.path.realpath(path)
        try:
            return _followed(self.root, path, last=True)
        except OSError:
            return path

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a directory; empty when it cannot be read."""
        try:
            return sorted(os.listdir(self._resolved(path)))
        except OSError:
            return []

    def subdirectories(self, path: str) -> list[str]:
        """Return the sorted names of the directories in a directory, symbolic links left out."""
        try:
            with os.scandir(self._resolved(path)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except OSError:
            return []

    def device_number(self, path: str) -> str | None:
        """Return ``major:minor`` of a device node; None when there is none."""
        try:
            number = os.stat(self._resolved(path)).st_rdev
        except OSError:
            return None
        return f"{os.major(number)}:{os.minor(number)}" if number else None

    def exists(self, path: str) -> bool:
        """Tell whether there is anything at ``path``, a dangling link included."""
        try:
            return os.path.lexists(self._resolved(path, last=False))
        except OSError:
            return False

    # attributes of the kernel, which may block in a driver

    def read_attribute(self, path: str, deadline: float) -> str:
        """Read a sysfs attribute that takes a device's lock, such as ``driver_override``.

        Args:
            path: the attribute.
            deadline: how long to wait, in seconds.

        Returns:
            its content without white space around it.

        Raises:
            NoAnswer: the kernel did not answer within the deadline.
            OSError: the kernel refused.
        """
        content = self._attributes().read(self._resolved(path), deadline)
        return content.decode("utf-8", "surrogateescape").strip()

    def read_device(self, path: str, limit: int, deadline: float) -> bytes:
        """Read the beginning of a binary attribute, such as ``config``; errors as `read_attribute`."""
        return self._attributes().read(self._resolved(path), deadline, limit)

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        """Write a sysfs attribute in a child process, which is never killed.

        Raises:
            NoAnswer, OSError: as `read_attribute`.
        """
        try:
            self._attributes().write(self.path(path), value, deadline)
        except NoAnswer:
            self._unanswered.add(path)
            raise

    def may_be_written_yet(self, path: str) -> bool:
        """Tell whether a write to an attribute was made here that has not come back: it may still happen."""
        return path in self._unanswered

    def using(self, processes: list[str], nodes: dict[str, str], deadline: float) -> dict[str, str]:
        """Return which processes have device nodes open, or mapped into their memory, with one node for each.

        What a descriptor or a mapping is, is known by its device number, under whichever path it was opened.

        A process about which there is no answer (its memory map is locked, or it has a file of a server that
        is gone), or at which root may not look, is asked only for what it has open under the path of a node;
        unless that is so it is one of `unseen_processes`.

        Args:
            processes: their numbers; those that this user may not ask are left out.
            nodes: numbers of device nodes (``c226:0``) by their paths; one without number is not looked for.
            deadline: seconds for all of them.

        Raises:
            FailedError: it cannot be told.
        """
        wanted = [Node(number, self._place(path, number), path) for path, number in nodes.items() if number]
        self.unseen_processes = set()
        if not wanted:
            return {}
        # A number may be that of another process by now.
        silent = {one for one, since in self._silent_processes.items() if self.started(one) == since}
        try:
            answer = users(self.path("/proc"), processes, wanted, silent, deadline)
        except OSError as error:
            raise FailedError(
                "no-answer",
                f"who uses {wanted[0][2]} cannot be told: {error.strerror}",
                "look for what keeps this host so busy, and try again",
            ) from error
        finally:
            self._silent_processes = {one: self.started(one) for one in silent}
        self.unseen_processes = answer.unseen
        return {process: wanted[which][2] for process, which in answer.found.items()}

    def started(self, process: int | str) -> int | None:
        """Return when a process was started, in ticks since the boot; None when it does not live."""
        # What comes before is its name in brackets, which may hold anything.
        fields = (self.read(f"/proc/{process}/stat") or "").rpartition(")")[2].split()
        if len(fields) <= _START or fields[_STATE] in _DEAD or not fields[_START].isdigit():
            return None
        return int(fields[_START])

    def _place(self, path: str, number: str) -> str:
        """Return where a device node is, as ``maps`` says it; empty unless it is the one of that number."""
        try:
            state = os.lstat(self.path(path))
        except OSError:
            return ""
        kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(state.st_mode), "")
        if number != f"{kind}{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}":
            return ""
        return f"{os.major(state.st_dev):02x}:{os.minor(state.st_dev):02x}:{state.st_ino}"

    def is_claimed(self, path: str) -> bool:
        """Tell whether somebody uses a block device for himself alone; False when this user may not ask.

        A disk that does not answer, or whose driver fails, is in use: nothing says that it is not.
        """
        return self._is_busy(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)

    def device_node_is_busy(self, path: str) -> bool:
        """Tell whether somebody has a VFIO group open: the kernel lets only one open it.

        A second open fails with EBUSY (vfio_group_fops_open in the kernel's drivers/vfio/group.c). Any other
        failure counts as well, unless there is no such group or this user may not ask.
        """
        return self._is_busy(path, os.O_RDWR | os.O_NONBLOCK)

    def _is_busy(self, path: str, flags: int) -> bool:
        try:
            resolved = self._resolved(path)
        except OSError:
            return False  # links that lead nowhere
        try:
            if os.path.exists(resolved):
                self._attributes().open(resolved, flags, _OPEN_DEADLINE)
        except OSError as error:
            return error.errno not in _FREE
        return False

    def _attributes(self) -> Worker:
        if self._worker is None or self._worker.is_lost:
            self._worker = Worker()
        return self._worker

    def run(self, argv: list[str], deadline: float) -> int | None:
        """Run a program without input and output and return its exit status.

        Args:
            argv: absolute path of the program and its arguments.
            deadline: seconds to wait; the program is then left alone, and None is returned.

        None is returned as well when nobody can tell how the program ended (`waiting.wait_for_child`).
        """
        try:
            child = os.posix_spawn(
                argv[0],
                argv,
                _ENVIRONMENT,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, descriptor, "/dev/null", os.O_RDWR, 0) for descriptor in (0, 1, 2)
                ],
                setsid=True,
            )
        except OSError:
            return 127
        return waiting.wait_for_child(child, deadline)

    def run_program(
        self, argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        """Run a program for what it says, and end it with its process group after a deadline.

        Args:
            argv: absolute path of the program and its arguments.
            environment: what it gets beside the search path and the plain locale.
            deadline: seconds.
            limit: bytes that it may say where all of it matters; 0 where the end of it does.

        Returns:
            its exit status (negative for a signal, None when it had to be ended), and the end of its output,
            or all of it where there is a limit.

        Raises:
            OSError: it cannot be run, or has said more than the limit (EMSGSIZE).
            ValueError: an argument has a byte 0.
        """
        # Not at the top: few starts of a domain run one.
        from virtpass.system.program import run_program

        everything = {**_ENVIRONMENT, **environment}
        return run_program(self.path(argv[0]), argv, everything, deadline, limit=limit)

    # files of our own

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
            if not _is_own(state):
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
            if not _is_own(state):
                raise _unsafe(walked, state.st_dev)
        except OSError as error:
            os.close(descriptor)
            raise _explained(error, walked) from error
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def is_own(self, path: str) -> bool:
        """Tell whether nobody but root may write to a file."""
        try:
            return _is_own(os.lstat(self._resolved(path, last=False)))
        except OSError:
            return False

    def is_hidden(self, path: str) -> bool:
        """Tell whether this user may not even look whether there is anything at ``path``."""
        try:
            os.lstat(self._resolved(path, last=False))
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EPERM)
        return False

    def version(self, path: str) -> tuple[int, int] | None:
        """Return what changes whenever a file is made or written anew; None when there is none."""
        try:
            state = os.lstat(self._resolved(path, last=False))
        except OSError:
            return None
        return state.st_ino, state.st_mtime_ns

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
            if not stat.S_ISREG(state.st_mode) or not _is_own(state):
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


def _is_own(state: os.stat_result) -> bool:
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


def _followed(root: str, path: str, last: bool) -> str:
    """Return ``path`` without links, as a process sees it whose root directory is ``root``.

    What does not exist is taken for what it says. Files may change meanwhile: whoever writes asks
    `Host.open_directory`, which follows nothing.

    Raises:
        OSError: too many links.
    """
    done: list[str] = []
    left = path.split("/")[::-1]
    links = 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            # Above the root is the root.
            del done[-1:]
            continue
        done.append(name)
        if not left and not last:
            break
        try:
            target = os.readlink(f"{root}/{'/'.join(done)}")
        except OSError:
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith("/"):
            done.clear()
        else:
            done.pop()
        left += target.split("/")[::-1]
    return "/" + "/".join(done)


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
