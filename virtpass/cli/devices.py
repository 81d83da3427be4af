"""``virtpass devices`` and ``virtpass device``."""

from typing import Any

import click

from virtpass.cli import options
from virtpass.cli.output import complain, note, say, say_json, say_table
from virtpass.operations.devices import DeviceDetails, DeviceReport, list_devices, show_device
from virtpass.pci.address import PciAddress
from virtpass.pci.isolation import Level
from virtpass.pci.mediated import MediatedType
from virtpass.system.errors import EXIT_FAILED
from virtpass.system.host import Host

_COLOURS = {Level.READY: "green", Level.SHARED: "yellow", Level.BLOCKED: "red", Level.NEVER: None}


@click.command()
@options.as_json
@options.snapshot
@click.pass_obj
def devices(host: Host, as_json: bool) -> None:
    """List the PCI devices by IOMMU group, with their drivers and whether they can be given away.

    \b
    ready    can be given to a domain, with the other functions of its card
    shared   can be given only together with others of its group
    blocked  the host needs it, or another member of its group
    never    bridges, and devices that cannot be isolated
    """  # noqa: D301 (click wants the character, not its escape)
    reports = list_devices(host)
    if as_json:
        say_json([device_json(report) for report in reports])
        return
    rows, styles, last = [], [], object()
    for report in reports:
        group = report.device.group
        label = "" if group == last else "-" if group is None else str(group)
        rows.append(
            (label, str(report.device.address), report.device.driver or "-", title(report), verdict(report))
        )
        styles.append(_COLOURS[report.verdict.level])
        last = group
    say_table(("GROUP", "ADDRESS", "DRIVER", "DEVICE", "VERDICT"), rows, flexible=3, styles=styles)


@click.group()
def device() -> None:
    """Look at one PCI device; detach it from the host, reattach it, reset it; give it virtual functions."""


@device.command()
@click.argument("address", type=options.ADDRESS)
@options.as_json
@options.snapshot
@click.pass_obj
def show(host: Host, address: PciAddress, as_json: bool) -> None:
    """Show one device: what it is, its group, who uses it, and what stands in the way."""
    details = show_device(host, address)
    if as_json:
        say_json(details_json(details))
        return
    report = details.report
    say(f"{address}  {title(report)}")
    for label, text in _facts(details):
        say(f"  {label:<14}{text}")
    say(f"  {'Verdict':<14}{report.verdict.level.value}", colour=_COLOURS[report.verdict.level])
    for reason in report.verdict.reasons:
        say(f"  {'':<14}- {reason.text}")


def _facts(details: DeviceDetails) -> list[tuple[str, str]]:
    report = details.report
    group = report.device.group
    lines = [
        ("Ids", str(details.identity)),
        ("Class", f"{report.device.class_code:06x}  {report.name.kind}".rstrip()),
        ("Driver", report.device.driver or "none"),
        ("IOMMU group", "none" if group is None else str(group)),
    ]
    lines += [
        ("", f"{other.device.address}  {title(other)} ({other.device.driver or 'no driver'})")
        for other in details.companions
    ]
    lines.append(("Card", ", ".join(map(str, details.card)) or "none"))
    lines.append(("Reset", ", ".join(details.reset_methods) or "none"))
    if report.device.is_boot_display:
        lines.append(("Display", "the firmware's boot display"))
    if report.lent_to is not None:
        lines.append(("Lent to", _borrower(report)))
    if details.functions is not None:
        found = details.functions
        lines.append(("Functions", f"{found.number} of {found.total} virtual functions"))
        lines += [("", str(function)) for function in found.functions]
    if details.mediated_types:
        lines.append(("Mediated", ", ".join(one.name for one in details.mediated_types)))
        lines += [("", f"{one.uuid} ({one.type_name})") for one in details.mediated]
    lines += [
        ("Used by", f"{program} (process {process}, {node})") for process, program, node in details.used_by
    ]
    return lines


@device.command()
@click.argument("address", type=options.ADDRESS)
@options.connect
@click.pass_obj
def detach(host: Host, address: PciAddress, uri: str) -> None:
    """Detach a device from the host: libvirt binds it to vfio-pci."""
    from virtpass.operations import node_devices
    from virtpass.system.libvirt import Connection

    with Connection.open(uri) as connection:
        done = node_devices.detach(connection, host, address)
    note(f"{address} is detached from the host (vfio-pci)" if done else f"{address} was detached already")


@device.command()
@click.argument("address", type=options.ADDRESS)
@options.connect
@click.pass_obj
def reattach(host: Host, address: PciAddress, uri: str) -> None:
    """Give a detached device back to its host driver."""
    from virtpass.operations import node_devices
    from virtpass.pci.sysfs import driver
    from virtpass.system.libvirt import Connection

    with Connection.open(uri) as connection:
        done = node_devices.reattach(connection, host, address)
    bound = driver(host, address) or "no driver"
    note(
        f"{address} is back with the host ({bound})"
        if done
        else f"{address} is with the host already ({bound})"
    )


