"""A domain's policy as users write it, ``KEY=VALUE``, and what each value means and costs."""

from collections.abc import Iterable, Mapping

from virtpass.binding.policy import DEFAULT_POLICY, WAIT, Policy, known_policy, parse_policy
from virtpass.system.errors import UsageError

_MEANINGS = {
    "display": {
        "refuse": "a card that the host uses, or its last console, stays, and the domain does not start",
        "hand-over": "the desktop session on the card ends when the domain starts; unsaved work is lost",
    },
    "companions": {
        "bind": "a card's other functions in its group go to vfio-pci too, and the host is without them",
        "free": "a card's other functions in its group stay without driver; a hot reset may not be possible",
    },
    "huge-pages": {
        "no": "no huge pages are reserved for the domain",
        "yes": "the domain's memory is reserved in huge pages; the host is without it while the domain runs",
    },
    "isolate-cpus": {
        "no": "programs of the host may run on the CPUs that the domain is pinned to",
        "yes": "while the domain runs, programs of the host are kept off the CPUs that it is pinned to",
    },
    "governor": {
        "keep": "the CPUs run as fast as the host lets them",
        "performance": "the CPUs that the domain is pinned to, or else all, run at full speed: more power",
    },
}


def parse_settings(words: Iterable[str]) -> dict[str, str]:
    """Parse settings of a policy as users write them.

    Args:
        words: ``KEY=VALUE`` each; ``KEY=`` alone stands for the default.

    Returns:
        the values by key, as `parse_policy` takes them.

    Raises:
        UsageError: a word is no setting, a key is given twice, or a key or value is not known.
    """
    defaults = DEFAULT_POLICY.attributes()
    settings: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator:
            raise UsageError("policy", f"'{word}' is not KEY=VALUE", f"known: {known_policy()}")
        if key in settings:
            raise UsageError("policy", f"policy {key} is given twice", "give each key once")
        settings[key] = value or defaults.get(key, value)
    parse_policy(settings)
    return settings


def changed(policy: Policy, settings: Mapping[str, str]) -> Policy:
    """Return a policy with some values replaced.

    Raises:
        UsageError: a key or a value is not known.
    """
    return parse_policy({**policy.attributes(), **settings})


def unlike(policy: Policy, other: Policy) -> dict[str, str]:
    """Return those values of a policy, by key, in which it differs from another one."""
    theirs = other.attributes()
    return {key: value for key, value in policy.attributes().items() if value != theirs[key]}


def meaning(key: str, value: str) -> str:
    """Return what a known value of a key means, and what it costs: a sentence without its full stop."""
    if key != WAIT:
        return _MEANINGS[key][value]
    if value == "0":
        return "the start fails when a program still uses a device right after it was asked to let go"
    return f"programs that were asked to let go of a device have {value} s for it, then the start fails"
