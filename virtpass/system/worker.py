"""A child process for accesses that may block in a driver for ever.

A write to ``unbind`` runs the driver's remove function in the writer, under the device's lock; reading
``config`` waits for that lock too, and opening a disk for its driver. When that hangs, a signal makes it
worse (the kernel then waits uninterruptibly), so the child is never killed: it is left behind with no lock,
no descriptor and no terminal of its parent.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import os
import select
import stat

# What a pipe takes at once: neither side waits for the other while it sends.
_LIMIT = 60000
_HEADER = 4

# File systems whose server may keep whoever asks what a file is waiting, beside those of FUSE. None of their
# files is the node of a device of this machine.
_REMOTE = frozenset(
    b"9p afs beegfs ceph cifs coda gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 orangefs smb3 smbfs vboxsf"
    b" virtiofs".split()
)
_KINDS = {stat.S_IFCHR: b"c", stat.S_IFBLK: b"b"}

# How a child is called in /proc: this, and the number of its parent. One with another parent lost its own.
COMMAND = "virtpass"
# How many characters of a name the kernel keeps.
_LONGEST_NAME = 15

_READ, _WRITE, _OPEN, _SEARCH = b"r", b"w", b"o", b"s"


class NoAnswer(OSError):
    """The access did not come back within the deadline; its process is left behind."""


class Node(tuple[str, str, str]):
    """A device node that is looked for.

    Its number, such as ``c226:0`` or ``b259:1``; where it is, as a line of ``maps`` says it (``00:06:351``,
    empty when that is not known); and its path. The path finds nothing: it says where to look first.
    """

    __slots__ = ()

    def __new__(cls, number: str, place: str, path: str) -> Node:
        """Hold the three together."""
        return super().__new__(cls, (number, place or "-", path))


class Worker:
    """One child process that makes accesses, one at a time."""

    def __init__(self) -> None:
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        self.is_lost = False
        if self.pid == 0:
            _serve(requests, answers, parent)
        os.close(requests)
        os.close(answers)

    def read(self, path: str, deadline: float, limit: int = 4096) -> bytes:
        """Read an attribute.

        Args:
            path: where it is on this machine.
            deadline: seconds to wait for the answer.
            limit: how many bytes at most.

        Returns:
            its content.

        Raises:
            NoAnswer: after the deadline; the worker is lost then.
            OSError: the kernel refused.
        """
        return self._ask(_READ, path, str(limit), deadline)

    def write(self, path: str, value: str, deadline: float) -> None:
        """Write an attribute; arguments and errors as in `read`."""
        self._ask(_WRITE, path, value, deadline)

    def open(self, path: str, flags: int, deadline: float) -> None:
        """Open a node and close it again; arguments and errors as in `read`."""
        self._ask(_OPEN, path, str(flags), deadline)

    def search(self, directory: str, processes: list[str], nodes: list[Node], deadline: float) -> list[str]:
        """Look for the processes that have device nodes open, or mapped into their memory.

        Args:
            directory: where /proc is on this machine.
            processes: their numbers.
            nodes: the device nodes.
            deadline: seconds to wait for the answer.

        Returns:
            for each process that has one its number and which of the nodes (its place in the list), separated
            by a blank.

        Raises:
            NoAnswer, OSError: as in `read`.
        """
        asked = "\n".join((" ".join(processes), *(" ".join(node) for node in nodes)))
        return os.fsdecode(self._ask(_SEARCH, directory, asked, deadline)).splitlines()

    def _ask(self, kind: bytes, path: str, value: str, deadline: float) -> bytes:
        request = b"\0".join((kind, os.fsencode(path), os.fsencode(value)))
        if len(request) > _LIMIT:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        try:
            os.write(self._requests, _framed(request))
        except OSError:
            self._lose()
            raise
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        if not poll.poll(deadline * 1000):
            self._lose()
            raise NoAnswer(errno.ETIMEDOUT, f"no answer within {deadline:.0f} s", path)
        answer = _received(self._answers)
        if not answer:
            self._lose()
            raise OSError(errno.EPIPE, "the process that accesses sysfs ended", path)
        number, _, content = answer.partition(b"\0")
        if code := int(number):
            raise OSError(code, os.strerror(code), path)
        return content

    def _lose(self) -> None:
        self.is_lost = True
        os.close(self._requests)
        os.close(self._answers)


def first_parent(name: str) -> int | None:
    """Return the process that made a child, as the child's name says; None for another process's name."""
    number = name.removeprefix(COMMAND)
    if not name.startswith(COMMAND) or not (number.isascii() and number.isdigit()):
        return None
    return int(number) if len(name) <= _LONGEST_NAME else None


def _framed(content: bytes) -> bytes:
    return len(content).to_bytes(_HEADER, "little") + content


def _received(descriptor: int) -> bytes:
    """Return the next message; empty when there will be none."""
    content = b""
    wanted = _HEADER
    while len(content) < wanted:
        chunk = os.read(descriptor, wanted - len(content))
        if not chunk:
            return b""
        content += chunk
        if len(content) == _HEADER:
            wanted = _HEADER + int.from_bytes(content, "little")
    return content[_HEADER:]


def _serve(requests: int, answers: int, parent: int) -> None:
    """Answer requests until the parent is gone; runs in the child and never returns."""
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        # Nothing of the parent may stay open here: neither its lock nor the pipes that libvirt waits for.
        kept = sorted((requests, answers))
        os.closerange(3, kept[0])
        os.closerange(kept[0] + 1, kept[1])
        os.closerange(kept[1] + 1, os.sysconf("SC_OPEN_MAX"))
        _call_itself(f"{COMMAND}{parent}")
        while request := _received(requests):
            # Whoever asked and was killed holds the lock no more: nothing may be written any more.
            if os.getppid() != parent:
                break
            kind, path, value = request.split(b"\0", 2)
            os.write(answers, _framed(_answer(kind, path, value)))
    finally:
        os._exit(0)


def _call_itself(name: str) -> None:
    try:
        descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, name.encode())
        os.close(descriptor)
    except OSError:
        pass  # only those who look for it after a crash miss it


def _answer(kind: bytes, path: bytes, value: bytes) -> bytes:
    try:
        if kind == _SEARCH:
            return b"0\0" + _search(path, *value.split(b"\n"))[:_LIMIT]
        return b"0\0" + _access(kind, path, value)
    except OSError as error:
        return b"%d\0" % (error.errno or errno.EIO)


def _access(kind: bytes, path: bytes, value: bytes) -> bytes:
    flags = {_READ: os.O_RDONLY, _WRITE: os.O_WRONLY}.get(kind)
    descriptor = os.open(path, (int(value) if flags is None else flags) | os.O_CLOEXEC)
    try:
        if kind == _READ:
            return os.read(descriptor, min(int(value), _LIMIT))
        if kind == _WRITE:
            # One write: sysfs takes each write as a whole value.
            os.write(descriptor, value)
        return b""
    finally:
        os.close(descriptor)


def _search(directory: bytes, processes: bytes, *nodes: bytes) -> bytes:
    wanted = _Wanted(directory, [tuple(node.split(b" ", 2)) for node in nodes])
    found = []
    for process in processes.split():
        which = wanted.used_by(directory + b"/" + process)
        if which is not None:
            found.append(b"%s %d" % (process, which))
    return b"\n".join(found)


class _Wanted:
    """The nodes that are looked for, and the mounts of this machine on which nobody is asked what a file is.

    A path proves nothing: whoever has mounts of his own can give any file the path of a node, and have a node
    open under another path. So a file counts by its device number, which takes a descriptor or a mapping to
    ask for, and opens nothing. Paths only tell where to look first, and where not to ask: about a file of a
    server that is gone there is no answer, and what else the process has open would not be seen.
    """

    def __init__(self, directory: bytes, nodes: list[tuple[bytes, ...]]) -> None:
        # Of two equal ones the first counts.
        self._numbers = {number: which for which, (number, _, _) in reversed(list(enumerate(nodes)))}
        self._places = {place: which for which, (_, place, _) in reversed(list(enumerate(nodes)))}
        self._paths = {path for _, _, path in nodes}
        self._namespace = _link(directory + b"/self/ns/mnt")
        self._remote, self._remote_numbers = _remote_mounts(directory + b"/self/mountinfo")
        # Where mappings lead that are none of a node.
        self._others: set[bytes] = set()

    def used_by(self, process: bytes) -> int | None:
        """Return which node a process, by its directory, has open or mapped; None for none.

        One that has gone meanwhile, or is another user's, has none.
        """
        found = self._opened_by(process)
        return self._mapped_by(process) if found is None else found

    def _opened_by(self, process: bytes) -> int | None:
        try:
            names = os.listdir(process + b"/fd")
        except OSError:
            return None
        named, others = [], []
        # Elsewhere, mounts of the user's own may hide what is open beneath them.
        has_our_mounts = bool(self._remote) and _link(process + b"/ns/mnt") == self._namespace
        for name in names:
            path = b"%s/fd/%s" % (process, name)
            target = _link(path)
            if target in self._paths:
                named.append(path)
            # Sockets, pipes and the like have no path.
            elif target.startswith(b"/") and not (has_our_mounts and self._is_remote(target)):
                others.append(path)
        for path in named + others:
            which = self._numbers.get(_number(path))
            if which is not None:
                return which
        return None

    def _mapped_by(self, process: bytes) -> int | None:
        try:
            with open(process + b"/maps", "rb") as file:
                content = file.read()
        except OSError:
            return None
        shared = []
        for line in content.split(b"\n"):
            # Range, permissions, offset, major:minor, inode, and a path.
            fields = line.split(None, 5)
            if len(fields) < 5 or fields[4] == b"0":
                continue
            place = fields[3] + b":" + fields[4]
            if place in self._places:
                return self._places[place]
            # A node that was made elsewhere has another place. Private mappings are left out there: they are
            # all the programs and libraries that run, and nobody draws through one.
            if fields[1][3:] == b"s" and fields[3] not in self._remote_numbers and place not in self._others:
                shared.append((place, fields[0]))
        for place, span in shared:
            if place in self._others:
                continue
            # There the numbers are not padded.
            start, end = (one.lstrip(b"0") or b"0" for one in span.partition(b"-")[::2])
            which = self._numbers.get(_number(b"%s/map_files/%s-%s" % (process, start, end)))
            if which is not None:
                return which
            self._others.add(place)
        return None

    def _is_remote(self, path: bytes) -> bool:
        """Tell whether the last mount that a path leads into is one of a file server."""
        while path and path not in self._remote:
            path = path.rpartition(b"/")[0]
        return self._remote.get(path, False)


def _remote_mounts(path: bytes) -> tuple[dict[bytes, bool], frozenset[bytes]]:
    """Return the mounts of a ``mountinfo``.

    Returns:
        for each mount point whether only file systems of servers are mounted there, empty where there is none
        of these at all; and the numbers of those, as ``maps`` writes them.
    """
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return {}, frozenset()
    mounts: dict[bytes, bool] = {}
    numbers = set()
    for line in lines:
        head, _, tail = line.partition(b" - ")
        fields, kind = head.split(b" "), tail.partition(b" ")[0]
        if len(fields) < 5:
            continue
        is_remote = kind in _REMOTE or kind.startswith(b"fuse")
        where = fields[4]
        for code in (b" ", b"\t", b"\n", b"\\"):
            where = where.replace(b"\\%03o" % ord(code), code)
        mounts[where] = is_remote and mounts.get(where, True)
        major, _, minor = fields[2].partition(b":")
        if is_remote and major.isdigit() and minor.isdigit():
            numbers.add(b"%02x:%02x" % (int(major), int(minor)))
    return (mounts, frozenset(numbers)) if numbers else ({}, frozenset())


def _link(path: bytes) -> bytes:
    try:
        return os.readlink(path)
    except OSError:
        return b""


def _number(path: bytes) -> bytes:
    """Return which device a file is, as `Node` has it; empty for none, or one that is gone."""
    try:
        state = os.stat(path)
    except OSError:
        return b""
    kind = _KINDS.get(stat.S_IFMT(state.st_mode))
    return b"%s%d:%d" % (kind, os.major(state.st_rdev), os.minor(state.st_rdev)) if kind else b""
