"""What /proc says of a process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.system import processes
from virtpass.system.host import Host
from virtpass.system.processes import Process

TICKS = os.sysconf("SC_CLK_TCK")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), max_size=15)


def said(name: str, state: str = "S", started: int = 700 * TICKS) -> str:
    """Return what the kernel says of process 42, whose parent is 7 and whose session is 9."""
    return f"42 ({name}) {state} 7 8 9 " + "0 " * 15 + f"{started} 0 0\n"


def host_with(root: Path, stat: str) -> Host:
    folder = root / "proc/42"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(stat)
    (root / "proc/uptime").write_text("1000.00 1234.00\n")
    return Host(str(root))


@given(name=NAMES)
def test_a_process_may_be_called_anything(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    host = host_with(tmp_path_factory.mktemp("root"), said(name))
    found = processes.find(host, "42")
    assert found == Process(7, 9, 700 * TICKS)
    assert found.age(host) == 300


@pytest.mark.parametrize(
    "stat",
    ["", "42 (sh)", said("sh", "Z"), said("sh", "X"), said("sh").replace(" 7 ", " - "), said("sh")[:30]],
    ids=["empty", "short", "zombie", "dead", "no number", "cut off"],
)
def test_none_is_found_where_none_lives(tmp_path: Path, stat: str) -> None:
    assert processes.find(host_with(tmp_path, stat), 42) is None
    assert processes.started(Host(str(tmp_path)), 43) is None


def test_one_that_began_after_the_clock_was_read_has_no_age(tmp_path: Path) -> None:
    host = host_with(tmp_path, said("sh", started=1001 * TICKS))
    found = processes.find(host, 42)
    assert found is not None and found.age(host) == 0


def test_a_real_process_is_found_as_long_as_it_lives() -> None:
    with Host() as host, subprocess.Popen(["sleep", "60"], start_new_session=True) as child:
        found = processes.find(host, child.pid)
        assert found is not None
        assert (found.parent, found.session) == (os.getpid(), child.pid)
        assert found.age(host) < 30
        child.kill()
    with Host() as host:
        assert processes.find(host, child.pid) is None
