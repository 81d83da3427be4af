"""openSUSE: GRUB and its defaults, sdbootutil, transactional-update."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import rows_bls
from tests.host.bls_trees import ARGUMENTS, LOADERS, apply, by_role, facts_of
from tests.host.rows import Row, build
from virtpass.host.boot import OFF, BootPlan, BootRequest, Role
from virtpass.host.detect import choose
from virtpass.host.early import EarlyPlan, edits
from virtpass.host.edits import compose
from virtpass.host.facts import read_facts
from virtpass.host.forms import (
    LineTokens,
    OwnFile,
)
from virtpass.host.initramfs.dracut import Dracut
from virtpass.host.initramfs.sdbootutil import SdbootutilDracut
from virtpass.host.loaders import bls
from virtpass.host.loaders.grub import Grub
from virtpass.host.loaders.grub_defaults import DEFAULTS
from virtpass.host.loaders.sdbootutil import DROP_IN, Sdbootutil
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command


def test_leap_appends_to_its_defaults_and_runs_its_own_tool(tmp_path: Path) -> None:
    plan = Grub().plan(facts_of(tmp_path, rows_bls.LEAP), BootRequest(ARGUMENTS))
    assert plan.edits[0].path == DEFAULTS
    assert [command.argv for command in plan.commands] == [("update-bootloader", "--refresh")]


def test_the_sample_menu_is_what_its_script_writes(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.LEAP)
    assert rows_bls.grub_menu(facts.host).decode() == rows_bls.LEAP.files["/boot/grub2/grub.cfg"]


def test_sdbootutil_gets_a_drop_in_where_it_reads_one(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_SYSTEMD_BOOT)
    plan = Sdbootutil().plan(facts, BootRequest(ARGUMENTS))
    assert plan.edits[0].path == DROP_IN
    assert plan.edits[0].form == OwnFile(" ".join(ARGUMENTS) + "\n")
    (command,) = plan.commands
    assert command.argv == ("sdbootutil", "update-all-entries")
    assert command.outputs == ()


def test_a_drop_in_is_not_laid_on_the_running_line(tmp_path: Path) -> None:
    row = rows_bls.TUMBLEWEED_SYSTEMD_BOOT
    files = {path: content for path, content in row.files.items() if path != "/etc/kernel/cmdline"}
    facts = read_facts(build(tmp_path, files))
    plan = Sdbootutil().plan(facts, BootRequest(ARGUMENTS))
    assert isinstance(plan.edits[0].form, LineTokens)
    recorded = apply(facts, plan, row, {})
    again = Sdbootutil().plan(facts, BootRequest(ARGUMENTS, present=ARGUMENTS))
    assert again == plan
    assert compose(facts.host, again.edits, recorded).changes == ()


def test_an_older_sdbootutil_gets_the_whole_line(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_GRUB_BLS)
    edit = Sdbootutil().plan(facts, BootRequest(ARGUMENTS)).edits[0]
    assert edit.path == "/etc/kernel/cmdline"
    text = edit.form.add(None).decode()
    assert "root=UUID=5d2e94bb" in text
    assert text.endswith(" ".join(ARGUMENTS) + "\n")


def test_the_vendors_line_is_where_a_new_one_begins(tmp_path: Path) -> None:
    more = {"/usr/lib/kernel/cmdline": "# of the vendor\nroot=LABEL=v  quiet\nsecurity=apparmor\n"}
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_GRUB_BLS, more)
    form = Sdbootutil().plan(facts, BootRequest(ARGUMENTS)).edits[0].form
    assert form == LineTokens(ARGUMENTS, "root=LABEL=v quiet security=apparmor")


def test_entries_of_other_snapshots_are_left_alone(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_GRUB_BLS)
    entries = Sdbootutil().entries(facts)
    assert len(entries) == 2
    assert all("rootflags=subvol=@/.snapshots/1/snapshot" in entry.tokens for entry in entries)


def test_the_fallback_of_sdbootutil_comes_last_for_grub(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_GRUB_BLS)
    apply(facts, Sdbootutil().plan(facts, BootRequest(ARGUMENTS)), rows_bls.TUMBLEWEED_GRUB_BLS, {})
    listed = bls.in_menu_order(bls.list_entries(facts.host, "/boot/efi/loader/entries"))
    assert [one.name.partition("-")[0] for one in listed] == ["system", "system", "system", "snapper"]
    assert listed[2].title.startswith("Without passthrough: ")


@pytest.mark.parametrize(
    "row", [rows_bls.TUMBLEWEED_SYSTEMD_BOOT, rows_bls.TUMBLEWEED_GRUB_BLS], ids=lambda row: row.name
)
def test_sdbootutil_leaves_our_entry_alone_until_its_kernel_goes(row: Row, tmp_path: Path) -> None:
    facts = facts_of(tmp_path, row)
    plan = Sdbootutil().plan(facts, BootRequest(ARGUMENTS))
    assert "fallback-kernel" in [note.reference for note in plan.notes]
    assert "7.1.3-1-default" in " ".join(note.text for note in plan.notes)
    apply(facts, plan, row, {})
    (fallback,) = by_role(Sdbootutil().entries(facts), Role.FALLBACK)
    assert OFF in fallback.tokens
    kernel = bls.parse_entry(facts.host.read_bytes(fallback.path) or b"", "").value("linux")
    Path(facts.host.path(f"/boot/efi{kernel}")).unlink()
    assert by_role(Sdbootutil().entries(facts), Role.FALLBACK) == []


def test_a_measured_command_line_is_told_and_predicted_anew_on_the_way_back(tmp_path: Path) -> None:
    more = {"/etc/crypttab": "cr_root /dev/vda2 none tpm2-device=auto\n"}
    plan = Sdbootutil().plan(
        facts_of(tmp_path, rows_bls.TUMBLEWEED_SYSTEMD_BOOT, more), BootRequest(ARGUMENTS)
    )
    assert "measured" in [note.reference for note in plan.notes]


def test_arguments_that_sdbootutil_would_drop_are_not_risked(tmp_path: Path) -> None:
    path = "/boot/efi/loader/entries/opensuse-tumbleweed-7.1.3-1-default-1.conf"
    text = str(rows_bls.TUMBLEWEED_SYSTEMD_BOOT.files[path]).replace("quiet", "quiet nosmt")
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_SYSTEMD_BOOT, {path: text})
    with pytest.raises(RefusedError) as refused:
        Sdbootutil().plan(facts, BootRequest(ARGUMENTS))
    assert refused.value.reference == "entry-differs"
    assert "nosmt" in refused.value.what


def test_sdbootutil_builds_the_images_that_its_entries_load(tmp_path: Path) -> None:
    row = rows_bls.TUMBLEWEED_SYSTEMD_BOOT
    facts = facts_of(tmp_path, row)
    assert Dracut().evidence(facts) == ""
    made = SdbootutilDracut()
    assert made.evidence(facts)
    early = EarlyPlan(softdeps=("nouveau",), modules=("vfio_pci",))
    apply(facts, BootPlan(tuple(edits(early))), row, {})
    plan = made.plan(facts, early)
    assert [command.argv for command in plan.commands] == [("sdbootutil", "mkinitrd")]
    before = made.images(facts)
    assert sorted(image.kernel for image in before) == ["7.0.12-1-default", "7.1.3-1-default"]
    apply(facts, BootPlan(plan.edits, plan.commands), row, {})
    after = made.images(facts)
    assert {image.path for image in after}.isdisjoint(image.path for image in before)
    for image in after:
        assert b"/etc/modprobe.d/virtpass.conf" in (facts.host.read_bytes(image.path) or b"")


def test_the_fallback_keeps_the_image_that_it_has(tmp_path: Path) -> None:
    row = rows_bls.TUMBLEWEED_SYSTEMD_BOOT
    facts = facts_of(tmp_path, row)
    loader = Sdbootutil()
    plan = loader.plan(facts, BootRequest(ARGUMENTS))
    apply(facts, plan, row, {})
    Path(facts.host.path("/etc/modprobe.d/other.conf")).write_text("# other\n")
    apply(facts, BootPlan(commands=(Command(("sdbootutil", "mkinitrd"), ""),)), row, {})
    assert loader.plan(facts, BootRequest(ARGUMENTS, present=ARGUMENTS)) == plan
    (image,) = bls.parse_entry(plan.edits[-1].form.add(None), "").values("initrd")
    Path(facts.host.path(f"/boot/efi{image}")).unlink()
    again = loader.plan(facts, BootRequest(ARGUMENTS, present=ARGUMENTS))
    assert image not in bls.parse_entry(again.edits[-1].form.add(None), "").values("initrd")


def test_sdbootutil_without_images_is_refused(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.TUMBLEWEED_SYSTEMD_BOOT, {"/proc/cmdline": "root=UUID=other"})
    assert SdbootutilDracut().plan(facts, EarlyPlan()).commands == ()
    with pytest.raises(RefusedError):
        SdbootutilDracut().plan(facts, EarlyPlan(softdeps=("nouveau",)))


def test_a_micro_system_with_grub_is_told_to_use_a_shell_in_a_snapshot(tmp_path: Path) -> None:
    files = {**rows_bls.LEAP.files, "/usr/sbin/transactional-update": ""}
    files["/proc/self/mountinfo"] = rows_bls.mounts(("/", "btrfs", "ro:/dev/vda2"))
    facts = read_facts(build(tmp_path, files))
    loader = choose(facts, LOADERS)
    assert loader.name == "transactional-update"
    assert len(loader.entries(facts)) == 2
    with pytest.raises(RefusedError) as refused:
        loader.plan(facts, BootRequest(ARGUMENTS))
    assert "transactional-update shell" in refused.value.remedy
