"""The boot entries that virtpass adds where entries are files: the fallback, and that of a trial."""

from collections.abc import Callable, Sequence

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootPlan, BootRequest, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.loaders import bls
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.marks import own_role
from virtpass.system.errors import RefusedError

SAFE_TITLE = "Without passthrough: "
TRIAL_TITLE = "Trial of passthrough: "
# What the names of their files have in them.
_FALLBACK, _TRIAL = "virtpass", "virtpass.trial"
# What an entry has for itself alone: its place in the menu, and names by which tools know it.
_OWN_KEYS = ("id", "sort-key")


def own_entry(
    request: BootRequest,
    normal: Sequence[BlsEntry],
    others: Sequence[BlsEntry],
    original: Sequence[str],
    *,
    machine: str = "",
    finished: Callable[[Edit], Edit] = lambda edit: edit,
) -> BootPlan:
    """Return the entry that a request wants beside the normal ones: that of its trial, or else the fallback.

    Args:
        request: what the boot menu shall become.
        normal: the entries that start this host's Linux; the newest is repeated.
        others: the entries that the new one comes after: not ours, but all that are the default at times.
        original: the kernel arguments without ours.
        machine: the id with which the name of its file must not begin; empty for none.
        finished: makes of the entry's file what the tools of the host leave alone; may refuse.

    Raises:
        RefusedError: a trial cannot have an entry that never becomes the default. Where it is the fallback, a
            warning says so instead.
    """
    if not request.is_trial and not request.with_fallback:
        return BootPlan()
    try:
        edit, title = _entry(request, normal, others, original, machine)
        edit = finished(edit)
    except RefusedError as error:
        if request.is_trial:
            raise RefusedError("no-trial", error.what, error.remedy) from error
        return BootPlan(notes=(Note("no-fallback", error.what, Severity.WARNING),))
    return BootPlan((edit,), tried=title) if request.is_trial else BootPlan((edit,), fallback=title)


def _entry(
    request: BootRequest,
    normal: Sequence[BlsEntry],
    others: Sequence[BlsEntry],
    original: Sequence[str],
    machine: str,
) -> tuple[Edit, str]:
    """Return the file of the entry, and what the menu shows."""
    model = bls.newest(normal) or normal[0]
    if request.is_trial:
        word, head, added = _TRIAL, TRIAL_TITLE, (*request.arguments, TRIAL)
        reason = "adds the entry of the trial"
    else:
        word, head, added = _FALLBACK, SAFE_TITLE, (OFF,)
        reason = "keeps a way back on the boot menu"
    name = bls.sibling_name(model, word, others, machine)
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
    return Edit(f"{directory}/{name}{bls.SUFFIX}", bls.with_values(model, values), reason), title


def made(edit: Edit) -> BlsEntry:
    """Return the entry that an edit of ours makes."""
    return bls.parse_entry(edit.form.add(None), edit.path)


def of_one_kernel(entry: BlsEntry) -> Note:
    """Say that an entry of ours starts one kernel, whatever comes later."""
    directory, _, name = entry.value("linux").rpartition("/")
    # /vmlinuz-VERSION, /TOKEN/VERSION/linux, or the latter with a checksum at its end.
    _, is_versioned, version = name.partition("vmlinuz-")
    version = version if is_versioned else directory.rpartition("/")[2]
    text = (
        f"the fallback entry starts kernel {version}, also when later ones come; when that is removed, "
        "virtpass host apply writes the entry anew"
    )
    return Note("fallback-kernel", text)


def is_apart(entry: BlsEntry, machine: str) -> bool:
    """Tell whether an entry is one of ours that was made for a machine, without its id before the name."""
    return entry.name in (bls.apart(_FALLBACK, machine), bls.apart(_TRIAL, machine))


def is_dead(facts: HostFacts, entry: BlsEntry, *roots: str) -> bool:
    """Tell whether an entry of ours starts a kernel that was removed: then it is no way back any more.

    Args:
        facts: the host.
        entry: any entry.
        roots: where the path of its kernel may begin, such as the partition of the entry.
    """
    kernel = entry.value("linux")
    return own_role(entry.options) is not None and not any(facts.has(f"{root}{kernel}") for root in roots)


def role(entry: BlsEntry, options: Sequence[str]) -> Role:
    """Tell what an entry is for.

    Args:
        entry: the entry.
        options: its kernel arguments, variables replaced.
    """
    if (ours := own_role(options)) is not None:
        return ours
    # Fedora's rescue kernel is a copy under a name of its own.
    is_rescue = "-rescue" in entry.name or "-rescue" in entry.value("linux")
    return Role.RECOVERY if is_rescue or "single" in options else Role.NORMAL
