"""What must hold before the first write to a device; each check refuses with one line that says why.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding.holders import holders, named
from virtpass.binding.journal import journals, read_journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.usage import claimed_disk, mediated_of, used_by_host
from virtpass.system.errors import NotFoundError, RefusedError
from virtpass.system.host import Host

_HOW_TO_MOVE_SEVERAL = (
    "several have moved: find them in virtpass devices, virtpass domain attach {domain} those that are"
    " missing, virtpass domain detach {domain} those that are not its any more, then virtpass domain adopt"
    " {domain}"
)
_SPARE = "free it first, or leave it with the host"


def refuse_unsafe(host: Host, addresses: list[PciAddress], *, hands_over: bool = False) -> None:
    """Refuse devices that cannot be given away, or that the host cannot spare at this moment.

    Args:
        host: the host.
        addresses: all devices that go together; each has passed `refuse_unassignable`.
        hands_over: programs that use one will be asked to let go of it.

    Raises:
        RefusedError: the kernel would refuse, the host needs one of them, or a process uses one.
    """
    if not sysfs.interrupts_are_safe(host):
        raise RefusedError(
            "no-interrupt-remapping",
            "interrupts are not remapped on this host, so a device could be made to disturb it",
            "switch interrupt remapping on in the firmware (VT-d, AMD-Vi, x2APIC), or for guests that you"
            " trust: sudo virtpass setup --unsafe-interrupts",
        )
    refuse_shared_group(host, addresses)
    refuse_in_use(host, addresses, hands_over=hands_over)


def companions(host: Host, addresses: list[PciAddress]) -> list[PciAddress]:
    """Return the other functions of the devices' cards that share their IOMMU groups.

    The kernel gives a group away as a whole, and resets a card only when all its functions are on vfio-pci.
    """
    found = []
    for address in addresses:
        group = sysfs.group(host, address)
        for member in sysfs.group_members(host, group) if group is not None else ():
            is_of_card = member[:3] == address[:3] and member not in addresses
            if is_of_card and member not in found and sysfs.header_type(host, member) in (0, None):
                found.append(member)
    return sorted(found)


def refuse_in_use(host: Host, addresses: list[PciAddress], *, hands_over: bool = False) -> None:
    """Refuse devices that the host needs, that a process has open, or that cannot be unbound safely.

    Args:
        host: the host.
        addresses: the devices.
        hands_over: programs that use one will be asked to let go of it, and drivers unloaded.

    Raises:
        RefusedError: naming what or who uses one of them.
    """
    needed = used_by_host(host, addresses)
    for address in addresses:
        refuse_open_group(host, address)
        if phrases := needed.get(address):
            raise RefusedError("host-needs-it", f"{address} {phrases[0]} of this host", _SPARE)
        if disk := claimed_disk(host, address):
            raise RefusedError(
                "disk-in-use", f"{address} has a disk in use ({disk})", "unmount or stop what uses it"
            )
        if count := sysfs.virtual_functions(host, address):
            what = f"{address} has {count} virtual functions, which would vanish from whoever uses them"
            raise RefusedError("virtual-functions", what, f"virtpass device functions {address} 0")
        if made := mediated_of(host, address):
            what = f"{address} has mediated devices, which would vanish from whoever uses them: {made[0]}"
            raise RefusedError("mediated-devices", what, f"virtpass mdev remove {made[0]}")
        if sysfs.driver(host, address) == sysfs.NVIDIA and not hands_over:
            raise RefusedError(
                "nvidia-driver",
                f"{address} is bound to nvidia, which may hang for ever when it is unbound",
                "with virtpass domain policy DOMAIN display=hand-over the domain's start unloads it; else"
                " unload it first (modprobe -r nvidia_drm nvidia_modeset nvidia_uvm nvidia), or where another"
                " card needs it, keep it off this one with driver_override from boot on",
            )
    if held := holders(host, addresses) if not hands_over else []:
        raise RefusedError(
            "held",
            f"the device is in use by {named(held)}",
            "end these programs first, or let the desktop go for this domain "
            "(virtpass domain policy DOMAIN display=hand-over)",
        )


def refuse_unassignable(host: Host, address: PciAddress) -> None:
    """Refuse what VFIO can never give away: bridges, devices without IOMMU group, reserved memory.

    Raises:
        NotFoundError: there is no such device.
        RefusedError: the kernel would refuse it.
    """
    if not sysfs.is_present(host, address):
        raise sysfs.no_device(address)
    header = sysfs.header_type(host, address)
    if header == sysfs.NO_ANSWER:
        raise RefusedError(
            "no-answer", f"{address} does not answer any more", "switch the host off and on again"
        )
    if header not in (0, None) or (sysfs.number(host, address, "class") or 0) >> 16 == 6:
        raise RefusedError("bridge", f"{address} is a bridge, which stays with the host")
    group = sysfs.group(host, address)
    if group is None:
        if host.names(sysfs.GROUPS):
            raise RefusedError("no-group", f"{address} has no IOMMU group, so it cannot be isolated")
        raise RefusedError(
            "no-iommu",
            f"{address} cannot be isolated: no IOMMU is active on this host",
            "virtpass doctor says what mends it",
        )
    if regions := sysfs.direct_regions(host, group):
        raise RefusedError(
            "direct-region", f"the firmware keeps memory {regions[0]} mapped for {address} (RMRR)"
        )


def refuse_shared_group(host: Host, addresses: list[PciAddress]) -> None:
    """Refuse when others in the IOMMU groups of the devices would stay with drivers of the host.

    Raises:
        RefusedError: naming them.
    """
    groups = {sysfs.group(host, address) for address in addresses} - {None}
    for group in sorted(group for group in groups if group is not None):
        blocking = [
            f"{member} ({sysfs.driver(host, member)})"
            for member in sysfs.group_members(host, group)
            if member not in addresses and sysfs.blocks_its_group(host, member)
        ]
        if blocking:
            raise RefusedError(
                "group-not-isolated",
                f"IOMMU group {group} cannot be split: {', '.join(blocking)} would stay with the host",
                "give these to the domain too, or move the card to another slot",
            )


def refuse_moved(host: Host, recorded: dict[PciAddress, Identity], domain: str) -> None:
    """Refuse devices that are not the ones that were attached: addresses move when cards are added.

    Args:
        host: the host.
        recorded: the devices, and what was there when they were attached.
        domain: the name of the domain that they were attached to.

    Raises:
        RefusedError: another device is at an address now; where the one that was attached may be is named.
        NotFoundError: nothing is at an address.
    """
    seen = {one: sysfs.identity(host, one) if sysfs.is_present(host, one) else None for one in recorded}
    there = [one for one, now in seen.items() if now is not None and recorded[one].is_same_device(now)]
    for address, was in recorded.items():
        now = seen[address]
        if address in there:
            continue
        places, is_certain = _places(host, address, was, there)
        if now is None and not places:
            raise NotFoundError(
                "no-device",
                f"there is no PCI device {address} any more, which was {was}",
                f"if it is gone for good: virtpass domain detach {_word(domain)} {address}",
            )
        where, remedy = "", "attach the device at its new address"
        # To detach one address would take away what another device has just been recorded for.
        several = any(one in recorded for one in places)
        if places:
            subject = "that" if is_certain else "one like that"
            where = f"; {subject} is at {' and at '.join(map(str, places))}"
            remedy = _how_to_move(domain, address, places, is_certain=is_certain)
        if several:
            remedy = _HOW_TO_MOVE_SEVERAL.format(domain=_word(domain))
        if now is None:
            what = f"there is no PCI device {address} any more, which was {was} when it was attached{where}"
            raise NotFoundError("no-device", what, remedy)
        keep = "" if several else f", or virtpass domain adopt {_word(domain)} to keep what is there now"
        raise RefusedError(
            "other-device",
            f"{address} is {now} now, not {was} as when it was attached{where}",
            f"{remedy}{keep}",
        )


def _places(
    host: Host, address: PciAddress, wanted: Identity, others: list[PciAddress]
) -> tuple[list[PciAddress], bool]:
    """Return where a device may be that is not where it was, except where others are known to be.

    Returns:
        the addresses, and whether it is for certain there, by its serial number and function.
    """
    found = {
        one: sysfs.identity(host, one)
        for one in sysfs.addresses(host)
        # Of these only the serial number is read: a device has to wake for that.
        if one not in others and sysfs.identity_without_serial(host, one)[:4] == wanted[:4]
    }
    certain = [one for one, seen in found.items() if wanted.serial and seen == wanted]
    places = certain or [one for one, seen in found.items() if wanted.is_same_device(seen)]
    # All functions of a card may have its serial number.
    places = [one for one in places if one.function == address.function] or places
    return places, bool(certain) and len(places) == 1


def _how_to_move(domain: str, address: PciAddress, places: list[PciAddress], *, is_certain: bool) -> str:
    """Return what to do about a device that has moved.

    Args:
        domain: the name of the domain.
        address: where it was.
        places: where it may be.
        is_certain: whether it is there.
    """
    there, condition = str(places[0]), "" if is_certain else "if that is it, "
    if len(places) > 1:
        there, condition = "ADDRESS", "with the address of the right one, "
    # In this order: with its last device the domain would lose its policy.
    return (
        f"{condition}virtpass domain attach {_word(domain)} {there}"
        f" and then virtpass domain detach {_word(domain)} {address}"
    )


def _word(name: str) -> str:
    """Return a domain's name as one word for a shell; shlex would make the hook import re."""
    is_plain = name.isascii() and name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    return name if is_plain else "'{}'".format(name.replace("'", "'\"'\"'"))


