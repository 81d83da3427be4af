"""The machine's devices, as data: what QEMU is told, and the host addresses that come of it.

Every device on the root bus has a fixed slot. QEMU's automatic placement could take a slot that is asked for
later, and the bus numbers, which the firmware gives in the order of the slots, would move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# The card: a display function and its audio function, the host's only screen.
CARD = "0000:01:00.0"
CARD_AUDIO = "0000:01:00.1"
# Twins: same ids, own groups.
NIC = "0000:02:00.0"
SECOND_NIC = "0000:03:00.0"
USB = "0000:04:00.0"
NVME = "0000:05:00.0"
# Nothing is plugged in here at the start; `Machine.plug(..., bus=EMPTY_PORT)` gives this address.
PLUGGED = "0000:06:00.0"
EMPTY_PORT = "port6"
# A conventional bus: the bridge and whatever is behind it cannot be told apart by the IOMMU.
BRIDGE = "0000:00:0a.0"
BRIDGED_NIC = "0000:07:01.0"
BRIDGED_OTHER = "0000:07:02.0"
# The chipset's functions, one group; the SATA controller is one of them.
CHIPSET = ("0000:00:1f.0", "0000:00:1f.2", "0000:00:1f.3")
BOOT_DISK = "0000:00:02.0"

# The endpoints that share a group with another function, and some that have one for themselves.
GROUPS = (
    {CARD, CARD_AUDIO},
    {NIC},
    {SECOND_NIC},
    {USB},
    {NVME},
    {BRIDGE, BRIDGED_NIC, BRIDGED_OTHER},
    set(CHIPSET),
    {BOOT_DISK},
)
DRIVERS = {
    CARD: "bochs-drm",
    CARD_AUDIO: "snd_hda_intel",
    NIC: "e1000e",
    SECOND_NIC: "e1000e",
    USB: "xhci_hcd",
    NVME: "nvme",
    BRIDGED_NIC: "e1000",
    BRIDGED_OTHER: "",
}

AGENT_PORT = "lab.agent"
# The names by which QMP knows the devices.
CARD_ID = "gpu0"
# What the card can be, by QEMU's names: a VGA controller (class 0300), or one without VGA (class 0380).
VGA, DISPLAY = "VGA", "bochs-display"


@dataclass(frozen=True)
class Flavour:
    """The IOMMU of one vendor and what it asks of the rest."""

    name: str
    # The processor under TCG; under KVM it is the host's own.
    cpu: str
    iommu: str
    kernel_arguments: tuple[str, ...]
    # The type of a libvirt domain that starts quickly in this machine when it runs under TCG.
    domain_type: str
    # Whether devices behind root ports reach memory. An NVMe waits for minutes where they do not.
    dma: bool = True


# The standard machine, an AMD processor with the IOMMU of Intel. Linux does not mind, and each has what the
# other lacks: QEMU emulates nested virtualization for AMD only, and its amd-iommu confuses all devices behind
# bridges with those of the root bus, so that their DMA goes astray.
MIXED = Flavour("mixed", "EPYC,+svm,+npt,+nrip-save", "intel-iommu,intremap=on", ("intel_iommu=on",), "kvm")
# Consistent machines, for what looks at processor and IOMMU together. The first has no NVMe, and nothing else
# that needs DMA works behind its root ports; in the second guests are slow.
AMD = Flavour("amd", "EPYC,+svm,+npt,+nrip-save", "amd-iommu,intremap=on", (), "kvm", dma=False)
INTEL = Flavour(
    "intel", "max,vendor=GenuineIntel,-svm", "intel-iommu,intremap=on", ("intel_iommu=on",), "qemu"
)
FLAVOURS = {flavour.name: flavour for flavour in (MIXED, AMD, INTEL)}


@dataclass(frozen=True)
class Files:
    """What the devices are connected to outside."""

    disk: str
    disk_format: str
    nvme: str
    agent_socket: str
    console_log: str


def arguments(flavour: Flavour, files: Files, card: str = VGA) -> Iterator[str]:
    """Yield QEMU's arguments for the devices of a machine of `flavour`, whose card is a `card`."""
    yield from ("-nodefaults", "-vga", "none", "-display", "none")
    # The IOMMU comes first, because devices look for it when they are made.
    yield from ("-device", flavour.iommu)
    # Nothing that is lost with QEMU itself needs to reach the disk of the outside.
    yield from ("-drive", f"if=none,id=disk,file={files.disk},format={files.disk_format},cache=unsafe")
    yield from ("-device", "virtio-blk-pci,bus=pcie.0,addr=02.0,drive=disk,bootindex=1")
    yield from ("-device", "virtio-serial-pci,bus=pcie.0,addr=03.0,id=serial")
    yield from ("-chardev", f"socket,id=agent,path={files.agent_socket},server=on,wait=off")
    yield from ("-device", f"virtserialport,bus=serial.0,chardev=agent,name={AGENT_PORT}")
    yield from ("-chardev", f"file,id=console,path={files.console_log},append=on")
    yield from ("-serial", "chardev:console")
    for number, slot in enumerate(("04", "05", "06", "07", "08", "09"), start=1):
        port = f"pcie-root-port,id=port{number},bus=pcie.0,addr={slot}.0,chassis={number},slot={number}"
        yield from ("-device", port)
    yield from ("-audiodev", "none,id=silence")
    yield from ("-device", f"{card},id={CARD_ID},bus=port1,addr=00.0,multifunction=on")
    yield from ("-device", "intel-hda,id=hda,bus=port1,addr=00.1")
    yield from ("-device", "hda-duplex,bus=hda.0,audiodev=silence")
    # The twins are connected to each other and to nothing else.
    yield from ("-netdev", "hubport,id=net1,hubid=1", "-netdev", "hubport,id=net2,hubid=1")
    yield from ("-device", "e1000e,id=nic1,bus=port2,addr=00.0,netdev=net1,mac=52:54:00:00:00:01")
    yield from ("-device", "e1000e,id=nic2,bus=port3,addr=00.0,netdev=net2,mac=52:54:00:00:00:02")
    yield from ("-device", "qemu-xhci,id=xhci,bus=port4,addr=00.0")
    if flavour.dma:
        yield from ("-drive", f"if=none,id=nvme,file={files.nvme},format=raw,cache=unsafe")
        yield from ("-device", "nvme,id=nvme1,bus=port5,addr=00.0,drive=nvme,serial=LABNVME1")
    yield from ("-device", "pcie-pci-bridge,id=bridge,bus=pcie.0,addr=0a.0")
    yield from ("-device", "e1000,id=nic3,bus=bridge,addr=01.0,mac=52:54:00:00:00:03")
    yield from ("-device", "edu,id=edu1,bus=bridge,addr=02.0")
