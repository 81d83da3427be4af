"""Steps of the administrator: programs of root that run when devices are lent and when they are back.

They lie in ``/etc/virtpass/hooks.d/prepare.d`` and ``release.d``, and run there in the order of their names.
In ``prepare`` the first that fails stops the start of the domain. In ``release`` each has its turn, and one
that fails is told of and then forgotten: it would fail again, and keep the domain from starting for ever.

The record of the effect says what the programs of ``release.d`` are told. It is made before the first program
of ``prepare.d`` runs; undoing it runs those of ``release.d``, perhaps more than once.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os
import stat
import time

from virtpass.binding.effects import RELEASE_STEP, STEPS_DIRECTORY
from virtpass.binding.journal import Journal, is_uuid
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    # Is told of each program that ran: "step", its path, the seconds, what went wrong, and its output.
    Tell = Callable[[str, str, float, str, str], None]

PREPARE, RELEASE = "prepare", "release"

# The kind of the effect.
STEPS = "steps"

# Seconds for each program.
DEADLINE = 30.0

_REMEDY = "mend it, or take it out of its directory"

# So much of what a program said belongs into one line.
_QUOTED = 200


def _nobody(step: str, detail: str, seconds: float, problem: str, output: str) -> None:
    """Ignore what is told."""


def prepare(host: Host, journal: Journal, devices: list[PciAddress], tell: Tell = _nobody) -> None:
    """Run the programs of ``prepare.d``; when one fails, giving back runs those of ``release.d``.

    Args:
        host: the host.
        journal: the record, which has begun.
        devices: what the domain borrows.
        tell: is told of each program.

    Raises:
        RefusedError: a program or a directory is not root's alone; none has run.
        FailedError: a program failed or took too long, or this could not be recorded.
    """
    refuse_unsafe(host)
    first, _ = _programs(host, PREPARE)
    if not first and not _programs(host, RELEASE)[0]:
        return
    fields = (journal.name, journal.uuid, " ".join(map(str, devices)))
    journal.add((STEPS, *fields))
    for program in first:
        if problem := _run(host, program, PREPARE, fields, tell):
            raise FailedError("step", problem, _REMEDY)


def programs(host: Host, event: str) -> list[str]:
    """Return the paths of an event's programs in their order."""
    return _programs(host, event)[0]


def refuse_unsafe(host: Host) -> None:
    """Refuse to start anything while others than root may change what is run, now or at the stop.

    Raises:
        RefusedError: naming the path.
    """
    for event in (PREPARE, RELEASE):
        _, refusals = _programs(host, event)
        if refusals:
            raise refusals[0]


def release(host: Host, fields: tuple[str, ...], tell: Tell = _nobody) -> None:
    """Run the programs of ``release.d``, each even if another fails.

    Args:
        host: the host.
        fields: name, UUID and devices of the domain, from the record.
        tell: is told of each program.

    Raises:
        FailedError: what went wrong; its reference is `RELEASE_STEP`.
        ValueError: the record is none.
    """
    name, uuid, devices = fields
    if not is_uuid(uuid) or "\0" in name:
        raise ValueError("it does not name a domain")
    try:
        for address in devices.split():
            PciAddress.parse(address)
    except VirtpassError as error:
        raise ValueError(error.what) from error
    programs, refusals = _programs(host, RELEASE)
    problems = [refusal.line for refusal in refusals]
    for program in programs:
        if problem := _run(host, program, RELEASE, fields, tell):
            problems.append(problem)
    if problems:
        raise FailedError(RELEASE_STEP, "; ".join(problems), _REMEDY)


def _run(host: Host, program: str, event: str, fields: tuple[str, ...], tell: Tell) -> str:
    """Run one program.

    Returns:
        what went wrong, empty for nothing.
    """
    name, uuid, devices = fields
    environment = {
        "VIRTPASS_DOMAIN": name,
        "VIRTPASS_UUID": uuid,
        "VIRTPASS_DEVICES": devices,
        "VIRTPASS_EVENT": event,
    }
    began = time.monotonic()
    output = ""
    try:
        status, output = host.run_program([program, name, event], environment, DEADLINE)
        if status is None:
            problem = f"the step {program} was ended: it took more than {DEADLINE:.0f} s"
        elif status < 0:
            problem = f"the step {program} was ended by signal {-status}"
        elif status:
            problem = f"the step {program} failed with exit status {status}"
        else:
            problem = ""
        if problem and output:
            problem += f": {output.splitlines()[-1][:_QUOTED]}"
    except OSError as error:
        problem = f"the step {program} cannot be run: {error.strerror}"
    except ValueError:
        problem = f"the step {program} cannot be run: the domain's name cannot be an argument"
    tell("step", program, time.monotonic() - began, problem, output)
    return problem


def _programs(host: Host, event: str) -> tuple[list[str], list[RefusedError]]:
    """Return the programs of an event that root alone may change, in order, and why others are refused."""
    directory = f"{STEPS_DIRECTORY}/{event}.d"
    # What is not there needs no look at the directories above.
    if not host.exists(directory):
        return [], []
    try:
        descriptor = host.open_directory(directory)
    except FileNotFoundError:
        return [], []
    except RefusedError as error:
        return [], [error]
    programs: list[str] = []
    refusals: list[RefusedError] = []
    try:
        for name in sorted(filter(_is_meant, os.listdir(descriptor)), key=os.fsencode):
            path = f"{directory}/{name}"
            try:
                state = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISLNK(state.st_mode):
                # Whoever made it means it to run; a start without it would be a surprise.
                what = f"the step {path} is a symbolic link, which is not followed"
                refusals.append(RefusedError("step-link", what, "put the program itself there"))
            elif not stat.S_ISREG(state.st_mode) or not state.st_mode & 0o111:
                continue
            elif not host.is_own(path):
                what = f"others than root may write to the step {path}"
                refusals.append(RefusedError("unsafe-step", what, "chown root and chmod go-w that file"))
            else:
                programs.append(path)
    finally:
        os.close(descriptor)
    return programs, refusals


def _is_meant(name: str) -> bool:
    """Tell whether a name is that of a step, not of what editors and package managers leave behind."""
    return not (name.startswith(".") or name.endswith(("~", ".bak")) or ".dpkg-" in name or ".rpm" in name)
