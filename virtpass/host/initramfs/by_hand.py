"""Generators of an initramfs for which virtpass says what to do, and does nothing."""

from dataclasses import dataclass

from virtpass.host.early import MODPROBE, EarlyPlan
from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import Image, InitramfsPlan
from virtpass.system.errors import RefusedError


@dataclass
class ByHand:
    """A generator that virtpass leaves to the user.

    Attributes:
        name: as other generators have it.
        title: as other generators have it.
        runs_scripts: whether a script can run in its initramfs.
        program: what tells that it is there.
        config: a file that has to be there too; empty for none.
        why: why nothing is written.
        recipe: what to write, with {modules} for the modules with commas between them, {words} with blanks.
        loads_first: as other generators have it.
    """

    name: str
    title: str
    runs_scripts: bool
    program: str
    config: str
    why: str
    recipe: str
    loads_first: bool = False

    def evidence(self, facts: HostFacts) -> str:
        """See the program and its configuration."""
        if not facts.has_program(self.program) or not (not self.config or facts.has(self.config)):
            return ""
        also = f" and {self.config} exist" if self.config else " exists"
        return f"the program {self.program}{also}"

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Say what to write."""
        if not early.needs_initramfs:
            return InitramfsPlan()
        recipe = self.recipe.format(modules=",".join(early.modules), words=" ".join(early.modules))
        raise RefusedError(
            "initramfs-by-hand", self.why, f"let the hook take devices when a domain starts, or {recipe}"
        )

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the files of ours."""
        return early.files

    def images(self, facts: HostFacts) -> list[Image]:
        """Know none."""
        return []

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """Know nothing of an image."""
        return None


# Alpine's, whose busybox modprobe passes over soft dependencies and install lines.
MKINITFS = ByHand(
    "mkinitfs",
    "mkinitfs",
    runs_scripts=False,
    program="mkinitfs",
    config="/etc/mkinitfs/mkinitfs.conf",
    why=f"modprobe in this initramfs obeys neither softdep nor install lines of {MODPROBE}: another driver "
    "could win",
    recipe="write 'kernel/drivers/vfio' into /etc/mkinitfs/features.d/vfio.modules, add vfio to the features "
    "in /etc/mkinitfs/mkinitfs.conf and {modules} to modules= of the bootloader, run mkinitfs, and bind by "
    "--kernel-arg vfio-pci.ids=...",
)
# Its initramfs is dracut's, and comes with the image.
RPM_OSTREE = ByHand(
    "rpm-ostree",
    "rpm-ostree",
    runs_scripts=True,
    program="rpm-ostree",
    config="/run/ostree-booted",
    why="the initramfs of this system comes with its image, without vfio-pci in it, and to build one here "
    "changes every later update",
    recipe="run rpm-ostree initramfs --enable --arg=--add-drivers --arg='{words}' and "
    "bind by --kernel-arg rd.driver.pre=vfio-pci --kernel-arg vfio-pci.ids=...",
)
