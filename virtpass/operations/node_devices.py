"""Node devices through libvirt: detach from the host, reattach, reset."""

from virtpass.binding import safety
from virtpass.binding.engine import VFIO
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection

# libvirt asks for nothing in these calls: neither whether the host can spare the device, nor whether it was
# detached at all, nor whether the driver took. So it is asked here.


def detach(connection: Connection, host: Host, address: PciAddress) -> bool:
    """Bind a device to vfio-pci through libvirt.

    Returns:
        False when it was there already.

    Raises:
        RefusedError: it cannot be isolated, or the host uses it.
        FailedError: libvirt reported success, but the driver is another.
    """
    safety.refuse_unassignable(host, address)
    if sysfs.driver(host, address) == VFIO:
        return False
    safety.refuse_in_use(host, [address])
    connection.detach_node_device(address)
    _prove(host, address, is_detached=True)
    return True


def reattach(connection: Connection, host: Host, address: PciAddress) -> bool:
    """Give a device back to its host driver through libvirt.

    Returns:
        False when it is on a host driver already.

    Raises:
        RefusedError: a domain has it.
        FailedError: libvirt reported success, but the device is still on vfio-pci.
    """
    safety.refuse_unassignable(host, address)
    safety.refuse_lent(host, [address], "")
    if sysfs.driver(host, address) not in (VFIO, None):
        return False
    _refuse_busy(host, address)
    connection.reattach_node_device(address)
    _prove(host, address, is_detached=False)
    return True


def reset(connection: Connection, host: Host, address: PciAddress) -> None:
    """Reset a device through libvirt.

    Raises:
        RefusedError: a domain or a process of the host uses it.
    """
    safety.refuse_unassignable(host, address)
    safety.refuse_lent(host, [address], "")
    safety.refuse_in_use(host, [address])
    _refuse_busy(host, address)
    connection.reset_node_device(address)


def _refuse_busy(host: Host, address: PciAddress) -> None:
    group = sysfs.group(host, address)
    if sysfs.driver(host, address) == VFIO and host.device_node_is_busy(f"/dev/vfio/{group}"):
        raise RefusedError("in-use", f"{address} is used by a running virtual machine", "shut it down first")


def _prove(host: Host, address: PciAddress, *, is_detached: bool) -> None:
    bound = sysfs.driver(host, address)
    if (bound == VFIO) is not is_detached:
        raise FailedError(
            "not-bound",
            f"libvirt reported success, but {address} is bound to {bound or 'no driver'}",
            "look at the kernel log",
        )
