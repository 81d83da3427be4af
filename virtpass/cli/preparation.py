"""``virtpass host``."""

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import click

from virtpass.cli import options
from virtpass.cli.groups import Group
from virtpass.cli.output import agree, note, say, say_fact, say_facts, say_json
from virtpass.host.boot import Note, Severity
from virtpass.host.facts import HostFacts
from virtpass.host.iommu import Iommu, IommuState
from virtpass.host.kernels import Kernel, Presence
from virtpass.host.loaders import LOADERS
from virtpass.host.prepare import HostPlan
from virtpass.host.record import HostRecord
from virtpass.host.status import Check, Verdict
from virtpass.host.wishes import ACS_DEFAULT, Wishes
from virtpass.operations import host_preparation
from virtpass.system.errors import EXIT_FAILED, NotFoundError, PermissionDeniedError, UsageError
from virtpass.system.host import Host
from virtpass.system.recorded import RecordedHost
from virtpass.system.tasks import under_way
from virtpass.transaction.engine import TransactionError

_DIFF_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_LABEL = 12
_VERDICT_COLOURS = {
    Verdict.RIGHT: "green",
    Verdict.WAITING: "yellow",
    Verdict.WRONG: "red",
    Verdict.UNKNOWN: None,
}


@click.group(cls=Group)
def host() -> None:
    """Prepare the host: kernel arguments, modprobe, initramfs, boot menu; and take it all back."""


root_option = click.option(
    "--root",
    # Whether it is there is told where it is used.
    type=click.Path(file_okay=False, resolve_path=True),
    help="Work on the system below this directory (a chroot, a rescue mount, an image).",
)

bootloader_option = click.option(
    "--bootloader",
    type=options.BOOTLOADER,
    default="",
    metavar="NAME",
    help=f"The bootloader, where it cannot be told: {', '.join(sorted(loader.name for loader in LOADERS))}.",
)


