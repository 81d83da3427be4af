"""Arch and its family with systemd-boot: entries by hand, sdboot-manage, unified kernel images."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.rows import Row
from tests.host.systemd_boot_trees import (
    REQUEST,
    ROWS,
    TRIAL_REQUEST,
    TRIED,
    drop,
    loader_of,
    made,
    put,
    refusal,
)


def test_entries_by_hand_are_edited_and_the_ways_back_are_not(tmp_path: Path) -> None:
    row = ROWS["arch-systemd-boot"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [edit.path.rpartition("/")[2] for edit in plan.edits] == ["arch.conf", "a-virtpass-fallback.conf"]
    assert plan.commands == ()
    assert (
        plan.edits[0].form.add(b"options a\noptions b").decode()
        == "options a\noptions b intel_iommu=on iommu=pt"
    )


def test_an_entry_that_would_come_first_is_not_added(tmp_path: Path) -> None:
    row = ROWS["arch-systemd-boot"]
    facts = made(row, tmp_path)
    facts = put(facts, "/boot/loader/entries/a.conf", "title A\nefi /a.efi\n")
    plan = loader_of(row).plan(facts, REQUEST)
    assert not plan.fallback
    assert [note.reference for note in plan.notes] == ["no-fallback"]
    assert refusal(loader_of(row), facts, TRIAL_REQUEST) == "no-trial"


@pytest.mark.parametrize("row", [row for row in TRIED if row.loader != "uki"], ids=lambda row: row.name)
def test_a_host_without_entries_of_its_root_is_refused(row: Row, tmp_path: Path) -> None:
    facts = put(made(row, tmp_path), "/proc/cmdline", "root=UUID=another ro\n")
    assert refusal(loader_of(row), facts) == "no-entries"


# sdboot-manage


def test_sdboot_manage_uses_the_fallback_options_of_the_tool(tmp_path: Path) -> None:
    row = ROWS["cachyos-sdboot-manage"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [edit.path for edit in plan.edits] == ["/etc/sdboot-manage.conf"]
    assert [command.argv for command in plan.commands] == [("sdboot-manage", "gen")]
    assert 'LINUX_FALLBACK_OPTIONS="${LINUX_FALLBACK_OPTIONS:+' in plan.edits[0].form.add(None).decode()
    facts = drop(facts, "/boot/initramfs-linux-cachyos-fallback.img")
    plan = loader_of(row).plan(facts, REQUEST)
    assert not plan.fallback
    assert [note.reference for note in plan.notes] == ["no-fallback"]


def test_sdboot_manage_is_not_run_where_it_removes_entries_of_others(tmp_path: Path) -> None:
    row = ROWS["cachyos-sdboot-manage"]
    facts = put(made(row, tmp_path), "/boot/loader/entries/shell.conf", "title Shell\nefi /shellx64.efi\n")
    assert refusal(loader_of(row), facts) == "foreign-entries"
    config = facts.text("/etc/sdboot-manage.conf")
    facts = put(facts, "/etc/sdboot-manage.conf", f'{config}\nPRESERVE_FOREIGN="yes"\n')
    assert loader_of(row).plan(facts, REQUEST).fallback
    facts = put(facts, "/etc/sdboot-manage.conf", f"{config}\nREMOVE_EXISTING=no\n")
    assert refusal(loader_of(row), facts) == "entries-kept"
