"""Moves devices between their host drivers and vfio-pci, and back, with every step on record first.

The order for each device is override, unbind, probe, then read the driver link back: with the override in
place no other driver can take the device in between, and a probe that binds nothing reports success all
the same. Never ``new_id``: it binds every device of that id.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding import effects
from virtpass.binding.effects import nobody, tell_wait
from virtpass.binding.journal import Home, Journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system import processes, waiting
from virtpass.system.errors import FailedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer, first_parent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from virtpass.binding.effects import Tell

VFIO = "vfio-pci"

# Seconds. A driver's remove or probe function takes part of a second, with firmware to load up to ten;
# whoever asks for the device meanwhile waits for it.
DEADLINE = 30.0
MODULE_DEADLINE = 30.0

# Seconds that the kernel may take to close the group of a domain that has just ended.
CLOSING = 5.0

# Seconds for the last access of a killed hook's child; huge pages take some. The second: where a device is
# stuck.
ORPHANS, _STUCK_ORPHANS = 15.0, 0.5
# Seconds. Older ones hang, though no device is marked for it, and will not write in this moment of all.
_ORPHAN_AGE = 300.0
# What runs hooks and commands, whichever version: `python3.11`.
_PYTHON = "python"

# Once to give back, once to see that nothing is left; more when something was written late.
_ATTEMPTS = 4

OVERRIDE, UNBIND, PROBE = "override", "unbind", "probe"

# Longer than one hand-over of a card with four functions whose drivers take their time. One that stops a
# desktop, waits for programs and runs steps may take longer: a release that waits in vain is left to it.
LOCK_DEADLINE = 120.0

STUCK_DIRECTORY = "/run/virtpass/stuck"


class Step(tuple[PciAddress, str, str]):
    """One write: the device, the action (override, unbind or probe) and the action's value.

    The value is the new override (empty to clear it), the driver to unbind from, or the driver that the
    probe must bind.
    """

    __slots__ = ()

    def __new__(cls, address: PciAddress, action: str, value: str) -> Step:
        """Hold the three together."""
        return super().__new__(cls, (address, action, value))

    def __str__(self) -> str:
        """A sentence for people."""
        address, action, value = self
        if action == OVERRIDE:
            return (
                f"{address}: set driver_override to {value}" if value else f"{address}: clear driver_override"
            )
        if action == UNBIND:
            return f"{address}: unbind from {value}"
        return f"{address}: let {value} bind it"


class Seen(tuple[PciAddress, str | None, str | None, bool]):
    """Where a device is now: address, driver, override, and whether its driver is one of VFIO's."""

    __slots__ = ()

    def __new__(cls, address: PciAddress, driver: str | None, override: str | None, on_vfio: bool) -> Seen:
        """Hold the four together."""
        return super().__new__(cls, (address, driver, override, on_vfio))


def lock(host: Host, *, deadline: float | None = None) -> int:
    """Take the lock that everybody takes who moves devices; closing the descriptor gives it back.

    Args:
        host: the host.
        deadline: seconds to wait; two minutes unless told otherwise.

    Raises:
        FailedError: it stayed taken; the reference is ``locked``.
    """
    return host.lock("/run/virtpass", "lock", LOCK_DEADLINE if deadline is None else deadline)


def homes(host: Host, addresses: list[PciAddress]) -> list[Home]:
    """Return where devices are now, in the order in which they are to be lent."""
    return [Home(*seen(host, address)[:3]) for address in leaving_order(addresses)]


def leaving_order(addresses: Iterable[PciAddress]) -> list[PciAddress]:
    """Return devices in the order in which they leave the host; they come back in the opposite one.

    The last function of a card comes first: audio, USB and USB-C functions are consumers of function 0
    (quirk_gpu_hda in the kernel's drivers/pci/quirks.c).
    """
    return sorted(set(addresses), key=lambda address: (*address[:3], -address.function))


def seen(host: Host, address: PciAddress) -> Seen:
    """Look where a device is.

    The override comes first: reading it waits for the device's lock, hence for a write that a killed hook's
    child is still making; the driver read after it is what came of that.

    Raises:
        FailedError: the kernel does not answer: a driver holds the device's lock.
    """
    present = override(host, address)
    return Seen(address, sysfs.driver(host, address), present, sysfs.is_on_vfio(host, address))


def override(host: Host, address: PciAddress) -> str | None:
    """Return the ``driver_override`` of a device, None when it is unset.

    Raises:
        FailedError: the kernel does not answer: a driver holds the device's lock.
    """
    try:
        text = host.read_attribute(f"{sysfs.device_path(address)}/driver_override", DEADLINE)
    except OSError as error:
        what = f"{address}: its driver_override cannot be read: {error.strerror}"
        raise FailedError("no-answer", what, "look at the kernel log") from error
    return None if text in ("", "(null)") else text


