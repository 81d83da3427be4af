"""From a card and a domain to a working passthrough: one plan over host, hook and domain, one way back."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from virtpass.binding.policy import DEFAULT_POLICY, Policy
from virtpass.domain.plan import DomainPlan
from virtpass.domain.policy import changed
from virtpass.hook.install import HookStatus, hook_status
from virtpass.host.decide import with_groups
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.iommu import IommuState, read_iommu
from virtpass.host.prepare import HostPlan
from virtpass.host.status import is_rebooted
from virtpass.host.wishes import Wishes
from virtpass.operations import domains, hooks, host_preparation
from virtpass.operations.devices import DeviceReport, reports
from virtpass.operations.overview import SETUP_RECORD
from virtpass.operations.rehearsal import Rehearsal, rehearse
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.inventory import Inventory, read_device, read_inventory
from virtpass.system.commands import run_command
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.transaction.engine import Runner

_DIRECTORY, _, _NAME = SETUP_RECORD.rpartition("/")
# Policies name no secret, but nobody else needs to know which domain gets what.
_MODE = 0o600

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SetupWish:
    """What somebody wants to have set up.

    Attributes:
        address: one function of the card.
        domain: the domain's name.
        policy: values of the policy, by key.
        bind: whether vfio-pci shall have the card from boot on.
        unsafe_interrupts: whether interrupts that are not remapped are accepted.
        bootloader: name of the bootloader when it cannot be told; empty for finding out.
    """

    address: PciAddress
    domain: str
    policy: Mapping[str, str] = field(default_factory=dict)
    bind: bool = False
    unsafe_interrupts: bool = False
    bootloader: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """A setup that waits for a reboot.

    Attributes:
        wish: what was asked for.
        identity: what was at the address.
        boot: the boot in which it was begun.
        domain: a digest of the domain as it was.
    """

    wish: SetupWish
    identity: Identity
    boot: str
    domain: str

    def is_of(self, plan: DomainPlan) -> bool:
        """Tell whether a domain is the one that was agreed to, and as it was then."""
        return self.domain == _digest(plan)


@dataclass(frozen=True, slots=True)
class SetupPlan:
    """What would be done.

    Attributes:
        wish: what was asked for.
        card: the functions that go along.
        identity: what is at the address.
        host: the change of the host; empty when it is ready.
        hook: what is installed of the hook.
        domain: the change of the domain; empty when it has the card.
        policy: what the domain's policy comes to.
        waits_for_reboot: whether the domain gets the card only after a reboot.
        notes: what the user should know.
    """

    wish: SetupWish
    card: tuple[DeviceReport, ...]
    identity: Identity
    host: HostPlan
    hook: HookStatus
    domain: DomainPlan
    policy: Policy
    waits_for_reboot: bool
    notes: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether all is set up already."""
        return self.host.is_empty and self.hook.works and self.domain.is_empty and not self.waits_for_reboot


def cards(host: Host) -> list[DeviceReport]:
    """Return the graphics cards that somebody can choose from, without virtual functions.

    What setup itself can mend speaks against none of them.
    """
    inventory = _supposed(read_facts(host), read_inventory(host))
    displays = [one for one in inventory.devices.values() if one.is_display and one.physical_function is None]
    return reports(inventory, displays)


def _supposed(facts: HostFacts, inventory: Inventory) -> Inventory:
    """Return what the devices are judged by: while the IOMMU waits for its kernel argument, as if it were on.

    What only the boot with it can tell, the real groups and whether interrupts are remapped, is judged then.
    """
    if read_iommu(facts).state is not IommuState.ARGUMENT_MISSING:
        return inventory
    return replace(with_groups(inventory), interrupts_are_safe=True)


