"""Every host of the matrix: planned, applied, proven, cut off at every effect, reverted.

`python3 -m pytest tests/host/test_rows.py --golden` writes the expected plans anew; look at what changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import rows_bls, rows_grub, rows_ostree, rows_proxmox, rows_systemd_boot
from tests.host.rows import Programs, Row, build
from tests.simulation import CARD, NIC, desktop
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs import GENERATORS
from virtpass.host.initramfs.base import Image
from virtpass.host.prepare import HostPlan
from virtpass.host.wishes import Wishes
from virtpass.operations import host_preparation
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

GOLDEN = Path(__file__).parent / "golden"
ROWS = (*rows_grub.ROWS, *rows_bls.ROWS, *rows_ostree.ROWS, *rows_systemd_boot.ROWS, *rows_proxmox.ROWS)
APPLIED = [row for row in ROWS if not row.refused]
REFUSED = [row for row in ROWS if row.refused]

# What virtpass keeps for itself, and what the kernel makes.
STATE = ("var/lib/virtpass", "run/virtpass", "sys", "proc")


@pytest.fixture(autouse=True)
def images_are_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read an image of a tree as what its program wrote: the configuration that went into it."""
    for generator in GENERATORS:
        monkeypatch.setattr(type(generator), "content", content, raising=True)


def content(_generator: object, facts: HostFacts, image: Image) -> frozenset[str] | None:
    text = (facts.host.read_bytes(image.path) or b"").decode("utf-8", "replace")
    names = {name for name in ("/etc/modprobe.d/virtpass.conf", "/etc/virtpass/early-bind") if name in text}
    # Images of booster are lists already; those of others have the module whatever is done.
    listed = {line for line in text.splitlines() if line.startswith("usr/lib/modules/")}
    listed = listed or {"usr/lib/modules/kernel/vfio-pci.ko.xz"}
    return frozenset(name.lstrip("/") for name in names) | listed


def ready(row: Row, root: Path) -> Host:
    """Make the host of a row, with devices and an IOMMU that is on."""
    desktop(os.fspath(root)).put("/sys/class/iommu/dmar0/intel-iommu/cap", "0\n")
    for directory in ("run", "var/lib"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    return build(root, row.files)


def wishes(row: Row, host: Host, **more: object) -> Wishes:
    """Return what is wished of every host: something for the bootloader and something for the initramfs."""
    made = next((one for one in GENERATORS if one.name == row.generator), None)
    # A device with a twin, wherever its address can be looked at early enough.
    bind = (NIC,) if row.binds and made is not None and made.runs_scripts else ()
    if made is not None and made.loads_first:
        # By id twins cannot be told apart.
        bind = (CARD,)
    return Wishes(bind=bind, passthrough=True, bootloader=row.bootloader, **more)  # type: ignore[arg-type]


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is below a directory, without what virtpass and the kernel keep there."""
    return dict(_tree(root))


def _tree(root: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name.startswith(STATE):
            continue
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISLNK(found.st_mode):
            yield name, ("link", os.readlink(path))
        elif stat.S_ISDIR(found.st_mode):
            yield name, ("directory", mode)
        else:
            yield name, ("file", mode, found.st_uid, found.st_gid, path.read_bytes())


def text_of(plan: HostPlan) -> str:
    """Return a plan as a person reviews it."""
    commands = "".join(f"$ {' '.join(command.argv)}\n" for command in plan.plan.commands)
    notes = "".join(f"{one.severity.value}: {one.text}\n" for one in plan.notes)
    record = plan.record
    entries = f"fallback: {record.fallback or 'none'}\n" if record is not None else ""
    return f"{plan.plan.diff}{commands}{notes}{entries}"


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_the_plan_is_the_golden_one(row: Row, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    host = ready(row, tmp_path)
    plan = host_preparation.plan(host, wishes(row, host))
    assert (plan.loader.name if plan.loader else "") == row.loader
    assert (plan.generator.name if plan.generator else "") == row.generator
    golden = GOLDEN / f"{row.name}.txt"
    if request.config.getoption("--golden"):
        GOLDEN.mkdir(exist_ok=True)
        golden.write_text(text_of(plan))
    assert text_of(plan) == golden.read_text()


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_apply_again_changes_nothing_and_revert_leaves_no_trace(row: Row, tmp_path: Path) -> None:
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    programs = Programs(row.programs)
    wanted = wishes(row, host)
    host_preparation.apply(host, host_preparation.plan(host, wanted), run=programs)
    assert programs.calls
    applied = tree(tmp_path)
    assert applied != before
    again = host_preparation.plan(host, wanted)
    assert again.plan.is_empty, text_of(again)
    programs.calls.clear()
    host_preparation.apply(host, again, run=programs)
    assert programs.calls == []
    assert tree(tmp_path) == applied
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    assert tree(tmp_path) == before
    assert not host.exists("/var/lib/virtpass/host")
    assert host_preparation.plan_undo(host) is None


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_other_wishes_take_the_place_of_the_first(row: Row, tmp_path: Path) -> None:
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    programs = Programs(row.programs)
    first = wishes(row, host)
    host_preparation.apply(host, host_preparation.plan(host, first), run=programs)
    other = Wishes(arguments=("mitigations=auto",), bootloader=row.bootloader)
    host_preparation.apply(host, host_preparation.plan(host, other), run=programs)
    state = host_preparation.status(host)
    assert state.record is not None
    assert state.record.arguments == ("mitigations=auto",)
    assert not host.exists("/etc/modprobe.d/virtpass.conf")
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_a_command_that_fails_leaves_the_tree_as_it_was(row: Row, tmp_path: Path) -> None:
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    plan = host_preparation.plan(host, wishes(row, host))
    for failing in plan.plan.commands:
        programs = Programs({**row.programs, os.path.basename(failing.argv[0]): lambda *_: 1})
        with pytest.raises(VirtpassError):
            host_preparation.apply(host, plan, run=programs)
        # A command whose outputs are not known is asked to put them right, and then says no again.
        host_preparation.recover(host, run=Programs(row.programs))
        assert tree(tmp_path) == before
        assert host_preparation.plan_undo(host) is None


def test_a_trial_does_not_take_away_what_lasts(tmp_path: Path) -> None:
    (row,) = (one for one in ROWS if one.name == "debian-13-grub")
    host = ready(row, tmp_path)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=Programs(row.programs))
    with pytest.raises(VirtpassError, match="a trial would take what is applied now out of the normal"):
        host_preparation.plan(host, wishes(row, host, trial=True))


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_a_host_that_is_refused_is_not_touched(row: Row, tmp_path: Path) -> None:
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    with pytest.raises(VirtpassError) as caught:
        host_preparation.plan(host, wishes(row, host))
    assert caught.value.reference == row.refused
    assert tree(tmp_path) == before


def test_every_golden_plan_has_a_row() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {row.name for row in APPLIED}
