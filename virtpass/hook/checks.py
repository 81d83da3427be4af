"""All that can be checked of a domain's start before the first write.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.binding import effects, engine, framebuffers, holders, safety
from virtpass.binding.journal import is_uuid
from virtpass.binding.policy import Policy, parse_policy
from virtpass.hook.request import Request
from virtpass.pci.address import PciAddress
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.binding.tuning import Plan


class Checked:
    """What came of the checks.

    Attributes:
        policy: the domain's policy.
        companions: the other functions of its cards, which go along.
        tuning: what is to be changed of the host's memory and processors; None for nothing.
        has_steps: whether there may be steps of the administrator's.
        warning: what the host loses while the domain runs, and what could not be looked at; empty for
            nothing.
    """

    def __init__(self, policy: Policy, companions: list[PciAddress], *, has_steps: bool) -> None:
        self.policy = policy
        self.companions = companions
        self.tuning: Plan | None = None
        self.has_steps = has_steps
        self.warning = ""

    @property
    def hands_over(self) -> bool:
        """Whether the desktop is asked to let go."""
        return self.policy.display == "hand-over"


def check(
    host: Host, request: Request, *, loads: bool = True, freed: frozenset[str] = frozenset()
) -> Checked:
    """Check a start.

    Args:
        host: the host.
        request: the domain.
        loads: whether modules of VFIO may be loaded; one has a parameter that allows unsafe interrupts.
        freed: UUIDs of domains whose devices are given back before; none when that has been done.

    Raises:
        VirtpassError: the domain must not start.
    """
    if request.problem is not None:
        raise request.problem
    policy = parse_policy(request.policy)
    if not is_uuid(request.uuid):
        raise RefusedError("uuid", f"'{request.uuid}' is not a UUID")
    safety.refuse_switched_off(host)
    companions = safety.companions(host, request.devices)
    lent = [*request.devices, *companions]
    safety.refuse_lent(host, lent, request.uuid, freed=freed)
    for address in lent:
        engine.refuse_stuck(host, address)
    recorded = {one: was for one, was in request.identities.items() if one in request.devices}
    safety.refuse_moved(host, recorded, request.name)
    for address in lent:
        safety.refuse_unassignable(host, address)
    if loads:
        engine.load_vfio(host)
    checked = Checked(policy, companions, has_steps=host.exists(effects.STEPS_DIRECTORY))
    safety.refuse_unsafe(host, lent, hands_over=checked.hands_over)
    framebuffers.refuse_in_the_way(host, lent, hands_over=checked.hands_over)
    if checked.has_steps:
        from virtpass.binding import steps

        steps.refuse_unsafe(host)
    warnings: list[str] = []
    # Here and below not at the top: most domains do without.
    if checked.hands_over:
        from virtpass.binding import display, nvidia

        nvidia.refuse_shared(host, lent)
        nvidia.refuse_lasting_unload(host, lent)
        display.stoppable(host, lent)
        warnings.append(framebuffers.warning(host, lent))
    if checked.hands_over or any(framebuffers.has_display(host, one) for one in lent):
        from virtpass.binding import reach

        # Without a hand-over nobody uses the card, but the console of the host may be on it.
        lost = reach.warning(host, lent) if checked.hands_over else reach.refuse_last(host, lent)
        warnings.insert(0, lost)
    # Last: it tells of the latest look at the programs.
    warnings.append(holders.unseen(host))
    checked.warning = "; ".join(one for one in warnings if one)
    if policy.huge_pages != "no" or policy.isolate_cpus != "no" or policy.governor != "keep":
        from virtpass.binding import tuning

        checked.tuning = tuning.plan(
            host,
            request.uuid,
            request.demand,
            huge_pages=policy.huge_pages == "yes",
            isolate_cpus=policy.isolate_cpus == "yes",
            governor=policy.governor,
        )
    return checked
