"""``virtpass domain``."""

import shlex
from collections.abc import Callable, Iterable
from typing import Any

import click

from virtpass.binding.policy import DEFAULT_POLICY, WAIT, Policy, known_policy
from virtpass.cli import options
from virtpass.cli.groups import Group
from virtpass.cli.output import joined, note, say, say_fact, say_facts, say_json
from virtpass.domain.plan import DomainPlan
from virtpass.domain.policy import meaning, parse_settings, unlike
from virtpass.operations import domains
from virtpass.operations.domains import DomainDevice, DomainReport, DomainResult
from virtpass.pci.address import PciAddress
from virtpass.system.errors import UsageError, one_line
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.system.recorded import RecordedHost
from virtpass.system.recorded_libvirt import connect

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}

_name = click.argument("name", metavar="DOMAIN", type=options.DOMAIN)
_addresses = click.argument("addresses", metavar="ADDRESS...", type=options.ADDRESS, nargs=-1, required=True)
_single = click.option("--single", is_flag=True, help="Only the functions named, not the whole card.")


@click.group(cls=Group)
def domain() -> None:
    """Which domain has which device, and how it gets it: attach, detach, adopt, show, policy."""


@domain.command()
@_name
@_addresses
@_single
@options.policy
@options.dry_run
@options.connect
@click.pass_obj
def attach(
    host: Host,
    name: str,
    addresses: tuple[PciAddress, ...],
    single: bool,
    settings: tuple[str, ...],
    dry_run: bool,
    uri: str,
) -> None:
    """Give a card, with all its functions, to a domain from its next start on.

    DOMAIN is a name or a UUID; the domain must be shut off. The devices stay with the host until the domain
    starts, and come back when it stops.
    """
    policy = parse_settings(settings)
    _change(
        uri,
        lambda connection: domains.attach(
            connection, host, name, addresses, policy=policy, whole_card=not single, dry_run=dry_run
        ),
    )


@domain.command()
@_name
@_addresses
@_single
@options.dry_run
@options.connect
@click.pass_obj
def detach(
    host: Host, name: str, addresses: tuple[PciAddress, ...], single: bool, dry_run: bool, uri: str
) -> None:
    """Take a card, with all its functions, out of a domain."""
    _change(
        uri,
        lambda connection: domains.detach(
            connection, host, name, addresses, whole_card=not single, dry_run=dry_run
        ),
    )


@domain.command()
@_name
@options.dry_run
@options.connect
@click.pass_obj
def adopt(host: Host, name: str, dry_run: bool, uri: str) -> None:
    """Look after the devices that a domain has already, as when they were added in virt-manager."""
    _change(uri, lambda connection: domains.adopt(connection, host, name, dry_run=dry_run))


@domain.command()
@_name
@options.as_json
@options.connect
@options.snapshot
@click.pass_obj
def show(host: Host, name: str, as_json: bool, uri: str) -> None:
    """Show a domain's PCI devices, and whether virtpass looks after them."""
    with connect(host, uri) as connection:
        report = domains.show(connection, host, name)
    if as_json:
        say_json(report_json(report))
        return
    say(joined(one_line(report.name), report.uuid, "running" if report.is_active else "shut off"))
    if report.problem:
        say(f"problem: {report.problem}")
    if not report.devices:
        say("  no PCI devices of the host")
    say_facts(_lines(report), 14, indent="  ")
    if report.devices and not report.is_ours:
        say("virtpass does not look after it")
    if any(not report.is_ours or _is_unrecorded(one) for one in report.devices):
        note(f"next: virtpass domain adopt {shlex.quote(report.name)}")


