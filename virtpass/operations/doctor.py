"""Everything that stands between this host and a working passthrough."""

import grp
import os
import pwd
from dataclasses import dataclass

from virtpass.binding.functions import announced
from virtpass.doctor.catalogue import CHECKS, examine
from virtpass.doctor.check import Check, Outcome, Verdict, worst
from virtpass.doctor.scene import Outside, Scene
from virtpass.hook.install import HOOK
from virtpass.operations import host_preparation
from virtpass.operations.domains import DomainDevice, DomainReport, list_domains
from virtpass.operations.recorded_outside import recorded_outside
from virtpass.system.daemon import active_daemon, last_change
from virtpass.system.errors import NotFoundError, PermissionDeniedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import SYSTEM, Connection
from virtpass.system.recorded import RecordedHost

# Seconds. A daemon that hangs is a finding, and must not hold up all the others.
_LIBVIRT_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Examination:
    """What all checks found.

    Attributes:
        outcomes: one for each check, in the order of the catalogue.
        is_root: whether root looked; others see less.
    """

    outcomes: tuple[Outcome, ...]
    is_root: bool

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        return worst(outcome.verdict for outcome in self.outcomes)


def examine_host(host: Host, uri: str = SYSTEM) -> Examination:
    """Run all checks; needs no permission, and sees less without. Changes nothing."""
    outside = recorded_outside(host) if isinstance(host, RecordedHost) else look_outside(host, uri)
    return Examination(tuple(examine(Scene(host, outside))), outside.is_root)


def check_named(reference: str) -> Check:
    """Return a check by its id.

    Raises:
        NotFoundError: there is none; the message lists all.
    """
    for check in CHECKS:
        if check.reference == reference:
            return check
    known = ", ".join(check.reference for check in CHECKS)
    raise NotFoundError("no-check", f"there is no check '{reference}'", f"the checks are {known}")


def look_outside(host: Host, uri: str = SYSTEM) -> Outside:
    """Ask those who have no file of it: libvirt, systemd, and who the user is."""
    version, problem, remedy, is_refused = "", "", "", False
    running: tuple[str, ...] | None = None
    devices: list[tuple[str, ...]] = []
    misplaced: list[tuple[str, str]] = []
    domains: list[DomainReport] = []
    try:
        with Connection.open(uri, deadline=_LIBVIRT_DEADLINE) as connection:
            version = _dotted(connection.version)
            domains = list_domains(connection, host)
            running = tuple(one.uuid for one in domains if one.is_active)
            coming = announced(host)
            for domain in domains:
                devices.append((domain.uuid, *(str(one.address) for one in domain.devices)))
                misplaced += [
                    (domain.name, text)
                    for one in domain.devices
                    if (text := _misplaced(one, is_coming=one.address in coming))
                ]
    except VirtpassError as error:
        # Which daemon is to be started shows in files, which the checks read.
        problem, remedy = error.what, "" if error.reference == "no-libvirt" else error.remedy
        is_refused = isinstance(error, PermissionDeniedError)
    unit = None if host.root else active_daemon()
    process, looked = last_change(unit) if unit is not None else (None, None)
    try:
        status = host_preparation.status(host)
        compared, is_unfinished, record, unread = status.checks, status.is_unfinished, status.record, ""
    except VirtpassError as error:
        compared, is_unfinished, record, unread = (), False, None, error.line
    written, label = _hook_file(host)
    user, groups = _user()
    return Outside(
        is_root=os.geteuid() == 0,
        user=user,
        groups=groups,
        libvirt_version=version,
        libvirt_problem=problem,
        libvirt_remedy=remedy,
        libvirt_refuses=is_refused,
        libvirt_is_of_session=uri.partition("?")[0].endswith("/session"),
        daemon=unit or "",
        daemon_process=process,
        daemon_looked=looked,
        hook_written=written,
        daemon_label=_confinement(host, process),
        hook_label=label,
        running=running,
        domains=tuple(devices),
        names=tuple((one.uuid, one.name) for one in domains),
        ours=tuple(one.uuid for one in domains if one.is_ours),
        handing_over=tuple(one.uuid for one in domains if one.policy and one.policy.display == "hand-over"),
        unrecorded=tuple((one.uuid, *map(str, one.unrecorded)) for one in domains if one.unrecorded),
        misplaced=tuple(misplaced),
        host_checks=compared,
        host_problem=unread,
        bound_early=tuple(map(str, record.devices)) if record is not None else (),
        accepts_unsafe=record is not None and record.unsafe_interrupts,
        applied=record.arguments if record is not None else (),
        is_unfinished=is_unfinished,
    )


def _misplaced(device: DomainDevice, *, is_coming: bool) -> str:
    """Return what is wrong with a device of a domain; empty for nothing."""
    if device.seen is None:
        return "" if is_coming else f"it has {device.address}, which this host has not"
    if device.recorded is not None and not device.is_as_recorded:
        return f"at {device.address} is {device.seen} now, not {device.recorded} as when it was attached"
    return ""


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _hook_file(host: Host) -> tuple[float | None, str]:
    """Return when the hook was last written, and its SELinux label."""
    path = host.path(HOOK)
    try:
        written = os.stat(path).st_mtime
    except OSError:
        return None, ""
    try:
        label = os.getxattr(path, "security.selinux").decode("utf-8", "replace").rstrip("\0")
    except OSError:
        label = ""
    return written, label


def _confinement(host: Host, process: int | None) -> str:
    """Return how a process is confined; empty when that cannot be read."""
    if process is None:
        return ""
    # Without the first one the kernel knows one security module at a time.
    places = ("apparmor/current", "current")
    read = (host.read(f"/proc/{process}/attr/{place}") for place in places)
    return next((text.rstrip("\0") for text in read if text), "")


def _user() -> tuple[str, tuple[str, ...]]:
    """Return who looks, and the groups: behind sudo whoever called it."""
    caller = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    try:
        entry = pwd.getpwnam(caller) if caller else pwd.getpwuid(os.getuid())
    except KeyError:
        return "", ()
    name = entry.pw_name
    groups = []
    for number in os.getgrouplist(name, entry.pw_gid) if caller else os.getgroups():
        try:
            groups.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return name, tuple(groups)
