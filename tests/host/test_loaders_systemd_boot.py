"""systemd-boot and the tools that write its entries, on trees of hosts, with what these tools do played."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host import rows_systemd_boot
from tests.host.rows import LOADER_INFO, PROGRAM, Programs, Row, build, loader_info
from tests.host.rows_systemd_boot import MACHINE, ROOT, unified
from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootEntry, BootPlan, BootRequest, Loader, Role
from virtpass.host.edits import compose
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.forms import Form, JsonTokens, LineTokens, form_from_json, form_to_json
from virtpass.host.loaders import LOADERS, sd_boot
from virtpass.host.loaders.bls import list_entries, parse_entry, version_key
from virtpass.host.loaders.proxmox import Proxmox
from virtpass.host.loaders.uki import Uki
from virtpass.host.loaders.uki_image import read_command_line
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.files import remove_file, write_state
from virtpass.system.host import Host

OURS = ("intel_iommu=on", "iommu=pt")
REQUEST = BootRequest(OURS)
TRIAL_REQUEST = BootRequest(OURS, is_trial=True)
ROWS = {row.name: row for row in rows_systemd_boot.ROWS}
LOADER_NAMES = {loader.name: loader for loader in LOADERS}
DEBIAN, BOOKWORM = ROWS["debian-13-systemd-boot"], ROWS["debian-12-systemd-boot"]
ENTRIES = "/boot/efi/loader/entries"
# Their entries lie on partitions that nobody sees, or are GRUB's.
SEEN = [row for row in rows_systemd_boot.ROWS if not row.name.startswith("proxmox")]
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


# every host


@pytest.mark.parametrize("row", rows_systemd_boot.ROWS, ids=lambda row: row.name)
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


@pytest.mark.parametrize("row", rows_systemd_boot.ROWS, ids=lambda row: row.name)
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
    command = loader.one_shot(facts, entry)
    assert command is not None
    assert command.argv == ("bootctl", "set-oneshot", entry.path.rpartition("/")[2])
    assert command.revert == ("bootctl", "set-oneshot", "")
    assert command.outputs == ()


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
    command = sd_boot.one_shot(facts, BootEntry("", "x.conf", "", (), Role.TRIAL))
    assert command.revert == ("bootctl", "set-oneshot", "auto-reboot-to-firmware-setup")


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


# kernel-install


def test_debian_gives_its_own_initramfs_to_kernel_install(tmp_path: Path) -> None:
    facts = made(DEBIAN, tmp_path)
    plan = loader_of(DEBIAN).plan(facts, REQUEST)
    assert [edit.path for edit in plan.edits] == [
        "/etc/kernel/cmdline",
        f"{ENTRIES}/virtpass-fallback.conf",
    ]
    old, new = "6.12.94+deb13-amd64", "6.12.107+deb13-amd64"
    assert {command.argv for command in plan.commands} == {
        ("kernel-install", "add", one, f"/boot/vmlinuz-{one}", f"/boot/initrd.img-{one}")
        for one in (old, new)
    }
    outputs = {pattern for command in plan.commands for pattern in command.outputs}
    assert f"/boot/efi/{MACHINE}/{new}/*" in outputs
    assert f"{ENTRIES}/{MACHINE}-{new}*.conf" in outputs
    assert not plan.builds_initramfs
    assert plan.fallback == "Without passthrough: Debian GNU/Linux 13 (trixie)"


@pytest.mark.skipif(not shutil.which("kernel-install"), reason="there is no kernel-install to ask")
@pytest.mark.parametrize("name", ["initrd.img-6.1.0-37-amd64", ""])
def test_the_real_kernel_install_writes_what_the_rows_say(name: str, tmp_path: Path) -> None:
    version = "6.1.0-37-amd64"
    facts = made(BOOKWORM, tmp_path)
    facts = put(facts, "/etc/kernel/cmdline", f"{ROOT}\n\nro  quiet iommu=pt\n")
    words = ("add", version, f"/boot/vmlinuz-{version}", *((f"/boot/{name}",) if name else ()))
    entry = f"/efi/loader/entries/{MACHINE}-{version}.conf"
    assert BOOKWORM.programs["kernel-install"](facts.host, words) == 0
    expected = parse_entry(facts.host.read_bytes(entry) or b"", entry)
    environment = {
        "PATH": os.environ["PATH"],
        "BOOT_ROOT": facts.host.path("/efi"),
        "MACHINE_ID": MACHINE,
        "KERNEL_INSTALL_CONF_ROOT": facts.host.path("/etc/kernel"),
        "KERNEL_INSTALL_PLUGINS": "/usr/lib/kernel/install.d/90-loaderentry.install",
    }
    paths = [facts.host.path(word) if word.startswith("/") else word for word in words]
    subprocess.run(["kernel-install", *paths], env=environment, check=True, capture_output=True)
    found = parse_entry(facts.host.read_bytes(entry) or b"", entry)
    assert found.options == expected.options
    assert [path.rpartition("/")[2] for path in found.values("initrd")] == [
        path.rpartition("/")[2] for path in expected.values("initrd")
    ]
    assert found.value("linux").endswith(expected.value("linux"))


def test_the_fallback_starts_the_newest_kernel_with_its_files(tmp_path: Path) -> None:
    facts = made(DEBIAN, tmp_path)
    text = loader_of(DEBIAN).plan(facts, REQUEST).edits[1].form.add(None).decode()
    assert f"linux /{MACHINE}/6.12.107+deb13-amd64/linux\n" in text
    # As kernel-install writes it from now on, not the two that are there.
    initrd = f"initrd /{MACHINE}/6.12.107+deb13-amd64/initrd.img-6.12.107+deb13-amd64\n"
    assert text.count("initrd /") == text.count(initrd) == 1
    assert f"options {ROOT} ro quiet systemd.machine_id={MACHINE} {OFF}\n" in text


def test_the_fallback_is_without_what_an_earlier_change_added(tmp_path: Path) -> None:
    facts, loader = made(DEBIAN, tmp_path), loader_of(DEBIAN)
    applied(DEBIAN, facts.host, loader.plan(facts, BootRequest(("iommu=pt", "pci=noats"))))
    request = BootRequest(OURS, present=("iommu=pt", "pci=noats"))
    plan = loader.plan(read_facts(facts.host), request)
    assert b"noats" not in plan.edits[1].form.add(None)
    assert b"iommu=pt" not in plan.edits[1].form.add(None)
    assert plan.edits[0].form == LineTokens(OURS, f"{ROOT} ro quiet systemd.machine_id={MACHINE}")


def test_a_missing_command_line_begins_with_that_of_the_newest_entry(tmp_path: Path) -> None:
    facts, loader = made(BOOKWORM, tmp_path), loader_of(BOOKWORM)
    # Booted by the fallback, or edited at the boot menu: what runs is not what lasts.
    facts = put(facts, "/proc/cmdline", f"initrd=\\x {ROOT} ro single {OFF}\n")
    edit = loader.plan(facts, REQUEST).edits[0]
    assert edit.form.add(None).decode() == f"{ROOT} ro quiet systemd.machine_id={MACHINE} {' '.join(OURS)}\n"


def test_a_command_line_without_root_is_never_made(tmp_path: Path) -> None:
    facts, loader = made(BOOKWORM, tmp_path), loader_of(BOOKWORM)
    entry = f"/efi/loader/entries/{MACHINE}-6.1.0-37-amd64.conf"
    facts = put(facts, "/proc/cmdline", "quiet\n")
    facts = put(facts, entry, (facts.host.read(entry) or "").replace(ROOT, ""))
    assert refusal(loader, facts) == "no-root"


@pytest.mark.parametrize("line", ["ro quiet", f"{ROOT} ro", "root=UUID=another ro quiet", "", "# nothing\n"])
def test_a_command_line_that_would_drop_arguments_is_refused(line: str, tmp_path: Path) -> None:
    facts = put(made(DEBIAN, tmp_path), "/etc/kernel/cmdline", line)
    assert refusal(loader_of(DEBIAN), facts) == "entry-differs"


@pytest.mark.parametrize(
    "content",
    [
        f"{ROOT} ro quiet",
        f"{ROOT} ro quiet\r\n".encode(),
        f"# mine\n{ROOT}\n\nro quiet\n",
        f'{ROOT} ro quiet dyndbg="file x +p" \t\n\n',
        f"{ROOT} ro quiet # caf".encode() + b"\xe9\n",
    ],
    ids=["no final newline", "CRLF", "several lines", "quotes and blanks", "Latin-1"],
)
def test_odd_command_lines_keep_what_they_hold(content: str | bytes, tmp_path: Path) -> None:
    facts = put(made(DEBIAN, tmp_path), "/etc/kernel/cmdline", content)
    before = facts.host.read_bytes("/etc/kernel/cmdline")
    assert before is not None
    form = loader_of(DEBIAN).plan(facts, REQUEST).edits[0].form.for_base(before)
    after = form.add(before)
    assert after != before
    assert form.add(after) == after
    assert form.remove(after) == before


def test_a_kernel_that_is_gone_is_named(tmp_path: Path) -> None:
    facts = drop(made(DEBIAN, tmp_path), "/boot/vmlinuz-6.12.94+deb13-amd64")
    assert refusal(loader_of(DEBIAN), facts) == "no-kernel-image"


def test_an_image_in_the_folder_of_the_modules_will_do(tmp_path: Path) -> None:
    """Debian's packages from 7.3 on."""
    version = "6.12.94+deb13-amd64"
    facts = put(made(DEBIAN, tmp_path), f"/usr/lib/modules/{version}/vmlinuz", "kernel")
    plan = loader_of(DEBIAN).plan(facts, REQUEST)
    assert f"/usr/lib/modules/{version}/vmlinuz" in {command.argv[3] for command in plan.commands}


