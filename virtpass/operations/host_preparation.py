"""Kernel arguments, modprobe and initramfs: plan, apply, status, confirm, revert, recover."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from virtpass.host import tokens
from virtpass.host.boot import TRIAL
from virtpass.host.detect import choose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.initramfs import GENERATORS
from virtpass.host.iommu import Iommu, read_iommu
from virtpass.host.kernels import Kernel
from virtpass.host.loaders import LOADERS
from virtpass.host.prepare import HostPlan, plan_host, plan_revert
from virtpass.host.proof import prove
from virtpass.host.record import ROOM, HostRecord, record_from_json, record_to_json
from virtpass.host.status import Check, Verdict, checks
from virtpass.host.wishes import Wishes
from virtpass.operations.recorded_outside import recorded_outside
from virtpass.system.commands import run_command
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.packages import held_off
from virtpass.system.recorded import RecordedHost
from virtpass.transaction.engine import Kept, Runner, Transaction, locked, merged

_ATTRIBUTE_DEADLINE = 10.0
# What unattended upgrades take is no reason to fail, unless they install a kernel just now.
_PACKAGES_DEADLINE = 30.0


@dataclass(frozen=True, slots=True)
class HostStatus:
    """How a host stands.

    Attributes:
        facts: what it is.
        iommu: its IOMMU.
        kernels: the installed kernels.
        record: what virtpass has made of it; None for nothing.
        checks: what is on record against what is; empty without a record, and one that says so if this user
            may not read it.
        is_unfinished: whether a change was cut off half way.
    """

    facts: HostFacts
    iommu: Iommu
    kernels: tuple[Kernel, ...]
    record: HostRecord | None
    checks: tuple[Check, ...]
    is_unfinished: bool


def plan(host: Host, wishes: Wishes) -> HostPlan:
    """Return what `apply` would do; changes nothing.

    Raises:
        NotFoundError, RefusedError, UsageError: it cannot be done safely.
        PermissionDeniedError: this user may not read what it takes.
    """
    _refuse_unfinished(host)
    return plan_host(read_facts(host), wishes, _record(host))


def status(host: Host) -> HostStatus:
    """Return how a host stands; changes nothing.

    Raises:
        FailedError: what is on record cannot be read.
    """
    facts = read_facts(host)
    if isinstance(host, RecordedHost):
        # Images of the initramfs are in no snapshot: what they were compared with then still counts.
        told = recorded_outside(host)
        iommu = read_iommu(facts)
        return HostStatus(facts, iommu, facts.kernels, _record(host), told.host_checks, told.is_unfinished)
    try:
        found, was_cut_off = _record(host), is_unfinished(host)
    except PermissionDeniedError as error:
        secret = Check("record", Verdict.UNKNOWN, f"what virtpass has changed here: {error.what}")
        return HostStatus(facts, read_iommu(facts), facts.kernels, None, (secret,), False)
    compared: list[Check] = []
    if found is not None:
        loader = choose(facts, LOADERS, found.loader) if found.loader else None
        made = next((one for one in GENERATORS if one.name == found.generator), None)
        compared = checks(facts, found, loader, made)
    return HostStatus(facts, read_iommu(facts), facts.kernels, found, tuple(compared), was_cut_off)


def apply(
    host: Host,
    expected: HostPlan,
    *,
    say: Callable[[str], None] = lambda _: None,
    run: Runner = run_command,
) -> HostPlan:
    """Make a plan real, prove it by what the bootloader will really boot, or put everything back.

    Args:
        host: the host of the plan.
        expected: what the user has seen.
        say: told what is being done, one sentence without a full stop.
        run: how commands are run.

    Returns:
        the plan that was made real.

    Raises:
        RefusedError: the host is not as it was when the plan was made, or an earlier change is unfinished.
        FailedError: it did not work; the message says how things stand.
    """
    if expected.is_empty:
        # Also while packages are being installed.
        return expected
    with locked(host, ROOM), held_off(host, _PACKAGES_DEADLINE):
        transaction = _transaction(host, say, run)
        _refuse_unfinished(host)
        if _record(host) != expected.present:
            raise RefusedError(
                "changed-meanwhile",
                "another change was applied since the plan was made",
                "look at the plan again",
            )
        _execute(host, transaction, expected)
        _switch(host, expected)
    return expected


def _execute(host: Host, transaction: Transaction, wanted: HostPlan) -> None:
    present = wanted.present
    before = present.kept if present is not None else ()

    def record(kept: list[Kept]) -> dict[str, object] | None:
        if wanted.record is None:
            return None
        return record_to_json(replace(wanted.record, kept=tuple(merged(before, kept))))

    transaction.execute(
        wanted.plan,
        record=record,
        prove=lambda: prove(read_facts(host), wanted),
        restore=wanted.restore,
    )


def _switch(host: Host, wanted: HostPlan) -> None:
    """Write attributes of the running kernel."""
    for one in wanted.switches:
        try:
            host.write_attribute(one.path, one.value, _ATTRIBUTE_DEADLINE)
        except OSError as error:
            raise FailedError(
                "kernel-parameter",
                f"{one.path} cannot be set to {one.value}: {error.strerror}",
                "all else is in place, and this counts from the next boot on",
            ) from error


def confirm(
    host: Host, *, say: Callable[[str], None] = lambda _: None, run: Runner = run_command
) -> HostPlan:
    """Make lasting what this boot tries.

    Raises:
        RefusedError: nothing is on trial, or this boot is not the trial.
        FailedError: it did not work; the message says how things stand.
    """
    wanted = plan_confirm(host)
    return apply(host, wanted, say=say, run=run)


def plan_confirm(host: Host) -> HostPlan:
    """Return what `confirm` would do; changes nothing.

    Raises:
        RefusedError: nothing is on trial, or this boot is not the trial.
    """
    _refuse_unfinished(host)
    found = _record(host)
    if found is None or not found.tried:
        raise RefusedError("no-trial", "nothing is on trial", "virtpass host apply --trial begins one")
    facts = read_facts(host)
    if tokens.missing((*found.arguments, TRIAL), facts.running):
        raise RefusedError(
            "not-tried",
            f"this boot is not the trial: it was not started from '{found.tried}'",
            "reboot into the trial first, with virtpass host apply --trial once more",
        )
    return plan_host(facts, replace(found.wishes, trial=False), found)


def plan_undo(host: Host, *, without_bootloader: bool = False) -> HostPlan | None:
    """Return what takes back all that was applied, for `apply`; None when nothing is. Changes nothing.

    Args:
        host: the host.
        without_bootloader: the bootloader on record was replaced for good.

    Raises:
        RefusedError: it cannot be done safely.
    """
    _refuse_unfinished(host)
    found = _record(host)
    if found is None:
        return None
    return plan_revert(read_facts(host), found, without_bootloader=without_bootloader)


def is_unfinished(host: Host) -> bool:
    """Tell whether a change was cut off half way.

    Raises:
        VirtpassError: the record of it cannot be read.
    """
    if isinstance(host, RecordedHost):
        return recorded_outside(host).is_unfinished
    return _transaction(host).pending() is not None


def pending(host: Host, *, keep: bool = False) -> list[str]:
    """Return what `recover` would do, as sentences without a full stop; changes nothing.

    Raises:
        PermissionDeniedError: this user may not read the record.
        FailedError: it cannot be read.
    """
    return _transaction(host).foreseen(keep=keep)


def recover(
    host: Host,
    *,
    keep: bool = False,
    say: Callable[[str], None] = lambda _: None,
    run: Runner = run_command,
) -> list[str]:
    """Put back what a crash has left half done.

    Args:
        host: the host.
        keep: leave files that somebody else has changed meanwhile as they are.
        say: told what is being done, one sentence without a full stop.
        run: how commands are run.

    Returns:
        what was done, as sentences without a full stop.

    Raises:
        FailedError: something could not be put back; it stays on record.
    """
    with locked(host, ROOM), held_off(host, _PACKAGES_DEADLINE):
        return _transaction(host, say, run).recover(keep=keep)


def _refuse_unfinished(host: Host) -> None:
    """Refuse to plan on files that are half written.

    Raises:
        RefusedError: an earlier change was cut off half way.
    """
    if is_unfinished(host):
        raise RefusedError(
            "unfinished", "an earlier change was cut off half way", "run virtpass host recover first"
        )


def _record(host: Host) -> HostRecord | None:
    found = _transaction(host).applied()
    return None if found is None else record_from_json(found)


def _transaction(
    host: Host, say: Callable[[str], None] = lambda _: None, run: Runner = run_command
) -> Transaction:
    return Transaction(host, ROOM, run, say)
