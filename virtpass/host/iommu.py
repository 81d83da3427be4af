"""Is there an IOMMU, and is it on? Told from sysfs and ACPI tables, never from the kernel's log."""

from dataclasses import dataclass
from enum import Enum

from virtpass.host.facts import HostFacts
from virtpass.host.kernels import configuration
from virtpass.pci import sysfs

_IOMMUS = "/sys/class/iommu"
_TABLES = "/sys/firmware/acpi/tables"
# Absent while the module is not loaded.
UNSAFE_INTERRUPTS = (
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
)
# The driver of each kind, by the ACPI table that describes the hardware.
_KINDS = {"DMAR": ("intel", "CONFIG_INTEL_IOMMU"), "IVRS": ("amd", "CONFIG_AMD_IOMMU")}


class IommuState(Enum):
    """What keeps devices from being isolated; from best to worst."""

    ON = "on"
    ARGUMENT_MISSING = "kernel argument missing"
    SWITCHED_OFF = "switched off by a kernel argument"
    NO_SUPPORT = "not supported by this kernel"
    OFF_IN_FIRMWARE = "off in the firmware"
    NO_HARDWARE = "no hardware"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Iommu:
    """The IOMMU of a host.

    Attributes:
        state: whether it is on, and if not, what it takes.
        vendor: "intel", "amd", another kind such as "smmu3", or empty.
        evidence: what was seen, as one sentence without a full stop.
        remaps_interrupts: whether interrupts are remapped, or need not be.
        allows_unsafe: whether VFIO was told to accept interrupts that are not remapped.
        passes_through: whether the host's own devices reach memory untranslated (``iommu=pt``).
    """

    state: IommuState
    vendor: str
    evidence: str
    remaps_interrupts: bool
    allows_unsafe: bool
    passes_through: bool

    @property
    def is_on(self) -> bool:
        """Whether devices can be isolated now."""
        return self.state is IommuState.ON

    def is_beyond_virtpass(self, *, accepts_unsafe: bool) -> bool:
        """Tell whether no device can be given away, and no argument that virtpass adds by itself helps.

        Args:
            accepts_unsafe: whether it is on record that interrupts need not be remapped: VFIO says so only
                when its module is there, which it may not be before the first start.
        """
        if self.is_on:
            return not (self.remaps_interrupts or self.allows_unsafe or accepts_unsafe)
        # Of a system that does not run here nothing is known.
        return self.state not in (IommuState.ARGUMENT_MISSING, IommuState.UNKNOWN)


def read_iommu(facts: HostFacts) -> Iommu:
    """Read the state; needs no permission."""
    host = facts.host
    units = host.names(_IOMMUS)
    groups = host.names(sysfs.GROUPS)
    allows_unsafe = any(host.read(path) == "Y" for path in UNSAFE_INTERRUPTS)
    vendor = _vendor(facts, units)
    if units and groups:
        state, evidence = IommuState.ON, f"{_counted(units, 'unit')} and {_counted(groups, 'group')} in sysfs"
    else:
        state, evidence = _why_not(facts, vendor)
    types = [host.read(f"{sysfs.GROUPS}/{group}/type") for group in groups]
    return Iommu(
        state,
        vendor,
        evidence,
        remaps_interrupts=sysfs.interrupts_are_remapped(host),
        allows_unsafe=allows_unsafe,
        # A device may have a type of its own either way: untrusted ones are translated, some must not be.
        passes_through=types.count("identity") > sum(one in ("DMA", "DMA-FQ") for one in types),
    )


def _counted(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}" if len(names) == 1 else f"{len(names)} {noun}s"


def _vendor(facts: HostFacts, units: list[str]) -> str:
    for unit in units:
        if unit.startswith("dmar"):
            return "intel"
        if unit.startswith("ivhd"):
            return "amd"
    if units:
        # "smmu3.0x000000002b400000"; that of virtio bears the address of its device.
        return "virtio" if sysfs.parsed([units[0]]) else units[0].partition(".")[0]
    for table, (name, _) in _KINDS.items():
        if facts.has(f"{_TABLES}/{table}"):
            return name
    return processor(facts)[0]


def processor(facts: HostFacts) -> tuple[str, frozenset[str]]:
    """Return the vendor of the processor, and its flags."""
    vendor, flags = "", ""
    for line in facts.text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "vendor_id":
            vendor = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(value.strip(), "")
        elif name.strip() == "flags":
            flags = value
            break
    return vendor, frozenset(flags.split())


def _why_not(facts: HostFacts, vendor: str) -> tuple[IommuState, str]:
    """Tell what keeps the IOMMU off."""
    if not facts.host.names("/sys/bus/pci/devices"):
        return IommuState.UNKNOWN, "there is no sysfs here, so nothing can be said of the machine"
    for table, (name, option) in _KINDS.items():
        if facts.has(f"{_TABLES}/{table}"):
            return _why_unused(facts, name, option, f"the firmware offers one (ACPI table {table})")
    _, flags = processor(facts)
    if "hypervisor" in flags:
        return IommuState.NO_HARDWARE, "this is a virtual machine, and it was given no IOMMU"
    if flags & {"vmx", "svm"}:
        maker = {"intel": "VT-d", "amd": "AMD-Vi or IOMMU"}.get(vendor, "IOMMU")
        what = "the processor can virtualize, but the firmware offers no IOMMU"
        return IommuState.OFF_IN_FIRMWARE, f"{what}: look for {maker} in its settings"
    return (
        IommuState.NO_HARDWARE,
        "neither processor nor firmware offers virtualization: it is not there, or off in the firmware",
    )


def _why_unused(facts: HostFacts, vendor: str, option: str, offer: str) -> tuple[IommuState, str]:
    """Tell why the kernel does not use an IOMMU that the firmware describes."""
    if token := _switch(facts, vendor, "off"):
        return IommuState.SWITCHED_OFF, f"{offer}, and the kernel runs with {token}"
    if _is_unset(facts, option):
        return IommuState.NO_SUPPORT, f"{offer}, and this kernel was built without {option}"
    if vendor == "intel" and (token := _switch(facts, vendor, "on")):
        what = f"{offer}, and the kernel makes no use of it though it runs with {token}"
        return IommuState.OFF_IN_FIRMWARE, what
    if vendor == "intel":
        return IommuState.ARGUMENT_MISSING, f"{offer}, and the kernel waits for intel_iommu=on"
    # AMD's is on whenever the firmware has enabled it; there is no argument for that.
    return IommuState.OFF_IN_FIRMWARE, f"{offer}, and no unit in it is enabled"


def _switch(facts: HostFacts, vendor: str, value: str) -> str:
    """Return the argument with which the kernel runs that switches the IOMMU on or off; empty for none.

    Values are lists, as in ``intel_iommu=on,sm_on``. Of several the last word counts.
    """
    found = ""
    for token in facts.running:
        name, _, values = token.partition("=")
        words = [word for word in values.split(",") if word in ("on", "off")]
        if name == f"{vendor}_iommu" and words:
            found = token if words[-1] == value else ""
    if not found and value == "off":
        found = next((token for token in facts.running if token.startswith("iommu=off")), "")
    return found


def _is_unset(facts: HostFacts, option: str) -> bool:
    """Tell whether the running kernel was surely built without an option."""
    version = facts.running_kernel
    text = configuration(facts.host, version, is_running=True) if version else ""
    return bool(text) and f"{option}=y" not in text.splitlines()