def steps_to_lend(homes: list[Home], free: frozenset[PciAddress] = frozenset()) -> list[Step]:
    """Plan how devices get to vfio-pci; those that are there already need nothing.

    Args:
        homes: where they are.
        free: those that get no driver at all.
    """
    leaving = [home for home in homes if home.address in free and home.driver is not None]
    moving = [home for home in homes if home.driver != VFIO and home.address not in free]
    steps = [Step(home.address, OVERRIDE, VFIO) for home in moving if home.override != VFIO]
    for home in homes:
        if home.driver is not None and (home in moving or home in leaving):
            steps.append(Step(home.address, UNBIND, home.driver))
        if home in moving:
            steps.append(Step(home.address, PROBE, VFIO))
    return steps


def steps_to_give_back(homes: list[Home], now: list[Seen]) -> list[Step]:
    """Plan how devices get back to where they were.

    Args:
        homes: where they were, in the order in which they were lent.
        now: where they are.

    The override names the home driver while the kernel probes, so that no other driver takes the device; what
    it was before comes back last. A device that is on another driver of the host was taken by somebody else
    since: it is left there.
    """
    state = {address: (driver, override, on_vfio) for address, driver, override, on_vfio in now}
    overrides, unbinds, probes, restored = [], [], [], []
    # Function 0 goes first on the way back. What is not in the state has vanished, or cannot be asked.
    for home in reversed(homes):
        if home.address not in state or home.driver == VFIO:
            continue
        driver, override, on_vfio = state[home.address]
        # An override that is neither ours nor the recorded one was set by somebody meanwhile, and stays.
        # libvirt names a variant of vfio-pci there when it prefers one.
        is_known = override in (VFIO, home.driver, home.override) or (on_vfio and override == driver)
        final = home.override if is_known else override
        returns = home.driver is not None and driver != home.driver and (driver is None or on_vfio)
        if returns and home.driver is not None:
            if override != home.driver:
                overrides.append(Step(home.address, OVERRIDE, home.driver))
                override = home.driver
            probes.append(Step(home.address, PROBE, home.driver))
        if driver is not None and on_vfio and driver != home.driver:
            unbinds.append(Step(home.address, UNBIND, driver))
        if override != final:
            restored.append(Step(home.address, OVERRIDE, final or ""))
    return overrides + unbinds + probes + restored


def make_first(
    host: Host,
    homes: list[Home],
    action: str,
    free: frozenset[PciAddress] = frozenset(),
    *,
    tell: Tell = nobody,
) -> None:
    """Make the steps of one kind before something that comes between them and the others.

    Overrides are set before a driver goes in another way, so that no other takes its devices in between;
    other functions of a card are unbound before function 0 loses its driver with a module.

    Args:
        host: the host.
        homes: where the devices are.
        action: which steps: override or unbind.
        free: as for `lend`.
        tell: as for `lend`.

    Raises:
        FailedError: the kernel refused, or does not answer.
    """
    for step in steps_to_lend(homes, free):
        if step[1] == action:
            _apply_and_tell(host, step, tell)


def lend(
    host: Host,
    journal: Journal,
    homes: list[Home],
    prepare: Callable[[], None] = lambda: None,
    *,
    free: frozenset[PciAddress] = frozenset(),
    tell: Tell = nobody,
) -> None:
    """Bind devices to vfio-pci; when that fails, everything is given back first.

    Args:
        host: the host.
        journal: where it is recorded before.
        homes: where the devices are.
        prepare: what else has to be done before, when it can be undone: everything is on record by then.
        free: devices among them that get no driver at all.
        tell: is told of each write: what, to what, how many seconds it took, and what went wrong.

    Raises:
        FailedError: a device could not be moved; the message says whether all is back.
    """
    for address in (home.address for home in homes):
        refuse_stuck(host, address)
    load_vfio(host)
    journal.begin(homes)
    current = homes[0].address if homes else None
    try:
        prepare()
        for step in steps_to_lend(homes, free):
            current = step[0]
            _apply_and_tell(host, step, tell)
    except Exception as error:
        problems = lasting(give_back(host, journal, tell=tell))
        if getattr(error, "reference", "") == "stuck":
            # That the hanging device cannot be given back is no second problem.
            problems = [
                one for one in problems if not (one.reference == "stuck" and str(current) in one.what)
            ]
        if problems:
            what = f"{error}; and not everything could be put back: {'; '.join(one.what for one in problems)}"
            reference = getattr(error, "reference", "fault")
            raise FailedError(reference, what, "run virtpass recover") from error
        raise


