"""Did it take? What is on record against the files, the boot menu, the running kernel and its drivers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from virtpass.host import tokens
from virtpass.host.boot import OFF, TRIAL, BootEntry, Loader, Role
from virtpass.host.decide import host_modules
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import ByName, Generator
from virtpass.host.initramfs.listing import has_module
from virtpass.host.iommu import UNSAFE_INTERRUPTS
from virtpass.host.record import HostRecord
from virtpass.pci import sysfs
from virtpass.system.errors import VirtpassError
from virtpass.system.files import read_state


class Verdict(Enum):
    """How a check ended."""

    RIGHT = "right"
    # As it should be once the host was rebooted.
    WAITING = "waiting for a reboot"
    WRONG = "wrong"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        reference: stable kebab-case name.
        verdict: how it is.
        text: what was seen, one sentence without a full stop.
    """

    reference: str
    verdict: Verdict
    text: str


def checks(
    facts: HostFacts, record: HostRecord, loader: Loader | None, generator: Generator | None
) -> list[Check]:
    """Compare everything with what is on record, in the order in which it takes effect.

    Args:
        facts: the host.
        record: what is on record.
        loader: the bootloader of the record; None when nothing was told to it.
        generator: the generator of the initramfs; None when nothing was told to it.
    """
    return [
        *_files(facts, record),
        *_entries(facts, record, loader),
        *_images(facts, record, generator),
        *_by_name(facts, record, loader, generator),
        *_running(facts, record, loader),
        *_drivers(facts, record),
        *_unsafe(facts, record),
    ]


def _files(facts: HostFacts, record: HostRecord) -> list[Check]:
    found = []
    for written in (*record.images.written, *record.boot.written):
        try:
            current = read_state(facts.host, written.path)
        except VirtpassError as error:
            found.append(Check("file", Verdict.UNKNOWN, error.what))
            continue
        if current is None:
            found.append(Check("file", Verdict.WRONG, f"{written.path} is gone"))
        elif written.is_untouched(current):
            found.append(Check("file", Verdict.RIGHT, f"{written.path} is as virtpass wrote it"))
        else:
            found.append(Check("file", Verdict.WRONG, f"{written.path} was edited since virtpass wrote it"))
    return found


def _entries(facts: HostFacts, record: HostRecord, loader: Loader | None) -> list[Check]:
    if loader is None or not record.arguments:
        return []
    if loader.evidence(facts) is None:
        text = f"{loader.title}, for which it was written, is not on this host any more"
        return [Check("bootloader", Verdict.WRONG, text)]
    try:
        entries = loader.entries(facts)
    except VirtpassError as error:
        return [Check("boot-entry", Verdict.UNKNOWN, error.what)]
    if not entries:
        return [
            Check("boot-entry", Verdict.UNKNOWN, f"the entries of {loader.title} cannot be seen from here")
        ]
    normal = [entry for entry in entries if entry.role is Role.NORMAL]
    found = [_entry(record, entry, _name(entry, normal)) for entry in normal]
    for title, role, reference in (
        (record.fallback, Role.FALLBACK, "fallback-entry"),
        (record.tried, Role.TRIAL, "trial-entry"),
    ):
        if title:
            found.append(_extra(record, reference, title, [one for one in entries if one.role is role]))
    return found


def _extra(record: HostRecord, reference: str, title: str, entries: Sequence[BootEntry]) -> Check:
    """Look at the entry of a trial, or at the fallback."""
    if not entries:
        return Check(reference, Verdict.WRONG, f"the boot entry '{title}' is gone")
    chosen = record.choice.identifier if record.choice is not None else ""
    entry = next((one for one in entries if one.identifier == chosen), entries[0])
    if reference == "trial-entry" and (lacking := tokens.missing(record.arguments, entry.tokens)):
        return Check(reference, Verdict.WRONG, f"'{title}' lacks {' '.join(lacking)}")
    if reference == "fallback-entry" and (
        has := [token for token in record.arguments if not tokens.missing((token,), entry.tokens)]
    ):
        return Check(reference, Verdict.WRONG, f"'{title}' has {' '.join(has)}, and is to be without")
    return Check(reference, Verdict.RIGHT, f"the boot entry '{title}' exists")


def _name(entry: BootEntry, menu: Sequence[BootEntry]) -> str:
    """Return how a user tells an entry from the others: kernel-install gives all kernels the same title."""
    is_only = [one.title for one in menu].count(entry.title) == 1
    return f"'{entry.title}'" if is_only or not entry.identifier else f"'{entry.title}' ({entry.identifier})"


def _entry(record: HostRecord, entry: BootEntry, name: str) -> Check:
    if record.tried:
        has = [token for token in record.arguments if not tokens.missing((token,), entry.tokens)]
        if has:
            return Check("boot-entry", Verdict.WRONG, f"{name} has {' '.join(has)} during a trial")
        return Check("boot-entry", Verdict.RIGHT, f"{name} is without the arguments on trial")
    if lacking := tokens.missing(record.arguments, entry.tokens):
        return Check("boot-entry", Verdict.WRONG, f"{name} lacks {' '.join(lacking)}")
    return Check("boot-entry", Verdict.RIGHT, f"{name} has the arguments")


