"""A host in a snapshot: its files below a directory, and answers that are in no file."""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from virtpass.system.errors import PermissionDeniedError, RefusedError, UsageError
from virtpass.system.host import Host

_MAX_READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Answers:
    """What the kernel and programs of the host said when the snapshot was taken.

    Attributes:
        device_numbers: ``major:minor`` of device nodes, by path.
        claimed: disks that somebody uses for himself alone.
        busy: VFIO groups that are open, by their nodes.
        mapped: processes that have a device node mapped, or open under whichever path, by its own path.
        programs: exit status and output of programs, by their arguments.
    """

    device_numbers: Mapping[str, str]
    claimed: frozenset[str]
    busy: frozenset[str]
    mapped: Mapping[str, frozenset[str]]
    programs: Mapping[tuple[str, ...], tuple[int | None, str]]


@dataclass(frozen=True, slots=True)
class RecordedDomainState:
    """A domain when the snapshot was taken.

    Attributes:
        name: its name.
        uuid: its UUID, masked.
        is_active: whether it ran.
        is_persistent: whether it has a definition that outlives a run.
        has_saved_state: whether its next start continues from a managed save.
        xml: what the next start uses, masked.
    """

    name: str
    uuid: str
    is_active: bool
    is_persistent: bool
    has_saved_state: bool
    xml: str


@dataclass(frozen=True, slots=True)
class RecordedLibvirt:
    """libvirt when the snapshot was taken.

    Attributes:
        version: as libvirt numbers it; 9.0.0 is 9000000.
        domains: all domains, by name.
        problem: reference, reason and remedy where it did not answer; None where it did.
        is_refused: whether it did not answer because this user may not ask.
    """

    version: int
    domains: tuple[RecordedDomainState, ...]
    problem: tuple[str, str, str] | None
    is_refused: bool