def _apply_and_tell(host: Host, step: Step, tell: Tell) -> None:
    """Make a write and tell of it, whether it works or not; errors as `apply`."""
    began = time.monotonic()
    problem = ""
    try:
        apply(host, step)
    except VirtpassError as error:
        problem = error.line
        raise
    finally:
        tell(step[1], str(step), time.monotonic() - began, problem)


def give_back(host: Host, journal: Journal, *, tell: Tell = nobody) -> list[VirtpassError]:
    """Bring devices back to where the journal says they were, from any half-done state.

    Args:
        host: the host.
        journal: what is on record.
        tell: as for `lend`.

    Returns:
        what could not be done; when there is nothing, each device is back, or gone from the host, or with a
        driver that somebody else gave it, and the journal is removed.
    """
    wait_for_orphans(host, tell)
    for _ in range(_ATTEMPTS):
        now, problems = present_state(host, journal)
        steps = steps_to_give_back(journal.homes, now)
        if not steps:
            break
        if busy := _busy_after_a_while(host, [step[0] for step in steps if step[1] == UNBIND], tell):
            return [*problems, busy]
        failed: set[PciAddress] = set()
        for step in steps:
            if step[0] in failed:
                continue
            try:
                _apply_and_tell(host, step, tell)
            except VirtpassError as error:
                failed.add(step[0])
                if not _has_vanished(host, step[0], error):
                    problems.append(error)
        if problems:
            break
        # Once more from what is there now: the child of a killed hook may have written late.
    else:
        what = f"the devices of {journal.name} do not stay where they are put: {', '.join(map(str, steps))}"
        problems.append(FailedError("unsettled", what, "look who else moves them"))
    # Also when a device is not back: what draws on it waits for its display, and for nothing else.
    problems += effects.undo(host, journal, stays=bool(problems), tell=tell)
    if not lasting(problems):
        try:
            journal.remove()
        except VirtpassError as error:
            problems.append(error)
    return problems


def wait_for_orphans(host: Host, tell: Tell = nobody) -> bool:
    """Wait, with a bound, until the child of a killed hook has made its last access.

    What it writes late would come after its undo. A child that hangs with a device stays for ever: where one
    is known to, it is not waited for long.

    Args:
        host: the host.
        tell: is told if it took noticeably long.

    Returns:
        whether there is none any more.
    """
    deadline = _STUCK_ORPHANS if host.names(STUCK_DIRECTORY) else ORPHANS
    end = time.monotonic() + deadline
    began = 0.0
    while left := orphans(host):
        now = time.monotonic()
        if now >= end:
            break
        began = began or now
        waiting.wait_for_end(left, end - now)
    if began:
        tell_wait(tell, "for the last access of a hook that was killed", began)
    return not left


def has_orphans(host: Host) -> bool:
    """Tell whether a child that makes accesses has lost its parent, and may still make its last one."""
    return bool(orphans(host))


def orphans(host: Host) -> list[int]:
    """Return the processes that `has_orphans` is about."""
    found = []
    for name in host.names("/proc"):
        made_by = first_parent(processes.text(host, name, "comm")) if name.isdigit() else None
        # Everybody may call a process of his as he likes.
        if made_by is None or not processes.runs_as_root(host, name, (_PYTHON,)):
            continue
        child = processes.find(host, name)
        if child is not None and child.parent != made_by and child.age(host) < _ORPHAN_AGE:
            found.append(int(name))
    return found


def lasting(problems: list[VirtpassError]) -> list[VirtpassError]:
    """Return the problems for which the record stays: some would be there for ever."""
    return [problem for problem in problems if problem.reference not in effects.FORGOTTEN]


def present_state(host: Host, journal: Journal) -> tuple[list[Seen], list[VirtpassError]]:
    """Return where the devices of a journal are now, and what is wrong with those that cannot be asked.

    Devices that have vanished are left out; so are those that are stuck.
    """
    now: list[Seen] = []
    problems: list[VirtpassError] = []
    for home in journal.homes:
        if not sysfs.is_present(host, home.address):
            continue
        try:
            refuse_stuck(host, home.address)
            now.append(seen(host, home.address))
        except VirtpassError as error:
            if not _has_vanished(host, home.address, error):
                problems.append(error)
    return now, problems


def _has_vanished(host: Host, address: PciAddress, error: VirtpassError) -> bool:
    """Tell whether an access has failed because the device was pulled out meanwhile.

    Where its driver hangs, that is the problem, wherever the device is.
    """
    return error.reference != "stuck" and not sysfs.is_present(host, address)


