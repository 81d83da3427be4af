"""initramfs-tools: Debian up to 13, Ubuntu up to 25.04, Proxmox VE, Pop!_OS."""

from virtpass.host.early import HEAD, SCRIPT, EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import OwnFile
from virtpass.host.initramfs.base import REBUILD_DEADLINE, Image, InitramfsPlan
from virtpass.host.initramfs.listing import listing, plain_paths
from virtpass.transaction.plan import Command

# There is no drop-in directory for modules, but a hook may ask for them (force_load in hook-functions).
HOOK = "/etc/initramfs-tools/hooks/virtpass"
_IMAGE = "initrd.img-"
_UPDATE = "/usr/sbin/update-initramfs"


class InitramfsTools:
    """initramfs-tools, called through update-initramfs."""

    name = "initramfs-tools"
    title = "initramfs-tools"
    runs_scripts = True
    loads_first = False

    def evidence(self, facts: HostFacts) -> str:
        """See whether update-initramfs is its own: dracut brings a program of the same name."""
        if facts.has_program("mkinitramfs") and "dracut " not in (text := facts.text(_UPDATE)):
            return f"mkinitramfs and {_UPDATE} exist" if text else ""
        return ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Add a hook that copies the script and asks for the modules; modprobe.d is copied anyway."""
        if early.is_empty:
            return InitramfsPlan()
        hook = Edit(
            HOOK, OwnFile(hook_text(early)), "puts VFIO and its configuration into the initramfs", 0o755
        )
        rebuild = Command(
            ("update-initramfs", "-u", "-k", "all"),
            "builds the initramfs of every installed kernel anew",
            f"up to a minute for each of {len(self.images(facts))} kernels",
            REBUILD_DEADLINE,
            # Beside each image there may be a copy of an earlier one, of the same beginning.
            (f"/boot/{_IMAGE}*",),
        )
        return InitramfsPlan((hook,), (rebuild,))

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the files of ours."""
        return early.files

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images below /boot, by kernel."""
        paths = {kernel.version: f"/boot/{_IMAGE}{kernel.version}" for kernel in facts.kernels}
        return [Image(path, version) for version, path in paths.items() if facts.has(path)]

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """List an image with lsinitramfs."""
        text = listing(facts, ("lsinitramfs", image.path))
        return None if text is None else plain_paths(text)


def hook_text(early: EarlyPlan) -> str:
    """Render the hook, which never fails: a kernel's update must not, because of it."""
    copies = f"copy_file script {SCRIPT} || true\n" if SCRIPT in early.paths else ""
    loads = "".join(f"force_load {module}\n" for module in early.modules)
    return f"""#!/bin/sh
{HEAD}
case "$1" in
prereqs)
    exit 0
    ;;
esac

. /usr/share/initramfs-tools/hook-functions

{copies}{loads}exit 0
"""
