"""A desktop with an IOMMU, a kernel and a distribution, for what is decided about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.host.rows import Row, build, kernel
from tests.simulation import AUDIO, CARD, DISK, NIC, SPARE, TWIN, SimulatedHost, desktop
from virtpass.host.arguments import judge_argument
from virtpass.host.decide import Decision, decide
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.iommu import Iommu, read_iommu
from virtpass.host.known_arguments import Judgement
from virtpass.host.wishes import Wishes
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import read_inventory

RUNNING = "6.12.0-1-amd64"
IGPU = PciAddress.parse("00:02.0")
DRIVERS = ("bochs", "snd-hda-intel", "e1000e", "e1000", "nvme", "i915")
ALIASES = """\
alias pci:v00001234d00001111sv*sd*bc*sc*i* bochs
alias pci:v00008086d00002668sv*sd*bc*sc*i* snd_hda_intel
alias pci:v00008086d000010D3sv*sd*bc*sc*i* e1000e
alias pci:v00008086d*sv*sd*bc03sc*i* i915
alias pci:v*d*sv*sd*bc01sc08i02* nvme
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias usb:v1234p*d*dc*dsc*dp*ic*isc*ip*in* e1000e
"""

Change = Callable[[SimulatedHost], object]


def machine(
    root: Path,
    *,
    kernels: Sequence[str] = (RUNNING,),
    built_in: Sequence[str] = (),
    cmdline: str = "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p1 ro quiet",
) -> SimulatedHost:
    """Return a desktop of Intel whose IOMMU is on, and whose interrupts are remapped."""
    host = desktop(os.fspath(root))
    host.put("/etc/os-release", 'ID=debian\nVERSION_ID="13"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n')
    host.put("/proc/cmdline", cmdline + "\n")
    host.put("/proc/sys/kernel/osrelease", RUNNING + "\n")
    host.put("/proc/sys/kernel/random/boot_id", "1d6f0f3e-0000-4000-8000-000000000001\n")
    host.put("/proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse\n")
    host.put("/sys/firmware/acpi/tables/DMAR", b"DMAR")
    host.put("/sys/class/iommu/dmar0/intel-iommu/cap", "d2008c40660462\n")
    host.put("/sys/kernel/irq/24/chip_name", "IR-PCI-MSIX-0000:01:00.0\n")
    for group in host.names("/sys/kernel/iommu_groups"):
        host.put(f"/sys/kernel/iommu_groups/{group}/type", "DMA-FQ\n")
    for version in kernels:
        add_kernel(host, version, built_in=built_in)
    for address, module in (
        (CARD, "bochs"),
        (AUDIO, "snd_hda_intel"),
        (NIC, "e1000e"),
        (TWIN, "e1000e"),
        (DISK, "nvme"),
    ):
        set_module(host, address, module)
        host.put(f"/sys/bus/pci/devices/{address}/modalias", modalias(host, address))
    host.put(f"/sys/bus/pci/devices/{SPARE}/modalias", modalias(host, SPARE))
    return host


def add_kernel(
    host: SimulatedHost, version: str, *, built_in: Sequence[str] = (), without: Sequence[str] = ()
) -> None:
    """Install a kernel."""
    files = kernel(version, built_in=built_in, modules=DRIVERS)
    for path, content in files.items():
        lines = [
            line for line in content.splitlines(keepends=True) if not any(one in line for one in without)
        ]
        host.put(path, "".join(lines))
    host.put(f"/usr/lib/modules/{version}/modules.alias", ALIASES)


def modalias(host: SimulatedHost, address: PciAddress) -> str:
    """Return what the kernel says of a device."""
    vendor, device, board_vendor, board = (
        int(host.read(f"/sys/bus/pci/devices/{address}/{name}") or "0", 16)
        for name in ("vendor", "device", "subsystem_vendor", "subsystem_device")
    )
    code = int(host.read(f"/sys/bus/pci/devices/{address}/class") or "0", 16)
    return (
        f"pci:v{vendor:08X}d{device:08X}sv{board_vendor:08X}sd{board:08X}"
        f"bc{code >> 16:02X}sc{code >> 8 & 0xFF:02X}i{code & 0xFF:02X}\n"
    )


def set_module(host: SimulatedHost, address: PciAddress, module: str) -> None:
    """Say which module the driver of a device comes from."""
    driver = host.link_name(f"/sys/bus/pci/devices/{address}/driver")
    host.put(f"/sys/module/{module}/initstate", "live\n")
    host.link(f"/sys/bus/pci/drivers/{driver}/module", f"/sys/module/{module}")


def add_igpu(host: SimulatedHost, *, group: int | None = None) -> None:
    """Add the graphics of an Intel processor."""
    host.add_device(
        IGPU, class_code=0x030000, ids=(0x8086, 0x5912, 0x1043, 0x8694), group=group, native="i915"
    )
    host.put(f"/sys/bus/pci/devices/{IGPU}/modalias", modalias(host, IGPU))
    set_module(host, IGPU, "i915")


def switch_off(host: SimulatedHost) -> None:
    """Take the IOMMU away, as a kernel that waits for an argument does; what the firmware says stays."""
    host.switch_iommu_off()
    os.rename(host.path("/sys/class/iommu"), host.path("/sys/class/none"))
    host.put("/sys/kernel/irq/24/chip_name", "PCI-MSIX-0000:01:00.0\n")


def look(host: SimulatedHost) -> tuple[HostFacts, Iommu]:
    """Return what is decided from."""
    facts = read_facts(host)
    return facts, read_iommu(facts)


def judged(host: SimulatedHost, argument: str) -> Judgement:
    """Return what an argument does on a host."""
    facts, iommu = look(host)
    return judge_argument(argument, facts, iommu, read_inventory(host))


def decided(
    host: SimulatedHost, *, runs_scripts: bool = True, loads_first: bool = False, **wishes: object
) -> Decision:
    """Return what is decided for a host."""
    facts, iommu = look(host)
    wanted = Wishes(**wishes)  # type: ignore[arg-type]
    inventory = read_inventory(host)
    return decide(facts, iommu, inventory, wanted, runs_scripts=runs_scripts, loads_first=loads_first)


def notes(decision: Decision) -> dict[str, list[str]]:
    """Return the notes by reference; a warning begins with an exclamation mark."""
    found: dict[str, list[str]] = {}
    for one in decision.notes:
        mark = "!" if one.severity.value == "warning" else ""
        found.setdefault(one.reference, []).append(mark + one.text)
    return found


def on_row(row: Row, root: Path) -> SimulatedHost:
    """Return a desktop with the files of a row of the matrix."""
    host = machine(root, kernels=())
    build(root, {path: content for path, content in row.files.items() if path != "/proc/self/mountinfo"})
    return host
