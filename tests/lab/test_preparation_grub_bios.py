"""Host preparation with GRUB and initramfs-tools, started by a BIOS."""

from __future__ import annotations

import time

import pytest

from . import bootloader
from .machine import Job, Machine
from .preparation import TIMEOUT, WISHES, host, on_trial, status, there_and_back, tree, trial_taken_back

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_applied_booted_left_by_the_fallback_and_taken_back(grub_bios: Machine) -> None:
    there_and_back(grub_bios)


def test_a_trial_is_over_after_a_power_cut_and_lasts_when_confirmed(grub_bios: Machine) -> None:
    on_trial(grub_bios)


def test_a_trial_that_is_taken_back_is_not_booted(grub_bios: Machine) -> None:
    trial_taken_back(grub_bios)


def applying(machine: Machine) -> Job:
    """Begin to apply, and return when the initramfs is being built."""
    job = machine.begin(["virtpass", "host", "apply", *WISHES, "--yes"], timeout=TIMEOUT)
    machine.wait_until(
        lambda: machine.run(["pgrep", "-f", "mkinitramfs|dracut"]).status == 0, "the initramfs is built", 120
    )
    time.sleep(1)
    return job


def test_a_power_cut_while_it_is_applied(grub_bios: Machine) -> None:
    machine, loader = grub_bios, bootloader.of(grub_bios)
    before = tree(machine)
    machine.run(["sync"]).check()
    applying(machine)
    machine.reset()
    assert "iommu=pt" not in loader.arguments()
    assert status(machine)["unfinished"] is True
    assert host(machine, "apply", *WISHES, "--dry-run").status == 4
    assert "put back" in host(machine, "recover").check().text
    assert tree(machine) == before
    assert host(machine, "status").status == 0


@pytest.mark.parametrize("number", [9, 15], ids=["killed", "asked to end"])
def test_the_command_ends_while_it_is_applied(grub_bios: Machine, number: int) -> None:
    machine = grub_bios
    before = tree(machine)
    job = applying(machine)
    (process,) = machine.run(["pgrep", "-of", "virtpass host apply"]).check().text.split()
    machine.run(["kill", f"-{number}", process]).check()
    ended = job.wait()
    assert ended.status != 0
    if number == 15:
        # It has put everything back itself.
        assert tree(machine) == before
    host(machine, "recover").check()
    assert tree(machine) == before
    assert machine.run(["test", "-e", "/var/lib/virtpass/host"]).status == 1


def test_a_full_boot_partition_changes_nothing(grub_bios: Machine) -> None:
    machine = grub_bios
    before = tree(machine)
    machine.run(["mount", "-t", "tmpfs", "-o", "size=64M", "none", "/mnt"]).check()
    machine.run(["cp", "-a", "/boot/.", "/mnt/"]).check()
    machine.run(["mount", "--bind", "/mnt", "/boot"]).check()
    try:
        # To the last byte: cp ends with an error.
        machine.run(["cp", "/dev/zero", "/boot/filler"])
        full = tree(machine)
        failed = host(machine, "apply", *WISHES, "--yes")
        assert failed.status == 1, str(failed)
        assert "No space left on device" in failed.error_text
        assert tree(machine) == full
    finally:
        machine.run(["umount", "/boot"]).check()
        machine.run(["umount", "/mnt"]).check()
    assert tree(machine) == before
