"""``virtpass device functions``, and what systemd runs at boot."""

import click

from virtpass.binding.functions import counted
from virtpass.cli import options
from virtpass.cli.output import complain, note, say
from virtpass.operations import functions as operation
from virtpass.pci.address import PciAddress
from virtpass.system.errors import EXIT_FAILED
from virtpass.system.host import Host
from virtpass.system.tasks import under_way


@click.command()
@click.argument("address", type=options.ADDRESS)
@click.argument("count", type=options.NumberType(0))
@click.option("--persistent", is_flag=True, help="At every boot, too; with COUNT 0: no longer.")
@click.option(
    "--on-demand",
    is_flag=True,
    help="Whenever a domain needs one, until nobody uses them; with COUNT 0: no longer.",
)
@options.dry_run
@click.pass_obj
def functions(
    host: Host, address: PciAddress, count: int, persistent: bool, on_demand: bool, dry_run: bool
) -> None:
    """Give a device COUNT virtual functions (SR-IOV), without drivers; 0 removes them.

    Another number than it has replaces all of them. Those in use are left alone: nothing is done then. The
    driver of some devices loses its connection for a moment, with --on-demand whenever a domain starts.
    """
    if dry_run:
        plan = operation.plan_functions(host, address, count, persistent=persistent, on_demand=on_demand)
        for sentence in plan.sentences:
            say(sentence)
        if plan.is_empty:
            say("nothing to do")
        return
    with under_way(f"giving {address} {counted(count)}"):
        plan = operation.set_functions(host, address, count, persistent=persistent, on_demand=on_demand)
    record = plan.record
    if plan.is_empty:
        note(f"nothing to do: {address} has {counted(count)}")
    else:
        when = ""
        if record is not None and record.number == count:
            when = ", and whenever a domain needs one" if record.is_on_demand else ", at every boot"
        note(f"{address} has {counted(count)}{when}")
    if record is None:
        return
    if record.number != count:
        when, option = ("on demand", "--on-demand") if record.is_on_demand else ("at boot", "--persistent")
        note(f"{when} it gets {record.number}, as on record; {option} changes that, too")
    if not record.is_on_demand and not operation.is_made_at_boot(host):
        note(f"nothing makes them at boot here: sudo systemctl enable {operation.UNIT}")


@click.command(hidden=True)
@click.pass_context
def functions_at_boot(context: click.Context) -> None:
    """Give all devices on record for it their virtual functions; systemd runs this at boot."""
    with under_way("making the virtual functions on record"):
        results = operation.functions_at_boot(context.obj)
    for result in results:
        if result.problem is not None:
            complain(result.problem.line)
        else:
            note(f"{result.name} has {counted(result.count)}")
    if any(result.problem is not None for result in results):
        context.exit(EXIT_FAILED)
