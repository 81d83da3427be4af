"""Checks of the machine: processor, IOMMU, what the firmware allows."""

from virtpass.doctor.check import Check, Finding, Verdict, passed
from virtpass.doctor.scene import Scene
from virtpass.host.efi import secure_boot
from virtpass.host.iommu import IommuState, processor

_KVM = {"vmx": ("kvm_intel", "VT-x"), "svm": ("kvm_amd", "SVM or AMD-V")}
_MISC = "/sys/class/misc"
_LOCKDOWN = "/sys/kernel/security/lockdown"
_CONTAINERS = ("/run/systemd/container", "/run/.containerenv", "/.dockerenv")


def _processor(scene: Scene) -> list[Finding]:
    flags = processor(scene.facts)[1]
    kind = next((one for one in _KVM if one in flags), None)
    if _is_kvm_there(scene):
        return [passed(f"KVM is there{f' ({kind})' if kind else ''}")]
    if kind is None:
        if not flags:
            return [Finding(Verdict.UNKNOWN, "the processor's features are not listed here")]
        what = "the processor offers no virtualization (neither vmx nor svm)"
        return [Finding(Verdict.FAIL, what, "switch VT-x, or SVM (AMD-V), on in the firmware")]
    module, title = _KVM[kind]
    what = (
        f"the processor has {kind}, but KVM does not run: {module} is not loaded, or the firmware has it off"
    )
    fix = f"sudo modprobe {module} # if that is refused, switch {title} on in the firmware"
    return [Finding(Verdict.FAIL, what, fix)]


def _is_kvm_there(scene: Scene) -> bool:
    """Tell whether KVM works.

    A node of that name alone proves nothing: udev makes it at boot for whatever module might be loaded
    (modules.devname). The device behind it is registered by a driver that found virtualization. Snapshots do
    not have it; there the node has to do.
    """
    registered = scene.host.names(_MISC)
    return scene.host.exists("/dev/kvm") and ("kvm" in registered or not registered)


def _surroundings(scene: Scene) -> list[Finding]:
    for path in _CONTAINERS:
        if scene.host.exists(path):
            return [Finding(Verdict.FAIL, f"this is a container ({path})", "run virtpass on the host itself")]
    if "hypervisor" in processor(scene.facts)[1]:
        what = "this host is a virtual machine itself: it has the devices that its own host gave it"
        return [Finding(Verdict.WARN, what, "nothing, if that is what you want")]
    return [passed("this is a machine of its own")]


_FIXES = {
    IommuState.ARGUMENT_MISSING: "sudo virtpass setup # it goes on after a reboot",
    IommuState.SWITCHED_OFF: "take that argument out of the bootloader's configuration, then reboot",
    IommuState.NO_SUPPORT: "boot another kernel of the distribution",
    IommuState.OFF_IN_FIRMWARE: "switch VT-d, or AMD-Vi (IOMMU), on in the firmware",
    IommuState.NO_HARDWARE: "look for VT-d, AMD-Vi or IOMMU in the firmware's settings",
}
_FIX_OF_A_GUEST = "give this virtual machine an IOMMU (libvirt: <iommu model='intel'/>)"


def _iommu(scene: Scene) -> list[Finding]:
    iommu = scene.iommu
    if iommu.state is IommuState.UNKNOWN:
        return [Finding(Verdict.UNKNOWN, iommu.evidence)]
    if iommu.is_on:
        return [passed(f"on ({iommu.vendor or 'unknown kind'}), {iommu.evidence}")]
    is_guest = iommu.state is IommuState.NO_HARDWARE and "hypervisor" in processor(scene.facts)[1]
    fix = _FIX_OF_A_GUEST if is_guest else _FIXES[iommu.state]
    return [Finding(Verdict.FAIL, f"{iommu.state.value}: {iommu.evidence}", fix)]


def _interrupts(scene: Scene) -> list[Finding]:
    iommu = scene.iommu
    if not iommu.is_on:
        return [Finding(Verdict.UNKNOWN, "it shows only with the IOMMU on")]
    if iommu.remaps_interrupts:
        return [passed("interrupts are remapped")]
    if iommu.allows_unsafe or scene.outside.accepts_unsafe:
        what = "interrupts are not remapped, and VFIO was told to accept that"
        return [Finding(Verdict.WARN, what, "give devices only to guests that you trust")]
    return [
        Finding(
            Verdict.FAIL,
            "interrupts are not remapped, so VFIO refuses all devices",
            "switch interrupt remapping (x2APIC) on in the firmware, or update it; for guests that you trust:"
            " sudo virtpass setup --unsafe-interrupts",
        )
    ]


def _lockdown(scene: Scene) -> list[Finding]:
    is_secure = secure_boot(scene.host)
    boot = "" if is_secure is None else "on" if is_secure else "off"
    secure = f", Secure Boot is {boot}" if boot else ""
    text = scene.host.read(_LOCKDOWN)
    if text is None:
        if scene.outside.is_root or boot == "off":
            return [passed(f"this kernel knows no lockdown{secure}")]
        return [Finding(Verdict.UNKNOWN, f"{_LOCKDOWN} cannot be read{secure}", "sudo virtpass doctor")]
    mode = text.partition("[")[2].partition("]")[0] or text
    if mode == "none":
        return [passed(f"the kernel is not locked down{secure}")]
    return [
        Finding(
            Verdict.WARN,
            f"the kernel is locked down ({mode}){secure}: modules that nobody signed do not load",
            "nothing for vfio-pci; sign modules of your own, such as vendor-reset, or switch Secure Boot off",
        )
    ]


CHECKS = (
    Check(
        "cpu-virtualization",
        "hardware virtualization",
        "Without KVM a guest is emulated, some ten times slower, and no game or driver is usable. The"
        " processor needs VT-x or AMD-V, and the firmware must not have switched it off.",
        _processor,
    ),
    Check(
        "surroundings",
        "where virtpass runs",
        "In a container there is nobody to give devices to domains. In a virtual machine only those devices"
        " can be passed on that it was given, and only with an IOMMU of its own.",
        _surroundings,
    ),
    Check(
        "iommu",
        "IOMMU",
        "The IOMMU keeps a device inside the memory of the guest that has it. Without one the kernel gives no"
        " device away, and libvirt does not start a domain that has one.",
        _iommu,
    ),
    Check(
        "interrupt-remapping",
        "interrupt remapping",
        "A device that is not held back can send interrupts as if it were another one, and so take over the"
        " host. VFIO refuses it unless it is told that the guest is trusted.",
        _interrupts,
    ),
    Check(
        "lockdown",
        "Secure Boot and lockdown",
        "A kernel that is locked down loads signed modules only. The distribution's own are signed;"
        " vendor-reset, Looking Glass' kvmfr and NVIDIA's driver may not be.",
        _lockdown,
    ),
)
