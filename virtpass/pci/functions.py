"""SR-IOV: the virtual functions that a device can have, and has."""

from dataclasses import dataclass

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host

COUNT = "sriov_numvfs"
AUTOPROBE = "sriov_drivers_autoprobe"
_TOTAL = "sriov_totalvfs"
_LINK = "virtfn"


@dataclass(frozen=True, slots=True)
class PhysicalFunction:
    """A device that can have virtual functions.

    Attributes:
        address: where it is.
        total: how many it can have.
        count: how many it has now.
        autoprobe: whether the host's drivers take new ones; None where the kernel has no such setting.
        functions: where they are, in the device's order.
    """

    address: PciAddress
    total: int
    count: int
    autoprobe: bool | None
    functions: tuple[PciAddress, ...]


def physical_function(host: Host, address: PciAddress) -> PhysicalFunction | None:
    """Read what a device has to do with SR-IOV; None when it can have no virtual functions."""
    total = sysfs.number(host, address, _TOTAL)
    if not total:
        return None
    path = sysfs.device_path(address)
    autoprobe = sysfs.number(host, address, AUTOPROBE)
    numbered = sorted(
        (int(name.removeprefix(_LINK)), host.link_name(f"{path}/{name}") or "")
        for name in host.names(path)
        if name.startswith(_LINK) and name.removeprefix(_LINK).isdecimal()
    )
    return PhysicalFunction(
        address=address,
        total=total,
        count=sysfs.number(host, address, COUNT) or 0,
        autoprobe=None if autoprobe is None else bool(autoprobe),
        functions=tuple(sysfs.parsed([name for _, name in numbered])),
    )


def owner(host: Host, address: PciAddress) -> PciAddress | None:
    """Return the device that a virtual function belongs to; None when it is no virtual function."""
    found = sysfs.parsed([host.link_name(f"{sysfs.device_path(address)}/physfn") or ""])
    return found[0] if found else None
