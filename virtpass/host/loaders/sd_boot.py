"""systemd-boot itself: where its entries lie, entries of our own among them, and one boot of one of them.

Shared by the modules for the tools that write these entries. The order of the menu, and with it the
default, follows the boot loader specification (UAPI.1): entries with a sort-key come before those
without, by that key, then by version, newest first; those without go by the names of their files,
greatest first. Our own have no sort-key.
"""

from collections.abc import Callable
from dataclasses import replace

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootEntry, BootPlan, BootRequest, Note, Role, Severity
from virtpass.host.facts import HostFacts, efi_text
from virtpass.host.loaders.bls import SUFFIX, BlsEntry, is_of_root, list_entries, newest, version_key
from virtpass.host.loaders.extra_entry import extra_entry
from virtpass.system.errors import FailedError, RefusedError
from virtpass.transaction.plan import Command

LOADER = "systemd-boot"
# Where distributions mount the EFI system partition or its extension, in the order of kernel-install.
PARTITIONS = ("/efi", "/boot", "/boot/efi")
_SAVED = "@saved"
_DEADLINE = 60.0

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
        if entry.is_linux and is_of_root(entry.options, facts.root_words)
    ]


def role(entry: BlsEntry, judge: Judge) -> Role:
    """Tell what an entry is for: ours have a mark, `judge` knows the others."""
    if any(tokens.same(token, OFF) for token in entry.options):
        return Role.FALLBACK
    if any(tokens.same(token, TRIAL) for token in entry.options):
        return Role.TRIAL
    return judge(entry)


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
        BootEntry(entry.title, entry.identifier, entry.path, entry.options, role(entry, judge))
        for entry in linux_entries(facts, directory)
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
    if not request.is_trial and not request.with_fallback:
        return BootPlan()
    model = newest(normal) or normal[0]
    try:
        extra = extra_entry(request, normal, (), without_ours(model.options, request))
        name = _own_name(facts, directory, request, normal)
    except RefusedError as error:
        if request.is_trial:
            raise RefusedError("no-trial", error.what, error.remedy) from error
        return BootPlan(notes=(Note("no-fallback", error.what, Severity.WARNING),))
    edit = replace(extra.edit, path=f"{directory}/{name}{SUFFIX}")
    if request.is_trial:
        return BootPlan((edit,), tried=extra.title)
    return BootPlan((edit,), fallback=extra.title)


def without_ours(found: tuple[str, ...], request: BootRequest) -> tuple[str, ...]:
    """Return kernel arguments as they are without virtpass.

    What is asked for and there already is ours from an earlier time: nobody asks for what the user has.
    """
    ours = (*request.present, *tokens.missing(request.arguments, request.present))
    return tokens.without(found, ours)


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
    ours = (Role.FALLBACK, Role.TRIAL)
    for other in list_entries(facts.host, directory):
        is_ours = role(other, lambda _: Role.OTHER) in ours
        if not is_ours and not version_key(name) < version_key(other.name.lower()):
            raise RefusedError(
                "entry-order", f"an entry of ours would come before {other.path} and could become the default"
            )
    return name


def refuse_unforgetting(facts: HostFacts) -> None:
    """Refuse a trial where systemd-boot would not be asked, or would remember what it booted.

    Raises:
        RefusedError: a trial would not be one boot.
    """
    if not facts.loader.lower().startswith(LOADER):
        raise RefusedError(
            "no-trial",
            "systemd-boot did not boot this system, so it cannot be told to boot a trial once",
            "apply without --trial; the fallback entry is the way back",
        )
    configured = _configured_default(facts)
    if _SAVED in (configured, efi_text(facts.host, "LoaderEntryDefault")):
        raise RefusedError(
            "no-trial",
            "systemd-boot is set to boot again what it booted last (default @saved), so a trial would stay",
            "choose a default with bootctl set-default, or apply without --trial",
        )


def _configured_default(facts: HostFacts) -> str:
    """Return the ``default`` of loader.conf; empty when there is none."""
    found = ""
    for partition in PARTITIONS:
        for line in facts.text(f"{partition}/loader/loader.conf").splitlines():
            words = line.split(maxsplit=1)
            if len(words) == 2 and words[0] == "default":
                found = words[1].strip()
    return found


def one_shot(facts: HostFacts, entry: BootEntry) -> Command:
    """Return what makes the next boot take an entry, through an EFI variable that systemd-boot removes."""
    choose = ("bootctl", "set-oneshot")
    before = efi_text(facts.host, "LoaderEntryOneShot")
    return Command(
        (*choose, entry.identifier), "boots the trial once", deadline=_DEADLINE, revert=(*choose, before)
    )
