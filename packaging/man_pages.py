"""Write the manual pages: virtpass(1), and one for each of its commands, such as virtpass-host(1).

    SOURCE_DATE_EPOCH=SECONDS man_pages.py DIRECTORY

They say what --help says, because they are made from the same commands; the exit statuses are those of
docs/exit-status.md. The date is that of SOURCE_DATE_EPOCH: the same sources give the same bytes.
"""

import inspect
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, os.fspath(ROOT))

from virtpass import __version__  # noqa: E402 (the checkout comes first)
from virtpass.cli import cli  # noqa: E402

EXIT_STATUS = ROOT / "docs" / "exit-status.md"
ELSEWHERE = ("virsh(1)", "virt-manager(1)", "libvirtd(8)", "lspci(8)")

# What groff would take for markup, or show as another character than the one that has to be typed.
_ESCAPES = {
    "\\": "\\e",
    "-": "\\-",
    "'": "\\(aq",
    "`": "\\(ga",
    "^": "\\(ha",
    "~": "\\(ti",
    '"': "\\(dq",
}


def main() -> None:
    """Write all pages into a directory."""
    match sys.argv[1:]:
        case [directory]:
            target = Path(directory)
        case _:
            raise SystemExit(__doc__)
    if not (seconds := os.environ.get("SOURCE_DATE_EPOCH", "")).isdecimal():
        raise SystemExit("SOURCE_DATE_EPOCH is not set to the seconds of the pages' date")
    date = time.strftime("%Y-%m-%d", time.gmtime(int(seconds)))
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages(date).items():
        (target / name).write_text(text, encoding="ascii")


def pages(date: str) -> dict[str, str]:
    """Return the text of each page by the name of its file."""
    top = context(cli, "virtpass", None)
    commands = list(subcommands(top))
    names = ["virtpass", *(page_name(one) for one in commands)]
    return {
        f"{page_name(one)}.1": "\n".join(page(one, date, [name for name in names if name != page_name(one)]))
        + "\n"
        for one in (top, *commands)
    }


def context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """Return the context in which click would show a command's help."""
    return click.Context(command, parent=parent, info_name=name, **command.context_settings)


def subcommands(parent: click.Context) -> Iterator[click.Context]:
    """Yield the commands of a group, as --help lists them; none of what is no group."""
    group = parent.command
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(parent):
        command = group.get_command(parent, name)
        if command is not None and not command.hidden:
            yield context(command, name, parent)


def page_name(one: click.Context) -> str:
    """Return the name of a command's page."""
    return one.command_path.replace(" ", "-")


def page(one: click.Context, date: str, others: list[str]) -> Iterator[str]:
    """Yield the lines of a page: of a command, and of those below it unless they have pages of their own."""
    name = page_name(one)
    is_top = one.parent is None
    below = list(subcommands(one))
    yield f'.TH "{escaped(name.upper())}" 1 "{escaped(date)}" "{escaped(f"virtpass {__version__}")}"'
    # Words are not divided, and lines not stretched: both would be in the way of copying a command.
    yield from (
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{escaped(name)} \\- {escaped(lowered(first_sentence(one.command)))}",
    )
    yield ".SH SYNOPSIS"
    yield from usage(one)
    for command in [] if is_top else below:
        yield ".br"
        yield from usage(command)
    yield ".SH DESCRIPTION"
    yield from prose(one.command.help or "")
    if is_top:
        yield ".SH COMMANDS"
        for command in below:
            yield from (
                ".TP",
                f".BR {escaped(page_name(command))} (1)",
                text(f"{first_sentence(command.command)}."),
            )
    yield ".SH OPTIONS"
    yield from options(one)
    for command in [] if is_top else below:
        yield f'.SH "{escaped(command.command_path.upper())}"'
        yield from usage(command)
        yield ".PP"
        yield from prose(command.command.help or "")
        yield from prose(command.command.epilog or "")
        yield from options(command)
    yield from prose(one.command.epilog or "")
    yield ".SH EXIT STATUS"
    for status, meaning in exit_statuses(one):
        yield from (".TP", f".B {escaped(status)}", meaning)
    yield ".SH SEE ALSO"
    references = [f"{other}(1)" for other in others] + list(ELSEWHERE)
    for number, reference in enumerate(references, 1):
        title, section = reference.removesuffix(")").split("(")
        end = "" if number == len(references) else ","
        yield f".BR {escaped(title)} ({section}){end}"


