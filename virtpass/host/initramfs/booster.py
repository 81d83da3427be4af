"""booster: Arch and its family, where it has taken the place of mkinitcpio.

No script of ours can run in its initramfs, which has no shell and no modprobe: its init reads neither soft
dependencies nor install lines. But it loads the modules of ``modules_force_load`` by itself, and gives a
module what the kernel command line has for it. So vfio-pci takes devices by ``vfio-pci.ids=``, and a boot
entry without that argument binds nothing.

Drivers that are in the image are loaded at the same time, and may win; so an image with a driver of the
device is refused. All other drivers wait for the root file system, and vfio-pci does not.
"""

import re

from virtpass.host.boot import Note
from virtpass.host.early import EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.forms import CommaList
from virtpass.host.initramfs.base import REBUILD_DEADLINE, Image, InitramfsPlan
from virtpass.host.initramfs.listing import has_module, listing, plain_paths
from virtpass.host.kernels import Presence
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CONFIG = "/etc/booster.yaml"
# Builds images in the background, and succeeds when one of them fails: only the images tell.
REGENERATE = "/usr/lib/booster/regenerate_images"
_KEY = "modules_force_load"
_MODULE = "usr/lib/modules/vfio_pci.ko"
_PACKAGE = re.compile(r"[A-Za-z0-9@._+-]+")
_LATE = "let the hook take devices when a domain starts"


class Booster:
    """booster, with the images that its package builds."""

    name = "booster"
    title = "booster"
    runs_scripts = False
    loads_first = True

    def evidence(self, facts: HostFacts) -> str:
        """See the program."""
        return "the program booster exists" if facts.has_program("booster") else ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Add our modules to those that are loaded first; all else waits for the root file system."""
        notes = _notes(early)
        if not early.by_id:
            return InitramfsPlan(notes=notes)
        names = _names(facts, early)
        _refuse_other_ways(facts, names)
        images = self.images(facts)
        if not images:
            raise RefusedError(
                "no-initramfs",
                f"no image is found that {REGENERATE} has built",
                f"mount the boot partition if it is not, or {_LATE}",
            )
        for image in images if early.rivals else ():
            _refuse_rivals(image, self.content(facts, image), early.rivals)
        paths = (
            path for name in _packages(facts).values() for path in (_image(name), f"/boot/vmlinuz-{name}")
        )
        rebuild = Command(
            (REGENERATE,),
            "builds the initramfs of every installed kernel anew",
            f"some seconds for each of {len(images)} images",
            REBUILD_DEADLINE,
            tuple(dict.fromkeys(paths)),
        )
        edit = Edit(CONFIG, CommaList(_KEY, names), "has the initramfs load VFIO before other drivers")
        return InitramfsPlan((edit,), (rebuild,), notes)

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the module, where it has to be loaded first; files of ours would be of no use."""
        return (_MODULE,) if early.by_id else ()

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images of the installed kernels, by the packages of these."""
        # What is left of an older kernel may be of the same package, whose image is that of the newest.
        found = {name: Image(_image(name), version) for version, name in _packages(facts).items()}
        return [image for image in found.values() if facts.has(image.path)]

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """List an image with booster."""
        text = listing(facts, ("booster", "ls", image.path))
        return None if text is None else plain_paths(text)


def _image(package: str) -> str:
    return f"/boot/booster-{package}.img"


def _packages(facts: HostFacts) -> dict[str, str]:
    """Return the packages of the installed kernels, by version."""
    found = {kernel.version: facts.text(f"{kernel.modules}/pkgbase") for kernel in facts.kernels}
    return {version: name for version, name in found.items() if _PACKAGE.fullmatch(name)}


def _names(facts: HostFacts, early: EarlyPlan) -> tuple[str, ...]:
    """Return the modules to load; with one that a kernel does not have, its image would not be built.

    Raises:
        RefusedError: vfio-pci is no module of one of the kernels.
    """
    for kernel in facts.kernels:
        if kernel.presence("vfio-pci") is not Presence.MODULE:
            raise RefusedError(
                "not-in-every-kernel",
                f"vfio-pci is no module of kernel {kernel.version}, and booster would build no image for it",
                f"remove that kernel, or {_LATE}",
            )
    return tuple(
        name
        for name in early.modules
        if all(kernel.presence(name) is not Presence.MISSING for kernel in facts.kernels)
    )


def _refuse_other_ways(facts: HostFacts, names: tuple[str, ...]) -> None:
    """Refuse a host whose images something else builds than the package's own script.

    Raises:
        RefusedError: they are; or booster would build none at all.
    """
    by_hand = (
        f"write '{_KEY}: {','.join(names)}' into {CONFIG}, build every initramfs anew, and bind by "
        "--kernel-arg vfio-pci.ids=..."
    )
    if not facts.has(REGENERATE):
        raise RefusedError(
            "initramfs-by-hand",
            f"{REGENERATE} does not exist, so it is not known how booster is run here",
            f"{_LATE}, or {by_hand}",
        )
    for root in PARTITIONS:
        for token in facts.host.subdirectories(root):
            for kernel in facts.kernels:
                if facts.has(path := f"{root}/{token}/{kernel.version}/initrd"):
                    raise RefusedError(
                        "initramfs-by-hand",
                        f"kernel-install keeps an initramfs at {path}, which {REGENERATE} does not build",
                        f"{_LATE}, or {by_hand}",
                    )
    if not facts.has(CONFIG):
        raise RefusedError(
            "no-configuration",
            f"{CONFIG} does not exist, and booster builds nothing without it",
            f"make an empty one: touch {CONFIG}",
        )


def _refuse_rivals(image: Image, content: frozenset[str] | None, rivals: tuple[str, ...]) -> None:
    """Refuse an image in which a driver may come before vfio-pci.

    Raises:
        RefusedError: it has one, or cannot be listed.
    """
    if content is None:
        raise RefusedError(
            "initramfs-unreadable",
            f"{image.path} cannot be listed, so it cannot be told whether a driver in it would come first",
            f"run it as root; if it is broken, build it anew with {REGENERATE}, or {_LATE}",
        )
    for name in rivals:
        if has_module(content, name):
            raise RefusedError(
                "driver-in-initramfs",
                f"{image.path} has {name}, which could take a device before vfio-pci does",
                f"{_LATE}; or, if the host boots without {name}, add -{name} to modules in {CONFIG} and run "
                f"{REGENERATE}",
            )


def _notes(early: EarlyPlan) -> tuple[Note, ...]:
    """Say what has no effect in the initramfs."""
    later = [*(name for name in early.softdeps if name not in early.rivals), *early.blacklist]
    if not later:
        return ()
    text = (
        "the initramfs of booster knows neither soft dependencies nor blacklists: those of "
        f"{', '.join(later)} count once the root file system is there"
    )
    return (Note("not-in-initramfs", text),)
