"""mkinitcpio: Arch and its family."""

import re

from virtpass.host.boot import Note, Severity
from virtpass.host.early import HEAD, EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MarkedBlock, OwnFile
from virtpass.host.initramfs.base import REBUILD_DEADLINE, Image, InitramfsPlan
from virtpass.host.initramfs.listing import listing, plain_paths
from virtpass.host.presets import DIRECTORY, Preset, read_presets
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CONFIG = "/etc/mkinitcpio.conf"
_DROP_INS = "/etc/mkinitcpio.conf.d"
# Read in the order of their names, and a later MODULES=(...) would throw ours away.
DROP_IN = f"{_DROP_INS}/zz-virtpass.conf"
_HOOKS = re.compile(r"^[ \t]*HOOKS=\(([^)]*)\)", re.MULTILINE)


class Mkinitcpio:
    """mkinitcpio with its presets."""

    name = "mkinitcpio"
    title = "mkinitcpio"
    runs_scripts = True
    loads_first = False

    def evidence(self, facts: HostFacts) -> str:
        """See the program and its configuration."""
        if facts.has_program("mkinitcpio") and facts.has(CONFIG):
            return f"the program mkinitcpio and {CONFIG} exist"
        return ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Add a drop-in, or a block at the end of each configuration for which drop-ins are not read."""
        if early.is_empty:
            return InitramfsPlan()
        presets = _built(facts)
        if not any(preset.outputs for preset in presets):
            raise RefusedError(
                "no-initramfs",
                f"no preset in {DIRECTORY} names an image, so it is not known how mkinitcpio is run here",
                "let the hook take devices when a domain starts, or write the preset of each kernel first",
            )
        text = config_text(early)
        reason = "puts VFIO and its configuration into the initramfs"
        edits = []
        if any(preset.reads_drop_ins for preset in presets):
            edits.append(Edit(DROP_IN, OwnFile(HEAD + text), reason))
        configs = dict.fromkeys(config for preset in presets for config in preset.configs)
        edits += [Edit(path, MarkedBlock(text), reason) for path in configs]
        outputs = tuple(dict.fromkeys(path for preset in presets for path in preset.outputs))
        rebuild = Command(
            ("mkinitcpio", "-P"),
            "builds the initramfs of every installed kernel anew",
            f"up to a minute for each of {len(outputs)} images",
            REBUILD_DEADLINE,
            outputs,
        )
        return InitramfsPlan(tuple(edits), (rebuild,), tuple(self._notes(facts, early, list(configs))))

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return the files of ours."""
        return early.files

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images that the presets name."""
        return [
            Image(path, preset.kernel)
            for preset in _built(facts)
            for path in preset.outputs
            if facts.has(path)
        ]

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """List an image, or what a unified kernel image has inside, with lsinitcpio."""
        text = listing(facts, ("lsinitcpio", image.path))
        return None if text is None else plain_paths(text)

    def _notes(self, facts: HostFacts, early: EarlyPlan, configs: list[str]) -> list[Note]:
        names = [f"{_DROP_INS}/{name}" for name in facts.host.names(_DROP_INS) if name.endswith(".conf")]
        hooks = [
            found
            for path in (CONFIG, *names, *configs)
            for line in _HOOKS.findall(facts.text(path))
            for found in line.split()
        ]
        if hooks and early.devices and "base" not in hooks:
            text = "HOOKS has no 'base': without it the initramfs has no shell, and cannot run our script"
            return [Note("no-shell", text, Severity.WARNING)]
        return []


class _Built:
    """What a preset builds: images for a kernel, by configurations of its own or the usual one."""

    def __init__(self, facts: HostFacts, preset: Preset) -> None:
        self.kernel = _version(facts, preset.package, preset.values.get("ALL_kver", ""))
        # Several variants may go into the same file.
        self.outputs = list(
            dict.fromkeys(
                path
                for variant in preset.variants
                for path in (preset.values.get(f"{variant}_image", ""), preset.uki(variant))
                if path
            )
        )
        own = [preset.value(variant, "config") for variant in preset.variants]
        # With a configuration of its own mkinitcpio is run with -c, and then it reads no drop-ins.
        self.configs = list(dict.fromkeys(path for path in own if path))
        self.reads_drop_ins = "" in own


def _built(facts: HostFacts) -> list[_Built]:
    return [_Built(facts, preset) for preset in read_presets(facts)]


def _version(facts: HostFacts, package: str, kver: str) -> str:
    """Return the version of the kernel that a preset is for; empty when nothing tells it."""
    # A package may have left an older kernel behind.
    for kernel in reversed(facts.kernels):
        if package == facts.text(f"{kernel.modules}/pkgbase") or kver == kernel.version:
            return kernel.version
    return facts.kernels[0].version if len(facts.kernels) == 1 else ""


def config_text(early: EarlyPlan) -> str:
    """Render the lines of shell that put our modules before all others."""
    lines = []
    if early.modules:
        # With a question mark it may be missing in a kernel: the build goes on, and the kernel boots.
        names = " ".join(f'"{module}?"' for module in early.modules)
        lines.append(f'MODULES=({names} "${{MODULES[@]}}")')
    lines.append(f"FILES+=({' '.join(early.paths)})")
    return "\n".join(lines) + "\n"
