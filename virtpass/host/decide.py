"""From what a host is and what its user wants to what is written: the least that does it. Pure."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from virtpass.host import tokens
from virtpass.host.arguments import bound_module, evicts_framebuffer, judge_argument, left_out, matches
from virtpass.host.boot import Note, Severity
from virtpass.host.early import EarlyDevice, EarlyPlan
from virtpass.host.facts import HostFacts
from virtpass.host.iommu import UNSAFE_INTERRUPTS, Iommu, IommuState
from virtpass.host.kernels import Presence
from virtpass.host.known_arguments import Effect
from virtpass.host.wishes import Wishes
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.inventory import Inventory
from virtpass.pci.isolation import Level, Reason, judge
from virtpass.system.errors import RefusedError

_SWITCH = "intel_iommu=on"
_LATE = "let the hook take it when the domain starts; that needs no binding at boot"
_VFIO_MODULES = ("vfio_pci", "vfio", "vfio_iommu_type1")


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be written, before anybody knows how.

    Attributes:
        arguments: kernel arguments, in the order in which they are written.
        early: what modprobe and the initramfs are told.
        devices: the devices that vfio-pci shall have from boot on, by address or by id.
        notes: what the user should know.
    """

    arguments: tuple[str, ...]
    early: EarlyPlan
    devices: dict[PciAddress, Identity]
    notes: tuple[Note, ...]


def decide(
    facts: HostFacts,
    iommu: Iommu,
    inventory: Inventory,
    wishes: Wishes,
    *,
    runs_scripts: bool,
    loads_first: bool = False,
) -> Decision:
    """Decide what is written.

    Args:
        facts: the host.
        iommu: its IOMMU.
        inventory: its devices.
        wishes: what the user wants.
        runs_scripts: whether a script can run in the host's initramfs.
        loads_first: whether vfio-pci comes before the host's drivers even so.

    Raises:
        NotFoundError: a device is not there.
        RefusedError: a wish would take what the host needs, or does harm and the user did not accept that.
    """
    notes: list[Note] = []
    devices = _chosen(inventory, wishes, notes)
    _refuse_without_vfio(facts, bool(devices), notes)
    own = [*_for_iommu(facts, iommu, inventory, devices, notes)]
    if wishes.passthrough:
        own.append("iommu=pt")
    if wishes.acs_override:
        own.append(f"pcie_acs_override={wishes.acs_override}")
    if wishes.framebuffer_off:
        _note_framebuffer(facts, notes)
        own.append("initcall_blacklist=sysfb_init")
    arguments = _judged(own, facts, iommu, inventory, wishes, notes)
    by_address = runs_scripts and all(
        kernel.presence("vfio-pci") is not Presence.BUILT_IN for kernel in facts.kernels
    )
    if devices and not runs_scripts and not loads_first:
        _refuse_unloaded(facts)
    if devices and not by_address:
        arguments.append(_ids(facts.running, inventory, wishes, devices, notes, runs_scripts=runs_scripts))
    early = _early(facts, iommu, inventory, wishes, devices, notes, by_address=by_address)
    if not runs_scripts and loads_first:
        early = replace(early, by_id=_by_id(facts, devices))
    return Decision(tuple(arguments), early, devices, tuple(notes))


def _refuse_unloaded(facts: HostFacts) -> None:
    """Refuse to bind by id where nothing loads vfio-pci before the host's drivers.

    Raises:
        RefusedError: vfio-pci is a module of a kernel.
    """
    if any(kernel.presence("vfio-pci") is Presence.MODULE for kernel in facts.kernels):
        raise RefusedError(
            "no-early-binding",
            "nothing of ours runs in this initramfs, so the host's drivers would come before vfio-pci",
            "let the hook take devices when a domain starts; that needs no binding at boot",
        )


def _by_id(facts: HostFacts, devices: dict[PciAddress, Identity]) -> tuple[EarlyDevice, ...]:
    """Return what vfio-pci takes by id as the first module that is loaded; nothing where it is none.

    Raises:
        RefusedError: a driver that is built into a kernel has a device before any module is loaded.
    """
    kernels = [one for one in facts.kernels if one.presence("vfio-pci") is Presence.MODULE]
    for address in devices if kernels else ():
        driver = bound_module(facts.host, address) or sysfs.driver(facts.host, address) or ""
        for kernel in kernels:
            if driver and kernel.presence(driver) is Presence.BUILT_IN:
                raise RefusedError(
                    "built-in-driver",
                    f"{driver} is built into kernel {kernel.version}, and takes {address} before vfio-pci is "
                    "loaded",
                    _LATE,
                )
    return tuple(
        EarlyDevice(address, identity, host_modules(facts, address))
        for address, identity in (devices.items() if kernels else ())
    )


