"""What sysfs says about one PCI device or IOMMU group.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity, serial_number
from virtpass.system.errors import NotFoundError, UsageError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

DEVICES = "/sys/bus/pci/devices"
DRIVERS = "/sys/bus/pci/drivers"
GROUPS = "/sys/kernel/iommu_groups"
_HEADER_BYTES, _CONFIG_BYTES = 64, 4096
# Seconds. A device that sleeps without power takes part of one to wake.
_CONFIG_DEADLINE = 10.0
NO_ANSWER = 0x7F
# The proprietary driver, which needs care of its own.
NVIDIA = "nvidia"

# Drivers that leave the DMA of their device to whoever owns the group (driver_managed_dma in the kernel's
# sources); the vfio variants are recognised by their directory vfio-dev.
_GROUP_FRIENDLY = ("vfio-pci", "pci-stub", "pcieport")


def device_path(address: PciAddress) -> str:
    """Return the directory of a device in sysfs."""
    return f"{DEVICES}/{address}"


def is_present(host: Host, address: PciAddress) -> bool:
    """Tell whether the kernel knows the device."""
    return host.exists(device_path(address))


def no_device(address: PciAddress) -> NotFoundError:
    """Return the error for an address at which there is nothing."""
    return NotFoundError(
        "no-device", f"there is no PCI device {address} on this host", "virtpass devices lists them"
    )


def driver(host: Host, address: PciAddress) -> str | None:
    """Return the name of the driver that a device is bound to, or None."""
    return host.link_name(device_path(address) + "/driver")


def number(host: Host, address: PciAddress, attribute: str) -> int | None:
    """Return a numeric attribute such as ``vendor`` or ``class``; None when it is missing or no number."""
    text = host.read(f"{device_path(address)}/{attribute}")
    try:
        return int(text, 0) if text else None
    except ValueError:
        return None


def identity(host: Host, address: PciAddress) -> Identity:
    """Return the ids and, as far as this user may read it, the serial number of a device.

    An id that cannot be read counts as 0.
    """
    vendor, device, board_vendor, board, _ = identity_without_serial(host, address)
    try:
        serial = serial_number(_config(host, address, _CONFIG_BYTES))
    except OSError:
        serial = ""
    return Identity(vendor, device, board_vendor, board, serial)


def identity_without_serial(host: Host, address: PciAddress) -> Identity:
    """Return the ids of a device alone, for which it need not be awake; errors as for `identity`."""
    vendor, device, board_vendor, board = (
        (number(host, address, attribute) or 0) & 0xFFFF
        for attribute in ("vendor", "device", "subsystem_vendor", "subsystem_device")
    )
    return Identity(vendor, device, board_vendor, board)


def header_type(host: Host, address: PciAddress) -> int | None:
    """Return the header type: 0 endpoint, 1 bridge, 2 CardBus bridge; None when it cannot be read.

    A device that does not answer any more reads as 0x7f, whether it is gone from the bus or its driver
    holds its lock.
    """
    try:
        config = _config(host, address, _HEADER_BYTES)
    except NoAnswer:
        return NO_ANSWER
    except OSError:
        return None
    return config[0x0E] & 0x7F if len(config) > 0x0E else None


def _config(host: Host, address: PciAddress, size: int) -> bytes:
    """Read the beginning of a device's configuration space; the kernel wakes the device for it.

    Raises:
        OSError: it cannot be read, or (NoAnswer) its driver does not let it wake.
    """
    return host.read_device(f"{device_path(address)}/config", size, _CONFIG_DEADLINE)


def group(host: Host, address: PciAddress) -> int | None:
    """Return the number of a device's IOMMU group, or None."""
    name = host.link_name(device_path(address) + "/iommu_group")
    return int(name) if name is not None and name.isascii() and name.isdigit() else None


def group_members(host: Host, group_number: int) -> list[PciAddress]:
    """Return the devices of an IOMMU group, sorted."""
    return sorted(parsed(host.names(f"{GROUPS}/{group_number}/devices")))


def addresses(host: Host) -> list[PciAddress]:
    """Return all PCI devices of the host, sorted."""
    return sorted(parsed(host.names(DEVICES)))


def parsed(names: list[str]) -> list[PciAddress]:
    """Return those of the names that are PCI addresses, parsed."""
    found = []
    for name in names:
        try:
            found.append(PciAddress.parse(name))
        except UsageError:
            continue
    return found


def direct_regions(host: Host, group_number: int) -> list[str]:
    """Return the reserved regions of a group for which the firmware demands a 1:1 mapping.

    The kernel refuses to give such a group to anybody (require_direct in drivers/iommu/iommu.c); regions of
    the type ``direct-relaxable`` do not count.
    """
    text = host.read(f"{GROUPS}/{group_number}/reserved_regions") or ""
    return [
        f"{words[0]}-{words[1]}" for line in text.splitlines() if (words := line.split())[2:] == ["direct"]
    ]


def blocks_its_group(host: Host, address: PciAddress) -> bool:
    """Tell whether a device's driver keeps its IOMMU group from being given to a domain.

    The kernel's rule (iommu_group_claim_dma_owner): no member may be bound to a driver that manages DMA
    itself; members without a driver are fine.
    """
    bound = driver(host, address)
    return bound is not None and bound not in _GROUP_FRIENDLY and not is_on_vfio(host, address)


def is_on_vfio(host: Host, address: PciAddress) -> bool:
    """Tell whether a device is bound to vfio-pci or one of its variants, which libvirt may prefer."""
    return driver(host, address) == "vfio-pci" or host.exists(device_path(address) + "/vfio-dev")


def group_is_open(host: Host, address: PciAddress) -> bool:
    """Tell whether a process, such as a running domain, has the VFIO group of a device open."""
    number = group(host, address)
    return number is not None and host.device_node_is_busy(f"/dev/vfio/{number}")


def virtual_functions(host: Host, address: PciAddress) -> int:
    """Return how many virtual functions a device has now; they vanish when its driver is unbound."""
    return sum(name.startswith("virtfn") for name in host.names(device_path(address)))


def interrupts_are_safe(host: Host) -> bool:
    """Tell whether VFIO finds interrupts remapped, or was told to go without."""
    allowed = host.read("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")
    return allowed == "Y" or interrupts_are_remapped(host)


def interrupts_are_remapped(host: Host) -> bool:
    """Tell whether a device can only send interrupts of its own.

    On x86 the names of remapped interrupt chips begin with ``IR-`` (Intel and AMD), and that of the I/O APIC
    is plain when they are not. Elsewhere the interrupt controller itself keeps devices apart.
    """
    is_plain = False
    for interrupt in host.names("/sys/kernel/irq"):
        name = host.read(f"/sys/kernel/irq/{interrupt}/chip_name") or ""
        if name.startswith("IR-"):
            return True
        is_plain = is_plain or name == "IO-APIC"
    return not is_plain
