"""The desktop lets go of a card before it is lent, and comes back when the card is back.

First the display manager, so that it does not start another session in place of one that ends; then services
and sessions that have the card open; then the consoles on it. What is stopped is on record before. Whoever
can be asked by nobody, such as a container, is named before anything is stopped.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import os
import select
import time

from virtpass.binding import attributes, engine, owners
from virtpass.binding.holders import SYSTEMD, holders, named
from virtpass.binding.journal import Journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host

_SYSTEMCTL = "/usr/bin/systemctl"
_LOGINCTL = "/usr/bin/loginctl"
_UDEVADM = "/usr/bin/udevadm"
# systemd itself ends a service that does not end, after 90 s unless the service says otherwise.
STOP_DEADLINE = 100.0
_START_DEADLINE = 60.0
_NODE_DEADLINE = 15.0
_SETTLE = 10
# Between two looks at who still has the card, when none of those who had it ends.
_LOOK = 0.2
# A session that ends may let another program have the card for a moment, such as the login screen.
_ROUNDS = 4

UNIT, NODES = "unit", "display"

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


def stoppable(host: Host, addresses: list[PciAddress]) -> tuple[list[str], list[str]]:
    """Return which units and sessions would be ended so that devices are free.

    Raises:
        RefusedError: somebody has one open who cannot be asked; the message names him.
    """
    found = holders(host, addresses)
    units, ended = _who(host, found)
    stuck = [one for one in found if not _can_go(host, one)]
    if stuck:
        raise _held(stuck, "end it first")
    manager = owners.display_manager(host)
    if manager and (ended or manager in units):
        units = [manager, *(one for one in units if one != manager)]
    return units, ended


def hand_over(host: Host, journal: Journal, addresses: list[PciAddress], wait: float) -> list[str]:
    """Take devices from the desktop.

    Args:
        host: the host.
        journal: what is stopped is put on record there.
        addresses: the devices.
        wait: seconds that programs have to let go, after they were asked.

    Returns:
        what was done, as sentences without a full stop.

    Raises:
        RefusedError: somebody still has one open; what was stopped is on record.
        FailedError: a service does not stop.
    """
    done: list[str] = []
    had_nodes = [one for one in addresses if _drm_nodes(host, one)]
    asked: set[str] = set()
    for _ in range(_ROUNDS):
        units, ended = stoppable(host, addresses)
        units = [one for one in units if one not in asked]
        ended = [one for one in ended if one not in asked]
        for unit in units:
            asked.add(unit)
            journal.add((UNIT, unit))
            done.append(f"{unit} stopped")
            if host.run([_SYSTEMCTL, "stop", "--", unit], STOP_DEADLINE) != 0:
                raise FailedError("service", f"{unit} cannot be stopped", f"look at: systemctl status {unit}")
        for session in ended:
            asked.add(session)
            done.append(f"session {session} ended")
            host.run([_LOGINCTL, "terminate-session", session], STOP_DEADLINE)
        if asked and not units and not ended:
            break  # they have had their time
        if not _wait_for_free(host, addresses, wait):
            break
    if left := holders(host, addresses):
        raise _held(left, "end it first, or give it more time (virtpass domain policy DOMAIN wait=SECONDS)")
    _leave_consoles(host, journal, addresses)
    if had_nodes:
        # Last, so that it is waited for first on the way back.
        journal.add((NODES, *map(str, had_nodes)))
    return done


def _who(host: Host, found: list[Held]) -> tuple[list[str], list[str]]:
    """Return the units and the sessions to which processes belong; kept ones are left out."""
    units: list[str] = []
    ended: list[str] = []
    known = owners.sessions(host)
    for process, _, _ in found:
        kind, name = owners.owner(host, process)
        if kind == owners.UNIT and name not in _KEPT | _NEEDED:
            units.append(name)
        for identifier, user, seat, terminal in known:
            is_its = (kind == owners.SESSION and identifier == name) or (kind == owners.USER and user == name)
            if is_its and seat:
                ended.append(identifier)
                # It may log in by itself again.
                units += [unit for unit in [owners.getty(host, terminal)] if unit]
    return list(dict.fromkeys(units)), list(dict.fromkeys(ended))


def _can_go(host: Host, held: Held) -> bool:
    """Tell whether a process ends, or lets go, when its unit or its session at a seat does."""
    if held[0] == SYSTEMD:
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
        _wait_for_one(host, [process for process, _, _ in found], min(remaining, _LOOK))
    return False


def _wait_for_one(host: Host, processes: list[int], seconds: float) -> None:
    """Return when one of the processes ends, or after some time: letting go without ending tells nobody."""
    poll = select.poll()
    opened = []
    try:
        for process in processes:
            try:
                opened.append(os.pidfd_open(process))
            except OSError:
                return
            poll.register(opened[-1], select.POLLIN)
        poll.poll(seconds * 1000)
    finally:
        for descriptor in opened:
            os.close(descriptor)


def _drm_nodes(host: Host, address: PciAddress) -> list[str]:
    names = host.names(f"{sysfs.device_path(address)}/drm")
    return [name for name in names if name.startswith("card")]


def _leave_consoles(host: Host, journal: Journal, addresses: list[PciAddress]) -> None:
    """Take the text consoles off the card, unless they are on another one too."""
    screens = [host.real_path(f"/sys/class/graphics/{name}") for name in host.names("/sys/class/graphics")]
    cards = {controller(path) for path in screens if path.rpartition("/")[2].startswith("fb")} - {None}
    # One console driver serves all framebuffers.
    if not cards or not cards <= set(addresses):
        return
    wanted = []
    for name in host.names("/sys/class/vtconsole"):
        path = f"/sys/class/vtconsole/{name}"
        if "frame buffer" in (host.read(f"{path}/name") or ""):
            wanted.append((f"{path}/bind", "0"))
    attributes.change(host, journal, wanted)


def start_again(host: Host, fields: tuple[str, ...]) -> None:
    """Start a service that was stopped.

    Raises:
        FailedError: it does not start.
        ValueError: the record is none.
    """
    (unit,) = fields
    if not owners.is_unit(unit):
        raise ValueError("not the name of a service")
    # Some have been started so often that systemd would refuse.
    host.run([_SYSTEMCTL, "reset-failed", "--", unit], _START_DEADLINE)
    if host.run([_SYSTEMCTL, "start", "--", unit], _START_DEADLINE) != 0:
        raise FailedError("service", f"{unit} does not start again", f"look at: systemctl status {unit}")


def wait_for_nodes(host: Host, fields: tuple[str, ...]) -> None:
    """Wait until the cards have their nodes again, and udev has done with them.

    Raises:
        FailedError: one has none after some time, or its driver hangs.
    """
    end = time.monotonic() + _NODE_DEADLINE
    for text in fields:
        address = PciAddress.parse(text)
        engine.refuse_stuck(host, address)
        while sysfs.is_present(host, address) and not _drm_nodes(host, address):
            if time.monotonic() >= end:
                raise FailedError(
                    "no-display",
                    f"{address} is back, but its driver shows no display",
                    "look at the kernel log, then run virtpass recover",
                )
            time.sleep(0.02)
    host.run([_UDEVADM, "settle", f"--timeout={_SETTLE}"], _SETTLE + 1.0)


UNDO = {UNIT: start_again, NODES: wait_for_nodes}
