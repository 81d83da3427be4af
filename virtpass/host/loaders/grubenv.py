"""The environment block of GRUB: variables that GRUB reads at boot and can write where its drivers let it."""

from virtpass.host.facts import HostFacts
from virtpass.host.mounts import mount_of
from virtpass.system.errors import RefusedError

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
