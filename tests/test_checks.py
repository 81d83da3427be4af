"""The checkers of style, types and shell are tests like any other.

A missing checker skips its test on a desk and fails it in continuous integration.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODE = ("virtpass", "hooks", "tests", "packaging")


def shebang(path: Path) -> str:
    """Return the first line of a script, without ``#!``; nothing where a file is no script."""
    with path.open("rb") as file:
        first = file.readline()
    return first[2:].decode().strip() if first.startswith(b"#!") else ""


def scripts(interpreter: str) -> Iterator[Path]:
    """Yield the scripts of the hook, the tests and continuous integration that this interpreter runs."""
    for directory in (ROOT / "hooks", ROOT / "tests", ROOT / ".ci"):
        for path in sorted(directory.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                words = shebang(path).replace("/", " ").split()
                if interpreter in words or path.suffix == f".{interpreter}":
                    yield path


def python_targets() -> list[str]:
    """Return what holds Python: the directories, and scripts whose names do not tell."""
    directories = [name for name in CODE if any((ROOT / name).rglob("*.py"))]
    return directories + [
        os.fspath(path.relative_to(ROOT)) for path in scripts("python3") if path.suffix != ".py"
    ]


def check(command: Sequence[str]) -> None:
    """Run a checker over the repository; its findings are the message of the failure."""
    result = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{result.stdout}{result.stderr}", pytrace=False)


def missing(tool: str) -> None:
    """End the test: as a failure in continuous integration, as a skip elsewhere."""
    message = f"{tool} is missing; `make lint` installs it"
    if os.environ.get("CI"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def python_tool(name: str) -> list[str]:
    """Return how to run a checker that is a Python package."""
    command = [sys.executable, "-m", name]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode != 0:
        missing(name)
    return command


def test_ruff_finds_nothing() -> None:
    check([*python_tool("ruff"), "check", "--no-fix", "--quiet", *python_targets()])


def test_ruff_would_format_nothing() -> None:
    check([*python_tool("ruff"), "format", "--check", *python_targets()])


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    check([*python_tool("mypy"), "--scripts-are-modules", *python_targets()])


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        missing("shellcheck")
    shell = [os.fspath(path.relative_to(ROOT)) for name in ("sh", "bash") for path in scripts(name)]
    assert shell, "no shell script found: where is the gate of the hook?"
    check(["shellcheck", "--", *shell])


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in scripts("sh")])
def test_every_posix_shell_accepts_the_script(path: Path) -> None:
    check(["dash" if shutil.which("dash") else "sh", "-n", os.fspath(path)])
