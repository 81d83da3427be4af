"""``virtpass hook``."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from virtpass.cli import options
from virtpass.cli.groups import Group
from virtpass.cli.output import is_plain, note, say, say_fact, say_facts, say_json
from virtpass.hook.install import HookStatus
from virtpass.hook.request import MAX_XML
from virtpass.operations import hooks
from virtpass.system.errors import EXIT_FAILED, UsageError, one_line
from virtpass.system.host import Host
from virtpass.system.tasks import under_way

if TYPE_CHECKING:
    from virtpass.operations.rehearsal import Rehearsal

STATES = {
    "absent": "not installed",
    "current": "installed",
    "outdated": "installed by another version of virtpass",
    "changed": "changed by somebody since it was installed",
    "not-executable": "not executable, so libvirt does not run it",
    "incomplete": "incomplete: what it runs is missing or changed",
    "unknown": "cannot be told without root",
}


@click.group(cls=Group)
def hook() -> None:
    """The hook that libvirt runs at every start and stop of a domain."""


@hook.command()
@click.pass_obj
def install(host: Host) -> None:
    """Install the hook, or bring it up to date, and tell the running daemon."""
    result = hooks.install_hook(host)
    done = "installed" if result.changed else "was installed already"
    note(f"hook {result.status.version} {done}: {result.status.path}")
    _tell_reload(result)


@hook.command()
@click.pass_obj
def uninstall(host: Host) -> None:
    """Remove the hook and tell the running daemon."""
    result = hooks.uninstall_hook(host)
    note("hook removed" if result.changed else "the hook was not installed")
    _tell_reload(result)


def _tell_reload(result: hooks.HookResult) -> None:
    if result.reloaded:
        note(f"{result.reloaded} reloaded, so that it looks for hooks again; running domains are untouched")
    else:
        note("no libvirt daemon runs now; it looks for hooks when it starts")


@hook.command()
@click.argument("domain", metavar="DOMAIN", type=options.DOMAIN)
@options.as_json
@options.connect
@options.snapshot
@click.pass_context
def rehearse(context: click.Context, domain: str, uri: str, as_json: bool) -> None:
    """Show what the hook would do at the domain's next start, as things are now; nothing is written.

    DOMAIN is a name or a UUID, or - for the XML of a domain (virsh dumpxml) on standard input. The exit
    status is 1 if the start would be refused.
    """
    # Not at the top: it needs all that a start may do, and the overview only says how the hook is.
    from virtpass.operations.rehearsal import rehearse as rehearsed

    host: Host = context.obj
    xml, is_resting = _subject(host, domain, uri)
    try:
        with under_way("looking at the devices, and who uses them"):
            found = rehearsed(host, xml)
    except UsageError as error:
        if domain != "-":
            raise
        remedy = error.remedy or "give it the output of: virsh -c qemu:///system dumpxml DOMAIN"
        raise UsageError(error.reference, error.what, remedy) from error
    if as_json:
        say_json(rehearsal_json(found))
    else:
        show_rehearsal(found)
        if is_resting and found.problem is None and found.is_ours and found.is_called:
            note_start(found.name, uri)
    if found.problem is not None:
        context.exit(EXIT_FAILED)


def show_rehearsal(found: Rehearsal) -> None:
    """Print the steps of a start, and how it would end."""
    for number, step in enumerate(found.steps, 1):
        bound = f", at most {step.bound:.0f} s" if step.bound is not None else ""
        verdict = f"({step.verdict}{bound})"
        if is_plain():
            say(f"{number}. {step.text} {verdict}")
        else:
            say_fact(f"{number:>2}.", f"{one_line(step.text)}  {verdict}", 4)
    if found.problem is not None:
        say_fact("", f"the start would be refused: {found.problem.line}")
    elif not found.is_ours:
        name = shlex.quote(found.name)
        say_fact("", f"the hook would let {found.name} start as it is: virtpass looks after no device of it")
        note(f"next: virtpass domain adopt {name}, or: virtpass domain attach {name} ADDRESS")
    else:
        lasting = [str(number) for number, step in enumerate(found.steps, 1) if not step.is_undone]
        end = f", but for {' and '.join(lasting)}" if lasting else ""
        say_fact("", f"{found.name} would start; all of this is undone when it stops{end}")
    if found.warning:
        note(f"warning: {found.warning}")


def note_start(name: str, uri: str) -> None:
    """Say how a domain is started, as what comes next."""
    from virtpass.system.libvirt import virsh

    note(f"next: {virsh('start', name, uri=uri)}, or the button in virt-manager")


def _subject(host: Host, domain: str, uri: str) -> tuple[str, bool]:
    """Return the XML whose start is rehearsed, and whether libvirt has that domain, shut off."""
    if domain == "-":
        return sys.stdin.buffer.read(MAX_XML + 1).decode("utf-8", "surrogateescape"), False
    from virtpass.system.recorded_libvirt import connect

    with connect(host, uri) as connection:
        found = connection.domain(domain)
        return found.shown_xml(), not found.is_active


def rehearsal_json(found: Rehearsal) -> dict[str, object]:
    """Return a rehearsal as it is printed with --json."""
    problem = found.problem
    return {
        "domain": found.name,
        "uuid": found.uuid,
        "ours": found.is_ours,
        "would_start": problem is None,
        "steps": [
            {
                "text": step.text,
                "verdict": step.verdict,
                "at_most_seconds": step.bound,
                "is_undone": step.is_undone,
            }
            for step in found.steps
        ],
        "warning": found.warning or None,
        "problem": None
        if problem is None
        else {"reference": problem.reference, "what": problem.what, "remedy": problem.remedy or None},
    }


@hook.command()
@options.as_json
@options.snapshot
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show what is installed; the exit status is 1 unless it is up to date."""
    found, daemon = hooks.show_hook(context.obj)
    if as_json:
        say_json(status_json(found, daemon))
    else:
        version = f" ({found.version})" if found.version else ""
        facts = [
            ("Hook", STATES[found.state] + version),
            ("File", found.path),
            ("Daemon", daemon or "not running"),
        ]
        say_facts([*facts, *(("Beside", other) for other in found.others)], 9)
        if not found.works:
            note("next: sudo virtpass hook install")
    if not found.works:
        context.exit(EXIT_FAILED)


def status_json(found: HookStatus, daemon: str | None) -> dict[str, object]:
    """Return the hook's state as it is printed with --json."""
    return {
        "state": found.state,
        "path": found.path,
        "version": found.version,
        "available": found.available,
        "others": list(found.others),
        "daemon": daemon,
    }