def _wishes(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say what is wanted, in the order in which help shows them."""
    for option in reversed(
        (
            click.option(
                "--bind",
                type=options.ADDRESS,
                multiple=True,
                help="Let vfio-pci have this device from boot on, with all functions of its card.",
            ),
            click.option(
                "--pt",
                "passthrough",
                is_flag=True,
                help="Spare the host's own devices the IOMMU: faster, unprotected.",
            ),
            click.option(
                "--unsafe-interrupts",
                is_flag=True,
                help="Accept interrupts that are not remapped: a guest can then disturb the host.",
            ),
            click.option(
                "--acs-override",
                is_flag=False,
                flag_value=ACS_DEFAULT,
                default="",
                metavar="[VALUE]",
                help="Split IOMMU groups on a kernel with that patch: gives up isolation.",
            ),
            click.option(
                "--framebuffer-off", is_flag=True, help="Do without the firmware's framebuffer: a dark boot."
            ),
            click.option(
                "--softdep",
                "softdeps",
                multiple=True,
                metavar="MODULE",
                help="Load vfio-pci before this host driver.",
            ),
            click.option(
                "--blacklist", multiple=True, metavar="MODULE", help="Never load this host driver by itself."
            ),
            click.option(
                "--kernel-arg", "arguments", multiple=True, metavar="ARG", help="Add this kernel argument."
            ),
            bootloader_option,
            click.option(
                "--no-fallback-entry",
                "fallback_entry",
                is_flag=True,
                flag_value=False,
                default=True,
                help="Keep no boot entry without what is added.",
            ),
            click.option(
                "--trial", is_flag=True, help="Try it in the next boot only; then: virtpass host confirm."
            ),
            click.option("--accept-risk", is_flag=True, help="Write arguments that virtpass warns of."),
        )
    ):
        command = option(command)
    return command


def _parsed(values: dict[str, Any]) -> Wishes:
    """Make wishes of the options' values."""
    return Wishes(**{one.name: values[one.name] for one in fields(Wishes)})


def _below(context: click.Context, root: str | None) -> Host:
    found: Host = context.obj
    if root is not None and isinstance(found, RecordedHost):
        raise UsageError("two-hosts", "--root and --snapshot name two hosts", "give one of them")
    if root is not None and not os.path.isdir(root):
        raise NotFoundError("no-root", f"there is no directory {root}", "name the top of the system")
    return found if root is None else Host(root)


@host.command()
@_wishes
@options.as_json
@root_option
@options.snapshot
@click.pass_context
def plan(context: click.Context, root: str | None, as_json: bool, **values: Any) -> None:  # noqa: ANN401
    """Show what this host needs, and change nothing.

    Without options: what it takes to give devices to domains when they start, which may be nothing.
    """
    wanted = host_preparation.plan(_below(context, root), _parsed(values))
    _show(wanted, as_json=as_json)


@host.command()
@_wishes
@options.dry_run
@options.yes
@options.as_json
@root_option
@click.pass_context
def apply(
    context: click.Context,
    root: str | None,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    **values: Any,  # noqa: ANN401
) -> None:
    """Make the plan real and prove it, or put everything back.

    The options are those of plan, and name all that is wanted: what was applied before and is not named any
    more is taken back.
    """
    where = _below(context, root)
    _heal(where, dry_run=dry_run)
    wanted = host_preparation.plan(where, _parsed(values))
    _carry_out(where, wanted, as_json=as_json, dry_run=dry_run, yes=yes)


@host.command()
@options.dry_run
@options.yes
@options.as_json
@root_option
@click.pass_context
def confirm(context: click.Context, root: str | None, as_json: bool, dry_run: bool, yes: bool) -> None:
    """Make lasting what this boot tries."""
    where = _below(context, root)
    _heal(where, dry_run=dry_run)
    _carry_out(where, host_preparation.plan_confirm(where), as_json=as_json, dry_run=dry_run, yes=yes)


@host.command()
@options.dry_run
@click.option(
    "--without-bootloader", is_flag=True, help="The bootloader was replaced: take back files alone."
)
@options.yes
@options.as_json
@root_option
@click.pass_context
def revert(
    context: click.Context,
    root: str | None,
    as_json: bool,
    dry_run: bool,
    yes: bool,
    without_bootloader: bool,
) -> None:
    """Take back what virtpass has changed on the host.

    What others have written into the same files since stays.
    """
    where = _below(context, root)
    _heal(where, dry_run=dry_run)
    wanted = host_preparation.plan_undo(where, without_bootloader=without_bootloader)
    if wanted is None:
        if as_json:
            say_json(None)
        else:
            say("virtpass has changed nothing on this host")
        return
    _carry_out(where, wanted, as_json=as_json, dry_run=dry_run, yes=yes)


@host.command()
@options.dry_run
@click.option("--keep", is_flag=True, help="Leave files that somebody else has changed meanwhile.")
@options.as_json
@root_option
@click.pass_context
def recover(context: click.Context, root: str | None, as_json: bool, keep: bool, dry_run: bool) -> None:
    """Put back what a crash has cut off half way."""
    where = _below(context, root)
    done = host_preparation.pending(where, keep=keep) if dry_run else _recovered(where, keep=keep)
    if as_json:
        say_json(done)
        return
    for line in done:
        say(f"to do: {line}" if dry_run else line)
    if not done:
        say("no change was cut off: there is nothing to recover")


def _recovered(where: Host, *, keep: bool) -> list[str]:
    """Recover; a user who may not even lock the host has nothing to recover where there is nothing."""
    try:
        return host_preparation.recover(where, keep=keep, say=note)
    except PermissionDeniedError:
        if host_preparation.is_unfinished(where):
            raise
        return []


@host.command()
@options.as_json
@root_option
@options.snapshot
@click.pass_context
def status(context: click.Context, root: str | None, as_json: bool) -> None:
    """Tell whether it took.

    Compares what was applied with the files, the boot entries, the initramfs, the running kernel and the
    drivers. The exit status is 1 if something is not as it should be.
    """
    with under_way("comparing what was applied with what is"):
        found = host_preparation.status(_below(context, root))
    if as_json:
        say_json(_status_json(found))
    else:
        _show_status(found)
    if found.is_unfinished or any(check.verdict is Verdict.WRONG for check in found.checks):
        context.exit(EXIT_FAILED)


def _show_status(found: host_preparation.HostStatus) -> None:
    facts = found.facts
    shown = [
        ("System", _system(facts)),
        ("IOMMU", _iommu(found.iommu)),
        ("Interrupts", _interrupts(found.iommu)),
        *_kernels(found.kernels),
    ]
    say_facts(shown, _LABEL)
    if found.is_unfinished:
        say_fact("Unfinished", "a change was cut off half way", _LABEL)
    if found.record is not None:
        applied = " ".join(found.record.arguments) or "no kernel argument"
    else:
        applied = "" if found.checks else "nothing"
    say_fact("Applied", applied, _LABEL)
    for check in found.checks:
        colour = _VERDICT_COLOURS[check.verdict]
        say_fact(check.verdict.value, check.text, 22, indent="  ", colour=colour)
    # Below all facts, also where both outputs go to one place.
    if found.is_unfinished:
        note("next: sudo virtpass host recover")
    elif found.iommu.state is IommuState.ARGUMENT_MISSING or _is_beyond(found.iommu, found.record):
        note("next: virtpass doctor")


def _is_beyond(iommu: Iommu, record: HostRecord | None) -> bool:
    return iommu.is_beyond_virtpass(accepts_unsafe=record is not None and record.unsafe_interrupts)


def _system(facts: HostFacts) -> str:
    firmware = "UEFI" if facts.is_uefi else "BIOS"
    loader = f", booted by {facts.loader}" if facts.loader else ""
    return f"{facts.distribution_name}, {firmware}{loader}"


def _iommu(iommu: Iommu) -> str:
    if iommu.state is IommuState.UNKNOWN:
        return f"unknown: {iommu.evidence}"
    kind = iommu.vendor or "unknown kind"
    if not iommu.is_on:
        return f"off ({kind}), {iommu.state.value}: {iommu.evidence}"
    translation = ", the host's own devices untranslated" if iommu.passes_through else ""
    return f"on ({kind}), {iommu.evidence}{translation}"


def _interrupts(iommu: Iommu) -> str:
    if iommu.state is IommuState.UNKNOWN:
        return "unknown"
    if iommu.remaps_interrupts:
        return "remapped"
    return "not remapped" + (", accepted as unsafe" if iommu.allows_unsafe else "")


def _kernels(kernels: Sequence[Kernel]) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for kernel in kernels:
        names = ["vfio-pci", "vfio_iommu_type1"]
        if kernel.presence("vfio_virqfd") is not Presence.MISSING:
            names.append("vfio_virqfd")
        modules = ", ".join(f"{name} ({kernel.presence(name).value})" for name in names)
        running = ", running" if kernel.is_running else ""
        acs = ", has the ACS override patch" if kernel.has_acs_override else ""
        lines.append(("Kernel" if not lines else "", f"{kernel.version}{running}: {modules}{acs}"))
    return lines or [("Kernel", "none is found")]


def _heal(where: Host, *, dry_run: bool) -> None:
    """Put back what a crash has cut off half way, before anything else is done."""
    if dry_run or not host_preparation.is_unfinished(where):
        return
    note("an earlier change was cut off half way, and is put back first")
    for line in host_preparation.recover(where, say=note):
        note(line)


def _carry_out(where: Host, wanted: HostPlan, *, as_json: bool, dry_run: bool, yes: bool) -> None:
    """Show a plan, ask, and make it real."""
    if dry_run:
        _show(wanted, as_json=as_json)
        return
    if wanted.is_empty:
        host_preparation.apply(where, wanted, say=note)
        _show(wanted, as_json=as_json)
        return
    if not yes:
        _ask(wanted, as_json=as_json)
    elif not as_json:
        _show(wanted, as_json=False, is_asking=True)
    try:
        host_preparation.apply(where, wanted, say=note)
    except TransactionError as error:
        for line in error.output:
            note(f"  | {line}")
        raise
    if as_json:
        say_json(plan_json(wanted))
    note("done, and proven by reading back what will be booted")
    _tell_next(wanted)


def _ask(wanted: HostPlan, *, as_json: bool) -> None:
    """Show a plan and ask."""
    if as_json:
        raise UsageError("no-question", "with --json nothing is asked", "look at the plan, then add --yes")
    _show(wanted, as_json=False, is_asking=True)
    agree("Do this?")


def _tell_next(wanted: HostPlan) -> None:
    record = wanted.record
    if record is not None and record.tried:
        note(f"the next boot tries it ('{record.tried}'); then: sudo virtpass host confirm")
        note("any other boot, after a power cut too, goes without")
    elif wanted.needs_reboot:
        note("it takes effect at the next boot")
    if record is not None and record.fallback:
        note(f"the way back on the boot menu: '{record.fallback}'")


def show_changes(wanted: HostPlan) -> None:
    """Print what a plan changes: files, commands, the running kernel, and what to know of it."""
    for line in wanted.plan.diff.splitlines():
        say(line, colour=_DIFF_COLOURS.get(line[:1]))
    for number, command in enumerate(wanted.plan.commands, 1):
        cost = f" ({command.cost})" if command.cost else ""
        say(f"{number}. {shlex.join(command.argv)}")
        say(f"   {command.reason}{cost}")
    for switch in wanted.switches:
        say(f"at once: {switch.path} says {switch.value}")
    for kept in wanted.restore:
        say(f"as before, unless it was written since: {kept.path}")
    for one in wanted.notes:
        _note(one)


def _show(wanted: HostPlan, *, as_json: bool, is_asking: bool = False) -> None:
    """Show a plan; what comes after it is told when it is done, if it is about to be."""
    if as_json:
        say_json(plan_json(wanted))
        return
    say_facts(_summary(wanted), _LABEL)
    show_changes(wanted)
    if wanted.is_empty:
        is_ready = not _is_beyond(wanted.iommu, wanted.record)
        what = "nothing needs to be changed" if is_ready else "nothing is left that virtpass could change"
        applied = "" if wanted.record is None else ": it is applied already"
        say(f"{what}{applied}{'' if is_ready else '; but this host is not ready: virtpass doctor'}")
    elif wanted.needs_reboot and not is_asking:
        say("it takes effect at the next boot")


def _summary(wanted: HostPlan) -> list[tuple[str, str]]:
    """Return how the host is and what it comes to, as labels and texts."""
    record = wanted.record
    if record is None:
        return [("IOMMU", _iommu(wanted.iommu))]
    lines = [
        ("IOMMU", _iommu(wanted.iommu)),
        ("Arguments", " ".join(record.arguments)),
        ("At boot", ", ".join(f"{address} on vfio-pci" for address in record.devices)),
        ("Bootloader", wanted.loader.title if wanted.loader is not None and record.loader else ""),
        ("Initramfs", wanted.generator.title if wanted.generator is not None and record.generator else ""),
        ("Trial", f"'{record.tried}'" if record.tried else ""),
        ("Fallback", f"'{record.fallback}'" if record.fallback else ""),
    ]
    return [(label, text) for label, text in lines if text]


def _note(one: Note) -> None:
    note(f"{'warning' if one.severity is Severity.WARNING else 'note'}: {one.text}")


def plan_json(wanted: HostPlan) -> dict[str, Any]:
    """Return a plan as it is printed with --json."""
    record = wanted.record
    return {
        "iommu": _iommu_json(wanted.iommu),
        "bootloader": wanted.loader.name if wanted.loader is not None else None,
        "initramfs": wanted.generator.name if wanted.generator is not None else None,
        "arguments": list(wanted.request.arguments),
        "devices": [str(address) for address in wanted.decision.devices],
        "files": [
            {"path": change.path, "reason": change.reason, "diff": change.diff}
            for change in wanted.plan.changes
        ],
        "commands": [
            {"argv": list(command.argv), "reason": command.reason, "cost": command.cost or None}
            for command in wanted.plan.commands
        ],
        "kernel_parameters": [{"path": one.path, "value": one.value} for one in wanted.switches],
        "restored": [kept.path for kept in wanted.restore],
        "notes": [
            {"reference": one.reference, "severity": one.severity.value, "text": one.text}
            for one in wanted.notes
        ],
        "fallback_entry": (record.fallback or None) if record is not None else None,
        "trial_entry": (record.tried or None) if record is not None else None,
        "needs_reboot": wanted.needs_reboot,
    }


def _iommu_json(iommu: Iommu) -> dict[str, Any]:
    return {
        "state": iommu.state.value,
        "vendor": iommu.vendor or None,
        "evidence": iommu.evidence,
        "interrupts_remapped": iommu.remaps_interrupts,
        "unsafe_interrupts_allowed": iommu.allows_unsafe,
        "passthrough_mode": iommu.passes_through,
    }


def _status_json(found: host_preparation.HostStatus) -> dict[str, Any]:
    record = found.record
    return {
        "system": found.facts.distribution_name,
        "uefi": found.facts.is_uefi,
        "loader": found.facts.loader or None,
        "iommu": _iommu_json(found.iommu),
        "kernels": [
            {
                "version": kernel.version,
                "running": kernel.is_running,
                "modules": {
                    name: kernel.presence(name).value
                    for name in ("vfio-pci", "vfio_iommu_type1", "vfio_virqfd")
                },
                "acs_override": kernel.has_acs_override,
            }
            for kernel in found.kernels
        ],
        "unfinished": found.is_unfinished,
        "applied": None
        if record is None
        else {
            "bootloader": record.loader or None,
            "initramfs": record.generator or None,
            "arguments": list(record.arguments),
            "devices": [str(address) for address in record.devices],
            "fallback_entry": record.fallback or None,
            "trial_entry": record.tried or None,
        },
        "checks": [_check_json(check) for check in found.checks],
    }


def _check_json(check: Check) -> dict[str, str]:
    return {"reference": check.reference, "verdict": check.verdict.value, "text": check.text}
