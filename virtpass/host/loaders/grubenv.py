"""The environment block of GRUB: variables that GRUB reads at boot and can write where its drivers let it."""

from virtpass.host.boot import Choice
from virtpass.host.facts import HostFacts
from virtpass.host.mounts import mount_of
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

_NEXT = "next_entry"
# File systems on which GRUB itself can write: only there a choice for one boot is forgotten in that boot.
_WRITABLE_TO_GRUB = ("ext2", "ext3", "ext4", "xfs", "vfat")


def variables(content: bytes) -> dict[str, str]:
    """Return the variables of an environment block; lines that are none are passed over."""
    found = {}
    for line in content.decode("utf-8", "surrogateescape").split("\n"):
        name, is_assignment, value = line.partition("=")
        if is_assignment and not name.startswith("#"):
            found[name] = _unescaped(value)
    return found


def choice(facts: HostFacts, identifier: str, path: str) -> Choice:
    """Return what makes the next boot take an entry: the menu empties the variable when it reads it.

    Args:
        facts: the host.
        identifier: the entry.
        path: the environment block.
    """
    prefix = "grub2" if facts.has_program("grub2-reboot") else "grub"
    command = Command(
        (f"{prefix}-reboot", identifier),
        "boots the trial once",
        outputs=(path,),
        revert=(f"{prefix}-editenv", path, "unset", _NEXT),
    )
    return Choice(identifier, command)


def chosen(facts: HostFacts, path: str) -> str | None:
    """Return the entry that the next boot alone takes; see `virtpass.host.boot.Loader.chosen`.

    Args:
        facts: the host.
        path: the environment block.
    """
    content = facts.host.read_bytes(path)
    if content is None:
        # Where the directory can be listed, a block that is not seen is not there.
        directory, _, name = path.rpartition("/")
        names = facts.host.names(directory)
        return "" if names and name not in names else None
    return variables(content).get(_NEXT, "")


def _unescaped(value: str) -> str:
    """Take the backslashes off that protect backslashes."""
    result = ""
    is_escaped = False
    for character in value:
        if character == "\\" and not is_escaped:
            is_escaped = True
            continue
        result += character
        is_escaped = False
    return result


def refuse_unforgetting(facts: HostFacts, path: str) -> None:
    """Refuse a trial where GRUB could not forget that it was to boot it.

    Args:
        facts: the host.
        path: the environment block, or any file beside it.

    Raises:
        RefusedError: GRUB cannot write there, or nobody knows.
    """
    mount = mount_of(facts.host, path)
    if mount is None or mount.kind not in _WRITABLE_TO_GRUB or mount.is_stacked:
        kind = "unknown" if mount is None else f"{mount.kind} on {mount.source}"
        raise RefusedError(
            "no-trial",
            f"GRUB cannot write where its environment is ({kind}), so it would boot the trial for ever",
            "apply without --trial; the fallback entry is the way back",
        )
