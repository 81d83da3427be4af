"""Plans for hosts with systemd-boot, made real on the trees of `tests.host.rows_systemd_boot`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.host import rows_proxmox, rows_systemd_boot
from tests.host.rows import Programs, Row, build
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Loader, Role
from virtpass.host.edits import compose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.loaders import LOADERS
from virtpass.system.errors import VirtpassError
from virtpass.system.files import write_state
from virtpass.system.host import Host

OURS = ("intel_iommu=on", "iommu=pt")
REQUEST = BootRequest(OURS)
TRIAL_REQUEST = BootRequest(OURS, is_trial=True)
ALL = (*rows_systemd_boot.ROWS, *rows_proxmox.ROWS)
ROWS = {row.name: row for row in ALL}
LOADER_NAMES = {loader.name: loader for loader in LOADERS}
DEBIAN, BOOKWORM = ROWS["debian-13-systemd-boot"], ROWS["debian-12-systemd-boot"]
ENTRIES = "/boot/efi/loader/entries"
# Their entries lie on partitions that nobody sees, or are GRUB's.
SEEN = list(rows_systemd_boot.ROWS)
TRIED = [row for row in SEEN if row.name != "arch-uki"]


def loader_of(row: Row) -> Loader:
    return LOADER_NAMES[row.loader]


def made(row: Row, root: Path) -> HostFacts:
    return read_facts(build(root, row.files))


def put(facts: HostFacts, path: str, content: str | bytes) -> HostFacts:
    """Write a file, and return the facts anew."""
    target = Path(facts.host.path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_facts(facts.host)


def drop(facts: HostFacts, path: str) -> HostFacts:
    os.unlink(facts.host.path(path))
    return read_facts(facts.host)


def applied(row: Row, host: Host, plan: BootPlan) -> Programs:
    """Make a plan real without a transaction."""
    for change in compose(host, plan.edits, {}).changes:
        assert change.after is not None
        Path(host.path(change.path)).parent.mkdir(parents=True, exist_ok=True)
        write_state(host, change.path, change.after)
    programs = Programs(row.programs)
    for command in plan.commands:
        assert programs(host, command.argv, command.deadline).status == 0
    return programs


def by_role(loader: Loader, facts: HostFacts) -> dict[Role, list[BootEntry]]:
    found: dict[Role, list[BootEntry]] = {}
    for entry in loader.entries(facts):
        found.setdefault(entry.role, []).append(entry)
    return found


def refusal(loader: Loader, facts: HostFacts, request: BootRequest = REQUEST) -> str:
    with pytest.raises(VirtpassError) as caught:
        loader.plan(facts, request)
    assert caught.value.what and "  " not in caught.value.line
    return caught.value.reference
