"""Attributes of the kernel that a hand-over changes, and puts back as they were.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError
from virtpass.system.host import Host

DEADLINE = 10.0

ATTRIBUTE = "attribute"

_CONSOLES = "/sys/class/vtconsole"

# What may be put back: the directory above any names, and how the rest of the path ends.
_KNOWN = (
    ("/sys/bus/pci/devices/", "/power/control"),
    ("/sys/bus/pci/devices/", "/d3cold_allowed"),
    ("/sys/class/vtconsole/", "/bind"),
)


def change(host: Host, journal: Journal, wanted: list[tuple[str, str]]) -> None:
    """Change attributes; those that say what is wanted already, or are not there, stay.

    Args:
        host: the host.
        journal: where they are recorded first, as they were.
        wanted: path and value of each.

    Raises:
        FailedError: they could not be recorded, or the kernel refused one.
    """
    changes = [
        (path, before, value) for path, value in wanted if (before := host.read(path)) not in (None, value)
    ]
    if not changes:
        return
    journal.add(*((ATTRIBUTE, path, before or "", value) for path, before, value in changes))
    for path, _, value in changes:
        try:
            host.write_attribute(path, value, DEADLINE)
        except OSError as error:
            raise FailedError("attribute", f"{path} cannot be set to {value}: {error.strerror}") from error


def put_back(host: Host, fields: tuple[str, ...]) -> None:
    """Put an attribute back, unless somebody else has changed it since, or it has gone.

    Raises:
        OSError: the kernel refused.
        ValueError: the record is none.
    """
    path, before, value = fields
    if not is_known(path):
        raise ValueError("not an attribute that virtpass changes")
    # Also where it is as it was: a write of a hook that was killed may still be on its way, and this one
    # waits for it.
    if host.read(path) in (value, before):
        host.write_attribute(path, before, DEADLINE)
        if path.startswith(f"{_CONSOLES}/") and before == "1" and host.read(path) == "0":
            _take_consoles(host, path)


def _take_consoles(host: Host, path: str) -> None:
    """Give the text consoles to a console driver by taking them from the other one.

    The kernel ignores that one is to be bound where its first console driver is gone, such as that of VGA,
    which drivers of displays remove. Unbinding the other one works.

    Raises:
        OSError: the kernel refused.
    """
    for name in host.names(_CONSOLES):
        other = f"{_CONSOLES}/{name}/bind"
        if other != path and host.read(other) == "1":
            host.write_attribute(other, "0", DEADLINE)


def is_known(path: str) -> bool:
    """Tell whether a path is that of an attribute which virtpass may change."""
    for head, tail in _KNOWN:
        name = path[len(head) : -len(tail)]
        if path == head + name + tail and "/" not in name and name not in ("", ".", ".."):
            return True
    return False


UNDO = {ATTRIBUTE: put_back}
