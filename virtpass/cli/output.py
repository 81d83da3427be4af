"""How things are printed: data to standard output, all else to standard error; colours only on a terminal.

With ``--plain`` there are no colours, no columns and no line that is renewed, and nothing is cut or wrapped:
one fact a line, for screen readers and logs.
"""

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import pairwise
from typing import TextIO

import click

from virtpass.cli.progress import Progress, cut, width
from virtpass.system.errors import RefusedError, UsageError, one_line
from virtpass.system.tasks import shown_by

_GAP = "  "
_LEAST_WIDTH = 20
# A command in a sentence, as far as the next mark: whoever copies it wants it in one piece.
_COMMAND = re.compile(
    r"\b(?:sudo|virsh|systemctl|mdevctl|chown|chmod|fuser|grep"
    r"|virtpass (?:doctor|setup|devices?|mdev|host|domain|hook|recover|snapshot|log|uninstall)\b)"
    r"(?: [^,;()]*[^,;()\s])?"
)
# Stands for a space at which no line is broken.
_UNBROKEN = "\xa0"
_WORD = re.compile("( *)([^ ]+)")
# Unicode's categories of closing brackets, closing quotation marks and other punctuation: no line begins so.
_CLOSING = ("Pe", "Pf", "Po")

_progress: ContextVar[Progress] = ContextVar("progress")
_is_plain: ContextVar[bool] = ContextVar("is_plain", default=False)


@contextmanager
def printing() -> Iterator[None]:
    """Show what takes a while, until the block of code ends; at its end the terminal is in order."""
    progress = Progress()
    progress.is_live = _is_terminal(sys.stderr) and os.environ.get("TERM", "dumb") not in ("", "dumb")
    shown, plain = _progress.set(progress), _is_plain.set(False)
    try:
        with shown_by(progress.show):
            yield
    finally:
        progress.stop()
        progress.erase()
        _is_plain.reset(plain)
        _progress.reset(shown)


def be_plain() -> None:
    """Print plainly from now on, as long as `printing` lasts."""
    _is_plain.set(True)
    if (progress := _progress.get(None)) is not None:
        progress.is_live = False


class OutputClosed(OSError):
    """Standard output was closed before the command began."""


def is_output_lost(error: OSError) -> bool:
    """Tell whether an error is that of an output which takes nothing; what it has not taken is dropped."""
    if sys.stdout is None:
        return isinstance(error, OutputClosed)
    try:
        sys.stdout.flush()
    except OSError:
        # Python would try once more at its end, and complain of it in its own way.
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def is_plain() -> bool:
    """Tell whether each fact gets a line of its own."""
    return _is_plain.get()


def say(text: str = "", *, colour: str | None = None) -> None:
    """Print a line of data, as a whole in a colour if one is given."""
    _echo(_styled(text, colour))


def note(text: str) -> None:
    """Print a line about what is being done; where somebody watches, it is broken between words."""
    text = one_line(text)
    columns = None if is_plain() or text.startswith(" ") else _columns(sys.stderr)
    _echo("\n".join([text] if columns is None else _wrapped(text, columns)), is_data=False)


def agree(question: str) -> None:
    """Ask whether a plan that was shown is to be carried out.

    Raises:
        UsageError: there is no terminal to ask on.
        RefusedError: the user does not want it.
    """
    if not _is_terminal(sys.stdin):
        raise UsageError("no-terminal", "there is no terminal to ask on", "look at the plan, then add --yes")
    while True:
        answer = click.prompt(f"{question} [y/N]", default="", show_default=False, err=True).strip().lower()
        if answer in ("y", "yes"):
            return
        if answer in ("", "n", "no"):
            raise RefusedError("declined", "nothing was changed")
        note("answer y or n")


def complain(line: str) -> None:
    """Print why something did not work."""
    note(f"virtpass: {line}")


def say_json(value: object) -> None:
    """Print a value as JSON; what a terminal could obey is escaped."""
    # Not at the top: most commands print none.
    import json

    text = json.dumps(value, indent=2, ensure_ascii=False)
    _echo("".join(one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text))


def say_fact(
    label: str,
    text: str,
    size: int = 0,
    *,
    indent: str = "",
    colour: str | None = None,
    text_colour: str | None = None,
) -> None:
    """Print a text beside its label, in several lines where the terminal is too narrow for one.

    Args:
        label: what it is about; empty for more of what was said before.
        text: the fact.
        size: columns of the label, with the space after it.
        indent: spaces before it.
        colour: the label's.
        text_colour: the text's, for one that is a verdict.
    """
    if is_plain():
        _echo(one_line(f"{label}: {text}" if label else text))
        return
    columns = _columns(sys.stdout)
    before = len(indent) + max(size, width(label))
    lines = [text] if columns is None else _wrapped(one_line(text), max(columns - before, _LEAST_WIDTH))
    padding = " " * (before - len(indent) - width(label))
    first, *others = lines
    _echo(f"{indent}{_styled(label, colour)}{padding}{_styled(first, text_colour)}".rstrip())
    for line in others:
        _echo(f"{' ' * before}{one_line(line)}")


def say_facts(facts: Iterable[tuple[str, str]], size: int, *, indent: str = "") -> None:
    """Print texts beside their labels; one without a label is about what the one before it is about."""
    last = ""
    for label, text in facts:
        last = label or last
        say_fact(last if is_plain() else label, text, size, indent=indent)


