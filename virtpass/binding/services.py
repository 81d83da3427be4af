"""Services that are stopped for a hand-over, with the units that depend on them, and started again.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import errno
import os
import time

from virtpass.binding import owners
from virtpass.binding.journal import Journal
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host

SYSTEMCTL = "/usr/bin/systemctl"
LOGINCTL = "/usr/bin/loginctl"
UNIT = "unit"

# Seconds for all services of a hand-over together: systemd itself ends one that does not end, after 90 s
# unless the service says otherwise, and those that are stopped together have that time together.
STOP_DEADLINE = 100.0
_START_DEADLINE = 60.0
# Of one that is started again: its failures are forgotten first.
START_BOUND = 2 * _START_DEADLINE
ASK_DEADLINE = 10.0

_IS_STOPPING = [SYSTEMCTL, "is-system-running"]
# Without a session it tells of logind itself.
_IS_ABOUT_TO = [LOGINCTL, "show-session", "--value", "-p", "PreparingForShutdown"]

# Which units go down with a unit: those that have Requires=, Requisite=, BindsTo= or PartOf= for it, and
# those that it names itself (UNIT_ATOM_PROPAGATE_STOP in systemd's src/core/unit-dependency-atom.c).
# Versions that do not know one of them leave it out.
_TAKEN = ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo")
# What tells whether a unit can be started again, and after which others.
_COMING = ("CanStart", "Transient", "FragmentPath", "After")
_ACTIVE = frozenset(("active", "activating", "reloading"))
# Units that can be started. A slice comes with what is in it; scopes and devices are made by others.
_KINDS = frozenset(("service", "socket", "path", "timer", "mount", "automount", "swap", "target"))
# Bytes of an answer: more than all units of a host have.
_MOST_SAID = 4 << 20
# How many are named in a message.
_NAMED = 4


def stop(host: Host, journal: Journal, units: list[str], deadline: float) -> None:
    """Stop services together; they and what goes down with them are on record first.

    Args:
        host: the host.
        journal: where they are recorded.
        units: the services.
        deadline: seconds for all of them.

    Raises:
        FailedError: not all could be stopped in time, they could not be recorded, or systemd does not tell
            what depends on them.
    """
    if deadline <= 0:
        raise FailedError("service", f"no time is left to stop {', '.join(units)}")
    found, told = _taken(host, units)
    along = [unit for unit, _ in found if _comes_back(unit, told[unit])]
    # What is recorded first is started last.
    started = _as_systemd_starts([*reversed(units), *along], told)
    journal.add(*((UNIT, unit) for unit in reversed(started)))
    if host.run([SYSTEMCTL, "stop", "--", *units], deadline) != 0:
        what = f"{', '.join(units)} cannot be stopped"
        raise FailedError("service", what, f"look at: systemctl status {' '.join(units)}")


def taken_along(host: Host, units: list[str]) -> list[str]:
    """Return the active units that go down when services are stopped, and come back, the nearest first.

    Raises:
        FailedError: systemd does not tell.
    """
    found, told = _taken(host, units)
    return [unit for unit, _ in found if _comes_back(unit, told[unit])]


def _comes_back(unit: str, values: dict[str, str]) -> bool:
    """Tell whether a unit can be started again when it is down.

    A transient one is gone then, and so is one without a file, such as a mount that somebody has made by
    hand; some can be started by other units only. Versions of systemd leave out properties that they do not
    know.
    """
    is_lasting = values.get("Transient") != "yes" and values.get("FragmentPath") != ""
    return is_startable(unit) and is_lasting and values.get("CanStart") != "no"


def _as_systemd_starts(units: list[str], told: dict[str, dict[str, str]]) -> list[str]:
    """Sort units so that each comes after those that it names in After=, and else as they are.

    systemd itself sorts only what it starts for one unit: those that a command names are begun one by one.
    """
    after = {unit: set(told[unit].get("After", "").split()) - {unit} for unit in units}
    left, found = list(units), []
    while left:
        waiting = set(left)
        # Where they wait for each other, somebody is the first.
        unit = next((one for one in left if after[one].isdisjoint(waiting)), left[0])
        left.remove(unit)
        found.append(unit)
    return found


def refuse_to_take(host: Host, units: list[str], needed: frozenset[str]) -> None:
    """Refuse to stop services when one would go down with them that must not.

    Any unit may have been made to depend on a display manager, by a drop-in of the distribution or of the
    administrator; systemd would stop the libvirt daemon while that waits for the hook.

    Raises:
        RefusedError: naming both.
        FailedError: systemd does not tell.
    """
    for unit, cause in _taken(host, units)[0]:
        if unit in needed:
            raise RefusedError(
                "needed-service",
                f"{unit} would go down with {cause}, and is needed for the hand-over",
                f"take that dependency away; who has it: systemctl list-dependencies --reverse {cause}",
            )


def _taken(host: Host, units: list[str]) -> tuple[list[tuple[str, str]], dict[str, dict[str, str]]]:
    """Find the units that go down with others.

    Returns:
        the active ones, and with which of the others they go, the nearest first; and what systemd tells of
        all that were asked about.

    Raises:
        FailedError: systemd does not tell.
    """
    end = time.monotonic() + ASK_DEADLINE
    causes = {unit: unit for unit in units}
    found: list[tuple[str, str]] = []
    told: dict[str, dict[str, str]] = {}
    wanted = list(units)
    while wanted:
        below: list[str] = []
        answers = ask(host, [SYSTEMCTL], wanted, (*_TAKEN, *_COMING), end - time.monotonic())
        for unit, values in zip(wanted, answers, strict=True):
            name = values["Id"]
            told[unit] = told[name] = values
            causes.setdefault(name, causes[unit])
            if unit not in units and name not in units and is_active(values):
                found.append((name, causes[unit]))
            # Those of one that is not active too: systemd goes through it to them.
            for one in (one for key in _TAKEN for one in values.get(key, "").split()):
                if one not in causes:
                    causes[one] = causes[unit]
                    below.append(one)
        wanted = below
    return found, told


def ask(
    host: Host, systemctl: list[str], units: list[str], names: tuple[str, ...], deadline: float
) -> list[dict[str, str]]:
    """Ask a service manager for properties of units.

    Args:
        host: the host.
        systemctl: the program, with arguments that say which manager.
        units: the units.
        names: which properties, beside those that say which unit it is and whether it is active.
        deadline: seconds.

    Returns:
        the properties of each unit, in the order of the units.

    Raises:
        FailedError: it does not tell, or not all.
    """
    wanted = [word for name in ("Id", "ActiveState", *names) for word in ("-p", name)]
    problem = "systemctl gives no whole answer"
    told: list[dict[str, str]] = []
    try:
        if deadline <= 0:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        argv = [*systemctl, "show", *wanted, "--", *units]
        status, output = host.run_program(argv, {}, deadline, limit=_MOST_SAID)
        if status == 0:
            told = [_values(block) for block in output.split("\n\n")]
    except (OSError, ValueError) as error:
        problem = f"systemctl cannot be asked: {getattr(error, 'strerror', None) or error}"
    if len(told) != len(units) or not all(values.get("Id") for values in told):
        what = f"the state of {', '.join(units[:_NAMED])} is not known: {problem}"
        raise FailedError("service", what, f"try: {' '.join([*systemctl, 'show', *units[:_NAMED]])}")
    return told


def is_active(values: dict[str, str]) -> bool:
    """Tell from the properties of a unit whether it is active, or about to be."""
    return values.get("ActiveState") in _ACTIVE


def _values(block: str) -> dict[str, str]:
    return {key: value for key, _, value in (line.partition("=") for line in block.splitlines())}


def host_is_stopping(host: Host) -> bool:
    """Tell whether the host is being shut down: services that are started then are stopped at once.

    systemd says so from the moment at which it has accepted to shut down, hence also when domains are shut
    down for that.
    """
    return said(host, _IS_STOPPING) == "stopping"


def host_is_about_to_stop(host: Host) -> bool:
    """Tell whether the host will be shut down, before systemd knows, unless something comes between.

    logind waits some seconds for those who have asked it to, as the libvirt daemon does.
    """
    return said(host, _IS_ABOUT_TO) == "yes"


def said(host: Host, argv: list[str]) -> str:
    """Return what systemd's programs say of a state; empty when they do not tell."""
    try:
        _, output = host.run_program(argv, {}, ASK_DEADLINE)
    except OSError:
        return ""
    return output


def start_again(host: Host, fields: tuple[str, ...]) -> None:
    """Start a unit that was stopped.

    Raises:
        FailedError: it does not start.
        ValueError: the record is none.
    """
    (unit,) = fields
    if not is_startable(unit):
        raise ValueError("not the name of a unit that can be started")
    # Some have been started so often that systemd would refuse.
    host.run([SYSTEMCTL, "reset-failed", "--", unit], _START_DEADLINE)
    # A target alone: what went down with it is on record itself, and the rest of what it wants somebody may
    # have stopped since.
    alone = ["--job-mode=ignore-dependencies"] if unit.endswith(".target") else []
    if host.run([SYSTEMCTL, "start", *alone, "--", unit], _START_DEADLINE) != 0:
        raise FailedError("service", f"{unit} does not start again", f"look at: systemctl status {unit}")


def is_startable(name: str) -> bool:
    """Tell whether a name can be that of a unit that can be started, and not an option."""
    stem, _, kind = name.rpartition(".")
    return kind in _KINDS and owners.is_unit(f"{stem}.service")


UNDO = {UNIT: start_again}
