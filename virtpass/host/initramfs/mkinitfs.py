"""mkinitfs, Alpine's: virtpass says what to do, and does nothing."""

from virtpass.host.early import MODPROBE, EarlyPlan
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import Image, InitramfsPlan
from virtpass.system.errors import RefusedError

_CONFIG = "/etc/mkinitfs/mkinitfs.conf"


class Mkinitfs:
    """Alpine's mkinitfs, whose busybox modprobe passes over soft dependencies and install lines."""

    name = "mkinitfs"
    title = "mkinitfs"
    runs_scripts = False

    def evidence(self, facts: HostFacts) -> str:
        """See the program and its configuration."""
        if facts.has_program("mkinitfs") and facts.has(_CONFIG):
            return f"the program mkinitfs and {_CONFIG} exist"
        return ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Say what to write."""
        if not early.needs_initramfs:
            return InitramfsPlan()
        modules = ",".join(early.modules)
        raise RefusedError(
            "initramfs-by-hand",
            f"modprobe in this initramfs obeys neither softdep nor install lines of {MODPROBE}: another "
            "driver could win",
            "let the hook take devices when a domain starts, or write 'kernel/drivers/vfio' into "
            f"/etc/mkinitfs/features.d/vfio.modules, add vfio to the features in {_CONFIG} and {modules} to "
            "modules= of the bootloader, run mkinitfs, and bind by --kernel-arg vfio-pci.ids=...",
        )

    def images(self, facts: HostFacts) -> list[Image]:
        """Know none."""
        return []

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """Know nothing of an image."""
        return None
