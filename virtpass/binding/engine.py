"""Moves devices between their host drivers and vfio-pci, and back, with every step on record first.

The order for each device is override, unbind, probe, then read the driver link back: with the override in
place no other driver can take the device in between, and a probe that binds nothing reports success all
the same. Never ``new_id``: it binds every device of that id.

Imported by the hook: the imports here are on its allow-list.
"""

import errno

from virtpass.binding.journal import OVERRIDE, PROBE, UNBIND, Home, Journal, Step, checked_name
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, VirtpassError
from virtpass.system.host import Host

VFIO = "vfio-pci"

# Seconds. A driver's remove or probe function takes part of a second, with firmware to load up to ten.
ATTRIBUTE_DEADLINE = 5.0
DRIVER_DEADLINE = 30.0
MODULE_DEADLINE = 30.0

# Longer than one hand-over of a card with four functions whose drivers take their time.
LOCK_DEADLINE = 120.0

STUCK_DIRECTORY = "/run/virtpass/stuck"


def lock(host: Host) -> int:
    """Take the lock that everybody takes who moves devices; closing the descriptor gives it back.

    Raises:
        FailedError: it stayed taken for two minutes.
    """
    return host.lock("/run/virtpass", "lock", LOCK_DEADLINE)


def homes(host: Host, addresses: list[PciAddress]) -> list[Home]:
    """Return where devices are now, in the order in which they are to be lent.

    The last function of a card comes first: audio, USB and USB-C functions are consumers of function 0
    (quirk_gpu_hda in the kernel's drivers/pci/quirks.c).
    """
    ordered = sorted(addresses, key=lambda address: (*address[:3], -address.function))
    return [Home(address, sysfs.driver(host, address), override(host, address)) for address in ordered]


def override(host: Host, address: PciAddress) -> str | None:
    """Return the ``driver_override`` of a device, None when it is unset.

    Raises:
        FailedError: the kernel does not answer: a driver holds the device's lock.
    """
    try:
        text = host.read_attribute(f"{sysfs.device_path(address)}/driver_override", ATTRIBUTE_DEADLINE)
    except OSError as error:
        raise _failure(host, address, "read driver_override", error) from error
    return None if text in ("", "(null)") else text


def steps_to_lend(homes: list[Home]) -> list[Step]:
    """Plan how devices get to vfio-pci; those that are there already need nothing."""
    moving = [home for home in homes if home.driver != VFIO]
    steps = [Step(home.address, OVERRIDE, VFIO) for home in moving if home.override != VFIO]
    for home in moving:
        if home.driver is not None:
            steps.append(Step(home.address, UNBIND, home.driver))
        steps.append(Step(home.address, PROBE, VFIO))
    return steps


def steps_to_give_back(journal: Journal, now: list[Home]) -> list[Step]:
    """Plan how devices get back to where the journal says they were.

    Args:
        journal: the record.
        now: where its devices are at this moment.

    A device that is neither on vfio-pci nor driverless was taken by somebody else since; only the override
    is put back then, and only if it is still ours.
    """
    state = {home.address: home for home in now}
    # Function 0 goes first on the way back, and devices that have vanished have nothing to give back.
    returning = [(home, state[home.address]) for home in reversed(journal.homes) if home.address in state]
    steps = [
        Step(home.address, OVERRIDE, home.override or "")
        for home, seen in returning
        if home.address in journal.overridden and seen.override == VFIO != home.override
    ]
    leaving = [(home, seen) for home, seen in returning if seen.driver == VFIO != home.driver]
    steps += [Step(home.address, UNBIND, VFIO) for home, seen in leaving]
    steps += [
        Step(home.address, PROBE, home.driver)
        for home, seen in returning
        if home.driver is not None and seen.driver in (None, VFIO) and seen.driver != home.driver
    ]
    return steps


def lend(host: Host, journal: Journal, homes: list[Home]) -> None:
    """Bind devices to vfio-pci; when that fails, everything is given back first.

    Raises:
        FailedError: a device could not be moved; the message says whether all is back.
    """
    for address in (home.address for home in homes):
        refuse_stuck(host, address)
    load_vfio(host)
    steps = steps_to_lend(homes)
    journal.begin(homes, steps)
    try:
        for step in steps:
            apply(host, step)
        journal.complete()
    except Exception as error:
        # What a stuck driver holds is no second problem.
        reference = getattr(error, "reference", "fault")
        problems = [problem.what for problem in give_back(host, journal) if problem.reference != reference]
        if problems:
            what = f"{error}; and not everything could be put back: {'; '.join(problems)}"
            raise FailedError(reference, what, "run virtpass recover") from error
        raise


def give_back(host: Host, journal: Journal) -> list[VirtpassError]:
    """Bring devices back to where the journal says they were, from any half-done state.

    Nothing is announced here: the journal has all that is needed since before the first write, and a full
    file system must not keep a card from coming home.

    Returns:
        what could not be done; when there is nothing, the journal is removed.
    """
    now, problems = present_state(host, journal)
    failed: set[PciAddress] = set()
    for step in steps_to_give_back(journal, now):
        address, action, _ = step
        if address in failed:
            continue
        try:
            if action == UNBIND:
                refuse_busy(host, address)
            apply(host, step)
        except VirtpassError as error:
            problems.append(error)
            failed.add(address)
    if not problems:
        journal.remove()
    return problems


