"""systemd-boot with entries that are kept by hand: Arch and its family after a manual installation."""

from dataclasses import replace

from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Role
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import EntryOptions
from virtpass.host.loaders import sd_boot, sd_boot_once
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.systemd_boot import is_generated

# In the name of an entry or of its initramfs: a way back that somebody has made already.
_RECOVERY = ("fallback", "rescue", "recovery")


class LoaderEntries:
    """systemd-boot whose entries no tool writes."""

    name = "loader-entries"
    title = "systemd-boot with entries kept by hand"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See systemd-boot, and entries of which none has the layout of kernel-install."""
        # openSUSE's tool writes entries in a layout of its own.
        if facts.has_program("sdbootutil") or not (text := sd_boot.evidence(facts)):
            return None
        found = sd_boot.linux_entries(facts, sd_boot.entries_directory(facts))
        if not found or any(is_generated(entry) for entry in found):
            return None
        return Evidence(f"{text}, with entries kept by hand", sd_boot_once.LOADER)

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to the options of every entry of this host, but for those that are a way back already."""
        if not request.arguments:
            return BootPlan()
        if request.is_trial:
            sd_boot_once.refuse_unforgetting(facts)
        directory = sd_boot.entries_directory(facts)
        normal = sd_boot.normal_entries(facts, directory, _judge)
        own = sd_boot.own_entry(facts, directory, request, normal)
        reason = "gives the kernel arguments to the boot entry"
        edits = [] if request.is_trial else _edits(normal, request, reason)
        return replace(own, edits=(*edits, *own.edits))

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries on the EFI system partition."""
        return sd_boot.menu(facts, sd_boot.entries_directory(facts), _judge)

    def chosen(self, facts: HostFacts) -> str | None:
        """Read the EFI variable that systemd-boot removes when it reads it."""
        return sd_boot_once.chosen(facts)


def _edits(normal: list[BlsEntry], request: BootRequest, reason: str) -> list[Edit]:
    return [Edit(entry.path, EntryOptions(request.arguments), reason) for entry in normal]


def _judge(entry: BlsEntry) -> Role:
    names = (entry.name, *(path.rpartition("/")[2] for path in entry.values("initrd")))
    return Role.RECOVERY if any(word in name for name in names for word in _RECOVERY) else Role.NORMAL
