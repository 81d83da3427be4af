"""Devices are kept awake while they change hands: runtime power management races with the unbind.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding import attributes
from virtpass.binding.journal import Journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.host import Host


def keep_awake(host: Host, journal: Journal, addresses: list[PciAddress]) -> None:
    """Let devices, and the ports above them, neither sleep nor lose power; put on record how it was.

    Raises:
        FailedError: that could not be recorded, or the kernel refused.
    """
    attributes.change(host, journal, wanted(host, addresses))


def wanted(host: Host, addresses: list[PciAddress]) -> list[tuple[str, str]]:
    """Return path and value of the attributes that keep devices awake."""
    found = []
    for address in addresses:
        above = controller(host.real_path(sysfs.device_path(address)).rpartition("/")[0])
        for one in (address, above):
            if one is not None and (path := sysfs.device_path(one)):
                found += [(f"{path}/power/control", "on"), (f"{path}/d3cold_allowed", "0")]
    return list(dict.fromkeys(found))
