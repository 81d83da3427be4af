"""The loaders that read boot loader entries, and systems from images."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host import rows_bls
from tests.host.rows import Link, Programs, Row, build
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootEntry, BootPlan, BootRequest, Loader, Role, Severity
from virtpass.host.detect import choose
from virtpass.host.early import EarlyPlan, edits
from virtpass.host.edits import Written, compose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.forms import (
    EntryOptions,
    EnvironmentTokens,
    LineTokens,
    MarkedBlock,
    OwnFile,
    VariableTokens,
    form_from_json,
    form_to_json,
)
from virtpass.host.initramfs.dracut import Dracut
from virtpass.host.initramfs.sdbootutil import SdbootutilDracut
from virtpass.host.loaders import bls, grubenv, gvariant
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.grub import Grub
from virtpass.host.loaders.grub_bls import CMDLINE, DEFAULTS, ENTRIES, GrubBls
from virtpass.host.loaders.ostree import STAGED, Ostree
from virtpass.host.loaders.sdbootutil import DROP_IN, Sdbootutil
from virtpass.host.loaders.transactional import Transactional
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.files import remove_file, write_state
from virtpass.system.host import Host
from virtpass.transaction.plan import Command

ARGUMENTS = ("intel_iommu=on", "video=efifb:off")
LOADERS: tuple[Loader, ...] = (Ostree(), Transactional(), Sdbootutil(), GrubBls(), Grub())
MACHINE = rows_bls.MACHINE
WORKING = [row for row in rows_bls.ROWS if not row.refused]


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


# all rows


@pytest.mark.parametrize("row", rows_bls.ROWS, ids=lambda row: row.name)
def test_the_loader_is_found_by_its_evidence(tmp_path: Path, row: Row) -> None:
    assert choose(facts_of(tmp_path, row), LOADERS).name == row.loader


@pytest.mark.parametrize("row", rows_bls.ROWS, ids=lambda row: row.name)
def test_nothing_is_planned_without_arguments(tmp_path: Path, row: Row) -> None:
    facts = facts_of(tmp_path, row)
    assert choose(facts, LOADERS).plan(facts, BootRequest(())) == BootPlan()


@pytest.mark.parametrize("row", [row for row in rows_bls.ROWS if row.refused], ids=lambda row: row.name)
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
    "row", [row for row in WORKING if row is not rows_bls.SILVERBLUE], ids=lambda row: row.name
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
    command = loader.one_shot(facts, tried)
    assert command is not None
    assert command.argv[-1] == tried.identifier
    assert command.revert


@pytest.mark.parametrize(
    ("row", "point"),
    [(rows_bls.FEDORA, "/boot"), (rows_bls.TUMBLEWEED_GRUB_BLS, ""), (rows_bls.SILVERBLUE, "")],
    ids=lambda one: getattr(one, "name", ""),
)
def test_a_trial_is_refused_where_it_would_not_be_forgotten(tmp_path: Path, row: Row, point: str) -> None:
    mounted = rows_bls.mounts(("/", "btrfs", "/dev/vda1")) if point else row.files["/proc/self/mountinfo"]
    facts = facts_of(tmp_path, row, {"/proc/self/mountinfo": mounted})
    with pytest.raises(RefusedError) as refused:
        choose(facts, LOADERS).plan(facts, BootRequest(ARGUMENTS, is_trial=True))
    assert refused.value.reference == "no-trial"


# Fedora and RHEL


def test_fedora_gets_edits_of_files_and_runs_nothing(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS))
    assert plan.commands == ()
    assert [(note.reference, note.severity) for note in plan.notes] == [("fallback-kernel", Severity.NOTE)]
    line = str(rows_bls.FEDORA.files[f"{ENTRIES}/{MACHINE}-7.0.10-301.fc44.x86_64.conf"])
    options = next(one for one in line.splitlines() if one.startswith("options ")).removeprefix("options ")
    assert [(edit.path, edit.form) for edit in plan.edits[:-1]] == [
        (f"{ENTRIES}/{MACHINE}-7.0.10-301.fc44.x86_64.conf", EntryOptions(ARGUMENTS)),
        (f"{ENTRIES}/{MACHINE}-6.19.8-300.fc44.x86_64.conf", EntryOptions(ARGUMENTS)),
        # The older of the two, or the installation of a kernel would make all entries anew.
        (DEFAULTS, VariableTokens("GRUB_CMDLINE_LINUX", ARGUMENTS)),
        (CMDLINE, LineTokens(ARGUMENTS, options)),
    ]
    extra = plan.edits[-1]
    assert extra.path == f"{ENTRIES}/{MACHINE}-0-virtpass.conf"
    assert isinstance(extra.form, OwnFile)
    assert extra.form.text == (
        "title Without passthrough: Fedora Linux 44 (Workstation) (7.0.10-301.fc44.x86_64)\n"
        "version 0-virtpass\n"
        "linux /vmlinuz-7.0.10-301.fc44.x86_64\n"
        "initrd /initramfs-7.0.10-301.fc44.x86_64.img\n"
        f"options {options} {OFF}\n"
        "grub_users $grub_users\n"
        "grub_arg --unrestricted\n"
        "grub_class fedora\n"
    )


def test_the_rescue_entry_with_its_own_arguments_stays(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    apply(facts, GrubBls().plan(facts, BootRequest(ARGUMENTS)), rows_bls.FEDORA, {})
    path = f"{ENTRIES}/{MACHINE}-0-rescue.conf"
    assert (facts.host.read_bytes(path) or b"").decode() == rows_bls.FEDORA.files[path]


def test_the_users_values_of_a_key_stay(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    apply(facts, GrubBls().plan(facts, BootRequest(ARGUMENTS)), rows_bls.FEDORA, {})
    for entry in by_role(GrubBls().entries(facts), Role.NORMAL):
        assert [one for one in entry.tokens if one.startswith("video=")] == [
            "video=HDMI-A-1:d",
            "video=efifb:off",
        ]


def test_rhel_8_gets_them_where_its_entries_refer_to(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.ROCKY_8)
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS, with_fallback=False))
    assert [(edit.path, edit.form) for edit in plan.edits] == [
        ("/boot/grub2/grubenv", EnvironmentTokens("kernelopts", ARGUMENTS)),
        (DEFAULTS, VariableTokens("GRUB_CMDLINE_LINUX", ARGUMENTS)),
    ]
    apply(facts, plan, rows_bls.ROCKY_8, {})
    content = facts.host.read_bytes("/boot/grub2/grubenv") or b""
    assert len(content) == 1024
    assert grubenv.variables(content)["kernelopts"] == f"{rows_bls.EL8_OPTIONS} {' '.join(ARGUMENTS)}"


def test_rhel_8_with_uefi_has_its_environment_elsewhere(tmp_path: Path) -> None:
    block = rows_bls.ROCKY_8.files["/boot/grub2/grubenv"]
    more = {
        "/boot/grub2/grubenv": Link("../efi/EFI/rocky/grubenv"),
        "/boot/efi/EFI/rocky/grubenv": block,
    }
    facts = facts_of(tmp_path, rows_bls.ROCKY_8, more)
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS))
    assert plan.edits[0].path == "/boot/efi/EFI/rocky/grubenv"
    apply(facts, plan, rows_bls.ROCKY_8, {})
    assert all("intel_iommu=on" in one.tokens for one in by_role(GrubBls().entries(facts), Role.NORMAL))


def test_variables_of_grub_stay_in_the_fallback(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.ALMA_9)
    form = GrubBls().plan(facts, BootRequest(ARGUMENTS)).edits[-1].form
    assert isinstance(form, OwnFile)
    assert f"rhgb quiet $tuned_params {OFF}\n" in form.text


def test_defaults_that_are_not_plain_get_a_block(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.STREAM_10)
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS))
    (form,) = [edit.form for edit in plan.edits if edit.path == DEFAULTS]
    assert isinstance(form, MarkedBlock)
    assert form.text.startswith("GRUB_CMDLINE_LINUX=")


def test_entries_of_another_system_on_the_same_partition_are_left_alone(tmp_path: Path) -> None:
    other = f"{ENTRIES}/{'0' * 32}-6.1.conf"
    text = rows_bls.fedora_entry("Another", "6.1", "root=UUID=other ro")
    facts = facts_of(tmp_path, rows_bls.FEDORA, {other: text, f"{ENTRIES}/shell.conf": "efi /shell.efi\n"})
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS))
    assert other not in [edit.path for edit in plan.edits]
    assert all(entry.path != other for entry in GrubBls().entries(facts))


def test_without_an_entry_for_this_root_nothing_is_done(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA, {"/etc/machine-id": "", "/proc/cmdline": "root=UUID=new"})
    with pytest.raises(RefusedError) as refused:
        GrubBls().plan(facts, BootRequest(ARGUMENTS))
    assert refused.value.reference == "no-entries"


def test_a_grub_without_boot_loader_entries_is_the_other_module(tmp_path: Path) -> None:
    more = {DEFAULTS: "GRUB_ENABLE_BLSCFG=false\n", "/boot/grub2/grub.cfg": "menuentry 'x' {\n}\n"}
    facts = facts_of(tmp_path, rows_bls.FEDORA, more)
    assert GrubBls().evidence(facts) is None
    assert choose(facts, LOADERS).name == "grub"


def test_an_unreadable_menu_leaves_the_defaults_as_evidence(tmp_path: Path) -> None:
    more = {DEFAULTS: 'GRUB_ENABLE_BLSCFG=false\nGRUB_ENABLE_BLSCFG="true"\n', "/boot/grub2/grub.cfg": ""}
    assert GrubBls().evidence(facts_of(tmp_path, rows_bls.FEDORA, more)) is not None


def test_who_may_not_list_the_entries_is_told_so(tmp_path: Path) -> None:
    files = {path: text for path, text in rows_bls.FEDORA.files.items() if not path.startswith(ENTRIES)}
    facts = read_facts(build(tmp_path, {**files, "/boot/loader": None, "/boot/grub2/grub.cfg": ""}))
    loader = choose(facts, LOADERS)
    assert loader.name == "grub-bls"
    with pytest.raises(FailedError) as failed:
        loader.entries(facts)
    assert failed.value.remedy == "run it as root"


def test_kernels_that_come_later_lose_the_arguments_too(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    loader = GrubBls()
    recorded = apply(facts, loader.plan(facts, BootRequest(ARGUMENTS)), rows_bls.FEDORA, {})
    line = facts.text(CMDLINE)
    later = f"{ENTRIES}/{MACHINE}-7.1.2-300.fc44.x86_64.conf"
    Path(facts.host.path(later)).write_text(rows_bls.fedora_entry("New", "7.1.2-300.fc44.x86_64", line))
    inherited = loader.inherited(facts, recorded)
    assert list(inherited) == [later]
    composed = compose(facts.host, (), {**inherited, **recorded})
    assert composed.drifted == ()
    apply(facts, BootPlan(), rows_bls.FEDORA, {**inherited, **recorded})
    (entry,) = [one for one in loader.entries(facts) if one.path == later]
    assert " ".join(entry.tokens) == line.removesuffix(" " + " ".join(ARGUMENTS))
    assert loader.inherited(facts, {}) == {}


def test_a_fallback_whose_kernel_is_gone_is_none(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    apply(facts, GrubBls().plan(facts, BootRequest(ARGUMENTS)), rows_bls.FEDORA, {})
    assert by_role(GrubBls().entries(facts), Role.FALLBACK)
    Path(facts.host.path("/boot/vmlinuz-7.0.10-301.fc44.x86_64")).unlink()
    assert by_role(GrubBls().entries(facts), Role.FALLBACK) == []


def test_a_menu_that_takes_no_choice_for_one_boot_gets_no_trial(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA, {"/boot/grub2/grub.cfg": "blscfg\n"})
    with pytest.raises(RefusedError) as refused:
        GrubBls().plan(facts, BootRequest(ARGUMENTS, is_trial=True))
    assert refused.value.reference == "no-trial"


def test_an_entry_without_options_is_refused(tmp_path: Path) -> None:
    path = f"{ENTRIES}/{MACHINE}-7.0.10-301.fc44.x86_64.conf"
    facts = facts_of(tmp_path, rows_bls.FEDORA, {path: "title x\nversion 7.0.10\nlinux /vmlinuz\n"})
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS))
    with pytest.raises(RefusedError) as refused:
        compose(facts.host, plan.edits, {})
    assert refused.value.reference == "no-options"


def test_a_title_that_is_not_text_costs_only_the_title(tmp_path: Path) -> None:
    path = f"{ENTRIES}/{MACHINE}-7.0.10-301.fc44.x86_64.conf"
    text = rows_bls.fedora_entry("Fedor\xe4", "7.0.10-301.fc44.x86_64", "root=UUID=x ro").encode("latin-1")
    facts = facts_of(tmp_path, rows_bls.FEDORA, {path: text})
    assert GrubBls().plan(facts, BootRequest(ARGUMENTS)).fallback == "Without passthrough: Fedor?"


def test_options_that_are_not_text_cost_the_fallback_entry(tmp_path: Path) -> None:
    path = f"{ENTRIES}/{MACHINE}-7.0.10-301.fc44.x86_64.conf"
    text = rows_bls.fedora_entry("Fedora", "7.0.10-301.fc44.x86_64", "root=UUID=x \xe4").encode("latin-1")
    plan = GrubBls().plan(facts_of(tmp_path, rows_bls.ALMA_9, {path: text}), BootRequest(ARGUMENTS))
    assert plan.fallback == ""
    assert [note.reference for note in plan.notes] == ["no-fallback"]


# openSUSE


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


def test_a_measured_command_line_is_told_and_predicted_anew_on_the_way_back(tmp_path: Path) -> None:
    more = {"/etc/crypttab": "cr_root /dev/vda2 none tpm2-device=auto\n"}
    plan = Sdbootutil().plan(
        facts_of(tmp_path, rows_bls.TUMBLEWEED_SYSTEMD_BOOT, more), BootRequest(ARGUMENTS)
    )
    assert [note.reference for note in plan.notes] == ["measured"]


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


# images


def test_rpm_ostree_is_told_exactly_what_to_add_and_to_delete(tmp_path: Path) -> None:
    plan = Ostree().plan(facts_of(tmp_path, rows_bls.SILVERBLUE), BootRequest(ARGUMENTS))
    (command,) = plan.commands
    # The host has a video= of its own, beside which "if missing" would add nothing.
    assert command.argv == (
        "rpm-ostree",
        "kargs",
        "--append-if-missing=intel_iommu=on",
        "--append=video=efifb:off",
    )
    assert command.revert == (
        "rpm-ostree",
        "kargs",
        "--delete-if-present=intel_iommu=on",
        "--delete-if-present=video=efifb:off",
    )
    assert command.outputs == ()
    assert [note.reference for note in plan.notes] == ["no-fallback"]


def test_the_staged_deployment_counts_and_the_running_one_is_a_way_back(tmp_path: Path) -> None:
    staged = rows_bls.staged_deployment(("root=UUID=8e1f", "quiet"))
    facts = facts_of(tmp_path, rows_bls.SILVERBLUE, {STAGED: staged})
    entries = Ostree().entries(facts)
    assert [(one.role, one.path.rpartition("/")[2]) for one in entries] == [
        (Role.NORMAL, "staged-deployment"),
        (Role.RECOVERY, "ostree-2.conf"),
        (Role.RECOVERY, "ostree-1.conf"),
    ]
    assert entries[0].tokens == ("root=UUID=8e1f", "quiet")


def test_without_a_staged_deployment_the_running_one_is_what_a_new_one_begins_with(tmp_path: Path) -> None:
    files = {path: content for path, content in rows_bls.SILVERBLUE.files.items() if path != STAGED}
    facts = read_facts(build(tmp_path, files))
    (normal,) = by_role(Ostree().entries(facts), Role.NORMAL)
    assert normal.path == f"{ENTRIES}/ostree-2.conf"
    apply(facts, Ostree().plan(facts, BootRequest(ARGUMENTS)), rows_bls.SILVERBLUE, {})
    (staged,) = by_role(Ostree().entries(facts), Role.NORMAL)
    assert staged.path == STAGED
    assert staged.tokens == (*(one for one in normal.tokens if not one.startswith("ostree=")), *ARGUMENTS)


@pytest.mark.parametrize("content", [b"", b"nonsense", rows_bls.serialized({"kargs": b"x\0\0s"})])
def test_a_staged_deployment_that_is_not_understood_is_said(tmp_path: Path, content: bytes) -> None:
    facts = facts_of(tmp_path, rows_bls.SILVERBLUE, {STAGED: content})
    with pytest.raises(FailedError):
        Ostree().entries(facts)


# formats

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300), max_size=40)


@given(WORDS)
def test_strings_of_a_staged_deployment_are_read_back(words: list[str]) -> None:
    assert gvariant.strings(rows_bls.staged_deployment(words), "kargs") == tuple(words)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_dictionary_or_an_error(content: bytes) -> None:
    try:
        gvariant.strings(content, "kargs")
    except ValueError:
        pass


ENTRY = st.lists(
    st.one_of(
        st.sampled_from(
            [b"options root=x  quiet", b"options\ta=b", b"  options c", b"title T", b"# c", b"linux /v"]
        ),
        st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")),
    ),
    max_size=8,
)
SAFE = st.lists(st.from_regex(r"[a-z][a-z0-9_.]{0,8}(=[a-z0-9:,]{1,8})?", fullmatch=True), max_size=4)


@given(ENTRY, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), SAFE)
def test_an_entry_is_read_without_loss(
    lines: list[bytes], end: bytes, is_ended: bool, words: list[str]
) -> None:
    content = end.join(lines) + (end if is_ended else b"")
    entry = bls.parse_entry(content, f"{ENTRIES}/x.conf")
    assert entry.content == content
    assert all(key and not key.startswith("#") for key, _ in entry.fields)
    form = EntryOptions(tuple(words)).for_base(content)
    try:
        added = form.add(content)
    except RefusedError:
        return
    assert form.remove(added) == content
    assert form.add(added) == added
    assert bls.parse_entry(added, "").options[: len(entry.options)] == entry.options


def test_values_keys_and_options_of_an_entry() -> None:
    text = b'# c\r\ntitle  A B \r\n\tlinux\t/v\r\noptions a="b c"\r\noptions d\r\ninitrd /1\r\ninitrd /2'
    entry = bls.parse_entry(text, "/e/m-1.2+3-1.conf")
    assert entry.title == "A B"
    assert entry.values("initrd") == ("/1", "/2")
    assert entry.value("initrd") == "/2"
    assert entry.options == ('a="b c"', "d")
    assert entry.is_linux
    assert (entry.name, entry.identifier) == ("m-1.2+3-1", "m-1.2.conf")
    made = bls.with_values(entry, {"title": "T", "options": "x", "version": "0", "initrd": None})
    assert made.text == "title T\nlinux /v\noptions x\nversion 0\n"


def test_an_entry_without_title_is_called_by_version_or_name() -> None:
    assert bls.parse_entry(b"version 1.2\n", "/e/a.conf").title == "1.2"
    assert bls.parse_entry(b"", "/e/a.conf").title == "a"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.9", "6.10"),
        ("6.9", "6.9.1"),
        ("6.9~rc1", "6.9"),
        ("6.9", "6.9^git1"),
        ("6.9^git1", "6.9.1"),
        ("rescue", "virtpass"),
        ("a", "1"),
        ("", "0"),
        ("009", "10"),
    ],
)
def test_versions_are_compared_as_rpm_does(older: str, newer: str) -> None:
    assert bls.compare_versions(older, newer) < 0 < bls.compare_versions(newer, older)
    assert bls.compare_versions(newer, newer) == 0


NAMES = st.lists(st.from_regex(r"[a-z0-9.~^+_-]{1,14}", fullmatch=True), min_size=1, max_size=6, unique=True)


@given(NAMES)
def test_versions_have_an_order(versions: list[str]) -> None:
    ordered = sorted(versions, key=bls.version_key)
    assert all(bls.compare_versions(one, two) <= 0 for one, two in pairwise(ordered))


@given(NAMES, st.integers(0, 5))
def test_an_entry_of_ours_comes_last_or_is_refused(names: list[str], number: int) -> None:
    entries = [BlsEntry(f"/e/m-{name}.conf", f"version {name}\n".encode()) for name in names]
    model = entries[number % len(entries)]
    try:
        name = bls.sibling_name(model, "virtpass", entries)
    except RefusedError:
        return
    ours = BlsEntry(f"/e/{name}.conf", b"")
    assert bls.in_menu_order([*entries, ours])[-1] is ours


def test_the_entry_comes_after_the_kernels_and_before_the_rescue_entry_or_after_it() -> None:
    names = (f"{MACHINE}-7.0.10-301.fc44.x86_64", f"{MACHINE}-6.19.8-300.fc44.x86_64")
    kernels = [BlsEntry(f"/e/{name}.conf", f"version {name[33:]}\n".encode()) for name in names]
    assert bls.sibling_name(kernels[0], "virtpass", kernels) == f"{MACHINE}-0-virtpass"


VALUE = st.from_regex(r"[a-z0-9=/ .,:-]{0,200}", fullmatch=True)


@given(VALUE, SAFE, st.integers(0, 600), st.booleans())
def test_an_environment_block_gets_tokens_and_loses_them(
    value: str, words: list[str], padding: int, is_last: bool
) -> None:
    lines = [f"kernelopts={value}", "saved_entry=x"]
    text = "\n".join(["# GRUB Environment Block", *(reversed(lines) if is_last else lines)]) + "\n"
    base = text.encode() + b"#" * padding
    form = EnvironmentTokens("kernelopts", tuple(dict.fromkeys(words))).for_base(base)
    try:
        added = form.add(base)
    except RefusedError as error:
        assert error.reference == "environment-full"
        return
    assert len(added) == len(base)
    assert form.remove(added) == base
    assert form.add(added) == added
    assert grubenv.variables(added)["saved_entry"] == "x"
    assert tokens.split(grubenv.variables(added)["kernelopts"]) == (*tokens.split(value), *form.tokens)
    assert form_from_json(form_to_json(form)) == form


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"kernelopts=x\n",
        b"# GRUB Environment Block\nsaved_entry=x\n###",
        b"# GRUB Environment Block\r\n",
    ],
)
def test_what_is_no_environment_block_is_refused(content: bytes) -> None:
    form = EnvironmentTokens("kernelopts", ("a",))
    with pytest.raises(RefusedError):
        form.add(content)
    assert form.remove(content) == content


def test_variables_of_an_environment_block_lose_their_escapes() -> None:
    assert grubenv.variables(b"# GRUB Environment Block\na=b\\\\c\nd=\nnothing\n###") == {
        "a": "b\\c",
        "d": "",
    }


def test_a_users_line_is_never_taken_for_ours() -> None:
    form = LineTokens(("a",), "root=x quiet").for_base(b"root=x quiet\n")
    added = form.add(b"root=x quiet\n")
    assert form.remove(added) == b"root=x quiet\n"


def test_a_subvolume_is_part_of_the_root() -> None:
    running = ("root=UUID=x", "rootflags=compress,subvol=a")
    assert bls.is_of_root(("root=UUID=x", "rootflags=subvol=a"), running)
    assert not bls.is_of_root(("root=UUID=x", "rootflags=subvol=b"), running)
    assert not bls.is_of_root(("quiet",), running)
    assert bls.is_of_root(("quiet",), ())