def first_sentence(command: click.Command) -> str:
    """Return the first sentence of a command's help, without its full stop."""
    paragraph = " ".join(paragraphs(command.help or "")[0].split())
    return re.split(r"\.(?: |$)", paragraph, maxsplit=1)[0]


def lowered(sentence: str) -> str:
    """Return a sentence as it stands behind a name."""
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def paragraphs(help_text: str) -> list[str]:
    """Return the paragraphs of a command's help; click's own mark of what is not refilled is still there."""
    return re.split(r"\n\s*\n", inspect.cleandoc(help_text).partition("\f")[0].strip("\n"))


def prose(help_text: str) -> Iterator[str]:
    """Yield a command's help as lines."""
    for number, paragraph in enumerate(filter(None, paragraphs(help_text))):
        if number or not paragraph.startswith("\b"):
            yield ".PP"
        if paragraph.startswith("\b"):
            yield from (".nf", ".RS")
            yield from map(text, paragraph.removeprefix("\b").strip("\n").splitlines())
            yield from (".RE", ".fi")
        else:
            yield text(" ".join(paragraph.split()))


def usage(one: click.Context) -> Iterator[str]:
    """Yield how a command is typed."""
    yield f".B {escaped(one.command_path)}"
    for piece in one.command.collect_usage_pieces(one):
        yield protected(marked(piece))


def options(one: click.Context) -> Iterator[str]:
    """Yield the options of a command, with their help."""
    for parameter in one.command.get_params(one):
        record = parameter.get_help_record(one)
        if record is not None:
            names, explanation = record
            yield from (".TP", marked(names), text(" ".join(explanation.split())))


def marked(names: str) -> str:
    """Return options and values as --help has them: what is typed in bold, what is filled in slanted."""
    parts = re.split(r"(--?[A-Za-z][\w-]*|[A-Z][A-Z_=]*)", names)
    bold = [
        f"\\fB{escaped(part)}\\fR" if part.startswith("-") else f"\\fI{escaped(part)}\\fR" for part in parts
    ]
    return "".join(bold[at] if at % 2 else escaped(part) for at, part in enumerate(parts))


def exit_statuses(one: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the exit statuses that concern a page, with what they mean."""
    rows = re.findall(r"^\| *(\d+) *\| *(.+?) *\| *(.*?) *\|$", EXIT_STATUS.read_text(encoding="utf-8"), re.M)
    if not rows:
        raise SystemExit(f"{EXIT_STATUS} has no table of exit statuses")
    for status, meaning, example in rows:
        command = re.match(r"`([^`]+)`: ", meaning)
        if command is not None and one.parent is not None and command[1] != one.command_path:
            continue
        sentence = f"{meaning[:1].upper()}{meaning[1:]}." + (f" For example: {example}." if example else "")
        pieces = sentence.split("`")
        yield (
            status,
            protected(
                "".join(
                    f"\\fB{escaped(one)}\\fR" if at % 2 else escaped(one) for at, one in enumerate(pieces)
                )
            ),
        )


def text(line: str) -> str:
    """Return a line of text as groff has to read it."""
    return protected(escaped(line))


def escaped(words: str) -> str:
    """Return words that groff shows as they are."""
    return "".join(_ESCAPES.get(one, one) if one.isascii() else f"\\[u{ord(one):04X}]" for one in words)


def protected(line: str) -> str:
    """Return a line that groff does not take for a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


if __name__ == "__main__":
    main()