@domain.command(
    "policy",
    epilog=f"Known: {known_policy()}. The first value is the default; of {WAIT}, {DEFAULT_POLICY.wait}.",
)
@_name
@click.argument("settings", metavar="[KEY=VALUE]...", type=options.SETTING, nargs=-1)
@options.as_json
@options.dry_run
@options.connect
@options.snapshot
@click.pass_obj
def set_or_show_policy(
    host: Host, name: str, settings: tuple[str, ...], as_json: bool, dry_run: bool, uri: str
) -> None:
    """Show what the hook may do with a domain, or set it from its next start on.

    KEY= puts the default back. The domain may be running.
    """
    changes = parse_settings(settings)
    if changes:
        if as_json:
            raise UsageError("policy", "--json shows the policy, and goes without KEY=VALUE")
        if isinstance(host, RecordedHost):
            raise UsageError("policy", "a domain in a snapshot is only looked at, so without KEY=VALUE")
        _change(uri, lambda connection: domains.set_policy(connection, host, name, changes, dry_run=dry_run))
        return
    with connect(host, uri) as connection:
        policy = domains.policy(connection, name)
    if as_json:
        say_json(
            {
                "policy": _policy_json(policy),
                "defaults": _policy_json(DEFAULT_POLICY),
                "meaning": {key: meaning(key, value) for key, value in policy.attributes().items()},
            }
        )
        return
    special = unlike(policy, DEFAULT_POLICY)
    settings_now = {key: f"{key}={value}" for key, value in policy.attributes().items()}
    size = max(map(len, settings_now.values())) + 2
    for key, value in policy.attributes().items():
        mark = "" if key in special else " (default)"
        say_fact(settings_now[key], f"{meaning(key, value)}{mark}", size)


def _lines(report: DomainReport) -> Iterable[tuple[str, str]]:
    if report.policy is not None and (special := unlike(report.policy, DEFAULT_POLICY)):
        yield "policy", ", ".join(f"{key}={value}" for key, value in special.items())
    for one in report.devices:
        guest = one.hostdev.guest if one.hostdev is not None else None
        place = f"as {guest} in the guest" if guest is not None else "no address in the guest"
        yield (
            str(one.address),
            place if one.hostdev is not None else "recorded, but not in the domain any more",
        )
        if report.is_ours and _is_unrecorded(one):
            yield "", "not recorded: nobody notices if another device is there"
        if one.seen is None:
            yield "", "there is no such device on this host now"
        elif one.recorded is not None and not one.is_as_recorded:
            yield "", f"is {one.seen} now, not {one.recorded} as when it was attached"


def _is_unrecorded(one: DomainDevice) -> bool:
    """Tell whether the domain has a device of which nobody has written down what it is."""
    return one.recorded is None and one.seen is not None


def _change(uri: str, change: Callable[[Connection], DomainResult]) -> None:
    """Make a change, or plan it, and tell what it is."""
    with Connection.open(uri) as connection:
        result = change(connection)
    plan = result.plan
    name = one_line(plan.name)
    if plan.is_empty:
        note(f"{name} is so already: nothing to do")
    elif result.is_applied:
        for sentence in plan.changes:
            note(f"{name}: {sentence}")
    else:
        show_diff(plan)
    for text in result.notes:
        note(f"note: {text}")


def show_diff(plan: DomainPlan) -> None:
    """Print the change of a domain's XML."""
    for line in plan.diff.splitlines():
        say(line, colour=_COLOURS.get(line[:1]))


def report_json(report: DomainReport) -> dict[str, Any]:
    """Return a domain as it is printed with --json."""
    return {
        "name": report.name,
        "uuid": report.uuid,
        "active": report.is_active,
        "persistent": report.is_persistent,
        "ours": report.is_ours,
        "policy": _policy_json(report.policy) if report.policy is not None else None,
        "problem": report.problem or None,
        "devices": [
            {
                "address": str(one.address),
                "guest_address": str(one.hostdev.guest) if one.hostdev and one.hostdev.guest else None,
                "managed": one.hostdev.is_managed if one.hostdev else None,
                "recorded": str(one.recorded) if one.recorded else None,
                "seen": str(one.seen) if one.seen else None,
            }
            for one in report.devices
        ],
    }


def _policy_json(policy: Policy) -> dict[str, str | int]:
    return {**policy.attributes(), WAIT: policy.wait}