def plan_setup(connection: Connection, host: Host, wish: SetupWish) -> SetupPlan:
    """Plan everything; writes nothing.

    Raises:
        VirtpassError: it cannot be done safely as things are; the message says why.
    """
    facts = read_facts(host)
    inventory = _supposed(facts, read_inventory(host))
    inventory.device(wish.address)
    card = reports(inventory, [inventory.devices[one] for one in inventory.card(wish.address)])
    planned = host_preparation.plan(host, _wishes(host, wish))
    # What the kernel does not have now it cannot be asked for: groups show after the boot.
    is_due = planned.present is not None and not is_rebooted(facts, planned.present)
    waits = not read_iommu(facts).is_on and (is_due or not planned.is_empty)
    result = domains.attach(
        connection,
        host,
        wish.domain,
        [wish.address],
        policy=wish.policy,
        # Interrupts that are to be accepted are so only once that has been done.
        is_isolated=not waits and (planned.is_empty or not wish.unsafe_interrupts),
        dry_run=True,
    )
    return SetupPlan(
        wish=wish,
        card=tuple(card),
        identity=read_device(host, wish.address).identity,
        host=planned,
        hook=hook_status(host),
        domain=result.plan,
        policy=changed(_policy(connection, wish.domain) or DEFAULT_POLICY, wish.policy),
        waits_for_reboot=waits,
        notes=result.notes,
    )


def _wishes(host: Host, wish: SetupWish) -> Wishes:
    """Return what the host was asked for before, and what this setup adds to it."""
    record = host_preparation.status(host).record
    before = record.wishes if record is not None else Wishes()
    bind = before.bind
    if wish.bind and not any(one.same_slot(wish.address) for one in bind):
        bind = (*bind, wish.address)
    return replace(
        before,
        bind=bind,
        unsafe_interrupts=before.unsafe_interrupts or wish.unsafe_interrupts,
        bootloader=wish.bootloader or before.bootloader,
    )


def has_policy(connection: Connection, name: str) -> bool:
    """Tell whether virtpass looks after a domain already, whose policy stays but for what is wished.

    Raises:
        NotFoundError: no such domain.
        UsageError: its metadata is not understood.
    """
    return _policy(connection, name) is not None


def _policy(connection: Connection, name: str) -> Policy | None:
    try:
        return domains.policy(connection, name)
    except RefusedError:
        return None


def carry_out(
    connection: Connection,
    host: Host,
    plan: SetupPlan,
    *,
    say: Say = lambda _: None,
    run: Runner = run_command,
) -> None:
    """Do what was planned, or put everything back.

    When a reboot has to come first, what is left to do is on record afterwards (`pending`).

    Raises:
        VirtpassError: it did not work; host, hook and domain are as before, or the message says what is not.
    """
    undo: list[tuple[str, Callable[[], object]]] = []
    before = host_preparation.status(host).record
    try:
        if not plan.host.is_empty:
            say("preparing the host")
            # On the list before it is done: a step may fail after it took effect.
            undo.append(("the host", lambda: _undo_host(host, before.wishes if before else None, say, run)))
            host_preparation.apply(host, plan.host, say=say, run=run)
        if not plan.hook.works:
            say("installing the hook")
            if plan.hook.state == "absent":
                undo.append(("the hook", lambda: hooks.uninstall_hook(host)))
            hooks.install_hook(host)
        if plan.waits_for_reboot:
            _remember(host, plan)
            return
        if not plan.domain.is_empty:
            say(f"giving the card to {plan.wish.domain}")
            wish = plan.wish
            domains.attach(
                connection,
                host,
                plan.domain.uuid,
                [wish.address],
                policy=wish.policy,
                expected=plan.domain.before,
            )
        forget(host)
    except VirtpassError as error:
        problems = _take_back(undo, say)
        if problems:
            what = f"{error.what}; and not all could be put back: {'; '.join(problems)}"
            raise FailedError(error.reference, what, "virtpass uninstall tries again") from error
        raise


def _undo_host(host: Host, wishes: Wishes | None, say: Say, run: Runner) -> None:
    back = host_preparation.plan_undo(host) if wishes is None else host_preparation.plan(host, wishes)
    if back is not None:
        host_preparation.apply(host, back, say=say, run=run)


def _take_back(undo: list[tuple[str, Callable[[], object]]], say: Say) -> list[str]:
    """Take back what was done, the last first; return what could not be."""
    problems = []
    for what, action in reversed(undo):
        say(f"putting {what} back")
        try:
            action()
        except VirtpassError as error:
            problems.append(f"{what}: {error.what}")
    return problems


