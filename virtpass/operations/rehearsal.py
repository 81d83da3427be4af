"""What the hook would do at the next start of a domain, step by step; nothing is written."""

import os
from copy import copy
from dataclasses import dataclass

from virtpass.binding import (
    attributes,
    audio,
    display,
    engine,
    framebuffers,
    functions,
    governors,
    holders,
    huge_pages,
    interrupts,
    isolation,
    nvidia,
    others,
    power,
    reservations,
    safety,
    services,
    steps,
)
from virtpass.binding.display import Asked
from virtpass.binding.functions import Making
from virtpass.binding.journal import Home, Journal, is_uuid, read_journal
from virtpass.doctor.hooks import HOOK_STATES, INSTALL
from virtpass.doctor.scene import Outside
from virtpass.hook.checks import Checked, check
from virtpass.hook.install import HOOK, hook_status
from virtpass.hook.request import Request, parse_request
from virtpass.operations.recorded_outside import recorded_outside
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.daemon import active_daemon, last_change
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host
from virtpass.system.recorded import RecordedHost

# With these libvirt calls no hook of ours at all.
_UNCALLED = ("absent", "not-executable")

# How a step would go: as far as can be seen it succeeds; the start is refused there; it depends on programs
# that are asked then, or on what is not seen now.
OK, REFUSED, OPEN = "ok", "refused", "open"
_RECORDS = "look at what is on record, and at the virtual functions that are to be made"
_CHECK = "check the devices, their group, and who uses them"

# Seconds that undoing one effect may take, by its kind.
_UNDO_BOUNDS = {
    attributes.ATTRIBUTE: attributes.DEADLINE,
    audio.UNITS: audio.DEADLINE,
    display.NODES: display.NODES_BOUND,
    framebuffers.FRAMEBUFFER: framebuffers.DEADLINE,
    governors.GOVERNOR: governors.BOUND,
    huge_pages.HUGE_PAGES: huge_pages.DEADLINE,
    interrupts.INTERRUPT: interrupts.BOUND,
    others.ALLOWED: isolation.BOUND / len(isolation.UNITS),
    nvidia.MODULE: nvidia.LOAD_BOUND,
    services.UNIT: services.START_BOUND,
    steps.RUNNING: steps.DEADLINE,
}


