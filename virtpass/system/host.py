"""Files of a host below a root directory: the one place where virtpass reads and writes them.

Imported by the hook: the imports here are on its allow-list.
"""

import errno
import os
import stat

from virtpass.system import waiting
from virtpass.system.device_users import Node, users
from virtpass.system.errors import FailedError
from virtpass.system.own_files import OwnFiles, only_root_writes
from virtpass.system.processes import started
from virtpass.system.worker import NoAnswer, Worker

_MAX_READ = 1 << 20
# Of the programs that are run.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
# Seconds in which a device node opens, or is taken for one that is in use.
_OPEN_DEADLINE = 10.0
# How a node refuses to be opened that nobody uses, or that this user may not ask about. Any other answer,
# such as that of a driver which fails, does not say that it is free.
_FREE = frozenset((errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EACCES, errno.EPERM))
# As many as the kernel follows for one path.
_MAX_LINKS = 40


class Host(OwnFiles):
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
        super().__init__(root)
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
        silent = {one for one, since in self._silent_processes.items() if started(self, one) == since}
        try:
            answer = users(self.path("/proc"), processes, wanted, silent, deadline)
        except OSError as error:
            raise FailedError(
                "no-answer",
                f"who uses {wanted[0][2]} cannot be told: {error.strerror}",
                "look for what keeps this host so busy, and try again",
            ) from error
        finally:
            self._silent_processes = {one: started(self, one) for one in silent}
        self.unseen_processes = answer.unseen
        return {process: wanted[which][2] for process, which in answer.found.items()}

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

    def is_own(self, path: str) -> bool:
        """Tell whether nobody but root may write to a file."""
        try:
            return only_root_writes(os.lstat(self._resolved(path, last=False)))
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
