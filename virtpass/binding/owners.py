"""To which unit of systemd a process belongs, and which sessions there are: who can be asked to let go.

Read from cgroups and from logind's files, so that nothing has to be run.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.system.host import Host

UNIT, SESSION, USER, UNKNOWN = "unit", "session", "user", "unknown"

_SESSIONS = "/run/systemd/sessions"
_DISPLAY_MANAGER = "/etc/systemd/system/display-manager.service"
_CGROUPS = "/sys/fs/cgroup"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:@\\-")


class Session(tuple[str, str, str, str]):
    """A session: logind's identifier, the number of its user, its seat and its virtual terminal.

    The seat is empty for a session from elsewhere, the terminal where it has none.
    """

    __slots__ = ()

    def __new__(cls, identifier: str, user: str, seat: str, terminal: str) -> "Session":
        """Hold the four together."""
        return super().__new__(cls, (identifier, user, seat, terminal))


def owner(host: Host, process: int) -> tuple[str, str]:
    """Return what a process belongs to.

    Returns:
        `UNIT` and the name of a service of the system; `SESSION` and its identifier; `USER` and the number of
        the user whose service manager started it; or `UNKNOWN` and its cgroup.
    """
    path = _cgroup(host, process)
    # From the root: containers, and services with cgroups of their own making, have the same names below.
    _, root, *parts = [*path.split("/"), "", ""]
    if root == "user.slice":
        return _of_user(parts, path)
    if root == "system.slice":
        for part in parts:
            if part.endswith(".service") and is_unit(part):
                return UNIT, part
            if not part.endswith(".slice"):
                break
    return UNKNOWN, path


def user_service(host: Host, process: int) -> tuple[str, str]:
    """Return the number of a user and the service of his own manager to which a process belongs.

    Both are empty when it belongs to none.
    """
    path = _cgroup(host, process)
    _, root, *parts = [*path.split("/"), "", ""]
    kind, user = _of_user(parts, path) if root == "user.slice" else (UNKNOWN, "")
    for part in parts[2:] if kind == USER else ():
        if is_unit(part):
            return user, part
        if not part.endswith(".slice"):
            break
    return "", ""


def _of_user(parts: list[str], path: str) -> tuple[str, str]:
    """Return what of a user's a process belongs to, by the parts of its cgroup below ``user.slice``."""
    user, below = parts[0].removeprefix("user-").removesuffix(".slice"), parts[1]
    if not user.isdigit() or parts[0] != f"user-{user}.slice":
        return UNKNOWN, path
    if below == f"user@{user}.service":
        return USER, user
    session = below.removeprefix("session-").removesuffix(".scope")
    if session.isalnum() and below == f"session-{session}.scope":
        return SESSION, session
    return UNKNOWN, path


def _cgroup(host: Host, process: int) -> str:
    """Return the cgroup in systemd's hierarchy, whichever version."""
    for line in (host.read(f"/proc/{process}/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers in ("", "name=systemd"):
            return path
    return ""


def sessions(host: Host) -> list[Session]:
    """Return the sessions that logind knows."""
    found = []
    for name in host.names(_SESSIONS):
        if not name.isalnum():
            continue  # a pipe that keeps a session open
        values = {}
        for line in (host.read(f"{_SESSIONS}/{name}") or "").splitlines():
            key, _, value = line.partition("=")
            values[key] = value
        found.append(Session(name, values.get("UID", ""), values.get("SEAT", ""), values.get("VTNR", "")))
    return found


def display_manager(host: Host) -> str:
    """Return the unit of the display manager that runs; empty when none does."""
    name = host.link_name(_DISPLAY_MANAGER) or ""
    return name if is_unit(name) and host.exists(f"{_CGROUPS}/system.slice/{name}") else ""


def getty(host: Host, terminal: str) -> str:
    """Return the unit that would log in again on a virtual terminal; empty when there is none."""
    name = f"getty@tty{terminal}.service"
    is_there = terminal.isdigit() and host.exists(f"{_CGROUPS}/system.slice/system-getty.slice/{name}")
    return name if is_there else ""


def is_unit(name: str) -> bool:
    """Tell whether a name can be that of a service, and not an option."""
    return name.endswith(".service") and len(name) < 256 and not name.startswith("-") and set(name) <= _PLAIN
