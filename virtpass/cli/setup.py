"""``virtpass setup``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace

import click

from virtpass.cli import options
from virtpass.cli.devices import title, verdict
from virtpass.cli.domains import show_diff
from virtpass.cli.hooks import STATES, note_start, show_rehearsal
from virtpass.cli.output import agree, joined, note, say, say_fact
from virtpass.cli.preparation import bootloader_option, show_changes
from virtpass.domain.policy import meaning, parse_settings
from virtpass.host.prepare import HostPlan
from virtpass.operations import domains
from virtpass.operations import setup as operation
from virtpass.operations.devices import DeviceReport
from virtpass.operations.domains import DomainReport
from virtpass.operations.rehearsal import Rehearsal
from virtpass.operations.setup import SetupPlan, SetupWish
from virtpass.pci.address import PciAddress
from virtpass.pci.isolation import Level
from virtpass.system.errors import (
    EXIT_FAILED,
    NotFoundError,
    PermissionDeniedError,
    UsageError,
    one_line,
)
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.system.tasks import under_way

_DISPLAY = "display"
_LABEL = 9


@click.command()
@click.argument("address", type=options.ADDRESS, required=False)
@click.argument("name", metavar="[DOMAIN]", type=options.DOMAIN, required=False)
@options.policy
@click.option("--bind", is_flag=True, help="Let vfio-pci have the card from boot on.")
@click.option(
    "--unsafe-interrupts",
    is_flag=True,
    help="Accept interrupts that are not remapped: a guest can then disturb the host.",
)
@bootloader_option
@options.yes
@options.dry_run
@options.connect
@click.pass_context
def setup(
    context: click.Context,
    address: PciAddress | None,
    name: str | None,
    settings: tuple[str, ...],
    bind: bool,
    unsafe_interrupts: bool,
    bootloader: str,
    yes: bool,
    dry_run: bool,
    uri: str,
) -> None:
    """Set everything up that a domain needs to have a card: host, hook, and domain.

    Asks for what is not given, shows one plan, and does it as a whole or not at all. Where the host has to be
    rebooted first, virtpass setup goes on after that. The way back is virtpass uninstall.
    """
    host: Host = context.obj
    with Connection.open(uri) as connection:
        if address is None and (begun := _pending(host)) is not None:
            if settings or bind or unsafe_interrupts or bootloader:
                raise UsageError(
                    "goes-on",
                    "a setup waits to be gone on with, and was agreed to as it is",
                    "leave the options out; with ADDRESS and DOMAIN another one is begun",
                )
            note(f"going on with {begun.wish.address} for {one_line(begun.wish.domain)}")
            with under_way("looking at host, hook and domain"):
                plan = operation.resume(connection, host, begun)
            # It was agreed to before the reboot, for the domain as it was then.
            agreed = yes or begun.is_of(plan.domain)
            if not agreed:
                note("the domain is not as it was when this was agreed to")
        else:
            wish = _wish(connection, host, address, name, parse_settings(settings))
            wish = replace(wish, bind=bind, unsafe_interrupts=unsafe_interrupts, bootloader=bootloader)
            with under_way("looking at host, hook and domain"):
                plan = operation.plan_setup(connection, host, wish)
            agreed = yes
        # Without a question it is told once, at the end.
        is_asking = not (agreed or plan.is_empty)
        foreseen = None
        if is_asking or dry_run:
            with under_way("looking what the next start would do"):
                foreseen = operation.foresee(host, plan)
        _show(plan, foreseen)
        if dry_run:
            return
        if not plan.is_empty:
            if os.geteuid() != 0:
                raise PermissionDeniedError("not-root", "setting up takes root", "sudo virtpass setup")
            if is_asking:
                agree("Do all of this?")
            operation.carry_out(connection, host, plan, say=note)
        if plan.waits_for_reboot:
            note("now reboot; then virtpass setup goes on here")
            return
        if plan.is_empty:
            note("all of this is set up already")
        with under_way("looking what the next start would do"):
            found = operation.check_start(connection, host, plan.wish.domain)
    if found == foreseen:
        say(f"{one_line(found.name)} is set up: its next start goes as shown above")
    else:
        _show_start(found)
    if found.problem is not None:
        context.exit(EXIT_FAILED)
    note_start(found.name, uri)


def _pending(host: Host) -> operation.Pending | None:
    if not operation.is_waiting(host):
        return None
    return operation.pending(host)


def _wish(
    connection: Connection,
    host: Host,
    address: PciAddress | None,
    name: str | None,
    settings: dict[str, str],
) -> SetupWish:
    """Ask for what was not given.

    Raises:
        UsageError: something is missing, and there is no terminal to ask on.
        NotFoundError: there is no such domain.
    """
    cards = operation.cards(host)
    if address is None:
        address = _choose_card(cards)
    if name is None:
        name = _choose_domain([one for one in domains.list_domains(connection, host) if one.is_persistent])
    # What a domain may do already is not asked again, and taken back by its name alone.
    is_open = _DISPLAY not in settings and _is_last(cards, address)
    if is_open and not operation.has_policy(connection, name):
        settings = {**settings, _DISPLAY: _choose_display(address)}
    return SetupWish(address, name, settings)


def _is_last(cards: Sequence[DeviceReport], address: PciAddress) -> bool:
    """Tell whether the host would be without a screen."""
    staying = [one.device.address for one in cards if one.device.driver not in (None, "vfio-pci")]
    return bool(staying) and all(one.same_slot(address) for one in staying)


def _choose_card(cards: Sequence[DeviceReport]) -> PciAddress:
    if not cards:
        raise NotFoundError("no-card", "this host has no graphics card that Linux sees", "virtpass devices")
    lines = [joined(str(one.device.address), title(one), verdict(one)) for one in cards]
    ready = [place for place, one in enumerate(cards) if one.verdict.level is Level.READY]
    return cards[_choose("Which card?", "ADDRESS", lines, ready)].device.address


def _choose_domain(found: Sequence[DomainReport]) -> str:
    if not found:
        raise NotFoundError(
            "no-domain", "libvirt has no virtual machine yet", "make one in virt-manager, without the card"
        )
    lines = [f"{one_line(one.name)}{'  (running)' if one.is_active else ''}" for one in found]
    ready = [place for place, one in enumerate(found) if not one.is_active]
    return found[_choose("Which virtual machine?", "DOMAIN", lines, ready)].name


def _choose(question: str, argument: str, lines: Sequence[str], ready: Sequence[int]) -> int:
    """Let the user choose a line; return its place."""
    if not _can_ask():
        raise UsageError(
            "not-given",
            f"{argument} is not given, and there is no terminal to ask on: {'; '.join(lines)}",
            "virtpass setup ADDRESS DOMAIN --yes",
        )
    for number, line in enumerate(lines, 1):
        say(f"{number:>3}. {line}")
    default = ready[0] + 1 if len(ready) == 1 else None
    chosen: int = click.prompt(
        question, type=options.NumberType(1, len(lines)), default=default, prompt_suffix=" ", err=True
    )
    return chosen - 1


def _choose_display(address: PciAddress) -> str:
    """Ask whether the desktop may be ended."""
    if not _can_ask():
        raise UsageError(
            "display-policy",
            f"{address} is the host's only screen, and it is not said what becomes of the desktop on it",
            "--policy display=hand-over lets it end when the domain starts, --policy display=refuse does not",
        )
    note(f"{address} is the host's only screen: it is dark while the domain runs")
    for value in ("hand-over", "refuse"):
        note(f"  {value}: {meaning(_DISPLAY, value)}")
    is_given = click.confirm("May the desktop be ended when the domain starts?", default=False, err=True)
    return "hand-over" if is_given else "refuse"


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _show(plan: SetupPlan, foreseen: Rehearsal | None) -> None:
    """Print the whole plan: line by line what changes, then what it comes to, which stays on the screen."""
    name = one_line(plan.domain.name)
    if not plan.host.is_empty:
        say("Changes of the host:")
        show_changes(plan.host)
    if not plan.domain.is_empty:
        say(f"Changes of the domain {name}:")
        show_diff(plan.domain)
    for one in plan.card:
        say_fact("Card", joined(str(one.device.address), title(one), verdict(one)), _LABEL)
    say_fact("Host", _host(plan.host), _LABEL)
    hook = STATES[plan.hook.state] if plan.hook.works else f"{STATES[plan.hook.state]}: will be installed"
    say_fact("Hook", hook, _LABEL)
    functions = ", ".join(str(one.device.address) for one in plan.card)
    has = "has" if plan.domain.is_empty else "will have"
    say_fact("Domain", f"{name} {has} {functions}", _LABEL)
    special = ", ".join(f"{key}={value}" for key, value in plan.policy.attributes().items())
    say_fact("Policy", special, _LABEL)
    for text in plan.notes:
        note(f"note: {text}")
    if plan.waits_for_reboot:
        note("the domain gets the card after a reboot")
    if foreseen is not None:
        _show_start(foreseen)


def _host(plan: HostPlan) -> str:
    """Return in a few words what becomes of the host."""
    if plan.is_empty:
        return "is ready"
    numbers = [(len(plan.plan.changes), "file"), (len(plan.plan.commands), "command")]
    parts = [f"{number} {noun}{'s' * (number > 1)}" for number, noun in numbers if number]
    there = plan.present.arguments if plan.present is not None else ()
    wanted = plan.record.arguments if plan.record is not None else ()
    if coming := [one for one in wanted if one not in there]:
        parts.insert(0, f"kernel arguments {' '.join(coming)}")
    return f"is prepared: {', '.join(parts) or 'the running kernel'}"


def _show_start(found: Rehearsal) -> None:
    say(f"At the next start of {one_line(found.name)}:")
    show_rehearsal(found)
