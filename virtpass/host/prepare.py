"""The plan of host preparation: what was decided, as bootloader and initramfs of this host want it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from virtpass.host import early, tokens
from virtpass.host.boot import (
    ON,
    BootEntry,
    BootPlan,
    BootRequest,
    Choice,
    Inheriting,
    Loader,
    Note,
    Role,
    Severity,
)
from virtpass.host.decide import Decision, decide
from virtpass.host.detect import choose, named
from virtpass.host.early import EarlyDevice, EarlyPlan
from virtpass.host.edits import Edit, Written, compose
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs import generator
from virtpass.host.initramfs.base import UNSIGNED, ByName, Generator, Image, InitramfsPlan
from virtpass.host.interrupts import switch
from virtpass.host.iommu import Iommu, read_iommu
from virtpass.host.loaders import LOADERS
from virtpass.host.record import NOTHING, Attribute, HostRecord, Part
from virtpass.host.special import refuse_special
from virtpass.host.wishes import Wishes
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.pci.inventory import read_inventory
from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.transaction.engine import Kept
from virtpass.transaction.plan import Command, Plan

# The commands of a generator do not depend on what is put into the images.
_ANYTHING = EarlyPlan(
    softdeps=("vfio",),
    by_id=(EarlyDevice(PciAddress(0, 0, 0, 0), Identity(0, 0, 0, 0), ()),),
)


@dataclass(frozen=True, slots=True)
class HostPlan:
    """What would be done to a host, and what it would come to.

    Attributes:
        present: what was on record when the plan was made.
        iommu: the host's IOMMU as it is.
        loader: the bootloader; None when nothing of it changes and none was recognised.
        generator: the generator of the initramfs; None when it is not needed.
        decision: what is written, before it is known how.
        request: what the boot menu shall become.
        plan: the files and commands.
        record: what will be on record; what the commands wrote is added when they have run. None when nothing
            of virtpass is left.
        restore: files that commands of the present state wrote, to be put back if nobody touched them.
        notes: what the user should know.
        before: the boot entries as they are.
        gone: arguments of ours that are not wanted any more.
        gone_files: the same of files in every initramfs.
        images: the images of the installed kernels as they are.
        switches: attributes of the running kernel, with what they are to say at once.
    """

    present: HostRecord | None
    iommu: Iommu
    loader: Loader | None
    generator: Generator | None
    decision: Decision
    request: BootRequest
    plan: Plan
    record: HostRecord | None
    restore: tuple[Kept, ...]
    notes: tuple[Note, ...]
    before: tuple[BootEntry, ...]
    gone: tuple[str, ...]
    gone_files: tuple[str, ...]
    images: tuple[Image, ...]
    switches: tuple[Attribute, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.plan.is_empty and not self.switches and (self.present is None) == (self.record is None)

    @property
    def needs_reboot(self) -> bool:
        """Whether it takes effect at the next boot only."""
        return bool(self.plan.commands) or self.request.arguments != (self.present or NOTHING).arguments


def plan_host(facts: HostFacts, wishes: Wishes, present: HostRecord | None) -> HostPlan:
    """Plan how a host gets what is wished.

    Args:
        facts: the host.
        wishes: what the user wants; all that virtpass wrote before and that is not wished any more is undone.
        present: what is on record.

    Raises:
        NotFoundError, RefusedError, UsageError: it cannot be done safely; the message says why.
    """
    if wishes.bootloader:
        # Also where nothing needs one: a name that is misspelt does not go unnoticed.
        named(wishes.bootloader, LOADERS)
    iommu = read_iommu(facts)
    # Without a generator devices can still be bound by id, from the kernel command line.
    made, _ = _generator(facts)
    decision = decide(
        facts,
        iommu,
        read_inventory(facts.host),
        wishes,
        runs_scripts=made is None or made.runs_scripts,
        loads_first=made is not None and made.loads_first,
    )
    refuse_special(facts, decision.arguments)
    return _assemble(facts, iommu, wishes, decision, present)


def plan_revert(facts: HostFacts, present: HostRecord, *, without_bootloader: bool = False) -> HostPlan:
    """Plan how everything that is on record goes again.

    Args:
        facts: the host.
        present: what is on record.
        without_bootloader: the user says that the bootloader was replaced for good; then none of its programs
            is run, and nothing is proven of its menu.

    Raises:
        RefusedError: it cannot be done safely; the message says why.
    """
    nothing = Decision((), EarlyPlan(), {}, ())
    if not without_bootloader:
        return _assemble(facts, read_iommu(facts), Wishes(bootloader=present.loader), nothing, present)
    if present.loader and not _is_missing(facts, present):
        raise RefusedError(
            "bootloader-there", f"the bootloader {present.loader} is there", "run virtpass host revert alone"
        )
    without = replace(present, loader="", boot=replace(present.boot, commands=()), choice=None)
    text = f"{present.loader} is gone: what was written for it goes, and none of its programs is run"
    return _assemble(
        facts,
        read_iommu(facts),
        Wishes(),
        nothing,
        present,
        earlier=without,
        notes=(Note("bootloader-gone", text, Severity.WARNING),),
    )


def _assemble(
    facts: HostFacts,
    iommu: Iommu,
    wishes: Wishes,
    decision: Decision,
    present: HostRecord | None,
    *,
    earlier: HostRecord | None = None,
    notes: Sequence[Note] = (),
) -> HostPlan:
    """Put a plan together; ``earlier`` is what there is to take back, if that is not all on record."""
    notes = list(notes)
    without_loader = earlier is not None
    earlier = earlier or present or NOTHING
    if not without_loader and _is_missing(facts, earlier):
        raise RefusedError(
            "bootloader-missing",
            f"nothing of the bootloader {earlier.loader} is found, for which the boot menu was changed",
            "mount the partition on which it lies; if it was replaced for good: "
            "virtpass host revert --without-bootloader",
        )
    made, reason = _generator(facts)
    if wishes.trial and present is not None and not present.tried:
        raise RefusedError(
            "applied",
            "a trial would take what is applied now out of the normal boot entries",
            "run virtpass host revert first, or apply without --trial",
        )
    files = made.files(decision.early) if made is not None else decision.early.files
    rebuilds = bool(files or earlier.image_files)
    loader, before = (
        (None, ())
        if without_loader
        else _loader(facts, wishes, decision, earlier, rebuilds_initramfs=rebuilds)
    )
    arguments = _not_there(decision.arguments, before, earlier, notes)
    if loader is None and arguments and not without_loader:
        text = f"{' '.join(arguments)} comes from a bootloader that virtpass does not know: see that it stays"
        notes.append(Note("unknown-bootloader", text))
        arguments = ()
    if loader is not None and not arguments and _needs_entries(decision, wishes):
        arguments = (ON,)
        notes.append(Note("marker", f"{ON} does nothing by itself: entries without it are the way back"))
    is_trial = wishes.trial and bool(arguments)
    # What is on record of one bootloader says nothing of the entries of another.
    added = earlier.arguments if loader is not None and loader.name == earlier.loader else ()
    request = BootRequest(arguments, wishes.fallback_entry, is_trial, added, bool(files))
    images = InitramfsPlan()
    if decision.early.needs_initramfs:
        if made is None:
            raise reason
        images = made.plan(facts, decision.early)
        if images.commands:
            _refuse_strangers(facts, made, before)
    boot = loader.plan(facts, request) if loader is not None else BootPlan()
    image_commands = () if boot.builds_initramfs else images.commands
    builds_itself = bool(earlier.images.commands)
    image_edits = [*early.edits(decision.early), *images.edits]
    earlier = _brought_up_to_date(facts, earlier, loader, made, notes)
    for_images = _compose(facts, image_edits, image_commands, earlier.images)
    images_change = bool(for_images.plan.changes) and rebuilds
    rebuilding = Plan()
    if without_loader and images_change and made is not None and not builds_itself:
        # What built them before is gone with the bootloader.
        rebuilding = Plan(commands=made.plan(facts, _ANYTHING).commands)
    heir: object = loader
    inherited = heir.inherited if isinstance(heir, Inheriting) else None
    for_boot = _compose(
        facts, boot.edits, boot.commands, earlier.boot, has_changes=images_change, inherited=inherited
    )
    for path in (*for_images.drifted, *for_boot.drifted):
        text = f"{path} was edited since virtpass wrote it: only what virtpass put there is changed"
        notes.append(Note("drift", text, Severity.WARNING))
    if boot.tried and boot.choice is None:
        text = f"the next boot cannot be chosen from here: choose '{boot.tried}' at the boot menu"
        notes.append(Note("no-one-shot", text, Severity.WARNING))
    if files and (boot.tried or boot.fallback) and not boot.keeps_initramfs:
        start = "the other entries start" if boot.tried else "the fallback entry starts"
        text = (
            f"{start} with the initramfs that is built anew too: nothing of virtpass acts there, "
            "but one that is broken is broken there as well"
        )
        notes.append(Note("shared-initramfs", text))
    choice = _inheriting(facts, loader, earlier, boot.choice)
    taken_back, chosen = _choices(facts, loader, earlier, choice)
    switches, switched = switch(facts, decision.early.unsafe_interrupts, earlier)
    record = HostRecord(
        wishes=wishes,
        loader=loader.name if loader is not None and not for_boot.part.is_empty else "",
        generator=made.name if made is not None and files else "",
        arguments=arguments,
        devices=tuple(decision.devices),
        image_files=files,
        images=for_images.part,
        boot=for_boot.part,
        kept=(),
        unsafe_interrupts=decision.early.unsafe_interrupts,
        fallback=boot.fallback,
        tried=boot.tried,
        boot_id=facts.boot_id,
        choice=choice,
        switched=switched,
    )
    is_nothing = record.images.is_empty and record.boot.is_empty
    return HostPlan(
        present=present,
        iommu=iommu,
        loader=loader,
        generator=made,
        decision=decision,
        request=request,
        plan=taken_back.then(for_images.plan).then(rebuilding).then(for_boot.plan).then(chosen),
        record=None if is_nothing else record,
        restore=earlier.kept if is_nothing else (),
        notes=(*decision.notes, *notes, *images.notes, *boot.notes),
        before=before,
        gone=tuple(token for token in earlier.arguments if token not in arguments),
        # A module may be in it for others, too.
        gone_files=tuple(one for one in earlier.image_files if one not in files and one in early.OWN_FILES),
        images=tuple(made.images(facts)) if made is not None else (),
        switches=switches,
    )


def _recorded(present: HostRecord) -> Loader | None:
    return next((loader for loader in LOADERS if loader.name == present.loader), None)


def _is_missing(facts: HostFacts, present: HostRecord) -> bool:
    """Tell whether nothing speaks for the bootloader on record: it is gone, or its partition not mounted."""
    recorded = _recorded(present)
    return recorded is not None and recorded.evidence(facts) is None


def _inheriting(
    facts: HostFacts, loader: Loader | None, present: HostRecord, wanted: Choice | None
) -> Choice | None:
    """Return a choice that goes back to what was chosen before virtpass came, not to our own earlier one."""
    ours = present.choice
    if loader is None or wanted is None or ours is None or loader.chosen(facts) != ours.identifier:
        return wanted
    return Choice(wanted.identifier, replace(wanted.command, revert=ours.command.revert))


def _choices(
    facts: HostFacts, loader: Loader | None, present: HostRecord, wanted: Choice | None
) -> tuple[Plan, Plan]:
    """Return what takes the choice of the next boot back, and what makes the one that is wanted."""
    ours, recorded = present.choice, _recorded(present)
    back: tuple[Command, ...] = ()
    made: tuple[Command, ...] = ()
    is_over = ours is not None and (wanted is None or recorded is not loader)
    if is_over and ours and recorded and recorded.chosen(facts) in (None, ours.identifier):
        back = (ours.command.undoing,)
    if wanted is not None and loader is not None and loader.chosen(facts) != wanted.identifier:
        made = (wanted.command,)
    return Plan(commands=back), Plan(commands=made)


def _needs_entries(decision: Decision, wishes: Wishes) -> bool:
    """Tell whether there has to be a boot entry without, or one to try, whatever the kernel arguments are."""
    return bool(decision.early.devices) and (wishes.fallback_entry or wishes.trial)


def _refuse_strangers(facts: HostFacts, made: Generator, entries: Sequence[BootEntry]) -> None:
    """Refuse a menu that starts something else than what is built.

    Raises:
        RefusedError: a normal entry does.
    """
    one: object = made
    if isinstance(one, ByName) and (found := one.strangers(facts, entries)):
        raise RefusedError(
            "other-initramfs",
            found[0],
            f"name an image of {made.title} there, or remove the entry, or let the hook take devices when a "
            "domain starts",
        )


def _brought_up_to_date(
    facts: HostFacts,
    record: HostRecord,
    loader: Loader | None,
    made: Generator | None,
    notes: list[Note],
) -> HostRecord:
    """Return a record whose commands suit the kernels and programs that are installed now."""
    images, boot = _rebuilding(facts, record, made, notes), record.boot.commands
    if loader is not None and loader.name == record.loader and boot:
        request = BootRequest(
            record.arguments,
            with_fallback=False,
            present=record.arguments,
            rebuilds_initramfs=bool(record.image_files),
        )
        try:
            boot = loader.plan(facts, request).commands
        except VirtpassError:
            # What is there now cannot be planned for any more; what was run then is the best that is known,
            # but for kernels that are gone.
            boot = tuple(one for one in boot if _can_run(facts, one))
    return replace(
        record,
        images=replace(record.images, commands=_renewed(record.images.commands, images)),
        boot=replace(record.boot, commands=_renewed(record.boot.commands, boot)),
    )


def _rebuilding(
    facts: HostFacts, record: HostRecord, made: Generator | None, notes: list[Note]
) -> tuple[Command, ...]:
    """Return what builds every initramfs anew, on a host that may have another generator by now."""
    recorded = record.images.commands
    gone = [one.argv[0] for one in recorded if not (one.revert or _has_program(facts, one.argv[0]))]
    left = tuple(one for one in recorded if one.argv[0] not in gone and _can_run(facts, one))
    if not recorded or made is None or not (gone or made.name == record.generator):
        fresh = left if gone else recorded
    else:
        try:
            fresh = made.plan(facts, _ANYTHING).commands
        except VirtpassError as error:
            fresh = left
            if error.reference == UNSIGNED:
                fresh = ()
                text = (
                    f"no initramfs is built anew: {error.what}; what virtpass added to it goes when the next "
                    "one is built"
                )
                notes.append(Note("not-rebuilt", text, Severity.WARNING))
    if gone:
        programs = ", ".join(dict.fromkeys(gone))
        if fresh and made is not None:
            text = f"{programs}, which built the initramfs, is gone: {made.title} builds it now"
            notes.append(Note("generator-gone", text))
        else:
            text = (
                f"{programs}, which built the initramfs, is gone: build it anew to have it without virtpass"
            )
            notes.append(Note("generator-gone", text, Severity.WARNING))
    return fresh


def _has_program(facts: HostFacts, name: str) -> bool:
    return facts.has(name) if name.startswith("/") else facts.has_program(name)


def _can_run(facts: HostFacts, command: Command) -> bool:
    """Tell whether the kernels that a command names are still there."""
    return all(facts.has(word) for word in command.argv[1:] if "vmlinuz" in word and word.startswith("/"))


def _renewed(recorded: tuple[Command, ...], fresh: tuple[Command, ...]) -> tuple[Command, ...]:
    """Replace what rebuilds from files; what has an inverse of its own is taken back as it was done."""
    return (*(one for one in recorded if one.revert), *(one for one in fresh if not one.revert))


class _Composed(NamedTuple):
    """One part of a plan: what is done, what is on record then, and what others have edited."""

    plan: Plan
    part: Part
    drifted: tuple[str, ...]


def _compose(
    facts: HostFacts,
    edits: Sequence[Edit],
    wanted: tuple[Command, ...],
    present: Part,
    *,
    has_changes: bool = False,
    inherited: Callable[[HostFacts, Mapping[str, Written]], dict[str, Written]] | None = None,
) -> _Composed:
    """Plan the files and commands of one part, which may have changes that another part knows of."""
    recorded = {one.path: one for one in present.written}
    if inherited is not None:
        recorded = {**inherited(facts, recorded), **recorded}
    composed = compose(facts.host, edits, recorded, present.directories, facts.running)
    commands = _commands(wanted, present.commands, has_changes=has_changes or bool(composed.changes))
    plan = Plan(composed.changes, composed.directories, composed.obsolete, commands)
    return _Composed(plan, Part(composed.written, composed.made, wanted), composed.drifted)


def _generator(facts: HostFacts) -> tuple[Generator | None, VirtpassError]:
    """Return the generator of the initramfs, or why there is none."""
    try:
        return generator(facts), RefusedError("", "")
    except VirtpassError as error:
        return None, error


def _loader(
    facts: HostFacts,
    wishes: Wishes,
    decision: Decision,
    present: HostRecord,
    *,
    rebuilds_initramfs: bool,
) -> tuple[Loader | None, tuple[BootEntry, ...]]:
    """Return the loader and its entries; a host on which nothing is written needs none."""
    wanted = wishes.bootloader or present.loader
    if not (decision.arguments or present.loader or rebuilds_initramfs):
        return None, ()
    try:
        loader = choose(facts, LOADERS, wanted, tokens.missing(decision.arguments, facts.running))
        if loader.evidence(facts) is None:
            raise RefusedError(
                "no-bootloader",
                f"nothing of {loader.title} is found on this host",
                "leave --bootloader out to see what is",
            )
    except RefusedError as error:
        # An image that is being built may get its bootloader later; what runs already came from somewhere.
        if error.reference == "no-bootloader" and _runs_already(facts, wishes, decision):
            return None, ()
        raise
    return loader, tuple(loader.entries(facts))


def _runs_already(facts: HostFacts, wishes: Wishes, decision: Decision) -> bool:
    """Tell whether the running kernel has all arguments, and nobody has asked for one by name."""
    is_asked = wishes.arguments or wishes.passthrough or wishes.acs_override or wishes.framebuffer_off
    return not is_asked and not tokens.missing(decision.arguments, facts.running)


def _not_there(
    wanted: tuple[str, ...], before: Sequence[BootEntry], present: HostRecord, notes: list[Note]
) -> tuple[str, ...]:
    """Return the arguments that the user's own configuration does not have already."""
    normal = [entry for entry in before if entry.role is Role.NORMAL]
    needed = []
    for token in wanted:
        is_theirs = normal and all(not tokens.missing((token,), entry.tokens) for entry in normal)
        if is_theirs and token not in present.arguments:
            notes.append(Note("already-there", f"not written: {token} is on every boot entry already"))
        else:
            needed.append(token)
    return tuple(needed)


def _commands(
    wanted: tuple[Command, ...], earlier: tuple[Command, ...], *, has_changes: bool
) -> tuple[Command, ...]:
    """Return what must be run: for what is wanted now, and to take back what is not wanted any more."""
    stale = [command for command in earlier if command not in wanted]
    fresh = [command for command in wanted if command not in earlier]
    if not (has_changes or stale or fresh):
        return ()
    undoing = [command.undoing for command in reversed(stale) if command.revert]
    # What rebuilds from files is run once, after all else, for what comes as for what goes.
    rebuilding = [command for command in stale if not command.revert and command not in wanted]
    setting = [command for command in wanted if not command.revert or command in fresh]
    seen: dict[tuple[str, ...], Command] = {}
    for command in (*undoing, *rebuilding, *setting):
        seen.setdefault(command.argv, command)
    return tuple(seen.values())