def _for_iommu(
    facts: HostFacts, iommu: Iommu, inventory: Inventory, devices: Iterable[PciAddress], notes: list[Note]
) -> Iterable[str]:
    """Return what switches the IOMMU on, or say who can."""
    if iommu.is_on:
        yield from _for_graphics(facts, inventory, devices, notes)
        return
    if iommu.state is IommuState.ARGUMENT_MISSING:
        yield _SWITCH
        return
    remedy = {
        IommuState.SWITCHED_OFF: "take that argument out of the boot menu first",
        IommuState.NO_SUPPORT: "install the distribution's usual kernel",
        IommuState.OFF_IN_FIRMWARE: "switch it on in the firmware's settings (VT-d, AMD-Vi, IOMMU)",
        IommuState.NO_HARDWARE: "no kernel argument helps",
        IommuState.UNKNOWN: f"--kernel-arg {_SWITCH} adds what an Intel processor may need",
    }[iommu.state]
    what = "" if iommu.state is IommuState.UNKNOWN else "no IOMMU is active: "
    text = f"{what}{iommu.evidence}; {remedy}"
    notes.append(Note("iommu", text, Severity.WARNING))


def _for_graphics(
    facts: HostFacts, inventory: Inventory, devices: Iterable[PciAddress], notes: list[Note]
) -> Iterable[str]:
    """Return what a host needs whose IOMMU is on."""
    if not tokens.missing((_SWITCH,), facts.running):
        # It may be on for that reason alone. Whether the argument is ours or the user's own is told later.
        yield _SWITCH
        return
    for address in left_out(inventory):
        if address in devices:
            text = f"the IOMMU is on, but not for the processor's own graphics: {_SWITCH} includes them"
            notes.append(Note("igpu", text))
            yield _SWITCH
        else:
            text = (
                f"the IOMMU leaves the processor's own graphics ({address}) out; to give it to a domain "
                f"add --kernel-arg {_SWITCH}"
            )
            notes.append(Note("igpu", text))


def _chosen(inventory: Inventory, wishes: Wishes, notes: list[Note]) -> dict[PciAddress, Identity]:
    """Return the devices to bind at boot, whole cards; refuse what the host cannot spare."""
    chosen: dict[PciAddress, Identity] = {}
    for address in wishes.bind:
        device = inventory.device(address)
        if device.physical_function is not None:
            raise RefusedError(
                "virtual-function",
                f"{address} is a virtual function, and there is none before {device.physical_function} "
                "has its driver",
                _LATE,
            )
        for one in (address, *inventory.card(address)):
            chosen[one] = inventory.devices[one].identity
    together = frozenset(chosen)
    supposed = with_groups(inventory)
    for address in sorted(chosen):
        for reason in judge(supposed, address, together).reasons:
            _weigh(address, reason, notes)
    return dict(sorted(chosen.items()))


def _weigh(address: PciAddress, reason: Reason, notes: list[Note]) -> None:
    """Refuse a device for a reason, or tell it."""
    if reason.reference in ("no-interrupt-remapping", "nvidia-driver"):
        # The first is told for the whole host; the second ends with the boot that binds early.
        return
    if reason.level in (Level.BLOCKED, Level.NEVER):
        raise RefusedError(
            "not-bindable",
            f"{address} cannot be taken from the host at boot: {reason.text}",
            f"virtpass device show {address} tells more",
        )
    if reason.reference == "only-display":
        text = f"{address} is the host's only display: from the next boot on it stays dark"
        notes.append(Note("only-display", text, Severity.WARNING))
    else:
        severity = Severity.WARNING if reason.level is Level.SHARED else Severity.NOTE
        notes.append(Note(reason.reference, f"{address}: {reason.text}", severity))


def with_groups(inventory: Inventory) -> Inventory:
    """Return the inventory as if the IOMMU were on for every device: a slot without a group gets one.

    That is what the plan may be about to change; what the host needs a device for counts all the same.
    """
    concerned = left_out(inventory) if inventory.groups else tuple(inventory.devices)
    number = max(inventory.groups, default=-1)
    slots: dict[tuple[int, ...], int] = {}
    devices = dict(inventory.devices)
    groups = dict(inventory.groups)
    for address in concerned:
        device = inventory.devices[address]
        if not device.is_bridge:
            group = slots.setdefault(address[:3], number + 1 + len(slots))
            devices[address] = replace(device, group=group)
            groups[group] = (*groups.get(group, ()), address)
    return replace(inventory, devices=devices, groups=groups)


