"""Proxmox VE with proxmox-boot-tool, which keeps copies of the kernels on partitions that are not mounted.

On such a partition is systemd-boot, which gets the first line of /etc/kernel/cmdline, or GRUB, which gets
what /etc/default/grub and its drop-ins say; one host may have both. Nothing is mounted here to see which
(neither does `proxmox-boot-tool status`, which mounts, ever run): where it is not known what booted, both
are told. For the same reason the entries are those that the tool writes from these files, not those that
it has written: that `proxmox-boot-tool refresh` ends well is the proof.
"""

from virtpass.host import tokens
from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.early import HEAD
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import LineTokens, OwnFile
from virtpass.host.loaders import grub_defaults
from virtpass.host.loaders.extra_entry import SAFE_TITLE
from virtpass.host.loaders.grub import SCRIPT, defaults_text, script_text
from virtpass.host.loaders.grub_defaults import DEFAULTS, DROP_IN
from virtpass.host.loaders.marks import without_ours
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

PARTITIONS = "/etc/kernel/proxmox-boot-uuids"
CMDLINE = "/etc/kernel/cmdline"
_VARIABLES = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")
_DEADLINE = 900.0


class Proxmox:
    """Boot partitions of proxmox-boot-tool."""

    name = "proxmox-boot-tool"
    title = "proxmox-boot-tool"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the list of partitions, which nothing but the tool makes."""
        if facts.text(PARTITIONS) and facts.has_program("proxmox-boot-tool"):
            return Evidence(
                f"{PARTITIONS} names partitions", replaces=("grub", "systemd-boot", "loader-entries")
            )
        return None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Tell each loader that may be on the partitions, and have them written anew."""
        if not request.arguments:
            return BootPlan()
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "the partitions that proxmox-boot-tool writes are not mounted, so no entry can be added to "
                "them for one boot",
                "apply without --trial",
            )
        edits = []
        has_grub, has_systemd_boot = self._has_grub(facts), self._has_systemd_boot(facts)
        if has_systemd_boot:
            _refuse_unfit_line(facts)
            reason = "gives the kernel arguments to systemd-boot"
            edits.append(Edit(CMDLINE, LineTokens(request.arguments, _running_line(facts, request)), reason))
        has_fallback = has_grub and request.with_fallback
        if has_grub:
            reason = "gives the kernel arguments to GRUB"
            edits.append(Edit(DROP_IN, OwnFile(HEAD + defaults_text(request)), reason))
        if has_fallback:
            reason = "keeps a way back on the boot menu"
            edits.append(Edit(SCRIPT, OwnFile(script_text(request)), reason, 0o755))
        # Without outputs: what is written lies where it cannot be seen, so it is run again to go back.
        refresh = Command(
            ("proxmox-boot-tool", "refresh"), "writes the boot partitions anew", "some seconds", _DEADLINE
        )
        return BootPlan(
            tuple(edits),
            (refresh,),
            tuple(_notes(request, has_fallback=has_fallback, has_systemd_boot=has_systemd_boot)),
            f"{SAFE_TITLE}{facts.distribution_name}" if has_fallback and not has_systemd_boot else "",
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Tell what the tool writes for each loader from the files that it reads."""
        found = []
        if self._has_systemd_boot(facts) and facts.has(CMDLINE):
            line = tokens.split(_first_line(facts))
            found.append(BootEntry("Proxmox, by systemd-boot", "", CMDLINE, line))
        if self._has_grub(facts):
            found.append(BootEntry("Proxmox, by GRUB", "", DEFAULTS, _grub_tokens(facts)))
        if facts.has(SCRIPT) and self._has_grub(facts):
            title = f"{SAFE_TITLE}{facts.distribution_name}"
            found.append(BootEntry(title, "", SCRIPT, (OFF,), Role.FALLBACK))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""

    def _has_systemd_boot(self, facts: HostFacts) -> bool:
        return facts.is_uefi and not facts.loader.lower().startswith("grub")

    def _has_grub(self, facts: HostFacts) -> bool:
        return facts.has(DEFAULTS) and not facts.loader.lower().startswith("systemd-boot")


def _first_line(facts: HostFacts) -> str:
    content = facts.host.read_bytes(CMDLINE) or b""
    return content.decode("utf-8", "surrogateescape").split("\n", 1)[0]


def _refuse_unfit_line(facts: HostFacts) -> None:
    """Refuse a command line with which the tool fails, or of which it would not read our tokens."""
    if not facts.has(CMDLINE):
        return
    if not any(tokens.key(token) == "root" for token in tokens.split(_first_line(facts))):
        raise RefusedError(
            "no-root",
            f"the first line of {CMDLINE} has no root=, and proxmox-boot-tool reads no other",
            "write the whole command line into its first line",
        )


def _running_line(facts: HostFacts, request: BootRequest) -> str:
    """Return the line to begin a missing file with: the running one, which the tool takes without a file.

    Raises:
        RefusedError: it would not name the root file system.
    """
    running = without_ours(tokens.lasting(facts.running), request)
    line = tuple(one for one in running if tokens.key(one) != "virtpass")
    if not facts.has(CMDLINE) and not any(tokens.key(token) == "root" for token in line):
        raise RefusedError(
            "no-root",
            f"{CMDLINE} does not exist, and the running command line has no root= to begin it with",
            f"write the whole command line with root= into {CMDLINE} first",
        )
    return " ".join(line)


def _grub_tokens(facts: HostFacts) -> tuple[str, ...]:
    """Return what GRUB's normal entries get."""
    values = grub_defaults.settings(facts, (DEFAULTS, *grub_defaults.drop_ins(facts)))
    return tokens.split(" ".join(values.get(name, "") for name in _VARIABLES))


def _notes(request: BootRequest, *, has_fallback: bool, has_systemd_boot: bool) -> list[Note]:
    notes = [
        Note("unseen", "the boot partitions are not mounted, so what is on them is not looked at afterwards")
    ]
    if request.with_fallback and has_systemd_boot:
        where = "where systemd-boot is on them, the boot partitions get" if has_fallback else "they get"
        text = f"{where} no entry without these arguments; in the menu of systemd-boot, e edits an entry"
        notes.append(Note("no-fallback", text, Severity.WARNING))
    return notes
