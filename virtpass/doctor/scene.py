"""What the checks look at: the host's files, and what only its daemons and its user can tell."""

import shlex
from dataclasses import dataclass
from functools import cached_property

from virtpass.hook.install import HookStatus, hook_status
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.iommu import Iommu, read_iommu
from virtpass.host.status import Check as HostCheck
from virtpass.pci.inventory import Device, Inventory, read_inventory
from virtpass.system.host import Host


@dataclass(frozen=True, slots=True)
class Outside:
    """What is in no file of the host; a record of it stands in for daemons that are elsewhere.

    Attributes:
        is_root: whether root looks.
        user: who looks.
        groups: the groups of that user.
        libvirt_version: such as "9.0.0"; empty when libvirt does not answer.
        libvirt_problem: why it does not answer; empty when it does.
        libvirt_remedy: what to do then; empty where nothing is known but that no daemon runs.
        libvirt_refuses: whether it answers, but not to this user.
        libvirt_is_of_session: whether it is one that a user has for himself.
        daemon: the unit of the daemon that runs domains, such as "libvirtd.service"; empty when none runs.
        daemon_process: its process number, None for none.
        daemon_looked: when it last looked for hooks: its start or reload, in seconds since the epoch; None
            when that is not known.
        hook_written: when the hook was last written, in seconds since the epoch; None without a hook.
        daemon_label: how AppArmor or SELinux confines that process, such as "libvirtd (enforce)" or
            "unconfined"; empty when that is not known.
        hook_label: the SELinux label of the hook; empty without.
        running: UUIDs of the domains that run; None when libvirt does not answer.
        domains: for each domain its UUID and the addresses of its devices.
        names: for each domain its UUID and its name.
        ours: UUIDs of the domains that virtpass looks after.
        handing_over: UUIDs of those for which the desktop may be ended.
        unrecorded: for each domain with devices that are on this host, and of which virtpass has no record:
            its UUID and the addresses of these.
        misplaced: for each domain with a device that is not where it was: its name, and what is wrong.
        host_checks: what `virtpass host status` has compared; empty when nothing was applied.
        host_problem: why that could not be read; empty when it could.
        bound_early: the devices that virtpass has bound at boot.
        accepts_unsafe: whether host preparation lets VFIO accept interrupts that are not remapped.
        applied: the kernel arguments that virtpass has added.
        is_unfinished: whether a change of the host was cut off.
    """

    is_root: bool = False
    user: str = ""
    groups: tuple[str, ...] = ()
    libvirt_version: str = ""
    libvirt_problem: str = ""
    libvirt_remedy: str = ""
    libvirt_refuses: bool = False
    libvirt_is_of_session: bool = False
    daemon: str = ""
    daemon_process: int | None = None
    daemon_looked: float | None = None
    hook_written: float | None = None
    daemon_label: str = ""
    hook_label: str = ""
    running: tuple[str, ...] | None = None
    domains: tuple[tuple[str, ...], ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    ours: tuple[str, ...] = ()
    handing_over: tuple[str, ...] = ()
    unrecorded: tuple[tuple[str, ...], ...] = ()
    misplaced: tuple[tuple[str, str], ...] = ()
    host_checks: tuple[HostCheck, ...] = ()
    host_problem: str = ""
    bound_early: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()
    accepts_unsafe: bool = False
    is_unfinished: bool = False

    @property
    def assigned(self) -> frozenset[str]:
        """The devices that domains have."""
        return frozenset(address for _, *devices in self.domains for address in devices)

    @property
    def in_use(self) -> frozenset[str]:
        """The devices of domains that run."""
        running = self.running or ()
        return frozenset(address for uuid, *devices in self.domains if uuid in running for address in devices)

    @property
    def misses_hook(self) -> bool:
        """Whether the hook is newer than the daemon's last look for hooks, as far as that is known."""
        if self.daemon_looked is None or self.hook_written is None:
            return False
        # systemd tells whole seconds.
        return self.daemon_looked < int(self.hook_written)

    def given_with(self, address: str) -> frozenset[str]:
        """Return the devices that go to the same domain as one does, itself included."""
        return frozenset(one for _, *devices in self.domains if address in devices for one in devices)

    def lacking(self, address: str) -> tuple[str, ...]:
        """Return the UUIDs of the domains that have a device, and for which the desktop may not be ended."""
        return tuple(uuid for uuid in self.having(address) if uuid not in self.handing_over)

    def having(self, address: str) -> tuple[str, ...]:
        """Return the UUIDs of the domains that have a device."""
        return tuple(uuid for uuid, *devices in self.domains if address in devices)

    def word(self, *uuids: str) -> str:
        """Return the name of the first of some domains as a word for a shell; DOMAIN where none is known."""
        name = dict(self.names).get(next(iter(uuids), ""))
        return "DOMAIN" if name is None else shlex.quote(name)

    def to_hand_over(self, address: str) -> str:
        """Return the command that lets the desktop go for a device's domain; empty where that is so already.

        Only a domain that virtpass looks after has a policy; `virtpass setup` makes it one.
        """
        lacking = self.lacking(address)
        if self.having(address) and not lacking:
            return ""
        if lacking and lacking[0] in self.ours:
            return f"virtpass domain policy {self.word(*lacking)} display=hand-over"
        return f"sudo virtpass setup {address} {self.word(*lacking)} --policy display=hand-over"


@dataclass(frozen=True)
class Scene:
    """A host at one moment; what several checks need is read once.

    Attributes:
        host: its files.
        outside: what is in no file.
    """

    host: Host
    outside: Outside

    @cached_property
    def facts(self) -> HostFacts:
        """Distribution, firmware, kernels."""
        return read_facts(self.host)

    @cached_property
    def iommu(self) -> Iommu:
        """The IOMMU."""
        return read_iommu(self.facts)

    @cached_property
    def inventory(self) -> Inventory:
        """The PCI devices."""
        return read_inventory(self.host)

    @cached_property
    def hook(self) -> HookStatus:
        """The hook."""
        return hook_status(self.host)

    @cached_property
    def cards(self) -> tuple[Device, ...]:
        """The graphics cards, without virtual functions."""
        return tuple(
            one for one in self.inventory.devices.values() if one.is_display and not one.physical_function
        )
