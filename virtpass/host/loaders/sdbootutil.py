"""openSUSE with systemd-boot or GRUB that reads boot loader entries, both kept by sdbootutil.

sdbootutil writes the entries of all kernels and snapshots to the EFI system partition. Their arguments come
from /etc/kernel/cmdline and, in versions since 2026, from files in /etc/kernel/cmdline.d on top of it.
``sdbootutil update-all-entries`` writes the ``options`` lines of all entries of the running snapshot anew,
our own one too. It looks for entries with root= and rootflags= in this order, and in them for lines that
begin with the key. systemd-boot passes over blanks before a key, so there the options of our entry are
indented. GRUB must not meet such a line (see `virtpass.host.loaders.grub_bls`): for it root= comes last. When
the partition is full sdbootutil may remove that entry first, as one of another system.
"""

from collections.abc import Sequence
from dataclasses import replace

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.forms import LineTokens, OwnFile
from virtpass.host.loaders import bls, sd_boot, sd_boot_once
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.extra_entry import is_dead, made, of_one_kernel, own_entry, role
from virtpass.host.loaders.hidden_menu import of_systemd_boot
from virtpass.host.loaders.marks import without_ours
from virtpass.host.loaders.roots import starts_this_root
from virtpass.host.suse import KEPT_BY_SDBOOTUTIL, SDBOOTUTIL, SETTINGS, has_sdbootutil, loader_type
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

_SD_BOOT = "systemd-boot"
CMDLINE = "/etc/kernel/cmdline"
# No comment in it: nothing is said about comments there.
DROP_IN = "/etc/kernel/cmdline.d/zz-virtpass.conf"
_VENDOR_CMDLINE = "/usr/lib/kernel/cmdline"
_DROP_INS = ("/usr/kernel/cmdline.d", "/usr/lib/kernel/cmdline.d", "/etc/kernel/cmdline.d")
# What sdbootutil itself puts into the options.
_MADE_BY_TOOL = ("root", "rootflags", "systemd.machine_id")
# What says that the disk is unlocked by the TPM, which measures the command line.
_MEASURED = ("/var/lib/systemd/pcrlock.json", "/var/lib/pcrlock.d", "/etc/systemd/tpm2-pcr-private-key.pem")
_DEADLINE = 900.0


