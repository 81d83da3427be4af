"""docs/api.md: its examples print what stands there, and it names every function with what it takes."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import inspect
import io
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from tests.cli.test_commands import ROOT, TEST_DRIVER
from tests.cli.test_log import JOURNAL, Journal
from tests.cli.test_preparation import debian
from tests.domain.documents import UUID, domain
from tests.host import choices, rows_grub
from tests.host.rows import Programs
from tests.simulation import CARD, NIC, SimulatedHost, domain_xml
from virtpass import operations
from virtpass.cli import cli
from virtpass.hook import report
from virtpass.hook.entry import run
from virtpass.operations import hand_overs, host_preparation
from virtpass.system import errors
from virtpass.system import host as host_module
from virtpass.system.libvirt import SYSTEM, Connection

DOCUMENT = ROOT / "docs" / "api.md"
PACKAGE = ROOT / "virtpass" / "operations"
DEBIAN = next(row for row in rows_grub.ROWS if row.name == "debian-12-grub")
# What examples need libvirt for.
LIBVIRT = re.compile(r"Connection\.open|active_domains|examine_host")


@dataclass(frozen=True)
class Example:
    """A block of Python.

    Attributes:
        code: it.
        output: what it prints, as the document has it.
    """

    code: str
    output: str


def sections() -> dict[str, str]:
    """Return the document's sections by title, without what is before the first one."""
    parts = re.split(r"(?m)^## (.+)\n", DOCUMENT.read_text(encoding="utf-8"))[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def examples(text: str) -> list[Example]:
    found = re.findall(r"(?ms)^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", text)
    return [Example(code, output) for code, output in found]


EXAMPLES = {title: examples(text) for title, text in sections().items()}


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connect to libvirt's test driver, where the domain win11 is, whatever the URI."""
    opened = Connection.open

    def connected(uri: str = SYSTEM, *, deadline: float | None = None) -> Connection:
        return opened(TEST_DRIVER, deadline=deadline)

    monkeypatch.setattr(Connection, "open", connected)
    if importlib.util.find_spec("libvirt") is None:
        yield
        return
    # Its domains live as long as somebody is connected.
    with Connection.open() as connection:
        connection.define(domain(kind="test", name="win11", uuid=UUID), validate=False)
        yield


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedHost:
    """The host of the document: a Debian with GRUB, whose hook is not installed yet."""
    found = debian(tmp_path / "host")
    found.put("/dev/kvm")
    found.put("/usr/bin/python3")
    found.add_functions(NIC, 7, "igbvf", 20)
    found.put(JOURNAL, b"LPKSHHRH")
    found.put("/usr/bin/journalctl")
    journal = Journal()
    monkeypatch.setattr(report, "send", journal.take)
    monkeypatch.setattr(hand_overs, "output_of", journal.output_of)
    programs = Programs({**DEBIAN.programs, **choices.PROGRAMS})
    monkeypatch.setattr(host_preparation, "apply", functools.partial(host_preparation.apply, run=programs))
    monkeypatch.setattr(host_module, "Host", lambda root="/": found)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return found


def prepare(host: SimulatedHost, title: str) -> None:
    """Let happen what an example looks back at."""
    if title in ("Recovery", "Log"):
        run(host, "prepare", domain_xml(CARD, name="win11", uuid=UUID))


def printed(code: str, values: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(DOCUMENT), "exec"), values)
    return out.getvalue()


@pytest.mark.parametrize("title", [title for title, found in EXAMPLES.items() if found])
@pytest.mark.usefixtures("libvirt")
def test_an_example_prints_what_stands_below_it(host: SimulatedHost, title: str) -> None:
    if any(LIBVIRT.search(example.code) for example in EXAMPLES[title]):
        pytest.importorskip("libvirt")
    prepare(host, title)
    values: dict[str, Any] = {}
    if title != "Start":
        # Every section goes on from there.
        printed(EXAMPLES["Start"][0].code, values)
    for example in EXAMPLES[title]:
        assert printed(example.code, values) == example.output


def test_the_examples_are_there() -> None:
    assert sum(map(len, EXAMPLES.values())) >= 10
    code = "".join(re.findall(r"(?ms)^```(\w*)$\n", DOCUMENT.read_text(encoding="utf-8")))
    assert not code.replace("python", "").replace("text", "")


@pytest.mark.slow
def test_the_examples_pass_the_strictest_check_of_types(tmp_path: Path) -> None:
    parts = [EXAMPLES["Start"][0].code]
    for number, (title, found) in enumerate(EXAMPLES.items()):
        rest = found[1:] if title == "Start" else found
        body = "\n".join(example.code for example in rest)
        if body:
            parts.append(f"\ndef section_{number}() -> None:\n{textwrap.indent(body, '    ')}")
    program = tmp_path / "examples.py"
    program.write_text("\n".join(parts), encoding="utf-8")
    # What is shared with other runs is their cache: most of virtpass is in it already.
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", program],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named mypy" in result.stderr:
        pytest.skip("mypy is missing; `make lint` installs it")
    assert result.returncode == 0, result.stdout + result.stderr