def test_another_layout_is_refused(tmp_path: Path) -> None:
    facts = put(made(DEBIAN, tmp_path), "/etc/kernel/install.conf", "# mine\nlayout=uki\n")
    assert refusal(loader_of(DEBIAN), facts) == "install-layout"


def test_entries_of_others_are_left_alone(tmp_path: Path) -> None:
    facts, loader = made(DEBIAN, tmp_path), loader_of(DEBIAN)
    facts = put(facts, f"{ENTRIES}/mine.conf", f"title Mine\nlinux /x\noptions {ROOT} debug\n")
    facts = put(facts, f"{ENTRIES}/a-0.conf", "title Other\nlinux /a/0/linux\noptions root=LABEL=other\n")
    plan = loader.plan(facts, REQUEST)
    assert [note.reference for note in plan.notes] == ["hand-made-entry", "fallback-kernel"]
    assert {edit.path for edit in plan.edits}.isdisjoint({f"{ENTRIES}/mine.conf", f"{ENTRIES}/a-0.conf"})
    found = by_role(loader, facts)
    assert [entry.identifier for entry in found[Role.OTHER]] == ["mine.conf"]
    assert len(found[Role.NORMAL]) == 2


def test_boot_counting_and_rescue_entries_are_known(tmp_path: Path) -> None:
    facts, loader = made(DEBIAN, tmp_path), loader_of(DEBIAN)
    old = f"{ENTRIES}/{MACHINE}-6.12.94+deb13-amd64"
    text = facts.text(f"{old}.conf")
    facts = put(drop(facts, f"{old}.conf"), f"{old}+3-1.conf", text)
    rescue = f"title Rescue\nlinux /{MACHINE}/0-rescue/linux\noptions {ROOT} ro\n"
    facts = put(facts, f"{ENTRIES}/{MACHINE}-0-rescue.conf", rescue)
    found = by_role(loader, facts)
    assert {entry.identifier for entry in found[Role.NORMAL]} == {
        f"{MACHINE}-6.12.94+deb13-amd64.conf",
        f"{MACHINE}-6.12.107+deb13-amd64.conf",
    }
    assert [entry.title for entry in found[Role.RECOVERY]] == ["Rescue"]


