"""booster: devices are bound by id, for which vfio-pci has to be loaded first, or nothing is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.host.rows import PROGRAM, STUB_INFO, Programs, Row, build, kernel, loader_info
from tests.host.rows_grub import mkinitcpio_files
from tests.host.rows_systemd_boot import BOOSTER_IMAGE, booster_images, text_of, write
from tests.host.test_rows import APPLIED, images_are_lists, ready, tree, wishes
from tests.host.test_rows import text_of as shown
from tests.simulation import NIC
from virtpass.host.early import EarlyDevice, EarlyPlan
from virtpass.host.facts import read_facts
from virtpass.host.initramfs import booster
from virtpass.host.initramfs.base import Image
from virtpass.host.initramfs.booster import CONFIG, REGENERATE, Booster
from virtpass.host.status import Verdict
from virtpass.host.wishes import Wishes
from virtpass.operations import host_preparation
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.host import Host

__all__ = ["images_are_lists"]
pytestmark = pytest.mark.usefixtures("images_are_lists")

(ROW,) = (row for row in APPLIED if row.generator == "booster")
LINUX, LTS = "6.17.8-arch1-1", "6.12.58-1-lts"
DEVICE = EarlyDevice(PciAddress.parse("01:00.0"), Identity(0x10DE, 0x1B80, 0x1043, 0x85AA), ("nouveau",))
EARLY = EarlyPlan(softdeps=("nouveau",), modules=("vfio_pci", "vfio", "vfio_iommu_type1"), by_id=(DEVICE,))
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGES = ("/boot/booster-linux.img", "/boot/booster-linux-lts.img")


def refusal(root: Path, changes: Mapping[str, str | bytes | None], early: EarlyPlan = EARLY) -> RefusedError:
    """Return why a host is refused that differs from the row's; None removes a file."""
    files = {path: one for path, one in {**ROW.files, **changes}.items() if one is not None}
    with pytest.raises(RefusedError) as caught:
        Booster().plan(read_facts(build(root, files)), early)
    return caught.value


def test_our_modules_are_added_and_every_image_is_built_anew(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, ROW.files))
    plan = Booster().plan(facts, EARLY)
    (edit,), (command,) = plan.edits, plan.commands
    assert (edit.path, edit.form.for_base(b"").add(b"").split(b"\n")[1]) == (
        CONFIG,
        b"modules_force_load: vfio_pci",
    )
    assert command.argv == (REGENERATE,)
    assert set(command.outputs) == {*IMAGES, "/boot/vmlinuz-linux", "/boot/vmlinuz-linux-lts"}
    assert Booster().files(EARLY) == ("usr/lib/modules/vfio_pci.ko",)


def test_the_image_of_a_package_is_that_of_its_newest_kernel(tmp_path: Path) -> None:
    old = "6.16.1-arch1-1"
    files = {**ROW.files, **kernel(old), f"/usr/lib/modules/{old}/pkgbase": "linux\n"}
    assert Booster().images(read_facts(build(tmp_path, files))) == [
        Image("/boot/booster-linux-lts.img", LTS),
        Image("/boot/booster-linux.img", LINUX),
    ]


def test_a_kernel_without_what_binding_does_not_need_gets_an_image(tmp_path: Path) -> None:
    path = f"/usr/lib/modules/{LTS}/modules.dep"
    text = str(ROW.files[path])
    files = {**ROW.files, path: text.replace("kernel/drivers/vfio_iommu_type1.ko.xz:\n", "")}
    plan = Booster().plan(read_facts(build(tmp_path / "type1", files)), EARLY)
    assert b"modules_force_load: vfio_pci\n" in plan.edits[0].form.add(b"")
    error = refusal(tmp_path / "pci", {path: text.replace("kernel/drivers/vfio-pci.ko.xz:\n", "")})
    assert error.reference == "not-in-every-kernel"
    assert f"kernel {LTS} has no vfio-pci" in error.what