@dataclass(frozen=True, slots=True)
class RehearsedStep:
    """One step.

    Attributes:
        text: what is done, one sentence without a full stop.
        bound: seconds after which it would be given up; None where it takes next to no time.
        is_undone: whether it is undone when the domain stops.
        verdict: ``ok``, ``refused`` or ``open``.
    """

    text: str
    bound: float | None = None
    is_undone: bool = True
    verdict: str = OK


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A start as it would go now.

    Attributes:
        name: the domain.
        uuid: its UUID.
        steps: what would be done, in order, to the one at which the start would be refused.
        problem: why it would be refused; None when it would not.
        warning: what the host loses while the domain runs, and why things may go otherwise: the hook is not
            installed, or the daemon does not know of it; empty for nothing.
        is_ours: whether the hook would do anything; if not, the domain starts as it is.
        is_called: whether libvirt would call this hook, as far as can be seen.
    """

    name: str
    uuid: str
    steps: tuple[RehearsedStep, ...]
    problem: VirtpassError | None
    warning: str = ""
    is_ours: bool = True
    is_called: bool = True


def rehearse(host: Host, xml: str, *, supposes_hook: bool = False) -> Rehearsal:
    """Rehearse the start of a domain.

    Args:
        host: the host.
        xml: the domain's XML, as libvirt formats it.
        supposes_hook: whether libvirt calls the hook by then, however it is now.

    Raises:
        UsageError: the XML is not that of a domain.
    """
    request = parse_request(xml.encode("utf-8", "surrogateescape"))
    if not request.is_ours or not (request.devices or request.problem):
        return Rehearsal(request.name, request.uuid, (), None, is_ours=False)
    otherwise = "" if supposes_hook else _otherwise(host)
    found = [RehearsedStep("wait for others who move devices", engine.LOCK_DEADLINE)]
    next_one = RehearsedStep(_RECORDS, verdict=REFUSED)
    try:
        left = _left_over(host, request)
        found += _to_give_back(host, request, left)
        freed = frozenset(journal.uuid for journal in left)
        makings = functions.needed(host, request.devices) if request.problem is None else []
        found += map(_to_make, makings)
        next_one = RehearsedStep(_CHECK, holders.LOOK_DEADLINE, verdict=REFUSED)
        there = copy(request)
        coming = [address for making in makings for address in making.wanted]
        there.devices = [address for address in request.devices if address not in coming]
        checked = check(host, there, loads=False, freed=freed)
        safety.refuse_lent(host, coming, request.uuid, freed=freed)
        found += _steps(host, there, checked, left, makings)
    except VirtpassError as error:
        found.append(next_one)
        return Rehearsal(request.name, request.uuid, tuple(found), error, otherwise, is_called=not otherwise)
    warning = "; ".join(one for one in (checked.warning, otherwise) if one)
    return Rehearsal(request.name, request.uuid, tuple(found), None, warning, is_called=not otherwise)


def _otherwise(host: Host) -> str:
    """Return why a start may not go as rehearsed: libvirt does not call this hook; empty if it does."""
    hook = hook_status(host)
    if hook.state == "unknown":
        return HOOK_STATES[hook.state]
    if not hook.works:
        so = "so none of this would happen" if hook.state in _UNCALLED else "so this may go otherwise"
        return f"{HOOK_STATES[hook.state]}, {so}: {INSTALL}"
    daemon = _daemon(host)
    if daemon.misses_hook:
        return (
            f"{daemon.daemon} has not looked for hooks since this one was written, so none of this may"
            f" happen: sudo systemctl reload {daemon.daemon}"
        )
    return ""


def _daemon(host: Host) -> Outside:
    """Return what the daemon knows of hooks; nothing where it does not tell."""
    if isinstance(host, RecordedHost):
        return recorded_outside(host)
    if host.root:
        return Outside()
    try:
        unit = active_daemon()
        looked = last_change(unit)[1] if unit is not None else None
        return Outside(daemon=unit or "", daemon_looked=looked, hook_written=os.stat(HOOK).st_mtime)
    except (VirtpassError, OSError):
        return Outside()


def _left_over(host: Host, request: Request) -> list[Journal]:
    """Return the records whose devices the hook would give back before it looks at anything."""
    own = read_journal(host, request.uuid) if is_uuid(request.uuid) else None
    wanted = [*request.devices, *safety.companions(host, request.devices)]
    return [*([own] if own else []), *reservations.stale(host, wanted, request.uuid)]


def _to_give_back(host: Host, request: Request, left: list[Journal]) -> list[RehearsedStep]:
    return [
        RehearsedStep(
            "give back what an earlier start left behind"
            if journal.uuid == request.uuid
            else f"give back what {journal.name} had borrowed",
            _give_back_bound(host, journal),
            is_undone=False,
        )
        for journal in left
    ]


def _to_make(making: Making) -> RehearsedStep:
    names = ", ".join(map(str, making.wanted))
    text = f"{making}; what does not exist yet ({names}) can be checked only then"
    return RehearsedStep(text, functions.DEADLINE, verdict=OPEN)


def _steps(
    host: Host, request: Request, checked: Checked, left: list[Journal], makings: list[Making]
) -> list[RehearsedStep]:
    """Return what would be done from the checks on."""
    lent = [*request.devices, *checked.companions]
    asked = display.stoppable(host, lent) if checked.hands_over else Asked([], [], [])
    # What is given back first looks otherwise by then.
    is_seen = not left and (_sees_all() or isinstance(host, RecordedHost))
    found = [RehearsedStep(_CHECK, _check_bound(asked), verdict=OK if is_seen else OPEN)]
    if not host.exists(f"{sysfs.DRIVERS}/{engine.VFIO}"):
        found.append(RehearsedStep("load the modules of VFIO", engine.MODULE_DEADLINE))
    if checked.tuning is not None:
        found += [
            RehearsedStep(sentence, bound or None) for sentence, bound in checked.tuning.bounded_sentences
        ]
    programs = steps.programs(host, steps.PREPARE)
    found += [RehearsedStep(f"run {path}", steps.DEADLINE, verdict=OPEN) for path in programs]
    if not checked.hands_over and (checked.tuning is not None or checked.has_steps):
        found.append(RehearsedStep("look once more who uses the devices", holders.LOOK_DEADLINE))
    awake = attributes.different(host, power.wanted(host, lent))
    found += [RehearsedStep(f"set {path} to {value}", attributes.DEADLINE) for path, value in awake]
    if checked.hands_over:
        found += _desktop(host, lent, asked, float(checked.policy.wait))
        found += _framebuffers(host, lent)
    free = frozenset(checked.companions if checked.policy.companions == "free" else ())
    back = {home.address: home for journal in left for home in journal.homes}
    homes = [back.get(home.address, home) for home in engine.homes(host, lent)]
    # Functions come without driver and override.
    homes += [Home(address, None, None) for making in makings for address in making.wanted]
    moves = engine.steps_to_lend(homes, free)
    if checked.hands_over and (unloaded := nvidia.loaded(host, lent)):
        # All else lets go before; an unbind of NVIDIA's is then none.
        first = [
            move
            for move in moves
            if move[1] != engine.PROBE and (move[1] != engine.UNBIND or move[2] != nvidia.DRIVER)
        ]
        found += [RehearsedStep(str(move), engine.DEADLINE) for move in first]
        found.append(RehearsedStep("keep modprobe from loading NVIDIA's modules again"))
        found += [RehearsedStep(f"unload {name}", nvidia.DEADLINE, verdict=OPEN) for name in unloaded]
        moves = [move for move in moves if move[1] == engine.PROBE]
    found += [RehearsedStep(str(move), engine.DEADLINE) for move in moves]
    return found + [
        RehearsedStep(
            f"start the sound servers of user {user} again, if he stays logged in",
            services.ASK_DEADLINE + audio.DEADLINE,
            verdict=OPEN,
        )
        for user in asked[2]
    ]


def _sees_all() -> bool:
    """Tell whether what everybody's programs have open is seen."""
    return os.geteuid() == 0


