"""Every host of the matrix that can try arguments in one boot: tried, cut off, tried again, made lasting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import choices
from tests.host.rows import Programs, Row
from tests.host.test_rows import APPLIED, images_are_lists, ready, tree, wishes
from virtpass.host import tokens
from virtpass.host.boot import BootEntry, Role
from virtpass.host.facts import read_facts
from virtpass.host.prepare import HostPlan
from virtpass.host.status import Verdict
from virtpass.operations import host_preparation
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

__all__ = ["images_are_lists"]
pytestmark = pytest.mark.usefixtures("images_are_lists")

# Their loaders cannot take a choice for one boot, or cannot forget it.
WITHOUT = frozenset(
    {
        "alpine-extlinux",
        "arch-syslinux-mkinitcpio",
        "cachyos-limine",
        "cachyos-limine-assigned",
        "arch-limine-by-hand",
        "arch-refind",
        "leap-grub2",
        "tumbleweed-grub2-bls",
        "silverblue",
        "arch-uki",
        "proxmox-grub",
        "proxmox-systemd-boot",
        "proxmox-both",
    }
)
# GRUB itself writes there when it forgets the choice.
FORGETFUL = "grubenv"
OWN = "var/lib/virtpass"
# What is confirmed runs already: the arguments go into its one line instead of a file beside it, and the
# fallback entry loads the image that the trial had.
IN_ANOTHER_WAY = frozenset({"tumbleweed-systemd-boot"})


def without_environment(root: Path) -> dict[str, tuple[object, ...]]:
    return {name: one for name, one in tree(root).items() if not name.endswith(FORGETFUL)}


def prepared(trial: Trial) -> dict[str, tuple[object, ...]]:
    """Return what the host is booted from: all but our own records."""
    return {name: one for name, one in without_environment(trial.root).items() if OWN not in name}


def applied_at_once(row: Row, root: Path) -> Trial:
    """Return another such host, to which the same was applied without a trial."""
    other = Trial(row, root)
    other.apply(host_preparation.plan(other.host, wishes(row, other.host)))
    return other


class Trial:
    """A host on which arguments are tried."""

    def __init__(self, row: Row, root: Path) -> None:
        self.row = row
        self.root = root
        self.host: Host = ready(row, root)
        self.programs = Programs({**row.programs, **choices.PROGRAMS})

    def plan(self) -> HostPlan:
        return host_preparation.plan(self.host, wishes(self.row, self.host, trial=True))

    def apply(self, plan: HostPlan | None) -> None:
        assert plan is not None
        self.programs.calls.clear()
        host_preparation.apply(self.host, plan, run=self.programs)

    def entry(self, role: Role) -> BootEntry:
        plan = self.plan()
        assert plan.loader is not None
        return next(one for one in plan.loader.entries(read_facts(self.host)) if one.role is role)

    def chosen(self) -> str | None:
        plan = self.plan()
        assert plan.loader is not None
        return plan.loader.chosen(read_facts(self.host))

    def verdict(self) -> Verdict:
        (found,) = (one for one in host_preparation.status(self.host).checks if one.reference == "trial")
        return found.verdict


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_who_can_try(row: Row, tmp_path: Path) -> None:
    trial = Trial(row, tmp_path)
    before = tree(tmp_path)
    if row.name not in WITHOUT:
        assert trial.plan().request.is_trial
        return
    with pytest.raises(RefusedError) as caught:
        trial.plan()
    assert caught.value.reference == "no-trial"
    assert tree(tmp_path) == before


TRYING = [row for row in APPLIED if row.name not in WITHOUT]


@pytest.mark.parametrize("row", TRYING, ids=lambda row: row.name)
def test_a_trial_that_was_cut_off_is_chosen_once_more_and_reverted(row: Row, tmp_path: Path) -> None:
    trial = Trial(row, tmp_path)
    before = tree(tmp_path)
    normal = trial.entry(Role.NORMAL).tokens
    trial.apply(trial.plan())
    assert trial.entry(Role.NORMAL).tokens == normal
    assert trial.entry(Role.TRIAL).identifier == trial.chosen()
    assert trial.verdict() is Verdict.WAITING
    assert trial.plan().is_empty

    # The power fails before the trial is confirmed.
    choices.boot(trial.host, trial.entry(Role.TRIAL).tokens)
    assert trial.verdict() is Verdict.RIGHT
    choices.boot(trial.host, normal)
    assert trial.chosen() == ""
    assert trial.verdict() is Verdict.WRONG
    again = trial.plan()
    assert not again.plan.changes
    trial.apply(again)
    assert len(trial.programs.calls) == 1
    assert trial.chosen() == trial.entry(Role.TRIAL).identifier
    assert trial.verdict() is Verdict.WAITING

    trial.apply(host_preparation.plan_undo(trial.host))
    assert trial.chosen() == ""
    assert without_environment(tmp_path) == {
        name: one for name, one in before.items() if not name.endswith(FORGETFUL)
    }


@pytest.mark.slow
@pytest.mark.parametrize("row", TRYING, ids=lambda row: row.name)
def test_a_trial_that_is_reverted_before_its_boot_leaves_no_trace(row: Row, tmp_path: Path) -> None:
    trial = Trial(row, tmp_path)
    before = tree(tmp_path)
    trial.apply(trial.plan())
    trial.apply(host_preparation.plan_undo(trial.host))
    assert trial.chosen() == ""
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("row", TRYING, ids=lambda row: row.name)
def test_a_choice_that_fails_leaves_no_trace(row: Row, tmp_path: Path) -> None:
    trial = Trial(row, tmp_path)
    before = tree(tmp_path)
    plan = trial.plan()
    name = plan.plan.commands[-1].argv[0]
    trial.programs = Programs({**row.programs, name: lambda *_: 1})
    with pytest.raises(Exception, match=f"{name} .*failed with status 1"):
        trial.apply(plan)
    host_preparation.recover(trial.host, run=Programs({**row.programs, **choices.PROGRAMS}))
    assert tree(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize("row", TRYING, ids=lambda row: row.name)
def test_a_trial_is_made_lasting_and_taken_back(
    row: Row, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trial = Trial(row, tmp_path)
    before = without_environment(tmp_path)
    normal = trial.entry(Role.NORMAL).tokens
    trial.apply(trial.plan())
    choices.boot(trial.host, trial.entry(Role.TRIAL).tokens)
    trial.apply(host_preparation.plan_confirm(trial.host))
    state = host_preparation.status(trial.host)
    assert state.record is not None
    assert state.record.tried == ""
    undo = host_preparation.plan_undo(trial.host)
    assert undo is not None and undo.loader is not None
    entries = undo.loader.entries(read_facts(trial.host))
    assert Role.TRIAL not in {one.role for one in entries}
    assert not any(
        tokens.missing(state.record.arguments, one.tokens) for one in entries if one.role is Role.NORMAL
    )
    other = applied_at_once(row, tmp_path_factory.mktemp("other"))
    assert (prepared(trial) == prepared(other)) is (row.name not in IN_ANOTHER_WAY)
    choices.boot(trial.host, normal)
    trial.apply(host_preparation.plan_undo(trial.host))
    assert without_environment(tmp_path) == before