def refuse_switched_off(host: Host) -> None:
    """Refuse every device in a boot that was chosen as the way back.

    Raises:
        RefusedError: the kernel was started with ``virtpass=off``.
    """
    if "virtpass=off" in (host.read("/proc/cmdline") or "").split():
        raise RefusedError(
            "switched-off",
            "this boot keeps all devices with the host (virtpass=off)",
            "reboot into the usual entry of the boot menu",
        )


def refuse_lent(
    host: Host, addresses: list[PciAddress], borrower: str, *, freed: frozenset[str] = frozenset()
) -> None:
    """Refuse devices that another domain has borrowed.

    Args:
        host: the host.
        addresses: the devices.
        borrower: UUID of the domain that asks.
        freed: UUIDs of domains that have ended, and whose devices are given back first.

    Raises:
        RefusedError: naming the other domain.
    """
    for uuid in journals(host):
        journal = read_journal(host, uuid) if uuid != borrower and uuid not in freed else None
        for home in journal.homes if journal else ():
            if home.address in addresses:
                name = journal.name if journal else uuid
                remedy = "shut that down first, or run virtpass recover"
                raise RefusedError("lent", f"{home.address} is lent to the domain {name}", remedy)


def refuse_open_group(host: Host, address: PciAddress) -> None:
    """Refuse a device that a running virtual machine has, whoever started that.

    Raises:
        RefusedError: its VFIO group is open.
    """
    if sysfs.group_is_open(host, address):
        raise RefusedError("in-use", f"{address} is used by a running virtual machine", "shut it down first")
