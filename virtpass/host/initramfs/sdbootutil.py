"""dracut as sdbootutil runs it on openSUSE: images beside the kernels on the EFI system partition.

Their names hold a checksum, so only the boot entries tell which of them are used.
``sdbootutil mkinitrd`` builds those of all kernels of the running snapshot, has the entries load them, and
removes those that no entry loads any more. So the files that it has written are never put back one by one:
an entry from before could load an image that is gone. To go back, it is run again.
"""

from virtpass.host.early import EarlyPlan
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import REBUILD_DEADLINE, Image, InitramfsPlan
from virtpass.host.initramfs.dracut import Dracut
from virtpass.host.loaders import bls, sd_boot
from virtpass.host.loaders.roots import starts_this_root
from virtpass.host.suse import has_sdbootutil
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command


class SdbootutilDracut(Dracut):
    """dracut, run by sdbootutil."""

    name = "sdbootutil-dracut"
    title = "dracut (run by sdbootutil)"

    def evidence(self, facts: HostFacts) -> str:
        """See that sdbootutil keeps the images."""
        if has_sdbootutil(facts) and facts.has_program("dracut"):
            return "sdbootutil keeps the boot entries, and the program dracut exists"
        return ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Add dracut's drop-in, and have sdbootutil build."""
        if early.is_empty:
            return InitramfsPlan()
        if not self.images(facts):
            raise RefusedError(
                "no-initramfs",
                "no initramfs is found for the entries of the system that runs",
                "mount the EFI system partition if it is not, or look at: sdbootutil list-entries",
            )
        rebuild = Command(
            ("sdbootutil", "mkinitrd"),
            "builds the initramfs of every installed kernel anew",
            f"one to three minutes for each of {len(facts.kernels)} kernels",
            REBUILD_DEADLINE,
        )
        return InitramfsPlan((self.drop_in(early),), (rebuild,))

    def images(self, facts: HostFacts) -> list[Image]:
        """Return what the entries of the running snapshot load, those of virtpass left out."""
        partition = _partition(facts)
        found: dict[str, Image] = {}
        for entry in bls.list_entries(facts.host, f"{partition}/loader/entries"):
            if not starts_this_root(entry.options, facts) or "virtpass" in entry.name:
                continue
            version = entry.value("version").rpartition("@")[2]
            for path in entry.values("initrd"):
                found[path] = Image(f"{partition}{path}", version)
        return [image for image in found.values() if facts.has(image.path)]


def _partition(facts: HostFacts) -> str:
    return sd_boot.entries_directory(facts).removesuffix("/loader/entries")
