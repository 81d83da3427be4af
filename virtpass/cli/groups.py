"""Groups of commands that are imported when they are called: no command waits for what others need.

All commands have the option ``--plain``, so that it can stand before a command and after it.
"""

import importlib

import click

from virtpass.cli.output import be_plain

# Characters of a sentence in a list of commands; none is longer.
_WHOLE = 1000


def _set_plain(_context: click.Context, _parameter: click.Parameter, is_wanted: bool) -> None:
    if is_wanted:
        be_plain()


def _plain() -> click.Option:
    return click.Option(
        ["--plain"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_plain,
        help="For screen readers and logs: a fact a line, nothing cut, no colours, nothing that moves.",
    )


def with_plain(command: click.Command) -> click.Command:
    """Give the option to a command, and to those of its group; a second time changes nothing."""
    if not any("--plain" in one.opts for one in command.params):
        command.params.append(_plain())
    if isinstance(command, click.Group):
        for one in command.commands.values():
            with_plain(one)
    return command


class Group(click.Group):
    """A group whose help says what each command does without cutting a sentence off."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command; of one that does not exist say which is called nearly so."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            # Not at the top: few command lines are wrong.
            from difflib import get_close_matches

            near = get_close_matches(args[0].lower(), self._shown(ctx), 1)
            if not near:
                raise
            raise click.UsageError(
                f"No such command {args[0]!r}; did you mean {ctx.command_path} {near[0]}?", error.ctx
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in self._shown(ctx).items()]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def _shown(self, ctx: click.Context) -> dict[str, click.Command]:
        """Return the commands that are for people, by name."""
        commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return {name: one for name, one in commands.items() if one is not None and not one.hidden}


def group_of(places: dict[str, str]) -> type[click.Group]:
    """Return the class of a group.

    Args:
        places: where each of its commands is, as ``module:name``, in the order of the list in its help.
    """

    class Lazy(Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(places)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in places:
                return None
            module, _, name = places[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return with_plain(command)

    return Lazy
