"""Everything back as it was before virtpass came: domains, hook, host, and what boots do."""

from collections.abc import Callable
from dataclasses import dataclass

from virtpass.binding import function_records
from virtpass.binding.journal import journals, read_journal
from virtpass.binding.policy import NAMESPACE
from virtpass.domain.plan import DomainPlan
from virtpass.hook.install import HookStatus, hook_status, is_anything_left
from virtpass.host.prepare import HostPlan
from virtpass.operations import domains, hooks, host_preparation, setup
from virtpass.operations.functions import set_functions
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.commands import run_command
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection, virsh
from virtpass.transaction.engine import Runner

_STATE = "/var/lib/virtpass"
# What an administrator has written there is his.
_CONFIGURATION = "/etc/virtpass"


@dataclass(frozen=True, slots=True)
class UninstallPlan:
    """What would be taken back.

    Attributes:
        domains: the changes of the domains.
        hook: what is installed of the hook.
        has_hook_files: whether there is anything of the hook, even without itself.
        host: the change of the host, None when nothing is applied.
        functions: devices that get virtual functions at boot.
        has_pending_setup: whether a setup waits for a reboot.
        kept: files that somebody else has written below virtpass' directories, and that stay.
    """

    domains: tuple[DomainPlan, ...]
    hook: HookStatus
    has_hook_files: bool
    host: HostPlan | None
    functions: tuple[PciAddress, ...]
    has_pending_setup: bool
    kept: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether virtpass has left nothing on this host."""
        return (
            not self.domains
            and not self.has_hook_files
            and self.host is None
            and not self.functions
            and not self.has_pending_setup
        )


def plan_uninstall(connection: Connection, host: Host) -> UninstallPlan:
    """Plan it; writes nothing.

    Raises:
        RefusedError: a domain has borrowed devices, or one that virtpass looks after runs.
        VirtpassError: something cannot be read.
    """
    for uuid in journals(host):
        journal = read_journal(host, uuid)
        name = journal.name if journal is not None else uuid
        raise RefusedError(
            "lent", f"devices are lent to the domain {name}", "shut it down first, or run virtpass recover"
        )
    found = domains.list_domains(connection, host)
    for one in found:
        if one.problem and NAMESPACE in connection.domain(one.uuid).shown_xml():
            raise RefusedError(
                "metadata",
                f"domain '{one.name}' cannot be given back: {one.problem}",
                f"{virsh('edit', one.name, uri=connection.uri)} mends it",
            )
    ours = [one for one in found if one.is_ours]
    changes = [domains.release(connection, host, one.uuid, dry_run=True).plan for one in ours]
    return UninstallPlan(
        domains=tuple(changes),
        hook=hook_status(host),
        has_hook_files=is_anything_left(host),
        host=host_preparation.plan_undo(host),
        functions=tuple(sysfs.parsed(function_records.names(host))),
        has_pending_setup=setup.is_waiting(host),
        kept=tuple(_kept(host)),
    )


def _kept(host: Host) -> list[str]:
    return [
        f"{_CONFIGURATION}/{directory}/{name}"
        for directory in ("xml_templates", "hooks.d/prepare.d", "hooks.d/release.d")
        for name in host.names(f"{_CONFIGURATION}/{directory}")
    ]


def uninstall(
    connection: Connection,
    host: Host,
    plan: UninstallPlan,
    *,
    say: Callable[[str], None] = lambda _: None,
    run: Runner = run_command,
) -> None:
    """Take everything back; can be run again when something of it fails.

    The domains come first: one that starts in between is then none of the hook's business.

    Raises:
        VirtpassError: something could not be taken back; what came before it is, and all else as it was.
    """
    for change in plan.domains:
        say(f"taking virtpass' part out of domain '{change.name}'")
        domains.release(connection, host, change.uuid)
    for address in plan.functions:
        say(f"{address} gets no virtual functions any more")
        if sysfs.is_present(host, address):
            set_functions(host, address, 0, persistent=True)
        else:
            function_records.write(host, address, None)
    if plan.host is not None:
        say("putting kernel arguments, modprobe and initramfs back")
        host_preparation.apply(host, plan.host, say=say, run=run)
    setup.forget(host)
    say("removing the hook")
    hooks.uninstall_hook(host)
    for path in (function_records.DIRECTORY, _CONFIGURATION, _STATE):
        if host.exists(path):
            _remove_if_empty(host, path)


def _remove_if_empty(host: Host, path: str) -> None:
    try:
        host.remove_directory(path)
    except VirtpassError:
        return  # its files are somebody else's
