"""The house: who may import whom, who prints, and what the hook may load."""

import ast
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "virtpass"

# From top to bottom. A room may import from the rows below its own, never from its own row or above.
ROWS = (
    ("cli",),
    ("operations",),
    ("doctor",),
    ("host", "domain", "hook"),
    ("binding",),
    ("transaction",),
    ("pci",),
    ("system",),
)
FLOOR = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

# Downwards, and forbidden all the same: the engine that changes files and runs commands knows no hardware.
FORBIDDEN = {("transaction", "pci")}

# Modules beside the rooms, and the rooms that they may import.
DOORS: dict[str, set[str]] = {"__init__": set(), "__main__": {"cli"}}

# Libraries for the terminal belong to the room that has one.
TERMINAL_LIBRARIES = {"click", "rich"}

# What the modules of the hook may import beside each other. All of it together starts in a few milliseconds;
# `json`, `re` or `subprocess` would each cost more than all the rest.
HOOK_MAY_IMPORT = frozenset(
    {
        "__future__",
        "_operator",
        "_socket",
        "errno",
        "fcntl",
        "os",
        "posix",
        "pyexpat",
        "select",
        "stat",
        "sys",
        "time",
    }
)

# Modules that look again after a pause, because nothing tells of what they wait for.
PAUSES = {
    "binding.engine": "the kernel tells nobody that a VFIO group was closed",
    "binding.isolation": "systemd answers before it has set what it was asked for",
    "system.packages": "a wait for the locks of package managers has no bound of its own",
    "system.waiting": "where there is no descriptor that tells",
}


