"""Which processes have device nodes open, or mapped into their memory.

What a descriptor or a mapping is, only the kernel can say, and it may wait for a file server that is gone,
or for the lock of a memory map. So a child asks, and tells how far it is: one that gets no answer about a
process is ended, which a wait of this kind allows, and another one goes on behind that process. One that is
merely slow goes on telling.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import time

from virtpass.system import child, waiting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How the child is called in /proc. It writes nothing, and is none of those that are waited for.
NAME = "virtpass-look"
# Seconds without a word after which a process counts as one about which there is no answer.
PATIENCE = 1.0
# Seconds between two words about one process, at least.
_BEAT = 0.1
# Bytes of an `fdinfo` that are read: what is looked for is in the first lines, which the kernel writes.
_FDINFO = 1024

# File systems whose server may keep whoever asks what a file is waiting, beside those of FUSE. By custom none
# of their files is the node of a device of this machine.
_REMOTE = frozenset(
    b"9p afs beegfs ceph cifs coda gfs2 glusterfs gpfs lustre nfs nfs4 ocfs2 pvfs2 smb3 smbfs vboxsf"
    b" virtiofs".split()
)
# Bytes of a line of a memory map that are kept: what counts is before the path.
_LINE = 256
# Bytes of what the child tells that nobody has listened to yet, as many as the kernel allows anybody.
_ROOM = 1 << 20
# Of the directory of a process's threads where there is one thread.
_LINKS_OF_ONE = 3
_KINDS = {stat.S_IFCHR: b"c", stat.S_IFBLK: b"b"}


class Node(tuple[str, str, str]):
    """A device node that is looked for.

    Its number, such as ``c226:0`` or ``b259:1``; where it is, as a line of ``maps`` says it (``00:06:351``,
    empty when that is not known); and its path. The path finds nothing: it says where to look first.
    """

    __slots__ = ()

    def __new__(cls, number: str, place: str, path: str) -> Node:
        """Hold the three together."""
        return super().__new__(cls, (number, place or "-", path))


class Answer:
    """What a look has found.

    Attributes:
        found: which node a process uses, by its place in the list.
        unseen: processes of which more than the paths of their files could not be looked at.
    """

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self.unseen: set[str] = set()


def users(
    directory: str, processes: list[str], nodes: list[Node], silent: set[str], seconds: float
) -> Answer:
    """Look which processes use which of some device nodes.

    First all of them are asked for what they have open under the path of a node, for which hardly anybody
    can keep the look waiting. What takes longer has the time that is left.

    Not seen is what a thread opens that has files of its own beside those of its process, what is on its way
    between two processes, and what is opened while the look lasts.

    Args:
        directory: where /proc is on this machine.
        processes: their numbers; those that an ordinary user may not ask are left out.
        nodes: the device nodes.
        silent: processes about which there was no answer before, and which are not waited for again. Those
            about which there is none now are added.
        seconds: for all of it.

    Raises:
        OSError: it cannot be told: no child could be made, or not even the paths could all be looked at
            (ETIMEDOUT).
    """
    end = time.monotonic() + seconds
    answer = Answer()
    answer.unseen |= silent & set(processes)
    task = _Task(directory, processes, nodes, silent)
    while not _look(task, answer, end):
        stage, where = task.stage, max(task.where, 0)
        if time.monotonic() >= end:
            if not task.is_whole:
                which = f"process {stage[where]} takes" if stage else "to look takes"
                raise OSError(errno.ETIMEDOUT, f"{which} too long")
            answer.unseen.update(stage[where:])
            break
        if task.where < 0:
            # It had come to the next stage, as it turned out, and to nobody there.
            continue
        # Who is silent in the first stage is asked once more in the second.
        if task.is_whole:
            answer.unseen.add(stage[where])
            silent.add(stage[where])
        task.stage = stage[where + 1 :]
    answer.unseen -= set(answer.found)
    return answer


class _Task:
    """What is to be looked at, of which a child does as much as it can.

    Attributes:
        directory: where /proc is on this machine.
        processes: all of them.
        nodes: what is looked for.
        silent: those that are not waited for.
        is_whole: whether more than paths is looked at by now.
        stage: those that are left of this stage.
        where: the place in it of the one that is looked at, -1 before the first.
        unfinished: the beginning of a word that the child tells.
    """

    def __init__(self, directory: str, processes: list[str], nodes: list[Node], silent: set[str]) -> None:
        self.directory = directory
        self.processes = processes
        self.nodes = nodes
        self.silent = silent
        self.is_whole = False
        self.stage = processes
        self.where = -1
        self.unfinished = b""

    def take(self, told: bytes, answer: Answer) -> bool:
        """Take in what the child tells; tell whether it has come to the end."""
        *words, self.unfinished = (self.unfinished + told).split(b" ")
        for word in words:
            if word == b"end":
                return True
            if word == b"whole":
                self.go_on(answer)
            elif word == b"next":
                self.where += 1
            elif word == b"denied":
                answer.unseen.add(self.stage[self.where])
            elif word.isdigit():
                answer.found[self.stage[self.where]] = int(word)
        return False

    def go_on(self, answer: Answer) -> None:
        """Begin the second stage; the child and who listens to it do so at the same place."""
        self.is_whole = True
        self.stage = [one for one in self.processes if one not in answer.found and one not in self.silent]
        self.where = -1


def _look(task: _Task, answer: Answer, end: float) -> bool:
    """Let a child look; tell whether it came to the end.

    Raises:
        OSError: as `users`.
    """
    task.where, task.unfinished = -1, b""
    reading, writing = child.pipe()
    try:
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _ROOM)
        except OSError:
            pass  # the child then waits until it is listened to, now and then
        try:
            looking = child.start(lambda: _tell(writing, task, answer))
        finally:
            os.close(writing)
        try:
            came_to_the_end = _listen(reading, task, answer, end)
        finally:
            waiting.end_child(looking)
        # What it has told since then.
        return came_to_the_end or task.take(_drained(reading), answer)
    finally:
        os.close(reading)


def _listen(reading: int, task: _Task, answer: Answer, end: float) -> bool:
    """Take in what the child tells; tell whether it came to the end, as `_look`."""
    os.set_blocking(reading, False)
    poll = select.poll()
    # Woken when the child has ended, not for each word: on one processor that would cost more than the look.
    poll.register(reading, 0)
    heard = time.monotonic()
    while (seconds := min(PATIENCE / 4, end - time.monotonic())) > 0:
        has_ended = bool(poll.poll(seconds * 1000))
        told = _drained(reading)
        if task.take(told, answer):
            return True
        if has_ended:
            raise OSError(errno.EPIPE, "the process that looks has ended")
        if told:
            heard = time.monotonic()
        elif task.where >= 0 and time.monotonic() - heard >= PATIENCE:
            break
    return False


def _drained(reading: int) -> bytes:
    """Return all that is in a pipe."""
    chunks = []
    try:
        while chunk := os.read(reading, 1 << 16):
            chunks.append(chunk)
    except BlockingIOError:
        pass  # the child has not ended
    return b"".join(chunks)


def _tell(writing: int, task: _Task, answer: Answer) -> None:
    """Go through processes, and tell of each; runs in the child.

    It says ``next`` before each process, the place of a node where the process uses one, ``denied`` where
    root may not look, ``.`` where it takes long, ``whole`` when all were asked for paths, and ``end``.
    """
    child.cut_off(NAME, writing)
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if (now := time.monotonic()) - last > _BEAT:
            last = now
            os.write(writing, b". ")

    base = os.fsencode(task.directory)
    wanted = _Wanted(base, [tuple(map(os.fsencode, node)) for node in task.nodes], beat)
    while True:
        for process in task.stage:
            os.write(writing, b"next ")
            path = base + b"/" + os.fsencode(process)
            which = wanted.used_by(path) if task.is_whole else wanted.named_by(path)
            if which is not None:
                answer.found[process] = which
                os.write(writing, b"%d " % which)
            elif wanted.was_denied:
                os.write(writing, b"denied ")
        if task.is_whole:
            break
        task.go_on(answer)
        os.write(writing, b"whole ")
    os.write(writing, b"end ")


class _Wanted:
    """The nodes that are looked for, and the mounts of this machine on which nobody is asked what a file is.

    A path proves nothing: whoever has mounts of his own can give any file the path of a node, and have a node
    open under another path. So a file counts by its device number, which takes a descriptor or a mapping to
    ask for, and opens nothing. Paths only tell where to look first, and where not to ask: about a file of a
    server that is gone there is no answer, and what else the process has open would not be seen.
    """

    def __init__(self, directory: bytes, nodes: list[tuple[bytes, ...]], beat: Callable[[], None]) -> None:
        # Of two equal ones the first counts.
        self._numbers = {number: which for which, (number, _, _) in reversed(list(enumerate(nodes)))}
        self._places = {
            place: which for which, (_, place, _) in reversed(list(enumerate(nodes))) if place != b"-"
        }
        # As they stand in a line of `maps`, before a path.
        self._marks = [b" %s " % b" ".join(place.rsplit(b":", 1)) for place in self._places]
        self._paths = {path for _, _, path in nodes}
        self._beat = beat
        # Whether something of the last process was not for this user to see, who is root.
        self.was_denied = False
        self._remote_points, self._remote_ids, self._remote_numbers = _remote_mounts(
            directory + b"/self/mountinfo"
        )
        # Where mappings lead that are none of a node.
        self._others: set[bytes] = set()
        # What `named_by` has seen of a process: the directories of its threads that count, and its files that
        # have a path, each as the directory of a thread, the descriptor and the path.
        self._seen: dict[bytes, tuple[list[bytes], list[tuple[bytes, bytes, bytes]]]] = {}

    def named_by(self, process: bytes) -> int | None:
        """Return which node a process, by its directory, has open under the node's path; None for none.

        One that has gone meanwhile has none, and neither has one that an ordinary user may not ask.
        """
        self.was_denied = False
        opened = [(process, name) for name in self._names(process + b"/fd")]
        threads = [process] if opened else self._threads(process)
        opened += [(path, name) for path in threads[1:] for name in self._names(path + b"/fd")]
        files = []
        for path, name in opened:
            self._beat()
            link = b"%s/fd/%s" % (path, name)
            try:
                target = os.readlink(link)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    # The path is longer than a page; what the file is can be asked all the same.
                    files.append((path, name, b""))
                else:
                    self._note(error)
                continue
            if target in self._paths:
                try:
                    which = self._numbers.get(_asked(link))
                except OSError as error:
                    self._note(error)
                    continue
                if which is not None:
                    return which
            # Sockets, pipes and the like have no path.
            elif target.startswith(b"/"):
                files.append((path, name, target))
        self._seen[process] = (threads, files)
        return None

    def used_by(self, process: bytes) -> int | None:
        """Return which node a process has open or mapped, under whichever path; None as in `named_by`."""
        self.was_denied = False
        if process not in self._seen:
            which = self.named_by(process)
            if which is not None:
                return which
        threads, files = self._seen.pop(process)
        for path, name, target in files:
            self._beat()
            if not self._is_remote(path, name, target):
                which = self._numbers.get(_number(b"%s/fd/%s" % (path, name)))
                if which is not None:
                    return which
        for path in threads:
            which, has_memory = self._mapped_by(path)
            # That is the same for all threads. One that has ended has none.
            if which is not None or has_memory:
                return which
        return None

    def _threads(self, process: bytes) -> list[bytes]:
        """Return the directories of a process and, where it has more than one thread, of each of them.

        Where the first thread has ended, the files are those of the others.
        """
        path = process + b"/task"
        try:
            # The kernel counts threads as links. Most of those who have no file are threads of its own.
            if os.stat(path).st_nlink == _LINKS_OF_ONE:
                return [process]
        except OSError as error:
            self._note(error)
            return [process]
        # Not below `task`: there no thread has a directory of its mappings.
        return [process, *(os.path.dirname(process) + b"/" + name for name in self._names(path))]

    def _names(self, path: bytes) -> list[bytes]:
        try:
            return os.listdir(path)
        except OSError as error:
            self._note(error)
            return []

    def _note(self, error: OSError) -> None:
        """Note what keeps root from looking: the rules of a security module, above all."""
        if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR) and os.geteuid() == 0:
            self.was_denied = True

    def _mapped_by(self, process: bytes) -> tuple[int | None, bool]:
        """Return which node a thread's process has mapped, None for none, and whether it has any memory."""
        spans: dict[bytes, bytes] = {}
        has_memory = False
        for line in self._telling_lines(process + b"/maps"):
            has_memory = True
            # Range, permissions, offset, major:minor, inode, and a path.
            fields = line.split(None, 5)
            if len(fields) < 5 or fields[4] == b"0":
                continue
            place = fields[3] + b":" + fields[4]
            if place in self._places:
                return self._places[place], True
            # A node that was made elsewhere has another place. Private mappings are left out there: they are
            # all the programs and libraries that run, and nobody draws through one.
            is_shared = fields[1][3:] == b"s" and fields[3] not in self._remote_numbers
            if is_shared and place not in self._others:
                spans.setdefault(place, fields[0])
        for place, span in spans.items():
            self._beat()
            # There the numbers are not padded.
            start, end = (one.lstrip(b"0") or b"0" for one in span.partition(b"-")[::2])
            try:
                number = _asked(b"%s/map_files/%s-%s" % (process, start, end))
            except OSError as error:
                # It is gone, or not for this user to see: of others who have it mapped nothing is known.
                if not self._is_of_own_server(process, place):
                    self._note(error)
                continue
            if number in self._numbers:
                return self._numbers[number], True
            self._others.add(place)
        return None, has_memory

    def _is_of_own_server(self, process: bytes, place: bytes) -> bool:
        """Tell whether a place is on a file server in a process's own mounts, such as a container's FUSE.

        Those are for their owners alone unless they say otherwise, and root is refused like everybody.
        """
        _, _, numbers = _remote_mounts(process + b"/mountinfo")
        return place.rpartition(b":")[0] in numbers

    def _telling_lines(self, path: bytes) -> Iterator[bytes]:
        """Yield the lines of a memory map that may be about a node; there are a hundred times as many.

        The first line comes in any case. A path, which may be of any length, may be cut off.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._note(error)
            return
        try:
            rest = b""
            is_first = True
            while chunk := os.read(descriptor, 1 << 16):
                self._beat()
                content = rest + chunk
                marks = [mark for mark in self._marks if mark in content]
                *lines, rest = content.split(b"\n")
                rest = rest[:_LINE]
                for line in lines:
                    # The permissions of a shared mapping end so.
                    if is_first or b"s " in line or (marks and any(mark in line for mark in marks)):
                        yield line
                    is_first = False
        except OSError as error:
            self._note(error)
        finally:
            os.close(descriptor)

    def _is_remote(self, task: bytes, name: bytes, path: bytes) -> bool:
        """Tell whether an open file is one of a file server that is mounted here.

        The path is quick to look at, and proves nothing: who has mounts of his own may open a node beneath
        one of the same name, and hand it to a process that has none. Which mount a file is of, the kernel
        says without asking the server.
        """
        while path and path not in self._remote_points:
            path = path.rpartition(b"/")[0]
        return bool(path) and _mount(b"%s/fdinfo/%s" % (task, name)) in self._remote_ids


def _remote_mounts(path: bytes) -> tuple[set[bytes], set[bytes], set[bytes]]:
    """Return the file systems of servers in a ``mountinfo``.

    Returns:
        where they are mounted; the ids of these mounts, as ``fdinfo`` has them; and the numbers of their
        devices, as ``maps`` writes them.
    """
    points: set[bytes] = set()
    ids: set[bytes] = set()
    numbers: set[bytes] = set()
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return points, ids, numbers
    for line in lines:
        head, _, tail = line.partition(b" - ")
        fields, kind = head.split(b" "), tail.partition(b" ")[0]
        major, _, minor = fields[2].partition(b":") if len(fields) >= 5 else (b"", b"", b"")
        if not (kind in _REMOTE or kind.startswith(b"fuse")) or not (major.isdigit() and minor.isdigit()):
            continue
        where = fields[4]
        for code in (b" ", b"\t", b"\n", b"\\"):
            where = where.replace(b"\\%03o" % ord(code), code)
        points.add(where)
        ids.add(fields[0])
        numbers.add(b"%02x:%02x" % (int(major), int(minor)))
    return points, ids, numbers


def _mount(path: bytes) -> bytes:
    """Return the id of the mount that an open file is of, from its ``fdinfo``; empty where it is not told."""
    try:
        with open(path, "rb") as file:
            lines = file.read(_FDINFO).split(b"\n")
    except OSError:
        return b""
    return next((line[7:].strip() for line in lines if line.startswith(b"mnt_id:")), b"")


def _number(path: bytes) -> bytes:
    """Return which device a file is, as `_asked`; empty as well for one that is gone, or does not tell.

    Root gets that from FUSE, whose mounts are for their owners alone unless they say otherwise.
    """
    try:
        return _asked(path)
    except OSError:
        return b""


def _asked(path: bytes) -> bytes:
    """Return which device a file is, as `Node` has it; empty for none.

    Raises:
        OSError: it is gone, or this user may not ask.
    """
    state = os.stat(path)
    kind = _KINDS.get(stat.S_IFMT(state.st_mode))
    return b"%s%d:%d" % (kind, os.major(state.st_rdev), os.minor(state.st_rdev)) if kind else b""
