"""Releases that had to wait too long for the lock: whoever has the lock makes them before it lets go.

A hand-over may keep the lock for longer than libvirt should wait for the release of another domain. Such a
release leaves a mark and ends. The hook or the command that has the lock looks for marks before it lets go;
so does the next one, of whichever domain, before it does anything else.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.journal import is_uuid
from virtpass.system.host import Host

_DIRECTORY = "/run/virtpass/released"


def mark(host: Host, uuid: str) -> None:
    """Leave the release of a domain to others.

    Args:
        host: where the mark lies.
        uuid: the domain, as `is_uuid` has it: this becomes the name of a file.

    Raises:
        VirtpassError: it could not be marked.
    """
    host.append_own(_DIRECTORY, uuid, b"")


def marked(host: Host) -> list[str]:
    """Return the domains whose release was left to others."""
    return [name for name in host.names(_DIRECTORY) if is_uuid(name)]


def unmark(host: Host, uuid: str) -> None:
    """Take the mark away: the release was made, or the domain starts anew.

    Raises:
        VirtpassError: it stays.
    """
    if is_uuid(uuid) and host.exists(f"{_DIRECTORY}/{uuid}"):
        host.remove_own(_DIRECTORY, uuid)
