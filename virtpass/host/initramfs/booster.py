"""booster: Arch and its family, where it has taken the place of mkinitcpio.

No script of ours can run in its initramfs, which has no shell and no modprobe: its init reads neither soft
dependencies nor install lines. But it loads the modules of ``modules_force_load`` by itself, and gives a
module what the kernel command line has for it. So vfio-pci takes devices by ``vfio-pci.ids=``, and a boot
entry without that argument binds nothing.

Drivers that are in the image are loaded at the same time, and may win; so an image with a driver of the
device is refused. All other drivers wait for the root file system, and vfio-pci does not.
"""

import re
from collections.abc import Sequence

from virtpass.host.boot import BootEntry, Note, Role
from virtpass.host.early import EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS, is_secure_boot
from virtpass.host.facts import HostFacts
from virtpass.host.forms import CommaList
from virtpass.host.initramfs.base import REBUILD_DEADLINE, UNSIGNED, Image, InitramfsPlan
from virtpass.host.initramfs.listing import has_module, listing, plain_paths
from virtpass.host.kernel_install import setting
from virtpass.host.kernels import Kernel, Presence
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CONFIG = "/etc/booster.yaml"
# Builds images in the background, and succeeds when one of them fails: only the images tell.
REGENERATE = "/usr/lib/booster/regenerate_images"
_KEY = "modules_force_load"
# No more than it takes to bind: a later kernel that lacks one of them would get no image, and what vfio_pci
# depends on comes along. vfio_iommu_type1 is loaded when a domain opens the first device.
_NAMES = ("vfio_pci",)
_MODULE = "usr/lib/modules/vfio_pci.ko"
_PACKAGE = re.compile(r"[A-Za-z0-9@._+-]+")
_MAX_KERNEL = 256 << 20
_LATE = "let the hook take devices when a domain starts"
_BY_HAND = (
    f"write '{_KEY}: {','.join(_NAMES)}' into {CONFIG}, build every initramfs anew, and bind by "
    "--kernel-arg vfio-pci.ids=..."
)


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
        _refuse_without_module(facts)
        _refuse_other_ways(facts)
        _refuse_signed(facts)
        images = self.images(facts)
        if not images:
            raise RefusedError(
                "no-initramfs",
                f"no image is found that {REGENERATE} has built",
                f"mount the boot partition if it is not, or {_LATE}",
            )
        for image in images if early.rivals else ():
            _refuse_rivals(image, self.content(facts, image), early.rivals)
        paths = (path for name in _packages(facts) for path in (_image(name), _kernel(name)))
        rebuild = Command(
            (REGENERATE,),
            "builds the initramfs of every installed kernel anew",
            f"some seconds for each of {len(images)} images",
            REBUILD_DEADLINE,
            tuple(dict.fromkeys(paths)),
        )
        edit = Edit(CONFIG, CommaList(_KEY, _NAMES), "has the initramfs load vfio-pci before other drivers")
        return InitramfsPlan((edit,), (rebuild,), notes)

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the module, where it has to be loaded first; files of ours would be of no use."""
        return (_MODULE,) if early.by_id else ()

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images of the installed kernels, by the packages of these."""
        return [image for image in _images(facts) if facts.has(image.path)]

    def absent(self, facts: HostFacts) -> list[Image]:
        """Return the images that are not there: booster builds none where a module is missing."""
        return [image for image in _images(facts) if not facts.has(image.path)]

    def strangers(self, facts: HostFacts, entries: Sequence[BootEntry]) -> list[str]:
        """Compare the names alone: a menu counts from the beginning of its partition."""
        own = {image.path.rpartition("/")[2] for image in _images(facts)}
        found = []
        for entry in entries:
            if entry.role is not Role.NORMAL or entry.initrds is None:
                continue
            # Limine may have a sum behind the name.
            names = [one.partition("#")[0].replace("\\", "/").rpartition("/")[2] for one in entry.initrds]
            if own.isdisjoint(names):
                other = f"with {', '.join(entry.initrds)}, not with an image that booster builds"
                what = other if names else "without an initramfs"
                found.append(f"the boot entry '{entry.title}' starts {what}")
        return found

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """List an image with booster."""
        text = listing(facts, ("booster", "ls", image.path))
        return None if text is None else plain_paths(text)


