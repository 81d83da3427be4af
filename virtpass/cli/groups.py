"""Groups of commands that are imported when they are called: no command waits for what others need."""

import importlib

import click


def group_of(places: dict[str, str]) -> type[click.Group]:
    """Return the class of a group.

    Args:
        places: where each of its commands is, as ``module:name``, in the order of the list in its help.
    """

    class Group(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(places)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in places:
                return None
            module, _, name = places[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command

    return Group
