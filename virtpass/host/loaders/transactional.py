"""MicroOS, Aeon, Leap Micro: a read-only root, changed in a new snapshot by transactional-update.

What is written on the running system is not what the next boot gets: it boots another snapshot. So nothing is
applied here; the user is told what to do inside of one.
"""

from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence
from virtpass.host.facts import HostFacts
from virtpass.host.loaders.grub import Grub
from virtpass.host.loaders.sdbootutil import Sdbootutil
from virtpass.host.mounts import mount_of
from virtpass.system.errors import RefusedError


class Transactional:
    """A system that is changed by transactional-update only."""

    name = "transactional-update"
    title = "transactional-update (MicroOS, Aeon, Leap Micro)"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the tool and a root that cannot be written."""
        root = mount_of(facts.host, "/")
        if not facts.has_program("transactional-update") or root is None or not root.is_read_only:
            return None
        text = "transactional-update exists, and the root file system is read-only"
        return Evidence(text, "", ("grub", "grub-bls", "sdbootutil", "systemd-boot", "loader-entries"))

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Refuse, with what to do by hand."""
        if not request.arguments:
            return BootPlan()
        words = " ".join(request.arguments)
        if Sdbootutil().evidence(facts):
            remedy = (
                f"by hand: add {words} to the line in /etc/kernel/cmdline, run "
                "sdbootutil update-all-entries, and reboot"
            )
        else:
            remedy = (
                f"by hand: run transactional-update shell, add {words} to GRUB_CMDLINE_LINUX_DEFAULT in "
                "/etc/default/grub there, and leave it with exit; then run "
                "transactional-update --continue grub.cfg, and reboot"
            )
        raise RefusedError(
            "transactional",
            f"{facts.distribution_name} boots another snapshot than the one that runs, so changes made here "
            "do not reach the next boot",
            remedy,
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Read what the loader below would boot, for whoever wants to look at it."""
        sdbootutil, grub = Sdbootutil(), Grub()
        if sdbootutil.evidence(facts):
            return sdbootutil.entries(facts)
        return grub.entries(facts) if grub.evidence(facts) else []

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no trial here."""
        return ""
