"""SR-IOV: virtual functions are made and removed, now and at every boot."""

from dataclasses import dataclass

from virtpass.binding import engine, safety
from virtpass.operations import function_records
from virtpass.operations.function_records import Record
from virtpass.operations.locking import locked
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import AUTOPROBE, COUNT, PhysicalFunction, owner, physical_function
from virtpass.pci.mediated import mediated_devices
from virtpass.system.errors import FailedError, RefusedError, UsageError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

# Seconds. Some cards set up a hundred functions one by one, and removing them waits for their drivers.
_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class FunctionsPlan:
    """What it takes until a device has a number of virtual functions.

    Attributes:
        before: the device as it is.
        count: how many it shall have.
        writes: attributes of the device and their values, in order.
        recorded: what is on record for boots, None for nothing.
        record: what shall be.
    """

    before: PhysicalFunction
    count: int
    writes: tuple[tuple[str, str], ...]
    recorded: Record | None
    record: Record | None

    @property
    def is_empty(self) -> bool:
        """Whether all is as it should be."""
        return not self.writes and self.record == self.recorded

    @property
    def sentences(self) -> tuple[str, ...]:
        """What would be done, for people."""
        address = self.before.address
        lines = [f"{address}: write {value} to {name}" for name, value in self.writes]
        if self.record != self.recorded:
            path = function_records.path(address)
            lines.append(f"write {path}" if self.record else f"remove {path}")
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class BootResult:
    """What came of one record at boot.

    Attributes:
        name: the record's name: the device's address, or what somebody else has put there.
        count: how many virtual functions the device has; 0 when something went wrong.
        problem: what did.
    """

    name: str
    count: int
    problem: VirtpassError | None = None


def plan_functions(host: Host, address: PciAddress, count: int, *, persistent: bool = False) -> FunctionsPlan:
    """Plan how a device gets a number of virtual functions; writes nothing.

    Args:
        host: the host.
        address: the physical function.
        count: how many it shall have, 0 for none.
        persistent: whether it shall have them after every boot, too; with ``count`` 0, no longer.

    Raises:
        NotFoundError: there is no such device.
        UsageError: the number is negative.
        RefusedError: it cannot have as many, or one that it has is in use.
        FailedError: a driver hangs with it.
    """
    if count < 0:
        raise UsageError("function-count", f"{count} is not a number of virtual functions")
    before = _physical(host, address)
    if count > before.total:
        raise RefusedError(
            "too-many-functions",
            f"{address} can have {before.total} virtual functions, not {count}",
            f"ask for at most {before.total}",
        )
    recorded = function_records.read(host, address)
    record = recorded
    if persistent:
        record = Record(address, sysfs.identity(host, address), count) if count else None
    writes: list[tuple[str, str]] = []
    if count != before.count:
        _refuse_unchangeable(host, before)
        # Without it, the drivers of the host would take the new ones, before anybody could set an override.
        if count and before.autoprobe:
            writes.append((AUTOPROBE, "0"))
        # The kernel goes from one number to another through 0 only.
        if before.count:
            writes.append((COUNT, "0"))
        if count:
            writes.append((COUNT, str(count)))
    if not count and before.autoprobe is False and function_records.has_autoprobe(host, address):
        writes.append((AUTOPROBE, "1"))
    return FunctionsPlan(before, count, tuple(writes), recorded, record)


def set_functions(host: Host, address: PciAddress, count: int, *, persistent: bool = False) -> FunctionsPlan:
    """Give a device a number of virtual functions, without drivers; arguments and errors as `plan_functions`.

    Returns:
        what was done.

    Raises:
        PermissionDeniedError: this user may not.
        FailedError: the kernel refused or did not answer; the message says how many there are now.
    """
    with locked(host):
        plan = plan_functions(host, address, count, persistent=persistent)
        if plan.record != plan.recorded:
            function_records.write(host, address, plan.record)
        try:
            _write(host, plan)
        except VirtpassError:
            if plan.record != plan.recorded:
                function_records.write(host, address, plan.recorded)
            raise
        if not count:
            function_records.forget_autoprobe(host, address)
    return plan


def functions_at_boot(host: Host) -> list[BootResult]:
    """Give every device that is on record its virtual functions.

    A device that is not the recorded one, or gone, gets none.

    Returns:
        what came of each record; one that fails keeps none of the others from its turn.

    Raises:
        RefusedError: this boot was chosen as the way back.
    """
    names = function_records.names(host)
    if names:
        safety.refuse_switched_off(host)
    return [_at_boot(host, name) for name in names]


def _at_boot(host: Host, name: str) -> BootResult:
    try:
        record = function_records.read_named(host, name)
        if not sysfs.is_present(host, record.address):
            raise sysfs.no_device(record.address)
        seen = sysfs.identity(host, record.address)
        if not record.identity.is_same_device(seen):
            raise RefusedError(
                "other-device",
                f"{record.address} is {seen} now, not {record.identity} as recorded; it gets no functions",
                f"remove {function_records.path(record.address)}, and ask again at the card's new address",
            )
        set_functions(host, record.address, record.count)
    except VirtpassError as error:
        return BootResult(name, 0, error)
    return BootResult(name, record.count)


