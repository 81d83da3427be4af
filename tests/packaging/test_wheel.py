"""A wheel, an sdist and an editable install all find the templates and the hook.

All of it runs without a network: the build backend is the one in the environment of the tests.
"""

import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import hatchling
import pytest

from virtpass import __version__

ROOT = Path(__file__).resolve().parents[2]
BESIDE_THE_PACKAGE = ("hooks", "xml_templates")

pytestmark = pytest.mark.slow


def run(command: Sequence[str | Path], **environment: str) -> str:
    # PYTHONSAFEPATH: the checkout must not be importable just because the test runs there.
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


def sources(directory: str) -> dict[str, Path]:
    """Return the files of a directory of the checkout, by the name they have below `virtpass/` in a wheel."""
    return {
        os.fspath(path.relative_to(ROOT)): path
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "--directory", directory])
    return directory


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(built: Path) -> Path:
    (sdist,) = built.glob("*.tar.gz")
    return sdist


class Environment:
    """A fresh virtual environment that sees the system's packages."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", directory])

    def install(self, *arguments: str | Path) -> None:
        """Install with the pip of the tests, which may use their build backend and nothing else."""
        pip = [sys.executable, "-m", "pip", "--python", os.fspath(self.bin / "python")]
        offline = ["--no-deps", "--no-index", "--no-build-isolation"]
        backend = Path(hatchling.__file__).parents[1]
        run([*pip, "install", "--quiet", *offline, *arguments], PYTHONPATH=os.fspath(backend))

    def resources(self, name: str) -> Path:
        """Return where virtpass, installed here, finds its templates or hooks."""
        ask = f"from virtpass.system import resources; print(resources.directory({name!r}))"
        return Path(run([self.bin / "python", "-c", ask]).rstrip("\n"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("installed"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.install("--editable", ROOT)
    return environment


@pytest.mark.parametrize("directory", BESIDE_THE_PACKAGE)
def test_wheel_holds_the_directory_as_it_is_in_the_checkout(wheel: Path, directory: str) -> None:
    expected = sources(directory)
    with zipfile.ZipFile(wheel) as archive:
        held = {
            entry.filename.removeprefix("virtpass/"): entry
            for entry in archive.infolist()
            if entry.filename.startswith(f"virtpass/{directory}/")
        }
        assert expected, f"{directory}/ is empty"
        assert held.keys() == expected.keys()
        for name, entry in held.items():
            assert archive.read(entry) == expected[name].read_bytes(), name
            assert executable(entry.external_attr >> 16) == executable(expected[name].stat().st_mode), name


def test_wheel_holds_the_units_of_systemd(wheel: Path) -> None:
    units = {path.name: path.read_bytes() for path in (ROOT / "packaging" / "systemd").glob("*.service")}
    assert units
    with zipfile.ZipFile(wheel) as archive:
        assert {name: archive.read(f"virtpass/systemd/{name}") for name in units} == units


def test_wheel_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "virtpass/py.typed" in archive.namelist()


def executable(mode: int) -> bool:
    return bool(mode & stat.S_IXUSR)


def test_wheel_holds_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert tops == {"virtpass", f"virtpass-{__version__}.dist-info"}


def test_sdist_holds_what_building_and_testing_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops >= {"virtpass", "hooks", "xml_templates", "tests", "packaging", "pyproject.toml", "LICENSE"}


def test_wheel_from_the_sdist_is_the_same(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    run(["tar", "--extract", "--file", sdist, "--directory", tmp_path])
    (tree,) = tmp_path.iterdir()
    build = "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel; build_wheel('.')"
    run([sys.executable, "-c", build, tree])
    (again,) = tree.glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


@pytest.mark.parametrize("directory", BESIDE_THE_PACKAGE)
def test_installed_wheel_finds_the_directory_inside_itself(installed: Environment, directory: str) -> None:
    found = installed.resources(directory)
    assert found.is_relative_to(installed.bin.parent)
    for name, source in sources(directory).items():
        copy = found.parent / name
        assert copy.read_bytes() == source.read_bytes()
        assert executable(copy.stat().st_mode) == executable(source.stat().st_mode), name


@pytest.mark.parametrize("directory", BESIDE_THE_PACKAGE)
def test_editable_install_finds_the_directory_of_the_checkout(editable: Environment, directory: str) -> None:
    assert editable.resources(directory) == ROOT / directory


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_command_states_its_version(kind: str, request: pytest.FixtureRequest) -> None:
    environment: Environment = request.getfixturevalue(kind)
    assert __version__ in run([environment.bin / "virtpass", "--version"])
