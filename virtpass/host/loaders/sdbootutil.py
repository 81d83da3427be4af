"""openSUSE with systemd-boot or GRUB that reads boot loader entries, both kept by sdbootutil.

sdbootutil writes the entries of all kernels and snapshots to the EFI system partition. Their arguments come
from /etc/kernel/cmdline and, in versions since 2026, from files in /etc/kernel/cmdline.d on top of it.
``sdbootutil update-all-entries`` writes the ``options`` lines of all entries of the running snapshot anew,
our own one too. It looks for lines that begin with the key, and the loaders pass over blanks before it. So
the options of our entry are indented, and stay.
"""

from collections.abc import Sequence

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import LineTokens, OwnFile
from virtpass.host.loaders import bls, sd_boot
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.extra_entry import extra_entry, role, without_ours
from virtpass.host.suse import KEPT_BY_SDBOOTUTIL, SDBOOTUTIL, SETTINGS, has_sdbootutil, loader_type
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CMDLINE = "/etc/kernel/cmdline"
# No comment in it: nothing is said about comments there.
DROP_IN = "/etc/kernel/cmdline.d/zz-virtpass.conf"
_VENDOR_CMDLINE = "/usr/lib/kernel/cmdline"
_DROP_INS = ("/usr/kernel/cmdline.d", "/usr/lib/kernel/cmdline.d", "/etc/kernel/cmdline.d")
# What sdbootutil itself puts into the options.
_MADE_BY_TOOL = ("root", "rootflags", "systemd.machine_id")
_PARTITIONS = ("/boot/efi", "/efi", "/boot")
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
        edits: list[Edit] = []
        notes: list[Note] = []
        fallback = tried = ""
        if not request.is_trial:
            _refuse_differing(facts, normal)
            edits.append(self._arguments(facts, original, request))
        if request.is_trial or request.with_fallback:
            try:
                extra = extra_entry(request, normal, normal, original)
            except RefusedError as error:
                if request.is_trial:
                    raise RefusedError("no-trial", error.what, error.remedy) from error
                notes.append(Note("no-fallback", error.what, Severity.WARNING))
            else:
                edits.append(_kept(facts, directory, extra.edit))
                fallback, tried = ("", extra.title) if request.is_trial else (extra.title, "")
        commands = () if request.is_trial else (_refresh(),)
        if not request.is_trial and _is_measured(facts):
            text = (
                "the TPM measures the kernel arguments; sdbootutil predicts the new ones, but have the "
                "recovery key of the disk at hand at the next boot"
            )
            notes.append(Note("measured", text, Severity.WARNING))
        return BootPlan(tuple(edits), commands, tuple(notes), fallback, tried)

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries of the running snapshot."""
        found = bls.in_menu_order(_own(facts, bls.list_entries(facts.host, self._directory(facts))))
        return [
            BootEntry(one.title, one.identifier, one.path, one.options, role(one, one.options))
            for one in found
        ]

    def one_shot(self, facts: HostFacts, entry: BootEntry) -> Command | None:
        """Set the EFI variable that systemd-boot deletes when it reads it."""
        if loader_type(facts) != "systemd-boot":
            return None
        return sd_boot.one_shot(facts, entry)

    def _directory(self, facts: HostFacts) -> str:
        directories = [f"{partition}/loader/entries" for partition in _PARTITIONS]
        return next((path for path in directories if facts.host.names(path)), directories[0])

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
    if loader_type(facts) != "systemd-boot":
        raise RefusedError(
            "no-trial",
            "the GRUB that reads boot loader entries is not known to take a choice for one boot here",
            "apply without --trial; the fallback entry is the way back",
        )
    sd_boot.refuse_unforgetting(facts)


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


def _is_measured(facts: HostFacts) -> bool:
    return any(facts.has(path) for path in _MEASURED) or "tpm2-device=" in facts.text("/etc/crypttab")


def _own(facts: HostFacts, entries: Sequence[BlsEntry]) -> list[BlsEntry]:
    """Return the entries of the running snapshot; those of others are not touched by the tool either."""
    return [one for one in entries if one.is_linux and bls.is_of_root(one.options, facts.root_words)]


def _normal(facts: HostFacts, directory: str) -> list[BlsEntry]:
    """Return the normal entries in the order of the menu."""
    own = bls.in_menu_order(_own(facts, bls.list_entries(facts.host, directory)))
    return [entry for entry in own if role(entry, entry.options) is Role.NORMAL]


def _kept(facts: HostFacts, directory: str, edit: Edit) -> Edit:
    """Return the edit so that its entry stays as it is once it is there.

    Its options are indented, so that sdbootutil passes over them. It loads the initramfs that was there
    before that of virtpass was built: the entry itself keeps it from being removed.
    """
    made = bls.parse_entry(edit.form.add(None), edit.path)
    old = bls.parse_entry(facts.host.read_bytes(edit.path) or b"", edit.path)
    images = old.values("initrd")
    partition = directory.removesuffix("/loader/entries")
    is_usable = old.value("linux") == made.value("linux") and all(
        facts.has(partition + image) for image in images
    )
    lines = [
        f"{'  ' if key == 'options' else ''}{key} {value}"
        for key, value in made.fields
        if key != "initrd" or not is_usable
    ]
    lines += [f"initrd {image}" for image in images if is_usable]
    return Edit(edit.path, OwnFile("\n".join(lines) + "\n"), edit.reason, edit.mode)