def _physical(host: Host, address: PciAddress) -> PhysicalFunction:
    """Return a device that can have virtual functions.

    Raises:
        NotFoundError, RefusedError: there is none, or it cannot.
    """
    if not sysfs.is_present(host, address):
        raise sysfs.no_device(address)
    if (parent := owner(host, address)) is not None:
        what = f"{address} is a virtual function itself"
        raise RefusedError("virtual-function", what, f"its physical function is {parent}")
    found = physical_function(host, address)
    if found is None:
        raise RefusedError(
            "no-functions",
            f"{address} can have no virtual functions (SR-IOV)",
            "where the card could, switch SR-IOV on in the firmware",
        )
    return found


def _refuse_unchangeable(host: Host, device: PhysicalFunction) -> None:
    """Refuse a device whose functions cannot change now; only those that exist can be in use.

    Raises:
        RefusedError: naming what stands in the way.
        FailedError: a driver hangs with one of them.
    """
    functions = list(device.functions)
    for address in (device.address, *functions):
        engine.refuse_stuck(host, address)
    safety.refuse_lent(host, [device.address, *functions], "")
    bound = sysfs.driver(host, device.address)
    if bound is None or sysfs.is_on_vfio(host, device.address):
        raise RefusedError(
            "no-host-driver",
            f"{device.address} is bound to {bound or 'no driver'}, and only its own driver makes functions",
            f"virtpass device reattach {device.address}",
        )
    safety.refuse_in_use(host, functions)
    for address in functions:
        _refuse_stacked(host, address)
    for mediated in mediated_devices(host):
        if mediated.parent in functions:
            raise RefusedError(
                "mediated-in-use",
                f"the mediated device {mediated.uuid} is made of {mediated.parent}",
                f"virtpass mdev remove {mediated.uuid}",
            )


def _refuse_stacked(host: Host, address: PciAddress) -> None:
    """Refuse a function whose network interface has something on top: a bridge, a bond, a domain's macvtap.

    Raises:
        RefusedError: naming both.
    """
    directory = f"{sysfs.device_path(address)}/net"
    for interface in host.names(directory):
        upper = [name[6:] for name in host.names(f"{directory}/{interface}") if name.startswith("upper_")]
        if upper:
            raise RefusedError(
                "interface-in-use",
                f"{address} ({interface}) is part of {', '.join(upper)}",
                f"take {interface} out of it, or shut the domain that uses it down",
            )


def _write(host: Host, plan: FunctionsPlan) -> None:
    address = plan.before.address
    try:
        for name, value in plan.writes:
            if (name, value) == (AUTOPROBE, "0"):
                function_records.keep_autoprobe(host, address)
            _write_attribute(host, address, name, value)
        seen = physical_function(host, address)
        if plan.writes and (seen is None or seen.count != plan.count):
            what = f"{address} has {seen.count if seen else 0} virtual functions, not {plan.count}"
            raise FailedError("function-count", what, "look at the kernel log")
    except VirtpassError as error:
        if error.reference == "stuck":
            raise
        raise _put_back(host, plan, error) from error


def _put_back(host: Host, plan: FunctionsPlan, error: VirtpassError) -> FailedError:
    """Give a device the functions that it had before a change that failed; return what to say of it."""
    address = plan.before.address
    try:
        seen = physical_function(host, address)
        if seen is not None and seen.count != plan.before.count:
            if seen.count:
                _write_attribute(host, address, COUNT, "0")
            if plan.before.count:
                _write_attribute(host, address, COUNT, str(plan.before.count))
        if plan.before.autoprobe and seen is not None and not seen.autoprobe:
            _write_attribute(host, address, AUTOPROBE, "1")
            function_records.forget_autoprobe(host, address)
    except VirtpassError as other:
        what = f"{error.what}; and it could not be put back: {other.what}"
        return FailedError(error.reference, what, "look at the kernel log")
    what = f"{error.what}; it has {plan.before.count} as before"
    return FailedError(error.reference, what, error.remedy)


def _write_attribute(host: Host, address: PciAddress, name: str, value: str) -> None:
    """Write an attribute of a device.

    Raises:
        FailedError: the kernel refused, or did not answer; the device is marked stuck then.
    """
    made = f"{address}: writing {value} to {name}"
    try:
        host.write_attribute(f"{sysfs.device_path(address)}/{name}", value, _DEADLINE)
    except NoAnswer as error:
        engine.mark_stuck(host, address, name)
        raise FailedError("stuck", f"{made} does not come back from the driver", "reboot the host") from error
    except OSError as error:
        raise FailedError("kernel-refused", f"{made}: {error.strerror}", "look at the kernel log") from error
