"""``virtpass device detach``, ``reattach`` and ``reset``."""

import click

from virtpass.cli import options
from virtpass.cli.output import note
from virtpass.operations import node_devices
from virtpass.pci.address import PciAddress
from virtpass.pci.sysfs import driver
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.system.tasks import under_way


@click.command()
@click.argument("addresses", type=options.ADDRESS, nargs=-1, required=True, metavar="ADDRESS...")
@options.connect
@click.pass_obj
def detach(host: Host, addresses: tuple[PciAddress, ...], uri: str) -> None:
    """Detach devices from the host: libvirt binds them to vfio-pci. All of them, or none."""
    with Connection.open(uri) as connection, under_way(f"detaching {_named(addresses)}"):
        moved = node_devices.detach(connection, host, addresses)
    for address in dict.fromkeys(addresses):
        is_new = address in moved
        note(
            f"{address} is detached from the host (vfio-pci)" if is_new else f"{address} was detached already"
        )


@click.command()
@click.argument("addresses", type=options.ADDRESS, nargs=-1, required=True, metavar="ADDRESS...")
@options.connect
@click.pass_obj
def reattach(host: Host, addresses: tuple[PciAddress, ...], uri: str) -> None:
    """Give detached devices back to their host drivers."""
    with Connection.open(uri) as connection, under_way(f"reattaching {_named(addresses)}"):
        moved = node_devices.reattach(connection, host, addresses)
    for address in dict.fromkeys(addresses):
        now = "back with the host" if address in moved else "with the host already"
        note(f"{address} is {now} ({driver(host, address) or 'no driver'})")


@click.command()
@click.argument("address", type=options.ADDRESS)
@options.connect
@click.pass_obj
def reset(host: Host, address: PciAddress, uri: str) -> None:
    """Reset a device that nobody uses."""
    with Connection.open(uri) as connection, under_way(f"resetting {address}"):
        node_devices.reset(connection, host, address)
    note(f"{address} was reset")


def _named(addresses: tuple[PciAddress, ...]) -> str:
    return ", ".join(map(str, dict.fromkeys(addresses)))
