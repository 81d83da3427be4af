"""What the hook would do at the next start of a domain, step by step; nothing is written."""

from dataclasses import dataclass

from virtpass.binding import display, engine, nvidia, steps
from virtpass.hook.checks import Checked, check
from virtpass.hook.request import Request, parse_request
from virtpass.pci import sysfs
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.host import Host


@dataclass(frozen=True, slots=True)
class RehearsedStep:
    """One step.

    Attributes:
        text: what is done, one sentence without a full stop.
        bound: seconds after which it would be given up; None where it takes next to no time.
    """

    text: str
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A start as it would go now.

    Attributes:
        name: the domain.
        uuid: its UUID.
        steps: what would be done, in order; empty when the start would be refused.
        problem: why it would be refused; None when it would not.
    """

    name: str
    uuid: str
    steps: tuple[RehearsedStep, ...]
    problem: VirtpassError | None


def rehearse(host: Host, xml: str) -> Rehearsal:
    """Rehearse the start of a domain.

    Args:
        host: the host.
        xml: the domain's XML, as libvirt formats it.

    Raises:
        UsageError: the XML is not that of a domain.
        RefusedError: the hook would have nothing to do with it.
    """
    request = parse_request(xml.encode("utf-8", "surrogateescape"))
    if not request.is_ours or not (request.devices or request.problem):
        raise RefusedError(
            "not-ours",
            f"the hook would let '{request.name}' start as it is: virtpass looks after no device of it",
            "virtpass domain adopt or attach changes that",
        )
    try:
        checked = check(host, request, loads=False)
    except VirtpassError as error:
        return Rehearsal(request.name, request.uuid, (), error)
    return Rehearsal(request.name, request.uuid, tuple(_steps(host, request, checked)), None)


def _steps(host: Host, request: Request, checked: Checked) -> list[RehearsedStep]:
    lent = [*request.devices, *checked.companions]
    found = [RehearsedStep("check the devices, their group, and who uses them")]
    if not host.exists(f"{sysfs.DRIVERS}/{engine.VFIO}"):
        found.append(RehearsedStep("load the modules of VFIO", engine.MODULE_DEADLINE))
    if checked.tuning is not None:
        found += [RehearsedStep(sentence) for sentence in checked.tuning.sentences]
    found += [RehearsedStep(f"run {path}", steps.DEADLINE) for path in steps.programs(host, steps.PREPARE)]
    if checked.hands_over:
        units, sessions = display.stoppable(host, lent)
        found += [RehearsedStep(f"stop {unit}", display.STOP_DEADLINE) for unit in units]
        found += [RehearsedStep(f"end session {one}", display.STOP_DEADLINE) for one in sessions]
        if units or sessions:
            wait = float(checked.policy.wait)
            found.append(RehearsedStep("wait until nobody uses the devices any more", wait))
        found += [RehearsedStep(f"unload {name}", nvidia.DEADLINE) for name in nvidia.loaded(host, lent)]
    free = frozenset(checked.companions if checked.policy.companions == "free" else ())
    moves = engine.steps_to_lend(engine.homes(host, lent), free)
    return [*found, *(RehearsedStep(str(move), engine.DEADLINE) for move in moves)]
