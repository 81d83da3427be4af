"""Plans for hosts with GRUB and menus, made real on the trees of `tests.host.rows_grub`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.host.rows import Programs, Row, build
from tests.host.rows_grub import ROWS
from virtpass.host.boot import BootPlan, BootRequest, Loader
from virtpass.host.detect import choose
from virtpass.host.facts import read_facts
from virtpass.host.loaders import LOADERS
from virtpass.host.special import refuse_special
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

ARGUMENTS = ("intel_iommu=on", "iommu=pt")
REQUEST = BootRequest(ARGUMENTS)
TRY = BootRequest(ARGUMENTS, is_trial=True)
BY_NAME = {row.name: row for row in ROWS}
PLANNED = [row for row in ROWS if row.loader and not row.refused]


def applied(host: Host, loader: Loader, request: BootRequest, programs: Programs) -> BootPlan:
    """Do by hand what a transaction would do."""
    plan = loader.plan(read_facts(host), request)
    for edit in plan.edits:
        base = host.read_bytes(edit.path)
        target = Path(host.path(edit.path))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(edit.form.for_base(base).add(base))
    for command in plan.commands:
        assert programs(host, command.argv, command.deadline).status == 0
    return plan


def refused(row: Row, tmp_path: Path) -> RefusedError:
    host = build(tmp_path, row.files)
    facts = read_facts(host)
    with pytest.raises(RefusedError) as caught:
        refuse_special(facts, ARGUMENTS)
        plan = choose(facts, LOADERS).plan(facts, REQUEST)
        for edit in plan.edits:
            os.close(host.open_directory(os.path.dirname(edit.path)))
            if os.path.islink(host.path(edit.path)):
                raise RefusedError("link-on-path", "as read_state says")
    return caught.value
