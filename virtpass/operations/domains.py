"""Which domain has which device, and what the hook may do: attach, detach, adopt, show, policy."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from virtpass.binding.functions import announced
from virtpass.binding.policy import Policy
from virtpass.domain.document import normalise
from virtpass.domain.hostdev import Hostdev, parse_hostdevs
from virtpass.domain.metadata import parse_passthrough
from virtpass.domain.plan import (
    DomainPlan,
    no_policy,
    plan_adopt,
    plan_attach,
    plan_detach,
    plan_policy,
    plan_release,
)
from virtpass.domain.proof import difference
from virtpass.domain.templates import load_templates
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.inventory import Inventory, read_device, read_inventory
from virtpass.pci.isolation import Level, judge, must_go_along
from virtpass.system.errors import FailedError, NotFoundError, RefusedError, UsageError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection, Domain, virsh

# Reasons against a device that are the same for all of them: what mends these shows nowhere at the device.
_OF_HOST = ("no-iommu", "no-interrupt-remapping")


@dataclass(frozen=True, slots=True)
class DomainResult:
    """What was done to a domain, or would be.

    Attributes:
        plan: the change.
        is_applied: whether it was made; False for a dry run and when there was nothing to do.
        notes: what a user should know besides.
    """

    plan: DomainPlan
    is_applied: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DomainDevice:
    """A device of a domain.

    Attributes:
        address: where it is on the host.
        hostdev: what the domain's XML says of it; None when it is recorded only.
        recorded: what it was when it was attached; None when virtpass does not look after it.
        seen: what is at the address now; None when there is nothing.
    """

    address: PciAddress
    hostdev: Hostdev | None
    recorded: Identity | None
    seen: Identity | None

    @property
    def is_as_recorded(self) -> bool:
        """Whether the device that was recorded is still there."""
        return self.recorded is not None and self.seen is not None and self.recorded.is_same_device(self.seen)


@dataclass(frozen=True, slots=True)
class DomainReport:
    """A domain and its devices.

    Attributes:
        name: the domain's name.
        uuid: its UUID.
        is_active: whether it runs.
        is_persistent: whether it has a definition that outlives a run.
        is_ours: whether it has our metadata, so that the hook looks after it.
        policy: what the hook may do; None when it is not ours.
        devices: its PCI devices, by address.
        problem: what in its XML is not understood; empty when all is.
    """

    name: str
    uuid: str
    is_active: bool
    is_persistent: bool
    is_ours: bool
    policy: Policy | None
    devices: tuple[DomainDevice, ...]
    problem: str

    @property
    def unrecorded(self) -> tuple[PciAddress, ...]:
        """Which devices are there and not on record, and would be if the domain were adopted."""
        return tuple(
            one.address
            for one in self.devices
            if one.recorded is None and one.seen is not None and one.hostdev and one.hostdev.kind == "hostdev"
        )


def attach(
    connection: Connection,
    host: Host,
    name: str,
    addresses: Iterable[PciAddress],
    *,
    policy: Mapping[str, str] | None = None,
    whole_card: bool = True,
    is_isolated: bool = True,
    expected: str = "",
    dry_run: bool = False,
) -> DomainResult:
    """Give devices to a domain, from its next start on.

    Args:
        connection: libvirt.
        host: where the devices are.
        name: the domain's name or UUID.
        addresses: the devices.
        policy: values of the policy to set, by key.
        whole_card: attach all functions of their slots; the virtual functions of a card do not count.
        is_isolated: whether they can be isolated as things are, and are judged for it.
        expected: the domain's XML as somebody has seen it in a plan; empty for whatever it is.
        dry_run: plan only.

    Raises:
        UsageError: the policy is not known.
        NotFoundError: no such domain or device.
        RefusedError: the domain runs, is transient or has a saved state; a device cannot be isolated as
            things are; the guest has no room.
        FailedError: libvirt did not accept the change; the domain is as it was.
    """
    domain = _resting(connection, name)
    xml = domain.inactive_xml()
    inventory = read_inventory(host)
    wanted = _cards(inventory, addresses) if whole_card else sorted(set(addresses))
    present = {hostdev.source for hostdev in parse_hostdevs(xml)}
    command = f"virtpass domain attach {shlex.quote(domain.name)}{'' if whole_card else ' --single'}"
    notes = _judged(inventory, wanted, frozenset(wanted) | present, command) if is_isolated else ()
    devices = [(address, read_device(host, address).identity) for address in wanted]
    virtual = _virtual(host, present | set(wanted))
    plan = plan_attach(xml, devices, connection.version, load_templates(host), policy=policy, virtual=virtual)
    if expected and plan.before != expected:
        raise _changed(domain.name)
    return _finish(connection, domain, plan, dry_run, notes + _shared(connection, plan, wanted))


def detach(
    connection: Connection,
    host: Host,
    name: str,
    addresses: Iterable[PciAddress],
    *,
    whole_card: bool = True,
    dry_run: bool = False,
) -> DomainResult:
    """Take devices out of a domain.

    The devices need not exist any more.

    Args:
        connection: libvirt.
        host: where templates of the user may be.
        name: the domain's name or UUID.
        addresses: the devices.
        whole_card: detach all functions of their slots that the domain has; virtual functions do not count.
        dry_run: plan only.

    Raises:
        NotFoundError: no such domain, or it does not have a device.
        RefusedError: the domain runs, is transient or has a saved state, or part of a card would stay behind
            unseen by the guest.
        FailedError: libvirt did not accept the change; the domain is as it was.
    """
    domain = _resting(connection, name)
    xml = domain.inactive_xml()
    going = set(addresses)
    if whole_card:
        hostdevs = {hostdev.source for hostdev in parse_hostdevs(xml) if hostdev.kind == "hostdev"}
        virtual = _virtual(host, hostdevs | going)
        physical = going - virtual
        going |= {
            source for source in hostdevs - virtual if any(source.same_slot(address) for address in physical)
        }
    return _finish(connection, domain, plan_detach(xml, going, load_templates(host)), dry_run)


def adopt(connection: Connection, host: Host, name: str, *, dry_run: bool = False) -> DomainResult:
    """Look after the devices that a domain has already.

    Args:
        connection: libvirt.
        host: where the devices are.
        name: the domain's name or UUID.
        dry_run: plan only.

    Raises:
        NotFoundError: no such domain, or the host does not have one of its devices.
        RefusedError: the domain runs, is transient or has a saved state, or has no PCI device.
        FailedError: libvirt did not accept the change; the domain is as it was.
    """
    domain = _resting(connection, name)
    xml = domain.inactive_xml()
    devices = {hostdev.source for hostdev in parse_hostdevs(xml)}
    plan = plan_adopt(
        xml,
        lambda address: read_device(host, address).identity,
        load_templates(host),
        virtual=_virtual(host, devices),
    )
    return _finish(connection, domain, plan, dry_run, _shared(connection, plan, devices))


def release(connection: Connection, host: Host, name: str, *, dry_run: bool = False) -> DomainResult:
    """Take out of a domain all that virtpass has written; what was there before stays.

    Args:
        connection: libvirt.
        host: where templates of the user may be.
        name: the domain's name or UUID.
        dry_run: plan only.

    Raises:
        NotFoundError: no such domain.
        RefusedError: virtpass does not look after it, or it runs, is transient or has a saved state.
        FailedError: libvirt did not accept the change; the domain is as it was.
    """
    domain = _resting(connection, name)
    return _finish(connection, domain, plan_release(domain.inactive_xml(), load_templates(host)), dry_run)


def policy(connection: Connection, name: str) -> Policy:
    """Return what the hook may do with a domain from its next start on.

    Raises:
        NotFoundError: no such domain.
        UsageError: its metadata is not understood.
        RefusedError: virtpass does not look after it.
    """
    domain = connection.domain(name)
    passthrough = parse_passthrough(domain.shown_xml())
    if passthrough is None:
        raise no_policy(domain.name)
    return passthrough.policy


def set_policy(
    connection: Connection, host: Host, name: str, settings: Mapping[str, str], *, dry_run: bool = False
) -> DomainResult:
    """Change what the hook may do with a domain, from its next start on.

    Args:
        connection: libvirt.
        host: where templates of the user may be.
        name: the domain's name or UUID; it may run.
        settings: values by key; all others stay.
        dry_run: plan only.

    Raises:
        UsageError: a setting or the domain's metadata is not understood.
        NotFoundError: no such domain.
        RefusedError: virtpass does not look after the domain, or it is transient.
        FailedError: libvirt did not accept the change; the domain is as it was.
    """
    domain = _persistent(connection, name)
    plan = plan_policy(domain.inactive_xml(), settings, load_templates(host))
    notes = []
    if domain.is_active:
        notes.append(f"domain '{domain.name}' is running; this counts from its next start on")
    elif domain.has_saved_state:
        notes.append(f"domain '{domain.name}' has a saved state; this counts once it starts without it")
    return _finish(connection, domain, plan, dry_run, () if plan.is_empty else tuple(notes))


def show(connection: Connection, host: Host, name: str) -> DomainReport:
    """Return a domain and its devices.

    Raises:
        NotFoundError: no such domain.
    """
    return _report(connection.domain(name), host)


def list_domains(connection: Connection, host: Host) -> list[DomainReport]:
    """Return all domains with their devices, by name."""
    return [_report(domain, host) for domain in connection.domains()]


def _persistent(connection: Connection, name: str) -> Domain:
    """Return a domain that has a definition to change."""
    domain = connection.domain(name)
    if not domain.is_persistent:
        raise RefusedError(
            "transient",
            f"domain '{domain.name}' is transient: it has no definition that a change could go into",
            f"define it first with: {virsh('define', 'FILE', uri=connection.uri)}",
        )
    return domain


def _resting(connection: Connection, name: str) -> Domain:
    """Return a domain whose devices may be changed."""
    domain = _persistent(connection, name)
    if domain.is_active:
        raise RefusedError("running", f"domain '{domain.name}' is running", "shut it down first")
    if domain.has_saved_state:
        raise RefusedError(
            "saved-state",
            f"domain '{domain.name}' has a saved state, and would go on with the devices in that",
            "start it and shut it down, or drop the state with: "
            f"{virsh('managedsave-remove', domain.name, uri=connection.uri)}",
        )
    return domain


def _virtual(host: Host, addresses: Iterable[PciAddress]) -> frozenset[PciAddress]:
    """Return those that are virtual functions, or will be on demand; what else is gone counts as none."""
    coming = announced(host)
    return frozenset(address for address in addresses if address in coming or _is_virtual(host, address))


def _is_virtual(host: Host, address: PciAddress) -> bool:
    try:
        return read_device(host, address).physical_function is not None
    except NotFoundError:
        return False


def _cards(inventory: Inventory, addresses: Iterable[PciAddress]) -> list[PciAddress]:
    """Return the devices with the other functions of their cards."""
    wanted: set[PciAddress] = set()
    for address in addresses:
        wanted.add(address)
        if inventory.device(address).physical_function is None:
            wanted.update(
                other
                for other in inventory.card(address)
                if inventory.device(other).physical_function is None
            )
    return sorted(wanted)


def _judged(
    inventory: Inventory, wanted: Iterable[PciAddress], going: frozenset[PciAddress], command: str
) -> tuple[str, ...]:
    """Refuse devices that no domain could start with as things are; return what to know of the others.

    Args:
        inventory: the host.
        wanted: the devices.
        going: these, and what else goes to the same domain.
        command: what attaches devices, without their addresses.
    """
    verdicts = [judge(inventory, address, going) for address in wanted]
    for verdict in verdicts:
        if not verdict.is_refused:
            continue
        remedy = f"virtpass device show {verdict.address} tells more"
        if any(one.reference in _OF_HOST and one.level is not Level.READY for one in verdict.reasons):
            remedy = "virtpass doctor says what mends it"
        if all(one.level in (Level.READY, Level.SHARED) for one in verdicts):
            together = {*wanted, *(one for address in wanted for one in must_go_along(inventory, address))}
            remedy = f"{command} {' '.join(map(str, sorted(together)))}"
        reasons = [reason.text for reason in verdict.reasons if reason.level is not Level.READY]
        raise RefusedError(
            "not-isolated",
            f"{verdict.address} cannot be given to a domain: {', '.join(reasons)}",
            remedy,
        )
    return tuple(f"{verdict.address}: {reason.text}" for verdict in verdicts for reason in verdict.reasons)


def _shared(connection: Connection, plan: DomainPlan, addresses: Iterable[PciAddress]) -> tuple[str, ...]:
    """Say which other domains have the same devices: allowed, as long as they take turns."""
    wanted = set(addresses)
    notes = []
    for domain in connection.domains():
        if domain.uuid == plan.uuid:
            continue
        try:
            theirs = wanted & {hostdev.source for hostdev in parse_hostdevs(domain.shown_xml())}
        except VirtpassError:
            continue  # gone meanwhile, or XML that is not for us to judge
        if theirs:
            devices = ", ".join(str(address) for address in sorted(theirs))
            notes.append(f"domain '{domain.name}' has {devices} too; only one of them can run at a time")
    return tuple(notes)


def _finish(
    connection: Connection, domain: Domain, plan: DomainPlan, dry_run: bool, notes: tuple[str, ...] = ()
) -> DomainResult:
    """Define the planned XML and prove that libvirt took it as it was meant."""
    notes = plan.notes + notes
    if dry_run or plan.is_empty:
        return DomainResult(plan, is_applied=False, notes=notes)
    old = domain.inactive_xml()
    if normalise(old) != plan.before:
        raise _changed(domain.name)
    defined = connection.define(plan.after)
    try:
        wrong = difference(plan.after, defined.inactive_xml())
    except VirtpassError as error:
        wrong = error.what
    if wrong:
        _restore(connection, domain, old)
        raise FailedError(
            "not-as-planned",
            f"libvirt did not take the change as planned ({wrong}); domain '{domain.name}' is as it was",
        )
    return DomainResult(plan, is_applied=True, notes=notes)


def _changed(name: str) -> RefusedError:
    return RefusedError("changed", f"domain '{name}' was changed meanwhile", "run the command again")


def _restore(connection: Connection, domain: Domain, old: str) -> None:
    """Define the old XML again.

    Raises:
        FailedError: that did not work; the old XML is in the error's notes.
    """
    try:
        # Without validation: this is what libvirt had accepted before.
        back = connection.define(old, validate=False).inactive_xml()
        problem = "" if normalise(back) == normalise(old) else "it differs"
    except VirtpassError as error:
        problem = error.what
    if problem:
        failure = FailedError(
            "not-restored",
            f"libvirt changed domain '{domain.name}' otherwise than planned, and not back: {problem}",
            f"look at it with: {virsh('edit', domain.name, uri=connection.uri)}",
        )
        failure.add_note(old)
        raise failure


def _report(domain: Domain, host: Host) -> DomainReport:
    xml = domain.shown_xml()
    hostdevs: dict[PciAddress, Hostdev] = {}
    passthrough, problem = None, ""
    try:
        hostdevs = {hostdev.source: hostdev for hostdev in parse_hostdevs(xml)}
        passthrough = parse_passthrough(xml)
    except UsageError as error:
        problem = error.line
    recorded = {device.address: device.identity for device in passthrough.devices} if passthrough else {}
    return DomainReport(
        domain.name,
        domain.uuid,
        domain.is_active,
        domain.is_persistent,
        is_ours=passthrough is not None,
        policy=passthrough.policy if passthrough else None,
        devices=tuple(
            DomainDevice(address, hostdevs.get(address), recorded.get(address), _seen(host, address))
            for address in sorted(hostdevs.keys() | recorded.keys())
        ),
        problem=problem,
    )


def _seen(host: Host, address: PciAddress) -> Identity | None:
    try:
        return read_device(host, address).identity
    except NotFoundError:
        return None
