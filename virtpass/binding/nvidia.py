"""The proprietary NVIDIA driver is unloaded, never unbound.

An unbind that finds a user never ends, even when the user does, and users in the kernel show nowhere
(NVIDIA/open-gpu-kernel-modules issues 1119 and 1374). Unloading a module fails cleanly while it is in use.

Imported by the hook: the imports here are on its allow-list.
"""

import time

from virtpass.binding import engine
from virtpass.binding.journal import Journal, journals, read_journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system import processes, waiting
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host

DRIVER = sysfs.NVIDIA
MODULE = "module"

DEADLINE = 30.0
# Of a module that is loaded again: until it may be, and until it is.
LOAD_BOUND = 2 * DEADLINE
# Seconds for an rmmod to come to the kernel, which is the first thing that it does.
_PROGRAM_DEADLINE = 5.0
_MOVING = ("going", "coming")
# What rmmod is a link to, where it is one: kmod nearly everywhere, busybox on Alpine.
_RMMOD = ("kmod", "busybox", "rmmod")
# Read by modprobe before the files of /etc, for of several lines for a module the first counts (modprobe.d(5)
# sorts by name); gone with the next boot.
_KEPT_OUT_DIRECTORY, _KEPT_OUT = "/run/modprobe.d", "00-virtpass-lent.conf"
_KEPT_OUT_WHY = """\
# virtpass has unloaded this driver, and lent its card to a virtual machine. This file goes when the card
# comes back. If it is still here when no machine has a card: virtpass recover
"""
# Loads nothing.
_DRY_RUN = ("/sbin/modprobe", "-n", "-a", "--")
# Needed for lending, so that it is there, as a module or in the kernel.
_KERNEL_S_OWN = "vfio"
# Each before those that it uses.
_MODULES = ("nvidia_peermem", "nvidia_uvm", "nvidia_drm", "nvidia_modeset", "nvidia")


def refuse_shared(host: Host, addresses: list[PciAddress]) -> None:
    """Refuse cards whose driver serves another one too, which would lose it.

    Raises:
        RefusedError: naming the other one.
    """
    if not any(sysfs.driver(host, address) == DRIVER for address in addresses):
        return
    bound = sysfs.parsed(host.names(f"{sysfs.DRIVERS}/{DRIVER}"))
    if others := [str(address) for address in bound if address not in addresses]:
        raise RefusedError(
            "nvidia-driver",
            f"nvidia has to be unloaded, and {', '.join(others)} would lose it too",
            "keep nvidia off the card that is lent from boot on: virtpass host plan --bind ADDRESS",
        )


def refuse_lasting_unload(host: Host, addresses: list[PciAddress]) -> None:
    """Refuse cards whose driver could be unloaded, but not loaded again: the host would stay dark.

    The modules of the kernel that runs are gone when a newer one has taken its place on the disk. modprobe
    tells, in a dry run, but not of a module with an ``install`` line, as Debian has one for each of these: so
    it is asked for one of the kernel's own as well. That of busybox knows no dry run, and is not met together
    with this driver.

    Raises:
        RefusedError: modprobe does not find a module that is loaded now.
    """
    names = loaded(host, addresses)
    if not names:
        return
    try:
        status, _ = host.run_program([*_DRY_RUN, _KERNEL_S_OWN, *names], {}, DEADLINE)
    except OSError:
        return  # nobody can tell, as in an older snapshot
    if status:
        raise RefusedError(
            "nvidia-driver",
            f"nvidia has to be unloaded, and modprobe would not load all of {', '.join(names)} again",
            engine.after_update(f"-n -a {' '.join(names)}"),
        )


def loaded(host: Host, addresses: list[PciAddress]) -> list[str]:
    """Return the modules to be unloaded, in this order; none unless a device is bound to the driver."""
    if not any(sysfs.driver(host, address) == DRIVER for address in addresses):
        return []
    return [name for name in _MODULES if host.exists(f"/sys/module/{name}")]


