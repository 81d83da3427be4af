"""The command line: the only room that prints."""

import os
import sys

import click

from virtpass import __version__
from virtpass.cli.groups import group_of, with_plain
from virtpass.cli.output import complain, is_output_lost, note, printing
from virtpass.system.errors import EXIT_FAILED, EXIT_USAGE, VirtpassError
from virtpass.system.host import Host

_COMMANDS = {
    "doctor": "virtpass.cli.doctor:doctor",
    "setup": "virtpass.cli.setup:setup",
    "devices": "virtpass.cli.devices:devices",
    "device": "virtpass.cli.device:device",
    "mdev": "virtpass.cli.mediated:mdev",
    "host": "virtpass.cli.preparation:host",
    "domain": "virtpass.cli.domains:domain",
    "hook": "virtpass.cli.hooks:hook",
    "recover": "virtpass.cli.recovery:recover",
    "snapshot": "virtpass.cli.snapshot:snapshot",
    "log": "virtpass.cli.hand_overs:log",
    "uninstall": "virtpass.cli.uninstall:uninstall",
}

_INTERRUPTED = 130
# Where the scripts of shells say what they want to know.
_COMPLETION = "_VIRTPASS_COMPLETE"


@click.group(
    cls=group_of(_COMMANDS),
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="virtpass %(version)s")
@click.option("--json", "as_json", is_flag=True, help="Print where you stand as JSON.")
@click.option(
    "--snapshot",
    "snapshot_file",
    type=click.Path(readable=False),
    metavar="FILE",
    help="Look at the host in this snapshot.",
)
@click.pass_context
def cli(context: click.Context, as_json: bool, snapshot_file: str | None) -> None:
    """Give PCI devices, above all graphics cards, to libvirt virtual machines, and take them back.

    Without a command: where you stand, and the next step.
    """
    if context.invoked_subcommand is None:
        from virtpass.cli.overview import show

        if snapshot_file is not None:
            from virtpass.operations.snapshot import opened

            context.obj = context.with_resource(opened(snapshot_file))
        show(context.obj, as_json=as_json)
    elif as_json:
        raise click.UsageError("--json goes after the command")
    elif snapshot_file is not None:
        raise click.UsageError("--snapshot goes after the command")


with_plain(cli)


def main(arguments: list[str] | None = None, host: Host | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the program's name; by default that of this process.
        host: the host to work on; by default this machine.

    Returns:
        the exit status.
    """
    # What is made here is for everybody to read, whatever the caller's umask; secrets are not among it.
    os.umask(0o022)
    if question := os.environ.get(_COMPLETION):
        from virtpass.cli.completion import answer

        return answer(cli, host or Host(), question)
    with printing():
        return _status(arguments, host or Host())


def _status(arguments: list[str] | None, host: Host) -> int:
    """Run a command, print why it did not work, and return its exit status."""
    try:
        status = cli.main(arguments, prog_name="virtpass", standalone_mode=False, obj=host)
    except VirtpassError as error:
        complain(error.line)
        return error.exit_status
    except click.UsageError as error:
        complain(_usage_line(error))
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error, click.Abort) and error.__cause__ is None:
            # At a question, whose line is still open; in all other cases click has ended the line.
            note("")
        complain("interrupted")
        return _INTERRUPTED
    except OSError as error:
        if not is_output_lost(error):
            raise
        complain(f"the output cannot be written: {error.strerror}; free some space, or write elsewhere")
        return EXIT_FAILED
    # click returns the status with which a command called exit(), and None when it ran to its end.
    return status if isinstance(status, int) else 0


def _usage_line(error: click.UsageError) -> str:
    """Return what is wrong with a command line, and what to do about it, as one line."""
    see = f"see {error.ctx.command_path if error.ctx is not None else 'virtpass'} --help"
    said = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.possibilities:
        said = f"{error.message.rstrip('.')}; did you mean {' or '.join(sorted(error.possibilities))}?"
    return f"{said} Else {see}" if said.endswith("?") else f"{said.rstrip('.')}; {see}"


def run() -> None:
    """Entry point of the installed command."""
    sys.exit(main())
