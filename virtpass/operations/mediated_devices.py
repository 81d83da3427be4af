"""Mediated devices, such as vGPUs: listed, made and removed.

They last until the next boot. Making them again then is mdevctl's work, and stays there.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from virtpass.binding import engine, safety
from virtpass.binding.journal import is_uuid
from virtpass.domain.hostdev import mediated_uuids
from virtpass.operations.connecting import connected_if_there
from virtpass.operations.locking import locked
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.mediated import (
    MediatedDevice,
    MediatedType,
    mediated_devices,
    mediated_types,
    parents,
)
from virtpass.pci.usage import MEDIATED
from virtpass.system.errors import FailedError, NotFoundError, RefusedError, UsageError
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM, Connection
from virtpass.system.worker import NoAnswer

# Seconds; the driver may set up memory of the card.
_DEADLINE = 60.0
_PROGRAMS = ("/usr/sbin/mdevctl", "/usr/bin/mdevctl", "/sbin/mdevctl")
_DEFINITIONS = "/etc/mdevctl.d"

# Returns the names of running domains by the UUIDs of their mediated devices.
Users = Callable[[], dict[str, str]]


@dataclass(frozen=True, slots=True)
class TypeReport:
    """One type with the devices that were made of it."""

    type: MediatedType
    devices: tuple[MediatedDevice, ...]


@dataclass(frozen=True, slots=True)
class MediatedPlan:
    """What is to be written to make or remove a mediated device.

    Attributes:
        uuid: the device.
        parent: what it is made of; None when that is no PCI device.
        path: the attribute.
        value: what is written.
        made: whether the device is there afterwards.
    """

    uuid: str
    parent: PciAddress | None
    path: str
    value: str
    made: bool


def list_types(host: Host, parent: PciAddress | None = None) -> list[TypeReport]:
    """Return the types that a device offers, or those of all PCI devices, by address and name.

    Raises:
        NotFoundError: there is no such device.
        RefusedError: it offers none.
    """
    made = mediated_devices(host)
    types = _types(host, parent) if parent is not None else _all_types(host)
    return [
        TypeReport(
            one,
            tuple(device for device in made if (device.parent, device.type_name) == (one.parent, one.name)),
        )
        for one in types
    ]


def parse_uuid(text: str) -> str:
    """Return a UUID as the kernel writes it.

    Raises:
        UsageError: it is none.
    """
    if not is_uuid(text.lower()):
        raise UsageError(
            "uuid",
            f"'{text}' is not a UUID",
            "write it like 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
        )
    return text.lower()


def plan_create(host: Host, parent: PciAddress, type_name: str, wanted: str | None = None) -> MediatedPlan:
    """Plan a mediated device; writes nothing.

    Args:
        host: the host.
        parent: what it is made of.
        type_name: the name of its type, as `list_types` has it.
        wanted: its UUID, by default a new one.

    Raises:
        UsageError: the UUID is none.
        NotFoundError: there is no such device, or it has no such type.
        RefusedError: it offers no types, no more devices of this one, or the UUID is taken.
        FailedError: a driver hangs with it.
    """
    name = parse_uuid(wanted) if wanted is not None else str(uuid.uuid4())
    # First: a device that is lent has no types as long as it is.
    engine.refuse_stuck(host, parent)
    safety.refuse_lent(host, [parent], "")
    types = {one.name: one for one in _types(host, parent)}
    # Only a name that is there becomes part of a path.
    if type_name not in types:
        what = f"{parent} has no type '{type_name}' of mediated devices"
        raise NotFoundError("no-mediated-type", what, f"virtpass mdev types {parent}")
    if any(one.uuid == name for one in mediated_devices(host)):
        raise RefusedError(
            "mediated-exists", f"there is a mediated device {name} already", "choose another UUID"
        )
    chosen = types[type_name]
    if chosen.available == 0:
        raise RefusedError(
            "mediated-exhausted",
            f"{parent} can have no more mediated devices of the type {type_name}",
            "remove one, or choose a smaller type",
        )
    return MediatedPlan(name, parent, f"{chosen.path}/create", name, made=True)


def plan_remove(host: Host, text: str, ask_users: Users) -> MediatedPlan:
    """Plan to remove a mediated device; writes nothing.

    Args:
        host: the host.
        text: its UUID.
        ask_users: returns running domains by the mediated devices that they have, as `ask_users` does.

    Raises:
        UsageError: the UUID is none.
        NotFoundError: there is no such mediated device.
        RefusedError: it is in use.
        VirtpassError: of ``ask_users``.
    """
    device = _device(host, parse_uuid(text))
    user = ask_users().get(device.uuid)
    if user is not None:
        what = f"the mediated device {device.uuid} is used by the domain {user}"
        raise RefusedError("mediated-in-use", what, "shut that down first")
    _refuse_open(host, device)
    if device.parent is not None:
        engine.refuse_stuck(host, device.parent)
    return MediatedPlan(device.uuid, device.parent, f"{MEDIATED}/{device.uuid}/remove", "1", made=False)


def create(host: Host, parent: PciAddress, type_name: str, wanted: str | None = None) -> MediatedPlan:
    """Make a mediated device; arguments and errors as `plan_create`.

    Raises:
        FailedError: the kernel refused or did not answer.
    """
    with locked(host):
        plan = plan_create(host, parent, type_name, wanted)
        _write(host, plan)
    return plan


def remove(host: Host, text: str, ask_users: Users) -> MediatedPlan:
    """Remove a mediated device; arguments and errors as `plan_remove`.

    Raises:
        FailedError: the kernel refused or did not answer.
    """
    # Before the lock: libvirt's answer waits for hooks, and hooks for the lock.
    plan = plan_remove(host, text, ask_users)
    with locked(host):
        _refuse_open(host, _device(host, plan.uuid))
        _write(host, plan)
    return plan


def users(connection: Connection) -> dict[str, str]:
    """Return the names of running domains by the UUIDs of the mediated devices that they have."""
    return {
        name: domain.name
        for domain in connection.domains()
        if domain.is_active
        for name in mediated_uuids(domain.live_xml())
    }


def ask_users(uri: str = SYSTEM, *, say: Callable[[str], None] = lambda _: None) -> dict[str, str]:
    """Return what `users` does, and nothing when there is no daemon: open VFIO groups tell then.

    Args:
        uri: the libvirt connection.
        say: told, in one sentence without a full stop, when there is no daemon.

    Raises:
        UnavailableError: the daemon does not answer; it may just be starting a domain that has the device.
        PermissionDeniedError: this user may not connect.
        UsageError: the URI is none.
    """
    connection = connected_if_there(uri, say, "open VFIO groups tell")
    if connection is None:
        return {}
    with connection:
        return users(connection)


def has_mdevctl(host: Host) -> bool:
    """Tell whether mdevctl, which makes mediated devices at boot, is installed."""
    return any(host.exists(program) for program in _PROGRAMS)


def is_defined(host: Host, name: str) -> bool:
    """Tell whether mdevctl has a definition of a mediated device."""
    return any(host.exists(f"{_DEFINITIONS}/{parent}/{name}") for parent in host.subdirectories(_DEFINITIONS))


def _all_types(host: Host) -> list[MediatedType]:
    return [one for parent in parents(host) for one in mediated_types(host, parent)]


def _types(host: Host, parent: PciAddress) -> tuple[MediatedType, ...]:
    if not sysfs.is_present(host, parent):
        raise sysfs.no_device(parent)
    types = mediated_types(host, parent)
    if not types:
        raise RefusedError(
            "no-mediated-types",
            f"{parent} offers no mediated devices",
            "its driver must support them, such as i915 with enable_gvt=1; virtpass mdev types lists all",
        )
    return types


def _device(host: Host, name: str) -> MediatedDevice:
    for one in mediated_devices(host):
        if one.uuid == name:
            return one
    what = f"there is no mediated device {name} on this host"
    raise NotFoundError("no-mediated-device", what, "virtpass mdev types lists them")


def _refuse_open(host: Host, device: MediatedDevice) -> None:
    """Refuse a device that a process has open: the kernel would wait for it, maybe for ever."""
    if device.group is not None and host.device_node_is_busy(f"/dev/vfio/{device.group}"):
        what = f"the mediated device {device.uuid} is used by a running virtual machine"
        raise RefusedError("mediated-in-use", what, "shut it down first")


def _write(host: Host, plan: MediatedPlan) -> None:
    made = f"{'making' if plan.made else 'removing'} the mediated device {plan.uuid}"
    try:
        host.write_attribute(plan.path, plan.value, _DEADLINE)
    except NoAnswer as error:
        if plan.parent is not None:
            engine.mark_stuck(host, plan.parent, "mdev")
        raise FailedError("stuck", f"{made} does not come back from the driver", "reboot the host") from error
    except OSError as error:
        raise FailedError("kernel-refused", f"{made}: {error.strerror}", "look at the kernel log") from error
    if host.exists(f"{MEDIATED}/{plan.uuid}") is not plan.made:
        there = "not there" if plan.made else "still there"
        raise FailedError("mediated-device", f"{made}: it is {there} afterwards", "look at the kernel log")
