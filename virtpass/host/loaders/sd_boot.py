"""systemd-boot itself: where its entries lie, and entries of our own among them.

Shared by the modules for the tools that write these entries. The order of the menu, and with it the
default, follows the boot loader specification (UAPI.1): entries with a sort-key come before those
without, by that key, then by version, newest first; those without go by the names of their files,
greatest first. Our own have no sort-key.
"""

from collections.abc import Callable
from dataclasses import replace

from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Role
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.loaders import extra_entry, hidden_menu, sd_boot_once
from virtpass.host.loaders.bls import SUFFIX, BlsEntry, list_entries, newest
from virtpass.host.loaders.marks import own_role, without_ours
from virtpass.host.loaders.roots import starts_this_root
from virtpass.host.loaders.sd_boot_once import LOADER
from virtpass.host.versions import version_key
from virtpass.system.errors import FailedError, RefusedError

Judge = Callable[[BlsEntry], Role]


def program(facts: HostFacts) -> str:
    """Return where systemd-boot lies on the EFI system partition; empty when it is not there."""
    for partition in PARTITIONS:
        folder = f"{partition}/EFI/systemd"
        for name in facts.host.names(folder):
            if name.startswith(LOADER) and name.endswith(".efi"):
                return f"{folder}/{name}"
    return ""


def entries_directory(facts: HostFacts) -> str:
    """Return the directory of the entries that systemd-boot reads; empty when there is none with entries."""
    # Beside the loader itself first: elsewhere entries may be left that another loader has read.
    own = program(facts).partition("/EFI/")[0]
    for partition in (*((own,) if own else ()), *PARTITIONS):
        directory = f"{partition}/loader/entries"
        if any(name.endswith(".conf") for name in facts.host.names(directory)):
            return directory
    return ""


def evidence(facts: HostFacts) -> str:
    """Return why systemd-boot seems to boot entries of this host; empty when nothing speaks for it."""
    directory = entries_directory(facts)
    if directory and (path := program(facts)):
        return f"{path} and {directory} exist"
    if directory and facts.loader.lower().startswith(LOADER):
        return f"{facts.loader} booted, and {directory} exists"
    return ""


def linux_entries(facts: HostFacts, directory: str) -> list[BlsEntry]:
    """Return the entries that start a Linux with this host's root file system."""
    return [
        entry
        for entry in list_entries(facts.host, directory)
        if entry.is_linux and starts_this_root(entry.options, facts)
    ]


def role(entry: BlsEntry, judge: Judge) -> Role:
    """Tell what an entry is for: ours have a mark, `judge` knows the others."""
    return own_role(entry.options) or judge(entry)


def normal_entries(facts: HostFacts, directory: str, judge: Judge) -> list[BlsEntry]:
    """Return the entries that shall have our arguments.

    Raises:
        RefusedError: there is none.
    """
    found = [entry for entry in linux_entries(facts, directory) if role(entry, judge) is Role.NORMAL]
    if not found:
        raise RefusedError(
            "no-entries",
            f"{directory or 'loader/entries'} has no entry that starts this host's root file system",
            "see whether the EFI system partition is mounted, and what bootctl list says",
        )
    return found


def menu(facts: HostFacts, directory: str, judge: Judge) -> list[BootEntry]:
    """Return the entries of this host as systemd-boot will boot them.

    Raises:
        FailedError: they cannot be read.
    """
    if not directory:
        raise FailedError(
            "boot-entries",
            "the entries of systemd-boot cannot be read",
            "run it as root, with the EFI system partition mounted",
        )
    return [
        BootEntry(entry.title, entry.identifier, entry.path, entry.options, role(entry, judge), entry.initrds)
        for entry in linux_entries(facts, directory)
        if not extra_entry.is_dead(facts, entry, directory.removesuffix("/loader/entries"))
    ]


def own_entry(facts: HostFacts, directory: str, request: BootRequest, normal: list[BlsEntry]) -> BootPlan:
    """Return the entry of the trial, or else the one without our arguments; it is never the default.

    Args:
        facts: the host.
        directory: where entries lie.
        request: what is asked for.
        normal: the normal entries; the newest is repeated.

    Raises:
        RefusedError: a trial cannot have an entry. Where it is the fallback, a warning says so instead.
    """
    original = without_ours((newest(normal) or normal[0]).options, request)
    plan = extra_entry.own_entry(
        request,
        normal,
        (),
        original,
        finished=lambda edit: replace(
            edit, path=f"{directory}/{_own_name(facts, directory, request, normal)}{SUFFIX}"
        ),
    )
    if request.is_trial:
        return replace(plan, choice=sd_boot_once.choice(facts, plan.edits[0].path.rpartition("/")[2]))
    return replace(plan, notes=(*plan.notes, *hidden_menu.of_systemd_boot(facts))) if plan.fallback else plan


def _own_name(facts: HostFacts, directory: str, request: BootRequest, normal: list[BlsEntry]) -> str:
    """Return a name with which our entry, which has no sort-key, is not the first of the menu.

    Raises:
        RefusedError: another entry has a name that leaves none.
    """
    word = "virtpass-trial" if request.is_trial else "virtpass-fallback"
    if any(entry.value("sort-key") for entry in normal):
        return word
    # Then names alone count, and nearly all are greater than this one.
    name = f"a-{word}"
    for other in list_entries(facts.host, directory):
        is_ours = own_role(other.options) is not None
        if not is_ours and not version_key(name) < version_key(other.name.lower()):
            raise RefusedError(
                "entry-order", f"an entry of ours would come before {other.path} and could become the default"
            )
    return name
