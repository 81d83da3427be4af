"""What README and documents tell people to type works: all that reads, and what can be tried (--dry-run)."""

import shlex
from pathlib import Path

import click
import pytest

from tests.cli.test_commands import TEST_DRIVER, Captured, call
from tests.cli.test_documents import DOCUMENTS, EXAMPLES, commands
from tests.simulation import SimulatedHost
from virtpass.cli import cli

# The domain that libvirt's test driver has.
ON_THIS_HOST = {**EXAMPLES, "DOMAIN": "test", "win11": "test"}
# What a command may end with here, where there is no hook, and the domain has no device. Never with 2, which
# says that it was not understood.
SENSIBLE = {0, 1, 3, 4, 6, 10, 11}
# Commands that write nothing to the host, though they have neither --snapshot nor --dry-run.
READING = {"virtpass log", "virtpass snapshot"}


def whole(line: str) -> list[str] | None:
    """Return the words of a command that can be run without a change, None for any other."""
    words = shlex.split(line.replace("...", "").replace("[", "").replace("]", ""), comments=True)
    words = [ON_THIS_HOST.get(word, word) for word in words if word != "sudo"][1:]
    command: click.Command = cli
    context, rest = click.Context(cli), list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        if found is None:
            return None
        command, rest = found, rest[1:]
    options = {option for one in command.params for option in one.opts}
    if words == ["snapshot"]:
        return None  # where it is named, and not to be typed so
    if (isinstance(command, click.Group) and command is not cli) or "--help" in words or ">" in words:
        return None
    if "--dry-run" in options:
        words = [*words, "--dry-run"] if "--dry-run" not in words else words
    elif "--snapshot" not in options and command is not cli and f"virtpass {command.name}" not in READING:
        return None
    try:
        command.make_context("", list(rest), obj=None)
    except click.ClickException:
        return None  # a sentence that names a command need not name its arguments
    return [*words, "--connect", TEST_DRIVER] if "--connect" in options else words


LINES = sorted(
    {
        line
        for path in DOCUMENTS
        for line in commands(path.read_text(encoding="utf-8"))
        if whole(line) is not None
    }
)


def test_most_of_them_are_run() -> None:
    assert len(LINES) > 40
    assert {"virtpass", "virtpass log", "virtpass snapshot FILE", "virtpass mdev types"} <= set(LINES)


@pytest.mark.parametrize("line", LINES)
def test_it_runs(
    host: SimulatedHost, capfd: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    words = whole(line)
    assert words is not None
    # Where a snapshot goes.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = host.state()
    status, _, err = call(host, capfd, *words)
    assert status in SENSIBLE or "terminal" in err, (words, status, err)
    assert host.state() == before