def foresee(host: Host, plan: SetupPlan) -> Rehearsal | None:
    """Return what the start of the domain would do once a plan is carried out.

    None where only what the plan changes tells: an IOMMU after a reboot, interrupts that are accepted.
    """
    if plan.waits_for_reboot or plan.host.switches:
        return None
    return rehearse(host, plan.domain.after, supposes_hook=True)


def check_start(connection: Connection, host: Host, name: str) -> Rehearsal:
    """Return what the next start of a domain would do: the end of a setup.

    Raises:
        VirtpassError: the domain is gone, or virtpass does not look after it.
    """
    return rehearse(host, connection.domain(name).shown_xml())


def pending(host: Host) -> Pending | None:
    """Return the setup that waits for a reboot, None for none.

    Raises:
        PermissionDeniedError: this user may not read it.
        FailedError: it is not understood.
    """
    content = host.read_own(_DIRECTORY, _NAME)
    if content is None:
        return None
    try:
        found = json.loads(content)
        wish = SetupWish(
            PciAddress.parse(found["address"]),
            str(found["domain"]),
            {str(key): str(value) for key, value in found["policy"].items()},
            bind=found["bind"] is True,
            unsafe_interrupts=found["unsafe_interrupts"] is True,
            bootloader=str(found["bootloader"]),
        )
        vendor, device, board_vendor, board, serial = found["identity"]
        identity = Identity(int(vendor), int(device), int(board_vendor), int(board), str(serial))
        return Pending(wish, identity, str(found["boot"]), str(found["domain_digest"]))
    except (ValueError, KeyError, TypeError, AttributeError, VirtpassError) as error:
        raise FailedError(
            "setup-record",
            f"{SETUP_RECORD} is not understood",
            "remove it, and run virtpass setup with ADDRESS and DOMAIN",
        ) from error


def is_waiting(host: Host) -> bool:
    """Tell whether a setup waits for a reboot, or to be gone on with; needs no permission."""
    return host.exists(SETUP_RECORD)


def resume(connection: Connection, host: Host, begun: Pending) -> SetupPlan:
    """Plan the rest of a setup after the reboot.

    Raises:
        RefusedError: the host was not rebooted yet, or another device is at the address.
        FailedError: the reboot has not brought what it was to bring.
        VirtpassError: as `plan_setup`.
    """
    address = begun.wish.address
    if read_facts(host).boot_id == begun.boot:
        raise RefusedError("not-rebooted", "the host was not rebooted since", "reboot, then: virtpass setup")
    seen = read_device(host, address).identity
    if not begun.identity.is_same_device(seen):
        raise RefusedError(
            "other-device",
            f"{address} is {seen} now, not {begun.identity} as when the setup began",
            "virtpass devices shows where the card is; begin again with: virtpass setup ADDRESS DOMAIN",
        )
    if not read_iommu(read_facts(host)).is_on:
        raise FailedError(
            "iommu-off",
            "the host was rebooted, and its IOMMU is still off",
            "virtpass doctor says why; virtpass uninstall takes everything back",
        )
    return plan_setup(connection, host, begun.wish)


def _digest(plan: DomainPlan) -> str:
    return hashlib.sha256(plan.before.encode()).hexdigest()


def _remember(host: Host, plan: SetupPlan) -> None:
    wish = plan.wish
    content = {
        "address": str(wish.address),
        "domain": wish.domain,
        "policy": dict(wish.policy),
        "bind": wish.bind,
        "unsafe_interrupts": wish.unsafe_interrupts,
        "bootloader": wish.bootloader,
        "identity": list(plan.identity),
        "boot": read_facts(host).boot_id,
        "domain_digest": _digest(plan.domain),
    }
    host.replace_own(_DIRECTORY, _NAME, f"{json.dumps(content, indent=1)}\n".encode(), _MODE)


def forget(host: Host) -> None:
    """Forget a setup that waits for a reboot.

    Raises:
        VirtpassError: the record cannot be removed.
    """
    if is_waiting(host):
        host.remove_own(_DIRECTORY, _NAME)
