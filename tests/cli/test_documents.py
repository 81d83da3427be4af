"""What README and documents tell people to type exists: every command, with its options and its values."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.test_commands import ROOT
from virtpass.cli import cli
from virtpass.system.errors import VirtpassError

DOCUMENTS = sorted([Path(ROOT) / "README.md", *(Path(ROOT) / "docs").glob("*.md")])
# What stands for something that the reader fills in.
EXAMPLES = {
    "ADDRESS": "01:00.0",
    "DOMAIN": "win11",
    "COUNT": "4",
    "NAME": "grub",
    "ID": "iommu",
    "UUID": "6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a",
    "KEY=VALUE": "wait=20",
    "DIR": "/",
    "FILE": "x.snapshot",
}
# An example of what is not understood.
WRONG = {"virtpass device show 0:2"}


def commands(text: str) -> Iterator[str]:
    """Yield the commands of ours in a document: lines of code, and code within sentences."""
    for line in text.splitlines():
        if line.startswith("    ") and re.match(r" +(sudo )?virtpass( |$)", line):
            # What it does stands beside it.
            yield line.strip().partition("  ")[0]
    found: list[str] = re.findall(r"`((?:sudo )?virtpass [^`]*)`", text.replace("\n", " "))
    yield from (one for one in found if one not in WRONG)


def each() -> list[object]:
    return [
        pytest.param(command, id=f"{path.name}-{number}")
        for path in DOCUMENTS
        for number, command in enumerate(dict.fromkeys(commands(path.read_text(encoding="utf-8"))))
    ]


@pytest.mark.parametrize("command", each())
def test_it_can_be_typed(command: str) -> None:
    words = shlex.split(command.replace("...", "").replace("[", "").replace("]", ""), comments=True)
    words = [EXAMPLES.get(word, word) for word in words if word != "sudo"][1:]
    if any("|" in word for word in words):
        # Several commands at once, as in "domain attach|detach".
        for choice in words[-1].split("|"):
            resolve([*words[:-1], choice])
        return
    resolve(words)


def resolve(words: list[str]) -> None:
    """Let click parse a command as far as it goes; nothing is run."""
    command: click.Command = cli
    context = click.Context(cli, info_name="virtpass")
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"there is no command {rest[0]!r} in {words}"
        command, rest = found, rest[1:]
        context = click.Context(command, info_name=command.name, parent=context)
    if isinstance(command, click.Group):
        known = {option for one in command.params for option in one.opts} | {"--help", "-h"}
        assert all(word in known for word in rest), words
        return
    named = {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
    options = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"]
    assert all(one in named or one in ("--help", "-h") for one in options), (words, sorted(named))
    try:
        command.make_context(command.name or "", list(rest), resilient_parsing=False)
    except (click.exceptions.MissingParameter, click.exceptions.Exit):
        pass  # a sentence that names a command need not name its arguments
    except VirtpassError as error:
        pytest.fail(f"{words}: {error.line}")


def test_every_module_of_a_command_is_there() -> None:
    from virtpass.cli import _COMMANDS

    for target in _COMMANDS.values():
        module, _, name = target.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), click.Command)