def _images(facts: HostFacts, record: HostRecord, generator: Generator | None) -> list[Check]:
    if generator is None or not record.image_files:
        return []
    found = []
    rivals = _rivals(facts, record, generator)
    for image in generator.images(facts):
        content = generator.content(facts, image)
        if content is None:
            found.append(
                Check("initramfs", Verdict.UNKNOWN, f"{image.path} cannot be listed (it takes root)")
            )
            continue
        lacking = [path for path in record.image_files if path not in content]
        early = [name for name in rivals if has_module(content, name)]
        if lacking:
            found.append(Check("initramfs", Verdict.WRONG, f"{image.path} lacks {', '.join(lacking)}"))
        if early:
            text = f"{image.path} has {', '.join(early)}, which could take a device before vfio-pci does"
            found.append(Check("initramfs", Verdict.WRONG, text))
        if not lacking and not early:
            found.append(Check("initramfs", Verdict.RIGHT, f"{image.path} has what it needs"))
    return found


def _rivals(facts: HostFacts, record: HostRecord, generator: Generator) -> tuple[str, ...]:
    """Return the modules that must not be in an image in which nothing but the order of loading binds."""
    if generator.runs_scripts or not generator.loads_first:
        return ()
    present = (address for address in record.devices if sysfs.is_present(facts.host, address))
    return tuple(dict.fromkeys(name for address in present for name in host_modules(facts, address)))


def _by_name(
    facts: HostFacts, record: HostRecord, loader: Loader | None, generator: Generator | None
) -> list[Check]:
    """Look for kernels without an image, and for entries that start another one."""
    one: object = generator
    if not isinstance(one, ByName) or not record.image_files:
        return []
    texts = [
        f"{image.path} is not there: kernel {image.kernel} has no initramfs" for image in one.absent(facts)
    ]
    try:
        texts += one.strangers(facts, loader.entries(facts)) if loader is not None else []
    except VirtpassError:
        # Told of the entries already.
        pass
    return [Check("initramfs", Verdict.WRONG, text) for text in texts]


def is_rebooted(facts: HostFacts, record: HostRecord) -> bool:
    """Tell whether the host was rebooted since the record was written."""
    return facts.boot_id not in ("", record.boot_id)


def _is_off(facts: HostFacts) -> bool:
    return not tokens.missing((OFF,), facts.running)


def _running(facts: HostFacts, record: HostRecord, loader: Loader | None) -> list[Check]:
    if not facts.running:
        return []
    lacking = tokens.missing(record.arguments, facts.running)
    if _is_off(facts):
        text = f"this boot goes without what virtpass added, as {OFF} says"
        return [Check("command-line", Verdict.WAITING, text)]
    if record.tried:
        return [_trial(facts, record, loader, lacking)]
    if not record.arguments:
        return []
    if not lacking:
        return [Check("command-line", Verdict.RIGHT, "the running kernel has the arguments")]
    text = f"the running kernel lacks {' '.join(lacking)}"
    if is_rebooted(facts, record):
        text = f"{text} though the host was rebooted: from which boot entry?"
        return [Check("command-line", Verdict.WRONG, text)]
    return [Check("command-line", Verdict.WAITING, text)]


def _trial(facts: HostFacts, record: HostRecord, loader: Loader | None, lacking: Sequence[str]) -> Check:
    if not tokens.missing((TRIAL,), facts.running):
        if lacking:
            return Check("trial", Verdict.WRONG, f"this is the trial, and it lacks {' '.join(lacking)}")
        return Check("trial", Verdict.RIGHT, "this boot is the trial: virtpass host confirm makes it last")
    chosen = loader.chosen(facts) if loader is not None else None
    is_chosen = record.choice is not None and chosen == record.choice.identifier
    if is_rebooted(facts, record) and not is_chosen:
        text = (
            "the trial is over and was not confirmed: virtpass host apply --trial tries once more, "
            "virtpass host revert takes it back"
        )
        return Check("trial", Verdict.WRONG, text)
    if record.choice is not None and chosen is not None and not is_chosen:
        text = (
            f"the next boot is not the trial but {chosen or 'the usual entry'}, as was chosen since: "
            "virtpass host apply --trial chooses it once more"
        )
        return Check("trial", Verdict.WRONG, text)
    if record.choice is None:
        return Check("trial", Verdict.WAITING, f"the trial is '{record.tried}' on the boot menu")
    return Check("trial", Verdict.WAITING, f"the next boot is the trial ('{record.tried}')")


def _drivers(facts: HostFacts, record: HostRecord) -> list[Check]:
    found = []
    for address in record.devices:
        if not sysfs.is_present(facts.host, address):
            found.append(Check("early-binding", Verdict.WRONG, f"{address} is not there any more"))
            continue
        driver = sysfs.driver(facts.host, address)
        text = f"{address} is on {driver or 'no driver'}"
        if driver == "vfio-pci":
            verdict = Verdict.RIGHT
        elif record.tried and tokens.missing((TRIAL,), facts.running):
            verdict, text = Verdict.RIGHT, f"{text}, as outside the trial"
        elif is_rebooted(facts, record) and not _is_off(facts):
            verdict, text = Verdict.WRONG, f"{text}, and should be on vfio-pci since the boot"
        else:
            verdict = Verdict.WAITING
        found.append(Check("early-binding", verdict, text))
    return found


def _unsafe(facts: HostFacts, record: HostRecord) -> list[Check]:
    """Look whether VFIO, where it is loaded, accepts interrupts that are not remapped."""
    if not record.unsafe_interrupts:
        return []
    values = {path: facts.host.read(path) for path in UNSAFE_INTERRUPTS}
    refusing = [path for path, value in values.items() if value == "N"]
    if refusing:
        text = f"{refusing[0]} says N: VFIO refuses interrupts that are not remapped"
        return [Check("unsafe-interrupts", Verdict.WRONG, text)]
    return [Check("unsafe-interrupts", Verdict.RIGHT, "VFIO accepts interrupts that are not remapped")]
