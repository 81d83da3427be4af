"""Keeps a domain's pinned CPUs free of the host's programs.

systemd does it: the top units get the property AllowedCPUs, at run time only. Several domains may do so at
once. So a record holds what was allowed before the first of them (the base) and the CPUs of its own domain,
and what is allowed is always the base without the CPUs of all domains on record. A value that is none of
these has been set by somebody else, and stays. Interrupts follow (`virtpass.binding.interrupts`).

Record (fields after the kind):

    allowed-cpus UUID CPUS UNIT BASE DROP-IN    an empty BASE is no restriction; DROP-IN: whether it had one

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding.cpu_lists import parse_list, render_list
from virtpass.binding.demand import Demand
from virtpass.binding.journal import Journal, is_uuid
from virtpass.binding.others import ALLOWED, effects_of_others, isolated_by_others
from virtpass.binding.processors import is_union, processors
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host

# All that runs on a host but its virtual machines, which are in machine.slice.
UNITS = ("user.slice", "system.slice", "init.scope")

_CGROUPS = "/sys/fs/cgroup"
_SYSTEMCTL = "/usr/bin/systemctl"
# Where systemd keeps properties that are set at run time; the second is for init.scope, which has no file.
_DROP_INS = ("/run/systemd/system.control", "/run/systemd/transient")
_DROP_IN = "50-AllowedCPUs.conf"
_SYSTEMCTL_DEADLINE = 15.0
# systemd answers before it writes to the control group.
_SETTLING = 5.0
BOUND = len(UNITS) * (_SYSTEMCTL_DEADLINE + _SETTLING)


class Isolation:
    """What is to be changed.

    Attributes:
        cpus: the CPUs that the domain is to have for itself.
        rest: those that the host's programs keep.
        units: for each unit its base, whether it had a drop-in, and what it is to keep.
    """

    def __init__(self, cpus: frozenset[int], rest: frozenset[int]) -> None:
        self.cpus = cpus
        self.rest = rest
        self.units: dict[str, tuple[str, bool, frozenset[int]]] = {}

    def __str__(self) -> str:
        """A sentence for people."""
        cpus, rest = render_list(self.cpus), render_list(self.rest)
        return f"keep the host's programs off CPUs {cpus} (left to them: {rest})"


def plan(host: Host, uuid: str, demand: Demand) -> Isolation:
    """Work out what to keep off the domain's CPUs, and how; writes nothing.

    Raises:
        RefusedError: nothing is pinned, or it cannot be done on this host or beside other domains.
    """
    cpus = demand.vcpu_pins
    _refuse_impossible(host, uuid, cpus)
    online = processors(host, "online")
    isolation = Isolation(cpus, online.difference(cpus, *isolated_by_others(host, uuid)))
    for unit in UNITS:
        base, had_drop_in = _unit_base(host, uuid, unit)
        left = _allowed(host, base).difference(cpus, *_shared(host, uuid, unit, base))
        if not left & online:
            raise RefusedError(
                "no-cpus-left",
                f"CPUs {render_list(cpus)} are all that {unit} may run on: the host would have none",
                "pin the domain to fewer CPUs, or set isolate-cpus=no",
            )
        isolation.units[unit] = (base, had_drop_in, left)
        isolation.rest &= left
    return isolation


def take(host: Host, journal: Journal, isolation: Isolation) -> list[str]:
    """Keep programs off, recorded first.

    Returns:
        a sentence of what was done.

    Raises:
        FailedError: systemd refused or did not do it.
        VirtpassError: it could not be recorded.
    """
    uuid, cpus = journal.uuid, render_list(isolation.cpus)
    journal.add(
        *(
            (ALLOWED, uuid, cpus, unit, base, "yes" if had_drop_in else "no")
            for unit, (base, had_drop_in, _) in isolation.units.items()
        )
    )
    for unit, (_, _, left) in isolation.units.items():
        _set(host, unit, left)
    return [str(isolation)]


def allow_again(host: Host, fields: tuple[str, ...]) -> None:
    """Let a unit run on a domain's CPUs again, but not on those of other domains.

    Raises:
        FailedError: systemd refused or did not do it.
        ValueError: the record is none.
    """
    uuid, cpus, unit, base, had_drop_in = fields
    if unit not in UNITS or not is_uuid(uuid):
        raise ValueError("not a unit that virtpass changes")
    others = _shared(host, uuid, unit, base)
    allowed = _allowed(host, base)
    present = _present(host, unit)
    if present is not None and not _may_be_left(present, allowed, [*others, parse_list(cpus)]):
        return
    target = allowed.difference(*others)
    if others:
        if present != target:
            _set(host, unit, target)
        return
    if present not in (None, target) or (had_drop_in == "no" and _has_drop_in(host, unit)):
        # First all CPUs by name: the kernel keeps the list of a group with processes when it is to become
        # empty (systemd issue 43846).
        _set(host, unit, target)
        if base == "":
            _systemctl(host, unit, "")
    if had_drop_in == "no":
        # What systemd has in memory is what the unit's own files say: nothing has to be loaded again.
        for directory in _DROP_INS:
            host.remove_own(f"{directory}/{unit}.d", _DROP_IN)
            host.remove_directory(f"{directory}/{unit}.d")


UNDO = {ALLOWED: allow_again}


def _refuse_impossible(host: Host, uuid: str, cpus: frozenset[int]) -> None:
    if not cpus:
        raise RefusedError(
            "not-pinned",
            "the policy isolate-cpus=yes needs virtual CPUs that are pinned",
            "add <cputune><vcpupin vcpu='0' cpuset='2'/>...</cputune> to the domain, or set isolate-cpus=no",
        )
    if missing := cpus - processors(host, "online"):
        raise RefusedError(
            "no-such-cpu",
            f"the domain is pinned to CPUs {render_list(missing)}, which are not online on this host",
            "correct its <cputune>",
        )
    if not host.exists("/run/systemd/system") or not host.exists(_SYSTEMCTL):
        raise RefusedError(
            "no-systemd", "isolate-cpus=yes needs a host that runs systemd", "set isolate-cpus=no"
        )
    if "cpuset" not in (host.read(f"{_CGROUPS}/cgroup.controllers") or "").split():
        raise RefusedError(
            "no-cgroup-v2",
            "isolate-cpus=yes needs control groups of version 2 with cpuset, which this host does not have",
            "boot without systemd.unified_cgroup_hierarchy=0, or set isolate-cpus=no",
        )
    for name, fields in effects_of_others(host, uuid, ALLOWED, 5):
        if shared := cpus & parse_list(fields[1]):
            raise RefusedError(
                "cpus-taken",
                f"CPUs {render_list(shared)} are kept for the domain {name} already",
                "pin the domains to different CPUs, or shut that one down first",
            )


def _unit_base(host: Host, uuid: str, unit: str) -> tuple[str, bool]:
    """Return what a unit may run on without any domain, and whether it has a drop-in of somebody else."""
    present = _present(host, unit)
    for _, (_, _, known, base, had_drop_in) in effects_of_others(host, uuid, ALLOWED, 5):
        sets = _shared(host, uuid, unit, base)
        if known == unit and (present is None or _may_be_left(present, _allowed(host, base), sets)):
            return base, had_drop_in == "yes"
    everything = processors(host, "possible")
    base = "" if present is None or present >= everything else render_list(present)
    return base, _has_drop_in(host, unit)


def _shared(host: Host, uuid: str, unit: str, base: str) -> list[frozenset[int]]:
    """Return what other domains take of the same base; a hook that was killed has not recorded each unit."""
    found = [fields for _, fields in effects_of_others(host, uuid, ALLOWED, 5) if fields[2:4] == (unit, base)]
    return [parse_list(fields[1]) for fields in found]


def _allowed(host: Host, base: str) -> frozenset[int]:
    return parse_list(base) if base else processors(host, "possible")


def _may_be_left(present: frozenset[int], allowed: frozenset[int], sets: list[frozenset[int]]) -> bool:
    """Tell whether a unit may have a value while domains come and go."""
    return present <= allowed and is_union(allowed - present, [one & allowed for one in sets])


def _present(host: Host, unit: str) -> frozenset[int] | None:
    """Return what a unit may run on now; None when nothing runs in it."""
    group = f"{_CGROUPS}/{unit}"
    if not host.exists(group):
        return None
    text = host.read(f"{group}/cpuset.cpus")
    return parse_list(text) if text else processors(host, "possible")


def _has_drop_in(host: Host, unit: str) -> bool:
    return any(host.exists(f"{directory}/{unit}.d/{_DROP_IN}") for directory in _DROP_INS)


def _set(host: Host, unit: str, cpus: frozenset[int]) -> None:
    """Let a unit run on some CPUs only, and see that it is so.

    Raises:
        FailedError: systemd refused or did not do it.
    """
    _systemctl(host, unit, render_list(cpus))
    end = time.monotonic() + _SETTLING
    pause = 0.001
    while _present(host, unit) not in (None, cpus):
        if time.monotonic() >= end:
            what = f"systemd did not limit {unit} to CPUs {render_list(cpus)}"
            raise FailedError("allowed-cpus", what, "look at its log: journalctl -b _PID=1")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _systemctl(host: Host, unit: str, value: str) -> None:
    argv = [_SYSTEMCTL, "set-property", "--runtime", unit, f"AllowedCPUs={value}"]
    status = host.run(argv, _SYSTEMCTL_DEADLINE)
    if status != 0:
        how = "did not end" if status is None else f"failed with status {status}"
        raise FailedError("allowed-cpus", f"systemctl set-property {unit} AllowedCPUs={value} {how}")
