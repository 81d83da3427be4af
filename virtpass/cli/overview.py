"""``virtpass`` without a command."""

from typing import Any

from virtpass.cli.devices import device_json, title, verdict
from virtpass.cli.domains import report_json
from virtpass.cli.hooks import STATES, status_json
from virtpass.cli.output import joined, say, say_fact, say_facts, say_json
from virtpass.operations.domains import DomainReport
from virtpass.operations.overview import Overview, overview
from virtpass.system.errors import one_line
from virtpass.system.host import Host

_LABEL = 9


def show(host: Host, *, as_json: bool) -> None:
    """Print where the user stands, on one screen."""
    found = overview(host)
    if as_json:
        say_json(_json(found))
        return
    say_facts(_lines(found), _LABEL)
    say()
    say_fact("Next", found.next_step, _LABEL)


def _lines(found: Overview) -> list[tuple[str, str]]:
    if found.groups:
        interrupts = "interrupts remapped" if found.interrupts_are_safe else "interrupts NOT remapped"
        lines = [("Host", f"IOMMU active, {found.groups} groups, {interrupts}")]
    else:
        lines = [("Host", "no IOMMU is active: no device can be given to a domain")]
    cards = [
        joined(str(card.device.address), title(card), card.device.driver or "no driver", verdict(card))
        for card in found.displays
    ]
    lines += _labelled("Cards", cards or ["none"])
    others = [one for one in found.lent if not one.device.is_display]
    lines += _labelled(
        "Lent", [joined(str(one.device.address), title(one), f"to {one.lent_to}") for one in others]
    )
    version = f" ({found.hook.version})" if found.hook.version else ""
    lines.append(("Hook", STATES[found.hook.state] + version))
    if found.domains is None:
        lines.append(("Domains", f"unknown: {found.libvirt_problem}"))
    else:
        lines += _labelled("Domains", [_domain(one) for one in found.domains] or ["none has a PCI device"])
    return lines


def _domain(report: DomainReport) -> str:
    state = "running" if report.is_active else "shut off"
    devices = ", ".join(str(device.address) for device in report.devices)
    return joined(one_line(report.name), state, devices, "" if report.is_ours else "(not looked after)")


def _labelled(label: str, texts: list[str]) -> list[tuple[str, str]]:
    return [(label if position == 0 else "", text) for position, text in enumerate(texts)]


def _json(found: Overview) -> dict[str, Any]:
    return {
        "iommu_groups": found.groups,
        "interrupts_safe": found.interrupts_are_safe,
        "displays": [device_json(card) for card in found.displays],
        "lent": [device_json(one) for one in found.lent],
        "hook": status_json(found.hook, None),
        "domains": None if found.domains is None else [report_json(one) for one in found.domains],
        "libvirt_problem": found.libvirt_problem or None,
        "unfinished": list(found.unfinished),
        "next": found.next_step,
    }
