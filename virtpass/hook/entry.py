"""What runs when libvirt calls the hook for a domain of ours.

``prepare begin`` comes before libvirt touches the devices: they are bound to vfio-pci here, and libvirt then
finds them so and writes nothing. ``release end`` comes after the domain has ended, also when its start
failed: whatever the journal says is brought back. All other operations belong to nobody here and succeed.

Nothing is ever printed to standard output: in ``restore`` and ``migrate`` it would become the domain's XML.
No call of libvirt is made: the daemon waits for the hook.

Imported by the hook: the imports here are on its allow-list.
"""

import os
import syslog
import time

from virtpass.binding import engine, safety
from virtpass.binding.journal import DIRECTORY, Journal, is_uuid, read_journal
from virtpass.binding.policy import KNOWN_POLICY, NAMESPACE
from virtpass.hook.request import Request, parse_request
from virtpass.system.errors import FailedError, RefusedError, VirtpassError, one_line
from virtpass.system.host import Host

_MAX_XML = 16 << 20
_HEAD_DESCRIPTOR = 3


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
    return run(Host(), operation[0], _read_all(_HEAD_DESCRIPTOR) + _read_all(0))


def run(host: Host, operation: str, xml: bytes) -> int:
    """Run one operation on a host.

    Args:
        host: where to read and write.
        operation: ``prepare`` or ``release``.
        xml: the domain as libvirt describes it.

    Returns:
        the exit status, as in `main`; the reason for 1 is one line on standard error.
    """
    syslog.openlog("virtpass-hook", syslog.LOG_PID, syslog.LOG_DAEMON)
    began = time.monotonic()
    try:
        # The gate lets what it did not read to the end through; a foreign domain's XML may be odd.
        if operation == "prepare" and NAMESPACE.encode() not in xml:
            return 0
        request = parse_request(xml)
        if operation == "prepare" and not ((request.is_ours and request.devices) or request.problem):
            return 0
        lock = engine.lock(host)
        try:
            done = _prepare(host, request) if operation == "prepare" else _release(host, request)
        finally:
            os.close(lock)
    except VirtpassError as error:
        return _failed(operation, error.line)
    except Exception as error:  # whatever it is, libvirt must get one line and not a traceback
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where is not None else "?"
        return _failed(operation, one_line(f"fault in the hook: {type(error).__name__}: {error} ({place})"))
    if done:
        _log(
            syslog.LOG_INFO,
            f"{operation} {one_line(request.name)}: {done} in {time.monotonic() - began:.2f} s",
        )
    return 0


def _prepare(host: Host, request: Request) -> str:
    """Lend the domain's devices.

    Returns:
        what was done, for the log.

    Raises:
        VirtpassError: the domain must not start; its devices are where they were.
    """
    if request.problem is not None:
        raise request.problem
    for key, value in request.policy.items():
        if value not in KNOWN_POLICY.get(key, ()):
            known = ", ".join(f"{name}={'|'.join(values)}" for name, values in KNOWN_POLICY.items())
            raise RefusedError(
                "policy", f"the domain's policy {key}={value} is not known here", f"known: {known}"
            )
    if not is_uuid(request.uuid):
        raise RefusedError("uuid", f"'{request.uuid}' is not a UUID")
    if left := read_journal(host, request.uuid):
        # A hook that was killed, or a stop that could not give everything back.
        _finish(host, left)
    safety.refuse_switched_off(host)
    safety.refuse_lent(host, request.devices, request.uuid)
    for address in request.devices:
        safety.refuse_unassignable(host, address)
    for address, recorded in request.identities.items():
        if address in request.devices:
            safety.refuse_other_device(host, address, recorded)
    # Before what is checked with it: whether unsafe interrupts are allowed is a parameter of a module.
    engine.load_vfio(host)
    safety.refuse_unsafe(host, request.devices)
    homes = engine.homes(host, request.devices)
    engine.lend(host, Journal(host, request.uuid, request.name), homes)
    moved = [str(home.address) for home in homes if home.driver != engine.VFIO]
    return f"{', '.join(moved)} lent" if moved else "all devices were on vfio-pci already"


def _release(host: Host, request: Request) -> str:
    """Give back what the domain's journal says; nothing when there is none.

    Raises:
        VirtpassError: something could not be given back; the journal stays.
    """
    journal = read_journal(host, request.uuid) if is_uuid(request.uuid) else None
    if journal is None:
        return ""
    _finish(host, journal)
    return f"{', '.join(str(home.address) for home in journal.homes)} given back"


def _finish(host: Host, journal: Journal) -> None:
    if problems := engine.give_back(host, journal):
        raise FailedError(
            "not-given-back",
            "; ".join(problem.what for problem in problems),
            f"run virtpass recover (record: {DIRECTORY}/{journal.uuid})",
        )


def _failed(operation: str, line: str) -> int:
    _log(syslog.LOG_ERR, f"{operation}: {line}")
    try:
        os.write(2, f"virtpass: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        pass
    return 1


def _log(priority: int, message: str) -> None:
    try:
        syslog.syslog(priority, message.encode("utf-8", "backslashreplace").decode())
    except (OSError, ValueError):
        pass


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
