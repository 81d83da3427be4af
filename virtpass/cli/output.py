"""How things are printed: data to standard output, all else to standard error; colours only on a terminal."""

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

import click

from virtpass.system.errors import RefusedError, UsageError, one_line

_GAP = "  "
_LEAST_WIDTH = 20


def say(text: str = "", *, colour: str | None = None) -> None:
    """Print a line of data, as a whole in a colour if one is given."""
    click.echo(_styled(text, colour), color=_colours(sys.stdout))


def note(text: str) -> None:
    """Print a line about what is being done."""
    click.echo(one_line(text), err=True)


def agree(question: str) -> None:
    """Ask whether a plan that was shown is to be carried out.

    Raises:
        UsageError: there is no terminal to ask on.
        RefusedError: the user does not want it.
    """
    if not sys.stdin.isatty():
        raise UsageError("no-terminal", "there is no terminal to ask on", "look at the plan, then add --yes")
    if not click.confirm(question, err=True):
        raise RefusedError("declined", "nothing was changed")


def complain(line: str) -> None:
    """Print why something did not work."""
    note(f"virtpass: {line}")


def say_json(value: object) -> None:
    """Print a value as JSON; what a terminal could obey is escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    click.echo("".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text))


def width() -> int | None:
    """Return how many columns the output may take; None when nobody watches."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):
        return None


def say_wrapped(label: str, text: str, *, colour: str | None = None) -> None:
    """Print a text beside its label, in several lines where the terminal is too narrow for one."""
    columns = width()
    lines = [text]
    if columns is not None:
        room = max(columns - len(label), _LEAST_WIDTH)
        lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    for line in lines:
        say(f"{label}{line}", colour=colour)
        label = " " * len(label)


def say_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, flexible: int, styles: Sequence[str | None]
) -> None:
    """Print a table whose columns are as wide as their content.

    Args:
        headings: one for each column.
        rows: the cells, plain text.
        flexible: the column that is shortened where the terminal is too narrow.
        styles: a colour for each row's last cell, or None.
    """
    cells = [list(headings), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    if (limit := width()) is not None:
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - limit
        widths[flexible] = max(min(widths[flexible], _LEAST_WIDTH), widths[flexible] - max(excess, 0))
    for row, colour in zip(cells, [None, *styles], strict=True):
        row[flexible] = shortened(row[flexible], widths[flexible])
        *first, last = row
        text = _GAP.join(cell.ljust(size) for cell, size in zip(first, widths, strict=False))
        click.echo(f"{text}{_GAP}{_styled(last, colour)}".rstrip(), color=_colours(sys.stdout))


def shortened(text: str, size: int) -> str:
    """Return ``text`` with its end replaced by an ellipsis if it is longer than ``size``."""
    return text if len(text) <= size else text[: size - 1] + "…"


def _styled(text: str, colour: str | None) -> str:
    return click.style(one_line(text), fg=colour) if colour else one_line(text)


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
