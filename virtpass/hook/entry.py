"""What runs when libvirt calls the hook for a domain of ours.

``prepare begin`` comes before libvirt touches the devices: they are bound to vfio-pci here, and libvirt then
finds them so and writes nothing. ``release end`` comes after the domain has ended, also when its start
failed: whatever the journal says is brought back. All other operations belong to nobody here and succeed.

Nothing is ever printed to standard output: in ``restore`` and ``migrate`` it would become the domain's XML.
No call of libvirt is made: the daemon waits for the hook.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os
import time

from virtpass.binding import effects, engine
from virtpass.binding.journal import DIRECTORY, Journal, is_uuid, read_journal
from virtpass.binding.policy import NAMESPACE
from virtpass.hook import late_releases
from virtpass.hook.report import Report
from virtpass.hook.request import Request, parse_request
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system import processes
from virtpass.system.errors import FailedError, VirtpassError, one_line
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.hook.checks import Checked

_MAX_XML = 16 << 20
_HEAD_DESCRIPTOR = 3
# Seconds between the last look for marks and the end of a hook or a command.
_LAST_WAIT = 2.0


def main(arguments: list[str]) -> int:
    """Run the hook as libvirt calls it.

    Args:
        arguments: domain name, operation, sub-operation, extra argument. The XML's beginning, which the
            gate has read, is on descriptor 3 and the rest on standard input.

    Returns:
        the exit status: 0, or 1 when the start of the domain must stop.
    """
    # A session daemon runs the same hook as an ordinary user, who can move no device.
    if os.geteuid() != 0 or len(arguments) < 3:
        return 0
    operation = (arguments[1], arguments[2])
    if operation not in (("prepare", "begin"), ("release", "end")):
        return 0
    xml = _read_all(_HEAD_DESCRIPTOR) + _read_all(0)
    try:
        # Some shells hand it over as a file, which no program that is run needs to be able to read again.
        os.close(_HEAD_DESCRIPTOR)
    except OSError:
        pass  # the gate gives one; others may not
    host = Host()
    return run(host, operation[0], xml, _began(host))


def _began(host: Host) -> float:
    """Return when this process began, on the monotonic clock: what comes before Python counts too."""
    now = time.monotonic()
    this = processes.find(host, os.getpid())
    return now if this is None else now - this.age(host)


def run(host: Host, operation: str, xml: bytes, began: float | None = None) -> int:
    """Run one operation on a host.

    Args:
        host: where to read and write.
        operation: ``prepare`` or ``release``.
        xml: the domain as libvirt describes it.
        began: when libvirt called the hook, on the monotonic clock; None for now.

    Returns:
        the exit status, as in `main`; the reason for 1 is one line on standard error.
    """
    report = Report(operation, began=began)
    try:
        # The gate lets what it did not read to the end through; a foreign domain's XML may be odd.
        if operation == "prepare" and NAMESPACE.encode() not in xml:
            return 0
        request = parse_request(xml)
        report.domain, report.uuid = request.name, request.uuid
        if operation == "prepare" and not ((request.is_ours and request.devices) or request.problem):
            return 0
        report.started()
        waits_since = time.monotonic()
        kept = ""
        try:
            lock = engine.lock(host)
        except FailedError as error:
            if operation == "prepare" or error.reference != "locked" or not is_uuid(request.uuid):
                raise
            lock, kept = _lock_or_leave(host, request.uuid), error.what
        effects.tell_wait(report.done, "for others who move devices", waits_since)
        if lock < 0:
            report.finish(f"left to whoever keeps the lock: {kept}")
            return 0
        try:
            # Before, because this start may need what they keep; after, because others may have waited.
            with report.step("free", "what others had left to be given back", is_brief=True):
                release_late(host)
            try:
                done = (_prepare if operation == "prepare" else _release)(host, request, report)
            finally:
                with report.step("free", "what others have left to be given back", is_brief=True):
                    release_late(host)
        finally:
            os.close(lock)
    except VirtpassError as error:
        return _failed(report, error.line)
    except Exception as error:  # whatever it is, libvirt must get one line and not a traceback
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where is not None else "?"
        return _failed(report, one_line(f"fault in the hook: {type(error).__name__}: {error} ({place})"))
    # A wait may have been told of, and then there was nothing to do.
    if done or report.is_open:
        report.finish(done or "nothing was lent")
    return 0


def _lock_or_leave(host: Host, uuid: str) -> int:
    """Leave the release of a domain to whoever has the lock.

    Returns:
        -1; the lock where it came free just before.

    Raises:
        VirtpassError: neither was possible.
    """
    late_releases.mark(host, uuid)
    try:
        # Who had it may have looked for marks before there was this one, and is about to let go.
        return engine.lock(host, deadline=_LAST_WAIT)
    except FailedError:
        return -1


def release_late(host: Host) -> None:
    """Make the releases that others have left; for whoever has the lock.

    What goes wrong is theirs, and told as theirs. It is tried once: the record stays, and says that the
    domain has ended, for the next start that needs a device of it and for ``virtpass recover``.
    """
    for uuid in late_releases.marked(host):
        report = Report("release", "", uuid)
        try:
            try:
                if journal := read_journal(host, uuid):
                    report.domain = journal.name
                    journal.mark_ended()
                    _finish(host, journal, report)
                    devices = ", ".join(str(home.address) for home in journal.homes)
                    report.finish(f"{devices} given back, late")
            finally:
                late_releases.unmark(host, uuid)
        except Exception as error:
            report.finish(problem=one_line(str(error)))


def _prepare(host: Host, request: Request, report: Report) -> str:
    """Lend the domain's devices.

    Returns:
        what was done, for the log.

    Raises:
        VirtpassError: the domain must not start; its devices are where they were.
    """
    try:
        return _lend(host, request, report)
    except Exception:
        _take_functions_back(host, request.devices, report)
        raise


def _lend(host: Host, request: Request, report: Report) -> str:
    """Lend the domain's devices; those that are virtual functions on demand are made first."""
    # Not at the top: giving back does without.
    from virtpass.binding import reservations
    from virtpass.hook.checks import check

    with report.step("check"):
        if left := read_journal(host, request.uuid) if is_uuid(request.uuid) else None:
            # A hook that was killed, or a stop that could not give everything back.
            _finish(host, left, report)
        late_releases.unmark(host, request.uuid)
        _free_stale(host, request, report)
        _make_functions(host, request, report)
        checked = check(host, request)
    lent = [*request.devices, *checked.companions]
    homes = engine.homes(host, lent)
    journal = Journal(host, request.uuid, request.name)
    journal.starter = reservations.starter(host)
    engine.lend(
        host,
        journal,
        homes,
        lambda: _make_ready(host, journal, checked, lent, report),
        free=free_of(checked),
        tell=report.done,
    )
    if checked.hands_over:
        from virtpass.binding import audio

        audio.go_on(host, journal, report.done)
    moved = [str(home.address) for home in homes if home.driver != engine.VFIO]
    return f"{', '.join(moved)} lent" if moved else "all devices were on vfio-pci already"