def test_a_kernel_with_the_module_built_in_is_refused_for_that(tmp_path: Path) -> None:
    error = refusal(tmp_path, kernel(LTS, built_in=["vfio-pci"]))
    assert error.reference == "not-in-every-kernel"
    assert f"vfio-pci is built into kernel {LTS}" in error.what


def test_a_kernel_of_no_package_is_none_of_boosters(tmp_path: Path) -> None:
    without = {path: text.replace("vfio-pci.ko", "other.ko") for path, text in kernel("6.18.0-own").items()}
    for name, own in (("none", without), ("built-in", kernel("6.18.0-own", built_in=["vfio-pci"]))):
        plan = Booster().plan(read_facts(build(tmp_path / name, {**ROW.files, **own})), EARLY)
        assert len(plan.commands) == 1


def test_a_kernel_that_was_taken_back_to_an_older_one_is_not_signed(tmp_path: Path) -> None:
    old = "6.17.10-arch1-1"
    files = {**ROW.files, **kernel(old), f"/usr/lib/modules/{old}/pkgbase": "linux\n"}
    files[f"/usr/lib/modules/{old}/vmlinuz"] = f"kernel {old}"
    assert Booster().plan(read_facts(build(tmp_path, files)), EARLY).commands
    assert Booster().images(read_facts(Host(str(tmp_path))))[1] == Image(IMAGES[0], old)


@pytest.mark.parametrize(
    ("changes", "reference", "told"),
    [
        ({REGENERATE: None}, "initramfs-by-hand", "'modules_force_load: vfio_pci' into"),
        (
            {STUB_INFO: loader_info("systemd-stub 258")},
            "initramfs-by-hand",
            "unified kernel image (systemd-stub",
        ),
        ({"/etc/kernel/install.conf": "layout=uki\n"}, "initramfs-by-hand", "install.conf says layout=uki"),
        (
            {"/usr/lib/kernel/install.conf.d/a.conf": "# mine\ninitrd_generator = booster\n"},
            "initramfs-by-hand",
            "a.conf says initrd_generator = booster",
        ),
        ({SECURE_BOOT: b"\6\0\0\0\1"}, "unsigned-kernel", "Secure Boot is on"),
        (
            {"/boot/vmlinuz-linux-lts": f"kernel {LTS} signed"},
            "unsigned-kernel",
            "/boot/vmlinuz-linux-lts is not",
        ),
        ({f"/efi/0123/{LINUX}/initrd": "initramfs"}, "initramfs-by-hand", f"/efi/0123/{LINUX}/initrd"),
        ({CONFIG: None}, "no-configuration", f"touch {CONFIG}"),
        (dict.fromkeys(IMAGES), "no-initramfs", "mount the boot partition"),
        (
            {IMAGES[1]: f"{BOOSTER_IMAGE}usr/lib/modules/nouveau.ko\n"},
            "driver-in-initramfs",
            "add -nouveau to modules",
        ),
    ],
)
def test_what_would_not_bind_is_refused(
    changes: Mapping[str, str | bytes | None], reference: str, told: str, tmp_path: Path
) -> None:
    error = refusal(tmp_path, changes)
    assert error.reference == reference
    assert told in error.line
    assert "\n" not in error.line


def test_an_image_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Booster, "content", lambda *_: None)
    assert refusal(tmp_path, {}).reference == "initramfs-unreadable"


def test_images_are_listed_by_booster_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    asked: list[tuple[str, ...]] = []

    def listing(_facts: object, argv: tuple[str, ...]) -> str | None:
        asked.append(argv)
        return "usr/lib/modules/\nlib -> usr/lib\nusr/lib/modules/vfio_pci.ko\n" if len(asked) == 1 else None

    monkeypatch.setattr(booster, "listing", listing)
    facts = read_facts(build(tmp_path, ROW.files))
    image = Image(IMAGES[0], LINUX)
    assert "usr/lib/modules/vfio_pci.ko" in (Booster().content(facts, image) or ())
    assert Booster().content(facts, image) is None
    assert asked == [("booster", "ls", IMAGES[0])] * 2


