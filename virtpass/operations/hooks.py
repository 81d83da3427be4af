"""The qemu hook: install it, remove it, look at it."""

from collections.abc import Callable
from dataclasses import dataclass

from virtpass.hook import install as installation
from virtpass.hook.install import HookStatus, hook_status
from virtpass.operations.locking import locked
from virtpass.system.daemon import active_daemon, reload_daemon
from virtpass.system.host import Host
from virtpass.system.recorded import RecordedHost, typed
from virtpass.system.tasks import under_way


@dataclass(frozen=True, slots=True)
class HookResult:
    """What came of a change.

    Attributes:
        changed: whether any file changed.
        status: what is installed now.
        reloaded: the daemon that was told to look again; None when none runs (it will look when it starts).
    """

    changed: bool
    status: HookStatus
    reloaded: str | None


def install_hook(host: Host) -> HookResult:
    """Install the hook, or bring it up to date, and tell the running daemon.

    Raises:
        VirtpassError: it could not be installed; libvirt sees no half-written hook.
    """
    return _told(host, installation.install)


def uninstall_hook(host: Host) -> HookResult:
    """Remove the hook and tell the running daemon.

    Raises:
        RefusedError: a domain has borrowed devices that the hook would give back.
    """
    return _told(host, installation.uninstall)


def show_hook(host: Host) -> tuple[HookStatus, str | None]:
    """Return what is installed, and the unit of the daemon that runs."""
    if isinstance(host, RecordedHost):
        return hook_status(host), typed(host.outside.get("daemon"), str) or None
    return hook_status(host), None if host.root else active_daemon()


def _told(host: Host, change: Callable[[Host], bool]) -> HookResult:
    with locked(host), under_way("changing the files of the hook"):
        changed = change(host)
    unit = None if host.root else active_daemon()
    if unit is not None:
        reload_daemon(unit)
    return HookResult(changed, hook_status(host), unit)
