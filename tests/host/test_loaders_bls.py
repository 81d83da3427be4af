"""The loaders that read boot loader entries, and systems from images: what holds for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import choices, rows_bls, rows_ostree
from tests.host.bls_trees import ARGUMENTS, LOADERS, ROWS, WORKING, apply, by_role, facts_of, snapshot
from tests.host.rows import Programs, Row
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootPlan, BootRequest, Role
from virtpass.host.detect import choose
from virtpass.host.edits import compose
from virtpass.system.errors import RefusedError


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_loader_is_found_by_its_evidence(tmp_path: Path, row: Row) -> None:
    assert choose(facts_of(tmp_path, row), LOADERS).name == row.loader


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_nothing_is_planned_without_arguments(tmp_path: Path, row: Row) -> None:
    facts = facts_of(tmp_path, row)
    assert choose(facts, LOADERS).plan(facts, BootRequest(())) == BootPlan()


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_images_that_virtpass_cannot_change_are_refused_with_what_to_do(tmp_path: Path, row: Row) -> None:
    facts = facts_of(tmp_path, row)
    with pytest.raises(RefusedError) as refused:
        choose(facts, LOADERS).plan(facts, BootRequest(ARGUMENTS))
    assert refused.value.reference == row.refused
    assert all(argument in refused.value.remedy for argument in ARGUMENTS)


@pytest.mark.parametrize("row", WORKING, ids=lambda row: row.name)
def test_after_the_plan_every_normal_entry_has_the_arguments_and_keeps_its_own(
    tmp_path: Path, row: Row
) -> None:
    facts = facts_of(tmp_path, row)
    loader = choose(facts, LOADERS)
    before = loader.entries(facts)
    plan = loader.plan(facts, BootRequest(ARGUMENTS))
    apply(facts, plan, row, {})
    after = loader.entries(facts)
    assert by_role(before, Role.NORMAL)
    for entry in by_role(after, Role.NORMAL):
        assert tokens.missing(ARGUMENTS, entry.tokens) == ()
    for old in before:
        now = next(one for one in after if (one.path, one.title) == (old.path, old.title))
        assert tokens.missing(old.tokens, now.tokens) == ()
    fallback = by_role(after, Role.FALLBACK)
    assert [entry.title for entry in fallback] == ([plan.fallback] if plan.fallback else [])
    for entry in fallback:
        assert OFF in entry.tokens
        assert tokens.missing(ARGUMENTS, entry.tokens) == ARGUMENTS
        assert tokens.missing(by_role(before, Role.NORMAL)[0].tokens, entry.tokens) == ()


@pytest.mark.parametrize("row", WORKING, ids=lambda row: row.name)
def test_planning_again_changes_nothing_and_taking_it_back_leaves_the_tree_as_it_was(
    tmp_path: Path, row: Row
) -> None:
    facts = facts_of(tmp_path, row)
    loader = choose(facts, LOADERS)
    before = snapshot(facts.host)
    plan = loader.plan(facts, BootRequest(ARGUMENTS))
    recorded = apply(facts, plan, row, {})
    applied = snapshot(facts.host)
    assert applied != before
    again = loader.plan(facts, BootRequest(ARGUMENTS, present=ARGUMENTS))
    assert again == plan
    assert compose(facts.host, again.edits, recorded).changes == ()
    undoing = tuple(command.undoing for command in reversed(plan.commands))
    apply(facts, BootPlan(commands=undoing), row, recorded)
    assert snapshot(facts.host) == before


# What rpm-ostree did is taken back by the undoing of its own command.
@pytest.mark.parametrize(
    "row", [row for row in WORKING if row is not rows_ostree.SILVERBLUE], ids=lambda row: row.name
)
def test_other_arguments_replace_the_ones_before(tmp_path: Path, row: Row) -> None:
    facts = facts_of(tmp_path, row)
    loader = choose(facts, LOADERS)
    recorded = apply(facts, loader.plan(facts, BootRequest(ARGUMENTS)), row, {})
    plan = loader.plan(facts, BootRequest(("iommu=pt",), present=ARGUMENTS))
    apply(facts, plan, row, recorded)
    for entry in loader.entries(facts):
        assert "intel_iommu=on" not in entry.tokens
        assert ("iommu=pt" in entry.tokens) or entry.role is not Role.NORMAL


@pytest.mark.parametrize(
    "row",
    [rows_bls.FEDORA, rows_bls.ROCKY_8, rows_bls.ALMA_9, rows_bls.TUMBLEWEED_SYSTEMD_BOOT],
    ids=lambda row: row.name,
)
def test_a_trial_leaves_normal_entries_alone_and_is_booted_once(tmp_path: Path, row: Row) -> None:
    facts = facts_of(tmp_path, row)
    loader = choose(facts, LOADERS)
    before = {entry.path: entry.tokens for entry in loader.entries(facts)}
    plan = loader.plan(facts, BootRequest(ARGUMENTS, is_trial=True))
    assert plan.commands == ()
    assert plan.fallback == ""
    apply(facts, plan, row, {})
    (tried,) = by_role(loader.entries(facts), Role.TRIAL)
    assert tried.title == plan.tried
    assert tokens.missing((*ARGUMENTS, TRIAL), tried.tokens) == ()
    assert {one.path: one.tokens for one in loader.entries(facts) if one.role is not Role.TRIAL} == before
    assert plan.choice is not None
    assert plan.choice.identifier == tried.identifier
    command = plan.choice.command
    assert command.argv[-1] == tried.identifier
    assert loader.chosen(facts) == ""
    run = Programs(choices.PROGRAMS)
    assert run(facts.host, command.argv, 1).status == 0
    assert loader.chosen(facts) == tried.identifier
    assert run(facts.host, command.revert, 1).status == 0
    assert loader.chosen(facts) == ""


@pytest.mark.parametrize(
    ("row", "point"),
    [(rows_bls.FEDORA, "/boot"), (rows_bls.TUMBLEWEED_GRUB_BLS, ""), (rows_ostree.SILVERBLUE, "")],
    ids=lambda one: getattr(one, "name", ""),
)
def test_a_trial_is_refused_where_it_would_not_be_forgotten(tmp_path: Path, row: Row, point: str) -> None:
    mounted = rows_bls.mounts(("/", "btrfs", "/dev/vda1")) if point else row.files["/proc/self/mountinfo"]
    facts = facts_of(tmp_path, row, {"/proc/self/mountinfo": mounted})
    with pytest.raises(RefusedError) as refused:
        choose(facts, LOADERS).plan(facts, BootRequest(ARGUMENTS, is_trial=True))
    assert refused.value.reference == "no-trial"
