"""Host preparation with GRUB and initramfs-tools, started by a BIOS."""

from __future__ import annotations

import pytest

from virtpass.host.iommu import UNSAFE_INTERRUPTS

from . import bootloader, topology
from .machine import Job, Machine
from .preparation import (
    TIMEOUT,
    WISHES,
    as_documented,
    host,
    lasting_and_taken_back,
    recovered_at_boot,
    status,
    tree,
    trial_taken_back,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# Does what QEMU does to have a device: its group into a container, with an IOMMU of type 1 (the ioctls
# VFIO_GROUP_SET_CONTAINER and VFIO_SET_IOMMU with VFIO_TYPE1v2_IOMMU of linux/vfio.h). Then it goes back.
OPEN_GROUP = """
import fcntl, os, sys
device = f"/sys/bus/pci/devices/{sys.argv[1]}"
def put(value, path):
    with open(path, "w") as file:
        file.write(value)
def move(driver):
    put(driver, f"{device}/driver_override")
    put(sys.argv[1], f"{device}/driver/unbind")
    put(sys.argv[1], "/sys/bus/pci/drivers_probe")
move("vfio-pci")
try:
    group = os.path.basename(os.readlink(f"{device}/iommu_group"))
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    opened = os.open(f"/dev/vfio/{group}", os.O_RDWR)
    fcntl.ioctl(opened, 0x3B68, container.to_bytes(4, "little"))
    try:
        fcntl.ioctl(container, 0x3B66, 3)
        print("accepted")
    except PermissionError:
        print("refused")
    os.close(opened)
    os.close(container)
finally:
    move("\\n")
"""


def test_it_boots_as_its_own_bootloader_is_told(grub_bios: Machine) -> None:
    as_documented(grub_bios)


def test_a_trial_that_is_taken_back_is_not_booted(grub_bios: Machine) -> None:
    trial_taken_back(grub_bios)


def test_a_trial_is_over_after_a_power_cut_lasts_when_confirmed_and_is_taken_back(grub_bios: Machine) -> None:
    lasting_and_taken_back(grub_bios)


def applying(machine: Machine) -> Job:
    """Begin to apply, and return when the initramfs is being built."""
    job = machine.begin(["virtpass", "host", "apply", *WISHES, "--yes"], timeout=TIMEOUT)
    machine.wait_until(
        lambda: machine.run(["pgrep", "-f", "mkinitramfs|dracut"]).status == 0, "the initramfs is built", 120
    )
    return job


def test_a_power_cut_while_it_is_applied_is_made_good_by_the_next_boot(grub_bios: Machine) -> None:
    machine, loader = grub_bios, bootloader.of(grub_bios)
    before = tree(machine)
    machine.run(["sync"]).check()
    applying(machine)
    machine.reset()
    assert "iommu=pt" not in loader.arguments()
    assert machine.run(["systemctl", "is-system-running", "--wait"], timeout=TIMEOUT).text == "running\n"
    assert "put back" in recovered_at_boot(machine)
    assert tree(machine) == before
    assert machine.run(["test", "-e", "/var/lib/virtpass/host"]).status == 1
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
    else:
        assert status(machine)[1]["unfinished"] is True
        assert host(machine, "apply", *WISHES, "--dry-run").status == 4
        assert "put back" in host(machine, "recover").check().text
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


def test_interrupts_that_are_not_remapped_are_accepted_at_once_and_not_for_ever(grub_bios: Machine) -> None:
    """The last test here: the machine keeps its own argument."""
    machine, loader = grub_bios, bootloader.Grub(grub_bios)
    loader.add_argument("intremap=off")
    machine.reboot()
    assert "intremap=off" in loader.arguments()
    before = tree(machine)
    machine.run(["modprobe", "vfio-pci"]).check()
    assert accepts_unsafe(machine) == "N"
    # What VFIO itself says of it: the whole reason for the option.
    assert not opens_group(machine)
    planned = host(machine, "plan").check()
    assert "--unsafe-interrupts" in planned.error_text

    applied = host(machine, "apply", "--unsafe-interrupts", "--yes").check()
    assert "let no guest have one that you do not trust" in applied.error_text
    assert accepts_unsafe(machine) == "Y"
    assert opens_group(machine)
    assert host(machine, "status").status == 0

    machine.reboot()
    machine.run(["modprobe", "vfio-pci"]).check()
    assert accepts_unsafe(machine) == "Y"
    host(machine, "revert", "--yes").check()
    assert accepts_unsafe(machine) == "N"
    assert not opens_group(machine)
    assert tree(machine) == before


def accepts_unsafe(machine: Machine) -> str:
    """Return what the running kernel says of interrupts that are not remapped."""
    return machine.get(UNSAFE_INTERRUPTS[0]).decode().strip()


def opens_group(machine: Machine) -> bool:
    """Tell whether VFIO lets a program have the NIC, which is alone in its group."""
    said = machine.run(["python3", "-c", OPEN_GROUP, topology.NIC]).check().text.strip()
    assert said in ("accepted", "refused")
    assert machine.driver(topology.NIC) == "e1000e"
    return said == "accepted"
