"""What is known of kernel arguments, as tables: effects that are the same on every host.

Sources: the kernel's admin-guide/kernel-parameters.txt and the parsers of 6.1, 6.12 and 7.3
(drivers/iommu/intel/iommu.c, drivers/iommu/amd/init.c, drivers/iommu/irq_remapping.c, drivers/video,
arch/x86/kernel/{pci-dma,apic/apic}.c, init/main.c).
"""

from dataclasses import dataclass
from enum import Enum


class Effect(Enum):
    """What an argument does on this host."""

    USEFUL = "useful"
    USELESS = "useless"
    HARMFUL = "harmful"
    # Such that no warning makes it right.
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of one argument.

    Attributes:
        effect: what it does here.
        text: why, one sentence without a full stop; empty for an argument that virtpass does not know.
    """

    effect: Effect
    text: str = ""


_NO_IOMMU = Judgement(Effect.HARMFUL, "switches off what passthrough needs")
_NO_REMAPPING = Judgement(Effect.HARMFUL, "makes VFIO refuse every device")
_NO_IO_APIC = Judgement(
    Effect.HARMFUL, "switches off interrupt remapping too, without which VFIO refuses every device"
)
_NO_INTERRUPTS = Judgement(Effect.HARMFUL, "takes the interrupts away that passthrough needs")
_NO_ROUTING = Judgement(
    Effect.HARMFUL, "keeps the kernel from what the firmware says of interrupts, which passthrough needs"
)
NOT_KNOWN = Judgement(Effect.UNKNOWN)
NAMES_NOTHING = Judgement(Effect.USELESS, "names nothing")
# Whole arguments whose effect is the same everywhere, dashes in the name as underscores.
FIXED = {
    "video=vesafb:off": Judgement(Effect.USELESS, "is not looked at by vesafb in any kernel from 6.1 on"),
    "video=vesa:off": Judgement(Effect.USELESS, "names no driver"),
    "video=simplefb:off": Judgement(Effect.USELESS, "does not reach simpledrm, which current kernels use"),
    "nointremap": _NO_REMAPPING,
    "noapic": _NO_IO_APIC,
    "nosmp": _NO_IO_APIC,
    "maxcpus=0": _NO_IO_APIC,
    "nolapic": _NO_INTERRUPTS,
    "disableapic": _NO_INTERRUPTS,
    "acpi=off": Judgement(Effect.HARMFUL, "hides the firmware's tables, that of the IOMMU among them"),
    "acpi=noirq": _NO_ROUTING,
    "nomodeset": Judgement(Effect.HARMFUL, "keeps the graphics drivers of the host from working"),
}
# Elements of arguments that are lists, by how the kernel compares: it looks at the beginning of each.
ELEMENTS = {
    "iommu": {
        "off": _NO_IOMMU,
        "on": Judgement(Effect.USELESS, "has a value that no kernel knows on x86"),
    },
    "intel_iommu": {
        "off": _NO_IOMMU,
        "igfx_off": Judgement(
            Effect.HARMFUL,
            "leaves the processor's own graphics out of the IOMMU: it cannot be given to a domain",
        ),
    },
    "amd_iommu": {"off": _NO_IOMMU},
    "intremap": {
        "on": Judgement(Effect.USELESS, "is the default"),
        "off": _NO_REMAPPING,
        "nosid": Judgement(Effect.HARMFUL, "lets a device send the interrupts of another one"),
        "no_x2apic_optout": Judgement(Effect.USEFUL, "overrules a firmware that forbids x2APIC"),
    },
    "pci": {
        "off": Judgement(Effect.FORBIDDEN, "hides every PCI device, the host's own among them"),
        "noacpi": _NO_ROUTING,
        "nomsi": Judgement(Effect.HARMFUL, "takes message-signalled interrupts from all devices"),
        "disable_acs_redir=": Judgement(Effect.HARMFUL, "takes isolation from the ports that it names"),
    },
}
NOT_OF_AMD = Judgement(Effect.USELESS, "has a value that no kernel knows: AMD's IOMMU is on by itself")
AMD_VALUES = (
    "off",
    "fullflush",
    "force_isolation",
    "force_enable",
    "pgtbl_v1",
    "pgtbl_v2",
    "irtcachedis",
    "nohugepages",
    "v2_pgsizes_only",
)
_UNSAFE = Judgement(
    Effect.HARMFUL,
    "lets a guest send interrupts to the host; --unsafe-interrupts is the way to ask for it",
)
# Parameters of modules that are off unless they are switched on.
SWITCHES = {
    "vfio_iommu_type1.allow_unsafe_interrupts": _UNSAFE,
    "iommufd.allow_unsafe_interrupts": _UNSAFE,
    "vfio.enable_unsafe_noiommu_mode": Judgement(
        Effect.HARMFUL, "lets a guest write into all memory of the host"
    ),
    "vfio_pci.disable_vga": Judgement(
        Effect.USEFUL, "keeps a domain with SeaBIOS from using a card as its first display"
    ),
}
# By what stands before the first "=".
KEYS = {
    "virtpass": Judgement(Effect.FORBIDDEN, "is what virtpass marks its own boot entries with"),
    "BOOT_IMAGE": Judgement(Effect.FORBIDDEN, "is written by the bootloader"),
    "initrd": Judgement(Effect.FORBIDDEN, "is written by the bootloader"),
    "mem": Judgement(
        Effect.HARMFUL, "hides memory from the host, where the kernel may then place PCI devices"
    ),
}
