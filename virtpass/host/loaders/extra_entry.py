"""The boot entries that virtpass adds where entries are files: the fallback, and that of a trial."""

from collections.abc import Sequence
from dataclasses import dataclass

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootRequest, Role
from virtpass.host.edits import Edit
from virtpass.host.loaders import bls
from virtpass.host.loaders.bls import BlsEntry

SAFE_TITLE = "Without passthrough: "
TRIAL_TITLE = "Trial of passthrough: "
# What an entry has for itself alone: its place in the menu, and names by which tools know it.
_OWN_KEYS = ("id", "sort-key")


@dataclass(frozen=True, slots=True)
class ExtraEntry:
    """An entry that is added to the menu.

    Attributes:
        edit: its file.
        title: what the menu shows.
    """

    edit: Edit
    title: str


def extra_entry(
    request: BootRequest, normal: Sequence[BlsEntry], others: Sequence[BlsEntry], original: Sequence[str]
) -> ExtraEntry:
    """Return the entry that a request wants beside the normal ones.

    Args:
        request: what the boot menu shall become: the entry is that of its trial, or else the fallback.
        normal: the entries that start this host's Linux; the newest is repeated.
        others: the entries that the new one comes after: not ours, but all that are the default at times.
        original: the kernel arguments without ours.

    Raises:
        RefusedError: it cannot be made so that it never becomes the default.
    """
    model = bls.newest(normal) or normal[0]
    if request.is_trial:
        word, head, added = "virtpass.trial", TRIAL_TITLE, (*request.arguments, TRIAL)
        reason = "adds the entry of the trial"
    else:
        word, head, added = "virtpass", SAFE_TITLE, (OFF,)
        reason = "keeps a way back on the boot menu"
    name = bls.sibling_name(model, word, others)
    # The title of a foreign entry is for people; whatever is not text in it need not survive.
    title = head + model.title.encode("utf-8", "replace").decode()
    values = {
        "title": title,
        # systemd-boot sorts by it, the newest first.
        "version": f"0-{word}",
        "options": " ".join((*original, *tokens.missing(added, tuple(original)))),
        **dict.fromkeys(_OWN_KEYS),
    }
    directory = model.path.rpartition("/")[0]
    return ExtraEntry(Edit(f"{directory}/{name}{bls.SUFFIX}", bls.with_values(model, values), reason), title)


def without_ours(options: Sequence[str], request: BootRequest) -> tuple[str, ...]:
    """Return the kernel arguments of an entry without what virtpass has added to it, and what it will add."""
    return tokens.without(tuple(options), tuple(dict.fromkeys((*request.present, *request.arguments))))


def role(entry: BlsEntry, options: Sequence[str]) -> Role:
    """Tell what an entry is for.

    Args:
        entry: the entry.
        options: its kernel arguments, variables replaced.
    """
    if not tokens.missing((OFF,), tuple(options)):
        return Role.FALLBACK
    if not tokens.missing((TRIAL,), tuple(options)):
        return Role.TRIAL
    # Fedora's rescue kernel is a copy under a name of its own.
    is_rescue = "-rescue" in entry.name or "-rescue" in entry.value("linux")
    return Role.RECOVERY if is_rescue or "single" in options else Role.NORMAL
