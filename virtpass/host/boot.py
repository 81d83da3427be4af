"""What every module for a bootloader speaks in: requests, plans, entries, evidence. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

from virtpass.host.edits import Edit, Written
from virtpass.host.facts import HostFacts
from virtpass.transaction.plan import Command

# Does nothing by itself. Where nothing else is added to the kernel command line, it makes the difference
# between the normal boot entries and those to go back to, or to try.
ON = "virtpass=on"
# On the kernel command line: early binding and the hook keep their hands off.
OFF = "virtpass=off"
# On the command line of the one boot that tries new arguments: early binding acts.
TRIAL = "virtpass=trial"


class Severity(Enum):
    """How much a note wants to be read."""

    NOTE = "note"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a user should know of a plan.

    Attributes:
        reference: stable kebab-case name.
        text: one sentence without a full stop.
        severity: how much it wants to be read.
    """

    reference: str
    text: str
    severity: Severity = Severity.NOTE


@dataclass(frozen=True, slots=True)
class BootRequest:
    """What the boot menu shall become.

    Attributes:
        arguments: tokens that the normal entries shall have; none means none of ours.
        with_fallback: whether there shall be an entry without them.
        is_trial: whether they shall be tried in exactly one boot first: normal entries stay without them.
        present: tokens that virtpass has put into the normal entries before: they are not the user's own.
        rebuilds_initramfs: whether every initramfs is built anew before the commands of the bootloader run;
            a loader that boots copies has to take the new ones, also where there are no arguments.
    """

    arguments: tuple[str, ...]
    with_fallback: bool = True
    is_trial: bool = False
    present: tuple[str, ...] = ()
    rebuilds_initramfs: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """How the next boot, and only that, comes to take an entry.

    Attributes:
        identifier: what the loader's own tools call the entry.
        command: makes the choice; what its ``revert`` names takes it back.
    """

    identifier: str
    command: Command


@dataclass(frozen=True, slots=True)
class BootPlan:
    """How a bootloader gets there.

    Attributes:
        edits: what is wanted in files.
        commands: what is run then, in this order.
        notes: what the user should know.
        fallback: the title of the entry without our arguments; empty when this loader has none.
        tried: the title of the entry of the trial; empty without one.
        builds_initramfs: whether the commands build every initramfs too, so that nothing else needs to.
        choice: what makes the next boot the trial; None without a trial, or where the loader cannot.
        keeps_initramfs: whether the fallback entry starts with an initramfs as it was before.
    """

    edits: tuple[Edit, ...] = ()
    commands: tuple[Command, ...] = ()
    notes: tuple[Note, ...] = ()
    fallback: str = ""
    tried: str = ""
    builds_initramfs: bool = False
    choice: Choice | None = None
    keeps_initramfs: bool = False


class Role(Enum):
    """What a boot entry is for."""

    NORMAL = "normal"
    RECOVERY = "recovery"
    FALLBACK = "fallback"
    TRIAL = "trial"
    # Made by hand beside those that the distribution's tools write: left as it is.
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class BootEntry:
    """One entry of the boot menu as the loader will really boot it.

    Attributes:
        title: what the menu shows.
        identifier: what the loader's own tools call it; empty when they do not.
        path: the file in which it stands.
        tokens: the kernel arguments.
        role: what it is for. Entries that do not start a Linux of this root are not entries here.
        initrds: what the kernel gets as its initramfs, as the menu names it; None where that is not known.
    """

    title: str
    identifier: str
    path: str
    tokens: tuple[str, ...]
    role: Role = Role.NORMAL
    initrds: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a host seems to be booted by a loader.

    Attributes:
        text: what was seen, such as "/etc/kernel/proxmox-boot-uuids exists".
        booted_by: how ``LoaderInfo`` begins when this loader booted, in lower case; empty when it has none.
        replaces: names of loaders for which the same files would be evidence, but which this one manages.
    """

    text: str
    booted_by: str = ""
    replaces: tuple[str, ...] = ()


class Loader(Protocol):
    """One way in which distributions keep kernel arguments. Implementations have no state."""

    name: str
    title: str

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """Return why this loader seems to be the host's, None when nothing speaks for it."""

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Plan how the boot menu becomes what is asked for.

        Raises:
            RefusedError: it cannot be done safely; nothing has changed.
        """

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Return the entries of this host's Linux as they will be booted, from what the loader itself reads.

        Raises:
            VirtpassError: the loader's configuration is not understood.
        """

    def chosen(self, facts: HostFacts) -> str | None:
        """Return the identifier of the entry that the next boot alone takes.

        Empty when nothing was chosen, also for a loader that knows no such choice; None when nobody can tell.
        """


@runtime_checkable
class Inheriting(Protocol):
    """A loader whose tools give our arguments to the entries of later kernels."""

    def inherited(self, facts: HostFacts, recorded: Mapping[str, Written]) -> dict[str, Written]:
        """Return what of ours is in files that are not on record, as if virtpass had written it, by path."""
