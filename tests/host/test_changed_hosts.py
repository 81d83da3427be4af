"""Hosts that change between apply and revert: kernels come and go, a bootloader is replaced."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.host.rows import Programs, Row, kernel
from tests.host.test_rows import APPLIED, images_are_lists, ready, tree, wishes
from virtpass.host.status import Verdict
from virtpass.host.wishes import Wishes
from virtpass.operations import host_preparation
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

__all__ = ["images_are_lists"]
pytestmark = pytest.mark.usefixtures("images_are_lists")

ROWS = {row.name: row for row in APPLIED}
NEW = "6.19.3+deb13-amd64"
MACHINE = "4a1d3c5b6e7f80912a3b4c5d6e7f8091"


def put(host: Host, path: str, content: str) -> None:
    target = Path(host.path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)


def run(row: Row, host: Host, *commands: Sequence[str]) -> None:
    programs = Programs(row.programs)
    for command in commands:
        assert programs(host, tuple(command), 1.0).status == 0, command


def install_grub(row: Row, host: Host) -> None:
    """Do what Debian's package of a kernel does where GRUB is."""
    for path, content in {**kernel(NEW), f"/boot/vmlinuz-{NEW}": "kernel\n"}.items():
        put(host, path, content)
    put(host, f"/boot/initrd.img-{NEW}", "")
    run(row, host, ("update-initramfs", "-u", "-k", "all"), ("update-grub",))


def install_systemd_boot(row: Row, host: Host) -> None:
    """Do what it does where kernel-install is."""
    for path, content in {**kernel(NEW), f"/boot/vmlinuz-{NEW}": "kernel\n"}.items():
        put(host, path, content)
    image = f"/boot/initrd.img-{NEW}"
    run(row, host, ("dracut", "--force", image, NEW))
    run(row, host, ("kernel-install", "add", NEW, f"/boot/vmlinuz-{NEW}", image))


def remove(host: Host, version: str) -> None:
    """Do what removing the package does to files."""
    shutil.rmtree(host.path(f"/usr/lib/modules/{version}"))
    for directory, _, names in list(os.walk(host.path("/boot"))):
        for name in names:
            if version in name:
                os.unlink(os.path.join(directory, name))
        if os.path.basename(directory) == version:
            shutil.rmtree(directory)


Install = Callable[[Row, Host], None]
HOSTS: list[tuple[str, Install]] = [
    ("debian-13-grub", install_grub),
    ("debian-13-systemd-boot", install_systemd_boot),
]


@pytest.mark.parametrize(("name", "install"), HOSTS)
def test_a_kernel_that_came_since(name: str, install: Install, tmp_path: Path) -> None:
    row = ROWS[name]
    without = ready(row, tmp_path / "without")
    install(row, without)

    host = ready(row, tmp_path / "with")
    programs = Programs(row.programs)
    wanted = wishes(row, host)
    host_preparation.apply(host, host_preparation.plan(host, wanted), run=programs)
    install(row, host)
    found = host_preparation.status(host).checks
    entries = [one for one in found if one.reference in ("boot-entry", "initramfs")]
    for reference in ("boot-entry", "initramfs"):
        assert any(NEW in one.text for one in entries if one.reference == reference)
    assert {one.verdict for one in entries} == {Verdict.RIGHT}
    # The fallback entry may follow to the new kernel.
    host_preparation.apply(host, host_preparation.plan(host, wanted), run=programs)
    assert host_preparation.plan(host, wanted).is_empty

    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    # As if virtpass had never been there, the images built anew that had to be.
    assert tree(tmp_path / "with") == tree(tmp_path / "without")


@pytest.mark.parametrize(("name", "install"), HOSTS)
def test_a_kernel_that_went_since(name: str, install: Install, tmp_path: Path) -> None:
    row = ROWS[name]
    host = ready(row, tmp_path)
    install(row, host)
    programs = Programs(row.programs)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=programs)
    remove(host, NEW)
    if name == "debian-13-grub":
        run(row, host, ("update-grub",))
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=programs)
    left = tree(tmp_path)
    assert not [path for path in left if NEW in path and "modules" not in path]
    assert not [path for path, one in left.items() if b"virtpass" in bytes(str(one[-1]), "utf-8")]