@device.command()
@click.argument("address", type=options.ADDRESS)
@options.connect
@click.pass_obj
def reset(host: Host, address: PciAddress, uri: str) -> None:
    """Reset a device that nobody uses."""
    from virtpass.operations import node_devices
    from virtpass.system.libvirt import Connection

    with Connection.open(uri) as connection:
        node_devices.reset(connection, host, address)
    note(f"{address} was reset")


@device.command()
@click.argument("address", type=options.ADDRESS)
@click.argument("count", type=click.IntRange(min=0))
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
    from virtpass.binding.functions import counted
    from virtpass.operations import functions as operation

    if dry_run:
        plan = operation.plan_functions(host, address, count, persistent=persistent, on_demand=on_demand)
        for sentence in plan.sentences:
            say(sentence)
        if plan.is_empty:
            note("nothing to do")
        return
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
        note(f"nothing makes them at boot here: systemctl enable {operation.UNIT}")


@device.command(hidden=True)
@click.pass_context
def functions_at_boot(context: click.Context) -> None:
    """Give all devices on record for it their virtual functions; systemd runs this at boot."""
    from virtpass.binding.functions import counted
    from virtpass.operations import functions as operation

    results = operation.functions_at_boot(context.obj)
    for result in results:
        if result.problem is not None:
            complain(result.problem.line)
        else:
            note(f"{result.name} has {counted(result.count)}")
    if any(result.problem is not None for result in results):
        context.exit(EXIT_FAILED)


def title(report: DeviceReport) -> str:
    """Return name and ids of a device."""
    identity = report.device.identity
    return f"{report.name.text} [{identity.vendor:04x}:{identity.device:04x}]"


def verdict(report: DeviceReport) -> str:
    """Return the verdict with the reason that weighs most."""
    level = report.verdict.level
    if report.lent_to is not None:
        return f"lent to {_borrower(report)}"
    reasons = [reason.text for reason in report.verdict.reasons if reason.level is level]
    return f"{level.value}: {reasons[0]}" if reasons else level.value


def _borrower(report: DeviceReport) -> str:
    ended = ", which has ended (virtpass recover gives it back)" if report.is_left else ""
    return f"{report.lent_to}{ended}"


def device_json(report: DeviceReport) -> dict[str, Any]:
    """Return a device as it is printed with --json."""
    device = report.device
    return {
        "address": str(device.address),
        "group": device.group,
        "driver": device.driver,
        "class": f"{device.class_code:06x}",
        "vendor": f"{device.identity.vendor:04x}",
        "device": f"{device.identity.device:04x}",
        "subsystem_vendor": f"{device.identity.subsystem_vendor:04x}",
        "subsystem_device": f"{device.identity.subsystem_device:04x}",
        "names": {"vendor": report.name.vendor, "model": report.name.model, "class": report.name.kind},
        "boot_display": device.is_boot_display,
        "physical_function": str(device.physical_function) if device.physical_function else None,
        "lent_to": report.lent_to,
        "left_behind": report.is_left,
        "verdict": report.verdict.level.value,
        "reasons": [{"id": reason.reference, "text": reason.text} for reason in report.verdict.reasons],
    }


def details_json(details: DeviceDetails) -> dict[str, Any]:
    """Return one device with its surroundings as it is printed with --json."""
    return device_json(details.report) | {
        "serial": details.identity.serial or None,
        "card": [str(address) for address in details.card],
        "group_members": [device_json(other) for other in details.companions],
        "reset_methods": list(details.reset_methods),
        "used_by": [
            {"process": process, "program": program, "node": node}
            for process, program, node in details.used_by
        ],
        "virtual_functions": functions_json(details),
        "mediated": {
            "types": [type_json(one) for one in details.mediated_types],
            "devices": [{"uuid": one.uuid, "type": one.type_name} for one in details.mediated],
        },
    }


def functions_json(details: DeviceDetails) -> dict[str, Any] | None:
    """Return what a device has to do with SR-IOV as it is printed with --json."""
    found = details.functions
    if found is None:
        return None
    return {
        "total": found.total,
        "count": found.number,
        "autoprobe": found.autoprobe,
        "addresses": [str(address) for address in found.functions],
    }


def type_json(one: MediatedType) -> dict[str, Any]:
    """Return a type of mediated devices as it is printed with --json."""
    return {
        "type": one.name,
        "name": one.label,
        "description": one.description,
        "available": one.available,
        "api": one.api,
    }