@dataclass(frozen=True)
class Import:
    """One imported module or name, as a dotted path, and the line that asks for it."""

    target: str
    line: int


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name below `virtpass`."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path, *, with_types: bool = True) -> Iterator[Import]:
    """Yield everything that a module imports, at its top or inside a function.

    Args:
        path: the module.
        with_types: also what only type checkers import.
    """
    skipped = set() if with_types else set(type_checking_nodes(tree(path)))
    for node in ast.walk(tree(path)):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(node, path)
            yield from (Import(f"{origin}.{alias.name}", node.lineno) for alias in node.names)


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """Return the module that a ``from`` names, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = ("virtpass", *path.relative_to(PACKAGE).parent.parts)
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def type_checking_nodes(module: ast.Module) -> Iterator[ast.AST]:
    """Yield the nodes below every ``if TYPE_CHECKING:``."""
    for node in ast.walk(module):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in node.body:
                yield from ast.walk(statement)


def room(target: str) -> str | None:
    """Return the room that a dotted path lies in, None outside all rooms."""
    parts = target.split(".")
    return parts[1] if parts[0] == "virtpass" and len(parts) > 1 and parts[1] in FLOOR else None


def each_module() -> list[object]:
    return [pytest.param(name, path, id=name) for name, path in modules().items()]


@pytest.mark.parametrize(("name", "path"), each_module())
def test_module_is_in_a_room(name: str, path: Path) -> None:
    first = name.split(".", maxsplit=1)[0]
    assert first in FLOOR or name in DOORS, f"{path}: no such room in the house; see ROWS in {__file__}"


def may_import(own: str, other: str) -> bool:
    """Tell whether a room, or a module beside the rooms, may import from another room."""
    if own in DOORS:
        return other in DOORS[own]
    return FLOOR[other] > FLOOR[own] and (own, other) not in FORBIDDEN


@pytest.mark.parametrize(("name", "path"), each_module())
def test_arrows_go_downwards(name: str, path: Path) -> None:
    own = name.split(".", maxsplit=1)[0]
    wrong = []
    for found in imports(path):
        other = room(found.target)
        if other is None or other == own:
            continue
        if not may_import(own, other):
            wrong.append(f"{path}:{found.line}: {own} may not import {other}")
    assert wrong == []


@pytest.mark.parametrize(("name", "path"), each_module())
def test_only_the_cli_knows_the_terminal(name: str, path: Path) -> None:
    if name.split(".", maxsplit=1)[0] == "cli":
        return
    wrong = [
        f"{path}:{found.line}: only virtpass.cli imports {found.target}"
        for found in imports(path)
        if found.target.split(".", maxsplit=1)[0] in TERMINAL_LIBRARIES
    ]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "input"}:
            wrong.append(f"{path}:{node.lineno}: only virtpass.cli prints and asks")
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.stdout":
            wrong.append(f"{path}:{node.lineno}: only virtpass.cli writes to standard output")
    assert wrong == []


def test_nothing_sleeps_for_a_fixed_time() -> None:
    """Waits follow events; those that cannot are named above, and their pause is none to be waited out."""
    sleeps = {
        name: [call for call in calls if not call.args or isinstance(call.args[0], ast.Constant)]
        for name, path in modules().items()
        if (calls := [one for one in ast.walk(tree(path)) if isinstance(one, ast.Call) and is_sleep(one)])
    }
    assert sleeps == {name: [] for name in PAUSES}


def is_sleep(call: ast.Call) -> bool:
    """Tell whether this is a call of `time.sleep`, however it was imported."""
    return ast.unparse(call.func).rpartition(".")[2] == "sleep"


def hook_modules() -> tuple[str, ...]:
    """Return the modules that travel with the hook, as paths below the package."""
    from virtpass.hook.payload import MODULES  # not at the top: the tests above need nothing that runs

    return tuple(MODULES)


def dotted(module: str) -> str:
    """Return the name under which a module of the hook is imported."""
    path = f"virtpass/{module}".removesuffix(".py").removesuffix("/__init__")
    return path.replace("/", ".")


def test_hook_modules_import_each_other_and_little_else() -> None:
    names = {dotted(module) for module in hook_modules()}
    wrong = []
    for module in hook_modules():
        for found in imports(PACKAGE / module, with_types=False):
            # "from virtpass.pci import address" names a module, "from virtpass.pci.address import PciAddress"
            # what is in one.
            candidates = {found.target, found.target.rpartition(".")[0]}
            if not candidates & names and found.target.split(".", maxsplit=1)[0] not in HOOK_MAY_IMPORT:
                wrong.append(f"{module}:{found.line}: the hook may not import {found.target}")
    assert wrong == []


def loaded(code: str, *arguments: str) -> set[str]:
    """Return the modules that Debian's own interpreter holds after running `code`, started as the hook is."""
    report = f"{code}\nmodules = list(sys.modules)\nimport json\nprint(json.dumps(modules))"
    command = ["/usr/bin/python3", "-IS", "-B", "-c", f"import sys\n{report}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout))


def test_hook_loads_nothing_else(tmp_path: Path) -> None:
    for module in hook_modules():
        target = tmp_path / "virtpass" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((PACKAGE / module).read_bytes())
    names = [dotted(module) for module in hook_modules() if not module.endswith("__main__.py")]

    allowed = loaded("".join(f"import {module}\n" for module in sorted(HOOK_MAY_IMPORT)))
    start = "sys.path.insert(0, sys.argv[1])\nfor name in sys.argv[2:]: __import__(name)"
    surplus = loaded(start, str(tmp_path), *names) - allowed
    assert {name for name in surplus if name != "virtpass" and not name.startswith("virtpass.")} == set()


def test_rules_see_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports itself: absolute, relative, inside a function, for types only."""
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    (tmp_path / "pci").mkdir()
    module = tmp_path / "pci" / "reader.py"
    module.write_text(
        "import os.path\n"
        "from virtpass import cli\n"
        "from . import address\n"
        "from ..system import host\n"
        "def later():\n"
        "    import click\n"
        "TYPE_CHECKING = False\n"
        "if TYPE_CHECKING:\n"
        "    from virtpass.system import locks\n"
    )
    found = {entry.target for entry in imports(module)}
    assert found == {
        "os.path",
        "virtpass.cli",
        "virtpass.pci.address",
        "virtpass.system.host",
        "click",
        "virtpass.system.locks",
    }
    assert found - {entry.target for entry in imports(module, with_types=False)} == {"virtpass.system.locks"}