def replace_bootloader(host: Host) -> None:
    for path in ("/boot/grub/grub.cfg", "/usr/sbin/grub-mkconfig", "/usr/sbin/update-grub"):
        if host.exists(path):
            os.unlink(host.path(path))


def test_a_bootloader_that_is_gone_takes_nothing_with_it(tmp_path: Path) -> None:
    row = ROWS["debian-13-grub"]
    host = ready(row, tmp_path)
    replace_bootloader(host)
    before = tree(tmp_path)
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    host = ready(row, tmp_path)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=Programs(row.programs))
    with pytest.raises(VirtpassError, match="the bootloader grub is there"):
        host_preparation.plan_undo(host, without_bootloader=True)
    replace_bootloader(host)
    found = {one.reference: one.verdict for one in host_preparation.status(host).checks}
    assert found["bootloader"] is Verdict.WRONG
    undo = host_preparation.plan_undo(host, without_bootloader=True)
    assert undo is not None
    (note,) = (one for one in undo.notes if one.reference == "bootloader-gone")
    assert "none of its programs is run" in note.text
    programs = Programs({"update-initramfs": row.programs["update-initramfs"]})
    host_preparation.apply(host, undo, run=programs)
    assert [call[0] for call in programs.calls] == ["update-initramfs"]
    assert tree(tmp_path) == before
    assert host_preparation.plan_undo(host) is None


@pytest.mark.slow
@pytest.mark.parametrize("row", APPLIED, ids=lambda row: row.name)
def test_a_boot_partition_that_is_not_mounted_is_no_reason_to_forget(row: Row, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    host = ready(row, root)
    run = Programs(row.programs)
    before = tree(root)
    host_preparation.apply(host, host_preparation.plan(host, wishes(row, host)), run=run)
    applied = tree(root)
    points = [path for path in ("boot", "efi", "boot/efi") if (root / path).is_dir()]
    for point in points:
        os.rename(root / point, tmp_path / "unmounted")
        (root / point).mkdir()
        try:
            undo = host_preparation.plan_undo(host)
            assert undo is not None
            host_preparation.apply(host, undo, run=run)
        except VirtpassError:
            # Refused, or undone at once: either way it is all there once the partition is.
            shutil.rmtree(root / point)
            os.rename(tmp_path / "unmounted", root / point)
            host_preparation.recover(host, run=run)
            assert tree(root) == applied
        else:
            # Nothing of it was on that partition.
            shutil.rmtree(root / point)
            os.rename(tmp_path / "unmounted", root / point)
            assert tree(root) == before
            return
    undo = host_preparation.plan_undo(host)
    assert undo is not None
    host_preparation.apply(host, undo, run=run)
    assert tree(root) == before


def test_a_bootloader_of_which_there_is_nothing_is_refused(tmp_path: Path) -> None:
    row = ROWS["debian-13-grub"]
    host = ready(row, tmp_path)
    with pytest.raises(VirtpassError, match="is found on this host"):
        host_preparation.plan(host, Wishes(passthrough=True, bootloader="limine"))


def test_files_that_somebody_changed_since_the_crash_can_be_kept(tmp_path: Path) -> None:
    row = ROWS["debian-13-grub"]
    host = ready(row, tmp_path)
    before = tree(tmp_path)
    wanted = host_preparation.plan(host, wishes(row, host))
    dropped = wanted.plan.changes[0].path

    class PowerCutError(BaseException):
        pass

    def cut(*_: object) -> int:
        raise PowerCutError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr("virtpass.transaction.engine.Transaction._give_up", lambda *_: None)
        host_preparation.apply(
            host, wanted, run=Programs({**row.programs, "update-initramfs": cut, "update-grub": cut})
        )
    put(host, dropped, "mine now\n")
    with pytest.raises(VirtpassError) as caught:
        host_preparation.recover(host, run=Programs(row.programs))
    assert (
        f"{dropped} was changed by somebody else meanwhile (virtpass host recover --keep" in caught.value.what
    )
    assert host_preparation.is_unfinished(host)
    foreseen = host_preparation.pending(host, keep=True)
    assert f"{dropped} left as somebody else has changed it" in foreseen
    host_preparation.recover(host, keep=True, run=Programs(row.programs))
    assert not host_preparation.is_unfinished(host)
    left = tree(tmp_path)
    assert left.pop(dropped.lstrip("/"))[-1] == b"mine now\n"
    before.pop(dropped.lstrip("/"), None)
    assert left == before