def _give_back_bound(host: Host, journal: Journal) -> float:
    """Return the seconds that giving back what is on record may take, if nobody moves it meanwhile."""
    now, _ = engine.present_state(host, journal)
    moves = engine.steps_to_give_back(journal.homes, now)
    undoing = sum(_UNDO_BOUNDS.get(kind, 0.0) for kind, *_ in journal.effects)
    if any(kind == steps.STEPS for kind, *_ in journal.effects):
        undoing += len(steps.programs(host, steps.RELEASE)) * steps.DEADLINE
    return engine.ORPHANS + engine.CLOSING + len(moves) * engine.DEADLINE + undoing


def _check_bound(asked: Asked) -> float:
    """Return the seconds that the checks may take; a device that does not answer ends them sooner."""
    units, _, listeners = asked
    asking = services.ASK_DEADLINE if units else 0.0
    return holders.LOOK_DEADLINE + asking + len(listeners) * audio.DEADLINE


def _desktop(host: Host, lent: list[PciAddress], asked: Asked, wait: float) -> list[RehearsedStep]:
    """Return how the desktop would let go."""
    found = []
    units, sessions, listeners = asked
    if units:
        along = services.taken_along(host, units)
        more = f", and with {'it' if len(units) == 1 else 'them'} {', '.join(along)}" if along else ""
        bound = services.ASK_DEADLINE + services.STOP_DEADLINE
        found.append(RehearsedStep(f"stop {', '.join(units)}{more}", bound))
    for user in listeners:
        if audio.may_ask(user):
            text = f"stop {', '.join(audio.running(host, user))} of user {user}"
            verdict = OK
        else:
            text = f"stop the sound servers of user {user} (cannot tell without root which ones run)"
            verdict = OPEN
        found.append(RehearsedStep(text, audio.DEADLINE, verdict=verdict))
    if sessions:
        text = f"end session {', '.join(sessions)}: what is not saved in it is lost"
        found.append(RehearsedStep(text, display.SESSION_DEADLINE, is_undone=False))
    if found:
        bound = wait + holders.LOOK_DEADLINE
        found.append(RehearsedStep("wait until nobody uses the devices any more", bound, verdict=OPEN))
    consoles = attributes.different(host, display.consoles(host, lent))
    found += [
        RehearsedStep(f"take the consoles off the card ({path})", attributes.DEADLINE) for path, _ in consoles
    ]
    return found


def _framebuffers(host: Host, lent: list[PciAddress]) -> list[RehearsedStep]:
    """Return how framebuffers of the firmware would let go."""
    found = []
    for one in framebuffers.over(host, lent):
        _, device, card = one
        is_undone = framebuffers.comes_back(host, one)
        text = f"take the framebuffer of the firmware off {card} ({device})"
        text += "" if is_undone else ": it does not come back before the next boot"
        found.append(RehearsedStep(text, framebuffers.DEADLINE, is_undone))
    return found