def _free_stale(host: Host, request: Request, report: Report) -> None:
    """Give back what domains that have ended keep from this one.

    Raises:
        VirtpassError: something could not be given back; its record stays.
    """
    from virtpass.binding import reservations, safety

    wanted = [*request.devices, *safety.companions(host, request.devices)]
    for journal in reservations.stale(host, wanted, request.uuid):
        with report.step("free", f"what {journal.name} had borrowed"):
            _finish(host, journal, report)


def _make_functions(host: Host, request: Request, report: Report) -> None:
    """Make the virtual functions that the domain needs, and that are on record as made on demand.

    Raises:
        VirtpassError: they cannot be made; the device has as many as before.
    """
    if request.problem is not None or all(sysfs.is_present(host, address) for address in request.devices):
        return
    from virtpass.binding import functions, safety

    safety.refuse_switched_off(host)
    for making in functions.needed(host, request.devices):
        with report.step("functions", str(making)):
            functions.change(host, making.device, making.number, is_on_demand=True)


def _take_functions_back(host: Host, had: list[PciAddress], report: Report) -> None:
    """Remove virtual functions that a domain had, if they were made on demand and nobody else uses them.

    They do no harm where they are, so that whatever goes wrong is a line in the log and nothing else.
    """
    try:
        from virtpass.binding import function_marks

        if function_marks.marked(host):
            from virtpass.binding import functions

            functions.take_back(host, had, report.done)
    except Exception as error:
        report.done("functions", "remove what nobody uses", 0.0, one_line(str(error)))


