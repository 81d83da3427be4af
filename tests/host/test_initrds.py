"""What each boot menu says of the initramfs of an entry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.host.rows import Row, build
from tests.host.test_rows import APPLIED
from virtpass.host.boot import Role
from virtpass.host.facts import read_facts
from virtpass.host.loaders import LOADERS
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.grub_cfg import parse_entries
from virtpass.host.loaders.refind import parse_lines

# It is packed into the same file as the kernel, the loader looks for it itself, or the menu is not read.
SILENT = ("arch-uki", "arch-refind", "proxmox-both", "proxmox-systemd-boot", "silverblue")


@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_a_menu_that_names_an_initramfs_is_understood(row: Row, tmp_path: Path) -> None:
    """Where the text of a menu has the name, the entry has it too."""
    facts = read_facts(build(tmp_path, row.files))
    (loader,) = (one for one in LOADERS if one.name == row.loader)
    for entry in loader.entries(facts):
        if row.name in SILENT:
            assert entry.initrds is None
        elif entry.role is Role.NORMAL:
            text = facts.text(entry.path)
            assert entry.initrds is not None
            assert all(name in text for name in entry.initrds)
            assert entry.initrds or not re.search(r"^\s*(initrd|module_path)", text, re.MULTILINE | re.I)


def test_grub_gives_all_files_of_a_line() -> None:
    text = """
menuentry 'Arch' --class arch $menuentry_id_option 'gnulinux-simple-1' {
    linux /boot/vmlinuz-linux root=/dev/sda1 rw
    echo 'Loading'
    initrd  /boot/amd-ucode.img "/boot/booster-linux.img"
}
menuentry 'Other' --id 'gnulinux-other-1' {
    linux /boot/vmlinuz root=/dev/sda1
}
menuentry 'Memory test' {
    linux16 /memtest
    initrd /none
}
"""
    first, second = parse_entries(text, "/boot/grub/grub.cfg")
    assert first.initrds == ("/boot/amd-ucode.img", "/boot/booster-linux.img")
    assert second.initrds == ()


def test_entry_files_may_have_several_lines() -> None:
    entry = BlsEntry("/boot/loader/entries/a.conf", b"linux /vmlinuz\ninitrd /a.img\ninitrd /b.img /c.img\n")
    assert entry.initrds == ("/a.img", "/b.img", "/c.img")


def test_refind_looks_for_one_by_itself_unless_it_is_told() -> None:
    lines = r'''"One" "root=/dev/sda1 initrd=\boot\booster-linux.img"
"Two" "root=/dev/sda1"'''
    assert [one.initrds for one in parse_lines(lines, "/f")] == [("\\boot\\booster-linux.img",), None]
