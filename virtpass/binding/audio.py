"""Sound servers of users: they keep every sound card open, and outlive the session that they play for.

They belong to the user's own service manager, which goes on while the user is logged in anywhere, or lingers.
So they are stopped there, as services of the user, with the sockets that would start them again.

Record (fields after the kind):

    user-units USER UNIT...

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.binding import owners
from virtpass.binding.effects import GONE
from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError
from virtpass.system.host import Host

UNITS = "user-units"

# In the order in which they are started.
_SERVERS = (
    "pipewire.service",
    "wireplumber.service",
    "pipewire-media-session.service",
    "pipewire-pulse.service",
    "pulseaudio.service",
)
_SOCKETS = ("pipewire.socket", "pipewire-pulse.socket", "pulseaudio.socket")

# They end at once; whoever does not within this time holds the card on, and is named.
DEADLINE = 15.0

# The user's manager talks to nobody else but him. His group matters to none of its files.
_SETPRIV = "/usr/bin/setpriv"
_NO_GROUP = "65534"
_ENV = "/usr/bin/env"


def server_of(host: Host, process: int) -> str:
    """Return the number of the user whose sound server a process is; empty when it is none."""
    user, unit = owners.user_service(host, process)
    return user if unit in _SERVERS else ""


def running(host: Host, user: str) -> list[str]:
    """Return the sound servers of a user that run."""
    top = f"/sys/fs/cgroup/user.slice/user-{user}.slice/user@{user}.service"
    slices = [top, *(f"{top}/{name}" for name in host.subdirectories(top) if name.endswith(".slice"))]
    return [unit for unit in _SERVERS if any(host.exists(f"{one}/{unit}") for one in slices)]


def stop(host: Host, journal: Journal, user: str) -> list[str]:
    """Stop the sound servers of a user, recorded first; whether they let go is to be looked at.

    Returns:
        their names.

    Raises:
        FailedError: they could not be recorded.
    """
    units = running(host, user)
    if units:
        journal.add((UNITS, user, *units))
        # Sockets first, so that nobody wakes a server again. systemctl fails because of those that this user
        # has not, and stops the others all the same.
        host.run(_systemctl(user, "stop", (*_SOCKETS, *units)), DEADLINE)
    return units


def start_again(host: Host, fields: tuple[str, ...]) -> None:
    """Start the sound servers of a user again, unless he has gone: then his next login does.

    Raises:
        FailedError: one does not start; its reference is `GONE`, because silence must not keep a domain from
            starting for ever.
        ValueError: the record is none.
    """
    user, *units = fields
    if not (user.isascii() and user.isdigit() and set(units) <= set(_SERVERS)):
        raise ValueError("not sound servers of a user")
    if not host.exists(f"/run/user/{user}/systemd/private"):
        return
    if host.run(_systemctl(user, "start", tuple(units)), DEADLINE) != 0:
        names = " ".join(units)
        raise FailedError(
            GONE, f"{names} of user {user} do not start again", "start them by hand, or log in anew"
        )


def _systemctl(user: str, verb: str, units: tuple[str, ...]) -> list[str]:
    as_user = [_SETPRIV, f"--reuid={user}", f"--regid={_NO_GROUP}", "--clear-groups"]
    return [
        *as_user,
        _ENV,
        f"XDG_RUNTIME_DIR=/run/user/{user}",
        "/usr/bin/systemctl",
        "--user",
        verb,
        "--",
        *units,
    ]


UNDO = {UNITS: start_again}
