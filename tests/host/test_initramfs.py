"""Generators of the initramfs: which one a host has, what they are told, and what their lists say."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host import rows_ostree
from tests.host.rows import PROGRAM, Link, Row, build, kernel
from tests.host.rows_grub import ROWS, mkinitcpio_files
from virtpass.host.early import MODPROBE, SCRIPT, EarlyDevice, EarlyPlan
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.forms import MarkedBlock, OwnFile
from virtpass.host.initramfs import GENERATORS, generator
from virtpass.host.initramfs.by_hand import MKINITFS, RPM_OSTREE, ByHand
from virtpass.host.initramfs.dracut import DROP_IN as DRACUT_DROP_IN
from virtpass.host.initramfs.dracut import Dracut, drop_in_text
from virtpass.host.initramfs.initramfs_tools import HOOK, InitramfsTools, hook_text
from virtpass.host.initramfs.listing import long_paths, plain_paths
from virtpass.host.initramfs.mkinitcpio import CONFIG, Mkinitcpio, config_text
from virtpass.host.initramfs.mkinitcpio import DROP_IN as MKINITCPIO_DROP_IN
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import RefusedError

DEVICE = EarlyDevice(PciAddress.parse("0000:01:00.0"), Identity(0x10DE, 0x1B80, 0x1043, 0x85AA), ("nouveau",))
MODULES = ("vfio_pci", "vfio", "vfio_iommu_type1")
EARLY = EarlyPlan((DEVICE,), ("nouveau",), modules=MODULES)
BY_NAME = {row.name: row for row in ROWS}


def facts_of(name: str, tmp_path: Path, **changes: str | Link | None) -> HostFacts:
    files = {**BY_NAME[name].files, **{path.replace("__", "/"): value for path, value in changes.items()}}
    return read_facts(build(tmp_path, files))


@pytest.mark.parametrize("row", [row for row in ROWS if not row.refused], ids=lambda row: row.name)
def test_each_host_has_the_generator_of_its_row(row: Row, tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, row.files))
    found = [one.name for one in GENERATORS if one.evidence(facts)]
    assert found == ([row.generator] if row.generator else [])
    assert all(one.plan(facts, EarlyPlan()).commands == () for one in GENERATORS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.generator], ids=lambda row: row.name)
def test_images_are_those_of_the_installed_kernels(row: Row, tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, row.files))
    made = generator(facts)
    found = made.images(facts)
    if made.runs_scripts:
        assert {image.kernel for image in found} == {kernel.version for kernel in facts.kernels}
        assert all(facts.has(image.path) for image in found)


def test_two_generators_are_ambiguous_and_none_is_refused(tmp_path: Path) -> None:
    files = {**BY_NAME["debian-12-grub"].files, **mkinitcpio_files("linux", "6.1.0-1-amd64")}
    with pytest.raises(RefusedError) as caught:
        generator(read_facts(build(tmp_path / "two", files)))
    assert caught.value.reference == "ambiguous-initramfs"
    with pytest.raises(RefusedError) as caught:
        generator(facts_of("gentoo-grub-genkernel", tmp_path / "none"))
    assert caught.value.reference == "no-initramfs-generator"


def test_what_is_left_of_the_other_package_does_not_count(tmp_path: Path) -> None:
    with_core = {**BY_NAME["debian-sid-grub-dracut"].files, "/usr/sbin/mkinitramfs": PROGRAM}
    assert generator(read_facts(build(tmp_path / "dracut", with_core))).name == "dracut"
    with_dracut = {**BY_NAME["debian-12-grub"].files, "/usr/bin/dracut": PROGRAM}
    assert generator(read_facts(build(tmp_path / "tools", with_dracut))).name == "initramfs-tools"


# initramfs-tools


def test_initramfs_tools_gets_a_hook(tmp_path: Path) -> None:
    plan = InitramfsTools().plan(facts_of("debian-13-grub", tmp_path), EARLY)
    assert [(edit.path, edit.mode) for edit in plan.edits] == [(HOOK, 0o755)]
    assert [command.argv for command in plan.commands] == [("update-initramfs", "-u", "-k", "all")]
    assert plan.commands[0].outputs == ("/boot/initrd.img-*",)


FUNCTIONS = """
copy_file() { echo "copy_file $*"; return $COPIED; }
force_load() { echo "force_load $*"; }
"""


@pytest.mark.parametrize("copied", [0, 1, 2])
def test_the_hook_copies_and_loads_and_never_fails(copied: int, tmp_path: Path) -> None:
    (tmp_path / "functions").write_text(FUNCTIONS)
    text = hook_text(EARLY).replace("/usr/share/initramfs-tools/hook-functions", f"{tmp_path}/functions")
    environment = {"PATH": os.environ["PATH"], "COPIED": str(copied)}
    argv = ["sh", "-ec", text, "hook"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    lines = [f"copy_file script {SCRIPT}", *(f"force_load {module}" for module in MODULES)]
    assert (done.returncode, done.stdout.splitlines()) == (0, lines)
    done = subprocess.run([*argv, "prereqs"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_in_the_hook() -> None:
    argv = ["shellcheck", "--shell=sh", "--exclude=SC1091", "-"]
    done = subprocess.run(argv, input=hook_text(EARLY), capture_output=True, text=True, check=False)
    assert done.stdout == ""


# dracut


def test_dracut_gets_a_drop_in() -> None:
    assert drop_in_text(EarlyPlan((DEVICE,), modules=("vfio-pci", "vfio_iommu_type1"))).splitlines()[1:] == [
        'force_drivers+=" vfio_pci vfio_iommu_type1 "',
        f'install_items+=" {MODPROBE} {SCRIPT} "',
    ]


@pytest.mark.parametrize(
    ("name", "argv", "outputs"),
    [
        ("debian-sid-grub-dracut", ("update-initramfs", "-u", "-k", "all"), ("/boot/initrd.img-*",)),
        ("void-grub-dracut", ("dracut", "--force", "--regenerate-all"), ("/boot/initramfs-*.img",)),
    ],
)
def test_images_are_rebuilt_by_the_distributions_own_tool(
    name: str, argv: tuple[str, ...], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    plan = Dracut().plan(facts_of(name, tmp_path), EARLY)
    assert [edit.path for edit in plan.edits] == [DRACUT_DROP_IN]
    assert [(command.argv, command.outputs) for command in plan.commands] == [(argv, outputs)]


@pytest.mark.parametrize(
    ("program", "argv"),
    [("kernel-install", ("kernel-install", "add-all")), ("reinstall-kernels", ("reinstall-kernels",))],
)
def test_images_of_kernel_install_are_found_where_it_puts_them(
    program: str, argv: tuple[str, ...], tmp_path: Path
) -> None:
    row = BY_NAME["void-grub-dracut"]
    files = {path: content for path, content in row.files.items() if not path.startswith("/boot/initramfs")}
    version = "6.12.20_1"
    files[f"/efi/0123/{version}/initrd"] = "initramfs"
    files[f"/usr/bin/{program}"] = PROGRAM
    facts = read_facts(build(tmp_path, files))
    assert [(one.path, one.kernel) for one in Dracut().images(facts)] == [
        (f"/efi/0123/{version}/initrd", version)
    ]
    command = Dracut().plan(facts, EARLY).commands[0]
    assert (command.argv, command.outputs) == (argv, (f"/efi/0123/{version}/*",))


def test_without_any_image_dracut_is_refused(tmp_path: Path) -> None:
    row = BY_NAME["void-grub-dracut"]
    files = {path: content for path, content in row.files.items() if not path.startswith("/boot/initramfs")}
    with pytest.raises(RefusedError) as caught:
        Dracut().plan(read_facts(build(tmp_path, files)), EARLY)
    assert caught.value.reference == "no-initramfs"


# mkinitcpio


def test_mkinitcpio_gets_a_drop_in_unless_a_preset_names_its_configuration(tmp_path: Path) -> None:
    plan = Mkinitcpio().plan(facts_of("arch-grub-mkinitcpio", tmp_path / "a"), EARLY)
    assert [(edit.path, type(edit.form)) for edit in plan.edits] == [(MKINITCPIO_DROP_IN, OwnFile)]
    assert [command.argv for command in plan.commands] == [("mkinitcpio", "-P")]
    assert plan.commands[0].outputs == ("/boot/initramfs-linux.img", "/boot/initramfs-linux-fallback.img")
    plan = Mkinitcpio().plan(facts_of("manjaro-grub-mkinitcpio", tmp_path / "b"), EARLY)
    assert [(edit.path, type(edit.form)) for edit in plan.edits] == [(CONFIG, MarkedBlock)]


def test_one_preset_of_each_kind_gets_both(tmp_path: Path) -> None:
    files = {
        **BY_NAME["arch-grub-mkinitcpio"].files,
        **mkinitcpio_files("linux-lts", "6.12.1-1-lts", config="/etc/mkinitcpio-lts.conf"),
        "/etc/mkinitcpio-lts.conf": "MODULES=()\n",
    }
    plan = Mkinitcpio().plan(read_facts(build(tmp_path, files)), EARLY)
    assert [edit.path for edit in plan.edits] == [MKINITCPIO_DROP_IN, "/etc/mkinitcpio-lts.conf"]


def test_a_unified_kernel_image_is_an_image(tmp_path: Path) -> None:
    files = {
        **BY_NAME["arch-grub-mkinitcpio"].files,
        "/etc/mkinitcpio.d/linux.preset": (
            "ALL_kver='/boot/vmlinuz-linux'\nPRESETS=( 'default' )\n"
            "default_uki=/efi/EFI/Linux/arch-linux.efi\r\n"
        ),
        "/efi/EFI/Linux/arch-linux.efi": "MZ",
    }
    facts = read_facts(build(tmp_path, files))
    assert [(one.path, one.kernel) for one in Mkinitcpio().images(facts)] == [
        ("/efi/EFI/Linux/arch-linux.efi", "6.17.1-arch1-1")
    ]


def test_the_image_of_a_package_is_that_of_its_newest_kernel(tmp_path: Path) -> None:
    newer = "6.17.10-arch1-1"
    files = {**BY_NAME["arch-grub-mkinitcpio"].files, **kernel(newer)}
    files[f"/usr/lib/modules/{newer}/pkgbase"] = "linux\n"
    assert {one.kernel for one in Mkinitcpio().images(read_facts(build(tmp_path, files)))} == {newer}


def test_an_initramfs_without_a_shell_is_mentioned(tmp_path: Path) -> None:
    files = {**BY_NAME["arch-grub-mkinitcpio"].files, CONFIG: "HOOKS=(systemd\n  autodetect modconf)\n"}
    plan = Mkinitcpio().plan(read_facts(build(tmp_path, files)), EARLY)
    assert [note.reference for note in plan.notes] == ["no-shell"]


def test_without_presets_mkinitcpio_is_refused(tmp_path: Path) -> None:
    files = {
        path: content
        for path, content in BY_NAME["arch-grub-mkinitcpio"].files.items()
        if not path.endswith(".preset")
    }
    with pytest.raises(RefusedError) as caught:
        Mkinitcpio().plan(read_facts(build(tmp_path, files)), EARLY)
    assert caught.value.reference == "no-initramfs"


@pytest.mark.parametrize(
    "base", ["MODULES=(ext4)\nFILES=(/a)\n", "MODULES=()", "", 'MODULES=("a b")\nFILES+=(/b)\n']
)
def test_bash_has_our_modules_before_all_others(base: str) -> None:
    show = 'printf "%s\\n" "${MODULES[@]}" -- "${FILES[@]}"'
    run = ["bash", "-c"]
    before = subprocess.run([*run, f"{base}\n{show}"], capture_output=True, text=True, check=True).stdout
    after = subprocess.run(
        [*run, f"{MarkedBlock(config_text(EARLY)).add(base.encode()).decode()}\n{show}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    modules, files = (part.split("\n") for part in before.split("--\n"))
    theirs = [word for word in modules if word], [word for word in files if word]
    ours = [f"{module}?" for module in MODULES]
    assert after.split("\n")[:-1] == [*ours, *theirs[0], "--", *theirs[1], MODPROBE, SCRIPT]


def test_our_modules_are_no_patterns_for_files(tmp_path: Path) -> None:
    for name in ("vfio_pci1", "vfio_"):
        (tmp_path / name).touch()
    script = f'MODULES=()\n{config_text(EARLY)}printf "%s " "${{MODULES[@]}}"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [f"{module}?" for module in MODULES]


# what virtpass leaves to its user


@pytest.mark.parametrize("made", [MKINITFS, RPM_OSTREE], ids=lambda made: made.name)
def test_where_nothing_of_ours_can_run_the_text_says_what_to_do(made: ByHand, tmp_path: Path) -> None:
    facts = facts_of("alpine-extlinux", tmp_path)
    assert made.plan(facts, EarlyPlan(unsafe_interrupts=True)).edits == ()
    with pytest.raises(RefusedError) as caught:
        made.plan(facts, EARLY)
    assert caught.value.reference == "initramfs-by-hand"
    assert (" " if made is RPM_OSTREE else ",").join(MODULES) in caught.value.line
    assert "vfio-pci.ids=" in caught.value.remedy


def test_a_system_from_an_image_is_told_how_rpm_ostree_builds_its_initramfs(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, rows_ostree.SILVERBLUE.files))
    made = generator(facts)
    with pytest.raises(RefusedError) as caught:
        made.plan(facts, EARLY)
    assert "rpm-ostree initramfs --enable --arg=--add-drivers --arg='vfio_pci vfio" in caught.value.remedy
    assert "rd.driver.pre=vfio-pci" in caught.value.remedy


# lists

LSINITRD = """\
Image: /boot/initramfs-6.12.img: 42M
========================================================================
Version: dracut-106

