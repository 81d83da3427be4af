"""Which lines of a hand-kept boot menu start the Linux of this host: by the root that they name."""

from collections.abc import Iterable

from virtpass.host import tokens
from virtpass.host.facts import HostFacts
from virtpass.system.errors import RefusedError

# Arguments that name the root, or the part of its file system.
_ROOT = ("root", "rootflags", "cryptdevice", "rd.luks.name")


def root_token(facts: HostFacts) -> str:
    """Return the argument that names the root of the running system; empty when it is not known."""
    return next((token for token in facts.root_words if token.startswith("root=")), "")


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


def starts_this_root(found: tuple[str, ...], facts: HostFacts) -> bool:
    """Tell whether a command line has the same root as the running system; with nothing known all do."""
    return _root(found) == _root(facts.root_words) or not root_token(facts)


def _root(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(token for token in words if tokens.key(token) in _ROOT))
