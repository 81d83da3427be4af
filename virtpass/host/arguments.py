"""What kernel arguments really do on a host: which help, which do nothing, which do harm."""

from collections.abc import Iterable

from virtpass.host.boot_words import decides_boot
from virtpass.host.facts import HostFacts
from virtpass.host.iommu import Iommu
from virtpass.host.kernels import Presence
from virtpass.host.known_arguments import (
    AMD_VALUES,
    ELEMENTS,
    FIXED,
    KEYS,
    NAMES_NOTHING,
    NOT_KNOWN,
    NOT_OF_AMD,
    SWITCHES,
    Effect,
    Judgement,
)
from virtpass.host.tokens import key, truth
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import Device, Inventory
from virtpass.system.host import Host

# The first kernel whose vfio-pci takes the framebuffer of the firmware away by itself for sure.
EVICTS_FRAMEBUFFER = (6, 1)
_INTEL = 0x8086
_MAKERS = {"intel": "Intel", "amd": "AMD"}
_ANY = 0xFFFFFFFF
# Of the kernel and of modprobe; then those of an initramfs, which count until the root is mounted.
_BLACKLISTS = ("module_blacklist", "modprobe.blacklist", "rd.driver.blacklist", "rdblacklist", "blacklist")
# From what must be to what may be; of a list the first counts.
_ORDER = (Effect.FORBIDDEN, Effect.HARMFUL, Effect.UNKNOWN, Effect.USEFUL, Effect.USELESS)


def judge_argument(argument: str, facts: HostFacts, iommu: Iommu, inventory: Inventory) -> Judgement:
    """Tell what an argument does on this host."""
    name = key(argument)
    value = argument.partition("=")[2]
    if name in ELEMENTS:
        return _of_elements(name, value, facts, iommu, inventory)
    if name == "pcie_acs_override":
        return _acs(facts)
    if name in ("vfio_pci.ids", "pci_stub.ids"):
        return _ids(name, value, facts, inventory)
    if name == "initcall_blacklist":
        return _initcalls(value, inventory)
    if name in _BLACKLISTS:
        return _blacklist(value, inventory)
    if _asks_passthrough(argument):
        return _passthrough(facts, iommu)
    if name in SWITCHES:
        return _of_switch(SWITCHES[name], argument)
    if argument == "video=efifb:off":
        return _framebuffer(facts)
    if decides_boot(argument):
        return Judgement(Effect.FORBIDDEN, "decides how the host itself boots; change that by hand")
    fixed = FIXED.get(argument.replace(argument.partition("=")[0], name, 1), NOT_KNOWN)
    return KEYS.get(name, fixed)


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


def _elements(value: str) -> list[str]:
    return [one for one in value.split(",") if one]


def _worst(judgements: Iterable[Judgement]) -> Judgement:
    """Return what a list does of whose elements each counts; nothing is known of an empty one."""
    found = list(judgements)
    for effect in _ORDER:
        if texts := [one.text for one in found if one.effect is effect]:
            return Judgement(effect, ", and ".join(dict.fromkeys(texts)))
    return NOT_KNOWN


def _of_elements(name: str, value: str, facts: HostFacts, iommu: Iommu, inventory: Inventory) -> Judgement:
    """Judge an argument that is a list, such as ``intel_iommu=on,sm_on``."""
    elements = _elements(value)
    if name == "amd_iommu" and not any(one.startswith(AMD_VALUES) for one in elements):
        return NOT_OF_AMD
    vendor = name.removesuffix("_iommu")
    other = {"intel": "amd", "amd": "intel"}.get(vendor)
    if other and iommu.vendor == other:
        return Judgement(Effect.USELESS, f"does nothing on a host with an IOMMU of {_MAKERS[other]}")

    def judged(element: str) -> Judgement:
        if name == "intel_iommu" and element.startswith("on"):
            return _intel_on(facts, iommu, inventory)
        if name == "iommu" and element.startswith("pt"):
            return _passthrough(facts, iommu)
        if name == "amd_iommu" and not element.startswith(AMD_VALUES):
            return NOT_OF_AMD
        known = (one for beginning, one in ELEMENTS[name].items() if element.startswith(beginning))
        return next(known, NOT_KNOWN)

    return _worst(map(judged, elements))


def _intel_on(facts: HostFacts, iommu: Iommu, inventory: Inventory) -> Judgement:
    runs_with_it = any(
        element.startswith("on")
        for token in facts.running
        if key(token) == "intel_iommu"
        for element in _elements(token.partition("=")[2])
    )
    if not iommu.is_on or runs_with_it:
        return Judgement(Effect.USEFUL, "switches on the IOMMU of Intel")
    if left_out(inventory):
        return Judgement(Effect.USEFUL, "includes the processor's own graphics in the IOMMU")
    return Judgement(Effect.USELESS, "is not needed: the IOMMU is on without it")


