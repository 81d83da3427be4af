"""dracut: Fedora, RHEL and their family, openSUSE, Ubuntu from 25.10, Debian where it is installed, Void."""

from virtpass.host.early import HEAD, EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.forms import OwnFile
from virtpass.host.initramfs.base import REBUILD_DEADLINE, Image, InitramfsPlan
from virtpass.host.initramfs.listing import listing, long_paths
from virtpass.host.suse import has_sdbootutil
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

DROP_IN = "/etc/dracut.conf.d/50-virtpass.conf"
# Where distributions put images, with the version in place of {}.
_DEBIAN = "/boot/initrd.img-{}"
_IMAGES = ("/boot/initramfs-{}.img", _DEBIAN, "/boot/initrd-{}")
_UPDATE = "/usr/sbin/update-initramfs"
_NAMES = ("initrd", "initrd-fallback")


class Dracut:
    """dracut."""

    name = "dracut"
    title = "dracut"
    runs_scripts = True
    loads_first = False

    def evidence(self, facts: HostFacts) -> str:
        """See whether dracut is there, and nothing that would keep it from being the one in use.

        Debian's dracut and initramfs-tools exclude each other, but a part of either may stay: whose
        update-initramfs there is tells. Debian's dracut has none before 14; others know no such program.
        """
        # An image of OSTree comes with its initramfs; sdbootutil keeps them under names of its own.
        if facts.has("/run/ostree-booted") or has_sdbootutil(facts):
            return ""
        text = facts.text(_UPDATE)
        if not facts.has_program("dracut") or (text and "dracut " not in text):
            return ""
        return "the program dracut exists"

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Add a drop-in; /etc/modprobe.d is copied in host-only mode alone, so our file is named."""
        if early.is_empty:
            return InitramfsPlan()
        return InitramfsPlan((self.drop_in(early),), self._in_place(facts) or (self._rebuild(facts),))

    def drop_in(self, early: EarlyPlan) -> Edit:
        """Return the drop-in."""
        text = drop_in_text(early)
        return Edit(DROP_IN, OwnFile(text), "puts VFIO and its configuration into the initramfs")

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the files of ours."""
        return early.files

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images of the installed kernels, below /boot or where kernel-install puts them."""
        found = [image for pattern in _IMAGES for image in self._in_boot(facts, pattern)]
        return found or [
            Image(path, kernel.version)
            for kernel in facts.kernels
            for directory in self._entry_directories(facts, kernel.version)
            for name in _NAMES
            if facts.has(path := f"{directory}/{name}")
        ]

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """List an image with lsinitrd, whose lines are those of ls -l."""
        text = listing(facts, ("lsinitrd", image.path))
        return None if text is None else long_paths(text)

    def _in_place(self, facts: HostFacts) -> tuple[Command, ...]:
        """Return what builds the images in /boot where dracut by itself would write beside the boot entries.

        So it is on Debian 13 with systemd-boot, where kernel-install takes the images in /boot along.
        """
        images = self.images(facts)
        is_elsewhere = any(self._entry_directories(facts, image.kernel) for image in images)
        if facts.has_program("update-initramfs") or not is_elsewhere or not self._in_boot(facts, _DEBIAN):
            return ()
        return tuple(
            Command(
                ("dracut", "--force", image.path, image.kernel),
                f"builds the initramfs of kernel {image.kernel} anew",
                "one to three minutes",
                REBUILD_DEADLINE,
                (image.path,),
            )
            for image in images
        )

    def _rebuild(self, facts: HostFacts) -> Command:
        in_boot = [pattern for pattern in _IMAGES if self._in_boot(facts, pattern)]
        if in_boot:
            # Debian's and Ubuntu's: it knows the name that they give to an image, and what to do afterwards.
            if facts.has_program("update-initramfs"):
                argv: tuple[str, ...] = ("update-initramfs", "-u", "-k", "all")
            else:
                argv = ("dracut", "--force", "--regenerate-all")
            outputs = tuple(pattern.format("*") for pattern in in_boot)
        else:
            outputs = tuple(
                f"{directory}/*"
                for kernel in facts.kernels
                for directory in self._entry_directories(facts, kernel.version)
            )
            argv = self._reinstall(facts, has_images=bool(outputs))
        return Command(
            argv,
            "builds the initramfs of every installed kernel anew",
            f"one to three minutes for each of {len(facts.kernels)} kernels",
            REBUILD_DEADLINE,
            outputs,
        )

    def _reinstall(self, facts: HostFacts, *, has_images: bool) -> tuple[str, ...]:
        """Return what makes images anew where kernel-install puts them; dracut alone does not know where."""
        if has_images and facts.has_program("reinstall-kernels"):
            # EndeavourOS, whose package hooks run it too.
            return ("reinstall-kernels",)
        if has_images and facts.has_program("kernel-install"):
            return ("kernel-install", "add-all")
        raise RefusedError(
            "no-initramfs",
            "no initramfs of an installed kernel is found in /boot or where kernel-install puts them",
            "mount the boot partition if it is not, or let the hook take devices when a domain starts",
        )

    def _in_boot(self, facts: HostFacts, pattern: str) -> list[Image]:
        paths = {kernel.version: pattern.format(kernel.version) for kernel in facts.kernels}
        return [Image(path, version) for version, path in paths.items() if facts.has(path)]

    def _entry_directories(self, facts: HostFacts, version: str) -> list[str]:
        return [
            path
            # Where kernel-install puts TOKEN/VERSION/initrd (layout "bls").
            for root in PARTITIONS
            for token in facts.host.subdirectories(root)
            if facts.has(path := f"{root}/{token}/{version}")
        ]


def drop_in_text(early: EarlyPlan) -> str:
    """Render the drop-in; the lists need blanks at both ends."""
    lines = [HEAD.rstrip("\n")]
    if early.modules:
        # With underscores: older versions replace the first dash alone.
        names = " ".join(name.replace("-", "_") for name in early.modules)
        lines.append(f'force_drivers+=" {names} "')
    lines.append(f'install_items+=" {" ".join(early.paths)} "')
    return "\n".join(lines) + "\n"
