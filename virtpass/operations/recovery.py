"""Whatever a crash left half done comes back to the host."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from virtpass.binding import engine
from virtpass.binding.journal import DIRECTORY, Journal, journals, read_journal
from virtpass.operations.locking import locked
from virtpass.pci import sysfs
from virtpass.system.errors import VirtpassError, one_line
from virtpass.system.host import Host


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found of one domain, and what was or would be done.

    Attributes:
        uuid: the domain.
        name: its name when it borrowed; empty when the record cannot be read.
        state: ``running`` (left alone), ``recovered``, ``pending`` (in a dry run) or ``failed``.
        steps: sentences, in order.
        problems: what could not be done.
    """

    uuid: str
    name: str
    state: str
    steps: tuple[str, ...]
    problems: tuple[str, ...]


def recover(
    host: Host, ask_active: Callable[[], Collection[str] | None], *, dry_run: bool = False
) -> list[Recovery]:
    """Give back what belongs to no running domain.

    Args:
        host: the host.
        ask_active: returns the UUIDs of the running domains, or None when there is no libvirt daemon that
            knows; whether a process has the devices open decides then. An error of it ends the recovery.
        dry_run: change nothing.

    Raises:
        VirtpassError: the records cannot be reached, or libvirt does not answer.
    """
    # A domain may start while libvirt is asked, or while we wait for its hook: what is new or has changed
    # since we looked belongs to it.
    known = {uuid: _version(host, uuid) for uuid in journals(host)}
    if not known:
        return []
    active = ask_active()
    if dry_run:
        return [_recover(host, uuid, active, dry_run=True) for uuid in journals(host)]
    with locked(host):
        return [
            _recover(host, uuid, active, dry_run=False)
            if known.get(uuid) == _version(host, uuid)
            else Recovery(uuid, "", "running", (), ())
            for uuid in journals(host)
        ]


def _version(host: Host, uuid: str) -> tuple[int, int] | None:
    return host.version(f"{DIRECTORY}/{uuid}")


def _recover(host: Host, uuid: str, active: Collection[str] | None, *, dry_run: bool) -> Recovery:
    try:
        journal = read_journal(host, uuid)
        if journal is None:
            return Recovery(uuid, "", "recovered", (), ())
        if _is_running(host, journal, active):
            return Recovery(uuid, journal.name, "running", (), ())
        now, problems = engine.present_state(host, journal)
        moves = map(str, engine.steps_to_give_back(journal.homes, now))
        steps = (*moves, *(f"undo {' '.join(effect)}" for effect in reversed(journal.effects)))
        if dry_run:
            return Recovery(uuid, journal.name, "pending", steps, _lines(problems))
        problems = engine.give_back(host, journal)
        state = "failed" if engine.lasting(problems) else "recovered"
        return Recovery(uuid, journal.name, state, steps, _lines(problems))
    except VirtpassError as error:
        return Recovery(uuid, "", "failed", (), (error.line,))
    except Exception as error:
        # One record that holds a surprise must not keep the others from coming home.
        return Recovery(uuid, "", "failed", (), (one_line(f"fault: {error!r}"),))


def _is_running(host: Host, journal: Journal, active: Collection[str] | None) -> bool:
    if active is not None:
        return journal.uuid in active
    return any(sysfs.group_is_open(host, home.address) for home in journal.homes)


def _lines(problems: list[VirtpassError]) -> tuple[str, ...]:
    return tuple(problem.line for problem in problems)