Arguments: --force --kver '6.12'

dracut modules:
bash
========================================================================
drwxr-xr-x  12 root     root            0 Jan  1  1970 .
crw-r--r--   1 root     root       5,   1 Jan  1  1970 dev/console
crw-r--r--   1 root     root       1,  11 Jan  1  1970 dev/kmsg
lrwxrwxrwx   1 root     root            7 Jan  1  1970 bin -> usr/bin
-rw-r--r--   1 root     root          312 Jan  1 00:00 etc/modprobe.d/virtpass.conf
-rwxr-xr-x   1 root     root         1423 Jan  1  1970 etc/virtpass/early-bind
-rw-r--r--   1 root     root         9999 Jan  1  1970 usr/lib/modules/6.12/kernel/vfio-pci.ko.xz
-rw-r--r--   1 root     root            3 Jan  1  1970 etc/a file
========================================================================
"""


def test_lsinitrd_is_read_whatever_it_says_around_the_list() -> None:
    assert long_paths(LSINITRD) == {
        ".",
        "dev/console",
        "dev/kmsg",
        "bin",
        "etc/modprobe.d/virtpass.conf",
        "etc/virtpass/early-bind",
        "usr/lib/modules/6.12/kernel/vfio-pci.ko.xz",
        "etc/a file",
    }


def test_plain_lists_are_read_with_and_without_a_dot_before() -> None:
    expected = {"etc/virtpass/early-bind", "usr"}
    assert (
        plain_paths("./usr\netc/virtpass/early-bind\n")
        == expected
        == plain_paths("/usr\n/etc/virtpass/early-bind")
    )


@given(st.text())
def test_no_list_breaks_a_reader(text: str) -> None:
    assert all(isinstance(path, str) for path in (*plain_paths(text), *long_paths(text)))
