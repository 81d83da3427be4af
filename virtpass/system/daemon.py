"""The libvirt daemon that runs QEMU domains: which one it is, and how it is told to look for hooks again.

Whether there is any hook is remembered from the daemon's start; it looks again at SIGHUP, which is what a
reload sends (virHookCall and remote_daemon.c in libvirt's sources).
"""

import shutil
import subprocess

from virtpass.system.commands import PATH, environment
from virtpass.system.errors import FailedError
from virtpass.system.tasks import under_way

UNITS = ("virtqemud.service", "libvirtd.service")
_DEADLINE = 60


def active_daemon() -> str | None:
    """Return the unit of the daemon that runs now; None when none does, or without systemd.

    A daemon that is not running is started by its socket and looks for hooks then.
    """
    if shutil.which("systemctl", path=PATH) is None:
        return None
    for unit in UNITS:
        if _systemctl("is-active", "--quiet", unit).returncode == 0:
            return unit
    return None


def last_change(unit: str) -> tuple[int | None, float | None]:
    """Return the process of a daemon, and when it was started or last reloaded.

    Returns:
        the process number, and seconds since the epoch; None for what systemd does not tell (``--timestamp``
        came with its version 247).
    """
    try:
        asked = _systemctl("show", unit, "--timestamp=unix", "--property=MainPID,StateChangeTimestamp")
    except FailedError:
        return None, None
    fields = dict(line.split("=", 1) for line in asked.stdout.splitlines() if "=" in line)
    process = fields.get("MainPID", "")
    moment = fields.get("StateChangeTimestamp", "").removeprefix("@")
    return (
        int(process) if process.isdigit() and process != "0" else None,
        float(moment) if moment.isdigit() else None,
    )


def reload_daemon(unit: str) -> None:
    """Reload a daemon, which leaves its domains alone.

    Raises:
        FailedError: systemd could not do it.
    """
    with under_way(f"reloading {unit}", _DEADLINE):
        done = _systemctl("reload", unit)
    if done.returncode:
        raise FailedError(
            "daemon-reload",
            f"{unit} could not be reloaded: {done.stderr.strip()}",
            f"systemctl reload {unit}",
        )


def _systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", "--no-ask-password", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            text=True,
            timeout=_DEADLINE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedError("systemctl", f"systemctl does not answer: {error}") from error