# as a whole


def unchanged(root: Path, programs: Programs, message: str) -> None:
    """Apply what is wished of the row, and look that it fails and everything is as it was."""
    host = ready(ROW, root)
    before = tree(root)
    plan = host_preparation.plan(host, wishes(ROW, host))
    with pytest.raises(VirtpassError, match=message):
        host_preparation.apply(host, plan, run=programs)
    assert (REGENERATE,) in programs.calls
    assert tree(root) == before
    assert host_preparation.plan_undo(host) is None


def test_a_build_that_fails_without_saying_so_is_taken_back(tmp_path: Path) -> None:
    """The script waits for builds in the background, and does not ask how they ended."""
    programs = Programs({**ROW.programs, "regenerate_images": lambda *_: 0})
    unchanged(tmp_path, programs, r"booster-linux\.img lacks usr/lib/modules/vfio_pci\.ko")


def test_one_build_of_two_that_fails_is_taken_back(tmp_path: Path) -> None:
    def half(host: Host, words: Sequence[str]) -> int:
        old = text_of(host, IMAGES[1])
        status = booster_images(host, words)
        write(host, IMAGES[1], old)
        return status

    programs = Programs({**ROW.programs, "regenerate_images": half})
    unchanged(
        tmp_path, programs, r"planned: /boot/booster-linux-lts\.img lacks usr/lib/modules/vfio_pci\.ko$"
    )


def test_a_kernel_that_gets_no_image_from_the_build_is_found(tmp_path: Path) -> None:
    files = {path: one for path, one in ROW.files.items() if path != IMAGES[1]}
    row = replace(ROW, files=files)

    def one_of_two(host: Host, words: Sequence[str]) -> int:
        status = booster_images(host, words)
        os.unlink(host.path(IMAGES[1]))
        return status

    host = ready(row, tmp_path)
    programs = Programs({**row.programs, "regenerate_images": one_of_two})
    with pytest.raises(VirtpassError, match=r"booster-linux-lts\.img was not built"):
        host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=programs)


def test_a_driver_that_comes_into_the_images_with_the_build_is_found(tmp_path: Path) -> None:
    def with_driver(host: Host, words: Sequence[str]) -> int:
        status = booster_images(host, words)
        write(host, IMAGES[0], f"{text_of(host, IMAGES[0])}usr/lib/modules/snd_hda_intel.ko\n")
        return status

    programs = Programs({**ROW.programs, "regenerate_images": with_driver})
    unchanged(tmp_path, programs, r"booster-linux\.img has snd_hda_intel, which could take a device before")


def test_status_looks_for_the_module(tmp_path: Path) -> None:
    host = ready(ROW, tmp_path)
    host_preparation.apply(host, host_preparation.plan(host, wishes(ROW, host)), run=Programs(ROW.programs))
    write(host, IMAGES[1], BOOSTER_IMAGE)
    found = [one for one in host_preparation.status(host).checks if one.reference == "initramfs"]
    assert {(one.verdict, one.text) for one in found} == {
        (Verdict.RIGHT, f"{IMAGES[0]} has what it needs"),
        (Verdict.WRONG, f"{IMAGES[1]} lacks usr/lib/modules/vfio_pci.ko"),
    }


def applied(root: Path, row: Row = ROW) -> Host:
    host = ready(row, root)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=Programs(row.programs))
    return host


def wrong(host: Host) -> set[str]:
    found = host_preparation.status(host).checks
    return {one.text for one in found if one.reference == "initramfs" and one.verdict is Verdict.WRONG}


