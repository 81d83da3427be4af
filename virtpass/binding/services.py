"""Services of the system that are stopped for a hand-over, with what depends on them, and started again.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.binding import owners
from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError
from virtpass.system.host import Host

SYSTEMCTL = "/usr/bin/systemctl"
UNIT = "unit"

# Seconds for all services of a hand-over together: systemd itself ends one that does not end, after 90 s
# unless the service says otherwise, and those that are stopped together have that time together.
STOP_DEADLINE = 100.0
_START_DEADLINE = 60.0
_ASK_DEADLINE = 10.0

# Which units go down with a unit: those that have Requires=, BindsTo= or PartOf= for it.
_TAKEN = ("RequiredBy", "BoundBy", "ConsistsOf")
_ACTIVE = frozenset(("active", "activating", "reloading"))
# How far such chains are followed.
_DEEPEST = 8


def stop(host: Host, journal: Journal, units: list[str], deadline: float) -> None:
    """Stop services together; they and what goes down with them are on record first.

    Args:
        host: the host.
        journal: where they are recorded.
        units: the services.
        deadline: seconds for all of them.

    Raises:
        FailedError: not all could be stopped in time, or they could not be recorded.
    """
    # What depends on a service is recorded before it, and so started after it.
    journal.add(*((UNIT, unit) for unit in (*reversed(taken_along(host, units)), *units)))
    if host.run([SYSTEMCTL, "stop", "--", *units], deadline) != 0:
        names = ", ".join(units)
        raise FailedError("service", f"{names} cannot be stopped", f"look at: systemctl status {names}")


def taken_along(host: Host, units: list[str]) -> list[str]:
    """Return the active services that go down when others are stopped, each after those that it needs."""
    known = set(units)
    found: list[str] = []
    wanted = units
    for _ in range(_DEEPEST):
        below: list[str] = []
        for unit, is_active, dependents in _properties(host, wanted):
            if unit not in units and not is_active:
                continue
            if unit not in units and owners.is_unit(unit):
                found.append(unit)
            below += [one for one in dependents if one not in known and one not in below]
        if not below:
            break
        known.update(below)
        wanted = below
    return found


def _properties(host: Host, units: list[str]) -> list[tuple[str, bool, list[str]]]:
    """Return the name of each unit, whether it is active, and which units go down with it."""
    names = [word for name in ("Id", "ActiveState", *_TAKEN) for word in ("-p", name)]
    found = []
    try:
        _, output = host.run_program([SYSTEMCTL, "show", *names, "--", *units], {}, _ASK_DEADLINE)
    except OSError:
        return []
    for block in output.split("\n\n"):
        values = {}
        for line in block.splitlines():
            key, _, value = line.partition("=")
            values[key] = value
        dependents = [one for key in _TAKEN for one in values.get(key, "").split()]
        found.append((values.get("Id", ""), values.get("ActiveState") in _ACTIVE, dependents))
    return found


def host_is_stopping(host: Host) -> bool:
    """Tell whether the host is being shut down: services that are started then are stopped at once.

    systemd says so from the moment at which it has accepted to shut down, hence also when domains are shut
    down for that.
    """
    try:
        _, output = host.run_program([SYSTEMCTL, "is-system-running"], {}, _ASK_DEADLINE)
    except OSError:
        return False
    return output == "stopping"


def start_again(host: Host, fields: tuple[str, ...]) -> None:
    """Start a service that was stopped.

    Raises:
        FailedError: it does not start.
        ValueError: the record is none.
    """
    (unit,) = fields
    if not owners.is_unit(unit):
        raise ValueError("not the name of a service")
    # Some have been started so often that systemd would refuse.
    host.run([SYSTEMCTL, "reset-failed", "--", unit], _START_DEADLINE)
    if host.run([SYSTEMCTL, "start", "--", unit], _START_DEADLINE) != 0:
        raise FailedError("service", f"{unit} does not start again", f"look at: systemctl status {unit}")


UNDO = {UNIT: start_again}
