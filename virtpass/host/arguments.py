"""What kernel arguments really do: which help, which do nothing, which do harm. Facts as a table.

Sources: the kernel's admin-guide/kernel-parameters.txt and the parsers of 6.1, 6.12 and 7.3
(drivers/iommu/intel/iommu.c, drivers/iommu/amd/init.c, drivers/iommu/irq_remapping.c, drivers/video).
"""

from dataclasses import dataclass
from enum import Enum

from virtpass.host.facts import HostFacts
from virtpass.host.iommu import Iommu
from virtpass.host.kernels import Presence
from virtpass.host.tokens import key
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import Device, Inventory
from virtpass.system.host import Host


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


# Whole arguments whose effect is the same everywhere.
_FIXED = {
    "amd_iommu=on": Judgement(
        Effect.USELESS, "has a value that no kernel knows: AMD's IOMMU is on by itself"
    ),
    "iommu=on": Judgement(Effect.USELESS, "has a value that no kernel knows on x86"),
    "intremap=on": Judgement(Effect.USELESS, "is the default"),
    "video=vesafb:off": Judgement(Effect.USELESS, "is not looked at by vesafb in any kernel from 6.1 on"),
    "video=vesa:off": Judgement(Effect.USELESS, "names no driver"),
    "video=simplefb:off": Judgement(Effect.USELESS, "does not reach simpledrm, which current kernels use"),
    "intremap=no_x2apic_optout": Judgement(Effect.USEFUL, "overrules a firmware that forbids x2APIC"),
    "initcall_blacklist=sysfb_init": Judgement(
        Effect.HARMFUL, "leaves the host without any picture until a graphics driver is loaded"
    ),
    "intremap=off": Judgement(Effect.HARMFUL, "makes VFIO refuse every device"),
    "intremap=nosid": Judgement(Effect.HARMFUL, "lets a device send the interrupts of another one"),
    "intel_iommu=off": Judgement(Effect.HARMFUL, "switches off what passthrough needs"),
    "amd_iommu=off": Judgement(Effect.HARMFUL, "switches off what passthrough needs"),
    "iommu=off": Judgement(Effect.HARMFUL, "switches off what passthrough needs"),
    "intel_iommu=igfx_off": Judgement(
        Effect.HARMFUL, "leaves the processor's own graphics out of the IOMMU: it cannot be given to a domain"
    ),
    "vfio.enable_unsafe_noiommu_mode=1": Judgement(
        Effect.HARMFUL, "lets a guest write into all memory of the host"
    ),
    "vfio-pci.disable_vga=1": Judgement(
        Effect.USEFUL, "keeps a domain with SeaBIOS from using a card as its first display"
    ),
}
_PASSTHROUGH = ("iommu=pt", "iommu.passthrough=1")
_AMD_VALUES = (
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
# The first kernel whose vfio-pci takes the framebuffer of the firmware away by itself for sure.
EVICTS_FRAMEBUFFER = (6, 1)
_UNSAFE = Judgement(
    Effect.HARMFUL,
    "lets a guest send interrupts to the host; --unsafe-interrupts is the way to ask for it",
)
# By what stands before the first "=".
_KEYS = {
    "virtpass": Judgement(Effect.FORBIDDEN, "is what virtpass marks its own boot entries with"),
    "BOOT_IMAGE": Judgement(Effect.FORBIDDEN, "is written by the bootloader"),
    "initrd": Judgement(Effect.FORBIDDEN, "is written by the bootloader"),
    "vfio_iommu_type1.allow_unsafe_interrupts": _UNSAFE,
    "iommufd.allow_unsafe_interrupts": _UNSAFE,
}
_INTEL = 0x8086
_MAKERS = {"intel": "Intel", "amd": "AMD"}
_ANY = 0xFFFFFFFF
_BLACKLISTS = ("module_blacklist", "modprobe.blacklist", "rd.driver.blacklist")
_BOOTS_THE_HOST = (
    "root",
    "rootfstype",
    "rootflags",
    "init",
    "rdinit",
    "cryptdevice",
    "resume",
    "ro",
    "rw",
    "single",
    "emergency",
    "rescue",
    "systemd.unit",
    "rd.break",
)


def judge_argument(argument: str, facts: HostFacts, iommu: Iommu, inventory: Inventory) -> Judgement:
    """Tell what an argument does on this host."""
    name = key(argument)
    if name in ("intel_iommu", "amd_iommu"):
        return _for_vendor(argument, facts, iommu, inventory)
    if name == "pcie_acs_override":
        return _acs(facts)
    if name == "vfio_pci.ids":
        return _ids(argument, facts, inventory)
    if name in _BLACKLISTS:
        return _blacklist(argument, inventory)
    if argument in _PASSTHROUGH:
        return _passthrough(facts, iommu)
    if argument == "video=efifb:off":
        return _framebuffer(facts)
    if argument in _FIXED:
        return _FIXED[argument]
    if name in _BOOTS_THE_HOST or name.startswith(("rd.luks", "rd.lvm", "rd.md")):
        return Judgement(Effect.FORBIDDEN, "decides how the host itself boots; change that by hand")
    return _KEYS.get(name, Judgement(Effect.UNKNOWN))


def left_out(inventory: Inventory) -> tuple[PciAddress, ...]:
    """Return the processor's own graphics of Intel, where the IOMMU of the host does not concern it.

    Debian's kernels leave it out until they are told otherwise (CONFIG_INTEL_IOMMU_DEFAULT_ON_INTGPU_OFF).
    """
    if not inventory.groups:
        return ()
    return tuple(
        one.address
        for one in inventory.devices.values()
        if one.group is None and one.is_display and one.identity.vendor == _INTEL and one.address.bus == 0
    )


def evicts_framebuffer(facts: HostFacts) -> bool:
    """Tell whether vfio-pci takes the firmware's framebuffer away by itself, with every installed kernel."""
    return all(kernel.number >= EVICTS_FRAMEBUFFER for kernel in facts.kernels)


def bound_module(host: Host, address: PciAddress) -> str:
    """Return the module of the driver that a device is bound to; empty when there is none."""
    return host.link_name(f"{sysfs.device_path(address)}/driver/module") or ""


def _for_vendor(argument: str, facts: HostFacts, iommu: Iommu, inventory: Inventory) -> Judgement:
    """Judge ``intel_iommu=`` and ``amd_iommu=``."""
    vendor, value = key(argument).partition("_")[0], argument.partition("=")[2]
    other = {"intel": "amd", "amd": "intel"}[vendor]
    if vendor == "amd" and not set(value.split(",")) & set(_AMD_VALUES):
        return _FIXED["amd_iommu=on"]
    if iommu.vendor == other:
        return Judgement(Effect.USELESS, f"does nothing on a host with an IOMMU of {_MAKERS[other]}")
    if argument != "intel_iommu=on":
        return _FIXED.get(argument, Judgement(Effect.UNKNOWN))
    if not iommu.is_on or argument in facts.running:
        return Judgement(Effect.USEFUL, "switches on the IOMMU of Intel")
    if left_out(inventory):
        return Judgement(Effect.USEFUL, "includes the processor's own graphics in the IOMMU")
    return Judgement(Effect.USELESS, "is not needed: the IOMMU is on without it")


def _acs(facts: HostFacts) -> Judgement:
    knowing = [kernel.version for kernel in facts.kernels if kernel.has_acs_override]
    if not knowing:
        text = "is not known to any installed kernel: the ACS override patch is found in none"
        return Judgement(Effect.USELESS, text)
    text = "lets the kernel believe in an isolation that is not there"
    if len(knowing) < len(facts.kernels):
        text = f"{text}, and only {', '.join(knowing)} knows it"
    return Judgement(Effect.HARMFUL, text)


def _passthrough(facts: HostFacts, iommu: Iommu) -> Judgement:
    if iommu.passes_through and not any(one in facts.running for one in _PASSTHROUGH):
        return Judgement(Effect.USELESS, "is not needed: this kernel translates for no device of the host")
    return Judgement(Effect.USEFUL, "spares the host's own devices translation, and their memory protection")


def _framebuffer(facts: HostFacts) -> Judgement:
    if evicts_framebuffer(facts):
        text = "is not needed: vfio-pci takes the firmware's framebuffer away by itself"
        return Judgement(Effect.USELESS, text)
    return Judgement(
        Effect.HARMFUL, "leaves a host with UEFI without a picture until a graphics driver is loaded"
    )


def _blacklist(argument: str, inventory: Inventory) -> Judgement:
    """Judge an argument that keeps modules from being loaded."""
    names = {name.replace("-", "_") for name in argument.partition("=")[2].split(",")}
    if any(name.startswith("vfio") for name in names):
        return Judgement(Effect.FORBIDDEN, "keeps VFIO itself from being loaded")
    for address, phrases in inventory.needed.items():
        if bound_module(inventory.host, address) in names:
            return Judgement(Effect.FORBIDDEN, f"takes the driver of {address}, which {phrases[0]}")
    text = "takes a driver from every device that it knows; --bind or --softdep spare the others"
    return Judgement(Effect.HARMFUL, text)


def matches(ids: str, device: Device) -> bool:
    """Tell whether one element of ``vfio-pci.ids=`` means a device.

    Args:
        ids: VENDOR:DEVICE[:SUBVENDOR[:SUBDEVICE[:CLASS[:MASK]]]] in hexadecimal; ffffffff is any.
        device: the device.
    """
    try:
        numbers = [int(part, 16) for part in ids.split(":")]
    except ValueError:
        return False
    if len(numbers) < 2:
        return False
    wanted_class, mask = ([*numbers[4:], 0, 0])[:2]
    return (
        all(wanted in (_ANY, seen) for wanted, seen in zip(numbers[:4], device.identity[:4], strict=False))
        and (wanted_class ^ device.class_code) & mask == 0
    )


def _ids(argument: str, facts: HostFacts, inventory: Inventory) -> Judgement:
    """Judge ``vfio-pci.ids=``: every device with the ids goes to vfio-pci, whatever the host does with it."""
    taken: set[PciAddress] = set()
    mixed = ""
    for ids in argument.partition("=")[2].split(","):
        found = [device.address for device in inventory.devices.values() if matches(ids, device)]
        taken.update(found)
        if len({address[:3] for address in found}) > 1:
            mixed = ids
    for address in sorted(taken):
        if phrases := inventory.needed.get(address):
            return Judgement(Effect.FORBIDDEN, f"takes {address}, which {phrases[0]}")
    if not taken:
        return Judgement(Effect.USELESS, "matches no device of this host")
    if facts.kernels and all(kernel.presence("vfio-pci") is Presence.MISSING for kernel in facts.kernels):
        return Judgement(Effect.USELESS, "needs vfio-pci, which no installed kernel has")
    names = ", ".join(str(address) for address in sorted(taken))
    if mixed:
        text = f"takes every device with the ids {mixed} ({names}); --bind tells them apart"
        return Judgement(Effect.HARMFUL, text)
    return Judgement(Effect.USEFUL, f"takes {names}")
