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

from virtpass.system.errors import RefusedError
from virtpass.system.host import Host
from virtpass.system.packages import held_off

DPKG = "var/lib/dpkg/lock-frontend"
RPM = "usr/lib/sysimage/rpm/.rpm.lock"
APK = "lib/apk/db/lock"
PACMAN = "var/lib/pacman/db.lck"
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


def test_pacman_is_seen_by_its_file(tmp_path: Path) -> None:
    lock = made(tmp_path, PACMAN)
    host = Host(os.fspath(tmp_path))
    with pytest.raises(RefusedError, match="pacman is at work"), held_off(host, 0.2):
        pytest.fail("it was not waited for")
    lock.unlink()
    with held_off(host, 0.2):
        pass


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
def test_the_real_dpkg_says_that_it_waits(tmp_path: Path) -> None:
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
