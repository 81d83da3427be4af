"""What a domain's metadata element may say: written by `virtpass.domain`, obeyed by the hook.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.system.errors import UsageError

NAMESPACE = "urn:virtpass:passthrough:1"

# Values that each key of the policy may have; the first is the default. `virtpass.domain.policy` says what
# each means and costs.
KNOWN_POLICY = {
    "display": ("refuse", "hand-over"),
    "companions": ("bind", "free"),
    "huge-pages": ("no", "yes"),
    "isolate-cpus": ("no", "yes"),
    "governor": ("keep", "performance"),
}
# One key more, with whole seconds from 0 to this.
WAIT = "wait"
LONGEST_WAIT = 300
_DEFAULT_WAIT = 15

POLICY_KEYS = (*KNOWN_POLICY, WAIT)


class Policy(tuple[str, ...]):
    """What the hook may do with a domain: a value for each key.

    Its items are the values as the XML has them, in the order of `POLICY_KEYS`; without arguments, the
    defaults. `parse_policy` makes one from attributes.
    """

    __slots__ = ()

    def __new__(
        cls,
        display: str = KNOWN_POLICY["display"][0],
        companions: str = KNOWN_POLICY["companions"][0],
        huge_pages: str = KNOWN_POLICY["huge-pages"][0],
        isolate_cpus: str = KNOWN_POLICY["isolate-cpus"][0],
        governor: str = KNOWN_POLICY["governor"][0],
        wait: int = _DEFAULT_WAIT,
    ) -> "Policy":
        """Hold the values together; `parse_policy` checks them."""
        return super().__new__(cls, (display, companions, huge_pages, isolate_cpus, governor, str(wait)))

    @property
    def display(self) -> str:
        """``hand-over``: a card that the host's desktop uses is taken from it; ``refuse``: it is not."""
        return self[0]

    @property
    def companions(self) -> str:
        """``bind``: a card's other functions in the group go to vfio-pci; ``free``: they have no driver."""
        return self[1]

    @property
    def huge_pages(self) -> str:
        """``yes``: the pages for the domain's memory are reserved when it starts."""
        return self[2]

    @property
    def isolate_cpus(self) -> str:
        """``yes``: the host's programs are kept off the CPUs that the domain is pinned to."""
        return self[3]

    @property
    def governor(self) -> str:
        """``performance``: CPUs run at full speed while the domain does; ``keep``: as the host has them."""
        return self[4]

    @property
    def wait(self) -> int:
        """Seconds to wait for programs to let go of a device."""
        return int(self[5])

    def attributes(self) -> dict[str, str]:
        """Return all keys with their values, as `parse_policy` takes them."""
        return dict(zip(POLICY_KEYS, self, strict=True))


DEFAULT_POLICY = Policy()


def parse_policy(attributes: dict[str, str]) -> Policy:
    """Return the policy that the attributes of a policy element make; a key that is missing has its default.

    Args:
        attributes: values by key.

    Raises:
        UsageError: a key or a value is not known.
    """
    values = DEFAULT_POLICY.attributes()
    for key, value in attributes.items():
        if not _is_known(key, value):
            why = "" if key in values else f": there is no key '{key}'"
            raise UsageError("policy", f"policy {key}={value} is not known{why}", f"known: {known_policy()}")
        values[key] = value
    return tuple.__new__(Policy, values.values())


def known_policy() -> str:
    """Return all keys with all their values, in one line for a user."""
    choices = [f"{key}={'|'.join(values)}" for key, values in KNOWN_POLICY.items()]
    return ", ".join((*choices, f"{WAIT}=0..{LONGEST_WAIT} (seconds)"))


def _is_known(key: str, value: str) -> bool:
    if key != WAIT:
        return value in KNOWN_POLICY.get(key, ())
    # One spelling for each number: no sign, blank, leading zero, nor digits of other scripts.
    return len(value) <= len(str(LONGEST_WAIT)) and value in map(str, range(LONGEST_WAIT + 1))
