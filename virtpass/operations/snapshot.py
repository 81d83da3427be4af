"""A snapshot: a host in one file, examined elsewhere by the same commands."""

import grp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from virtpass import __version__
from virtpass.doctor.scene import Outside
from virtpass.operations.doctor import look_outside
from virtpass.operations.recorded_outside import outside_to_json
from virtpass.operations.rehearsal import rehearse
from virtpass.operations.snapshot_files import (
    HOOK,
    PAYLOADS,
    Collected,
    collect,
    daemon_entries,
    words,
)
from virtpass.operations.snapshot_masks import Masks
from virtpass.pci.identity import serial_number
from virtpass.system.archive import Entry, unpack, write_archive
from virtpass.system.errors import FailedError, PermissionDeniedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM, Domain
from virtpass.system.recorded import (
    Answers,
    RecordedDomainState,
    RecordedHost,
    RecordedLibvirt,
    answers_from_json,
    answers_to_json,
    libvirt_from_json,
    libvirt_to_json,
    texts,
    typed,
)
from virtpass.system.recorded_libvirt import connect

_LIBVIRT_DEADLINE = 5.0
_LOOK_DEADLINE = 5.0
# Where users begin, and who is nobody.
_FIRST_USER, _NOBODY = 1000, 65534
_COMMON_NAMES = "localhost localdomain linux root host guest virtpass libvirt qemu kvm vfio amd intel nvidia"