def test_a_new_initramfs_is_taken_along_even_without_arguments(tmp_path: Path) -> None:
    facts, loader = made(BOOKWORM, tmp_path), loader_of(BOOKWORM)
    plan = loader.plan(facts, BootRequest((), rebuilds_initramfs=True))
    # Not the running line, which the tool would take.
    assert plan.edits[0].form.add(None).decode() == f"{ROOT} ro quiet systemd.machine_id={MACHINE}\n"
    assert len(plan.commands) == 1
    trial = loader.plan(facts, BootRequest(OURS, is_trial=True, rebuilds_initramfs=True))
    assert trial.commands == plan.commands
    assert trial.edits[0] == plan.edits[0]
    assert trial.tried


def test_endeavouros_builds_images_with_the_entries(tmp_path: Path) -> None:
    row = ROWS["endeavouros"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [command.argv for command in plan.commands] == [("reinstall-kernels",)]
    assert plan.builds_initramfs
    assert [entry.title for entry in by_role(loader_of(row), facts)[Role.RECOVERY]] == [
        "EndeavourOS (fallback)"
    ]


# what stays of a command line that we made


@pytest.mark.parametrize(
    ("running", "stays"),
    [((ROOT, "quiet"), False), ((ROOT, *OURS), True), ((ROOT, OFF), True), ((ROOT, TRIAL), True)],
)
def test_a_made_command_line_stays_while_ours_would_come_back(
    running: tuple[str, ...], *, stays: bool, tmp_path: Path
) -> None:
    facts, loader = made(BOOKWORM, tmp_path), loader_of(BOOKWORM)
    composed = compose(facts.host, loader.plan(facts, REQUEST).edits[:1], {})
    (change,) = composed.changes
    assert change.after is not None
    Path(facts.host.path("/etc/kernel")).mkdir()
    write_state(facts.host, change.path, change.after)
    undone = compose(facts.host, (), {one.path: one for one in composed.written}, (), running)
    (back,) = undone.changes
    assert undone.written == ()
    if not stays:
        assert back.after is None
        return
    assert back.after is not None
    write_state(facts.host, back.path, back.after)
    assert facts.text("/etc/kernel/cmdline") == f"{ROOT} ro quiet systemd.machine_id={MACHINE}"


def test_a_second_change_begins_with_what_the_first_one_began_with(tmp_path: Path) -> None:
    facts, loader = made(BOOKWORM, tmp_path), loader_of(BOOKWORM)
    plan = loader.plan(facts, BootRequest(("iommu=pt",)))
    recorded = {one.path: one for one in compose(facts.host, plan.edits, {}).written}
    applied(BOOKWORM, facts.host, plan)
    # Even if nobody tells that iommu=pt is not the user's own.
    second = loader.plan(read_facts(facts.host), BootRequest(("intel_iommu=on",)))
    changes = compose(facts.host, second.edits[:1], recorded).changes
    (change,) = [one for one in changes if one.path == "/etc/kernel/cmdline"]
    assert change.after is not None
    assert b"iommu=pt" not in change.after.content
    assert change.after.content.endswith(b" intel_iommu=on\n")
    remove_file(facts.host, "/etc/kernel/cmdline")


# entries by hand


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


# kernelstub


def test_kernelstub_writes_the_file_as_we_have_left_it(tmp_path: Path) -> None:
    row = ROWS["pop-os"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [command.argv for command in plan.commands] == [("kernelstub",)]
    (change, *_) = compose(facts.host, plan.edits, {}).changes
    assert change.after is not None
    applied(row, facts.host, plan)
    assert facts.host.read_bytes("/etc/kernelstub/configuration") == change.after.content
    assert json.loads(change.after.content)["user"]["kernel_options"][-2:] == list(OURS)


@pytest.mark.parametrize("name", ["manage_mode", "setup_loader", "unified_kernel"])
def test_kernelstub_in_other_modes_is_refused(name: str, tmp_path: Path) -> None:
    row, path = ROWS["pop-os"], "/etc/kernelstub/configuration"
    facts = made(row, tmp_path)
    data = json.loads(facts.text(path))
    data["user"][name] = not data["user"].get(name, False)
    assert refusal(loader_of(row), put(facts, path, json.dumps(data, indent=2))) == "kernelstub-mode"


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        (lambda text: text + "\n", "kernelstub-layout"),
        (lambda text: text.replace("  ", "\t"), "kernelstub-layout"),
        (lambda text: text[:-1], "not-json"),
        (lambda text: "[]", "not-json"),
        (lambda text: text.replace('      "loglevel=0",\n', ""), "entry-differs"),
    ],
)
def test_kernelstub_files_that_are_not_as_it_writes_them_are_refused(
    change: object, reference: str, tmp_path: Path
) -> None:
    row, path = ROWS["pop-os"], "/etc/kernelstub/configuration"
    facts = made(row, tmp_path)
    assert callable(change)
    assert refusal(loader_of(row), put(facts, path, change(facts.text(path)))) == reference


