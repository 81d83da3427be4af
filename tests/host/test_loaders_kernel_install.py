"""systemd-boot with kernel-install: Debian, EndeavourOS."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.host.rows_systemd_boot import MACHINE, ROOT
from tests.host.systemd_boot_trees import (
    BOOKWORM,
    DEBIAN,
    ENTRIES,
    OURS,
    REQUEST,
    ROWS,
    applied,
    by_role,
    drop,
    loader_of,
    made,
    put,
    refusal,
)
from virtpass.host.boot import OFF, TRIAL, BootRequest, Role
from virtpass.host.edits import compose
from virtpass.host.facts import read_facts
from virtpass.host.forms import LineTokens
from virtpass.host.loaders.bls import parse_entry
from virtpass.system.files import remove_file, write_state


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


def test_a_fallback_whose_kernel_is_gone_is_none(tmp_path: Path) -> None:
    facts, loader = made(DEBIAN, tmp_path), loader_of(DEBIAN)
    applied(DEBIAN, facts.host, loader.plan(facts, REQUEST))
    assert by_role(loader, facts)[Role.FALLBACK]
    shutil.rmtree(facts.host.path(f"/boot/efi/{MACHINE}/6.12.107+deb13-amd64"))
    assert Role.FALLBACK not in by_role(loader, facts)


@pytest.mark.parametrize(
    ("files", "is_refused"),
    [
        ({"/etc/kernel/install.conf": "# mine\nlayout=uki\n"}, True),
        ({"/usr/local/lib/kernel/install.conf": "layout = 'uki'\n"}, True),
        ({"/etc/kernel/install.conf": "layout=bls\n", "/run/kernel/install.conf": "layout=uki\n"}, False),
        ({"/etc/kernel/install.conf.d/50-mine.conf": "layout=uki\n"}, True),
        ({"/etc/kernel/install.conf.d/50-mine.bak": "layout=uki\n"}, False),
        # The last one counts, and one in /etc hides that of its name elsewhere.
        (
            {
                "/etc/kernel/install.conf": "layout=uki\n",
                "/usr/lib/kernel/install.conf.d/90-own.conf": "layout=auto\n",
                "/etc/kernel/install.conf.d/10-mine.conf": "layout=uki\n",
            },
            False,
        ),
        (
            {
                "/usr/lib/kernel/install.conf.d/90-own.conf": "layout=uki\n",
                "/etc/kernel/install.conf.d/90-own.conf": "#layout=uki\n",
            },
            False,
        ),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, files: dict[str, str], is_refused: bool) -> None:
    facts = made(DEBIAN, tmp_path)
    for path, text in files.items():
        facts = put(facts, path, text)
    if is_refused:
        assert refusal(loader_of(DEBIAN), facts) == "install-layout"
    else:
        assert loader_of(DEBIAN).plan(facts, REQUEST).commands


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
