"""The package manager is kept away, and waited for, while files change that its scripts write too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from virtpass.system import packages
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host
from virtpass.system.packages import held_off

DPKG = "var/lib/dpkg/lock-frontend"
RPM = "usr/lib/sysimage/rpm/.rpm.lock"
APK = "lib/apk/db/lock"
# What a package manager does, in another process.
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


def made(root: Path, path: str) -> Path:
    (root / path).parent.mkdir(parents=True)
    (root / path).touch()
    return root / path


@contextmanager
def package_manager(path: Path, call: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, os.fspath(path), call],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        assert child.stdin is not None
        child.stdin.close()


@pytest.mark.parametrize(("path", "call"), [(DPKG, "lockf"), (RPM, "lockf"), (APK, "flock")])
def test_a_package_manager_at_work_is_not_disturbed(tmp_path: Path, path: str, call: str) -> None:
    lock = made(tmp_path, path)
    host = Host(os.fspath(tmp_path))
    with package_manager(lock, call), pytest.raises(RefusedError) as caught, held_off(host, 0.2):
        pytest.fail("it was not waited for")
    assert caught.value.reference == "package-manager"
    assert f"/{path} is locked" in caught.value.what


@pytest.mark.parametrize(("path", "call"), [(DPKG, "lockf"), (RPM, "lockf"), (APK, "flock")])
def test_no_package_manager_begins_meanwhile(tmp_path: Path, path: str, call: str) -> None:
    lock = made(tmp_path, path)
    with held_off(Host(os.fspath(tmp_path)), 0.2), package_manager(lock, call) as child:
        assert child.wait(10) != 0
    with package_manager(lock, call) as child:
        time.sleep(0.1)
        assert child.poll() is None


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The running host, with the locks of this machine's package manager out of the way."""
    for name in ("_RECORD_LOCKS", "_FILE_LOCKS"):
        monkeypatch.setattr(packages, name, ())
    for name in ("_PACMAN", "_ZYPP", "_ZYPPER"):
        monkeypatch.setattr(packages, name, os.fspath(tmp_path / name))
    return Host()


def test_pacman_is_seen_by_its_file(here: Host, tmp_path: Path) -> None:
    lock = tmp_path / "_PACMAN"
    lock.touch()
    with pytest.raises(RefusedError, match="pacman is at work") as caught, held_off(here, 0.2):
        pytest.fail("it was not waited for")
    assert f"remove {lock}" in caught.value.remedy
    # One that a power cut has left says nothing.
    os.utime(lock, (1, 1))
    with held_off(here, 0.2):
        pass


def test_zypper_is_seen_and_sees_us(here: Host, tmp_path: Path) -> None:
    (tmp_path / "_ZYPPER").touch()
    lock = tmp_path / "_ZYPP"
    lock.write_text(f"{os.getppid()}\n")
    with pytest.raises(RefusedError, match="zypper is at work"), held_off(here, 0.2):
        pytest.fail("it was not waited for")
    assert lock.read_text() == f"{os.getppid()}\n"
    for stale in ("", "0\n", "4194303\n"):
        lock.write_text(stale)
        with held_off(here, 0.2):
            assert lock.read_text() == f"{os.getpid()}\n"
        assert not lock.exists()


def test_below_another_root_nobody_is_at_work(tmp_path: Path) -> None:
    made(tmp_path, "var/lib/pacman/db.lck")
    with held_off(Host(os.fspath(tmp_path)), 0.0):
        pass


def test_a_lock_that_was_never_taken_is_held_too(tmp_path: Path) -> None:
    (tmp_path / DPKG).parent.mkdir(parents=True)
    with held_off(Host(os.fspath(tmp_path)), 0.0), package_manager(tmp_path / DPKG, "lockf") as child:
        assert child.wait(10) != 0


@pytest.mark.parametrize("path", [DPKG, RPM])
def test_only_rpm_is_left_to_those_who_install_within_kernel_install(tmp_path: Path, path: str) -> None:
    lock = made(tmp_path, path)
    made(tmp_path, "usr/lib/kernel/install.d/95-akmodsposttrans.install")
    with held_off(Host(os.fspath(tmp_path)), 0.0), package_manager(lock, "lockf") as child:
        time.sleep(0.1)
        assert (child.poll() is None) == (path == RPM)


def test_it_is_waited_for(tmp_path: Path) -> None:
    lock = made(tmp_path, DPKG)
    with package_manager(lock, "lockf") as child:
        assert child.stdin is not None
        child.stdin.close()
        with held_off(Host(os.fspath(tmp_path)), 30.0):
            assert child.wait(10) == 0


def test_a_host_without_one_is_no_obstacle(tmp_path: Path) -> None:
    with held_off(Host(os.fspath(tmp_path)), 0.0):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.access("/usr/bin/dpkg", os.X_OK), reason="needs dpkg")
def test_the_real_dpkg_installs_nothing_meanwhile(tmp_path: Path) -> None:
    made(tmp_path, DPKG)
    for name in ("status", "available", "info/format", "updates/.keep", "triggers/.keep"):
        (tmp_path / "var/lib/dpkg" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "var/lib/dpkg" / name).write_text("1\n" if name == "info/format" else "")
    argv = ["dpkg", f"--root={tmp_path}", "--force-not-root", "--configure", "--pending"]
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0
    with held_off(Host(os.fspath(tmp_path)), 0.2):
        refused = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "lock" in refused.stderr
