"""``virtpass snapshot``."""

import shlex

import click

from virtpass.cli import options
from virtpass.cli.output import note, say, say_json
from virtpass.operations import snapshot as operation
from virtpass.operations.snapshot import Taken
from virtpass.system.errors import UsageError
from virtpass.system.host import Host
from virtpass.system.tasks import under_way


@click.command()
@click.argument("file", type=click.Path(readable=False), required=False)
@click.option("--list", "is_list", is_flag=True, help="Show what would go into it, and write nothing.")
@options.as_json
@options.connect
@click.pass_obj
def snapshot(host: Host, file: str | None, is_list: bool, as_json: bool, uri: str) -> None:
    """Write what virtpass sees of this host into FILE, for others to look at: attach it to a bug report.

    Serial numbers, MAC addresses, UUIDs, and names of hosts and users are masked; the same value has the same
    mask. Whoever has the file looks at it with --snapshot FILE after a reading command, such as doctor.
    """
    if is_list == (file is not None):
        raise UsageError("snapshot-file", "one of FILE and --list is needed", "virtpass snapshot FILE")
    with under_way("reading this host"):
        taken = (
            operation.list_snapshot(host, uri) if file is None else operation.take_snapshot(host, file, uri)
        )
    if as_json:
        say_json(_json(taken))
    elif file is None:
        for path in taken.files:
            say(path)
        for name in taken.domains:
            say(f"domain {name}")
    for reason in taken.left_out:
        note(f"left out: {reason}")
    if file is not None:
        note(f"{file} has {len(taken.files)} files and {len(taken.domains)} domains of this host")
        note(f"look at it with: virtpass doctor --snapshot {shlex.quote(file)}")


def _json(taken: Taken) -> dict[str, object]:
    return {
        "files": list(taken.files),
        "domains": list(taken.domains),
        "left_out": list(taken.left_out),
    }