def free_of(checked: Checked) -> frozenset[PciAddress]:
    """Return the devices that get no driver at all."""
    return frozenset(checked.companions if checked.policy.companions == "free" else ())


def _make_ready(
    host: Host, journal: Journal, checked: Checked, lent: list[PciAddress], report: Report
) -> None:
    """Do what has to be done before drivers are changed: what can fail first, the desktop last.

    Raises:
        VirtpassError: it could not be done; it is undone from the journal.
    """
    if checked.warning:
        report.done("warning", checked.warning, 0.0)
    if checked.tuning is not None:
        from virtpass.binding import tuning

        with report.step("tune", "; ".join(checked.tuning.sentences)) as step:
            step.detail = "; ".join(tuning.take(host, journal, checked.tuning))
    if checked.has_steps:
        from virtpass.binding import steps

        steps.prepare(host, journal, lent, report.done)
    if not checked.hands_over and (checked.tuning is not None or checked.has_steps):
        from virtpass.binding import safety

        # That took its time, and somebody may have opened the card meanwhile.
        with report.step("check", "who uses the devices, once more", is_brief=True):
            safety.refuse_in_use(host, lent)
    from virtpass.binding import power

    with report.step("awake", ", ".join(map(str, lent)), is_brief=True):
        power.keep_awake(host, journal, lent)
    if checked.hands_over:
        from virtpass.binding import display, framebuffers, nvidia

        with report.step("hand-over", ", ".join(map(str, lent))):
            display.hand_over(host, journal, lent, checked.policy.wait, tell=report.done)
            framebuffers.let_go(host, journal, lent, tell=report.done)
        engine.make_first(host, journal.homes, engine.OVERRIDE, free_of(checked), tell=report.done)
        if nvidia.loaded(host, lent):
            siblings = [home for home in journal.homes if home.driver != nvidia.DRIVER]
            engine.make_first(host, siblings, engine.UNBIND, free_of(checked), tell=report.done)
            with report.step("unload") as step:
                step.detail = "; ".join(nvidia.unload(host, journal, lent))


def _release(host: Host, request: Request, report: Report) -> str:
    """Give back what the domain's journal says; nothing when there is none.

    Raises:
        VirtpassError: something could not be given back; the journal stays.
    """
    journal = read_journal(host, request.uuid) if is_uuid(request.uuid) else None
    if journal is None:
        # A hook that was killed early may have made functions.
        _take_functions_back(host, request.devices, report)
        return ""
    journal.mark_ended()
    _finish(host, journal, report)
    late_releases.unmark(host, request.uuid)
    return f"{', '.join(str(home.address) for home in journal.homes)} given back"


def _finish(host: Host, journal: Journal, report: Report) -> None:
    problems = engine.give_back(host, journal, tell=report.done)
    if kept := [one for one in engine.lasting(problems) if one.reference != effects.LEFT]:
        raise FailedError(
            "not-given-back",
            "; ".join(problem.what for problem in kept),
            f"run virtpass recover (record: {DIRECTORY}/{journal.uuid})",
        )
    _take_functions_back(host, [home.address for home in journal.homes], report)


def _failed(report: Report, line: str) -> int:
    report.finish(problem=line)
    try:
        os.write(2, f"virtpass: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass
    return 1


def _read_all(descriptor: int) -> bytes:
    """Read a descriptor to its end, at most a little more than a domain's XML may have."""
    chunks = []
    size = 0
    try:
        while size <= _MAX_XML and (chunk := os.read(descriptor, 1 << 16)):
            chunks.append(chunk)
            size += len(chunk)
    except OSError:
        pass
    return b"".join(chunks)
