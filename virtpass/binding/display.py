"""The desktop lets go of a card before it is lent, and comes back when the card is back.

First services, among them the display manager, so that it does not start another session in place of one
that ends; then sound servers and sessions that have the card open; then the consoles on it. What is stopped
is on record before. Whoever can be asked by nobody, such as a container, is named before anything is stopped.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding import attributes, audio, engine, owners, services
from virtpass.binding.effects import nobody
from virtpass.binding.holders import SYSTEMD, holders, named, unseen
from virtpass.binding.journal import Journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system import waiting
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from virtpass.binding.effects import Tell

_UDEVADM = "/usr/bin/udevadm"
# logind asks the session to end, and does not wait for it.
SESSION_DEADLINE = 10.0
_NODE_DEADLINE = 15.0
_SETTLE = 10
# Of the wait for all nodes of a hand-over.
NODES_BOUND = _NODE_DEADLINE + _SETTLE + 1.0
# Between two looks at who still has the card, when none of those who had it ends.
_LOOK = 0.2
# A session that ends may let another program have the card for a moment, such as the login screen.
_ROUNDS = 4

UNIT, NODES = services.UNIT, "display"

# These keep a card open for others, or carry the hand-over itself.
_KEPT = frozenset(("systemd-logind.service", "systemd-udevd.service"))
# These carry the hand-over itself, or whoever watches it from elsewhere: what holds the card there is none
# of a desktop.
_NEEDED = frozenset(
    (
        "dbus.service",
        "dbus-broker.service",
        "systemd-journald.service",
        "libvirtd.service",
        "virtqemud.service",
        "ssh.service",
        "sshd.service",
        "cron.service",
        "crond.service",
        "atd.service",
        "NetworkManager.service",
        "systemd-networkd.service",
    )
)

Held = tuple[int, str, str]


class Asked(tuple[list[str], list[str], list[str]]):
    """Who is asked to let go: services of the system, sessions, and users whose sound servers are stopped."""

    __slots__ = ()

    def __new__(cls, units: list[str], sessions: list[str], listeners: list[str]) -> Asked:
        """Hold the three together."""
        return super().__new__(cls, (units, sessions, listeners))

    def without(self, others: frozenset[tuple[int, str]]) -> Asked:
        """Return those that have not been asked before."""
        return Asked(*([one for one in part if (kind, one) not in others] for kind, part in enumerate(self)))

    def marks(self) -> frozenset[tuple[int, str]]:
        """Return what `without` takes."""
        return frozenset((kind, one) for kind, part in enumerate(self) for one in part)


def stoppable(
    host: Host, addresses: list[PciAddress], asked: frozenset[tuple[int, str]] = frozenset()
) -> Asked:
    """Return who would be stopped so that devices are free.

    Args:
        host: the host.
        addresses: the devices.
        asked: marks of those who have been asked before, and are left out.

    Raises:
        RefusedError: somebody has one open who cannot be asked, or a service that the hand-over needs would
            go down with another one; the message names them.
        FailedError: systemd does not tell what would go down, or the service manager of a user does not tell
            which sound servers he has. Without root it is not asked.
    """
    found = holders(host, addresses)
    units, ended, listeners = _who(host, found)
    stuck = [one for one in found if not _can_go(host, one)]
    if stuck:
        raise _held(stuck, "end it first")
    manager = owners.display_manager(host)
    if manager and (ended or manager in units):
        units = [manager, *(one for one in units if one != manager)]
    services.refuse_to_take(host, units, _KEPT | _NEEDED)
    fresh = Asked(units, ended, listeners).without(asked)
    for user in fresh[2]:
        if audio.may_ask(user):
            # What it says is asked for again when they are stopped; here, that it answers.
            audio.running(host, user)
    return fresh


def hand_over(
    host: Host, journal: Journal, addresses: list[PciAddress], wait: float, *, tell: Tell = nobody
) -> list[str]:
    """Take devices from the desktop.

    Args:
        host: the host.
        journal: what is stopped is put on record there.
        addresses: the devices.
        wait: seconds that programs have to let go, all in all, after they were asked.
        tell: is told of each step: what, to what, how many seconds it took.

    Returns:
        what was done, as sentences without a full stop.

    Raises:
        RefusedError: somebody still has one open; what was stopped is on record.
        FailedError: services do not stop, or who depends on them is not known.
    """
    done: list[str] = []
    had_nodes = [one for one in addresses if _drm_nodes(host, one)]
    asked: frozenset[tuple[int, str]] = frozenset()
    to_stop = services.STOP_DEADLINE
    for _ in range(_ROUNDS):
        fresh = stoppable(host, addresses, asked)
        if asked and not fresh.marks():
            break  # they have had their time
        asked |= fresh.marks()
        began = time.monotonic()
        done += _ask(host, journal, fresh, to_stop, tell)
        was_asked = time.monotonic()
        is_held = _wait_for_free(host, addresses, wait)
        waited = time.monotonic() - was_asked
        if asked:
            tell("wait", "until nobody uses the devices any more", waited)
        if not is_held:
            break
        to_stop, wait = max(to_stop - (was_asked - began), 0.0), max(wait - waited, 0.0)
    left = holders(host, addresses)
    if warning := unseen(host):
        tell("warning", warning, 0.0)
    if left:
        raise _held(left, "end it first, or give it more time (virtpass domain policy DOMAIN wait=SECONDS)")
    attributes.change(host, journal, consoles(host, addresses))
    if had_nodes:
        # Last, so that it is waited for first on the way back.
        journal.add((NODES, *map(str, had_nodes)))
    return done


def _ask(host: Host, journal: Journal, asked: Asked, deadline: float, tell: Tell) -> list[str]:
    """Ask everybody to let go.

    Args:
        host: the host.
        journal: what is stopped is put on record there.
        asked: whom to ask.
        deadline: seconds that services have to stop.
        tell: as for `hand_over`.

    Returns:
        what was done, as sentences.

    Raises:
        FailedError: services do not stop, or could not be recorded.
    """
    units, sessions, listeners = asked
    done: list[str] = []
    began = time.monotonic()

    def did(step: str, what: list[str], how: str) -> None:
        nonlocal began
        tell(step, ", ".join(what), time.monotonic() - began)
        began = time.monotonic()
        done.extend(f"{one} {how}" for one in what)

    if units:
        # Together: systemd stops them at the same time, and one deadline holds for all.
        services.stop(host, journal, units, deadline)
        did("stop", units, "stopped")
    for user in listeners:
        if servers := audio.stop(host, journal, user):
            did("stop", servers, f"of user {user} stopped")
    if sessions:
        host.run([services.LOGINCTL, "terminate-session", *sessions], SESSION_DEADLINE)
        did("end", [f"session {one}" for one in sessions], "ended")
    return done


def _who(host: Host, found: list[Held]) -> Asked:
    """Return to whom processes belong; kept services are left out."""
    units: list[str] = []
    ended: list[str] = []
    listeners: list[str] = []
    known = owners.sessions(host)
    for process, _, _ in found:
        if listener := audio.server_of(host, process):
            # His session may go on, or he may be logged in from elsewhere: neither tells them to let go.
            listeners.append(listener)
            continue
        kind, name = owners.owner(host, process)
        if kind == owners.UNIT and name not in _KEPT | _NEEDED:
            units.append(name)
        for identifier, user, seat, terminal in known:
            is_its = (kind == owners.SESSION and identifier == name) or (kind == owners.USER and user == name)
            if is_its and seat:
                ended.append(identifier)
                # It may log in by itself again.
                units += [unit for unit in [owners.getty(host, terminal)] if unit]
    return Asked(*(list(dict.fromkeys(part)) for part in (units, ended, listeners)))


def _can_go(host: Host, held: Held) -> bool:
    """Tell whether a process ends, or lets go, when its unit or its session at a seat does."""
    if held[0] == SYSTEMD or audio.server_of(host, held[0]):
        return True
    kind, name = owners.owner(host, held[0])
    if kind in (owners.SESSION, owners.USER):
        return bool(_who(host, [held])[1])
    return kind == owners.UNIT and name not in _NEEDED


def _held(found: list[Held], remedy: str) -> RefusedError:
    return RefusedError("held", f"the device is still in use by {named(found)}", remedy)


def _wait_for_free(host: Host, addresses: list[PciAddress], wait: float) -> bool:
    """Wait until nobody has a device open; tell whether somebody still has."""
    end = time.monotonic() + wait
    while found := holders(host, addresses):
        remaining = end - time.monotonic()
        if remaining <= 0:
            return True
        # Letting go without ending tells nobody, hence the looks.
        waiting.wait_for_end([process for process, _, _ in found], min(remaining, _LOOK))
    return False


def _drm_nodes(host: Host, address: PciAddress) -> list[str]:
    names = host.names(f"{sysfs.device_path(address)}/drm")
    return [name for name in names if name.startswith("card")]


def consoles(host: Host, addresses: list[PciAddress]) -> list[tuple[str, str]]:
    """Return which attributes take the text consoles off cards, unless they are on another one too.

    Returns:
        path and value of each.

    Raises:
        FailedError: the kernel does not answer.
    """
    screens = [host.real_path(f"/sys/class/graphics/{name}") for name in host.names("/sys/class/graphics")]
    cards = {controller(path) for path in screens if path.rpartition("/")[2].startswith("fb")} - {None}
    # One console driver serves all framebuffers.
    if not cards or not cards <= set(addresses):
        return []
    wanted = []
    for name in host.names("/sys/class/vtconsole"):
        path = f"/sys/class/vtconsole/{name}"
        if "frame buffer" in (attributes.read(host, f"{path}/name") or ""):
            wanted.append((f"{path}/bind", "0"))
    return wanted


def wait_for_nodes(host: Host, fields: tuple[str, ...]) -> None:
    """Wait until the cards have their nodes again, and udev has done with them.

    Raises:
        FailedError: one has none after some time, or its driver hangs.
    """
    end = time.monotonic() + _NODE_DEADLINE
    with waiting.Uevents() as uevents:
        for text in fields:
            address = PciAddress.parse(text)
            engine.refuse_stuck(host, address)
            if not uevents.wait_until(_has_come(host, address), end - time.monotonic()):
                raise FailedError(
                    "no-display",
                    f"{address} is back, but its driver shows no display",
                    "look at the kernel log, then run virtpass recover",
                )
    host.run([_UDEVADM, "settle", f"--timeout={_SETTLE}"], _SETTLE + 1.0)


def _has_come(host: Host, address: PciAddress) -> Callable[[], bool]:
    """Return what tells whether a card has nodes, or is gone for good."""
    return lambda: not sysfs.is_present(host, address) or bool(_drm_nodes(host, address))


UNDO = {**services.UNDO, NODES: wait_for_nodes}
