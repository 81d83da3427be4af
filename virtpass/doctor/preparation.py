"""Checks of what the host boots: modules of each kernel, and what virtpass has applied."""

from virtpass.doctor.check import Check, Finding, Verdict, passed
from virtpass.doctor.scene import Scene
from virtpass.host.kernels import Presence
from virtpass.host.status import Verdict as HostVerdict

_MODULES = ("vfio-pci", "vfio_iommu_type1")
_VERDICTS = {
    HostVerdict.RIGHT: Verdict.PASS,
    HostVerdict.WAITING: Verdict.WARN,
    HostVerdict.WRONG: Verdict.FAIL,
    HostVerdict.UNKNOWN: Verdict.UNKNOWN,
}
_FIXES = {
    HostVerdict.RIGHT: "",
    HostVerdict.WAITING: "reboot",
    HostVerdict.WRONG: "sudo virtpass setup ADDRESS DOMAIN writes it anew, sudo virtpass host revert takes it"
    " all back",
    HostVerdict.UNKNOWN: "sudo virtpass doctor",
}
# Which comparisons of the host layer belong to which check here; all others are about the kernel arguments.
_INITRAMFS, _EARLY = ("initramfs",), ("early-binding",)
# What stands in place of all of them where this user may not read the record.
_RECORD = "record"


def _modules(scene: Scene) -> list[Finding]:
    found = []
    for kernel in scene.facts.kernels:
        missing = [name for name in _MODULES if kernel.presence(name) is Presence.MISSING]
        about = f"{kernel.version} (running)" if kernel.is_running else kernel.version
        if not missing:
            found.append(passed(f"has {' and '.join(_MODULES)}", about))
            continue
        fix = "install the package with all modules of that kernel, or boot another one"
        grave = Verdict.FAIL if kernel.is_running else Verdict.WARN
        found.append(Finding(grave, f"lacks {' and '.join(missing)}", fix, about))
    return found or [Finding(Verdict.UNKNOWN, "no installed kernel is found")]


def _arguments(scene: Scene) -> list[Finding]:
    return _compared(scene, None)


def _initramfs(scene: Scene) -> list[Finding]:
    return _compared(scene, _INITRAMFS)


def _early(scene: Scene) -> list[Finding]:
    return _compared(scene, _EARLY)


def _compared(scene: Scene, references: tuple[str, ...] | None) -> list[Finding]:
    """Return what the host layer has compared under these names; under all others for None."""
    if references is None and scene.outside.is_unfinished:
        what = "a change of the host was cut off half way"
        return [Finding(Verdict.FAIL, what, "sudo virtpass host recover")]
    unread = [one.text for one in scene.outside.host_checks if one.reference == _RECORD]
    if problem := scene.outside.host_problem or next(iter(unread), ""):
        return [Finding(Verdict.UNKNOWN, problem, "" if scene.outside.is_root else "sudo virtpass doctor")]
    others = (*_INITRAMFS, *_EARLY)
    found = [
        Finding(_VERDICTS[one.verdict], one.text, _FIXES[one.verdict])
        for one in scene.outside.host_checks
        if (one.reference in references if references is not None else one.reference not in others)
    ]
    return found or [passed("virtpass has changed nothing of it")]


CHECKS = (
    Check(
        "vfio-modules",
        "VFIO in each installed kernel",
        "vfio-pci takes the place of a device's driver while a guest has it. A kernel without it, such as"
        " that of a cloud image, boots well and starts no domain that has a device.",
        _modules,
    ),
    Check(
        "kernel-arguments",
        "kernel arguments: written, on the boot menu, running",
        "A kernel argument works only when it has come all the way: into the configuration of the bootloader,"
        " into what that generates, and onto the command line of the kernel that runs.",
        _arguments,
    ),
    Check(
        "initramfs",
        "contents of the initramfs",
        "What has to happen before the first driver takes a device must be in the initramfs of each kernel.",
        _initramfs,
    ),
    Check(
        "early-binding",
        "devices that are bound at boot",
        "A device that is to be on vfio-pci from the boot on may have been taken by its driver first.",
        _early,
    ),
)
