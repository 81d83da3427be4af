"""What takes a while is shown: on a terminal in one line, elsewhere in one line at its beginning."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.terminal import ROOT, Session
from virtpass.cli.progress import cut, duration, live_line
from virtpass.system.tasks import Task

WAITING = "waiting for another virtpass command"
RECOVER = ("host", "recover", "--root")


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Be another virtpass command that is at work."""
    path = root / "run" / "virtpass"
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / "host.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def doing(text: str, at_most: str, body: str) -> str:
    """Return a program that does something, and says so."""
    return (
        "import time; from virtpass.cli.output import note, say, printing; "
        "from virtpass.system.tasks import under_way\n"
        f"with printing():\n  with under_way({text!r}, {at_most}, is_long=True):\n    {body}\n  note('done')"
    )


def test_a_wait_is_one_line_that_is_renewed_and_stays_with_its_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        session = Session(*RECOVER, str(tmp_path))
        session.shows(f"{WAITING}: 1 s (at most 30 s)")
        session.shows(f"{WAITING}: 2 s (at most 30 s)")
    assert session.end() == 0
    first, second, last = session.screen.lines
    assert first.startswith(f"{WAITING}: ")
    assert first.endswith(" s")
    assert (second, last) == ("no change was cut off: there is nothing to recover", "")


def test_a_line_is_cut_and_never_wrapped(tmp_path: Path) -> None:
    text = "running update-initramfs -u -k 6.1.0-28-amd64"
    session = Session("-c", doing(text, "600", "time.sleep(1.2)"), columns=40)
    assert session.end() == 0
    assert any(line.endswith("…: 0 s (at most 10 min)") for line in session.seen)
    assert all(len(line) < 40 for line in session.seen)
    # What stays is whole: then the terminal may break it.
    assert session.screen.lines == ["running update-initramfs -u -k 6.1.0-28-", "amd64: 1 s", "done", ""]


def test_what_was_quick_leaves_nothing() -> None:
    session = Session("-c", doing("running update-grub", "900", "time.sleep(0.1)"))
    session.end()
    assert "running update-grub: 0 s (at most 15 min)" in session.raw
    assert session.screen.lines == ["done", ""]


def test_what_is_printed_meanwhile_has_its_own_line() -> None:
    session = Session(
        "-c", doing("running update-grub", "900", "time.sleep(1.2); say('data'); time.sleep(0.8)")
    )
    session.end()
    assert session.screen.lines == ["data", "running update-grub: 2 s", "done", ""]


def test_ctrl_c_leaves_the_terminal_in_order(tmp_path: Path) -> None:
    with locked(tmp_path):
        session = Session(*RECOVER, str(tmp_path))
        session.shows(": 1 s (at most 30 s)")
        session.press(b"\x03")
        assert session.end() == 130
    # Between them is the end of the line on which terminals show ^C.
    assert [line for line in session.screen.lines if line] == [f"{WAITING}: 1 s", "virtpass: interrupted"]


@pytest.mark.parametrize(
    ("more", "environment"), [((), {"TERM": "dumb"}), (("--plain",), {}), (("--plain",), {"NO_COLOR": "1"})]
)
def test_a_terminal_that_cannot_move_or_shall_not(
    tmp_path: Path, more: tuple[str, ...], environment: dict[str, str]
) -> None:
    with locked(tmp_path):
        session = Session(*RECOVER, str(tmp_path), *more, environment=environment)
        session.shows("")
        session.read_until(lambda: "\n" in session.raw)
    session.end()
    assert "\x1b" not in session.raw
    assert session.raw.replace("\r\n", "\n").splitlines() == [
        f"{WAITING} (at most 30 s)",
        "no change was cut off: there is nothing to recover",
    ]
    assert "\r" not in session.raw.replace("\r\n", "\n")


def test_without_a_terminal_there_is_a_line_at_the_beginning_and_no_other() -> None:
    body = "time.sleep(2.2)"
    done = subprocess.run(
        [sys.executable, "-c", doing("running update-grub", "90", body)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == "running update-grub (at most 1 min 30 s)\ndone\n"


def test_a_wait_that_is_none_is_not_worth_a_word(tmp_path: Path) -> None:
    session = Session(*RECOVER, str(tmp_path))
    assert session.end() == 0
    assert session.raw == "no change was cut off: there is nothing to recover\r\n"


def test_a_terminal_that_is_gone_cuts_nothing_off() -> None:
    body = "import os; os.close(2); time.sleep(1.2)"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            doing("running update-grub", "90", body).replace("note('done')", "say('done')"),
        ],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (75, "1 min 15 s"), (3600, "1 h"), (3725, "1 h 2 min")],
)
def test_times_are_those_of_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.property
@given(st.text(), st.floats(0, 1e6), st.one_of(st.none(), st.floats(0, 1e5)), st.integers(0, 200))
def test_no_line_reaches_the_last_column(
    text: str, seconds: float, at_most: float | None, columns: int
) -> None:
    line = live_line(Task(text, at_most), seconds, columns)
    assert line.isprintable()
    assert sum(
        2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in line
        if not unicodedata.combining(one)
    ) <= max(columns - 1, 0)


@pytest.mark.property
@given(st.text(), st.integers(0, 60))
def test_nothing_is_cut_that_fits(text: str, columns: int) -> None:
    if 2 * len(text) <= columns:
        assert cut(text, columns) == text
