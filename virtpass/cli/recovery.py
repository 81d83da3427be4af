"""``virtpass recover``."""

import click

from virtpass.cli import options
from virtpass.cli.output import note, say, say_json
from virtpass.operations import recovery
from virtpass.operations.recovery import Recovery
from virtpass.system.errors import EXIT_FAILED
from virtpass.system.host import Host


@click.command()
@options.dry_run
@options.as_json
@options.connect
@click.option(
    "--at-boot",
    is_flag=True,
    help="As systemd runs it before libvirt: ask the kernel which domains run, start no services.",
)
@click.pass_context
def recover(context: click.Context, uri: str, dry_run: bool, as_json: bool, at_boot: bool) -> None:
    """Give back to the host what a crash left lent or half done.

    Devices of running domains are left alone. What a crash left of a change of kernel arguments or initramfs
    is put back by: virtpass host recover.
    """
    host: Host = context.obj
    # To ask libvirt would start it, and that waits for this command.
    ask = _nobody if at_boot else lambda: recovery.active_domains(uri, say=note)
    found = recovery.recover(host, ask, dry_run=dry_run, at_boot=at_boot)
    if as_json:
        say_json([_json(one) for one in found])
    else:
        _show(found)
    if any(one.problems for one in found):
        context.exit(EXIT_FAILED)


def _nobody() -> None:
    """Tell that libvirt does not say which domains run."""


def _show(found: list[Recovery]) -> None:
    if not found:
        say("nothing is lent: there is nothing to recover")
    for one in found:
        name = one.name or one.uuid
        if one.state == "running":
            say(f"{name}: running, left alone")
            continue
        say(f"{name}: {'would be given back' if one.state == 'pending' else one.state}")
        for step in one.steps:
            say(f"  {step}")
        for problem in one.problems:
            note(f"  problem: {problem}")


def _json(one: Recovery) -> dict[str, object]:
    return {
        "uuid": one.uuid,
        "name": one.name,
        "state": one.state,
        "steps": list(one.steps),
        "problems": list(one.problems),
    }
