"""Sound servers of users: they keep every sound card open, and outlive the session that they play for.

They belong to the user's own service manager, which goes on while the user is logged in anywhere, or lingers.
So they are stopped there, as services of the user, with the sockets that would start them again. Both are
started again as soon as nobody can open the card any more, so that its user has the host's other sound while
the card is lent; and once more when it is back, for whoever could not have them before.

Record (fields after the kind):

    user-units USER UNIT...

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os
import time

from virtpass.binding import owners, services
from virtpass.binding.effects import GONE
from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError, VirtpassError
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.binding.effects import Tell

UNITS = "user-units"

# In the order in which they are started.
_SOCKETS = ("pipewire.socket", "pipewire-pulse.socket", "pulseaudio.socket")
_SERVERS = (
    "pipewire.service",
    "wireplumber.service",
    "pipewire-media-session.service",
    "pipewire-pulse.service",
    "pulseaudio.service",
)
# Sockets first: systemd starts none whose service runs, and nobody wakes a server again when they are stopped
# first.
_UNITS = (*_SOCKETS, *_SERVERS)

# They end at once; whoever does not within this time holds the card on, and is named.
DEADLINE = 15.0

# The user's manager talks to nobody else but him. His group matters to none of its files.
_SETPRIV = "/usr/bin/setpriv"
_NO_GROUP = "65534"
_ENV = "/usr/bin/env"

# How logind is asked for the state of a user, and whether he lingers; and how it says that he has a session,
# or does without.
_STATE = (services.LOGINCTL, "show-user", "--value", "-p", "State", "-p", "Linger")
_STAYING = frozenset(("active", "online", "lingering", "yes"))


def server_of(host: Host, process: int) -> str:
    """Return the number of the user whose sound server a process is; empty when it is none."""
    user, unit = owners.user_service(host, process)
    return user if unit in _SERVERS else ""


def may_ask(user: str) -> bool:
    """Tell whether this user may ask another one's service manager: root may, and everybody his own."""
    return os.geteuid() == 0 or user == str(os.geteuid())


def running(host: Host, user: str) -> list[str]:
    """Return the sound servers of a user that run, and their sockets, in the order in which they start.

    Raises:
        FailedError: the user's service manager does not tell, or only to root (`may_ask`).
    """
    told = services.ask(host, _systemctl(user), list(_UNITS), (), DEADLINE)
    return [unit for unit, values in zip(_UNITS, told, strict=True) if services.is_active(values)]


def stop(host: Host, journal: Journal, user: str) -> list[str]:
    """Stop the sound servers of a user, recorded first; whether they let go is to be looked at.

    Returns:
        their names, and those of their sockets; nothing when the user has gone, and they with him.

    Raises:
        FailedError: the user's service manager does not tell which run, or they could not be recorded.
    """
    end = time.monotonic() + DEADLINE
    try:
        units = running(host, user)
    except FailedError:
        if _is_there(host, user):
            raise
        # He was when this was decided; his session may have ended with the display manager since.
        return []
    if units:
        journal.add((UNITS, user, *units))
        host.run([*_systemctl(user), "stop", "--", *units], end - time.monotonic())
    return units


def go_on(host: Host, journal: Journal, tell: Tell) -> None:
    """Start the sound servers again that were stopped, when the devices are lent; they find other sound.

    Those of users whose last session has ended, and who do not linger, are left to the next one. What does
    not start is told, and tried again when the devices are back.
    """
    for kind, *fields in list(journal.effects):
        if kind != UNITS or not _stays(host, fields[0]):
            continue
        began, problem = time.monotonic(), ""
        try:
            start_again(host, tuple(fields))
        except (VirtpassError, ValueError) as error:
            problem = str(error)
        tell("start", f"{', '.join(fields[1:])} of user {fields[0]}", time.monotonic() - began, problem)


def _stays(host: Host, user: str) -> bool:
    """Tell whether a user is logged in, or lingers: his service manager is not about to end."""
    # Its file about him may still tell of the session that has just ended, and so may the state.
    return not _STAYING.isdisjoint(services.said(host, [*_STATE, "--", user]).split())


def start_again(host: Host, fields: tuple[str, ...]) -> None:
    """Start the sound servers of a user again, unless he has gone: then his next login does.

    Raises:
        FailedError: one does not start; its reference is `GONE`, because silence must not keep a domain from
            starting for ever.
        ValueError: the record is none.
    """
    user, *units = fields
    if not (user.isascii() and user.isdigit() and set(units) <= set(_UNITS)):
        raise ValueError("not sound servers of a user")
    if not _is_there(host, user):
        return
    if host.run([*_systemctl(user), "start", "--", *units], DEADLINE) != 0:
        names = " ".join(units)
        raise FailedError(
            GONE, f"{names} of user {user} do not start again", "start them by hand, or log in anew"
        )


def _is_there(host: Host, user: str) -> bool:
    """Tell whether a user has a service manager."""
    return host.exists(f"/run/user/{user}/systemd/private")


def _systemctl(user: str) -> list[str]:
    """Return how systemctl is run as a user, for his own service manager."""
    as_user = [_SETPRIV, f"--reuid={user}", f"--regid={_NO_GROUP}", "--clear-groups"]
    # Only root may become somebody, even oneself.
    become = [] if user == str(os.geteuid()) else as_user
    return [*become, _ENV, f"XDG_RUNTIME_DIR=/run/user/{user}", services.SYSTEMCTL, "--user"]


UNDO = {UNITS: start_again}
