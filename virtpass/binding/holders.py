"""Which processes of the host use a device, through the device nodes that its driver made.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

# The kernel takes input devices away from whoever reads them without harm, and logind reads every keyboard
# that has a power key.
_HARMLESS = ("input/",)

# Where a session has its card from logind, logind has it open too, and so has systemd, which keeps it
# for the next logind. Both let go when the session does.
SYSTEMD = 1
_LOGIND = "systemd-logind"

# Seconds: of an attribute, and of one look at the memory maps of all processes.
_DEADLINE = 10.0
_MAPS_DEADLINE = 5.0

# How many are named in a message.
_NAMED = 4


def device_nodes(host: Host, address: PciAddress) -> set[str]:
    """Return the device nodes that a device's driver made, such as ``/dev/dri/card0``."""
    return {node for node in _nodes(host, sysfs.device_path(address)) if not node[5:].startswith(_HARMLESS)}


def holders(host: Host, addresses: list[PciAddress]) -> list[tuple[int, str, str]]:
    """Return the processes that have a node of one of the devices open, or mapped into their memory.

    Only what this user may see is found: all of it for root.

    Returns:
        process id, name of the program, device node; one entry for each process, sorted.

    Raises:
        FailedError: a device does not answer.
    """
    nodes: set[str] = set()
    for address in addresses:
        nodes |= device_nodes(host, address)
        if sysfs.driver(host, address) == sysfs.NVIDIA:
            # Its own nodes are no children of the device; some are for all of its cards.
            nodes |= {f"/dev/{name}" for name in host.names("/dev") if name.startswith("nvidia")}
    if not nodes:
        return []
    found = {}
    processes = [name for name in host.names("/proc") if name.isdigit()]
    for name in processes:
        for descriptor in host.names(f"/proc/{name}/fd"):
            target = host.link_target(f"/proc/{name}/fd/{descriptor}")
            if target in nodes:
                found[int(name)] = (host.read(f"/proc/{name}/comm") or "?", target)
    # A mapping stays when the descriptor is closed. A process that hangs in the kernel, perhaps with another
    # device, must not stop every start: `unseen` tells of it.
    for name, node in host.mapped(processes, sorted(nodes), _MAPS_DEADLINE).items():
        found.setdefault(int(name), (host.read(f"/proc/{name}/comm") or "?", node))
    return [(process, *found[process]) for process in sorted(found)]


def unseen(host: Host) -> str:
    """Return a warning of processes whose memory maps the last look has not seen; empty for none."""
    numbers = sorted(host.unseen_processes, key=int)
    names = [f"{host.read(f'/proc/{one}/comm') or '?'} (process {one})" for one in numbers[:_NAMED]]
    if not names:
        return ""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return (
        f"whether {', '.join(names)}{more} has a device mapped is not known: no answer about the memory maps"
    )


def named(found: list[tuple[int, str, str]]) -> str:
    """Return who holds a device, for a message.

    Args:
        found: as `holders` returns it. Who holds it for somebody else is left out, unless nobody else does.
    """
    own = [one for one in found if one[0] != SYSTEMD and one[1] != _LOGIND] or found
    names = ", ".join(f"{program} (process {process}, {node})" for process, program, node in own[:_NAMED])
    return f"{names} and {len(own) - _NAMED} more" if len(own) > _NAMED else names


def _nodes(host: Host, path: str) -> list[str]:
    """Return the nodes of the devices below a directory, without crossing into other PCI devices."""
    found = []
    for name in host.subdirectories(path):
        below = f"{path}/{name}"
        if name.count(":") == 2 and sysfs.parsed([name]):
            continue
        if host.exists(f"{below}/dev"):
            found += _node(host, f"{below}/uevent")
        found += _nodes(host, below)
    return found


def _node(host: Host, path: str) -> list[str]:
    """Return the device node that a ``uevent`` names; some kernels wait for the device's lock there."""
    try:
        lines = host.read_attribute(path, _DEADLINE).splitlines()
    except NoAnswer as error:
        raise FailedError("no-answer", f"{path} cannot be read: a driver holds it") from error
    except OSError:
        return []
    return ["/dev/" + line[8:] for line in lines if line.startswith("DEVNAME=")]