def _ids(
    running: Sequence[str],
    inventory: Inventory,
    wishes: Wishes,
    devices: dict[PciAddress, Identity],
    notes: list[Note],
    *,
    runs_scripts: bool,
) -> str:
    """Return the argument that binds by id, where nothing can tell one device from another by its address."""
    why = "vfio-pci is built into a kernel" if runs_scripts else "no script of ours can run in this initramfs"
    if any(tokens.key(argument) == "vfio_pci.ids" for argument in wishes.arguments):
        raise RefusedError(
            "two-ids",
            f"--bind writes vfio-pci.ids= itself on this host ({why}), and of two the kernel takes the last",
            "name all devices with --bind",
        )
    words = {_words(identity): address for address, identity in devices.items()}
    for other in inventory.devices.values():
        if other.address in devices:
            continue
        for ids, address in words.items():
            if matches(ids, other):
                raise RefusedError(
                    "same-ids",
                    f"{address} cannot be told from {other.address} at boot: {why}, and both have the ids "
                    f"{inventory.devices[address].identity}",
                    _LATE,
                )
    text = (
        f"devices are bound by id, since {why}: one with the same ids that is put in later would be taken too"
    )
    notes.append(Note("by-id", text))
    argument = f"vfio-pci.ids={','.join(words)}"
    for token in running:
        if tokens.key(token) == tokens.key(argument) and not tokens.same(token, argument):
            text = f"the kernel runs with {token}, and of two it takes the last: leave only {argument}"
            notes.append(Note("two-ids", text, Severity.WARNING))
    return argument


def _words(identity: Identity) -> str:
    """Return an identity as an element of ``vfio-pci.ids=``; a device without a subsystem has zeros there."""
    return ":".join(f"{number:04x}" for number in identity[:4])


def _note_framebuffer(facts: HostFacts, notes: list[Note]) -> None:
    if evicts_framebuffer(facts):
        text = (
            "--framebuffer-off is hardly ever needed here: with the installed kernels vfio-pci takes the "
            "framebuffer of a boot display away by itself"
        )
        notes.append(Note("framebuffer", text))


def _judged(
    own: list[str],
    facts: HostFacts,
    iommu: Iommu,
    inventory: Inventory,
    wishes: Wishes,
    notes: list[Note],
) -> list[str]:
    """Return those arguments that do something; refuse those that harm, unless the user knows.

    Args:
        own: what follows from the host or from an option of its own, which is the user's word that he knows.
        facts: the host.
        iommu: its IOMMU.
        inventory: its devices.
        wishes: what else the user wants.
        notes: what the user should know is added here.
    """
    kept: list[str] = []
    wanted = [*((argument, True) for argument in own), *((one, False) for one in wishes.arguments)]
    for argument, is_accepted in wanted:
        if not tokens.missing((argument,), tuple(kept)):
            continue
        judgement = judge_argument(argument, facts, iommu, inventory)
        text = f"{argument} {judgement.text}"
        if judgement.effect is Effect.FORBIDDEN:
            raise RefusedError("forbidden-argument", text)
        if judgement.effect is Effect.USELESS:
            # Whoever asks for this one counts on what it does to the groups.
            severity = Severity.WARNING if argument.startswith("pcie_acs_override") else Severity.NOTE
            notes.append(Note("useless-argument", f"not written: {text}", severity))
            continue
        if judgement.effect is Effect.HARMFUL:
            if not (is_accepted or wishes.accept_risk):
                raise RefusedError("harmful-argument", text, "--accept-risk writes it all the same")
            notes.append(Note("harmful-argument", text, Severity.WARNING))
        elif judgement.text:
            notes.append(Note("argument", text))
        kept.append(argument)
    return kept


def _early(
    facts: HostFacts,
    iommu: Iommu,
    inventory: Inventory,
    wishes: Wishes,
    devices: dict[PciAddress, Identity],
    notes: list[Note],
    *,
    by_address: bool,
) -> EarlyPlan:
    modules = {address: host_modules(facts, address) for address in devices}
    found = tuple(EarlyDevice(one, identity, modules[one]) for one, identity in devices.items())
    softdeps: list[str] = []
    # A vfio-pci that is built in is there before all modules.
    if any(kernel.presence("vfio-pci") is Presence.MODULE for kernel in facts.kernels):
        softdeps += [name for names in modules.values() for name in names]
    lasting = {
        "blacklist": wishes.blacklist,
        "softdep": wishes.softdeps,
        "unsafe-interrupts": wishes.unsafe_interrupts,
    }
    if wishes.trial and (named := [f"--{name}" for name, wish in lasting.items() if wish]):
        raise RefusedError(
            "no-trial",
            f"{' and '.join(named)} would count in every boot, and cannot be tried in one",
            f"leave out --trial or {' and '.join(named)}",
        )
    for name in wishes.blacklist:
        _judge_blacklist(facts, inventory, wishes, name, devices, notes)
    for name in (*wishes.softdeps, *wishes.blacklist):
        if facts.kernels and all(kernel.presence(name) is Presence.MISSING for kernel in facts.kernels):
            notes.append(Note("no-module", f"no installed kernel has a module {name}", Severity.WARNING))
    return EarlyPlan(
        devices=found if by_address else (),
        softdeps=tuple(dict.fromkeys([*softdeps, *wishes.softdeps])),
        blacklist=tuple(dict.fromkeys(wishes.blacklist)),
        unsafe_interrupts=_wants_unsafe(facts, iommu, wishes, notes),
        modules=tuple(
            name
            for name in _VFIO_MODULES
            if any(kernel.presence(name) is Presence.MODULE for kernel in facts.kernels)
        ),
        is_trial=wishes.trial,
    )


