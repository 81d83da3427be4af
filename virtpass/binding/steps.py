"""Steps of the administrator: programs of root that run when devices are lent and when they are back.

They lie in ``/etc/virtpass/hooks.d/prepare.d`` and ``release.d``, and run there in the order of their names.
In ``prepare`` the first that fails stops the start of the domain. In ``release`` each has its turn, and one
that fails is told of and then forgotten: it would fail again, and keep the domain from starting for ever.

The records of the effects, made before the first program runs:

    steps NAME UUID DEVICES        what the programs of ``release.d`` are told; undoing it runs them, perhaps
                                   more than once
    steps-running UUID EVENT       the programs of a directory are at work; undoing it waits for the one that
                                   a killed hook has left, which would come after those that undo it

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os
import stat
import time

from virtpass.binding.effects import RELEASE_STEP, STEPS_DIRECTORY
from virtpass.binding.journal import Journal, is_uuid, read_journal
from virtpass.pci.address import PciAddress
from virtpass.system import processes, waiting
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from virtpass.binding.effects import Undo

    # Is told of each program that ran: "step", its path, the seconds, what went wrong, and its output.
    Tell = Callable[[str, str, float, str, str], None]

PREPARE, RELEASE = "prepare", "release"

# The kinds of effects.
STEPS, RUNNING = "steps", "steps-running"

# Seconds for each program.
DEADLINE = 30.0

_REMEDY = "mend it, or take it out of its directory"

# So much of what a program said belongs into one line.
_QUOTED = 200

# Variables by which a program that was left behind is known, and how many bytes of them are read.
_UUID, _EVENT = "VIRTPASS_UUID", "VIRTPASS_EVENT"
_ENVIRONMENT_BYTES, _ENVIRONMENT_DEADLINE = 1 << 15, 2.0


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
    running = (RUNNING, journal.uuid, PREPARE)
    journal.add((STEPS, *fields), running)
    problem = ""
    for program in first:
        if problem := _run(host, program, PREPARE, fields, tell):
            break
    try:
        journal.mark_undone([running])
    except VirtpassError:
        if not problem:
            raise
    if problem:
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
    announced = _announce(host, uuid) if programs else None
    problems = [refusal.line for refusal in refusals]
    for program in programs:
        if problem := _run(host, program, RELEASE, fields, tell):
            problems.append(problem)
    if announced is not None:
        try:
            announced.mark_undone([(RUNNING, uuid, RELEASE)])
        except VirtpassError:
            pass  # none of them is found by whoever waits for them
    if problems:
        raise FailedError(RELEASE_STEP, "; ".join(problems), _REMEDY)


def undoer(kind: str, tell: Tell = _nobody) -> Undo | None:
    """Return how an effect of a kind is undone; None for a kind that is not known."""
    if kind == STEPS:
        return lambda host, fields: release(host, fields, tell)
    return _wait if kind == RUNNING else None


def _announce(host: Host, uuid: str) -> Journal | None:
    """Record that programs of ``release.d`` are about to run, if that is possible: they run all the same.

    Returns:
        the record; None when it was not possible.
    """
    try:
        if journal := read_journal(host, uuid):
            journal.add((RUNNING, uuid, RELEASE))
    except VirtpassError:
        return None
    return journal


def _wait(host: Host, fields: tuple[str, ...]) -> None:
    """Wait for a program that a killed hook has left, until its time is over.

    Raises:
        ValueError: the record is none.
    """
    uuid, event = fields
    if not is_uuid(uuid) or event not in (PREPARE, RELEASE):
        raise ValueError("it does not name steps")
    end = time.monotonic() + DEADLINE
    while (left := _left(host, uuid, event)) and (now := time.monotonic()) < end:
        waiting.wait_for_end(left, end - now)


def _left(host: Host, uuid: str, event: str) -> list[int]:
    """Return the programs of a directory that are at work for a domain, and still have time.

    Each has a session of its own. What has begun one itself may be something that a program has left running
    on purpose; that is waited for no longer.
    """
    wanted = {f"{_UUID}={uuid}".encode(), f"{_EVENT}={event}".encode()}
    found = []
    for process in filter(str.isdecimal, host.names("/proc")):
        program = processes.find(host, process)
        if program is None or program.session != int(process) or program.age(host) >= DEADLINE:
            continue
        if not processes.runs_as_root(host, process):
            continue
        try:
            # Last, and with a bound, because it waits for whoever changes the memory map.
            content = host.read_device(f"/proc/{process}/environ", _ENVIRONMENT_BYTES, _ENVIRONMENT_DEADLINE)
        except OSError:
            continue  # it has ended, or says nothing
        if wanted.issubset(content.split(b"\0")):
            found.append(int(process))
    return found


def _run(host: Host, program: str, event: str, fields: tuple[str, ...], tell: Tell) -> str:
    """Run one program.

    Returns:
        what went wrong, empty for nothing.
    """
    name, uuid, devices = fields
    environment = {
        "VIRTPASS_DOMAIN": name,
        _UUID: uuid,
        "VIRTPASS_DEVICES": devices,
        _EVENT: event,
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