def test_status_sees_a_kernel_that_got_no_image(tmp_path: Path) -> None:
    host = applied(tmp_path)
    assert wrong(host) == set()
    zen = "6.17.9-zen1-1-zen"
    for path, text in {**kernel(zen), f"/usr/lib/modules/{zen}/pkgbase": "linux-zen\n"}.items():
        os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
        write(host, path, text)
    assert wrong(host) == {f"/boot/booster-linux-zen.img is not there: kernel {zen} has no initramfs"}


def test_status_sees_a_driver_that_came_into_an_image_later(tmp_path: Path) -> None:
    host = applied(tmp_path)
    write(host, IMAGES[0], f"{text_of(host, IMAGES[0])}usr/lib/modules/snd_hda_intel.ko\n")
    assert wrong(host) == {f"{IMAGES[0]} has snd_hda_intel, which could take a device before vfio-pci does"}


def test_a_boot_entry_with_another_initramfs_is_refused_and_seen_later(tmp_path: Path) -> None:
    entry = "/boot/loader/entries/linux.conf"
    other = str(ROW.files[entry]).replace("/booster-linux.img", "/initramfs-linux.img")
    host = ready(replace(ROW, files={**ROW.files, entry: other}), tmp_path / "refused")
    with pytest.raises(
        RefusedError, match=r"'Arch Linux \(linux\)' starts with /initramfs-linux.img"
    ) as caught:
        host_preparation.plan(host, wishes(ROW, host))
    assert caught.value.reference == "other-initramfs"
    # Nothing is built for these.
    assert host_preparation.plan(host, Wishes(passthrough=True)).plan.changes
    host = applied(tmp_path / "later")
    write(host, entry, text_of(host, entry).replace("initrd /booster-linux.img\n", ""))
    assert wrong(host) == {"the boot entry 'Arch Linux (linux)' starts without an initramfs"}


def test_microcode_before_the_image_is_no_other_initramfs(tmp_path: Path) -> None:
    entry = "/boot/loader/entries/linux.conf"
    both = str(ROW.files[entry]).replace("initrd", "initrd /amd-ucode.img\ninitrd")
    host = ready(replace(ROW, files={**ROW.files, entry: both}), tmp_path)
    assert host_preparation.plan(host, wishes(ROW, host)).plan.commands


def test_kernels_that_were_signed_since_stay_when_all_is_taken_back(tmp_path: Path) -> None:
    host = applied(tmp_path)
    write(host, "/boot/vmlinuz-linux", "signed")
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    assert "warning: no initramfs is built anew: /boot/vmlinuz-linux is not the kernel" in shown(undo)
    programs = Programs(ROW.programs)
    host_preparation.apply(host, undo, run=programs)
    assert (REGENERATE,) not in programs.calls
    assert text_of(host, "/boot/vmlinuz-linux") == "signed"
    assert text_of(host, CONFIG) == ROW.files[CONFIG]
    assert "vfio-pci.ids" not in text_of(host, "/boot/loader/entries/linux.conf")
    assert host_preparation.plan_undo(host) is None


def test_mkinitcpio_in_the_place_of_booster_takes_it_back(tmp_path: Path) -> None:
    host = applied(tmp_path)
    for path in ("/usr/bin/booster", REGENERATE):
        os.unlink(host.path(path))
    lone = {path: one for path, one in mkinitcpio_files("linux", LINUX).items() if one is not None}
    for path, text in {"/usr/bin/mkinitcpio": PROGRAM, **lone}.items():
        os.makedirs(os.path.dirname(host.path(path)), exist_ok=True)
        write(host, path, str(text))
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    assert f"{REGENERATE}, which built the initramfs, is gone: mkinitcpio builds it now" in shown(undo)
    programs = Programs({"mkinitcpio": lambda *_: 0, "bootctl": lambda *_: 0})
    host_preparation.apply(host, undo, run=programs)
    assert ("mkinitcpio", "-P") in programs.calls
    assert text_of(host, CONFIG) == ROW.files[CONFIG]
    assert host_preparation.plan_undo(host) is None


