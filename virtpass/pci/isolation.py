"""Can this device be given to a domain? The verdict, by the kernel's rule, with its reasons."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import Device, Inventory
from virtpass.pci.usage import all_keyboards, mediated_of


class Level(Enum):
    """How far a device is from being given to a domain; from best to worst."""

    READY = "ready"
    SHARED = "shared"
    BLOCKED = "blocked"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a verdict is not better, or what to know about it.

    Attributes:
        reference: stable kebab-case name.
        text: one sentence without a full stop.
        level: the verdict that this reason alone leads to.
    """

    reference: str
    text: str
    level: Level


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one device.

    Attributes:
        address: the device.
        level: the worst level among the reasons.
        reasons: why; empty for a device that is alone and spare.
    """

    address: PciAddress
    level: Level
    reasons: tuple[Reason, ...]

    @property
    def is_refused(self) -> bool:
        """Whether a domain cannot be started with the device as things are."""
        return self.level is not Level.READY


_ORDER = list(Level)


def judge(inventory: Inventory, address: PciAddress, going: frozenset[PciAddress] | None = None) -> Verdict:
    """Judge one device.

    Args:
        inventory: the host.
        address: the device.
        going: all devices that go to the same domain; by default all functions of the device's card.

    Raises:
        NotFoundError: there is no such device.
    """
    device = inventory.device(address)
    together = frozenset(inventory.card(address)) if going is None else going
    return concluded(address, _reasons(inventory, device, together | {address}))


def concluded(address: PciAddress, reasons: Iterable[Reason]) -> Verdict:
    """Return the verdict that reasons lead to."""
    found = tuple(reasons)
    level = max((reason.level for reason in found), key=_ORDER.index, default=Level.READY)
    return Verdict(address, level, found)


def must_go_along(inventory: Inventory, address: PciAddress) -> tuple[PciAddress, ...]:
    """Return the other members of a device's IOMMU group that have to go to the same domain.

    Raises:
        NotFoundError: there is no such device.
    """
    group = inventory.device(address).group
    return tuple(
        member
        for member in (inventory.groups[group] if group is not None else ())
        if member != address
        and not inventory.devices[member].is_bridge
        and sysfs.blocks_its_group(inventory.host, member)
    )


def _reasons(inventory: Inventory, device: Device, going: frozenset[PciAddress]) -> list[Reason]:
    if device.is_bridge:
        return [Reason("bridge", "bridges stay with the host", Level.NEVER)]
    if device.header_type == sysfs.NO_ANSWER:
        return [Reason("no-answer", "it does not answer any more", Level.NEVER)]
    if device.header_type not in (0, None):
        return [
            Reason("header-type", f"its header type {device.header_type} cannot be assigned", Level.NEVER)
        ]
    if not inventory.groups:
        # Not for ever: hardly a machine that runs domains has none, though it may be switched off.
        return [Reason("no-iommu", "no IOMMU is active on this host", Level.BLOCKED)]
    if device.group is None:
        return [Reason("no-group", "it has no IOMMU group", Level.NEVER)]
    if regions := sysfs.direct_regions(inventory.host, device.group):
        return [Reason("direct-region", f"the firmware keeps memory {regions[0]} mapped for it", Level.NEVER)]
    reasons = []
    if not inventory.interrupts_are_safe:
        reasons.append(_interrupts(inventory))
    reasons += _spared(inventory, device.address, going)
    reasons += _of_card(inventory, device, going)
    reasons += _companions(inventory, device.group, going)
    reasons += _notes(inventory, device)
    return reasons


def _spared(inventory: Inventory, address: PciAddress, going: frozenset[PciAddress]) -> list[Reason]:
    """Judge whether the host, and those who use what was made of a device, can spare it."""
    together = dict(all_keyboards(inventory.keyboards, going))
    phrases = [*inventory.needed.get(address, ()), together.get(address)]
    reasons = [Reason("host-needs-it", f"it {phrase}", Level.BLOCKED) for phrase in phrases if phrase]
    if count := sysfs.virtual_functions(inventory.host, address):
        text = f"it has {count} virtual functions, which would vanish"
        reasons.append(Reason("virtual-functions", text, Level.BLOCKED))
    if mediated_of(inventory.host, address):
        reasons.append(
            Reason("mediated-devices", "it has mediated devices, which would vanish", Level.BLOCKED)
        )
    return reasons


def _of_card(inventory: Inventory, device: Device, going: frozenset[PciAddress]) -> list[Reason]:
    """Judge the functions of a device's card that go with it; virtual functions go alone."""
    if device.physical_function is not None:
        return []
    reasons = []
    for member in inventory.card(device.address):
        other = inventory.devices[member]
        if member not in going or member == device.address or other.physical_function is not None:
            continue
        # A port of a NIC, say, that the IOMMU can keep apart, goes without the others.
        goes_alone = other.group != device.group
        level = Level.READY if goes_alone else Level.BLOCKED
        more = "; it goes without, by domain attach --single" if goes_alone else ""
        reasons += [
            Reason("card-needed", f"{member} of its card cannot go: {reason.text}{more}", level)
            for reason in _spared(inventory, member, going)
        ]
    return reasons


def _interrupts(inventory: Inventory) -> Reason:
    """Judge interrupts that are not remapped; whether that is allowed shows only when the module is there."""
    text = "interrupts are not remapped on this host"
    if inventory.host.exists("/sys/module/vfio_iommu_type1"):
        return Reason("no-interrupt-remapping", text, Level.BLOCKED)
    text += ": only where that is accepted, with --unsafe-interrupts"
    return Reason("no-interrupt-remapping", text, Level.READY)


def _companions(inventory: Inventory, group: int, going: frozenset[PciAddress]) -> list[Reason]:
    """Judge the other members of the group: bridges on pcieport and devices without driver do not count."""
    reasons = []
    for member in inventory.groups[group]:
        if member in going:
            continue
        other = inventory.devices[member]
        if phrases := inventory.needed.get(member):
            reasons.append(Reason("group-needed", f"{member} in its group {phrases[0]}", Level.BLOCKED))
        elif other.is_bridge and sysfs.blocks_its_group(inventory.host, member):
            text = f"bridge {member} in its group is bound to {other.driver}"
            reasons.append(Reason("group-bridge", text, Level.BLOCKED))
        elif not other.is_bridge and sysfs.blocks_its_group(inventory.host, member):
            text = f"{member} in its group must go with it (bound to {other.driver})"
            reasons.append(Reason("group-shared", text, Level.SHARED))
    return reasons


def _notes(inventory: Inventory, device: Device) -> list[Reason]:
    notes = []
    if device.driver == "nvidia":
        text = "bound to nvidia: goes only with display=hand-over, or unloaded before"
        notes.append(Reason("nvidia-driver", text, Level.READY))
    if device.physical_function is not None:
        notes.append(
            Reason("virtual-function", f"virtual function of {device.physical_function}", Level.READY)
        )
    if device.is_display and not any(
        other.is_display and other.address != device.address and other.driver not in (None, "vfio-pci")
        for other in inventory.devices.values()
    ):
        notes.append(Reason("only-display", "the host's only display: dark while it is away", Level.READY))
    return notes
