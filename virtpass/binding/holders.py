"""Which processes of the host use a device, through the device nodes that its driver made.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host

# The kernel takes input devices away from whoever reads them without harm, and logind reads every keyboard
# that has a power key.
_HARMLESS = ("input/",)


def device_nodes(host: Host, address: PciAddress) -> set[str]:
    """Return the device nodes that a device's driver made, such as ``/dev/dri/card0``."""
    return {node for node in _nodes(host, sysfs.device_path(address)) if not node[5:].startswith(_HARMLESS)}


def holders(host: Host, addresses: list[PciAddress]) -> list[tuple[int, str, str]]:
    """Return the processes that have a node of one of the devices open.

    Only what this user may see is found: all of it for root.

    Returns:
        process id, name of the program, device node; one entry for each process, sorted.
    """
    nodes: set[str] = set()
    for address in addresses:
        nodes |= device_nodes(host, address)
    if not nodes:
        return []
    found = {}
    for name in host.names("/proc"):
        if not name.isdigit():
            continue
        for descriptor in host.names(f"/proc/{name}/fd"):
            target = host.link_target(f"/proc/{name}/fd/{descriptor}")
            if target in nodes:
                found[int(name)] = (host.read(f"/proc/{name}/comm") or "?", target)
    return [(process, *found[process]) for process in sorted(found)]


def _nodes(host: Host, path: str) -> list[str]:
    """Return the nodes of the devices below a directory, without crossing into other PCI devices."""
    found = []
    for name in host.subdirectories(path):
        below = f"{path}/{name}"
        if name.count(":") == 2 and sysfs.parsed([name]):
            continue
        if host.exists(f"{below}/dev"):
            for line in (host.read(f"{below}/uevent") or "").splitlines():
                if line.startswith("DEVNAME="):
                    found.append("/dev/" + line[8:])
        found += _nodes(host, below)
    return found