_WORDS = st.text('abc=\\"é\n,]{} ', min_size=1, max_size=6)
_LAYOUTS = st.sampled_from([None, 0, 1, 2, 4, "\t"])


@settings(max_examples=200, deadline=None)
@given(st.lists(_WORDS, max_size=4), _LAYOUTS, st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_list_in_json_is_edited_without_loss(
    words: list[str], indent: int | str | None, is_ascii: bool, is_last: bool, end: str
) -> None:
    data = {"default": {"options": ["quiet"]}, "user": {"options": words}}
    if not is_last:
        data["user"]["other"] = ['x", "options": [']
    text = json.dumps(data, indent=indent, ensure_ascii=is_ascii).replace("\n", end)
    base = text.encode()
    form = JsonTokens(("user", "options"), OURS).for_base(base)
    assert form_from_json(json.loads(json.dumps(form_to_json(form)))) == form
    after = form.add(base)
    assert json.loads(after)["user"]["options"] == [*words, *OURS]
    assert json.loads(after)["default"] == data["default"]
    assert form.add(after) == after
    assert form.remove(after) == base
    if indent == 2 and end == "\n":
        data["user"]["options"] = [*words, *OURS]
        assert after.decode() == json.dumps(data, indent=2, ensure_ascii=is_ascii)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"user": {}}', b'{"user": {"options": "a b"}}', b'{"user": {"options": [1]}}', b"\xff{}"],
)
def test_other_json_is_refused_and_left_alone(content: bytes) -> None:
    form: Form = JsonTokens(("user", "options"), OURS)
    with pytest.raises(RefusedError):
        form.add(content)
    assert form.remove(content) == content


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(RefusedError):
        JsonTokens(("a",), OURS).add(b'{"a": [], "a": []}')


