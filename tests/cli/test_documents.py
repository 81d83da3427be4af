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
from virtpass.host.loaders import LOADERS
from virtpass.system.errors import VirtpassError

README, CHINESE = Path(ROOT) / "README.md", Path(ROOT) / "README.zh-CN.md"
DOCUMENTS = sorted([README, CHINESE, *(Path(ROOT) / "docs").glob("*.md")])
# These name files of the source, and names in them, which have to be there.
ON_CODE = [Path(ROOT) / "docs" / name for name in ("adding-a-bootloader.md", "threat-model.md")]
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


# links


def links(text: str) -> list[str]:
    """Return where the links and pictures of a document lead."""
    found: list[str] = re.findall(r"\]\(([^)\s]+)\)", text)
    return found


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_links_lead_somewhere(path: Path) -> None:
    local = [one for one in links(path.read_text(encoding="utf-8")) if "://" not in one]
    targets = [path.parent / one.partition("#")[0] for one in local if not one.startswith("#")]
    assert [target for target in targets if not target.exists()] == []


def test_the_table_of_bootloaders_has_the_names_that_can_be_typed() -> None:
    text = (Path(ROOT) / "docs" / "host-preparation.md").read_text(encoding="utf-8")
    table = text.partition("| bootloader | NAME |")[2].partition("\n\n")[0]
    names: list[str] = re.findall(r"^\| [^|]+ \| `([^`]+)` \|", table, re.MULTILINE)
    assert sorted(names) == sorted(loader.name for loader in LOADERS)


# messages


def messages(text: str) -> set[str]:
    """Return the words of messages that a page quotes: in headings, and in the table of what a line says."""
    quoted = re.findall(r'^## .*?"(.+?)"', text, re.MULTILINE)
    table = text.partition("| the line says |")[2].partition("\n\n")[0]
    quoted += re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    # What stands for a name or an id differs each time.
    pieces = {piece.strip() for one in quoted for piece in re.split(r"\.\.\.|[0-9a-f]{4}:[0-9a-f]{4}", one)}
    return pieces - {""}


def test_what_troubleshooting_quotes_is_printed() -> None:
    found = messages((Path(ROOT) / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(found) > 8
    program = "\n".join(path.read_text(encoding="utf-8") for path in (Path(ROOT) / "virtpass").rglob("*.py"))
    assert {one for one in found if one not in program} == set()


# both languages


def code_blocks(text: str) -> list[str]:
    """Return the lines of code of a document, without what is said of them."""
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    return [re.split(r" +# ", line)[0].rstrip() for line in lines]


def spans(text: str) -> set[str]:
    """Return what stands as code within the sentences of a document."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"\n *", " ", text)))


def shape(text: str) -> list[str]:
    """Return headings, points of lists and rows of tables in their order, without their words."""
    return [found[0] for line in text.splitlines() if (found := re.match(r"#+ |\* |\|", line))]


def test_the_chinese_readme_says_to_type_the_same() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in (README, CHINESE))
    assert code_blocks(chinese) == code_blocks(english)
    assert spans(chinese) == spans(english)


def test_the_chinese_readme_has_the_same_parts() -> None:
    english, chinese = (path.read_text(encoding="utf-8") for path in (README, CHINESE))
    assert shape(chinese) == shape(english)
    each_other = {README.name, CHINESE.name}
    assert [one for one in links(chinese) if one not in each_other] == [
        one for one in links(english) if one not in each_other
    ]


# names in the source


def sources() -> str:
    """Return all of the source, tests included."""
    directories = (Path(ROOT) / name for name in ("virtpass", "tests"))
    return "\n".join(
        path.read_text(encoding="utf-8") for directory in directories for path in directory.rglob("*.py")
    )


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in ON_CODE])
def test_what_a_page_names_of_the_source_is_there(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    source = sources()
    missing = []
    for name in spans(text):
        if re.match(r"(virtpass|tests|hooks|packaging)/", name):
            # The example is a loader that does not exist.
            if "lantern" not in name and not list(Path(ROOT).glob(name)):
                missing.append(name)
        elif re.fullmatch(r"(?:[A-Za-z]+\.)?[A-Za-z]*_[A-Za-z_]+", name):
            last = name.rpartition(".")[2]
            if not re.search(rf"\b{last}\b", source):
                missing.append(name)
    assert missing == []
