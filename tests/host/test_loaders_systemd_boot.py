"""systemd-boot and the tools that write its entries: what holds for all of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.host import choices
from tests.host.rows import LOADER_INFO, Programs, Row, loader_info
from tests.host.rows_systemd_boot import ROOT
from tests.host.systemd_boot_trees import (
    ALL,
    DEBIAN,
    OURS,
    REQUEST,
    SEEN,
    TRIAL_REQUEST,
    TRIED,
    applied,
    by_role,
    drop,
    loader_of,
    made,
    put,
    refusal,
)
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootPlan, BootRequest, Role
from virtpass.host.facts import read_facts
from virtpass.host.loaders import LOADERS, sd_boot, sd_boot_once
from virtpass.host.loaders.bls import list_entries
from virtpass.host.versions import version_key
from virtpass.system.errors import RefusedError


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
def test_the_right_loader_is_seen_and_manages_the_others(row: Row, tmp_path: Path) -> None:
    facts = made(row, tmp_path)
    seen = {loader.name: one for loader in LOADERS if (one := loader.evidence(facts))}
    assert row.loader in seen
    replaced = {name for one in seen.values() for name in one.replaces}
    assert set(seen) - replaced == {row.loader}


@pytest.mark.parametrize("row", SEEN, ids=lambda row: row.name)
def test_normal_entries_get_the_arguments_and_the_fallback_does_not(row: Row, tmp_path: Path) -> None:
    facts, loader = made(row, tmp_path), loader_of(row)
    before = {entry.path: entry for entry in loader.entries(facts)}
    plan = loader.plan(facts, REQUEST)
    applied(row, facts.host, plan)
    after = by_role(loader, read_facts(facts.host))
    assert after[Role.NORMAL]
    for entry in after[Role.NORMAL]:
        assert not tokens.missing((*OURS, *before[entry.path].tokens), entry.tokens)
    assert plan.fallback
    (fallback,) = after[Role.FALLBACK]
    assert OFF in fallback.tokens
    assert ROOT in fallback.tokens
    assert not set(OURS) & set(fallback.tokens)


@pytest.mark.parametrize("row", ALL, ids=lambda row: row.name)
def test_nothing_is_planned_without_arguments(row: Row, tmp_path: Path) -> None:
    assert loader_of(row).plan(made(row, tmp_path), BootRequest(())) == BootPlan()


@pytest.mark.parametrize("row", TRIED, ids=lambda row: row.name)
def test_a_trial_has_an_entry_of_its_own_and_changes_no_other(row: Row, tmp_path: Path) -> None:
    facts, loader = made(row, tmp_path), loader_of(row)
    before = by_role(loader, facts)
    plan = loader.plan(facts, TRIAL_REQUEST)
    assert plan.commands == ()
    (edit,) = plan.edits
    applied(row, facts.host, plan)
    facts = read_facts(facts.host)
    after = by_role(loader, facts)
    (entry,) = after.pop(Role.TRIAL)
    assert after == before
    assert entry.path == edit.path
    assert entry.title == plan.tried
    assert not tokens.missing((*before[Role.NORMAL][0].tokens, *OURS, TRIAL), entry.tokens)
    assert plan.choice is not None
    assert plan.choice.identifier == entry.identifier == entry.path.rpartition("/")[2]
    command = plan.choice.command
    assert command.argv == ("bootctl", "set-oneshot", entry.identifier)
    assert command.revert == ("bootctl", "set-oneshot", "")
    assert command.outputs == ()
    assert loader.chosen(facts) == ""
    assert Programs(choices.PROGRAMS)(facts.host, command.argv, command.deadline).status == 0
    assert loader.chosen(facts) == entry.identifier
    # Made once more, it is not what was chosen before.
    again = loader.plan(facts, TRIAL_REQUEST).choice
    assert again is not None
    assert again.command.revert == command.revert


@pytest.mark.parametrize("row", TRIED, ids=lambda row: row.name)
def test_a_trial_is_refused_where_it_would_stay(row: Row, tmp_path: Path) -> None:
    facts, loader = made(row, tmp_path), loader_of(row)
    root = sd_boot.entries_directory(facts).removesuffix("/entries")
    saved = put(facts, f"{root}/loader.conf", "timeout 3\ndefault @saved\n")
    assert refusal(loader, saved, TRIAL_REQUEST) == "no-trial"
    other = put(drop(facts, f"{root}/loader.conf"), LOADER_INFO, loader_info("GRUB 2.12"))
    assert refusal(loader, other, TRIAL_REQUEST) == "no-trial"


def test_a_choice_for_the_next_boot_that_was_there_comes_back(tmp_path: Path) -> None:
    facts = made(DEBIAN, tmp_path)
    variable = LOADER_INFO.replace("LoaderInfo", "LoaderEntryOneShot")
    facts = put(facts, variable, loader_info("auto-reboot-to-firmware-setup"))
    command = sd_boot_once.choice(facts, "x.conf").command
    assert command.revert == ("bootctl", "set-oneshot", "auto-reboot-to-firmware-setup")


def test_another_loader_does_not_ask_what_was_chosen(tmp_path: Path) -> None:
    facts = made(DEBIAN, tmp_path)
    variable = LOADER_INFO.replace("LoaderInfo", "LoaderEntryOneShot")
    facts = put(facts, variable, loader_info("x.conf"))
    assert sd_boot_once.chosen(facts) == "x.conf"
    assert sd_boot_once.chosen(put(facts, LOADER_INFO, loader_info("GRUB 2.12"))) == ""


def test_the_variables_of_a_rescue_system_are_not_those_of_the_host(tmp_path: Path) -> None:
    facts = made(DEBIAN, tmp_path)
    # Its /proc is that of the system that runs virtpass.
    shutil.rmtree(facts.host.path("/proc/self"))
    Path(facts.host.path("/proc/self")).symlink_to(str(os.getpid()))
    with pytest.raises(RefusedError, match="EFI variables are those of this machine") as caught:
        loader_of(DEBIAN).plan(read_facts(facts.host), TRIAL_REQUEST)
    assert caught.value.reference == "no-trial"


@pytest.mark.parametrize("row", SEEN, ids=lambda row: row.name)
@pytest.mark.parametrize(
    ("timeout", "seen"),
    [
        ("timeout 3", None),
        ("", "no timeout is set"),
        ("timeout 0", "timeout 0"),
        ("timeout menu-hidden", "timeout menu-hidden"),
        ("timeout menu-disabled", "never shown"),
    ],
)
def test_a_hidden_menu_is_told_with_the_way_to_the_fallback(
    row: Row, timeout: str, seen: str | None, tmp_path: Path
) -> None:
    facts = made(row, tmp_path)
    root = sd_boot.program(facts).partition("/EFI/")[0]
    facts = put(facts, f"{root}/loader/loader.conf", f"#timeout 9\n{timeout}\n")
    plan = loader_of(row).plan(facts, REQUEST)
    notes = [note.text for note in plan.notes if note.reference == "hidden-menu"]
    assert plan.fallback
    if seen is None:
        assert notes == []
    else:
        (text,) = notes
        assert seen in text
    # What bootctl set-timeout has said counts more.
    variable = LOADER_INFO.replace("LoaderInfo", "LoaderConfigTimeout")
    plan = loader_of(row).plan(put(facts, variable, loader_info("5")), REQUEST)
    assert "hidden-menu" not in {note.reference for note in plan.notes}


@pytest.mark.parametrize("row", TRIED, ids=lambda row: row.name)
def test_our_entry_sorts_after_all_others(row: Row, tmp_path: Path) -> None:
    """As systemd-boot sorts: those with a sort-key first, then by name, the greatest first."""
    facts, loader = made(row, tmp_path), loader_of(row)
    applied(row, facts.host, loader.plan(facts, TRIAL_REQUEST))
    directory = sd_boot.entries_directory(facts)
    found = list_entries(facts.host, directory)
    (ours,) = [entry for entry in found if TRIAL in entry.options]
    assert not ours.value("sort-key")
    if not any(entry.value("sort-key") for entry in found):
        names = [entry.name.lower() for entry in found if entry is not ours]
        assert all(version_key(ours.name) < version_key(name) for name in names)
    assert set(ours.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-_.")
