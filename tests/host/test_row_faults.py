"""Every host of the matrix, cut off at every write, rename, fsync and command of apply and of revert."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.host import choices
from tests.host.rows import Programs, Row
from tests.host.test_rows import APPLIED, images_are_lists, ready, tree, wishes
from tests.transaction.faults import Faults, Killed, install
from virtpass.host.boot import Loader
from virtpass.host.facts import read_facts
from virtpass.host.prepare import HostPlan
from virtpass.operations import host_preparation
from virtpass.system.commands import Outcome
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

__all__ = ["images_are_lists"]
pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.usefixtures("images_are_lists")]

# An error, and a death before, within and after an effect.
KINDS = ("EIO", "before", "within", "after")


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return install(monkeypatch)


class CutOff:
    """Runs the programs of a row, each as one effect that may fail or be the last one."""

    def __init__(self, faults: Faults, row: Row) -> None:
        self._faults = faults
        self._programs = Programs({**row.programs, **choices.PROGRAMS})

    def __call__(self, host: Host, argv: tuple[str, ...], deadline: float) -> Outcome:
        def run() -> Outcome:
            with self._faults.paused():
                return self._programs(host, argv, deadline)

        try:
            done: Outcome = self._faults.do("command", run, lambda: None)
        except OSError:
            return Outcome(1, "it does not work")
        return done


def planned(host: Host, row: Row, operation: str) -> HostPlan:
    """Plan what is wished of a row, or how to take it back."""
    if operation in ("apply", "trial"):
        return host_preparation.plan(host, wishes(row, host, trial=operation == "trial"))
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    return undo


def cut_offs(effects: int, turn: int) -> Sequence[tuple[int, str]]:
    """Return each effect with one of the kinds, another one at each turn.

    The hosts are many and their transactions alike: each kind meets each part of these on several hosts.
    """
    return [(at, KINDS[(at + turn) % len(KINDS)]) for at in range(1, effects + 1)]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small files are made here."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="virtpass-", dir=folder) as name:
        yield Path(name)


# One for each way in which the next boot is chosen.
TRYING = ("debian-13-grub", "fedora-grub-bls", "debian-13-systemd-boot")
CASES = [
    *((row, operation) for row in APPLIED for operation in ("apply", "revert")),
    *((row, operation) for row in APPLIED if row.name in TRYING for operation in ("trial", "end of a trial")),
]


def chosen(host: Host, loader: Loader | None) -> str | None:
    return loader.chosen(read_facts(host)) if loader is not None else None


@pytest.mark.parametrize(("row", "operation"), CASES, ids=lambda one: getattr(one, "name", one))
def test_cut_off_anywhere(row: Row, operation: str, memory: Path, faults: Faults) -> None:
    cut_off_anywhere(row, operation, memory, faults, turn=CASES.index((row, operation)) // 2)


def cut_off_anywhere(row: Row, operation: str, memory: Path, faults: Faults, *, turn: int) -> None:
    """Cut the operation off at each of its effects, and assert that recovery leaves a whole host."""
    start, root = memory / "start", memory / "root"
    host = Host(str(root))
    ready(row, root)
    programs = CutOff(faults, row)
    if operation in ("revert", "end of a trial"):
        first = "apply" if operation == "revert" else "trial"
        host_preparation.apply(host, planned(host, row, first), run=programs)
    before = tree(root)
    shutil.copytree(root, start, symlinks=True)
    plan = planned(host, row, operation)
    choice_before = chosen(host, plan.loader)
    with faults.armed():
        host_preparation.apply(host, plan, run=programs)
    after = tree(root)
    choice_after = chosen(host, plan.loader)
    assert (choice_before != choice_after) == ("trial" in operation)
    assert faults.count > 10
    now = after
    for at, kind in cut_offs(faults.count, turn):
        if now != before:
            shutil.rmtree(root)
            shutil.copytree(start, root, symlinks=True)
        with faults.armed(at, kind):
            try:
                host_preparation.apply(host, plan, run=programs)
            except (VirtpassError, Killed):
                pass
        host_preparation.recover(host, run=Programs({**row.programs, **choices.PROGRAMS}))
        now = tree(root)
        told = f"{kind} at effect {at} ({faults.names[-1]})"
        assert now in (before, after), told
        assert chosen(host, plan.loader) == (choice_before if now == before else choice_after), told
        assert host_preparation.pending(host) == []
