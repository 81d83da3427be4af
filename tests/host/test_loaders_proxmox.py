"""Proxmox VE with proxmox-boot-tool."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.rows import LOADER_INFO, build, loader_info
from tests.host.systemd_boot_trees import (
    OURS,
    REQUEST,
    ROWS,
    TRIAL_REQUEST,
    applied,
    by_role,
    drop,
    loader_of,
    made,
    put,
    refusal,
)
from virtpass.host import tokens
from virtpass.host.boot import OFF, Role
from virtpass.host.facts import read_facts
from virtpass.host.loaders.proxmox import Proxmox


@pytest.mark.parametrize(
    ("name", "paths", "fallback"),
    [
        ("proxmox-systemd-boot", ["/etc/kernel/cmdline"], ""),
        (
            "proxmox-both",
            ["/etc/kernel/cmdline", "/etc/default/grub.d/zz-virtpass.cfg", "/etc/grub.d/99_virtpass"],
            "",
        ),
    ],
)
def test_each_loader_of_proxmox_is_told(name: str, paths: list[str], fallback: str, tmp_path: Path) -> None:
    row = ROWS[name]
    facts, loader = made(row, tmp_path), loader_of(row)
    before = loader.entries(facts)
    plan = loader.plan(facts, REQUEST)
    assert [edit.path for edit in plan.edits] == paths
    assert plan.fallback == fallback
    assert [command.argv for command in plan.commands] == [("proxmox-boot-tool", "refresh")]
    # What it writes is not seen, so the way back is to run it again.
    assert plan.commands[0].outputs == ()
    assert "no-fallback" in {note.reference for note in plan.notes}
    applied(row, facts.host, plan)
    after = [entry for entry in loader.entries(read_facts(facts.host)) if entry.role is Role.NORMAL]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert not tokens.missing((*old.tokens, *OURS), new.tokens)
    assert refusal(loader, facts, TRIAL_REQUEST) == "no-trial"


def test_proxmox_with_grub_alone_has_a_fallback(tmp_path: Path) -> None:
    row = ROWS["proxmox-both"]
    facts = put(made(row, tmp_path), LOADER_INFO, loader_info("GRUB 2.12"))
    plan = loader_of(row).plan(facts, REQUEST)
    assert plan.fallback
    applied(row, facts.host, plan)
    (entry,) = by_role(loader_of(row), read_facts(facts.host))[Role.FALLBACK]
    assert entry.tokens == (OFF,)


@pytest.mark.parametrize("line", ["\nroot=ZFS=x\n", "quiet\nroot=ZFS=x\n", "# root=x\n".replace("root", "r")])
def test_proxmox_reads_the_first_line_only(line: str, tmp_path: Path) -> None:
    row = ROWS["proxmox-systemd-boot"]
    assert refusal(loader_of(row), put(made(row, tmp_path), "/etc/kernel/cmdline", line)) == "no-root"


def test_proxmox_without_a_command_line_gets_the_running_one(tmp_path: Path) -> None:
    row = ROWS["proxmox-systemd-boot"]
    facts = drop(made(row, tmp_path), "/etc/kernel/cmdline")
    edit = loader_of(row).plan(facts, REQUEST).edits[0]
    assert edit.form.add(None).decode() == "root=ZFS=rpool/ROOT/pve-1 boot=zfs intel_iommu=on iommu=pt\n"
    assert refusal(loader_of(row), put(facts, "/proc/cmdline", "quiet\n")) == "no-root"


def test_an_empty_list_of_partitions_is_no_evidence_for_proxmox(tmp_path: Path) -> None:
    row = ROWS["proxmox-both"]
    host = build(tmp_path, {**row.files, "/etc/kernel/proxmox-boot-uuids": "\n"})
    assert Proxmox().evidence(read_facts(host)) is None
