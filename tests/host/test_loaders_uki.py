"""Unified kernel images by mkinitcpio."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.host.rows import PROGRAM, build
from tests.host.rows_systemd_boot import ROOT, unified
from tests.host.systemd_boot_trees import REQUEST, ROWS, TRIAL_REQUEST, drop, loader_of, made, put, refusal
from virtpass.host.boot import BootRequest
from virtpass.host.facts import read_facts
from virtpass.host.loaders.uki import SAFE_LINE, Uki, fallback_text
from virtpass.host.loaders.uki_image import read_command_line
from virtpass.system.errors import RefusedError


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


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("", ""),
        ('fallback_options="-S autodetect"\n', "-S autodetect "),
        ("ALL_options='--splash /a.bmp'\n", "--splash /a.bmp "),
        ('ALL_options="--splash /a.bmp"\nfallback_options="-S autodetect"\n', "-S autodetect "),
    ],
)
def test_the_fallback_image_keeps_the_options_that_it_had(preset: str, options: str) -> None:
    script = f'{preset}{fallback_text()}printf %s "$fallback_options"'
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{options}--cmdline {SAFE_LINE}"


def test_unified_images_that_nothing_signs_are_not_built_under_secure_boot(tmp_path: Path) -> None:
    row = ROWS["arch-uki"]
    secure_boot = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    files = {**row.files, secure_boot: b"\6\0\0\0\1"}
    host = build(tmp_path, files)
    with pytest.raises(RefusedError, match="nothing here signs images that are built anew"):
        Uki().plan(read_facts(host), BootRequest(("iommu=pt",)))
    build(tmp_path, {"/etc/initcpio/post/sbctl": PROGRAM})
    plan = Uki().plan(read_facts(host), BootRequest(("iommu=pt",)))
    assert "secure-boot" in [note.reference for note in plan.notes]