# unified kernel images


def test_the_command_line_in_an_image_is_read(tmp_path: Path) -> None:
    host = build(tmp_path, {"/a.efi": unified(f"{ROOT} rw quiet"), "/b.efi": b"MZ", "/c.efi": b"no image"})
    assert read_command_line(host, "/a.efi") == (ROOT, "rw", "quiet")
    assert [read_command_line(host, path) for path in ("/b.efi", "/c.efi", "/d.efi")] == [None] * 3


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 200))
def test_a_broken_image_is_no_reason_to_fall(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    content = bytearray(unified(f"{ROOT} rw"))
    content[at : at + len(noise)] = noise
    root = tmp_path_factory.getbasetemp() / "images"
    host = build(root, {"/x.efi": bytes(content)})
    found = read_command_line(host, "/x.efi")
    assert found is None or isinstance(found, tuple)


def test_images_are_built_with_the_arguments(tmp_path: Path) -> None:
    row = ROWS["arch-uki"]
    facts = made(row, tmp_path)
    plan = loader_of(row).plan(facts, REQUEST)
    assert [command.argv for command in plan.commands] == [("mkinitcpio", "-P")]
    assert plan.builds_initramfs
    assert [edit.path for edit in plan.edits] == [
        "/etc/kernel/cmdline",
        "/etc/virtpass/fallback-cmdline",
        "/etc/mkinitcpio.d/linux.preset",
    ]
    assert refusal(loader_of(row), facts, TRIAL_REQUEST) == "no-trial"


def test_a_drop_in_is_written_beside_those_of_others(tmp_path: Path) -> None:
    row = ROWS["arch-uki"]
    facts = drop(made(row, tmp_path), "/etc/kernel/cmdline")
    facts = put(facts, "/etc/cmdline.d/root.conf", f"{ROOT} rw\n")
    assert loader_of(row).plan(facts, REQUEST).edits[0].path == "/etc/cmdline.d/zz-virtpass.conf"
    # Our own drop-in alone would be the whole line.
    facts = put(drop(facts, "/etc/cmdline.d/root.conf"), "/etc/cmdline.d/zz-virtpass.conf", "iommu=pt\n")
    edit = loader_of(row).plan(facts, REQUEST).edits[0]
    assert edit.form.add(None).decode() == f"{ROOT} rw quiet intel_iommu=on iommu=pt\n"


def test_images_without_root_are_refused(tmp_path: Path) -> None:
    row = ROWS["arch-uki"]
    facts = put(made(row, tmp_path), "/etc/kernel/cmdline", "rw quiet\n")
    assert refusal(loader_of(row), facts) == "no-root"


def test_a_preset_with_a_command_line_of_its_own_is_refused(tmp_path: Path) -> None:
    row, path = ROWS["arch-uki"], "/etc/mkinitcpio.d/linux.preset"
    facts = made(row, tmp_path)
    text = facts.text(path)
    for more in (
        "default_cmdline=/etc/mine\n",
        'default_options="--cmdline /etc/mine"\n',
        "ALL_cmdline=/x\n",
    ):
        assert refusal(loader_of(row), put(facts, path, f"{text}\n{more}")) == "preset-cmdline"
    plan = loader_of(row).plan(put(facts, path, f"{text}\nPRESETS=('default')\n"), REQUEST)
    assert [note.reference for note in plan.notes] == ["no-fallback"]


# Proxmox VE


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


def test_unified_images_that_nothing_signs_are_not_built_under_secure_boot(tmp_path: Path) -> None:
    (row,) = (one for one in rows_systemd_boot.ROWS if one.name == "arch-uki")
    secure_boot = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    files = {**row.files, secure_boot: b"\6\0\0\0\1"}
    host = build(tmp_path, files)
    with pytest.raises(RefusedError, match="nothing here signs images that are built anew"):
        Uki().plan(read_facts(host), BootRequest(("iommu=pt",)))
    build(tmp_path, {"/etc/initcpio/post/sbctl": PROGRAM})
    plan = Uki().plan(read_facts(host), BootRequest(("iommu=pt",)))
    assert "secure-boot" in [note.reference for note in plan.notes]


def test_an_empty_list_of_partitions_is_no_evidence_for_proxmox(tmp_path: Path) -> None:
    (row,) = (one for one in rows_systemd_boot.ROWS if one.name == "proxmox-both")
    host = build(tmp_path, {**row.files, "/etc/kernel/proxmox-boot-uuids": "\n"})
    assert Proxmox().evidence(read_facts(host)) is None
