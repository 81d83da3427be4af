"""The manual pages say what --help says, and man shows them as they are meant."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from virtpass.cli import cli

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "packaging" / "man_pages.py"
DATE = "1790000000"


def write(directory: Path, date: str = DATE) -> dict[str, str]:
    """Write the pages; return their text by the name of the file."""
    subprocess.run(
        [sys.executable, SCRIPT, directory], env={**os.environ, "SOURCE_DATE_EPOCH": date}, check=True
    )
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("man")


@pytest.fixture(scope="module")
def pages(directory: Path) -> dict[str, str]:
    return write(directory)


@pytest.fixture(scope="module")
def shown(directory: Path, pages: dict[str, str]) -> dict[str, str]:
    """The pages as a reader sees them, in lines so long that none is broken."""
    if shutil.which("man") is None:
        pytest.skip("needs man")
    return {name: man(directory / name) for name in pages}


def man(page: Path) -> str:
    environment = {**os.environ, "MANWIDTH": "1000", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(
        ["man", "--warnings", "-l", page], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return re.sub(r".\x08", "", done.stdout)


def commands(command: click.Command = cli, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield all commands that are not hidden, each in its context."""
    context = click.Context(
        command,
        parent=parent,
        info_name="virtpass" if parent is None else command.name,
        **command.context_settings,
    )
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            one = command.get_command(context, name)
            assert one is not None
            if not one.hidden:
                yield from commands(one, context)


def each() -> list[object]:
    return [pytest.param(one, id=one.command_path.replace(" ", "-")) for one in commands()]


def part(shown: dict[str, str], one: click.Context) -> str:
    """Return what the pages say about a command: its page, or its section of that of its group."""
    words = one.command_path.split()
    page = shown["-".join(words[:2]) + ".1"]
    if len(words) < 3:
        return page
    (section,) = re.findall(rf"^{one.command_path.upper()}\n(.*?)(?=^\S)", page, re.M | re.S)
    return str(section)


@pytest.mark.parametrize("one", each())
def test_every_command_has_its_help_and_all_its_options(shown: dict[str, str], one: click.Context) -> None:
    said = " ".join(part(shown, one).split())
    for parameter in one.command.get_params(one):
        record = parameter.get_help_record(one)
        if record is not None:
            assert " ".join(f"{record[0]} {record[1]}".split()) in said
    usage = " ".join((one.command_path, *one.command.collect_usage_pieces(one)))
    assert usage in said
    for text in (one.command.help, one.command.epilog):
        # What is not refilled has a mark of click's that nobody sees.
        assert " ".join((text or "").replace("\b", "").split()) in said


def test_lines_that_help_keeps_stay_lines(shown: dict[str, str]) -> None:
    lines = [line.split(maxsplit=1) for line in shown["virtpass-devices.1"].splitlines()]
    assert ["ready", "can be given to a domain, with the other functions of its card"] in lines


def test_what_is_hidden_has_no_page(pages: dict[str, str]) -> None:
    assert not any("at\\-boot systemd" in text or "functions\\-at\\-boot" in text for text in pages.values())


def test_exit_statuses_are_those_of_the_document(shown: dict[str, str]) -> None:
    document = (ROOT / "docs" / "exit-status.md").read_text()
    statuses = re.findall(r"^\| (\d+) \|", document, re.M)
    assert len(statuses) > 5

    def listed(page: str) -> list[str]:
        return re.findall(r"^ +(\d+) +[A-Zv]", shown[page].partition("\nEXIT STATUS\n")[2], re.M)

    assert listed("virtpass.1") == listed("virtpass-doctor.1") == statuses
    # Those of one command are not on the pages of others.
    assert listed("virtpass-host.1") == [one for one in statuses if one not in ("10", "11")]


def test_every_page_leads_to_all_others(pages: dict[str, str], shown: dict[str, str]) -> None:
    for name, text in shown.items():
        end = text.partition("\nSEE ALSO\n")[2]
        assert {
            f"{one}.1" for one in re.findall(r"(virtpass[\w-]*)\(1\)", end.rpartition("\nvirtpass ")[0])
        } == (pages.keys() - {name})


def test_the_first_line_is_one_that_whatis_finds(pages: dict[str, str], directory: Path) -> None:
    if shutil.which("lexgrog") is None:
        pytest.skip("needs lexgrog")
    for name in pages:
        done = subprocess.run(["lexgrog", directory / name], capture_output=True, text=True, check=True)
        assert f'"{name.removesuffix(".1")} - ' in done.stdout


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_groff_has_no_warning(pages: dict[str, str], directory: Path) -> None:
    for name in pages:
        done = subprocess.run(
            ["groff", "-ww", "-man", "-Tutf8", "-z", directory / name],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""


def test_the_same_sources_give_the_same_bytes(pages: dict[str, str], tmp_path: Path) -> None:
    assert write(tmp_path / "again") == pages
    later = write(tmp_path / "later", "1800000000")
    assert pages["virtpass.1"].splitlines()[0].split('"')[3] == "2026\\-09\\-21"
    assert {name: text.partition("\n")[2] for name, text in later.items()} == {
        name: text.partition("\n")[2] for name, text in pages.items()
    }


def test_without_a_date_there_are_no_pages(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "man"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SOURCE_DATE_EPOCH" in done.stderr
    assert not (tmp_path / "man").exists()


HOSTILE = """\
import sys
sys.path.insert(0, {packaging!r})
import man_pages
import click

@click.command(help={help!r})
@click.option("--odd", help={help!r})
def odd(odd): pass

one = man_pages.context(odd, "odd", None)
one.command_path
print("\\n".join(man_pages.page(one, "2026-01-01", [])))
"""


@pytest.mark.parametrize(
    "text",
    [
        ".so /etc/passwd",
        "'tis \\fBbold\\fR \\*(xx \\",
        'a "b" c\\"d',
        "~/x `y` ^z - --w…ß",
        "x\n\n.br\n\n'br",
    ],
)
def test_nothing_in_a_help_is_markup(text: str, tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("needs man")
    code = HOSTILE.format(packaging=os.fspath(SCRIPT.parent), help=text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    (tmp_path / "odd.1").write_text(done.stdout)
    assert done.stdout.isascii()
    said = " ".join(man(tmp_path / "odd.1").split())
    assert said.count(" ".join(text.split())) >= 2