def apply(host: Host, step: Step) -> None:
    """Make one step and read back what came of it.

    Raises:
        FailedError: the kernel refused, did not answer in time, or did something else.
    """
    address, action, value = step
    path = sysfs.device_path(address)
    made = f"{address}: {action} {value}".rstrip()
    try:
        if action == OVERRIDE:
            # A line break clears it; an empty write would never reach the kernel.
            host.write_attribute(f"{path}/driver_override", value or "\n", DEADLINE)
            if (override(host, address) or "") != value:
                raise FailedError(
                    "override-refused", f"{address}: the kernel did not take driver_override '{value}'"
                )
        elif action == UNBIND:
            if sysfs.driver(host, address) is None:
                return  # its driver was unloaded
            host.write_attribute(f"{sysfs.DRIVERS}/{value}/unbind", str(address), DEADLINE)
            if sysfs.driver(host, address) is not None:
                raise FailedError(
                    "unbind-refused", f"{address} is still bound to {sysfs.driver(host, address)}"
                )
        else:
            probe(host, address, value)
    except NoAnswer as error:
        mark_stuck(host, address, action)
        raise FailedError(
            "stuck",
            f"{made} does not come back from the driver",
            "reboot the host",
        ) from error
    except OSError as error:
        raise FailedError("kernel-refused", f"{made}: {error.strerror}") from error


def probe(host: Host, address: PciAddress, wanted: str) -> None:
    """Let the kernel look for a driver, and see that it is the wanted one.

    Raises:
        OSError: the kernel refused or did not answer.
        FailedError: another driver was bound, or none.
    """
    _drivers_probe(host, address)
    if sysfs.driver(host, address) is None and not host.exists(f"{sysfs.DRIVERS}/{wanted}"):
        if wanted == sysfs.NVIDIA:
            # Not at the top: it imports this module, and other drivers do without.
            from virtpass.binding import nvidia

            nvidia.let_in(host)
        # The module was unloaded in the meantime; the device's alias finds it, as at boot.
        load_module(host, host.read(f"{sysfs.device_path(address)}/modalias") or wanted)
        if not host.exists(f"{sysfs.DRIVERS}/{wanted}"):
            # Where the configuration keeps the alias from loading it, somebody had loaded it by its name.
            host.run(["/sbin/modprobe", "--", wanted], MODULE_DEADLINE)
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
        host.write_attribute("/sys/bus/pci/drivers_probe", str(address), DEADLINE)
    except NoAnswer:
        raise
    except OSError:
        # A driver whose probe function fails shows here as an error of the write, on some kernels; the
        # driver link tells the rest.
        pass


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
        raise FailedError("no-vfio", "the driver vfio-pci cannot be loaded", after_update("vfio-pci"))


def after_update(module: str) -> str:
    """Return what to do about a module that modprobe does not load."""
    return f"if the kernel was updated since the last boot, reboot the host; else try: modprobe {module}"


def load_module(host: Host, name: str) -> None:
    """Load a module by its name or by a device's alias; the caller looks at what came of it."""
    host.run(["/sbin/modprobe", "-b", "--", name], MODULE_DEADLINE)


def _busy_after_a_while(host: Host, addresses: list[PciAddress], tell: Tell) -> FailedError | None:
    """Wait until nobody has the groups of devices open: taking a device from vfio-pci would never end before.

    Returns:
        an error when somebody still has after some seconds.
    """
    busy = None
    began = time.monotonic()
    for address in addresses:
        while busy is None and sysfs.group_is_open(host, address):
            if time.monotonic() >= began + CLOSING:
                what = f"{address} is still used by a running virtual machine"
                busy = FailedError("in-use", what, "shut it down first")
            else:
                # Nobody tells of its last close.
                time.sleep(waiting.OFTEN)
    tell_wait(tell, "until no virtual machine has the devices open", began)
    return busy


def mark_stuck(host: Host, address: PciAddress, action: str) -> None:
    """Record that a driver hangs with a device; without the record, the error that led here still stands."""
    try:
        host.append_own(STUCK_DIRECTORY, str(address), f"{action}\n".encode())
    except VirtpassError:
        pass


def is_stuck(host: Host, address: PciAddress) -> bool:
    """Tell whether a driver has hung with a device since the last boot.

    Raises:
        VirtpassError: it cannot be told.
    """
    return host.read_own(STUCK_DIRECTORY, str(address)) is not None


def refuse_stuck(host: Host, address: PciAddress) -> None:
    """Refuse to touch a device whose driver has hung since the last boot.

    Raises:
        FailedError: it is marked stuck.
    """
    if is_stuck(host, address):
        what = f"a driver hangs with {address}, which stays as it is until the next boot"
        raise FailedError("stuck", what, "reboot the host")
