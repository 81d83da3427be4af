"""The Debian package holds what the wheel holds, where Debian wants it, and root owns all of it."""

import gzip
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from virtpass import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGE_DIRECTORY = "./usr/lib/python3/dist-packages/virtpass"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package() -> Path:
    """Build the package, which takes no time when it is there and no source has changed."""
    if shutil.which("dh") is None or shutil.which("pybuild") is None:
        pytest.skip("the tools that build Debian packages are missing: run `make deb` once")
    result = subprocess.run(
        [sys.executable, ROOT / "packaging" / "build_deb.py"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return ROOT / "dist" / f"virtpass_{__version__}_all.deb"


@pytest.fixture(scope="module")
def control(package: Path) -> Message:
    answer = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True)
    return message_from_string(answer.stdout)


@pytest.fixture(scope="module")
def content(package: Path) -> Iterator[tarfile.TarFile]:
    answer = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(answer.stdout)) as archive:
        yield archive


def relations(control: Message, field: str) -> set[str]:
    """Return the alternatives of a relation field, without restrictions on versions."""
    return {re.sub(r"\s*\(.*?\)", "", relation).strip() for relation in control[field].split(",")}


def test_one_package_serves_every_architecture_and_release(control: Message) -> None:
    assert control["Package"] == "virtpass"
    assert control["Version"] == __version__
    assert control["Architecture"] == "all"
    # A limit such as "python3 (<< 3.12)" would shut out the next release of Debian.
    assert "<" not in control["Depends"]


def test_depends_on_what_the_code_imports(control: Message) -> None:
    assert relations(control, "Depends") >= {
        "python3",
        "python3-click",
        "python3-libvirt",
        "python3-lxml",
        "python3-pyudev",
    }
    assert "python3 (>= 3.11)" in control["Depends"]
    assert "libvirt-daemon-system" in relations(control, "Recommends")


def test_root_owns_everything_and_nobody_else_may_write(content: tarfile.TarFile) -> None:
    for member in content.getmembers():
        assert (member.uid, member.gid) == (0, 0), member.name
        if not member.issym():
            assert member.mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID) == 0, member.name


@pytest.mark.parametrize("directory", ["hooks", "xml_templates"])
def test_holds_the_directory_as_it_is_in_the_checkout(content: tarfile.TarFile, directory: str) -> None:
    expected = {
        f"{PACKAGE_DIRECTORY}/{path.relative_to(ROOT)}": path
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {
        member.name
        for member in content.getmembers()
        if member.isfile() and member.name.startswith(f"{PACKAGE_DIRECTORY}/{directory}/")
    }
    assert expected, f"{directory}/ is empty"
    assert held == expected.keys()
    for name, source in expected.items():
        extracted = content.extractfile(name)
        assert extracted is not None
        assert extracted.read() == source.read_bytes(), name
        assert bool(content.getmember(name).mode & stat.S_IXUSR) == os.access(source, os.X_OK), name


def test_holds_every_module(content: tarfile.TarFile) -> None:
    modules = {
        f"./usr/lib/python3/dist-packages/{path.relative_to(ROOT)}"
        for path in (ROOT / "virtpass").rglob("*.py")
    }
    assert modules <= set(content.getnames())


def test_says_that_it_is_typed(content: tarfile.TarFile) -> None:
    assert f"{PACKAGE_DIRECTORY}/py.typed" in content.getnames()


def test_the_command_runs_debians_own_python(content: tarfile.TarFile) -> None:
    script = content.extractfile("./usr/bin/virtpass")
    assert script is not None
    # Isolated: no module comes from the home or the environment of whoever calls it.
    assert script.readline().removeprefix(b"#!").split() == [b"/usr/bin/python3", b"-I"]


def test_ships_nothing_outside_its_own_places(content: tarfile.TarFile) -> None:
    allowed = (
        "./usr/bin/virtpass",
        "./usr/lib/python3/dist-packages/virtpass",
        "./usr/lib/systemd/system/",
        "./usr/lib/tmpfiles.d/virtpass.conf",
        "./usr/share/bash-completion/completions/virtpass",
        "./usr/share/doc/virtpass/",
        "./usr/share/fish/vendor_completions.d/virtpass.fish",
        "./usr/share/lintian/overrides/virtpass",
        "./usr/share/man/",
        "./usr/share/zsh/vendor-completions/_virtpass",
    )
    files = [member.name for member in content.getmembers() if not member.isdir()]
    assert [name for name in files if not name.startswith(allowed)] == []


def test_what_runs_at_boot_is_in_the_package_as_in_the_checkout(content: tarfile.TarFile) -> None:
    units = sorted((ROOT / "packaging" / "systemd").glob("*.service"))
    assert {"virtpass-recover.service", "virtpass-host-recover.service"} <= {unit.name for unit in units}
    for unit in units:
        held = content.extractfile(f"./usr/lib/systemd/system/{unit.name}")
        assert held is not None
        assert held.read() == unit.read_bytes()


def test_every_unit_is_enabled_and_none_is_started(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--control", package, tmp_path], check=True)
    script = (tmp_path / "postinst").read_text()
    for unit in (ROOT / "packaging" / "systemd").glob("*.service"):
        assert f"deb-systemd-helper enable '{unit.name}'" in script
    assert "deb-systemd-invoke" not in script


def test_the_bound_of_what_runs_at_boot_is_stated() -> None:
    for unit in (ROOT / "packaging" / "systemd").glob("*-recover.service"):
        text = unit.read_text()
        assert re.search(r"^TimeoutStartSec=\d+min$", text, re.MULTILINE), unit.name
        # An empty directory or no record: nothing is started at all, and no boot waits.
        # Several with "|" are alternatives: one has to hold.
        assert re.search(r"^Condition(DirectoryNotEmpty|PathExists)=\|?/", text, re.MULTILINE), unit.name
        # With a device policy an open VFIO group would look like one that nobody may open.
        assert not re.search(r"^(PrivateDevices|ProtectClock|DevicePolicy|DeviceAllow)=", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "shell"),
    [
        ("bash-completion/completions/virtpass", "bash"),
        ("zsh/vendor-completions/_virtpass", "zsh"),
        ("fish/vendor_completions.d/virtpass.fish", "fish"),
    ],
)
def test_shells_find_what_virtpass_says_to_them(content: tarfile.TarFile, name: str, shell: str) -> None:
    held = content.extractfile(f"./usr/share/{name}")
    assert held is not None
    said = subprocess.run(
        [sys.executable, "-m", "virtpass"],
        cwd=ROOT,
        env={**os.environ, "_VIRTPASS_COMPLETE": f"{shell}_source"},
        capture_output=True,
        check=True,
    )
    assert held.read() == said.stdout != b""


def test_manual_pages_are_those_of_the_commands(
    package: Path, content: tarfile.TarFile, tmp_path: Path
) -> None:
    held = {
        Path(member.name).name: gzip.decompress(file.read())
        for member in content.getmembers()
        if member.isfile()
        and member.name.startswith("./usr/share/man/man1/")
        and (file := content.extractfile(member)) is not None
    }
    # The time of what is in the package is the one that the pages state.
    time = content.getmember("./usr/bin/virtpass").mtime
    subprocess.run(
        [sys.executable, ROOT / "packaging" / "man_pages.py", tmp_path],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(time)},
        check=True,
    )
    assert held == {f"{path.name}.gz": path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.skipif(shutil.which("lintian") is None, reason="needs lintian")
def test_lintian_has_nothing_to_say(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "none", package], capture_output=True, text=True, check=True
    )
    tags = {line.split()[2] for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))}
    assert tags == set()
