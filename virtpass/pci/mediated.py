"""Mediated devices: the types that a device offers, and what has been made of them."""

from dataclasses import dataclass

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import MEDIATED, controller
from virtpass.system.host import Host

_TYPES = "mdev_supported_types"


@dataclass(frozen=True, slots=True)
class MediatedType:
    """One type of mediated devices that a device offers.

    Attributes:
        parent: the device.
        name: the type's name in sysfs, such as ``i915-GVTg_V5_4``.
        label: what its driver calls it, such as ``GRID T4-1Q``; empty when it says nothing.
        description: what its driver says of it, in one line; may be empty.
        available: how many more can be made; None when the driver does not say.
        api: what a domain sees, such as ``vfio-pci``.
    """

    parent: PciAddress
    name: str
    label: str
    description: str
    available: int | None
    api: str

    @property
    def path(self) -> str:
        """Its directory in sysfs."""
        return f"{sysfs.device_path(self.parent)}/{_TYPES}/{self.name}"


@dataclass(frozen=True, slots=True)
class MediatedDevice:
    """One mediated device.

    Attributes:
        uuid: its UUID.
        parent: the PCI device that it is made of; None when that is no PCI device.
        type_name: the name of its type.
        group: number of its IOMMU group, None for none.
    """

    uuid: str
    parent: PciAddress | None
    type_name: str
    group: int | None


def mediated_types(host: Host, parent: PciAddress) -> tuple[MediatedType, ...]:
    """Return the types that a device offers, by name; none for most devices."""
    directory = f"{sysfs.device_path(parent)}/{_TYPES}"
    return tuple(_type(host, parent, name) for name in host.names(directory))


def parents(host: Host) -> list[PciAddress]:
    """Return the PCI devices that offer mediated devices, sorted."""
    return sorted(sysfs.parsed(host.names("/sys/class/mdev_bus")))


def mediated_devices(host: Host) -> list[MediatedDevice]:
    """Return all mediated devices of the host, by UUID."""
    found = []
    for uuid in host.names(MEDIATED):
        path = f"{MEDIATED}/{uuid}"
        group = host.link_name(f"{path}/iommu_group") or ""
        found.append(
            MediatedDevice(
                uuid=uuid,
                parent=controller(host.real_path(path)),
                type_name=host.link_name(f"{path}/mdev_type") or "",
                group=int(group) if group.isascii() and group.isdigit() else None,
            )
        )
    return found


def _type(host: Host, parent: PciAddress, name: str) -> MediatedType:
    path = f"{sysfs.device_path(parent)}/{_TYPES}/{name}"
    available = host.read(f"{path}/available_instances") or ""
    return MediatedType(
        parent=parent,
        name=name,
        label=host.read(f"{path}/name") or "",
        description=", ".join((host.read(f"{path}/description") or "").splitlines()),
        available=int(available) if available.isascii() and available.isdigit() else None,
        api=host.read(f"{path}/device_api") or "",
    )