def _image(package: str) -> str:
    return f"/boot/booster-{package}.img"


def _kernel(package: str) -> str:
    return f"/boot/vmlinuz-{package}"


def _packages(facts: HostFacts) -> dict[str, list[Kernel]]:
    """Return the installed kernels by their packages, older ones first; the script passes over all others."""
    found: dict[str, list[Kernel]] = {}
    for kernel in facts.kernels:
        name = facts.text(f"{kernel.modules}/pkgbase")
        if _PACKAGE.fullmatch(name):
            found.setdefault(name, []).append(kernel)
    return found


def _images(facts: HostFacts) -> list[Image]:
    # What is left of an older kernel may be of the same package, whose image is that of the newest.
    return [Image(_image(name), kernels[-1].version) for name, kernels in _packages(facts).items()]


def _refuse_without_module(facts: HostFacts) -> None:
    """Refuse a kernel of which the image could not have the module: booster would build none.

    Raises:
        RefusedError: vfio-pci is no module of it.
    """
    for kernel in (one for kernels in _packages(facts).values() for one in kernels):
        presence = kernel.presence("vfio-pci")
        if presence is Presence.MISSING:
            raise RefusedError(
                "not-in-every-kernel",
                f"kernel {kernel.version} has no vfio-pci, and booster would build no image for it",
                f"remove that kernel, or {_LATE}",
            )
        if presence is Presence.BUILT_IN:
            raise RefusedError(
                "not-in-every-kernel",
                f"vfio-pci is built into kernel {kernel.version} and a module of another, and virtpass "
                "knows booster's images with the module alone",
                f"remove one of these kernels, or {_LATE}",
            )


def _refuse_other_ways(facts: HostFacts) -> None:
    """Refuse a host whose images something else builds than the package's own script.

    Raises:
        RefusedError: they are; or booster would build none at all.
    """
    if other := _other_way(facts):
        raise RefusedError("initramfs-by-hand", other, f"{_LATE}, or {_BY_HAND}")
    if not facts.has(CONFIG):
        raise RefusedError(
            "no-configuration",
            f"{CONFIG} does not exist, and booster builds nothing without it",
            f"make an empty one: touch {CONFIG}",
        )


def _other_way(facts: HostFacts) -> str:
    """Return what speaks for another way in which images are built; empty when nothing does."""
    if not facts.has(REGENERATE):
        return f"{REGENERATE} does not exist, so it is not known how booster is run here"
    if facts.stub:
        return (
            f"this host was started from a unified kernel image ({facts.stub}), and {REGENERATE} builds none"
        )
    for root in PARTITIONS:
        for token in facts.host.subdirectories(root):
            for kernel in facts.kernels:
                if facts.has(path := f"{root}/{token}/{kernel.version}/initrd"):
                    return f"kernel-install keeps an initramfs at {path}, which {REGENERATE} does not build"
    for name, other in (("initrd_generator", "booster"), ("layout", "uki")):
        told = setting(facts, name)
        if told.value == other:
            return f"{told.path} says {told.line}, so kernel-install has what {REGENERATE} does not build"
    return ""


def _refuse_signed(facts: HostFacts) -> None:
    """Refuse where a kernel may be signed: the script puts the one of the package in its place.

    Raises:
        RefusedError: Secure Boot is on, or a kernel is not as its package has it.
    """
    remedy = f"{_LATE}, or {_BY_HAND}"
    if is_secure_boot(facts.host):
        raise RefusedError(
            UNSIGNED,
            f"Secure Boot is on, and {REGENERATE} puts kernels into /boot that have no signature and would "
            "not start",
            remedy,
        )
    for package, kernels in _packages(facts).items():
        path = _kernel(package)
        there = facts.host.read_bytes(path, _MAX_KERNEL)
        known = [facts.host.read_bytes(f"{one.modules}/vmlinuz", _MAX_KERNEL) for one in kernels]
        if there is not None and there not in known:
            raise RefusedError(
                UNSIGNED,
                f"{path} is not the kernel of its package, perhaps because somebody has signed it, and "
                f"{REGENERATE} would put that of the package in its place",
                remedy,
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
