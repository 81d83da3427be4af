"""What the bootloader will really boot, against what was planned."""

from collections.abc import Sequence

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootEntry, Loader, Role
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import ByName
from virtpass.host.initramfs.listing import has_module
from virtpass.host.kernels import Presence
from virtpass.host.prepare import HostPlan


def prove(facts: HostFacts, plan: HostPlan) -> list[str]:
    """Look at what the bootloader will really boot, and say what is not as planned."""
    problems: list[str] = []
    if plan.loader is not None:
        problems += _prove_entries(plan, plan.loader.entries(facts))
        problems += _prove_choice(facts, plan, plan.loader)
    problems += _prove_images(facts, plan)
    return problems


def _prove_entries(plan: HostPlan, entries: Sequence[BootEntry]) -> list[str]:
    problems = []
    wanted = () if plan.request.is_trial else plan.request.arguments
    normal = [entry for entry in entries if entry.role is Role.NORMAL]
    if not normal:
        problems.append("there is no boot entry left that starts this system")
    for entry in normal:
        if lacking := tokens.missing(wanted, entry.tokens):
            problems.append(f"the boot entry '{entry.title}' lacks {' '.join(lacking)}")
    if plan.gone and normal and all(not tokens.missing(plan.gone, entry.tokens) for entry in normal):
        problems.append(f"every boot entry still has {' '.join(plan.gone)}")
    problems += _prove_kept(plan, entries)
    problems += _prove_extra(plan, entries)
    return problems


def _prove_kept(plan: HostPlan, entries: Sequence[BootEntry]) -> list[str]:
    """Say which entries have lost something that was not ours, or have something of ours that is gone."""
    problems = []
    now = {(entry.path, entry.identifier, entry.title): entry for entry in entries}
    for old in plan.before:
        entry = now.get((old.path, old.identifier, old.title))
        # What /run holds is for the next boot, and may be replaced by another plan for it.
        if old.role not in (Role.NORMAL, Role.RECOVERY) or old.path.startswith("/run/"):
            continue
        if entry is None:
            problems.append(f"the boot entry '{old.title}' is gone")
            continue
        ours = {*plan.request.arguments, *plan.gone}
        if lost := [token for token in old.tokens if token not in entry.tokens and token not in ours]:
            problems.append(f"the boot entry '{old.title}' has lost {' '.join(lost)}")
    return problems


def _prove_extra(plan: HostPlan, entries: Sequence[BootEntry]) -> list[str]:
    record = plan.record
    problems = []
    by_role = {entry.role: entry for entry in entries}
    if record is not None and record.fallback and Role.FALLBACK not in by_role:
        problems.append(f"there is no boot entry '{record.fallback}'")
    if record is not None and record.tried:
        # GRUB has one for each kernel.
        trials = {entry.identifier: entry for entry in entries if entry.role is Role.TRIAL}
        chosen = record.choice.identifier if record.choice is not None else ""
        tried = trials.get(chosen) or by_role.get(Role.TRIAL)
        if tried is None:
            problems.append(f"there is no boot entry '{record.tried}'")
        elif lacking := tokens.missing((*plan.request.arguments, TRIAL), tried.tokens):
            problems.append(f"the boot entry '{tried.title}' lacks {' '.join(lacking)}")
        elif record.choice is not None and record.choice.identifier != tried.identifier:
            problems.append(f"the boot entry '{tried.title}' is not the one that the next boot takes")
    # What virtpass wrote before is not the user's own.
    shared = {token for entry in plan.before if entry.role is Role.NORMAL for token in entry.tokens}
    shared -= {*(plan.present.arguments if plan.present is not None else ())}
    for entry in entries:
        if entry.role is not Role.FALLBACK:
            continue
        if has := [
            token for token in plan.request.arguments if token in entry.tokens and token not in shared
        ]:
            problems.append(f"the boot entry '{entry.title}' has {' '.join(has)}, and is to be without")
        if tokens.missing((OFF,), entry.tokens):
            problems.append(f"the boot entry '{entry.title}' lacks {OFF}")
    return problems


def _prove_choice(facts: HostFacts, plan: HostPlan, loader: Loader) -> list[str]:
    """Say whether the next boot takes another entry than planned."""
    wanted = plan.record.choice if plan.record is not None else None
    chosen = loader.chosen(facts)
    if wanted is not None and chosen != wanted.identifier:
        taken = f"'{chosen}'" if chosen else "the usual entry"
        return [f"the next boot takes {taken}, not the trial"]
    gone = plan.present.choice if plan.present is not None else None
    if gone is not None and wanted is None and chosen == gone.identifier:
        return ["the next boot would still take the trial"]
    return []


def _prove_images(facts: HostFacts, plan: HostPlan) -> list[str]:
    """Say what is missing in an initramfs, or still in it."""
    if plan.generator is None:
        return []
    images = plan.generator.images(facts)
    made = {kept.path for kept in plan.restore if kept.before is None}
    # By kernel: some tools name images after what is in them.
    served = {image.kernel for image in images}
    problems = [
        f"{image.path} is gone, and no other is there for {image.kernel}"
        for image in plan.images
        if image.kernel not in served and image.path not in made
    ]
    wanted = plan.record.image_files if plan.record is not None else ()
    if not wanted and not plan.gone_files:
        return problems
    others = [one.version for one in facts.kernels if one.presence("vfio-pci") is not Presence.MODULE]
    if not images:
        problems.append("no initramfs is found")
    by_name: object = plan.generator
    if wanted and isinstance(by_name, ByName):
        problems += [f"{image.path} was not built" for image in by_name.absent(facts)]
    for image in images:
        content = plan.generator.content(facts, image)
        if content is None:
            problems.append(f"{image.path} cannot be listed")
            continue
        problems += [f"{image.path} lacks {path}" for path in wanted if path not in content]
        problems += [f"{image.path} still has {path}" for path in plan.gone_files if path in content]
        problems += [
            f"{image.path} has {name}, which could take a device before vfio-pci does"
            for name in plan.decision.early.rivals
            if has_module(content, name)
        ]
        # Some generators name the module among what is wanted.
        needs_module = bool(wanted) and not has_module(frozenset(wanted), "vfio_pci")
        needs_module = needs_module and "vfio_pci" in plan.decision.early.modules
        # It may be built into one kernel, or missing in it, which the plan has told.
        needs_module = needs_module and image.kernel not in others
        if needs_module and not has_module(content, "vfio_pci"):
            problems.append(f"{image.path} lacks the module vfio-pci")
    return problems
