"""The frequency governor of a domain's CPUs.

Record (fields after the kind):

    governor UUID POLICY BASE    POLICY as in /sys/devices/system/cpu/cpufreq, which CPUs may share

Imported by the hook: the imports here are on its allow-list.
"""

import time

from virtpass.binding.cpu_lists import render_list
from virtpass.binding.demand import Demand
from virtpass.binding.effects import gone
from virtpass.binding.journal import Journal, is_uuid
from virtpass.binding.others import effects_of_others
from virtpass.binding.processors import PROCESSORS, processors
from virtpass.system.errors import FailedError
from virtpass.system.host import Host

GOVERNOR = "governor"
PERFORMANCE = "performance"

_DEADLINE = 10.0
# Seconds for all governors of a domain.
BOUND = 30.0


class Change:
    """What is to be changed.

    Attributes:
        policies: the governor of each frequency policy without any domain.
        sentence: what is to be done, or why nothing is.
    """

    def __init__(self, policies: dict[str, str], sentence: str) -> None:
        self.policies = policies
        self.sentence = sentence


def plan(host: Host, uuid: str, demand: Demand) -> Change:
    """Work out which governors to change; that there are none is no reason to refuse a start."""
    cpus = demand.pinned or processors(host, "online")
    recorded = {fields[1]: fields[2] for _, fields in effects_of_others(host, uuid, GOVERNOR, 3)}
    policies: dict[str, str] = {}
    seen = set()
    for cpu in sorted(cpus):
        policy = host.link_name(f"{PROCESSORS}/cpu{cpu}/cpufreq")
        if policy is None or not _is_policy(policy):
            continue
        known = (host.read(f"{_directory(policy)}/scaling_available_governors") or "").split()
        present = host.read(_path(policy))
        if PERFORMANCE not in known or present is None:
            continue
        seen.add(policy)
        # Who finds what another domain has set shares it: the last of them puts it back.
        if present != PERFORMANCE:
            policies[policy] = present
        elif policy in recorded:
            policies[policy] = recorded[policy]
    if not seen:
        return Change({}, f"no governor {PERFORMANCE} on this host: the CPUs keep theirs")
    return Change(policies, f"set the governor {PERFORMANCE} for CPUs {render_list(cpus)}")


def take(host: Host, journal: Journal, change: Change) -> list[str]:
    """Set the governors, recorded first.

    Returns:
        a sentence of what was done.

    Raises:
        FailedError: the kernel refused one, or there was no time for all.
        VirtpassError: they could not be recorded.
    """
    if change.policies:
        journal.add(*((GOVERNOR, journal.uuid, policy, base) for policy, base in change.policies.items()))
    end = time.monotonic() + BOUND
    for policy in change.policies:
        try:
            if host.read(_path(policy)) != PERFORMANCE:
                left = end - time.monotonic()
                if left <= 0:
                    # A write without time to answer would be made, and pass for one that hangs.
                    what = f"the governor of {policy} is not set: the others have taken {BOUND:.0f} s"
                    raise FailedError("governor", what)
                host.write_attribute(_path(policy), PERFORMANCE, min(_DEADLINE, left))
        except OSError as error:
            what = f"the governor of {policy} cannot be set to {PERFORMANCE}: {error.strerror}"
            raise FailedError("governor", what) from error
    return [change.sentence]


def put_back(host: Host, fields: tuple[str, ...]) -> None:
    """Put a governor back, unless another domain needs it or somebody else has changed it since.

    Raises:
        OSError: the kernel refused.
        FailedError: its reference is `GONE`: the kernel does not know the governor any more.
        ValueError: the record is none.
    """
    uuid, policy, base = fields
    if not (is_uuid(uuid) and _is_policy(policy)):
        raise ValueError("not a governor")
    shared = [known for _, (_, known, _) in effects_of_others(host, uuid, GOVERNOR, 3)]
    if policy not in shared and host.read(_path(policy)) == PERFORMANCE != base:
        try:
            host.write_attribute(_path(policy), base, _DEADLINE)
        except OSError as error:
            raise gone(f"the governor of {policy} cannot be {base} again", error) from error


UNDO = {GOVERNOR: put_back}


def _is_policy(name: str) -> bool:
    number = name.removeprefix("policy")
    return number != name and number.isascii() and number.isdigit()


def _directory(policy: str) -> str:
    return f"{PROCESSORS}/cpufreq/{policy}"


def _path(policy: str) -> str:
    return f"{_directory(policy)}/scaling_governor"
