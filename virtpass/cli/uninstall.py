"""``virtpass uninstall``."""

import os

import click

from virtpass.cli import options
from virtpass.cli.domains import show_diff
from virtpass.cli.output import agree, note, say
from virtpass.cli.preparation import show_changes
from virtpass.operations import uninstall as operation
from virtpass.operations.uninstall import UninstallPlan
from virtpass.system.errors import PermissionDeniedError, UnavailableError, one_line
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.system.tasks import under_way


@click.command()
@options.yes
@options.dry_run
@options.connect
@click.pass_obj
def uninstall(host: Host, yes: bool, dry_run: bool, uri: str) -> None:
    """Take everything back that virtpass has changed: domains, hook, kernel arguments, initramfs.

    The program itself stays, until its package is removed.
    """
    with _connected(uri) as connection:
        with under_way("looking at domains, host and hook"):
            plan = operation.plan_uninstall(connection, host)
        _show(plan)
        if dry_run or plan.is_empty:
            return
        if os.geteuid() != 0:
            raise PermissionDeniedError("not-root", "taking it back takes root", "sudo virtpass uninstall")
        if not yes:
            agree("Do all of this?")
        operation.uninstall(connection, host, plan, say=note)
    note("this host is as it was before virtpass")
    if plan.host is not None and plan.host.needs_reboot:
        note("the kernel that runs now is as it was started: reboot it when it suits")


def _connected(uri: str) -> Connection:
    """Connect to libvirt.

    Raises:
        UnavailableError: it does not answer; what can be done without is said.
    """
    try:
        return Connection.open(uri)
    except UnavailableError as error:
        raise UnavailableError(
            error.reference,
            f"the domains cannot be looked at: {error.what}",
            f"{error.remedy or 'start libvirt'}; sudo virtpass host revert and sudo virtpass hook uninstall"
            " go without",
        ) from error


def _show(plan: UninstallPlan) -> None:
    if plan.is_empty:
        note("nothing of virtpass is on this host")
    for change in plan.domains:
        say(f"Domain {one_line(change.name)}:")
        show_diff(change)
    for address in plan.functions:
        say(f"{address}: no virtual functions any more, now and at boot")
    if plan.host is not None:
        say("Host:")
        show_changes(plan.host)
    if plan.has_hook_files:
        say(f"Hook: {plan.hook.path} goes, with what it runs")
    if plan.has_pending_setup:
        say("the setup that waits for a reboot is forgotten")
    for path in plan.kept:
        note(f"note: {path} was not written by virtpass, and stays")