def present_state(host: Host, journal: Journal) -> tuple[list[Home], list[VirtpassError]]:
    """Return where the devices of a journal are now, and what is wrong with those that cannot be asked.

    Devices that have vanished are left out; so are those that are stuck.
    """
    now: list[Home] = []
    problems: list[VirtpassError] = []
    for home in journal.homes:
        if not sysfs.is_present(host, home.address):
            continue
        try:
            refuse_stuck(host, home.address)
            now.append(Home(home.address, sysfs.driver(host, home.address), override(host, home.address)))
        except VirtpassError as error:
            problems.append(error)
    return now, problems


def apply(host: Host, step: Step) -> None:
    """Make one step and read back what came of it.

    Raises:
        FailedError: the kernel refused, did not answer in time, or did something else.
    """
    address, action, value = step
    path = sysfs.device_path(address)
    try:
        if action == OVERRIDE:
            # A line break clears it; an empty write would never reach the kernel.
            host.write_attribute(f"{path}/driver_override", value or "\n", ATTRIBUTE_DEADLINE)
            if (override(host, address) or "") != value:
                raise FailedError(
                    "override-refused", f"{address}: the kernel did not take driver_override '{value}'"
                )
        elif action == UNBIND:
            unbind = f"{sysfs.DRIVERS}/{checked_name(value)}/unbind"
            host.write_attribute(unbind, str(address), DRIVER_DEADLINE)
            if sysfs.driver(host, address) is not None:
                raise FailedError(
                    "unbind-refused", f"{address} is still bound to {sysfs.driver(host, address)}"
                )
        else:
            probe(host, address, value)
    except OSError as error:
        raise _failure(host, address, f"{action} {value}".strip(), error) from error


def probe(host: Host, address: PciAddress, wanted: str) -> None:
    """Let the kernel look for a driver, and see that it is the wanted one.

    Raises:
        OSError: the kernel refused or did not answer.
        FailedError: another driver was bound, or none.
    """
    _drivers_probe(host, address)
    if sysfs.driver(host, address) is None and not host.exists(f"{sysfs.DRIVERS}/{checked_name(wanted)}"):
        # The module was unloaded in the meantime; the device's alias finds it, as at boot.
        load_module(host, host.read(f"{sysfs.device_path(address)}/modalias") or wanted)
        if sysfs.driver(host, address) is None:
            _drivers_probe(host, address)
    bound = sysfs.driver(host, address)
    if bound != wanted:
        found = f"it is bound to {bound}" if bound else "no driver took it"
        raise FailedError(
            "not-bound", f"{address} could not be bound to {wanted}: {found}", "look at the kernel log"
        )


def _drivers_probe(host: Host, address: PciAddress) -> None:
    try:
        host.write_attribute("/sys/bus/pci/drivers_probe", str(address), DRIVER_DEADLINE)
    except OSError as error:
        # A driver whose probe function fails shows here as an error of the write, on some kernels; the
        # driver link tells the rest.
        if error.errno in (errno.ETIMEDOUT, errno.EPIPE):
            raise


def load_vfio(host: Host) -> None:
    """Load the modules of VFIO unless they are there.

    Raises:
        FailedError: the driver vfio-pci does not exist afterwards.
    """
    if not host.exists("/sys/module/vfio_iommu_type1"):
        load_module(host, "vfio_iommu_type1")
    if not host.exists(f"{sysfs.DRIVERS}/{VFIO}"):
        load_module(host, VFIO)
    if not host.exists(f"{sysfs.DRIVERS}/{VFIO}"):
        raise FailedError("no-vfio", "the driver vfio-pci cannot be loaded", "try: modprobe vfio-pci")


def load_module(host: Host, name: str) -> None:
    """Load a module by its name or by a device's alias; the caller looks at what came of it."""
    host.run(["/sbin/modprobe", "-b", "--", name], MODULE_DEADLINE)


def refuse_busy(host: Host, address: PciAddress) -> None:
    """Refuse to take a device from vfio-pci while a process uses its group: the unbind would never end.

    Raises:
        FailedError: it is in use.
    """
    group = sysfs.group(host, address)
    if group is not None and host.device_node_is_busy(f"/dev/vfio/{group}"):
        raise FailedError(
            "in-use", f"{address} is still used by a running virtual machine", "shut it down first"
        )


def refuse_stuck(host: Host, address: PciAddress) -> None:
    """Refuse to touch a device whose driver has hung since the last boot.

    Raises:
        FailedError: it is marked stuck.
    """
    if host.read_own(STUCK_DIRECTORY, str(address)) is not None:
        raise FailedError(
            "stuck", f"a driver hangs with {address}, which stays as it is until the next boot", "reboot"
        )


def _failure(host: Host, address: PciAddress, action: str, error: OSError) -> FailedError:
    if error.errno == errno.ETIMEDOUT:
        host.append_own(STUCK_DIRECTORY, str(address), f"{action}\n".encode())
        return FailedError(
            "stuck", f"{address}: {action} does not come back from the driver", "reboot the host"
        )
    return FailedError("kernel-refused", f"{address}: {action}: {error.strerror}")