def joined(*parts: str) -> str:
    """Return the parts of a line, those left out that are empty."""
    return (", " if is_plain() else _GAP).join(part for part in parts if part)


def say_joined(*parts: str, colours: Mapping[int, str | None]) -> None:
    """Print a line of parts, those left out that are empty; some, by their position, have a colour."""
    _echo(joined(*(_styled(part, colours.get(place)) for place, part in enumerate(parts) if part)))


def say_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    flexible: int,
    styles: Sequence[str | None],
    grouped: int | None = None,
) -> None:
    """Print a table whose columns are as wide as their content.

    Where it does not fit, the flexible column is shortened, and the last one goes on in the next line; where
    that is not enough, and with ``--plain``, each row is printed as lines of heading and cell.

    Args:
        headings: one for each column.
        rows: the cells, plain text; a row that begins with an empty cell goes on with the one before it.
        flexible: the column that is shortened.
        styles: a colour for each row's last cell, or None; what is before a colon gets it.
        grouped: a column that is shown only where it differs from the row before.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(headings, *cells, strict=True)]
    columns = None if is_plain() else _columns(sys.stdout)
    last = len(headings) - 1
    if columns is not None:
        excess = sum(widths) + len(_GAP) * last - columns
        if flexible != last and excess > 0:
            widths[flexible] = max(min(widths[flexible], _LEAST_WIDTH), widths[flexible] - excess)
        widths[last] = columns - sum(widths[:last]) - len(_GAP) * last
    if is_plain() or (cells and columns is not None and widths[last] < _LEAST_WIDTH):
        _say_records(headings, cells, styles)
        return
    before: Sequence[str] | None = None
    for row, colour in zip([list(headings), *cells], [None, *styles], strict=True):
        shown = list(row)
        if grouped is not None and before is not None and before[grouped] == row[grouped]:
            shown[grouped] = ""
        before = row
        for position in range(last):
            shown[position] = _filled(shown[position], widths[position])
        first, *others = [shown[last]] if columns is None else _wrapped(shown[last], widths[last])
        _echo(_GAP.join([*shown[:last], _headed(first, colour)]).rstrip())
        for line in others:
            _echo(" " * (sum(widths[:last]) + len(_GAP) * last) + line)


def _say_records(
    headings: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str | None]
) -> None:
    """Print each row as lines of heading and cell, with an empty line between rows."""
    for position, (row, colour) in enumerate(zip(rows, styles, strict=True)):
        if position and row[0]:
            _echo("")
        for heading, cell in zip(headings, row, strict=True):
            if cell:
                text = _headed(cell, colour) if heading == headings[-1] else cell
                _echo(f"{heading.capitalize()}: {text}")


def _filled(text: str, columns: int) -> str:
    """Return ``text`` as wide as a column: its end cut off, or spaces after it."""
    text = cut(text, columns)
    return text + " " * (columns - width(text))


def _echo(text: str, *, is_data: bool = True) -> None:
    """Print lines; whatever comes from outside has no control characters any more.

    Raises:
        OSError: data cannot be written. What else there is to say must not cut off what is being done.
    """
    progress = _progress.get(None)
    if progress is None:
        _write(text, is_data=is_data)
        return
    with progress.paused():
        _write(text, is_data=is_data)


def _write(text: str, *, is_data: bool) -> None:
    if not is_data:
        with suppress(OSError):
            click.echo(text, err=True, color=_colours(sys.stdout))
        return
    if sys.stdout is None:
        raise OutputClosed(errno.EBADF, "it is closed")
    click.echo(text, color=_colours(sys.stdout))


def _wrapped(text: str, columns: int) -> list[str]:
    """Return lines of ``text`` that break between words, and in no command."""
    held = _COMMAND.sub(lambda match: match[0].replace(" ", _UNBROKEN), text)
    lines = [""]
    for gap, word in _WORD.findall(held):
        before = gap
        for piece in _pieces(word):
            if lines[-1] and width(lines[-1]) + len(before) + width(piece) > columns:
                lines.append(piece)
            else:
                lines[-1] += before + piece
            before = ""
    return [line.replace(_UNBROKEN, " ") for line in lines]


def _pieces(word: str) -> list[str]:
    """Return the parts of a word between which a line may break: at wide characters, which need no spaces."""
    if word.isascii() or _UNBROKEN in word:
        return [word]
    # Not at the top: few names need it.
    from unicodedata import category

    pieces = [word[0]]
    for before, one in pairwise(word):
        if category(one) not in _CLOSING and 2 in (width(before), width(one)):
            pieces.append(one)
        else:
            pieces[-1] += one
    return pieces


def _styled(text: str, colour: str | None) -> str:
    return click.style(one_line(text), fg=colour) if colour else one_line(text)


def _headed(text: str, colour: str | None) -> str:
    """Return a text whose verdict, up to the colon, has a colour."""
    head, colon, rest = text.partition(":")
    return f"{_styled(head, colour)}{colon}{rest}"


def _columns(stream: TextIO | None) -> int | None:
    """Return how wide a terminal is; None when nobody watches."""
    try:
        return None if stream is None else os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def _colours(stream: TextIO | None) -> bool:
    if is_plain() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return _is_terminal(stream)


def _is_terminal(stream: TextIO | None) -> bool:
    """Tell whether somebody watches; a stream that was closed before we began is None."""
    return stream is not None and stream.isatty()
