"""Which kernel command lines start the Linux of this host: those that name its root file system."""

from collections.abc import Iterable
from dataclasses import dataclass

from virtpass.host.facts import HostFacts
from virtpass.system.errors import RefusedError

# The encrypted disk below a root such as /dev/mapper/root, which two systems may both have.
_DISKS = ("cryptdevice", "rd.luks.name")
_SUBVOLUMES = ("subvol=", "subvolid=")


@dataclass(frozen=True, slots=True)
class _Root:
    """What a command line says of its root; all empty when it names none."""

    name: str = ""
    subvolume: str = ""
    disks: frozenset[str] = frozenset()


def starts_this_root(options: Iterable[str], facts: HostFacts) -> bool:
    """Tell whether kernel arguments start the root file system of this host; with nothing known all do."""
    here, found = _root(facts.root_words), _root(options)
    if not here.name:
        return True
    # Of the disks only the kernel command line tells, and the root may be known from /etc/fstab.
    is_same_disk = not here.disks or not found.disks or here.disks == found.disks
    return (here.name, here.subvolume) == (found.name, found.subvolume) and is_same_disk


def root_token(facts: HostFacts) -> str:
    """Return the argument that names the root of this host; empty when it is not known."""
    name = _root(facts.root_words).name
    return f"root={name}" if name else ""


def refuse_mixed(facts: HostFacts, menu: str, lines: Iterable[tuple[str, ...]]) -> None:
    """Refuse a menu in which another system lies on the same file system: lines are found by root= alone.

    Raises:
        RefusedError: a command line has our root=, and another part of the file system.
    """
    root = root_token(facts)
    if any(root in words and not starts_this_root(words, facts) for words in lines):
        raise RefusedError(
            "shared-root",
            f"{menu} starts another system from the same file system ({root})",
            "add the arguments by hand to the right entries",
        )


def the_one(menus: Iterable[str]) -> str:
    """Return the menu that is there; empty when there is none.

    Raises:
        RefusedError: there are several, and nothing tells which one is read.
    """
    found = list(menus)
    if len(found) > 1:
        raise RefusedError(
            "ambiguous-menu", f"more than one boot menu: {', '.join(found)}", "remove those that are not read"
        )
    return found[0] if found else ""


def _root(options: Iterable[str]) -> _Root:
    """Return what names a root file system: the last root=, the subvolume of Btrfs, and the disks below."""
    name = subvolume = ""
    disks = set()
    for token in options:
        key, _, value = token.partition("=")
        if key == "root":
            name = value
        elif key == "rootflags":
            flags = [flag for flag in value.split(",") if flag.startswith(_SUBVOLUMES)]
            kind, _, volume = flags[-1].partition("=") if flags else ("", "", "")
            # With and without a slash before it, it is the same subvolume.
            subvolume = f"{kind}={volume.lstrip('/')}" if flags else ""
        elif key in _DISKS:
            disks.add(token)
    return _Root(name, subvolume, frozenset(disks)) if name else _Root()