class Sdbootutil:
    """Entries on the EFI system partition, written by sdbootutil."""

    name = "sdbootutil"
    title = "sdbootutil (openSUSE)"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the tool, and a setting that names a loader of its own."""
        if not has_sdbootutil(facts):
            return None
        kind = loader_type(facts)
        return Evidence(
            f"{SDBOOTUTIL} exists, and {SETTINGS} says {kind}",
            KEPT_BY_SDBOOTUTIL[kind],
            ("grub", "grub-bls", "systemd-boot", "loader-entries"),
        )

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add a drop-in, or to the whole line for older versions, and an entry of our own."""
        if not request.arguments:
            return BootPlan()
        directory = self._directory(facts)
        normal = _normal(facts, directory)
        if not normal:
            raise RefusedError(
                "no-entries",
                f"no entry in {directory} starts the system that runs",
                "look at: sdbootutil list-entries",
            )
        if request.is_trial:
            _refuse_trial(facts)
        original = without_ours((bls.newest(normal) or normal[0]).options, request)
        own = own_entry(
            request, normal, normal, original, finished=lambda edit: _finished(facts, directory, edit)
        )
        notes = [*own.notes, *_measured(facts)]
        if request.is_trial:
            once = sd_boot_once.choice(facts, made(own.edits[0]).identifier)
            return replace(own, notes=tuple(notes), choice=once)
        _refuse_differing(facts, normal)
        if own.fallback:
            notes.append(of_one_kernel(made(own.edits[0])))
            notes += of_systemd_boot(facts) if loader_type(facts) == _SD_BOOT else ()
        edits = (self._arguments(facts, original, request), *own.edits)
        # Images are named after what is in them, so that the one of the fallback entry stays.
        return replace(
            own, edits=edits, commands=(_refresh(),), notes=tuple(notes), keeps_initramfs=bool(own.fallback)
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries of the running snapshot."""
        directory = self._directory(facts)
        found = bls.in_menu_order(_own(facts, bls.list_entries(facts.host, directory)))
        return [
            BootEntry(one.title, one.identifier, one.path, one.options, role(one, one.options), one.initrds)
            for one in found
            if not is_dead(facts, one, _partition(directory))
        ]

    def chosen(self, facts: HostFacts) -> str | None:
        """Read the EFI variable that systemd-boot removes when it reads it."""
        return sd_boot_once.chosen(facts)

    def _directory(self, facts: HostFacts) -> str:
        return sd_boot.entries_directory(facts) or f"{PARTITIONS[0]}/loader/entries"

    def _arguments(self, facts: HostFacts, original: Sequence[str], request: BootRequest) -> Edit:
        reason = "gives the kernel arguments to sdbootutil"
        arguments = request.arguments
        # Without a file the line comes from the running kernel: ours would come back when the drop-in goes.
        is_fixed = facts.has(DROP_IN) or (
            not request.present and any(facts.has(path) for path in (CMDLINE, _VENDOR_CMDLINE))
        )
        if is_fixed and "cmdline.d" in facts.text(SDBOOTUTIL):
            return Edit(DROP_IN, OwnFile(" ".join(arguments) + "\n"), reason)
        vendor = [line for line in facts.text(_VENDOR_CMDLINE).splitlines() if not line.startswith("#")]
        line = " ".join(" ".join(vendor).split()) or " ".join(original)
        return Edit(CMDLINE, LineTokens(arguments, line), reason)


def _refuse_trial(facts: HostFacts) -> None:
    if loader_type(facts) != _SD_BOOT:
        raise RefusedError(
            "no-trial",
            "the GRUB that reads boot loader entries is not known to take a choice for one boot here",
            "apply without --trial; the fallback entry is the way back",
        )
    sd_boot_once.refuse_unforgetting(facts)


def _refresh() -> Command:
    # Without outputs: an entry of before may load an image that is gone, and predictions for the TPM lie in
    # places of many tools. To go back, it is run again.
    argv = ("sdbootutil", "update-all-entries")
    return Command(argv, "writes the boot entries anew", "some seconds", _DEADLINE)


def _refuse_differing(facts: HostFacts, normal: Sequence[BlsEntry]) -> None:
    """Refuse entries with arguments that the tool does not know of: it would drop them."""
    source = next((path for path in (CMDLINE, _VENDOR_CMDLINE, "/proc/cmdline") if facts.has(path)), "")
    lines = [line for line in facts.text(source).splitlines() if not line.startswith("#")]
    lines += [facts.text(f"{folder}/{name}") for folder in _DROP_INS for name in facts.host.names(folder)]
    known = tokens.split(" ".join(lines))
    for entry in normal:
        lost = [
            token for token in tokens.missing(entry.options, known) if tokens.key(token) not in _MADE_BY_TOOL
        ]
        if lost:
            raise RefusedError(
                "entry-differs",
                f"{entry.path} has arguments that {source} lacks ({' '.join(lost)}), and sdbootutil "
                "would drop them",
                f"write the whole command line into {CMDLINE} first",
            )


def _measured(facts: HostFacts) -> list[Note]:
    """Warn where the TPM may not unlock the disk: of our own entry no prediction is sure to be made."""
    if not any(facts.has(path) for path in _MEASURED) and "tpm2-device=" not in facts.text("/etc/crypttab"):
        return []
    text = (
        "the TPM measures the kernel arguments; sdbootutil predicts the new ones, but have the recovery key "
        "of the disk at hand at the next boot"
    )
    return [Note("measured", text, Severity.WARNING)]


def _own(facts: HostFacts, entries: Sequence[BlsEntry]) -> list[BlsEntry]:
    """Return the entries of the running snapshot; those of others are not touched by the tool either."""
    return [one for one in entries if one.is_linux and starts_this_root(one.options, facts)]


def _normal(facts: HostFacts, directory: str) -> list[BlsEntry]:
    """Return the normal entries in the order of the menu."""
    own = bls.in_menu_order(_own(facts, bls.list_entries(facts.host, directory)))
    return [entry for entry in own if role(entry, entry.options) is Role.NORMAL]


def _partition(directory: str) -> str:
    return directory.removesuffix("/loader/entries")


def _finished(facts: HostFacts, directory: str, edit: Edit) -> Edit:
    """Return the edit so that sdbootutil leaves its entry alone once it is there.

    It loads the initramfs that was there before that of virtpass was built: the entry itself keeps it from
    being removed.
    """
    new = made(edit)
    old = bls.parse_entry(facts.host.read_bytes(edit.path) or b"", edit.path)
    images = old.values("initrd")
    is_usable = old.value("linux") == new.value("linux") and all(
        facts.has(_partition(directory) + image) for image in images
    )
    fields = [(key, value) for key, value in new.fields if key != "initrd" or not is_usable]
    fields += [("initrd", image) for image in images if is_usable]
    if loader_type(facts) == _SD_BOOT:
        return replace(edit, form=OwnFile(bls.text_of(fields, indented="options")))
    return replace(edit, form=OwnFile(bls.text_of([(key, _root_last(key, value)) for key, value in fields])))


def _root_last(key: str, value: str) -> str:
    """Return kernel arguments with root= after all others, which is the same to the kernel."""
    if key != "options":
        return value
    return " ".join(sorted(tokens.split(value), key=lambda token: tokens.key(token) == "root"))
