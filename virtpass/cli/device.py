"""``virtpass device``: the group of commands about one device."""

import click

from virtpass.cli.groups import group_of

_COMMANDS = {
    "show": "virtpass.cli.devices:show",
    "detach": "virtpass.cli.node_devices:detach",
    "reattach": "virtpass.cli.node_devices:reattach",
    "reset": "virtpass.cli.node_devices:reset",
    "functions": "virtpass.cli.functions:functions",
    "functions-at-boot": "virtpass.cli.functions:functions_at_boot",
}


@click.group(cls=group_of(_COMMANDS))
def device() -> None:
    """Look at one PCI device; detach it from the host, reattach it, reset it; give it virtual functions."""