# the tables


@dataclass(frozen=True)
class Row:
    """A row about a function: how it is called, what it returns, and the errors."""

    call: str
    returned: str
    raised: frozenset[str]


def cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables() -> Iterator[list[str]]:
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield cells(line)


def rows() -> dict[str, Row]:
    found = {}
    for line in tables():
        if len(line) == 5 and (match := re.match(r"`((\w+\.\w+)\(.*?\))`", line[1])):
            assert match[2] not in found, f"{match[2]} stands there twice"
            found[match[2]] = Row(match[1], line[2].strip("`"), frozenset(re.findall(r"\w+Error", line[3])))
    return found


def public_modules() -> list[ModuleType]:
    return [importlib.import_module(f"virtpass.operations.{name}") for name in operations.__all__]


def functions() -> dict[str, Callable[..., object]]:
    """Return the public functions that are defined in the modules for programs, by module and name."""
    found = {}
    for module in public_modules():
        name = module.__name__.rpartition(".")[2]
        source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[f"{name}.{node.name}"] = getattr(module, node.name)
    return found


def called(name: str, function: Callable[..., object]) -> str:
    """Return how a function is called: its arguments, and ``=...`` for those with a default."""
    parts = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else "=..."))
    return f"{name}({', '.join(parts)})"


def returned(function: Callable[..., object]) -> str:
    """Return the type of a function's result, without the modules of its parts."""
    annotation = inspect.formatannotation(inspect.signature(function).return_annotation)
    text = re.sub(r"[\w.]+\.(?=\w)", "", annotation)
    if hasattr(function, "__wrapped__"):
        text = text.replace("Iterator[", "AbstractContextManager[")
    return text


def test_every_function_is_in_the_document_as_it_is_called() -> None:
    assert {name: row.call for name, row in rows().items()} == {
        name: called(name, function) for name, function in functions().items()
    }


def test_the_document_says_what_each_function_returns() -> None:
    known = functions()
    assert {name: row.returned for name, row in rows().items()} == {
        name: returned(known[name]) for name in known
    }


def test_the_document_names_every_error_of_a_docstring() -> None:
    for name, row in rows().items():
        _, _, raises = (inspect.getdoc(functions()[name]) or "").partition("Raises:")
        assert row.raised >= set(re.findall(r"\b\w+Error\b", raises)), name
        assert all(issubclass(getattr(errors, one), errors.VirtpassError) for one in row.raised)


def test_the_document_has_every_class_of_errors_with_its_exit_status() -> None:
    classes = filter(inspect.isclass, vars(errors).values())
    known = [one for one in classes if issubclass(one, errors.VirtpassError)]
    listed = {line[0].strip("`"): line[1] for line in tables() if len(line) == 3 and line[1].isdecimal()}
    assert listed == {one.__name__: str(one.exit_status) for one in known}


def places() -> dict[str, str]:
    """Return the modules of the values that have a row of their own, by name."""
    return {
        line[0].strip("`"): line[1].strip("`")
        for line in tables()
        if len(line) == 3 and "virtpass." in line[1]
    }


def test_values_are_where_the_document_says() -> None:
    assert places()
    for name, module in places().items():
        assert getattr(importlib.import_module(module), name).__module__ == module


def test_results_are_defined_beside_their_function_or_where_the_document_says() -> None:
    for name, row in rows().items():
        module = importlib.import_module(f"virtpass.operations.{name.partition('.')[0]}")
        for one in set(re.findall(r"[A-Z]\w+", row.returned)) - {"None", "AbstractContextManager"}:
            assert getattr(module, one).__module__ in (module.__name__, places().get(one)), (name, one)


def commands(group: click.Group, path: str = "virtpass") -> Iterator[str]:
    """Yield the commands that a user sees."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}"


def test_every_command_has_its_function() -> None:
    listed = [line[0].strip("`") for line in tables() if len(line) == 5]
    for command in commands(cli):
        assert any(f"{one} ".startswith(f"{command} ") for one in listed), command


# the package


def test_what_is_public_is_there_and_imports_nothing_by_itself() -> None:
    assert sorted(operations.__all__) == list(operations.__all__)
    assert {f"{name}.py" for name in operations.__all__} <= {path.name for path in PACKAGE.iterdir()}
    ask = (
        "import sys, virtpass.operations; print(*[one for one in sys.modules if one.startswith('virtpass')])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert answer.split() == ["virtpass", "virtpass.operations"]


def test_every_public_name_of_a_module_says_what_it_is() -> None:
    for module in public_modules():
        for name, value in vars(module).items():
            is_own = getattr(value, "__module__", None) == module.__name__
            if is_own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
                assert inspect.getdoc(value), f"{module.__name__}.{name}"