class RecordedHost(Host):
    """A host in a snapshot. Nothing is written to it, and nothing of it is run.

    Args:
        root: where its files are.
        targets: the targets of its absolute links, by path; on disk these are relative.
        answers: what is in no file.
        libvirt: the same of libvirt.
        outside: what `virtpass.doctor.scene.Outside` has, as JSON.
        unreadable: files that are there, and that who took the snapshot might not read.
    """

    def __init__(
        self,
        root: str,
        targets: Mapping[str, str],
        answers: Answers,
        libvirt: RecordedLibvirt,
        outside: Mapping[str, Any],
        unreadable: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(root)
        self.libvirt = libvirt
        self.outside = outside
        self._targets = targets
        self._answers = answers
        self._unreadable = unreadable

    # what the files do not say

    def link_target(self, path: str) -> str | None:
        found = super().link_target(path)
        if found is None:
            return None
        here = self._resolved(path, last=False).removeprefix(self.root)
        return self._targets.get(here, found)

    def read_bytes(self, path: str, limit: int = _MAX_READ) -> bytes | None:
        if self._unreadable and self.real_path(path) in self._unreadable:
            return None
        return super().read_bytes(path, limit)

    def read_own(self, directory: str, name: str) -> bytes | None:
        path = f"{directory}/{name}"
        if path in self._unreadable:
            raise PermissionDeniedError(
                "permission", f"{path}: Permission denied", "take the snapshot as root"
            )
        return super().read_own(directory, name)

    def device_number(self, path: str) -> str | None:
        return self._answers.device_numbers.get(path)

    def is_claimed(self, path: str) -> bool:
        return path in self._answers.claimed

    def device_node_is_busy(self, path: str) -> bool:
        return path in self._answers.busy

    def using(self, processes: list[str], nodes: dict[str, str], deadline: float) -> dict[str, str]:
        self.unseen_processes = set()
        there = set(processes)
        found: dict[str, str] = {}
        for process in processes:
            links = (
                self.link_target(f"/proc/{process}/fd/{one}") for one in self.names(f"/proc/{process}/fd")
            )
            found.update((process, path) for path in links if path in nodes)
        for node in nodes:
            for process in self._answers.mapped.get(node, frozenset()) & there:
                found.setdefault(process, node)
        return found

    def read_attribute(self, path: str, deadline: float) -> str:
        content = self.read(path)
        if content is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return content

    def read_device(self, path: str, limit: int, deadline: float) -> bytes:
        content = self.read_bytes(path, limit)
        if content is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return content

    def run_program(
        self, argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        found = self._answers.programs.get(tuple(argv))
        if found is None:
            raise OSError(errno.ENODATA, "its answer is not in the snapshot", argv[0])
        return found

    # what is not done

    def run(self, argv: list[str], deadline: float) -> int | None:
        raise _untouchable()

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        raise _untouchable()

    def open_directory(self, path: str, *, create: int = 0) -> int:
        if create:
            raise _untouchable()
        return super().open_directory(path)

    def append_own(self, directory: str, name: str, content: bytes) -> None:
        raise _untouchable()

    def replace_own(self, directory: str, name: str, content: bytes, mode: int) -> None:
        raise _untouchable()

    def remove_own(self, directory: str, name: str) -> None:
        raise _untouchable()

    def remove_directory(self, directory: str) -> bool:
        raise _untouchable()

    def lock(self, directory: str, name: str, deadline: float) -> int:
        raise _untouchable()


def _untouchable() -> RefusedError:
    return RefusedError("snapshot", "a snapshot is only looked at", "run the command on the host itself")


# the record in a snapshot


def answers_to_json(answers: Answers) -> dict[str, Any]:
    """Render answers."""
    return {
        "device_numbers": dict(answers.device_numbers),
        "claimed": sorted(answers.claimed),
        "busy": sorted(answers.busy),
        "mapped": {node: sorted(processes) for node, processes in answers.mapped.items()},
        "programs": [
            [list(argv), status, output] for argv, (status, output) in sorted(answers.programs.items())
        ],
    }


def answers_from_json(data: object) -> Answers:
    """Parse answers.

    Raises:
        UsageError: these are none.
    """
    fields = typed(data, dict)
    return Answers(
        {
            typed(path, str): typed(one, str)
            for path, one in typed(fields.get("device_numbers"), dict).items()
        },
        frozenset(texts(fields.get("claimed"))),
        frozenset(texts(fields.get("busy"))),
        {node: frozenset(texts(one)) for node, one in typed(fields.get("mapped"), dict).items()},
        dict(map(_program, typed(fields.get("programs"), list))),
    )


def _program(data: object) -> tuple[tuple[str, ...], tuple[int | None, str]]:
    found = typed(data, list)
    if len(found) != 3:
        raise malformed()
    argv, status, output = found
    return texts(argv), (None if status is None else typed(status, int), typed(output, str))


def libvirt_to_json(libvirt: RecordedLibvirt) -> dict[str, Any]:
    """Render what is known of libvirt."""
    return {
        "version": libvirt.version,
        "problem": list(libvirt.problem) if libvirt.problem is not None else None,
        "is_refused": libvirt.is_refused,
        "domains": [
            {
                "name": one.name,
                "uuid": one.uuid,
                "is_active": one.is_active,
                "is_persistent": one.is_persistent,
                "has_saved_state": one.has_saved_state,
                "xml": one.xml,
            }
            for one in libvirt.domains
        ],
    }


def libvirt_from_json(data: object) -> RecordedLibvirt:
    """Parse what is known of libvirt.

    Raises:
        UsageError: this is none.
    """
    fields = typed(data, dict)
    problem = fields.get("problem")
    told = texts(problem) if problem is not None else None
    if told is not None and len(told) != 3:
        raise malformed()
    return RecordedLibvirt(
        typed(fields.get("version"), int),
        tuple(map(_domain, typed(fields.get("domains"), list))),
        None if told is None else (told[0], told[1], told[2]),
        typed(fields.get("is_refused"), bool),
    )


def _domain(data: object) -> RecordedDomainState:
    fields = typed(data, dict)
    return RecordedDomainState(
        typed(fields.get("name"), str),
        typed(fields.get("uuid"), str),
        typed(fields.get("is_active"), bool),
        typed(fields.get("is_persistent"), bool),
        typed(fields.get("has_saved_state"), bool),
        typed(fields.get("xml"), str),
    )


def typed(data: object, kind: type) -> Any:  # noqa: ANN401 (whatever kind was asked for)
    """Return ``data`` if it is of a kind; JSON has no others than bool, int, float, str, list and dict.

    Raises:
        UsageError: it is not.
    """
    if type(data) is not kind:
        raise malformed()
    if isinstance(data, str):
        try:
            data.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise malformed() from None
    return data


def texts(data: object) -> tuple[str, ...]:
    """Return a list of texts.

    Raises:
        UsageError: it is none.
    """
    return tuple(typed(one, str) for one in typed(data, list))


def malformed() -> UsageError:
    """Return the error of a record that this version does not understand."""
    return UsageError("snapshot-record", "the record in the snapshot is not understood")