def test_without_any_generator_it_is_taken_back_with_a_warning(tmp_path: Path) -> None:
    host = applied(tmp_path)
    for path in ("/usr/bin/booster", REGENERATE):
        os.unlink(host.path(path))
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    assert f"warning: {REGENERATE}, which built the initramfs, is gone: build it anew" in shown(undo)
    host_preparation.apply(host, undo, run=Programs({"bootctl": lambda *_: 0}))
    assert text_of(host, CONFIG) == ROW.files[CONFIG]


def test_a_list_that_became_another_form_is_not_said_to_be_taken_back(tmp_path: Path) -> None:
    host = applied(tmp_path)
    write(host, CONFIG, "modules_force_load: |\n  dm_mod,vfio_pci\n")
    with pytest.raises(RefusedError, match=rf"^{CONFIG} is left alone: in line 1, modules_force_load is no"):
        host_preparation.plan_undo(host)
    write(host, CONFIG, "modules_force_load: dm_mod,vfio_pci\nnetwork:\n  interfaces:\n    - eth0\n&x y: z\n")
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=Programs(ROW.programs))
    assert text_of(host, CONFIG).startswith("modules_force_load: dm_mod\nnetwork:")


def test_a_module_that_the_user_has_in_the_images_stays_there(tmp_path: Path) -> None:
    own = "modules_force_load: vfio_pci,dm_mod\n"
    with_module = f"{BOOSTER_IMAGE}usr/lib/modules/vfio_pci.ko\n"
    row = replace(ROW, files={**ROW.files, CONFIG: own, **dict.fromkeys(IMAGES, with_module)})
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    programs = Programs(row.programs)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=programs)
    assert text_of(host, CONFIG) == own
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    assert tree(tmp_path) == before


def test_a_list_that_was_edited_since_keeps_what_is_not_ours(tmp_path: Path) -> None:
    host = ready(ROW, tmp_path)
    programs = Programs(ROW.programs)
    host_preparation.apply(host, host_preparation.plan(host, wishes(ROW, host)), run=programs)
    write(host, CONFIG, text_of(host, CONFIG).replace("dm_mod,", "dm_mod,dm_crypt,") + "\nvconsole: true\n")
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    assert "modules_force_load: dm_mod,dm_crypt  # for" in text_of(host, CONFIG)
    assert "vconsole: true\n" in text_of(host, CONFIG)


def test_twins_are_refused(tmp_path: Path) -> None:
    host = ready(ROW, tmp_path)
    with pytest.raises(RefusedError, match="cannot be told from") as caught:
        host_preparation.plan(host, Wishes(bind=(NIC,)))
    assert caught.value.reference == "same-ids"


def test_soft_dependencies_and_blacklists_alone_leave_the_images_as_they_are(tmp_path: Path) -> None:
    host = ready(ROW, tmp_path)
    before = tree(tmp_path)
    wanted = Wishes(softdeps=("e1000e",), blacklist=("nouveau",))
    plan = host_preparation.plan(host, wanted)
    assert "those of e1000e, nouveau count once the root file system is there" in shown(plan)
    programs = Programs(ROW.programs)
    host_preparation.apply(host, plan, run=programs)
    assert programs.calls == []
    assert text_of(host, "/etc/modprobe.d/virtpass.conf").splitlines()[1:] == [
        "softdep e1000e pre: vfio-pci",
        "blacklist nouveau",
    ]
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    assert tree(tmp_path) == before


def test_a_host_with_mkinitcpio_too_is_ambiguous(tmp_path: Path) -> None:
    files = {**ROW.files, "/usr/bin/mkinitcpio": PROGRAM, "/etc/mkinitcpio.conf": "HOOKS=(base)\n"}
    row: Row = replace(ROW, files=files)
    host = ready(row, tmp_path)
    with pytest.raises(VirtpassError) as caught:
        host_preparation.plan(host, Wishes(softdeps=("nouveau",)))
    assert caught.value.reference == "ambiguous-initramfs"