@dataclass(frozen=True, slots=True)
class Taken:
    """What went into a snapshot.

    Attributes:
        files: paths on this host, not masked, sorted.
        left_out: what this user may not read, or what did not answer, with why.
        domains: names of the domains.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]
    domains: tuple[str, ...]


def list_snapshot(host: Host, uri: str = SYSTEM) -> Taken:
    """Return what `take_snapshot` would write; writes nothing."""
    return _look(host, uri).taken


def take_snapshot(host: Host, path: str, uri: str = SYSTEM, *, key: bytes | None = None) -> Taken:
    """Write a host into a file; needs no permission, and has less without. Changes nothing else.

    Args:
        host: the host.
        path: a file that does not exist yet.
        uri: its libvirt.
        key: what the masks are made from; by default something that nobody knows.

    Raises:
        RefusedError: the file exists.
        PermissionDeniedError, FailedError: it cannot be written.
    """
    seen = _look(host, uri)
    masks = masks_of(host, seen.collected, seen.outside, key)
    entries = [_masked(masks, one) for one in seen.collected.entries]
    entries += [_masked(masks, one) for one in daemon_entries(host, seen.outside.daemon_process)]
    libvirt = replace(
        seen.libvirt,
        domains=tuple(
            replace(one, uuid=masks.text(one.uuid), xml=masks.domain(one.xml)) for one in seen.libvirt.domains
        ),
    )
    record: dict[str, Any] = {
        "virtpass": __version__,
        "outside": masks.value(_outside_json(seen.outside)),
        "answers": masks.value(answers_to_json(seen.answers)),
        "unreadable": masks.value(list(seen.collected.unreadable)),
        "libvirt": libvirt_to_json(libvirt),
        "left_out": masks.value(list(seen.taken.left_out)),
    }
    write_archive(path, record, entries)
    return seen.taken


@contextmanager
def opened(path: str) -> Iterator[RecordedHost]:
    """Unpack a snapshot, which may come from anybody, for as long as it is looked at.

    Args:
        path: the snapshot.

    Raises:
        NotFoundError, PermissionDeniedError: it cannot be opened.
        RefusedError: it has what no snapshot has.
        UsageError: it is no snapshot, or one of a later version.
    """
    try:
        directory = tempfile.mkdtemp(prefix="virtpass-snapshot-")
    except OSError as error:
        raise FailedError(
            "snapshot", f"no directory to unpack it in can be made: {error.strerror}"
        ) from error
    try:
        unpacked = unpack(path, directory)
        record = unpacked.record
        yield RecordedHost(
            os.path.realpath(directory),
            unpacked.targets,
            answers_from_json(record.get("answers")),
            libvirt_from_json(record.get("libvirt")),
            typed(record.get("outside"), dict),
            unreadable=frozenset(texts(record.get("unreadable"))),
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# looking


@dataclass(frozen=True, slots=True)
class _Seen:
    collected: Collected
    outside: Outside
    libvirt: RecordedLibvirt
    answers: Answers

    @property
    def taken(self) -> Taken:
        problem = self.libvirt.problem
        return Taken(
            tuple(sorted(one.path for one in self.collected.entries if one.content is not None)),
            (*self.collected.left_out, *([f"libvirt: {problem[1]}"] if problem is not None else [])),
            tuple(one.name for one in self.libvirt.domains),
        )


def _look(host: Host, uri: str) -> _Seen:
    outside = look_outside(host, uri)
    libvirt = _libvirt(host, uri)
    collected = collect(host)
    return _Seen(collected, outside, libvirt, _answers(host, collected, libvirt))


def _libvirt(host: Host, uri: str) -> RecordedLibvirt:
    try:
        with connect(host, uri, deadline=_LIBVIRT_DEADLINE) as connection:
            return RecordedLibvirt(connection.version, tuple(map(_state, connection.domains())), None, False)
    except VirtpassError as error:
        is_refused = isinstance(error, PermissionDeniedError)
        return RecordedLibvirt(0, (), (error.reference, error.what, error.remedy), is_refused)


def _state(domain: Domain) -> RecordedDomainState:
    return RecordedDomainState(
        domain.name,
        domain.uuid,
        domain.is_active,
        domain.is_persistent,
        domain.has_saved_state,
        # Without passwords.
        domain.shown_xml(),
    )


def _answers(host: Host, collected: Collected, libvirt: RecordedLibvirt) -> Answers:
    """Ask what is in no file, for all that the commands could ask."""
    mounted = [
        line.partition(" - ")[2].split(" ") for line in (host.read("/proc/self/mountinfo") or "").splitlines()
    ]
    swaps = [line.split()[:1] for line in (host.read("/proc/swaps") or "").splitlines()[1:]]
    sources = {one for fields in (*(found[1:2] for found in mounted), *swaps) for one in fields}
    numbers = {one: host.device_number(one) for one in sources if one.startswith("/dev/")}
    disks = [f"/dev/{name.replace('!', '/')}" for name in host.names("/sys/class/block")]
    groups = [f"/dev/vfio/{name}" for name in host.names("/sys/kernel/iommu_groups")]
    return Answers(
        {path: number for path, number in numbers.items() if number is not None},
        frozenset(filter(host.is_claimed, disks)),
        frozenset(filter(host.device_node_is_busy, groups)),
        _using(host, collected.nodes),
        _programs(host, libvirt),
    )


def _using(host: Host, nodes: Mapping[str, str]) -> dict[str, frozenset[str]]:
    processes = [name for name in host.names("/proc") if name.isdigit()]
    if not nodes:
        return {}
    some = sorted(host.using(processes, dict(nodes), _LOOK_DEADLINE))
    if not some:
        return {}
    found = {node: frozenset(host.using(some, {node: nodes[node]}, _LOOK_DEADLINE)) for node in nodes}
    return {node: holding for node, holding in found.items() if holding}


def _programs(host: Host, libvirt: RecordedLibvirt) -> dict[tuple[str, ...], tuple[int | None, str]]:
    """Rehearse the start of each domain, and write down what programs say meanwhile."""
    found: dict[tuple[str, ...], tuple[int | None, str]] = {}

    def listen(
        argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        answer = host.run_program(argv, environment, deadline, limit=limit)
        found[tuple(argv)] = answer
        return answer

    listening = copy(host)
    # In place of the method, for this one object.
    vars(listening)["run_program"] = listen
    for domain in libvirt.domains:
        try:
            rehearse(listening, domain.xml)
        except VirtpassError:
            continue
    return found


# masking


def masks_of(host: Host, collected: Collected, outside: Outside, key: bytes | None = None) -> Masks:
    """Return masks that know the names and serial numbers of a host."""
    masks = Masks(key)
    release = host.read("/etc/os-release") or host.read("/usr/lib/os-release") or ""
    masks.keep([*words(), release, _COMMON_NAMES, *host.names("/sys/bus/pci/drivers")])
    masks.add_names([*_hosts(host), *_users(host), *([outside.user] if outside.user != "root" else [])])
    masks.add_serials(
        serial_number(one.content or b"") for one in collected.entries if one.path.endswith("/config")
    )
    return masks


def _hosts(host: Host) -> Iterator[str]:
    for path in ("/etc/hostname", "/proc/sys/kernel/hostname"):
        yield from (host.read(path) or "").split()[:1]


def _users(host: Host) -> Iterator[str]:
    for line in (host.read("/etc/passwd") or "").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and fields[2].isdigit() and _FIRST_USER <= int(fields[2]) != _NOBODY:
            yield fields[0]


def _masked(masks: Masks, entry: Entry) -> Entry:
    if entry.path == HOOK or entry.path.startswith(f"{PAYLOADS}/"):
        return entry
    path = masks.text(entry.path)
    target = masks.text(entry.target)
    content = None if entry.content is None else masks.content(entry.path, entry.content)
    return replace(entry, path=path, target=target, content=content)


def _outside_json(outside: Outside) -> dict[str, Any]:
    # Of other groups nobody asks, and their names may tell something.
    groups = tuple(name for name in outside.groups if _is_of_system(name) and name != outside.user)
    return outside_to_json(replace(outside, groups=groups))


def _is_of_system(group: str) -> bool:
    try:
        return grp.getgrnam(group).gr_gid < _FIRST_USER
    except KeyError:
        return False
