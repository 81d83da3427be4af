"""Whether there is an IOMMU and whether it is on, told apart in all cases without the kernel's log."""

import gzip
import os
from pathlib import Path

import pytest

from tests.host.machine import RUNNING, Change, look, machine, switch_off
from tests.simulation import SimulatedHost
from virtpass.host.facts import read_facts
from virtpass.host.iommu import IommuState, read_iommu
from virtpass.system.host import Host

BASE = "root=/dev/nvme0n1p1 ro"


@pytest.fixture
def intel(tmp_path: Path) -> SimulatedHost:
    return machine(tmp_path)


def without_table(host: SimulatedHost) -> None:
    os.unlink(host.path("/sys/firmware/acpi/tables/DMAR"))


def as_amd(host: SimulatedHost) -> None:
    os.rename(
        host.path("/sys/firmware/acpi/tables/DMAR"),
        host.path("/sys/firmware/acpi/tables/IVRS"),
    )
    host.put("/proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu svm\n")


def runs(host: SimulatedHost, *arguments: str) -> None:
    host.put("/proc/cmdline", f"{BASE} {' '.join(arguments)}\n")


def with_config(host: SimulatedHost, text: str) -> None:
    host.put(f"/boot/config-{RUNNING}", text)


def test_on_with_intel(intel: SimulatedHost) -> None:
    _, iommu = look(intel)
    assert (iommu.state, iommu.vendor, iommu.is_on) == (IommuState.ON, "intel", True)
    assert iommu.evidence == "1 unit and 7 groups in sysfs"
    assert iommu.remaps_interrupts
    assert not iommu.passes_through


@pytest.mark.parametrize(
    ("unit", "vendor"),
    [
        ("ivhd0/amd-iommu/cap", "amd"),
        ("smmu3.0x000000002b400000/devices", "smmu3"),
        ("0000:00:03.0/devices", "virtio"),
    ],
)
def test_on_with_others(intel: SimulatedHost, unit: str, vendor: str) -> None:
    os.rename(intel.path("/sys/class/iommu"), intel.path("/sys/class/none"))
    intel.put(f"/sys/class/iommu/{unit}")
    _, iommu = look(intel)
    assert (iommu.state, iommu.vendor) == (IommuState.ON, vendor)


def off(host: SimulatedHost, change: Change) -> tuple[IommuState, str]:
    switch_off(host)
    change(host)
    _, iommu = look(host)
    return iommu.state, iommu.evidence


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        (lambda host: None, IommuState.ARGUMENT_MISSING, "waits for intel_iommu=on"),
        (lambda host: runs(host, "intel_iommu=off"), IommuState.SWITCHED_OFF, "runs with intel_iommu=off"),
        (lambda host: runs(host, "iommu=off"), IommuState.SWITCHED_OFF, "runs with iommu=off"),
        # The last one counts, and the argument of another maker's IOMMU does not.
        (
            lambda host: runs(host, "intel_iommu=on", "intel_iommu=off"),
            IommuState.SWITCHED_OFF,
            "runs with intel_iommu=off",
        ),
        (
            lambda host: runs(host, "amd_iommu=off"),
            IommuState.ARGUMENT_MISSING,
            "waits for intel_iommu=on",
        ),
        (
            lambda host: runs(host, "intel_iommu=off", "intel_iommu=on,sm_on"),
            IommuState.OFF_IN_FIRMWARE,
            "no use of it though it runs with intel_iommu=on,sm_on",
        ),
        (
            lambda host: with_config(host, "# CONFIG_INTEL_IOMMU is not set\n"),
            IommuState.NO_SUPPORT,
            "built without CONFIG_INTEL_IOMMU",
        ),
        (
            lambda host: host.put("/proc/config.gz", gzip.compress(b"# CONFIG_INTEL_IOMMU is not set\n")),
            IommuState.NO_SUPPORT,
            "built without CONFIG_INTEL_IOMMU",
        ),
        (
            lambda host: with_config(host, "CONFIG_INTEL_IOMMU=y\n"),
            IommuState.ARGUMENT_MISSING,
            "ACPI table DMAR",
        ),
        (without_table, IommuState.OFF_IN_FIRMWARE, "look for VT-d in its settings"),
    ],
)
def test_intel_that_is_off(intel: SimulatedHost, change: Change, state: IommuState, words: str) -> None:
    seen, evidence = off(intel, change)
    assert seen is state
    assert words in evidence


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        (lambda host: None, IommuState.OFF_IN_FIRMWARE, "no unit in it is enabled"),
        (lambda host: runs(host, "amd_iommu=off"), IommuState.SWITCHED_OFF, "runs with amd_iommu=off"),
        # No kernel knows that value; it must not be taken for a reason.
        (lambda host: runs(host, "amd_iommu=on"), IommuState.OFF_IN_FIRMWARE, "no unit in it is enabled"),
        # Debian's cloud kernels.
        (
            lambda host: with_config(host, "CONFIG_INTEL_IOMMU=y\n# CONFIG_AMD_IOMMU is not set\n"),
            IommuState.NO_SUPPORT,
            "built without CONFIG_AMD_IOMMU",
        ),
        (
            lambda host: os.unlink(host.path("/sys/firmware/acpi/tables/IVRS")),
            IommuState.OFF_IN_FIRMWARE,
            "look for AMD-Vi or IOMMU",
        ),
    ],
)
def test_amd_that_is_off(intel: SimulatedHost, change: Change, state: IommuState, words: str) -> None:
    as_amd(intel)
    seen, evidence = off(intel, change)
    assert seen is state
    assert words in evidence


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("fpu vmx hypervisor", "a virtual machine, and it was given no IOMMU"),
        ("fpu sse", "neither processor"),
    ],
)
def test_no_hardware(intel: SimulatedHost, flags: str, words: str) -> None:
    without_table(intel)
    intel.put("/proc/cpuinfo", f"vendor_id : GenuineIntel\nflags : {flags}\n")
    seen, evidence = off(intel, lambda host: None)
    assert seen is IommuState.NO_HARDWARE
    assert words in evidence


