"""Where the user stands, and the one next step."""

import shlex
from dataclasses import dataclass

from virtpass.binding.journal import journals
from virtpass.hook.install import HookStatus, hook_status
from virtpass.operations.devices import DeviceReport, lent_devices, reports
from virtpass.operations.domains import DomainReport, list_domains
from virtpass.pci.inventory import read_inventory
from virtpass.pci.isolation import Level
from virtpass.system.errors import PermissionDeniedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM
from virtpass.system.recorded_libvirt import connect

# Written by `virtpass.operations.setup`, whose imports would take longer than all of this.
SETUP_RECORD = "/var/lib/virtpass/setup"
# A daemon that hangs must not keep anybody from seeing the rest.
_LIBVIRT_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Overview:
    """Where the user stands.

    Attributes:
        groups: number of IOMMU groups; 0 when no IOMMU is active.
        interrupts_are_safe: whether interrupts are remapped, or allowed not to be.
        displays: the graphics cards.
        lent: devices that domains have borrowed.
        hook: what is installed.
        domains: domains with PCI devices; None when libvirt does not answer.
        libvirt_problem: why it does not; empty when it does.
        unfinished: UUIDs of domains that have borrowed devices and do not run.
        next_step: the command to type next, or a sentence.
    """

    groups: int
    interrupts_are_safe: bool
    displays: tuple[DeviceReport, ...]
    lent: tuple[DeviceReport, ...]
    hook: HookStatus
    domains: tuple[DomainReport, ...] | None
    libvirt_problem: str
    unfinished: tuple[str, ...]
    next_step: str


def overview(host: Host, uri: str = SYSTEM) -> Overview:
    """Look at everything; needs no permission, and sees less without."""
    inventory = read_inventory(host)
    lent = lent_devices(host)
    shown = [one for one in inventory.devices.values() if one.is_display or one.address in lent]
    shown_reports = reports(inventory, shown)
    cards = [one for one in shown_reports if one.device.is_display]
    borrowed = [one for one in shown_reports if one.lent_to is not None]
    hook = hook_status(host)
    domains, problem = _domains(host, uri)
    running = {one.uuid for one in domains or () if one.is_active}
    unfinished = tuple(uuid for uuid in journals(host) if domains is not None and uuid not in running)
    with_devices = None if domains is None else tuple(one for one in domains if one.devices)
    return Overview(
        groups=len(inventory.groups),
        interrupts_are_safe=inventory.interrupts_are_safe,
        displays=tuple(cards),
        lent=tuple(borrowed),
        hook=hook,
        domains=with_devices,
        libvirt_problem=problem.line if problem is not None else "",
        unfinished=unfinished,
        next_step=_next_step(
            host,
            cards,
            hook,
            with_devices,
            problem,
            has_iommu=bool(inventory.groups),
            is_unfinished=bool(unfinished),
        ),
    )


def _domains(host: Host, uri: str) -> tuple[list[DomainReport] | None, VirtpassError | None]:
    try:
        with connect(host, uri, deadline=_LIBVIRT_DEADLINE) as connection:
            return list_domains(connection, host), None
    except VirtpassError as error:
        return None, error


def _next_step(
    host: Host,
    displays: list[DeviceReport],
    hook: HookStatus,
    domains: tuple[DomainReport, ...] | None,
    problem: VirtpassError | None,
    *,
    has_iommu: bool,
    is_unfinished: bool,
) -> str:
    if host.exists(SETUP_RECORD):
        return "sudo virtpass setup (it goes on after the reboot)"
    if is_unfinished:
        return "sudo virtpass recover"
    if not has_iommu and not _takes_an_argument(host):
        return "virtpass doctor"
    if problem is not None and not isinstance(problem, PermissionDeniedError):
        # Setting up takes libvirt, too.
        return problem.remedy or "virtpass doctor"
    if not has_iommu:
        return "sudo virtpass setup"
    if domains is None:
        return "sudo virtpass"
    ours = [one for one in domains if one.is_ours]
    if not hook.works and hook.state != "unknown":
        return "sudo virtpass setup" if hook.state == "absent" and not ours else "sudo virtpass hook install"
    if not ours:
        foreign = [one for one in domains if not one.is_active]
        if foreign:
            return _look_after(foreign[0], displays)
        ready = [card for card in displays if card.verdict.level is Level.READY]
        address = str(ready[0].device.address) if ready else "ADDRESS"
        return f"sudo virtpass setup {address} DOMAIN"
    resting = [one for one in ours if not one.is_active]
    if not resting:
        return "nothing: all is as it should be"
    if half := [one for one in resting if one.unrecorded]:
        return f"virtpass domain adopt {shlex.quote(half[0].name)}"
    # Not the start: it may be refused, or end the desktop of whoever types it. The rehearsal tells that.
    return f"virtpass hook rehearse {shlex.quote(resting[0].name)}"


def _look_after(domain: DomainReport, displays: list[DeviceReport]) -> str:
    """Return how a domain with devices gets looked after: with a card, setup asks what else it takes."""
    name = shlex.quote(domain.name)
    cards = {card.device.address for card in displays}
    for one in domain.devices:
        if one.address in cards:
            return f"sudo virtpass setup {one.address} {name}"
    return f"virtpass domain adopt {name}"


def _takes_an_argument(host: Host) -> bool:
    """Tell whether a kernel argument would switch the IOMMU on."""
    # Not at the top: only a host without one takes the time.
    from virtpass.host.facts import read_facts
    from virtpass.host.iommu import IommuState, read_iommu

    return read_iommu(read_facts(host)).state is IommuState.ARGUMENT_MISSING
