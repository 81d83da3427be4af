"""Whatever a crash left half done comes back to the host."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from virtpass.binding import effects, engine, functions, nvidia, reservations
from virtpass.binding.journal import DIRECTORY, Journal, journals, read_journal
from virtpass.operations.connecting import connected_if_there
from virtpass.operations.locking import locked
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import PhysicalFunction
from virtpass.system.errors import VirtpassError, one_line
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM
from virtpass.system.tasks import under_way

# Effects that are undone by starting services: of the system, and of users who are not logged in at boot.
_SERVICES = ("unit", "user-units")


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found of one domain, or of virtual functions on demand, and what was or would be done.

    Attributes:
        uuid: the domain; empty for virtual functions.
        name: its name when it borrowed, empty when the record cannot be read; or which functions these are.
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
    host: Host,
    ask_active: Callable[[], Collection[str] | None],
    *,
    dry_run: bool = False,
    at_boot: bool = False,
) -> list[Recovery]:
    """Give back what belongs to no running domain, then remove virtual functions on demand that nobody uses.

    Args:
        host: the host.
        ask_active: returns the UUIDs of the running domains, as `active_domains` does, or None when there is
            no libvirt daemon that knows; what the kernel and the record say decides then
            (`virtpass.binding.reservations`). An error of it ends the recovery.
        dry_run: change nothing.
        at_boot: services that were stopped are left to systemd, which is about to start them: to wait for
            them would be to wait for ourselves.

    Raises:
        VirtpassError: the records cannot be reached, or libvirt does not answer.
    """
    # A domain may start while libvirt is asked, or while we wait for its hook: what is new or has changed
    # since we looked belongs to it.
    known = {uuid: _version(host, uuid) for uuid in journals(host)}
    if not known and not functions.made(host):
        if not dry_run and nvidia.are_kept_out(host):
            with locked(host):
                nvidia.let_in_unless_lent(host)
        return []
    active = ask_active() if known else None
    if dry_run:
        found = [_recover(host, uuid, active, dry_run=True, at_boot=at_boot) for uuid in journals(host)]
        return found + _recover_functions(host, dry_run=True)
    with locked(host), under_way("giving back what was lent"):
        found = [
            _recover(host, uuid, active, dry_run=False, at_boot=at_boot)
            if known.get(uuid) == _version(host, uuid)
            else Recovery(uuid, "", "running", (), ())
            for uuid in journals(host)
        ]
        return found + _recover_functions(host, dry_run=False)


def active_domains(
    uri: str = SYSTEM, *, say: Callable[[str], None] = lambda _: None
) -> frozenset[str] | None:
    """Return the UUIDs of the running domains, as `recover` asks for them; None when there is no daemon.

    Args:
        uri: the libvirt connection.
        say: told, in one sentence without a full stop, when there is no daemon.

    Raises:
        UnavailableError: the daemon does not answer; it may just be starting a domain.
        PermissionDeniedError: this user may not connect.
        UsageError: the URI is none.
    """
    connection = connected_if_there(uri, say, "the kernel tells")
    if connection is None:
        return None
    with connection:
        return connection.active_uuids()


def _recover_functions(host: Host, *, dry_run: bool) -> list[Recovery]:
    """Remove virtual functions that were made on demand and that nobody uses."""
    found = []
    for address in functions.made(host):
        name = f"virtual functions of {address}"
        try:
            device = functions.idle(host, address)
            if device is None:
                continue
            steps = _writes(host, address, device)
            if not dry_run:
                functions.remove(host, device)
            found.append(Recovery("", name, "pending" if dry_run else "recovered", steps, ()))
        except VirtpassError as error:
            found.append(Recovery("", name, "failed", (), (error.line,)))
    return found


def _writes(host: Host, address: PciAddress, device: PhysicalFunction) -> tuple[str, ...]:
    return tuple(f"{address}: write {value} to {name}" for name, value in functions.writes(host, device, 0))


def _version(host: Host, uuid: str) -> tuple[int, int] | None:
    return host.version(f"{DIRECTORY}/{uuid}")


def _recover(
    host: Host, uuid: str, active: Collection[str] | None, *, dry_run: bool, at_boot: bool
) -> Recovery:
    try:
        journal = read_journal(host, uuid)
        if journal is None:
            return Recovery(uuid, "", "recovered", (), ())
        if _is_running(host, journal, active):
            return Recovery(uuid, journal.name, "running", (), ())
        now, problems = engine.present_state(host, journal)
        moves = map(str, engine.steps_to_give_back(journal.homes, now))
        left_out = [effect for effect in journal.effects if at_boot and effect[0] in _SERVICES]
        undone = [effect for effect in reversed(journal.effects) if effect not in left_out]
        steps = (
            *moves,
            *(effects.in_words(kind, rest) for kind, *rest in undone if kind not in effects.NOTES),
        )
        if dry_run:
            return Recovery(uuid, journal.name, "pending", steps, _lines(problems))
        if active is not None:
            # Should this be cut off, the next start that needs a device need not ask again.
            journal.mark_ended()
        if left_out:
            journal.mark_undone(left_out)
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
    return reservations.may_be_needed(host, journal)


def _lines(problems: list[VirtpassError]) -> tuple[str, ...]:
    return tuple(problem.line for problem in problems)