def test_a_tree_without_sysfs_says_nothing_of_the_machine(tmp_path: Path) -> None:
    iommu = read_iommu(read_facts(Host(os.fspath(tmp_path))))
    assert (iommu.state, iommu.vendor) == (IommuState.UNKNOWN, "")
    assert "there is no sysfs here" in iommu.evidence


def test_a_group_without_an_iommu_is_not_taken_for_one(intel: SimulatedHost) -> None:
    # VFIO without IOMMU makes groups of its own.
    os.rename(intel.path("/sys/class/iommu"), intel.path("/sys/class/none"))
    assert look(intel)[1].state is IommuState.ARGUMENT_MISSING


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (["identity"] * 7, True),
        (["DMA-FQ"] * 7, False),
        (["DMA"] * 7, False),
        # An untrusted device is translated all the same, and a quirk may spare one otherwise.
        (["identity"] * 6 + ["DMA"], True),
        (["DMA-FQ"] * 6 + ["identity"], False),
        (["blocked"] * 7, False),
    ],
)
def test_passthrough_mode_by_the_types_of_the_groups(
    intel: SimulatedHost, types: list[str], expected: bool
) -> None:
    groups = intel.names("/sys/kernel/iommu_groups")
    for group, kind in zip(groups, types, strict=True):
        intel.put(f"/sys/kernel/iommu_groups/{group}/type", kind + "\n")
    assert look(intel)[1].passes_through is expected


@pytest.mark.parametrize("owner", ["vfio_iommu_type1", "iommufd"])
def test_unsafe_interrupts_are_allowed_by_either_owner(intel: SimulatedHost, owner: str) -> None:
    intel.put("/sys/kernel/irq/24/chip_name", "PCI-MSIX-0000:01:00.0\n")
    intel.put("/sys/kernel/irq/9/chip_name", "IO-APIC\n")
    _, before = look(intel)
    assert (before.remaps_interrupts, before.allows_unsafe) == (False, False)
    intel.put(f"/sys/module/{owner}/parameters/allow_unsafe_interrupts", "Y\n")
    assert look(intel)[1].allows_unsafe


def test_below_a_rescue_system_its_command_line_is_not_the_host_s(tmp_path: Path) -> None:
    host = machine(tmp_path, cmdline=f"{BASE} intel_iommu=off rescue")
    os.symlink(str(os.getpid()), host.path("/proc/self.new"))
    os.rename(host.path("/proc/self"), host.path("/proc/own"))
    os.rename(host.path("/proc/self.new"), host.path("/proc/self"))
    facts = read_facts(host)
    assert (facts.running, facts.running_kernel, facts.loader) == ((), "", "")
