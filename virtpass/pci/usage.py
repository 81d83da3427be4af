"""What the host itself needs a PCI device for: file systems, swap, the way out, the only keyboard.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.pci.address import PciAddress
from virtpass.pci.sysfs import parsed
from virtpass.system.host import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

MEDIATED = "/sys/bus/mdev/devices"

_KEY_WORD_BITS = 64
# The keys that udev asks for too before it calls an input device a keyboard: bits 1 to 31 of the key map.
_KEYBOARD_KEYS = 0xFFFFFFFE


def used_by_host(host: Host, going: Collection[PciAddress] = ()) -> dict[PciAddress, list[str]]:
    """Return for each device that the host cannot spare what it is needed for.

    Args:
        host: the host.
        going: devices that are to leave it together, which may be more than it can spare of one kind.

    Returns:
        phrases such as ``holds the file system /``, by the address of the controller.
    """
    needed: dict[PciAddress, list[str]] = {}
    typed_on = keyboards(host)
    only = [(address, "has the only keyboard") for address in typed_on if address and len(typed_on) == 1]
    for address, phrase in (*_storage(host), *_network(host), *only, *all_keyboards(typed_on, going)):
        phrases = needed.setdefault(address, [])
        if phrase not in phrases:
            phrases.append(phrase)
    return needed


def controller(path: str) -> PciAddress | None:
    """Return the PCI device nearest to a device path such as /sys/devices/pci0000:00/0000:00:04.0/virtio1."""
    found = parsed(path.split("/"))
    return found[-1] if found else None


def mediated_of(host: Host, address: PciAddress) -> list[str]:
    """Return the UUIDs of the mediated devices that a device has now.

    They vanish when its driver is unbound, which waits for whoever has one of them open
    (vfio_unregister_group_dev in the kernel's drivers/vfio/vfio_main.c).
    """
    uuids = host.names(MEDIATED)
    return [one for one in uuids if controller(host.real_path(f"{MEDIATED}/{one}")) == address]


def _storage(host: Host) -> list[tuple[PciAddress, str]]:
    used = []
    for line in (host.read("/proc/self/mountinfo") or "").splitlines():
        # Fields: id, parent, major:minor, root, mount point, options, tags ..., "-", type, source, options.
        head, _, tail = line.partition(" - ")
        fields, source = head.split(" "), tail.split(" ")
        if len(fields) < 5 or len(source) < 2:
            continue
        # btrfs shows a made-up device number; its source then names a real one.
        name = host.link_name(f"/sys/dev/block/{fields[2]}") or _device_name(host, source[1])
        used.append((name, f"holds the file system {unescaped(fields[4])}"))
    for line in (host.read("/proc/swaps") or "").splitlines()[1:]:
        used.append((_device_name(host, line.split(" ")[0]), "holds swap"))
    # Whatever is made of disks in the kernel (LUKS, LVM, md) shows at those disks as a holder.
    for block in host.names("/sys/class/block"):
        if host.names(f"/sys/class/block/{block}/holders"):
            used.append((block, f"has a disk in use ({block})"))
    found = []
    for name, phrase in used:
        if name is not None:
            found += [(address, phrase) for address in block_controllers(host, name)]
    return found


def claimed_disk(host: Host, address: PciAddress) -> str | None:
    """Return a disk of a controller that is in use in any way, None for none.

    The kernel lets nobody open a block device exclusively that is mounted, in any mount namespace, or part of
    swap, LVM, md, ZFS or a btrfs of several disks. It takes root to ask.
    """
    for block in host.names("/sys/class/block"):
        if address in block_controllers(host, block) and host.is_claimed("/dev/" + block.replace("!", "/")):
            return block
    return None


def _device_name(host: Host, source: str) -> str | None:
    """Return the kernel's name of a block device, which that of its node may not be."""
    if not source.startswith("/dev/"):
        return None
    number = host.device_number(source)
    return (host.link_name(f"/sys/dev/block/{number}") if number else None) or source.rpartition("/")[2]


def unescaped(path: str) -> str:
    """Undo the octal escapes of mountinfo; they are there for blanks, tabs, line breaks and backslashes."""
    for code in (" ", "\t", "\n"):
        path = path.replace(f"\\{ord(code):03o}", code)
    return path.replace("\\134", "\\")


def block_controllers(host: Host, block: str, seen: frozenset[str] = frozenset()) -> list[PciAddress]:
    """Return the controllers beneath a block device, through device mapper, md and NVMe multipath."""
    if block in seen:
        return []
    path = f"/sys/class/block/{block}"
    if lower := host.names(f"{path}/slaves"):
        return [address for name in lower for address in block_controllers(host, name, seen | {block})]
    real = host.real_path(path)
    if "/nvme-subsys" in real:
        head, _, tail = real.rpartition("/nvme-subsys")
        subsystem = f"{head}/nvme-subsys{tail.partition('/')[0]}"
        # The subsystem has links to the controllers that it was made of: nvme0, beside its disks nvme0n1.
        links = [f"{subsystem}/{name}" for name in host.names(subsystem) if name.startswith("nvme")]
        found = [controller(host.real_path(link)) for link in links]
    else:
        found = [controller(real)]
    return [address for address in found if address is not None]


def _network(host: Host) -> list[tuple[PciAddress, str]]:
    interfaces = []
    for line in (host.read("/proc/net/route") or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000":
            interfaces.append(fields[0])
    for line in (host.read("/proc/net/ipv6_route") or "").splitlines():
        fields = line.split()
        if len(fields) == 10 and fields[0] == "0" * 32 and fields[1] == "00" and fields[9] != "lo":
            interfaces.append(fields[9])
    found = []
    for interface in host.names("/sys/class/net"):
        if (above := host.link_name(f"/sys/class/net/{interface}/master")) is not None:
            address = controller(host.real_path(f"/sys/class/net/{interface}"))
            found += [(address, f"is a port of {above} ({interface})")] if address is not None else []
    for interface in dict.fromkeys(interfaces):
        phrase = f"carries the default route ({interface})"
        found += [(address, phrase) for address in _interface_controllers(host, interface, set())]
    return found


def _interface_controllers(host: Host, interface: str, seen: set[str]) -> list[PciAddress]:
    """Return the devices beneath a network interface, through bridges, bonds and VLANs."""
    if interface in seen:
        return []
    seen.add(interface)
    path = f"/sys/class/net/{interface}"
    lower = [name[6:] for name in host.names(path) if name.startswith("lower_")]
    if lower:
        return [address for name in lower for address in _interface_controllers(host, name, seen)]
    address = controller(host.real_path(path))
    return [address] if address is not None else []


def keyboards(host: Host) -> frozenset[PciAddress | None]:
    """Return the devices that keyboards are on; None stands for those that are on no PCI device."""
    found = set()
    for block in (host.read("/proc/bus/input/devices") or "").split("\n\n"):
        path, keys = "", 0
        for line in block.splitlines():
            if line.startswith("S: Sysfs="):
                path = line[9:]
            elif line.startswith("B: KEY="):
                keys = _bitmap(line[7:])
        # Programs make keyboards too; nobody can type on those.
        if keys & _KEYBOARD_KEYS == _KEYBOARD_KEYS and not path.startswith("/devices/virtual/"):
            found.add(controller("/sys" + path))
    return frozenset(found)


def all_keyboards(
    found: frozenset[PciAddress | None], going: Collection[PciAddress]
) -> list[tuple[PciAddress, str]]:
    """Return what several devices are needed for that would leave together, with all keyboards of the host.

    Args:
        found: what has keyboards, as `keyboards` returns it.
        going: what is to leave. One that has the only keyboard is no matter of this.

    Returns:
        device and phrase, as in `used_by_host`; empty when a keyboard stays.
    """
    last = sorted(address for address in found if address is not None)
    if len(last) < 2 or not found <= set(going):
        return []
    return [
        (
            address,
            f"has, together with {', '.join(str(one) for one in last if one != address)}, the last keyboards",
        )
        for address in last
    ]


def _bitmap(text: str) -> int:
    """Parse a bitmap of the input layer: hexadecimal words, most significant first, not padded."""
    value = 0
    for word in text.split():
        try:
            value = value << _KEY_WORD_BITS | int(word, 16)
        except ValueError:
            return 0
    return value
