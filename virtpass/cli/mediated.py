"""``virtpass mdev``."""

import click

from virtpass.cli import options
from virtpass.cli.devices import type_json
from virtpass.cli.groups import Group
from virtpass.cli.output import note, say, say_json, say_table
from virtpass.operations import mediated_devices as operation
from virtpass.operations.mediated_devices import MediatedPlan, TypeReport
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host


@click.group(cls=Group)
def mdev() -> None:
    """Mediated devices, such as vGPUs: the types that devices offer, and what is made of them.

    They last until the next boot. For those that are to be there at every boot there is mdevctl.
    """


@mdev.command()
@click.argument("address", type=options.ADDRESS, required=False)
@options.as_json
@options.snapshot
@click.pass_obj
def types(host: Host, address: PciAddress | None, as_json: bool) -> None:
    """List the types of mediated devices that a device offers, or all devices, with those that exist."""
    reports = operation.list_types(host, address)
    if as_json:
        say_json([_json(report) for report in reports])
        return
    if not reports:
        note("no PCI device of this host offers mediated devices")
        return
    rows = []
    for report in reports:
        one = report.type
        free = "?" if one.available is None else str(one.available)
        rows.append((str(one.parent), one.name, free, one.api, one.label or one.description))
        rows += [("", "", "", "", f"exists: {device.uuid}") for device in report.devices]
    say_table(("ADDRESS", "TYPE", "FREE", "API", "NAME"), rows, flexible=4, styles=[None] * len(rows))


@mdev.command()
@click.argument("address", type=options.ADDRESS)
@click.argument("type_name", metavar="TYPE")
@click.argument("uuid", required=False)
@options.dry_run
@options.as_json
@click.pass_obj
def create(
    host: Host, address: PciAddress, type_name: str, uuid: str | None, dry_run: bool, as_json: bool
) -> None:
    """Make a mediated device of a type, and print its UUID.

    It lasts until the next boot. mdevctl, where it is installed, makes it again at every boot once it is
    defined there.
    """
    if dry_run:
        _show(operation.plan_create(host, address, type_name, uuid), as_json=as_json)
        return
    plan = operation.create(host, address, type_name, uuid)
    if as_json:
        say_json({"uuid": plan.uuid, "parent": str(address), "type": type_name})
    else:
        say(plan.uuid)
    if operation.has_mdevctl(host):
        note(f"to have it at every boot: sudo mdevctl define --auto --uuid {plan.uuid}")


@mdev.command()
@click.argument("uuid")
@options.dry_run
@options.as_json
@options.connect
@click.pass_obj
def remove(host: Host, uuid: str, uri: str, dry_run: bool, as_json: bool) -> None:
    """Remove a mediated device that no domain uses."""
    if dry_run:
        _show(operation.plan_remove(host, uuid, lambda: operation.ask_users(uri, say=note)), as_json=as_json)
        return
    plan = operation.remove(host, uuid, lambda: operation.ask_users(uri, say=note))
    if as_json:
        say_json({"uuid": plan.uuid, "parent": str(plan.parent) if plan.parent else None})
    note(f"{plan.uuid} is removed")
    if operation.is_defined(host, plan.uuid):
        note(f"mdevctl has it defined, too: sudo mdevctl undefine --uuid {plan.uuid}")


def _show(plan: MediatedPlan, *, as_json: bool) -> None:
    if as_json:
        say_json({"uuid": plan.uuid, "path": plan.path, "value": plan.value})
    else:
        say(f"write {plan.value} to {plan.path}")


def _json(report: TypeReport) -> dict[str, object]:
    return {
        "parent": str(report.type.parent),
        **type_json(report.type),
        "devices": [device.uuid for device in report.devices],
    }
