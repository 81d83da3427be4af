"""Which lines of a hand-kept boot menu start the Linux of this host: by the root that they name."""

from virtpass.host import tokens
from virtpass.host.facts import HostFacts

# Arguments that name the root, or the part of its file system.
_ROOT = ("root", "rootflags", "cryptdevice", "rd.luks.name")


def root_token(facts: HostFacts) -> str:
    """Return the argument that names the root of the running system; empty when it is not known."""
    return next((token for token in facts.running if token.startswith("root=")), "")


def starts_this_root(found: tuple[str, ...], facts: HostFacts) -> bool:
    """Tell whether a command line has the same root as the running system; with nothing known all do."""
    return _root(found) == _root(facts.running) or not root_token(facts)


def _root(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(token for token in words if tokens.key(token) in _ROOT))
