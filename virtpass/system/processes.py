"""What a host says of a process in /proc.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.system.host import Host

# Fields after the name of the program in /proc/PID/stat (proc_pid_stat(5)): the state, the parent, the
# session, and when the process was started, in ticks since the boot.
_STATE, _PARENT, _SESSION, _STARTED = 0, 1, 3, 19
# A zombie does nothing more.
_DEAD = ("Z", "X")
# Of a file about a process.
_BYTES = 4096


class Process(tuple[int, int, int]):
    """A process that lives: its parent, its session, and when it was started.

    With its number, the time of its start tells it from another that has the number later.
    """

    __slots__ = ()

    def __new__(cls, parent: int, session: int, started: int) -> Process:
        """Hold the three together."""
        return super().__new__(cls, (parent, session, started))

    @property
    def parent(self) -> int:
        """The number of its parent."""
        return self[0]

    @property
    def session(self) -> int:
        """The number of the process that began its session."""
        return self[1]

    @property
    def started(self) -> int:
        """When it was started, in ticks since the boot."""
        return self[2]

    def age(self, host: Host) -> float:
        """Return for how many seconds it has been there, at least 0."""
        uptime = float((host.read("/proc/uptime") or "0").split()[0])
        return max(uptime - self.started / os.sysconf("SC_CLK_TCK"), 0.0)


def find(host: Host, process: int | str) -> Process | None:
    """Return the process with a number; None when none with it lives."""
    # What comes before is its name in brackets, which may hold anything.
    fields = text(host, process, "stat").rpartition(")")[2].split()
    if len(fields) <= _STARTED or fields[_STATE] in _DEAD:
        return None
    wanted = [fields[one] for one in (_PARENT, _SESSION, _STARTED)]
    return Process(*map(int, wanted)) if all(map(str.isdecimal, wanted)) else None


def started(host: Host, process: int | str) -> int | None:
    """Return when the process with a number was started, in ticks since the boot; None when none lives."""
    found = find(host, process)
    return None if found is None else found.started


def text(host: Host, process: int | str, name: str) -> str:
    """Return the beginning of a file in the directory of a process; empty when it has ended.

    What a process says of itself, such as its ``cmdline``, may be as long as it likes.
    """
    content = host.read_bytes(f"/proc/{process}/{name}", _BYTES) or b""
    return content.decode("utf-8", "surrogateescape").strip()


def runs_as_root(host: Host, process: str, programs: tuple[str, ...] = ("",)) -> bool:
    """Tell whether root, and nobody else, runs one of some programs in a process; by default any.

    A user may give a set-user-ID program any name and any arguments, and let it wait for his password. So all
    four user ids count, not only the effective one, whose is the directory in /proc. Some programs make all
    of them root's before they ask, such as sudo; so the file that is executed counts as well.

    Args:
        host: the host.
        process: its number.
        programs: how the names of their files begin.
    """
    if not (host.link_name(f"/proc/{process}/exe") or "").startswith(programs):
        return False
    for line in text(host, process, "status").splitlines():
        if line.startswith("Uid:"):
            return set(line.split()[1:]) <= {"0", str(os.geteuid())}
    return False