def _of_switch(on: Judgement, argument: str) -> Judgement:
    """Judge a parameter of a module that is true or false; without a value it is true."""
    says = truth(argument)
    if says is None:
        return NOT_KNOWN
    return on if says else Judgement(Effect.USELESS, "is the default")


def _asks_passthrough(token: str) -> bool:
    """Tell whether the host's own devices reach memory untranslated for this argument."""
    name, value = key(token), token.partition("=")[2]
    if name == "iommu":
        return any(element.startswith("pt") for element in _elements(value))
    return name == "iommu.passthrough" and truth(token) is True


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
    if iommu.passes_through and not any(_asks_passthrough(token) for token in facts.running):
        return Judgement(Effect.USELESS, "is not needed: this kernel translates for no device of the host")
    return Judgement(Effect.USEFUL, "spares the host's own devices translation, and their memory protection")


def _framebuffer(facts: HostFacts) -> Judgement:
    if evicts_framebuffer(facts):
        text = "is not needed: vfio-pci takes the firmware's framebuffer away by itself"
        return Judgement(Effect.USELESS, text)
    return Judgement(
        Effect.HARMFUL, "leaves a host with UEFI without a picture until a graphics driver is loaded"
    )


def _blacklist(value: str, inventory: Inventory) -> Judgement:
    """Judge an argument that keeps modules from being loaded."""
    names = {name.replace("-", "_") for name in _elements(value)}
    if not names:
        return NAMES_NOTHING
    if any(name.startswith("vfio") for name in names):
        return Judgement(Effect.FORBIDDEN, "keeps VFIO itself from being loaded")
    for address, phrases in inventory.needed.items():
        if bound_module(inventory.host, address) in names:
            return Judgement(Effect.FORBIDDEN, f"takes the driver of {address}, which {phrases[0]}")
    text = "takes a driver from every device that it knows; --bind or --softdep spare the others"
    return Judgement(Effect.HARMFUL, text)


def _initcalls(value: str, inventory: Inventory) -> Judgement:
    """Judge ``initcall_blacklist=``, which names functions of the kernel and of modules."""
    needed = {
        module: f"takes the driver of {address}, which {phrases[0]}"
        for address, phrases in inventory.needed.items()
        if (module := bound_module(inventory.host, address))
    }

    def judged(function: str) -> Judgement:
        if function.startswith("vfio"):
            return Judgement(Effect.FORBIDDEN, "keeps VFIO itself from being started")
        for module, text in needed.items():
            # As most of them are called: nvme_init, ahci_pci_driver_init.
            if function.startswith(f"{module}_"):
                return Judgement(Effect.FORBIDDEN, text)
        if function == "sysfb_init":
            text = "leaves the host without any picture until a graphics driver is loaded"
            return Judgement(Effect.HARMFUL, text)
        return Judgement(
            Effect.HARMFUL, "leaves out a part of the kernel's start that virtpass does not know"
        )

    functions = _elements(value)
    return _worst(map(judged, functions)) if functions else NAMES_NOTHING


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


def _ids(name: str, value: str, facts: HostFacts, inventory: Inventory) -> Judgement:
    """Judge ``vfio-pci.ids=`` and ``pci-stub.ids=``: every device with the ids goes, needed or not."""
    taken: set[PciAddress] = set()
    mixed = ""
    for ids in value.split(","):
        found = [device.address for device in inventory.devices.values() if matches(ids, device)]
        taken.update(found)
        if len({address[:3] for address in found}) > 1:
            mixed = ids
    for address in sorted(taken):
        if phrases := inventory.needed.get(address):
            return Judgement(Effect.FORBIDDEN, f"takes {address}, which {phrases[0]}")
    if not taken:
        return Judgement(Effect.USELESS, "matches no device of this host")
    driver = name.partition(".")[0].replace("_", "-")
    if facts.kernels and all(kernel.presence(driver) is Presence.MISSING for kernel in facts.kernels):
        return Judgement(Effect.USELESS, f"needs {driver}, which no installed kernel has")
    verb, end = ("takes", "") if driver == "vfio-pci" else ("keeps", " from the host's drivers")
    names = ", ".join(str(address) for address in sorted(taken))
    if mixed:
        text = f"{verb} every device with the ids {mixed} ({names}){end}; --bind tells them apart"
        return Judgement(Effect.HARMFUL, text)
    return Judgement(Effect.USEFUL, f"{verb} {names}{end}")
