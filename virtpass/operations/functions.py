"""SR-IOV: virtual functions are made and removed: now, at every boot, and on demand."""

from dataclasses import dataclass

from virtpass.binding import engine, function_records, functions, safety
from virtpass.binding.function_records import Record
from virtpass.operations.locking import locked
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import COUNT, PhysicalFunction, owner, physical_function
from virtpass.system.errors import RefusedError, UsageError, VirtpassError
from virtpass.system.host import Host

UNIT = "virtpass-functions.service"


@dataclass(frozen=True, slots=True)
class FunctionsPlan:
    """What it takes until a device has a number of virtual functions.

    Attributes:
        before: the device as it is.
        count: how many it shall have.
        writes: attributes of the device and their values, in order.
        recorded: what is on record for the device, None for nothing.
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


def plan_functions(
    host: Host, address: PciAddress, count: int, *, persistent: bool = False, on_demand: bool = False
) -> FunctionsPlan:
    """Plan how a device gets a number of virtual functions; writes nothing.

    Args:
        host: the host.
        address: the physical function.
        count: how many it shall have, 0 for none.
        persistent: whether it shall have them after every boot, too; with ``count`` 0, nothing is on record
            for it any more.
        on_demand: whether the hook shall make them for domains that need one, and remove them when nobody
            uses them any more; with ``count`` 0 as ``persistent``.

    Raises:
        NotFoundError: there is no such device.
        UsageError: the number is negative, or both are asked for.
        RefusedError: it cannot have as many, or one that it has is in use.
        FailedError: a driver hangs with it.
    """
    if count < 0:
        raise UsageError("function-count", f"{count} is not a number of virtual functions")
    if persistent and on_demand:
        raise UsageError(
            "persistent-on-demand",
            "functions that are there after every boot are not made on demand",
            "choose --persistent or --on-demand",
        )
    before = _physical(host, address)
    functions.refuse_too_many(before, count)
    recorded = function_records.read(host, address)
    record = recorded
    if persistent or on_demand:
        seen = sysfs.identity(host, address)
        record = Record(address, seen, count, is_on_demand=on_demand) if count else None
    planned = functions.writes(host, before, count, is_on_demand=on_demand)
    if any(name == COUNT for name, _ in planned):
        _refuse_unchangeable(host, before)
        if count == before.number:
            _refuse_bound(host, before)
    return FunctionsPlan(before, count, planned, recorded, record)


def set_functions(
    host: Host, address: PciAddress, count: int, *, persistent: bool = False, on_demand: bool = False
) -> FunctionsPlan:
    """Give a device a number of virtual functions, without drivers; arguments and errors as `plan_functions`.

    Returns:
        what was done.

    Raises:
        PermissionDeniedError: this user may not.
        FailedError: the kernel refused or did not answer; the message says how many there are now.
    """
    with locked(host):
        plan = plan_functions(host, address, count, persistent=persistent, on_demand=on_demand)
        if plan.record != plan.recorded:
            function_records.write(host, address, plan.record)
        try:
            # Those that are there, and that nothing new is said of, stay whosever they are.
            if plan.writes or not count or persistent or on_demand:
                functions.change(host, plan.before, count, is_on_demand=on_demand)
        except VirtpassError:
            if plan.record != plan.recorded:
                function_records.write(host, address, plan.recorded)
            raise
    return plan


def functions_at_boot(host: Host) -> list[BootResult]:
    """Give every device that is on record for it its virtual functions.

    A device that is not the recorded one, or gone, gets none; so does one that gets them on demand.

    Returns:
        what came of each record; one that fails keeps none of the others from its turn.

    Raises:
        RefusedError: this boot was chosen as the way back.
    """
    names = function_records.names(host)
    if names:
        safety.refuse_switched_off(host)
    results = [_at_boot(host, name) for name in names]
    return [result for result in results if result is not None]


def _at_boot(host: Host, name: str) -> BootResult | None:
    try:
        record = function_records.read_named(host, name)
        if record.is_on_demand:
            return None
        functions.refuse_other_card(host, record)
        set_functions(host, record.address, record.number)
    except VirtpassError as error:
        return BootResult(name, 0, error)
    return BootResult(name, record.number)


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
    functions.refuse_unable(host, device.address)
    for address in device.functions:
        engine.refuse_stuck(host, address)
    safety.refuse_lent(host, list(device.functions), "")
    safety.refuse_in_use(host, list(device.functions))
    for address in device.functions:
        _refuse_stacked(host, address)


def _refuse_bound(host: Host, device: PhysicalFunction) -> None:
    """Refuse to make the same number of functions anew where a driver has one: nobody has asked to lose it.

    Raises:
        RefusedError: naming the function and its driver.
    """
    for address in device.functions:
        if (driver := sysfs.driver(host, address)) is not None:
            raise RefusedError(
                "functions-made",
                f"{device.address} has {functions.counted(device.number)} already, and {address} is bound to"
                f" {driver}; to be made on demand they have to go first",
                f"virtpass device functions {device.address} 0, then ask again",
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


def is_made_at_boot(host: Host) -> bool:
    """Tell whether systemd makes at boot what is on record."""
    return host.exists(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")
