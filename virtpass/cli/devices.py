"""``virtpass devices`` and ``virtpass device show``."""

from collections.abc import Iterable
from typing import Any

import click

from virtpass.cli import options
from virtpass.cli.output import is_plain, joined, note, say, say_fact, say_facts, say_json, say_table
from virtpass.operations.devices import STUCK, DeviceDetails, DeviceReport, list_devices, show_device
from virtpass.pci.address import PciAddress
from virtpass.pci.isolation import Level
from virtpass.pci.mediated import MediatedType
from virtpass.system.host import Host
from virtpass.system.tasks import under_way

_COLOURS = {Level.READY: "green", Level.SHARED: "yellow", Level.BLOCKED: "red", Level.NEVER: None}
_LABEL = 14


@click.command()
@options.as_json
@options.snapshot
@click.pass_obj
def devices(host: Host, as_json: bool) -> None:
    """List the PCI devices by IOMMU group, with their drivers and whether they can be given away.

    \b
    ready    can be given to a domain, with the other functions of its card
    shared   can be given only together with others of its group
    blocked  the host needs it, or another one of its card or group; no IOMMU is active;
             or a driver hangs with it until the next boot
    never    bridges, and devices that cannot be isolated
    """  # noqa: D301 (click wants the character, not its escape)
    with under_way("looking at the devices, and who uses them"):
        reports = list_devices(host)
    if as_json:
        say_json([device_json(report) for report in reports])
        return
    none = "none" if is_plain() else "-"
    rows, styles = [], []
    for report in reports:
        group = report.device.group
        rows.append(
            (
                none if group is None else str(group),
                str(report.device.address),
                report.device.driver or none,
                title(report),
                verdict(report),
            )
        )
        styles.append(_COLOURS[report.verdict.level])
    headings = ("GROUP", "ADDRESS", "DRIVER", "DEVICE", "VERDICT")
    say_table(headings, rows, flexible=3, styles=styles, grouped=0)
    _tell_iommu(reports)
    if not host.root and reports and not any(_has_name(report) for report in reports):
        note(
            "note: names come from systemd's hardware database, which is missing here:"
            " sudo systemd-hwdb update makes it (Debian, Ubuntu: package udev)"
        )


@click.command()
@click.argument("address", type=options.ADDRESS)
@options.as_json
@options.snapshot
@click.pass_obj
def show(host: Host, address: PciAddress, as_json: bool) -> None:
    """Show one device: what it is, its group, who uses it, and what stands in the way."""
    with under_way(f"looking at {address}, and who uses it"):
        details = show_device(host, address)
    if as_json:
        say_json(details_json(details))
        return
    report = details.report
    say(joined(str(address), title(report)))
    say_facts(_facts(details), _LABEL, indent="  ")
    level = report.verdict.level
    say_fact("Verdict", level.value, _LABEL, indent="  ", text_colour=_COLOURS[level])
    for reason in report.verdict.reasons:
        say_fact(
            "Reason" if is_plain() else "",
            reason.text if is_plain() else f"- {reason.text}",
            _LABEL,
            indent="  ",
        )
    _tell_iommu([report])


def _tell_iommu(reports: Iterable[DeviceReport]) -> None:
    """Tell that devices wait for an IOMMU, which may only be switched off."""
    if any(reason.reference == "no-iommu" for report in reports for reason in report.verdict.reasons):
        note("no IOMMU is active: virtpass doctor tells what mends it")


def _facts(details: DeviceDetails) -> list[tuple[str, str]]:
    report = details.report
    group = report.device.group
    code = f"{report.device.class_code:06x}"
    lines = [
        ("IDs", str(details.identity)),
        ("Class", f"{report.name.kind} ({code})" if report.name.kind else code),
        ("Driver", report.device.driver or "none"),
        ("IOMMU group", "none" if group is None else str(group)),
    ]
    label, before = ("Also in the group", "") if is_plain() else ("", "with ")
    lines += [
        (
            label,
            f"{before}{joined(str(other.device.address), title(other))}"
            f" ({other.device.driver or 'no driver'})",
        )
        for other in details.companions
    ]
    lines.append(("Card", ", ".join(map(str, details.card)) or "none"))
    whole = "with its bus as a whole" if details.resets_with_bus else "none: it may not start a second time"
    lines.append(("Reset", ", ".join(details.reset_methods) or whole))
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


def title(report: DeviceReport) -> str:
    """Return name and ids of a device; the ids first where nothing else is known."""
    identity = report.device.identity
    ids = f"[{identity.vendor:04x}:{identity.device:04x}]"
    return f"{report.name.text} {ids}" if _has_name(report) else f"{ids} (no name)"


def _has_name(report: DeviceReport) -> bool:
    return bool(report.name.vendor or report.name.model or report.name.kind)


def verdict(report: DeviceReport) -> str:
    """Return the verdict with the reason that weighs most."""
    level = report.verdict.level
    if report.lent_to is not None:
        hanging = [f"; {reason.text}" for reason in report.verdict.reasons if reason.reference == STUCK]
        return f"lent to {_borrower(report)}{''.join(hanging)}"
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
        "resets_with_bus": details.resets_with_bus,
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