def _wants_unsafe(facts: HostFacts, iommu: Iommu, wishes: Wishes, notes: list[Note]) -> bool:
    if not wishes.unsafe_interrupts:
        if iommu.is_on and not iommu.remaps_interrupts and not iommu.allows_unsafe:
            text = (
                "interrupts are not remapped, so VFIO refuses devices; a setting or an update of the "
                "firmware may change that, --unsafe-interrupts does without"
            )
            notes.append(Note("no-interrupt-remapping", text, Severity.WARNING))
        return False
    if iommu.remaps_interrupts:
        text = (
            "not written: --unsafe-interrupts changes nothing where interrupts are remapped, as they are here"
        )
        notes.append(Note("unsafe-interrupts", text))
        return False
    text = (
        "a guest with a device can send interrupts to the host: let no guest have one that you do not trust"
    )
    notes.append(Note("unsafe-interrupts", text, Severity.WARNING))
    if not facts.host.root and any(facts.host.read(path) == "N" for path in UNSAFE_INTERRUPTS):
        text = "VFIO is told at once too: it counts for every device that is attached from now on"
        notes.append(Note("unsafe-interrupts-now", text))
    return True


def _refuse_without_vfio(facts: HostFacts, is_needed: bool, notes: list[Note]) -> None:
    if is_needed and not facts.kernels:
        raise RefusedError(
            "no-kernel",
            "nothing can be bound at boot: /usr/lib/modules and /lib/modules have no kernel's modules",
            "install a kernel of the distribution",
        )
    without = [kernel.version for kernel in facts.kernels if kernel.presence("vfio-pci") is Presence.MISSING]
    if not without:
        return
    text = f"no vfio-pci in {', '.join(without)}"
    if is_needed and len(without) == len(facts.kernels):
        raise RefusedError(
            "no-vfio", text, "install the distribution's usual kernel, or its package of modules"
        )
    kernels = "this kernel" if len(without) == 1 else "these kernels"
    notes.append(
        Note("no-vfio", f"{text}: with {kernels} no device can be given to a domain", Severity.WARNING)
    )


def _judge_blacklist(
    facts: HostFacts,
    inventory: Inventory,
    wishes: Wishes,
    name: str,
    devices: Container[PciAddress],
    notes: list[Note],
) -> None:
    """Say who else loses a driver; refuse to take it from what the host needs."""
    if any(kernel.presence(name) is Presence.BUILT_IN for kernel in facts.kernels):
        notes.append(Note("built-in", f"{name} is built into a kernel, which a blacklist does not change"))
    losing = [
        address
        for address in inventory.devices
        if bound_module(facts.host, address) == name.replace("-", "_") and address not in devices
    ]
    for address in losing:
        if (phrases := inventory.needed.get(address)) and not wishes.accept_risk:
            raise RefusedError(
                "needed-module",
                f"{name} is the driver of {address}, which {phrases[0]}",
                "--softdep lets vfio-pci come first and leaves the others their driver",
            )
    text = f"the blacklist of {name} counts in every boot, that of the fallback entry included"
    notes.append(Note("blacklist", text))
    if losing:
        others = ", ".join(str(address) for address in losing)
        text = f"without {name} these devices have no driver either: {others}; --softdep would spare them"
        notes.append(Note("blacklist", text, Severity.WARNING))


def host_modules(facts: HostFacts, address: PciAddress) -> tuple[str, ...]:
    """Return the modules that would take a device by themselves, from the indexes of the installed kernels.

    Drivers that are built into every kernel are not among them, and neither is VFIO.
    """
    modalias = facts.host.read(f"{sysfs.device_path(address)}/modalias") or ""
    found = {module for kernel in facts.kernels for module in kernel.takers(modalias)}
    if bound := bound_module(facts.host, address):
        found.add(bound)
    return tuple(
        name
        for name in sorted(found)
        if not name.startswith("vfio")
        and any(kernel.presence(name) is Presence.MODULE for kernel in facts.kernels)
    )
