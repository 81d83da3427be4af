"""Menus that a tool writes or somebody keeps by hand: extlinux, Limine, rEFInd."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.grub_trees import ARGUMENTS, BY_NAME, REQUEST, applied, refused
from tests.host.rows import Programs, Row, build
from tests.host.rows_grub import ROOT
from virtpass.host.boot import BootRequest
from virtpass.host.facts import read_facts
from virtpass.host.loaders.extlinux import Extlinux
from virtpass.host.loaders.limine import Limine
from virtpass.host.loaders.refind import Refind, parse_lines


def test_alpine_gets_a_label_that_starts_the_same_kernel(tmp_path: Path) -> None:
    row = BY_NAME["alpine-extlinux"]
    host = build(tmp_path, row.files)
    applied(host, Extlinux(), REQUEST, Programs(row.programs))
    options = f"{ROOT} modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4"
    label = f"  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n  APPEND {options} virtpass=off\n"
    assert label in host.path("") + (host.read("/boot/extlinux.conf") or "") + "\n"
    # With other arguments the way back stays what it was.
    applied(host, Extlinux(), BootRequest(("other=1",), present=ARGUMENTS), Programs(row.programs))
    assert label in (host.read("/boot/extlinux.conf") or "") + "\n"


def test_a_menu_that_update_extlinux_leaves_alone_is_refused(tmp_path: Path) -> None:
    row = BY_NAME["alpine-extlinux"]
    text = str(row.files["/etc/update-extlinux.conf"]).replace("overwrite=1", "overwrite=0")
    files = {**row.files, "/etc/update-extlinux.conf": text}
    assert refused(Row("", files), tmp_path).reference == "extlinux-overwrite"


def test_labels_of_other_systems_are_left_alone(tmp_path: Path) -> None:
    row = BY_NAME["arch-syslinux-mkinitcpio"]
    host = build(tmp_path, row.files)
    applied(host, Extlinux(), REQUEST, Programs(row.programs))
    assert "APPEND root=/dev/sdb1 ro\n" in (host.read("/boot/syslinux/syslinux.cfg") or "")


# Limine


def test_a_drop_in_reaches_limine_unless_it_is_overruled(tmp_path: Path) -> None:
    paths = {
        "cachyos-limine": "/etc/limine-entry-tool.d/zz-virtpass.conf",
        "cachyos-limine-assigned": "/etc/default/limine",
    }
    for name, path in paths.items():
        facts = read_facts(build(tmp_path / name, BY_NAME[name].files))
        plan = Limine().plan(facts, REQUEST)
        assert [edit.path for edit in plan.edits] == [path]
        assert [command.argv for command in plan.commands] == [("limine-update",)]


def test_a_kernel_with_a_command_line_of_its_own_is_refused(tmp_path: Path) -> None:
    files = {
        **BY_NAME["cachyos-limine"].files,
        "/etc/limine-entry-tool.conf": 'KERNEL_CMDLINE["linux"]="x"\n',
    }
    assert refused(Row("", files), tmp_path).reference == "limine-per-kernel"


@pytest.mark.parametrize(
    "settings",
    [
        "ESP_PATH=/boot\n",
        '# KERNEL_CMDLINE[default]="root=UUID=x"\n',
        'KERNEL_CMDLINE[default]+=" quiet splash"\n',
        f'KERNEL_CMDLINE[default]="{ROOT}"\nKERNEL_CMDLINE[default]="quiet"\n',
    ],
)
def test_a_tool_that_asks_the_running_kernel_is_not_kept_from_it(settings: str, tmp_path: Path) -> None:
    """With anything in KERNEL_CMDLINE[default] it would not ask any more, and lose root=."""
    row = BY_NAME["cachyos-limine"]
    error = refused(Row("", {**row.files, "/etc/default/limine": settings}), tmp_path)
    assert error.reference == "no-root"
    assert f'KERNEL_CMDLINE[default]="quiet nowatchdog splash rw rootflags=subvol=/@ {ROOT}"' in error.remedy


def test_the_command_line_may_come_from_the_vendor(tmp_path: Path) -> None:
    files = {
        **BY_NAME["cachyos-limine"].files,
        "/etc/default/limine": "ESP_PATH=/boot\n",
        "/usr/share/limine-entry-tool.d/10-root.conf": f"KERNEL_CMDLINE[\"default\"]='{ROOT} rw'\n",
    }
    assert Limine().plan(read_facts(build(tmp_path, files)), REQUEST).edits


def test_snapshots_are_no_entries_of_this_system(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, BY_NAME["cachyos-limine"].files))
    assert [entry.title for entry in Limine().entries(facts)] == ["linux-cachyos"]


# rEFInd


def test_only_the_first_line_is_changed(tmp_path: Path) -> None:
    row = BY_NAME["arch-refind"]
    host = build(tmp_path, row.files)
    before = str(row.files["/boot/refind_linux.conf"]).splitlines()
    applied(host, Refind(), REQUEST, Programs(row.programs))
    after = (host.read("/boot/refind_linux.conf") or "").splitlines()
    assert after[0] == f'"Boot with standard options"  "{ROOT} ro quiet splash  intel_iommu=on iommu=pt"'
    assert after[1:3] == before[1:3]
    assert after[4] == f'"Without passthrough" "{ROOT} ro quiet splash  virtpass=off"'


@given(st.text(st.sampled_from('"# \tab=\r'), max_size=20), st.sampled_from(["\n", "\r\n"]))
def test_lines_that_are_none_are_passed_over(noise: str, end: str) -> None:
    good = f'"Title" "{ROOT} ro"'
    found = parse_lines(f"# {noise}{end}{good}{end}", "/x")
    assert [(entry.title, entry.tokens) for entry in found] == [("Title", (ROOT, "ro"))]


def test_entries_in_its_own_configuration_are_mentioned(tmp_path: Path) -> None:
    stanza = 'menuentry "Arch" {\n    loader /vmlinuz-linux\n    options "root=x"\n}\n'
    files = {**BY_NAME["arch-refind"].files, "/efi/EFI/refind/refind.conf": stanza}
    plan = Refind().plan(read_facts(build(tmp_path, files)), REQUEST)
    assert [note.reference for note in plan.notes] == ["refind-entries"]
