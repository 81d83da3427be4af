"""Node devices through libvirt: detach from the host, reattach, reset."""

from collections.abc import Collection

from virtpass.binding import framebuffers, reach, safety
from virtpass.binding.engine import leaving_order
from virtpass.operations.locking import locked
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.transaction.interrupts import held

# libvirt asks for nothing in these calls: neither whether the host can spare the device, nor whether it was
# detached at all, nor whether the driver took. So it is asked here, under the lock, for
# which none of these calls waits.


def detach(connection: Connection, host: Host, addresses: Collection[PciAddress]) -> list[PciAddress]:
    """Bind devices to vfio-pci through libvirt: all of them, or none.

    Args:
        connection: to libvirt.
        host: the host.
        addresses: the devices. All are checked before the first one moves.

    Returns:
        those that were not there already, in the order in which they went: the last function of a card first.

    Raises:
        RefusedError: one cannot be isolated, or the host uses it, shows its console there, or could not be
            logged in to without it.
        FailedError: libvirt reported success, but a driver is another. Those that had gone are back, or are
            named.
        KeyboardInterrupt: the user, or the end of his session, stopped it; all are where they were.
    """
    before: dict[PciAddress, str | None] = {}
    with locked(host):
        for address in addresses:
            safety.refuse_unassignable(host, address)
        safety.refuse_lent(host, list(addresses), "")
        moving = [one for one in leaving_order(addresses) if not sysfs.is_on_vfio(host, one)]
        safety.refuse_in_use(host, moving)
        framebuffers.refuse_in_the_way(host, moving, hands_over=False)
        reach.refuse_last(host, moving)
        # A signal between two devices would leave one of them behind.
        with held() as interrupts:
            try:
                for address in moving:
                    before[address] = sysfs.driver(host, address)
                    connection.detach_node_device(address)
                    _prove(host, address, is_detached=True)
                    interrupts.deliver()
            except BaseException as error:  # whatever it is: all of them, or none
                if problems := _put_back(connection, host, before):
                    cause = _cause(error)
                    what = f"{cause.what}; and not everything could be put back: {'; '.join(problems)}"
                    raise FailedError(cause.reference, what, "look at the kernel log") from error
                raise
    return list(before)


def reattach(connection: Connection, host: Host, addresses: Collection[PciAddress]) -> list[PciAddress]:
    """Give detached devices back to their host drivers through libvirt.

    Args:
        connection: to libvirt.
        host: the host.
        addresses: the devices. All are checked before the first one moves; then each is tried, whatever
            becomes of the others.

    Returns:
        those that were not on a driver of the host already, function 0 of a card first.

    Raises:
        RefusedError: a domain has one.
        FailedError: libvirt reported success, but a device is still on vfio-pci.
    """
    with locked(host):
        for address in addresses:
            safety.refuse_unassignable(host, address)
        safety.refuse_lent(host, list(addresses), "")
        moving = [one for one in leaving_order(addresses)[::-1] if not _is_home(host, one)]
        for address in moving:
            safety.refuse_open_group(host, address)
        tried = [_problem_of_return(connection, host, address) for address in moving]
        if problems := [problem for problem in tried if problem is not None]:
            if len(problems) == 1:
                raise problems[0]
            what = "; ".join(problem.what for problem in problems)
            raise FailedError("not-bound", what, "look at the kernel log")
    return moving


def reset(connection: Connection, host: Host, address: PciAddress) -> None:
    """Reset a device through libvirt.

    Raises:
        RefusedError: a domain or a driver of the host has it.
    """
    with locked(host):
        safety.refuse_unassignable(host, address)
        safety.refuse_lent(host, [address], "")
        safety.refuse_open_group(host, address)
        bound = sysfs.driver(host, address)
        if bound is not None and not sysfs.is_on_vfio(host, address):
            what = f"{address} is bound to {bound}, which would not survive a reset under it"
            raise RefusedError("host-driver", what, f"virtpass device detach {address}")
        connection.reset_node_device(address)


def _put_back(connection: Connection, host: Host, before: dict[PciAddress, str | None]) -> list[str]:
    """Give devices back to the drivers that they had; return what went wrong.

    Args:
        connection: to libvirt, whose kernel gives a device to whichever driver takes it.
        host: the host.
        before: these drivers, in the order in which the devices went.
    """
    problems = []
    for address, driver in reversed(before.items()):
        if sysfs.driver(host, address) == driver:
            continue
        if (problem := _problem_of_return(connection, host, address)) is not None:
            problems.append(problem.what)
        elif (bound := sysfs.driver(host, address)) != driver:
            problems.append(
                f"{address} is bound to {bound or 'no driver'} now, and was bound to {driver or 'none'}"
            )
    return problems


def _cause(error: BaseException) -> VirtpassError:
    """Return why devices do not go, in words for people."""
    if isinstance(error, VirtpassError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return FailedError("interrupted", "interrupted")
    return FailedError("fault", f"{type(error).__name__}: {error}")


def _problem_of_return(connection: Connection, host: Host, address: PciAddress) -> VirtpassError | None:
    """Give a device back to a driver of the host; return what went wrong, None for nothing."""
    try:
        connection.reattach_node_device(address)
        _prove(host, address, is_detached=False)
    except VirtpassError as error:
        return error
    return None


def _is_home(host: Host, address: PciAddress) -> bool:
    """Tell whether a device is on a driver of the host."""
    return sysfs.driver(host, address) is not None and not sysfs.is_on_vfio(host, address)


def _prove(host: Host, address: PciAddress, *, is_detached: bool) -> None:
    bound = sysfs.driver(host, address)
    if sysfs.is_on_vfio(host, address) is not is_detached:
        raise FailedError(
            "not-bound",
            f"libvirt reported success, but {address} is bound to {bound or 'no driver'}",
            "look at the kernel log",
        )
