"""libvirt where there may be none: what it would tell, the kernel tells less well."""

from collections.abc import Callable

from virtpass.system.errors import UnavailableError
from virtpass.system.libvirt import Connection


def connected_if_there(uri: str, say: Callable[[str], None], instead: str) -> Connection | None:
    """Connect to libvirt to ask which domains run.

    Args:
        uri: the libvirt connection.
        say: told, in one sentence without a full stop, when nobody is there.
        instead: what is looked at then, a clause for that sentence.

    Returns:
        the connection, to be closed by the caller; None when there is no daemon, or no python3-libvirt.

    Raises:
        UnavailableError: there is a daemon, but it does not answer: it may wait for a hook that is at work
            just now.
        PermissionDeniedError: this user may not connect.
        UsageError: the URI is none.
    """
    try:
        return Connection.open(uri)
    except UnavailableError as error:
        if error.reference == "no-answer":
            raise
        say(f"libvirt does not say which domains run ({error.what}): {instead}")
        return None
