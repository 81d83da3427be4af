"""Arguments and options that several commands share."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from virtpass.pci.address import PciAddress
from virtpass.system.errors import VirtpassError

DEFAULT_URI = "qemu:///system"

# A node device of libvirt, as virsh lists them: its PCI address between underscores.
_NODE_DEVICE = re.compile(r"pci_([0-9a-f]{4,8})_([0-9a-f]{2})_([0-9a-f]{2})_([0-7])", re.ASCII)
# Seconds. Somebody has pressed a key, and waits.
_COMPLETION_DEADLINE = 1.0


class AddressType(click.ParamType):
    """A PCI address, parsed at the door; completed with the names of the devices that are no bridges.

    The name of a node device (``pci_0000_01_00_0``) is one, too.
    """

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> PciAddress:
        """Parse it; a `UsageError` of ours says what is wrong."""
        if isinstance(value, PciAddress):
            return value
        text = str(value)
        if node := _NODE_DEVICE.fullmatch(text):
            text = "{}:{}:{}.{}".format(*node.groups())
        return PciAddress.parse(text)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the addresses that begin so, also in the short form of domain 0."""
        if _is_elsewhere(ctx):
            return []
        from virtpass.pci.inventory import read_inventory
        from virtpass.pci.names import device_names

        devices = [one for one in read_inventory(ctx.obj).devices.values() if not one.is_bridge]
        begun = {one.address: str(one.address) for one in devices}
        found = {address: text for address, text in begun.items() if text.startswith(incomplete.lower())}
        if not found:
            short = {address: text[5:] for address, text in begun.items() if address.domain == 0}
            found = {address: text for address, text in short.items() if text.startswith(incomplete.lower())}
        names = device_names(ctx.obj, [one for one in devices if one.address in found])
        return [
            CompletionItem(text, help=names[address].text if address in names else None)
            for address, text in found.items()
        ]


class NumberType(click.IntRange):
    """A whole number, from one on or up to another."""

    def __init__(self, least: int, most: int | None = None) -> None:
        super().__init__(least, most)
        self._bounds = f"from {least} on" if most is None else f"from {least} to {most}"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it; an error names the bounds."""
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter as error:
            if param is None:
                raise click.UsageError(f"choose a number {self._bounds}") from error
            name = param.metavar or param.human_readable_name
            raise click.UsageError(f"{name} is a number {self._bounds}", ctx) from error
        return number


class DomainType(click.ParamType):
    """A domain's name or UUID, looked up where it is used; completed with the names that libvirt has."""

    name = "domain"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin so; none where libvirt does not answer at once."""
        if _is_elsewhere(ctx):
            return []
        from virtpass.system.domain_names import domain_names

        try:
            names = domain_names(ctx.params.get("uri") or DEFAULT_URI, deadline=_COMPLETION_DEADLINE)
        except VirtpassError:
            return []
        return _begun(dict.fromkeys(names), incomplete)


class CheckType(click.ParamType):
    """The id of one of the doctor's checks; all of them are in small letters."""

    name = "id"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take capital letters for small ones."""
        return value.lower()

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the ids that begin so, with what the checks are about."""
        from virtpass.doctor.catalogue import CHECKS

        return _begun({check.reference: check.title for check in CHECKS}, incomplete)


class BootloaderType(click.ParamType):
    """The name of a bootloader, looked up where it is used; completed with those that virtpass knows."""

    name = "bootloader"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin so, with what they stand for."""
        from virtpass.host.loaders import LOADERS

        return _begun({loader.name: loader.title for loader in LOADERS}, incomplete)


class SettingType(click.ParamType):
    """A setting of a policy, ``KEY=VALUE``, parsed by `virtpass.domain.policy`."""

    name = "setting"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the settings that begin so, with what they mean."""
        from virtpass.binding.policy import DEFAULT_POLICY, KNOWN_POLICY, WAIT
        from virtpass.domain.policy import meaning

        choices = {**KNOWN_POLICY, WAIT: (str(DEFAULT_POLICY.wait),)}
        meanings = {
            f"{key}={value}": meaning(key, value) for key, values in choices.items() for value in values
        }
        return _begun(meanings, incomplete)


def _begun(choices: Mapping[str, str | None], incomplete: str) -> list[CompletionItem]:
    """Return the choices that begin with what was typed, each with its help."""
    return [
        CompletionItem(choice, help=text) for choice, text in choices.items() if choice.startswith(incomplete)
    ]


def _is_elsewhere(ctx: click.Context) -> bool:
    """Tell whether the command works on another host, which nobody opens for a key that is pressed."""
    return bool(ctx.params.get("snapshot_file") or ctx.params.get("root"))


ADDRESS = AddressType()
DOMAIN = DomainType()
CHECK = CheckType()
BOOTLOADER = BootloaderType()
SETTING = SettingType()

connect = click.option(
    "-c",
    "--connect",
    "uri",
    metavar="URI",
    default=DEFAULT_URI,
    show_default=True,
    help="The libvirt connection.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")


def snapshot(command: Callable[..., None]) -> Callable[..., None]:
    """Let a reading command look at a host in a snapshot; stands above what passes the host to it."""

    @click.option(
        "--snapshot",
        "snapshot_file",
        # For completion alone: whether it can be read is told where it is opened.
        type=click.Path(readable=False),
        metavar="FILE",
        help="Look at the host in this snapshot, not at this one.",
    )
    @functools.wraps(command)
    def looking(*arguments: Any, snapshot_file: str | None, **values: Any) -> None:  # noqa: ANN401 (any command's)
        if snapshot_file is not None:
            # Not at the top: few commands have one to open.
            from virtpass.operations.snapshot import opened

            context = click.get_current_context()
            context.obj = context.with_resource(opened(snapshot_file))
        command(*arguments, **values)

    return looking


policy = click.option(
    "--policy",
    "settings",
    type=SETTING,
    multiple=True,
    metavar="KEY=VALUE",
    help="What the hook may do, as with: virtpass domain policy. May be repeated.",
)
