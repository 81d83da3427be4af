"""booster, on some Arch systems: virtpass says what to do, and does nothing."""

from virtpass.host.early import EarlyPlan
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import Image, InitramfsPlan
from virtpass.system.errors import RefusedError

_CONFIG = "/etc/booster.yaml"


class Booster:
    """booster, which runs no scripts and reads no modprobe.d but for options."""

    name = "booster"
    title = "booster"
    runs_scripts = False

    def evidence(self, facts: HostFacts) -> str:
        """See the program."""
        return "the program booster exists" if facts.has_program("booster") else ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Say what to write."""
        if not early.needs_initramfs:
            return InitramfsPlan()
        modules = ",".join(early.modules)
        raise RefusedError(
            "initramfs-by-hand",
            "booster's initramfs knows neither soft dependencies nor scripts, so nothing is bound",
            f"let the hook take devices when a domain starts, or write 'modules_force_load: {modules}' into "
            f"{_CONFIG}, run /usr/lib/booster/regenerate_images, and bind by --kernel-arg vfio-pci.ids=...",
        )

    def images(self, facts: HostFacts) -> list[Image]:
        """Know none."""
        return []

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """Know nothing of an image."""
        return None
