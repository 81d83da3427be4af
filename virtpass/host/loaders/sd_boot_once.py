"""One boot of one entry of systemd-boot, which an EFI variable names that is removed when it is read."""

from virtpass.host.boot import Choice
from virtpass.host.efi import loader_text
from virtpass.host.facts import HostFacts
from virtpass.host.loaders.loader_conf import setting
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

LOADER = "systemd-boot"
_VARIABLE = "LoaderEntryOneShot"
_SAVED = "@saved"
_DEADLINE = 60.0


def refuse_unforgetting(facts: HostFacts) -> None:
    """Refuse a trial where systemd-boot would not be asked, or would remember what it booted.

    Raises:
        RefusedError: a trial would not be one boot.
    """
    if facts.host.root and not facts.loader:
        raise RefusedError(
            "no-trial",
            f"EFI variables are those of this machine, so the system at {facts.host.root} cannot be told to "
            "boot a trial once",
            "apply without --trial; the fallback entry is the way back",
        )
    if not _has_booted(facts):
        raise RefusedError(
            "no-trial",
            "systemd-boot did not boot this system, so it cannot be told to boot a trial once",
            "apply without --trial; the fallback entry is the way back",
        )
    if _SAVED in (setting(facts, "default"), loader_text(facts.host, "LoaderEntryDefault")):
        raise RefusedError(
            "no-trial",
            "systemd-boot is set to boot again what it booted last (default @saved), so a trial would stay",
            "choose a default with bootctl set-default, or apply without --trial",
        )


def choice(facts: HostFacts, identifier: str) -> Choice:
    """Return what makes the next boot take an entry, and gives it back to what was chosen before.

    Args:
        facts: the host.
        identifier: the name of the entry's file.
    """
    choose = ("bootctl", "set-oneshot")
    before = chosen(facts) or ""
    command = Command(
        (*choose, identifier),
        "boots the trial once",
        deadline=_DEADLINE,
        revert=(*choose, "" if before == identifier else before),
    )
    return Choice(identifier, command)


def chosen(facts: HostFacts) -> str | None:
    """Return the name of the entry that the next boot alone takes; see `virtpass.host.boot.Loader.chosen`."""
    # Another loader would not ask.
    return loader_text(facts.host, _VARIABLE) if _has_booted(facts) else ""


def _has_booted(facts: HostFacts) -> bool:
    return facts.loader.lower().startswith(LOADER)
