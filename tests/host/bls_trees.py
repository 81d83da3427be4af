"""Plans for hosts with boot loader entries, made real on the trees of `tests.host.rows_bls`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.host import rows_bls, rows_ostree
from tests.host.rows import Link, Programs, Row, build
from virtpass.host.boot import BootEntry, BootPlan, Loader, Role
from virtpass.host.edits import Written, compose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.loaders.grub import Grub
from virtpass.host.loaders.grub_bls import GrubBls
from virtpass.host.loaders.ostree import Ostree
from virtpass.host.loaders.sdbootutil import Sdbootutil
from virtpass.host.loaders.transactional import Transactional
from virtpass.system.files import remove_file, write_state
from virtpass.system.host import Host

ARGUMENTS = ("intel_iommu=on", "video=efifb:off")
LOADERS: tuple[Loader, ...] = (Ostree(), Transactional(), Sdbootutil(), GrubBls(), Grub())
MACHINE = rows_bls.MACHINE
ROWS = (*rows_bls.ROWS, *rows_ostree.ROWS)
WORKING = [row for row in ROWS if not row.refused]


def facts_of(
    tmp_path: Path, row: Row, more: Mapping[str, str | bytes | Link | None] | None = None
) -> HostFacts:
    """Build a row, with files of its own or, for None, without them."""
    return read_facts(build(tmp_path, {**row.files, **(more or {})}))


def apply(facts: HostFacts, plan: BootPlan, row: Row, recorded: Mapping[str, Written]) -> dict[str, Written]:
    """Make a plan's changes, run its programs, and return what is on record then."""
    composed = compose(facts.host, plan.edits, recorded)
    for directory in composed.directories:
        Path(facts.host.path(directory)).mkdir(exist_ok=True)
    for change in composed.changes:
        if change.after is None:
            remove_file(facts.host, change.path)
        else:
            write_state(facts.host, change.path, change.after)
    run = Programs(row.programs)
    for command in plan.commands:
        assert run(facts.host, command.argv, 1).status == 0
    return {one.path: one for one in composed.written}


def by_role(entries: list[BootEntry], role: Role) -> list[BootEntry]:
    return [entry for entry in entries if entry.role is role]


def snapshot(host: Host) -> dict[str, bytes]:
    root = Path(host.root)
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
