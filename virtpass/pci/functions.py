"""SR-IOV: the virtual functions that a device can have, and has.

Nothing here takes the lock of the device: its driver may hold that for ever. So the functions are counted by
their links and not read from ``sriov_numvfs``, whose reading waits for the lock (sriov_numvfs_show in the
kernel's drivers/pci/iov.c, since 5.7); the links are there when the write that makes them has come back.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host

COUNT = "sriov_numvfs"
AUTOPROBE = "sriov_drivers_autoprobe"
_TOTAL = "sriov_totalvfs"
_OFFSET = "sriov_offset"
_STRIDE = "sriov_stride"
_LINK = "virtfn"
# Bus, slot and function of a device in one number of 16 bits.
_MOST_ROUTING = 0xFFFF


class PhysicalFunction(tuple[PciAddress, int, bool | None, int, int, tuple[PciAddress, ...]]):
    """A device that can have virtual functions: what sysfs says of it."""

    __slots__ = ()

    def __new__(
        cls,
        address: PciAddress,
        total: int,
        autoprobe: bool | None,
        offset: int,
        stride: int,
        functions: tuple[PciAddress, ...],
    ) -> PhysicalFunction:
        """Hold them together."""
        return super().__new__(cls, (address, total, autoprobe, offset, stride, functions))

    @property
    def address(self) -> PciAddress:
        """Where it is."""
        return self[0]

    @property
    def total(self) -> int:
        """How many it can have."""
        return self[1]

    @property
    def autoprobe(self) -> bool | None:
        """Whether the host's drivers take new ones; None where the kernel has no such setting."""
        return self[2]

    @property
    def functions(self) -> tuple[PciAddress, ...]:
        """Where they are, in the device's order."""
        return self[5]

    @property
    def number(self) -> int:
        """How many it has now."""
        return len(self.functions)

    def expected(self, count: int) -> tuple[PciAddress, ...]:
        """Return where functions come when there are ``count`` of them; empty when the device does not tell.

        The first has the routing id of the device plus the offset, each further one that of the one before
        plus the stride (pci_iov_virtfn_bus and pci_iov_virtfn_devfn in the kernel's drivers/pci/iov.c). A
        device may change both with the number of functions, so this is to be compared once they are there.
        """
        address, offset, stride = self[0], self[3], self[4]
        first = (address.bus << 8 | address.slot << 3 | address.function) + offset
        if offset < 1 or stride < 0 or count < 1 or first + stride * (count - 1) > _MOST_ROUTING:
            return ()
        ids = [first + stride * number for number in range(count)]
        return tuple(PciAddress(address.domain, one >> 8, one >> 3 & 0x1F, one & 7) for one in ids)


def physical_function(host: Host, address: PciAddress) -> PhysicalFunction | None:
    """Read what a device has to do with SR-IOV; None when it can have no virtual functions."""
    total = sysfs.number(host, address, _TOTAL)
    if not total:
        return None
    path = sysfs.device_path(address)
    autoprobe = sysfs.number(host, address, AUTOPROBE)
    numbered = sorted(
        (int(name.removeprefix(_LINK)), target)
        for name in host.names(path)
        if name.startswith(_LINK)
        and name.removeprefix(_LINK).isdecimal()
        and (target := host.link_name(f"{path}/{name}")) is not None
    )
    return PhysicalFunction(
        address,
        total,
        None if autoprobe is None else bool(autoprobe),
        sysfs.number(host, address, _OFFSET) or 0,
        sysfs.number(host, address, _STRIDE) or 0,
        tuple(sysfs.parsed([target for _, target in numbered])),
    )


def owner(host: Host, address: PciAddress) -> PciAddress | None:
    """Return the device that a virtual function belongs to; None when it is no virtual function."""
    found = sysfs.parsed([host.link_name(f"{sysfs.device_path(address)}/physfn") or ""])
    return found[0] if found else None
