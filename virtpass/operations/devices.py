"""The PCI devices of the host, with names, verdicts and who has borrowed them."""

from dataclasses import dataclass

from virtpass.binding import engine
from virtpass.binding.holders import holders
from virtpass.binding.journal import journals, read_journal
from virtpass.binding.reservations import is_stale
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import PhysicalFunction, physical_function
from virtpass.pci.identity import Identity
from virtpass.pci.inventory import Device, Inventory, read_device, read_inventory
from virtpass.pci.isolation import Level, Reason, Verdict, concluded, judge
from virtpass.pci.mediated import MediatedDevice, MediatedType, mediated_devices, mediated_types
from virtpass.pci.names import Name, device_names
from virtpass.pci.sysfs import parsed
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

# Why no start touches a device before the next boot.
STUCK = "stuck"


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """One device as it is shown.

    Attributes:
        device: its values.
        name: what the hardware database calls it.
        verdict: whether it can be given to a domain, with its card; not while a driver hangs with it.
        lent_to: name of the domain that has borrowed it, None when none has.
        is_left: whether that domain has certainly ended without giving it back; the next start that needs the
            device takes it all the same.
    """

    device: Device
    name: Name
    verdict: Verdict
    lent_to: str | None
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class DeviceDetails:
    """One device with all that can be said about it.

    Attributes:
        report: as in the list.
        identity: its ids with the serial number where this user may see it.
        companions: the other members of its IOMMU group.
        card: all functions of its slot that go together.
        reset_methods: how the kernel can reset it alone, first choice first; empty for not at all.
        resets_with_bus: whether VFIO can reset it with its card's other functions, by their bus.
        used_by: processes that have it open, as (process id, program, device node).
        functions: the virtual functions that it can have, and has; None when it can have none.
        mediated_types: the types of mediated devices that it offers.
        mediated: the mediated devices that are made of it.
    """

    report: DeviceReport
    identity: Identity
    companions: tuple[DeviceReport, ...]
    card: tuple[PciAddress, ...]
    reset_methods: tuple[str, ...]
    resets_with_bus: bool
    used_by: tuple[tuple[int, str, str], ...]
    functions: PhysicalFunction | None
    mediated_types: tuple[MediatedType, ...]
    mediated: tuple[MediatedDevice, ...]


def list_devices(host: Host) -> list[DeviceReport]:
    """Return all devices of the host, by IOMMU group and address; devices without group come last."""
    inventory = read_inventory(host)
    devices = sorted(
        inventory.devices.values(), key=lambda device: (device.group is None, device.group, device.address)
    )
    return reports(inventory, devices)


def show_device(host: Host, address: PciAddress) -> DeviceDetails:
    """Return one device with its surroundings.

    Raises:
        NotFoundError: there is none at that address.
    """
    inventory = read_inventory(host)
    device = inventory.device(address)
    members = inventory.groups.get(device.group, ()) if device.group is not None else ()
    report, *companions = reports(
        inventory, [device, *(inventory.devices[member] for member in members if member != address)]
    )
    return DeviceDetails(
        report=report,
        identity=read_device(host, address).identity,
        companions=tuple(companions),
        card=inventory.card(address),
        reset_methods=tuple((host.read(f"/sys/bus/pci/devices/{address}/reset_method") or "").split()),
        resets_with_bus=inventory.resets_with_bus(address),
        used_by=tuple(holders(host, [address])),
        functions=physical_function(host, address),
        mediated_types=mediated_types(host, address),
        mediated=tuple(one for one in mediated_devices(host) if one.parent == address),
    )


def reports(inventory: Inventory, devices: list[Device]) -> list[DeviceReport]:
    """Return devices of an inventory with names, verdicts and borrowers."""
    names = device_names(inventory.host, devices)
    lent = _borrowed(inventory.host)
    stuck = _stuck(inventory.host)
    return [
        DeviceReport(
            device,
            names.get(device.address, Name()),
            _with_stuck(judge(inventory, device.address), stuck.get(device.address)),
            *lent.get(device.address, (None, False)),
        )
        for device in devices
    ]


def lent_devices(host: Host) -> dict[PciAddress, str]:
    """Return the names of the domains that have borrowed something; an unreadable record counts as none."""
    return {address: name for address, (name, _) in _borrowed(host).items()}


def _stuck(host: Host) -> dict[PciAddress, str]:
    """Return what there is to say of devices with which a driver hangs; no start touches these."""
    found = {}
    for address in parsed(host.names(engine.STUCK_DIRECTORY)):
        try:
            engine.refuse_stuck(host, address)
        except VirtpassError as error:
            # Where the mark cannot be read, a start refuses all the same.
            is_plain = error.reference == STUCK
            found[address] = "a driver hangs with it until the next boot" if is_plain else error.what
    return found


def _with_stuck(verdict: Verdict, text: str | None) -> Verdict:
    """Return a verdict that says of a device that it is stuck, which is why it does not answer."""
    if text is None:
        return verdict
    others = [reason for reason in verdict.reasons if reason.reference != "no-answer"]
    return concluded(verdict.address, [Reason(STUCK, text, Level.BLOCKED), *others])


def _borrowed(host: Host) -> dict[PciAddress, tuple[str, bool]]:
    """Return who has borrowed what, and whether that domain has certainly ended."""
    lent = {}
    for uuid in journals(host):
        try:
            journal = read_journal(host, uuid)
        except VirtpassError:
            continue
        if journal is not None:
            is_left = is_stale(host, journal)
            lent.update({home.address: (journal.name, is_left) for home in journal.homes})
    return lent