def unload(host: Host, journal: Journal, addresses: list[PciAddress]) -> list[str]:
    """Unload the driver where one of the devices is bound to it, and keep it out until one needs it again.

    Rules of udev load a module again as soon as it goes; NVIDIA's own did until 2025
    (openSUSE/nvidia-driver-G06 pull request 71). They would be in time to keep the next module in use; and as
    the driver ends its load where no device is left to it, they would load it again and again until the
    device is back. modprobe, which they run, refuses meanwhile. udev itself may not notice for some seconds,
    or not at all if it has never seen the directory; but it loads only for a device that appears.

    Returns:
        what was done, and what could not be, as sentences without a full stop.

    Raises:
        RefusedError: a module is in use.
        FailedError: it could not be recorded, or the driver hangs.
    """
    names = loaded(host, addresses)
    if not names:
        return []
    # Before: the kernel takes the link to the driver away first of all.
    bound = [address for address in addresses if sysfs.driver(host, address) == DRIVER]
    journal.add(*((MODULE, name) for name in reversed(names)))
    done: list[str] = []
    try:
        _keep_out(host)
    except VirtpassError as error:
        # Few hosts have such rules.
        done.append(f"modprobe may load them again: {error.what}")
    # Somebody may have been at it.
    if late := [name for name in loaded(host, addresses) if name not in names]:
        journal.add(*((MODULE, name) for name in reversed(late)))
        names = [name for name in _MODULES if name in (*names, *late)]
    for name in names:
        status = host.run(["/sbin/rmmod", "--", name], DEADLINE)
        if status is None:
            # It waits in the driver's remove function, as an unbind would, and nothing ends that.
            for address in bound:
                engine.mark_stuck(host, address, "unload")
            what = f"unloading the module {name} does not come back from its driver"
            raise FailedError("stuck", what, "reboot the host")
        if status != 0 and host.exists(f"/sys/module/{name}"):
            count = host.read(f"/sys/module/{name}/refcnt") or "?"
            raise RefusedError(
                "nvidia-driver",
                f"the module {name} cannot be unloaded: it is in use ({count} users)",
                "end what uses the card; lsof /dev/nvidia* may tell",
            )
    return [f"{', '.join(names)} unloaded", *done]


def _keep_out(host: Host) -> None:
    """Keep modprobe from loading the modules.

    Raises:
        VirtpassError: it cannot be told to.
    """
    lines = "".join(f"install {name} /bin/false\n" for name in _MODULES)
    host.replace_own(_KEPT_OUT_DIRECTORY, _KEPT_OUT, (_KEPT_OUT_WHY + lines).encode(), 0o644)


def are_kept_out(host: Host) -> bool:
    """Tell whether modprobe is kept from loading the modules."""
    return host.exists(f"{_KEPT_OUT_DIRECTORY}/{_KEPT_OUT}")


def let_in_unless_lent(host: Host) -> None:
    """Let the modules be loaded again if no record says that they were unloaded; for whoever has the lock.

    Raises:
        VirtpassError: a record cannot be read, or what keeps them out cannot be removed.
    """
    for uuid in journals(host):
        journal = read_journal(host, uuid)
        if journal is not None and any(kind == MODULE for kind, *_ in journal.effects):
            return
    let_in(host)


def let_in(host: Host) -> None:
    """Let the modules be loaded again, by whomever; nothing happens where they may be.

    Raises:
        VirtpassError: what keeps them out cannot be removed.
    """
    host.remove_own(_KEPT_OUT_DIRECTORY, _KEPT_OUT)


def load_again(host: Host, fields: tuple[str, ...]) -> None:
    """Load a module that was unloaded.

    Raises:
        FailedError: it is not there afterwards, or it neither comes nor goes.
        VirtpassError: it is kept out.
        ValueError: the record is none.
    """
    (name,) = fields
    if name not in _MODULES:
        raise ValueError("not a module that virtpass unloads")
    let_in(host)
    if not _wait_until_settled(host, name):
        what = f"the module {name} is still on its way in or out of the kernel"
        raise FailedError("module", what, "look at the kernel log, then run virtpass recover")
    if host.exists(f"/sys/module/{name}"):
        return
    host.run(["/sbin/modprobe", "--", name], DEADLINE)
    if not host.exists(f"/sys/module/{name}"):
        # Else rules of udev would go on with what has failed.
        _keep_out(host)
        raise FailedError(
            "module",
            f"the module {name} cannot be loaded again",
            f"{engine.after_update(name)}, then run virtpass recover",
        )


def _wait_until_settled(host: Host, name: str) -> bool:
    """Wait until nobody loads or unloads a module any more: a killed hook's rmmod goes on without it.

    Returns:
        whether the kernel has done with it. A program that may be about to unload it is waited for, no more:
        as long as it has not come to the kernel, the module is what the kernel says it is.
    """
    end = time.monotonic() + _PROGRAM_DEADLINE

    def is_settled() -> bool:
        if host.read(f"/sys/module/{name}/initstate") in _MOVING:
            return False
        return time.monotonic() >= end or not _is_being_removed(host, name)

    with waiting.Uevents() as uevents:
        return uevents.wait_until(is_settled, DEADLINE)


def _is_being_removed(host: Host, name: str) -> bool:
    """Tell whether root runs an rmmod that is to unload a module."""
    for process in host.names("/proc"):
        if not process.isdigit() or processes.text(host, process, "comm") != "rmmod":
            continue
        words = processes.text(host, process, "cmdline").split("\0")
        if name in words and processes.runs_as_root(host, process, _RMMOD):
            return True
    return False


UNDO = {MODULE: load_again}
