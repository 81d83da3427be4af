"""Virtual functions are made and removed, for a command, at boot, or on demand when a domain starts.

On demand: a device on record (`virtpass.binding.function_records`) gets its functions when a domain starts
that names one which is not there, and loses them when nobody uses them any more. That is a rule and no effect
in the journal of a domain, because domains share the functions of a device: the last one that had one of them
takes them back, whichever it is. Only functions that are marked as made so (in
`virtpass.binding.function_marks`) are taken back, and only as long as there are as many.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding import engine, function_marks, function_records, safety
from virtpass.binding.effects import nobody
from virtpass.binding.function_marks import Mark
from virtpass.binding.function_records import Record
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import AUTOPROBE, COUNT, PhysicalFunction, physical_function
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.binding.effects import Tell

    # Attributes of a device and their values, in order.
    Writes = tuple[tuple[str, str], ...]

# Seconds. Some cards set up a hundred functions one by one, and removing them waits for their drivers.
DEADLINE = 60.0
_LOOK = "look at the kernel log"


def counted(number: int) -> str:
    """Return ``4 virtual functions``, ``1 virtual function``."""
    return f"{number} virtual function{'' if number == 1 else 's'}"


def refuse_too_many(device: PhysicalFunction, count: int) -> None:
    """Refuse more functions than a device can have.

    Raises:
        RefusedError: it cannot have as many.
    """
    if count > device.total:
        raise RefusedError(
            "too-many-functions",
            f"{device.address} can have {counted(device.total)}, not {count}",
            f"ask for at most {device.total}",
        )


def refuse_unable(host: Host, address: PciAddress) -> None:
    """Refuse a device that can change its functions neither way now.

    Raises:
        RefusedError: it is lent, or its own driver, which makes and removes them, is not bound.
        FailedError: a driver hangs with it.
    """
    engine.refuse_stuck(host, address)
    safety.refuse_lent(host, [address], "")
    bound = sysfs.driver(host, address)
    if bound is None or sysfs.is_on_vfio(host, address):
        raise RefusedError(
            "no-host-driver",
            f"{address} is bound to {bound or 'no driver'}, and only its own driver makes functions",
            f"virtpass device reattach {address}",
        )


def refuse_other_card(host: Host, record: Record) -> None:
    """Refuse a device that is not the one on record.

    Raises:
        NotFoundError: there is none at its address.
        RefusedError: there is another one.
    """
    if not sysfs.is_present(host, record.address):
        raise sysfs.no_device(record.address)
    seen = sysfs.identity(host, record.address)
    if not record.identity.is_same_device(seen):
        raise RefusedError(
            "other-device",
            f"{record.address} is {seen} now, not {record.identity} as recorded; it gets no functions",
            f"remove {function_records.path(record.address)}, and ask again at the card's new address",
        )


def writes(host: Host, before: PhysicalFunction, count: int, *, is_on_demand: bool = False) -> Writes:
    """Plan what is written until a device has a number of functions without drivers; nothing where it has.

    Functions on demand that were not made as such are made anew, even if there are as many: whether the
    device announces truly where they will be can only be told while it has none.

    Args:
        host: the host.
        before: the device as it is.
        count: how many it shall have.
        is_on_demand: whether they go when nobody uses them any more.

    Raises:
        VirtpassError: the mark of the device cannot be read.
    """
    found: list[tuple[str, str]] = []
    is_unproven = is_on_demand and count > 0 and function_marks.read(host, before.address).made != count
    if count != before.number or is_unproven:
        # Without it, the drivers of the host would take the new ones, before anybody could set an override.
        if count and before.autoprobe:
            found.append((AUTOPROBE, "0"))
        # The kernel goes from one number to another through 0 only.
        if before.number:
            found.append((COUNT, "0"))
        if count:
            found.append((COUNT, str(count)))
    if not count and before.autoprobe is False and function_marks.read(host, before.address).had_autoprobe:
        found.append((AUTOPROBE, "1"))
    return tuple(found)


def change(host: Host, before: PhysicalFunction, count: int, *, is_on_demand: bool) -> None:
    """Give a device a number of functions; when that fails it gets back as many as it had.

    Args:
        host: the host.
        before: the device as it is.
        count: how many it shall have.
        is_on_demand: whether they go when nobody uses them any more.

    Raises:
        FailedError: the kernel refused or did not answer; the message says how many there are now.
        VirtpassError: nothing changed, because it could not be recorded.
    """
    address = before.address
    planned = writes(host, before, count, is_on_demand=is_on_demand)
    old = function_marks.read(host, address)
    mark = Mark(old.had_autoprobe or (AUTOPROBE, "0") in planned, count if is_on_demand else 0)
    makes = count > 0 and (COUNT, str(count)) in planned
    # Whatever cuts this off, the mark tells of the functions that are there: the old ones keep theirs until
    # they are gone, and the new ones have theirs before they come.
    first = Mark(mark.had_autoprobe, old.made) if makes and before.number else mark
    if count and first != old:
        function_marks.write(host, address, first)
    empty = before
    try:
        for name, value in planned:
            if before.number and makes and (name, value) == (COUNT, str(count)):
                empty = physical_function(host, address) or before
                if mark != first:
                    function_marks.write(host, address, mark)
            _write(host, address, name, value)
        seen = physical_function(host, address)
        has = seen.number if seen else 0
        if has != count:
            raise FailedError("function-count", f"{address} has {counted(has)}, not {count}", _LOOK)
        if seen and is_on_demand and makes and empty.expected(count) != seen.functions:
            raise FailedError(
                "function-place",
                f"the functions of {address} are not where it announces them while it has none, so they"
                " cannot be made on demand",
                f"virtpass device functions {address} {count} --persistent",
            )
    except VirtpassError as error:
        if error.reference == "stuck":
            raise
        raise _put_back(host, before, count, old, error) from error
    if not count:
        function_marks.write(host, address, Mark(had_autoprobe=False, made=0))


def _put_back(
    host: Host, before: PhysicalFunction, count: int, mark: Mark, error: VirtpassError
) -> FailedError:
    """Give a device the functions that it had before a change that failed; return what to say of it."""
    address = before.address
    try:
        seen = physical_function(host, address)
        if seen is not None and not seen.number and not count:
            # Only automatic probing is not as it was, and new functions might be taken by drivers now.
            return FailedError(error.reference, f"{error.what}; its functions are removed", error.remedy)
        if seen is not None and seen.number != before.number:
            if seen.number:
                _write(host, address, COUNT, "0")
            if before.number:
                # Until then the new ones were marked, and nobody may remove the old ones for new ones.
                had = mark.had_autoprobe or bool(before.autoprobe)
                function_marks.write(host, address, Mark(had, mark.made))
                _write(host, address, COUNT, str(before.number))
        if before.autoprobe and seen is not None and not seen.autoprobe:
            _write(host, address, AUTOPROBE, "1")
        function_marks.write(host, address, mark)
    except VirtpassError as other:
        what = f"{error.what}; and it could not be put back: {other.what}"
        return FailedError(error.reference, what, _LOOK)
    what = f"{error.what}; it has {before.number} as before"
    return FailedError(error.reference, what, error.remedy)


def _write(host: Host, address: PciAddress, name: str, value: str) -> None:
    """Write an attribute of a device.

    Raises:
        FailedError: the kernel refused, or did not answer; the device is marked stuck then.
    """
    made = f"{address}: writing {value} to {name}"
    try:
        host.write_attribute(f"{sysfs.device_path(address)}/{name}", value, DEADLINE)
    except NoAnswer as error:
        engine.mark_stuck(host, address, name)
        raise FailedError("stuck", f"{made} does not come back from the driver", "reboot the host") from error
    except OSError as error:
        raise FailedError("kernel-refused", f"{made}: {error.strerror}", _LOOK) from error


# on demand


class Making(tuple[PhysicalFunction, int, tuple[PciAddress, ...]]):
    """Functions that a start needs."""

    __slots__ = ()

    def __new__(cls, device: PhysicalFunction, count: int, wanted: tuple[PciAddress, ...]) -> Making:
        """Hold the three together."""
        return super().__new__(cls, (device, count, wanted))

    @property
    def device(self) -> PhysicalFunction:
        """The device that makes them, as it is."""
        return self[0]

    @property
    def number(self) -> int:
        """How many."""
        return self[1]

    @property
    def wanted(self) -> tuple[PciAddress, ...]:
        """Those of them that the domain has."""
        return self[2]

    def __str__(self) -> str:
        """A sentence for people."""
        return f"make {counted(self.number)} of {self.device.address}"


def needed(host: Host, addresses: list[PciAddress]) -> list[Making]:
    """Return the functions on record that have to be made so that devices are there; writes nothing.

    Args:
        host: the host.
        addresses: the devices that a domain has. One that is not there, and on no record, is not told of
            here.

    Raises:
        RefusedError: another card is at the address on record, its own driver is not bound, it can have
            fewer, or has another number now.
        FailedError: a driver hangs with it, or the record is not understood.
    """
    missing = [address for address in addresses if not sysfs.is_present(host, address)]
    found = []
    for owner in sysfs.parsed(function_records.names(host)) if missing else ():
        device = physical_function(host, owner)
        # Records of cards that have nothing to do with this domain are nothing to stumble over.
        if device is None or not set(missing).intersection(device.expected(device.total)):
            continue
        record = function_records.read(host, owner)
        if record is None or not record.is_on_demand:
            continue
        wanted = tuple(address for address in missing if address in device.expected(record.number))
        if not wanted or device.number == record.number:
            continue
        refuse_other_card(host, record)
        refuse_unable(host, owner)
        refuse_too_many(device, record.number)
        if device.number:
            raise RefusedError(
                "function-count",
                f"{wanted[0]} is not there: {owner} has {counted(device.number)}, not {record.number} as on"
                " record",
                f"virtpass device functions {owner} {record.number} --on-demand",
            )
        found.append(Making(device, record.number, wanted))
    return found


def announced(host: Host) -> frozenset[PciAddress]:
    """Return where functions on demand are, or will be when a domain needs them."""
    found: set[PciAddress] = set()
    for owner in sysfs.parsed(function_records.names(host)):
        try:
            record, device = function_records.read(host, owner), physical_function(host, owner)
        except VirtpassError:
            continue  # a start that needs one of them tells of it
        if record is not None and record.is_on_demand and device is not None:
            found.update(device.expected(record.number))
    return frozenset(found)


def made(host: Host) -> list[PciAddress]:
    """Return the devices whose functions were made on demand."""
    found = []
    for address in function_marks.marked(host):
        try:
            if function_marks.read(host, address).made:
                found.append(address)
        except VirtpassError:
            continue  # others may have written that, so it is not obeyed
    return found


def idle(host: Host, address: PciAddress, had: list[PciAddress] | None = None) -> PhysicalFunction | None:
    """Return a device whose functions were made on demand and are not used any more; None for another one.

    Args:
        host: the host.
        address: one of `made`.
        had: the functions that a domain had, when only those of its own devices are asked for.

    Raises:
        VirtpassError: it cannot be told.
    """
    if _idle_now(host, address, had) is None or not engine.wait_for_orphans(host):
        return None
    return _idle_now(host, address, had)


def _idle_now(host: Host, address: PciAddress, had: list[PciAddress] | None) -> PhysicalFunction | None:
    """Do as `idle`, but for a write of a killed hook's child.

    While one is on its way, it would make functions after all, and then nothing would know of them: so what
    is found idle is asked about again when there is none.
    """
    device = physical_function(host, address)
    if device is None or engine.is_stuck(host, address):
        return None
    if not device.number:
        # Whoever wanted to make them was killed before, or somebody else has removed them.
        return device
    if had is not None and not set(had).intersection(device.functions):
        return None
    record = function_records.read(host, address)
    if record is None or not record.is_on_demand or device.number != function_marks.read(host, address).made:
        return None
    if _is_any_used(host, list(device.functions)):
        return None
    return device if record.identity.is_same_device(sysfs.identity(host, address)) else None


def _is_any_used(host: Host, functions: list[PciAddress]) -> bool:
    """Tell whether a domain or the host has one of the functions.

    Raises:
        FailedError: the record of a domain is not understood.
    """
    # On vfio-pci too: a domain that is none of ours may be about to start with it.
    if any(sysfs.driver(host, function) is not None for function in functions):
        return True
    try:
        safety.refuse_lent(host, functions, "")
    except RefusedError:
        return True
    return any(sysfs.group_is_open(host, function) for function in functions)


def take_back(host: Host, had: list[PciAddress] | None = None, tell: Tell = nobody) -> None:
    """Remove functions that were made on demand and that nobody uses any more; it never fails.

    Args:
        host: the host.
        had: as for `idle`.
        tell: is told of it: what, of which device, how many seconds it took, and what went wrong.
    """
    # Once for all of them: where a child hangs, each wait would last as long as it may.
    is_settled: bool | None = None
    for address in made(host):
        began = time.monotonic()
        removed, problem = 0, ""
        try:
            if _idle_now(host, address, had) is None:
                continue
            if is_settled is None:
                is_settled = engine.wait_for_orphans(host, tell)
            if is_settled and (device := _idle_now(host, address, had)) is not None:
                removed = device.number
                remove(host, device)
        except VirtpassError as error:
            problem = error.line
        if removed or problem:
            what = f"remove {counted(removed) if removed else 'the virtual functions'} of {address}"
            tell("functions", what, time.monotonic() - began, problem)


def remove(host: Host, device: PhysicalFunction) -> None:
    """Remove the functions of a device that is `idle`; errors as `change`, or as `refuse_unable`."""
    if device.number:
        refuse_unable(host, device.address)
    change(host, device, 0, is_on_demand=False)
