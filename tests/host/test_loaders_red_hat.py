"""GRUB that reads boot loader entries: Fedora, RHEL and its family."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.host import rows_bls
from tests.host.bls_trees import ARGUMENTS, LOADERS, MACHINE, WORKING, apply, by_role, facts_of
from tests.host.rows import Link, Row, build
from virtpass.host.boot import OFF, BootPlan, BootRequest, Role, Severity
from virtpass.host.detect import choose
from virtpass.host.edits import compose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.forms import (
    EntryOptions,
    EnvironmentTokens,
    LineTokens,
    MarkedBlock,
    OwnFile,
    VariableTokens,
)
from virtpass.host.loaders import grubenv
from virtpass.host.loaders.grub_bls import CMDLINE, ENTRIES, GrubBls
from virtpass.host.loaders.grub_defaults import DEFAULTS
from virtpass.system.errors import FailedError, RefusedError


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
    assert extra.path == f"{ENTRIES}/~virtpass-0-{MACHINE[:8]}.conf"
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


def mkconfig(facts: HostFacts) -> None:
    """Do what grub2-mkconfig does to entries there: those of the machine get the options of the defaults."""
    machine = facts.text("/etc/machine-id")
    script = f'. "{facts.host.path(DEFAULTS)}"; printf %s "$GRUB_CMDLINE_LINUX"'
    line = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
    for name in facts.host.names(ENTRIES):
        if name.startswith(f"{machine}-"):
            path = Path(facts.host.path(f"{ENTRIES}/{name}"))
            path.write_text(re.sub(r"(?m)^options.*$", f"options root=UUID=x ro {line}", path.read_text()))


@pytest.mark.parametrize("is_trial", [False, True], ids=["fallback", "trial"])
def test_what_mkconfig_does_to_the_entries_of_the_machine_leaves_ours_alone(
    is_trial: bool,
    tmp_path: Path,
) -> None:
    facts = facts_of(tmp_path, rows_bls.FEDORA)
    plan = GrubBls().plan(facts, BootRequest(ARGUMENTS, is_trial=is_trial))
    apply(facts, plan, rows_bls.FEDORA, {})
    kind = Role.TRIAL if is_trial else Role.FALLBACK
    before = by_role(GrubBls().entries(facts), kind)
    assert before
    mkconfig(facts)
    assert by_role(GrubBls().entries(facts), kind) == before
    normal = by_role(GrubBls().entries(facts), Role.NORMAL)
    assert all(("intel_iommu=on" in entry.tokens) is not is_trial for entry in normal)


@pytest.mark.parametrize("row", WORKING, ids=lambda row: row.name)
@pytest.mark.parametrize("is_trial", [False, True], ids=["fallback", "trial"])
def test_grub_never_meets_a_line_that_begins_with_a_blank(row: Row, is_trial: bool, tmp_path: Path) -> None:
    """Its reader of boot loader entries stops with "unaligned pointer" at one."""
    facts = facts_of(tmp_path, row)
    if not facts.loader.startswith("GRUB") and row is not rows_bls.ALMA_9:
        return
    try:
        plan = choose(facts, LOADERS).plan(facts, BootRequest(ARGUMENTS, is_trial=is_trial))
    except RefusedError as error:
        assert error.reference == "no-trial"
        return
    texts = [
        edit.form.text for edit in plan.edits if isinstance(edit.form, OwnFile) and "entries" in edit.path
    ]
    assert texts
    assert not any(line[:1].isspace() for text in texts for line in text.split("\n") if line)


@pytest.mark.parametrize(
    ("defaults", "block", "seen"),
    [
        ("GRUB_TIMEOUT=5\n", {}, ""),
        ("GRUB_TIMEOUT=0\n", {}, "GRUB_TIMEOUT=0"),
        ("GRUB_TIMEOUT=5\n", {"menu_auto_hide": "1"}, "menu_auto_hide=1"),
        ("GRUB_TIMEOUT=5\n", {"menu_auto_hide": "0"}, ""),
    ],
)
def test_a_menu_that_fedora_hides_is_told(
    defaults: str, block: dict[str, str], seen: str, tmp_path: Path
) -> None:
    more: dict[str, str | bytes | Link | None] = {
        DEFAULTS: defaults,
        "/boot/grub2/grubenv": rows_bls.environment(**block),
    }
    plan = GrubBls().plan(facts_of(tmp_path, rows_bls.FEDORA, more), BootRequest(ARGUMENTS))
    notes = [note.text for note in plan.notes if note.reference == "hidden-menu"]
    assert [seen in text for text in notes] == ([True] if seen else [])


@pytest.mark.parametrize("content", [None, b""])
def test_a_choice_that_cannot_be_read_is_not_taken_for_none(content: bytes | None, tmp_path: Path) -> None:
    files = {
        path: text for path, text in rows_bls.FEDORA.files.items() if not path.startswith("/boot/grub2/")
    }
    facts = read_facts(build(tmp_path, {**files, "/boot/grub2": None}))
    assert GrubBls().chosen(facts) is None
    more = {"/boot/grub2/grub.cfg": "blscfg\n"} | (
        {} if content is None else {"/boot/grub2/grubenv": content}
    )
    assert GrubBls().chosen(read_facts(build(tmp_path, more))) == ""


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
