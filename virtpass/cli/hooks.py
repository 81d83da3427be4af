"""``virtpass hook``."""

import click

from virtpass.cli import options
from virtpass.cli.output import note, say, say_json
from virtpass.hook.install import HookStatus
from virtpass.operations import hooks
from virtpass.system.errors import EXIT_FAILED
from virtpass.system.host import Host

STATES = {
    "absent": "not installed",
    "current": "installed",
    "outdated": "installed by another version of virtpass",
    "changed": "changed by somebody since it was installed",
    "not-executable": "not executable, so libvirt does not run it",
    "incomplete": "incomplete: what it runs is missing or changed",
}


@click.group()
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
@options.as_json
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show what is installed; the exit status is 1 unless it is up to date."""
    found, daemon = hooks.show_hook(context.obj)
    if as_json:
        say_json(status_json(found, daemon))
    else:
        say(f"Hook     {STATES[found.state]}{f' ({found.version})' if found.version else ''}")
        say(f"File     {found.path}")
        say(f"Daemon   {daemon or 'not running'}")
        for other in found.others:
            say(f"Beside   {other}")
        if not found.works:
            note("next: virtpass hook install")
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
