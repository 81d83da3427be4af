"""Arguments and options that several commands share."""

import click

from virtpass.pci.address import PciAddress

DEFAULT_URI = "qemu:///system"


class AddressType(click.ParamType):
    """A PCI address, parsed at the door."""

    name = "address"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> PciAddress:
        """Parse it; a `UsageError` of ours says what is wrong."""
        return value if isinstance(value, PciAddress) else PciAddress.parse(str(value))


ADDRESS = AddressType()

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
dry_run = click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
