"""Which processes of the host use a device, through the device nodes that its driver made.

Imported by the hook: the imports here are on its allow-list.
"""

import errno

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, one_line
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

# The kernel takes input devices away from whoever reads them without harm, and logind reads every keyboard
# that has a power key.
_HARMLESS = ("input/",)

# Where a session has its card from logind, logind has it open too, and so has systemd, which keeps it
# for the next logind. Both let go when the session does.
SYSTEMD = 1
_LOGIND = "systemd-logind"

# Seconds: of an attribute, and of one look at all processes.
_DEADLINE = 10.0
LOOK_DEADLINE = 15.0

# Of a block device, which has numbers of its own beside those of character devices.
_BLOCK = ("DEVTYPE=disk", "DEVTYPE=partition")

# The device has just gone, or this user may not ask.
_NONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EACCES, errno.EPERM))

# How many are named in a message.
_NAMED = 4


def device_nodes(host: Host, address: PciAddress) -> dict[str, str]:
    """Return the device nodes that a device's driver made, and those of the firmware's framebuffer over it.

    Before Linux 6.9 that framebuffer is no child of the device, and its ``/dev/fb0`` or ``/dev/dri/card0`` is
    the card's all the same.

    Returns:
        the number of each, such as ``c226:0``, by its path, such as ``/dev/dri/card0``.

    Raises:
        FailedError: a device does not answer.
    """
    # Not at the top: most stops of a domain need nothing of it.
    from virtpass.binding import framebuffers

    above = [sysfs.device_path(address)]
    above += [framebuffers.path(one) for one in framebuffers.over(host, [address])]
    found = [one for path in above for one in _nodes(host, path)]
    return {node: number for node, number in found if not node[5:].startswith(_HARMLESS)}


def nvidia_nodes(host: Host) -> dict[str, str]:
    """Return the nodes of NVIDIA's own driver, as `device_nodes` does.

    They are no children of a device; some are for all of its cards.
    """
    paths = [f"/dev/{name}" for name in host.names("/dev") if name.startswith("nvidia")]
    numbers = {path: host.device_number(path) for path in paths}
    return {path: f"c{number}" if number else "" for path, number in numbers.items()}


def holders(host: Host, addresses: list[PciAddress]) -> list[tuple[int, str, str]]:
    """Return the processes that have a node of one of the devices open, or mapped into their memory.

    Only what this user may see is found: all of it for root. A process may have opened the device under
    another path than the one that is returned, such as that of a container.

    Returns:
        process id, name of the program as it can be printed, device node; one entry for each process, sorted.

    Raises:
        FailedError: a device does not answer, or it cannot be told who uses it.
    """
    nodes: dict[str, str] = {}
    for address in addresses:
        nodes.update(device_nodes(host, address))
        if sysfs.driver(host, address) == sysfs.NVIDIA:
            nodes.update(nvidia_nodes(host))
    if not nodes:
        return []
    processes = [name for name in host.names("/proc") if name.isdigit()]
    # A process that hangs in the kernel, perhaps with another device, must not stop every start: `unseen`
    # tells of it.
    found = host.using(processes, nodes, LOOK_DEADLINE)
    return sorted((int(process), _program(host, process), node) for process, node in found.items())


def unseen(host: Host) -> str:
    """Return a warning of processes at which the last look got no answer; empty for none."""
    numbers = sorted(host.unseen_processes, key=int)
    names = [f"{_program(host, one)} (process {one})" for one in numbers[:_NAMED]]
    if not names:
        return ""
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return (
        f"whether {', '.join(names)}{more} has a device open or mapped is not known: no answer about its"
        " files or its memory map"
    )


def named(found: list[tuple[int, str, str]]) -> str:
    """Return who holds a device, for a message.

    Args:
        found: as `holders` returns it. Who holds it for somebody else is left out, unless nobody else does.
    """
    own = [one for one in found if one[0] != SYSTEMD and one[1] != _LOGIND] or found
    names = ", ".join(f"{program} (process {process}, {node})" for process, program, node in own[:_NAMED])
    return f"{names} and {len(own) - _NAMED} more" if len(own) > _NAMED else names


def _program(host: Host, process: str) -> str:
    """Return the name of a program; anybody may give himself one with control characters in it."""
    return one_line(host.read(f"/proc/{process}/comm") or "?")


def _nodes(host: Host, path: str) -> list[tuple[str, str]]:
    """Return the nodes of the devices below a directory, without crossing into other PCI devices."""
    found = []
    for name in host.subdirectories(path):
        below = f"{path}/{name}"
        if name.count(":") == 2 and sysfs.parsed([name]):
            continue
        if host.exists(f"{below}/dev"):
            found += _node(host, below)
        found += _nodes(host, below)
    return found


def _node(host: Host, path: str) -> list[tuple[str, str]]:
    """Return path and number of the device node of a device, as its ``uevent`` and its ``dev`` say.

    Some kernels wait for the device's lock at the former.
    """
    try:
        lines = host.read_attribute(f"{path}/uevent", _DEADLINE).splitlines()
    except NoAnswer as error:
        raise FailedError("no-answer", f"{path}/uevent cannot be read: a driver holds it") from error
    except OSError as error:
        if error.errno in _NONE:
            return []
        # Any other answer does not say that nobody can have it open.
        raise FailedError("no-answer", f"{path}/uevent cannot be read: {error.strerror}") from error
    number = host.read(f"{path}/dev")
    kind = "b" if any(line in _BLOCK for line in lines) else "c"
    return [
        ("/dev/" + line[8:], f"{kind}{number}" if number else "")
        for line in lines
        if line.startswith("DEVNAME=")
    ]
