"""Attributes of the kernel that a hand-over changes, and puts back as they were.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding import engine
from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

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
        FailedError: they could not be recorded, or the kernel refused one or did not answer.
    """
    changes = _changes(host, wanted)
    if not changes:
        return
    journal.add(*((ATTRIBUTE, path, before, value) for path, before, value in changes))
    for path, _, value in changes:
        try:
            host.write_attribute(path, value, DEADLINE)
        except OSError as error:
            raise FailedError("attribute", f"{path} cannot be set to {value}: {error.strerror}") from error


def different(host: Host, wanted: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return path and value of those attributes that `change` would change.

    Raises:
        FailedError: the kernel does not answer.
    """
    return [(path, value) for path, _, value in _changes(host, wanted)]


def _changes(host: Host, wanted: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return path, present value and new value of attributes that are there and say something else."""
    found = []
    for path, value in wanted:
        before = read(host, path)
        if before is not None and before != value:
            found.append((path, before, value))
    return found


def read(host: Host, path: str) -> str | None:
    """Read an attribute for which the kernel may wait for a driver; None when it cannot be read.

    Raises:
        FailedError: the kernel does not answer.
    """
    try:
        return host.read_attribute(path, DEADLINE)
    except NoAnswer as error:
        raise FailedError("no-answer", f"{path} cannot be read: a driver holds it") from error
    except OSError:
        return None


def put_back(host: Host, fields: tuple[str, ...]) -> None:
    """Put an attribute back, unless somebody else has changed it since, or it has gone.

    Raises:
        OSError: the kernel refused.
        FailedError: it does not answer; or it is as it was, and a killed hook's child may still change it.
        ValueError: the record is none.
    """
    path, before, value = fields
    if not is_known(path):
        raise ValueError("not an attribute that virtpass changes")
    present = read(host, path)
    if present == before:
        # Those that a killed hook has left are waited for before anything is given back, but not for ever.
        # Which attribute they write to nobody knows: nothing that is written here would surely come last.
        if engine.has_orphans(host):
            raise FailedError(
                "attribute",
                f"{path} is as it was, but what a killed hook has left may still write to it",
                "run virtpass recover in some minutes",
            )
        # The last one may have come between the two looks.
        present = read(host, path)
    # Where it is as it was, only if a write of this process is still on its way, for which this one waits.
    if present == value or (present == before and host.may_be_written_yet(path)):
        try:
            host.write_attribute(path, before, DEADLINE)
        except NoAnswer:
            raise
        except OSError:
            if host.exists(path):
                raise
            return  # its device was pulled out since it was read
        if path.startswith(f"{_CONSOLES}/") and before == "1" and read(host, path) == "0":
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
        if other != path and read(host, other) == "1":
            host.write_attribute(other, "0", DEADLINE)


def is_known(path: str) -> bool:
    """Tell whether a path is that of an attribute which virtpass may change."""
    for head, tail in _KNOWN:
        name = path[len(head) : -len(tail)]
        if path == head + name + tail and "/" not in name and name not in ("", ".", ".."):
            return True
    return False


UNDO = {ATTRIBUTE: put_back}
