"""GRUB, extlinux, Limine and rEFInd, and hosts that are refused: what holds for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import choices
from tests.host.grub_trees import ARGUMENTS, BY_NAME, PLANNED, REQUEST, TRY, applied, refused
from tests.host.rows import Programs, Row, build
from tests.host.rows_grub import ROOT, ROWS
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootPlan, BootRequest, Role
from virtpass.host.detect import choose
from virtpass.host.facts import read_facts
from virtpass.host.loaders import LOADERS
from virtpass.system.errors import RefusedError


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_normal_entries_get_the_arguments_and_the_others_stay(row: Row, tmp_path: Path) -> None:
    host = build(tmp_path, row.files)
    loader = choose(read_facts(host), LOADERS)
    assert loader.name == row.loader
    before = loader.entries(read_facts(host))
    plan = applied(host, loader, REQUEST, Programs(row.programs))
    after = loader.entries(read_facts(host))
    for entry in after:
        if entry.role is Role.NORMAL:
            assert tokens.missing(ARGUMENTS, entry.tokens) == ()
        if entry.role is Role.FALLBACK:
            assert tokens.missing(ARGUMENTS, entry.tokens) == ARGUMENTS
            assert entry.tokens[-1] == OFF
            assert ROOT in entry.tokens
    has_fallback = any(entry.role is Role.FALLBACK for entry in after)
    assert has_fallback == bool(plan.fallback)
    assert has_fallback != any(note.reference == "no-fallback" for note in plan.notes)
    kept = {(entry.path, entry.identifier, entry.title): entry.tokens for entry in after}
    for entry in before:
        assert set(entry.tokens) <= set(kept[entry.path, entry.identifier, entry.title])
    # The first entry, which a numbered or no default takes, is still the distribution's own.
    assert after[0].title == before[0].title
    assert after[0].role is Role.NORMAL


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_a_request_without_arguments_plans_nothing(row: Row, tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, row.files))
    assert choose(facts, LOADERS).plan(facts, BootRequest(())) == BootPlan()


@pytest.mark.parametrize("row", PLANNED, ids=lambda row: row.name)
def test_a_trial_leaves_the_normal_entries_alone_or_is_refused(row: Row, tmp_path: Path) -> None:
    host = build(tmp_path, row.files)
    loader = choose(read_facts(host), LOADERS)
    if loader.name != "grub":
        with pytest.raises(RefusedError) as caught:
            loader.plan(read_facts(host), TRY)
        assert caught.value.reference == "no-trial"
        return
    before = [entry for entry in loader.entries(read_facts(host)) if entry.role is Role.NORMAL]
    plan = applied(host, loader, TRY, Programs(row.programs))
    after = loader.entries(read_facts(host))
    assert [entry for entry in after if entry.role is Role.NORMAL] == before
    tried = next(entry for entry in after if entry.role is Role.TRIAL)
    assert tried.title == plan.tried
    assert tried.tokens[-3:] == (*ARGUMENTS, TRIAL)
    assert plan.choice is not None
    assert plan.choice.identifier == tried.identifier
    once = plan.choice.command
    assert once.argv == ("grub-reboot", tried.identifier)
    assert once.outputs == ("/boot/grub/grubenv",)
    assert once.revert == ("grub-editenv", "/boot/grub/grubenv", "unset", "next_entry")
    assert loader.chosen(read_facts(host)) == ""
    assert Programs(choices.PROGRAMS)(host, once.argv, once.deadline).status == 0
    assert loader.chosen(read_facts(host)) == tried.identifier


@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_refused_hosts_are_told_why(row: Row, tmp_path: Path) -> None:
    assert refused(row, tmp_path).reference == row.refused


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nixos", 'boot.kernelParams = [ "intel_iommu=on" "iommu=pt" ];'),
        ("guix", '(kernel-arguments (append \'("intel_iommu=on" "iommu=pt") %default-kernel-arguments))'),
        ("ubuntu-core", 'dangerous-cmdline-append="intel_iommu=on iommu=pt"'),
        ("aarch64", "intel_iommu=on iommu=pt"),
    ],
)
def test_the_text_to_paste_is_in_the_one_line(name: str, text: str, tmp_path: Path) -> None:
    line = refused(BY_NAME[name], tmp_path).line
    assert text in line
    assert "\n" not in line


def test_the_architecture_is_seen_from_the_files_of_another_root(tmp_path: Path) -> None:
    files = {**BY_NAME["debian-12-grub"].files, "/lib/ld-linux-aarch64.so.1": ""}
    assert refused(Row("", files), tmp_path).reference == "architecture"
