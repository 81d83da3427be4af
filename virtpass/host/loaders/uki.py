"""Unified kernel images by mkinitcpio: Arch and its family.

The kernel arguments are built into the image. mkinitcpio takes them from /etc/kernel/cmdline (or
/usr/lib/kernel/cmdline) and /etc/cmdline.d/*.conf together; with none of these, from the command line of
the running kernel. So a drop-in of our own would be all of the line on a host with nothing else: it is
written where others have drop-ins too. Else the tokens go into /etc/kernel/cmdline, which is made from the
running line where it is missing, and refused without root=. For taking it away again see
`virtpass.host.loaders.systemd_boot`: an image is too large to be kept, so what it is built from must be
right.
"""

from dataclasses import dataclass

from virtpass.host import tokens
from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.efi import is_secure_boot
from virtpass.host.facts import HostFacts
from virtpass.host.forms import LineTokens, MarkedBlock, OwnFile
from virtpass.host.loaders import hidden_menu, sd_boot, sd_boot_once
from virtpass.host.loaders.marks import without_ours
from virtpass.host.loaders.uki_image import read_command_line
from virtpass.host.presets import read_presets
from virtpass.system.errors import FailedError, RefusedError
from virtpass.transaction.plan import Command

CMDLINE = "/etc/kernel/cmdline"
_VENDOR_CMDLINE = "/usr/lib/kernel/cmdline"
_FOLDER = "/etc/cmdline.d"
DROP_IN = f"{_FOLDER}/zz-virtpass.conf"
# What the fallback image has in place of all these.
SAFE_LINE = "/etc/virtpass/fallback-cmdline"
_PROGRAM = "/usr/bin/mkinitcpio"
_POST_HOOKS = ("/usr/lib/initcpio/post", "/etc/initcpio/post")
_DEADLINE = 3600.0


@dataclass(frozen=True, slots=True)
class _Image:
    """One image that a preset names."""

    path: str
    preset: str
    variant: str
    # Options of its own with which mkinitcpio is run.
    options: str

    @property
    def is_fallback(self) -> bool:
        return self.variant == "fallback"

    @property
    def has_own_line(self) -> bool:
        """Whether its kernel arguments come from a file that is not ours and not the usual one."""
        # Ours stands last, and is not there yet when a fallback image has its own.
        options = self.options.replace(f"--cmdline {SAFE_LINE}", "")
        return "--cmdline" in options or "--no-cmdline" in options


class Uki:
    """Unified kernel images that the presets of mkinitcpio name."""

    name = "uki"
    title = "unified kernel images by mkinitcpio"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See presets that name unified kernel images, of which one is there."""
        found = [image for image in _images(facts) if facts.has(image.path)]
        if not found or not facts.has(_PROGRAM):
            return None
        # The loader may be systemd-boot or the firmware itself; the stub in the image tells of itself.
        booted_by = sd_boot_once.LOADER if sd_boot.program(facts) and facts.stub else ""
        return Evidence(f"{found[0].preset} names {found[0].path}", booted_by, ("loader-entries",))

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add a drop-in and build the images anew; the fallback image gets a line of its own."""
        if not request.arguments:
            return BootPlan()
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "the kernel arguments are built into the unified kernel image, so there is nothing that "
                "could have others once",
                "apply without --trial",
            )
        images = _images(facts)
        _refuse_own_lines(images)
        base = _base(facts, request)
        edits = [_arguments(facts, request)]
        notes = []
        safe = [one for one in images if one.is_fallback and not one.has_own_line and "(" not in one.options]
        if request.with_fallback and safe:
            reason = "keeps a way back on the boot menu"
            edits.append(Edit(SAFE_LINE, OwnFile(" ".join((*base, OFF)) + "\n"), reason))
            block = MarkedBlock(fallback_text())
            edits += [Edit(path, block, reason) for path in dict.fromkeys(one.preset for one in safe)]
        elif request.with_fallback:
            text = (
                "no preset has a fallback image for a line of its own, and the arguments are built into all "
                "others, so there is no entry without them: have a rescue medium at hand"
            )
            notes.append(Note("no-fallback", text, Severity.WARNING))
        if is_secure_boot(facts.host):
            if not _are_signed(facts):
                raise RefusedError(
                    "secure-boot",
                    "Secure Boot is on, and nothing here signs images that are built anew: none would boot",
                    "set up sbctl, or a key in /etc/kernel/uki.conf, or switch Secure Boot off",
                )
            text = (
                "Secure Boot is on: images that are built anew must be signed anew, which the hook of sbctl "
                "does; look at sbctl verify before the reboot"
            )
            notes.append(Note("secure-boot", text, Severity.WARNING))
        build = Command(
            ("mkinitcpio", "-P"),
            "builds the unified kernel images anew",
            f"up to a minute for each of {len(images)} images",
            _DEADLINE,
            tuple(dict.fromkeys(image.path for image in images)),
        )
        has_safe = request.with_fallback and bool(safe)
        if has_safe and sd_boot.program(facts):
            notes += hidden_menu.of_systemd_boot(facts)
        return BootPlan(
            tuple(edits),
            (build,),
            tuple(notes),
            _title(facts, safe[0]) if has_safe else "",
            builds_initramfs=True,
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Read the kernel arguments in the images that are there."""
        found = []
        for image in _images(facts):
            if not facts.has(image.path):
                continue
            line = read_command_line(facts.host, image.path)
            if line is None:
                raise FailedError(
                    "uki", f"{image.path} cannot be read as a unified kernel image", "run it as root"
                )
            name = image.path.rpartition("/")[2]
            found.append(BootEntry(_title(facts, image), name, image.path, line, _role(image, line)))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""


def fallback_text() -> str:
    """Render the lines of a preset that give the fallback image a command line of its own.

    mkinitcpio takes the options of all for a variant without options: they are kept.
    """
    return (
        'fallback_options="${fallback_options:-${ALL_options-}}"\n'
        f'fallback_options="${{fallback_options:+$fallback_options }}--cmdline {SAFE_LINE}"\n'
    )


def _are_signed(facts: HostFacts) -> bool:
    """Tell whether something signs images after they were built."""
    hooks = [name for folder in _POST_HOOKS for name in facts.host.names(folder)]
    return bool(hooks) or "SecureBootPrivateKey=" in facts.text("/etc/kernel/uki.conf")


def _images(facts: HostFacts) -> list[_Image]:
    found = []
    for preset in read_presets(facts):
        for variant in preset.variants:
            if not (path := preset.uki(variant)).startswith("/"):
                continue
            options = preset.value(variant, "options")
            own = "--cmdline" if preset.value(variant, "cmdline") else ""
            found.append(_Image(path, preset.path, variant, f"{options} {own}".strip()))
    return found


def _refuse_own_lines(images: list[_Image]) -> None:
    """Refuse presets that do not read the usual files.

    Raises:
        RefusedError: a preset names another file for the kernel arguments.
    """
    for image in images:
        if image.has_own_line and not image.is_fallback:
            raise RefusedError(
                "preset-cmdline",
                f"{image.preset} names a file of its own for the kernel arguments of {image.path}",
                f"let it use {CMDLINE}, or add the arguments to that file by hand and run mkinitcpio -P",
            )


def _drop_ins(facts: HostFacts) -> list[str]:
    """Return the drop-ins that are not ours."""
    names = [name for name in facts.host.names(_FOLDER) if name.endswith(".conf")]
    return [path for name in names if (path := f"{_FOLDER}/{name}") != DROP_IN]


def _main(facts: HostFacts) -> str:
    """Return the file of the command line itself; empty when there is none."""
    return next((path for path in (CMDLINE, _VENDOR_CMDLINE) if facts.has(path)), "")


def _base(facts: HostFacts, request: BootRequest) -> tuple[str, ...]:
    """Return the command line of the images without our arguments.

    Raises:
        RefusedError: it would not name the root file system.
    """
    sources = [*([main] if (main := _main(facts)) else []), *_drop_ins(facts)]
    if sources:
        found = tuple(word for path in sources for word in _words(facts, path))
        where = ", ".join(sources)
    else:
        found = _running(facts)
        where = "the running command line, from which a new file would be made,"
    # Without root= systemd may find the root file system by its type, if it has found it so before.
    is_named_now = any(tokens.key(one) == "root" for one in facts.running)
    if not any(tokens.key(one) == "root" for one in found) and (is_named_now or not sources):
        raise RefusedError(
            "no-root",
            f"{where} has no root=, so an image that is built anew would not boot",
            f"write the whole command line with root= into {CMDLINE} first",
        )
    return without_ours(found, request)


def _words(facts: HostFacts, path: str) -> tuple[str, ...]:
    lines = [line for line in facts.text(path).splitlines() if not line.lstrip().startswith("#")]
    return tokens.split(" ".join(lines))


def _running(facts: HostFacts) -> tuple[str, ...]:
    return tuple(one for one in tokens.lasting(facts.running) if tokens.key(one) != "virtpass")


def _arguments(facts: HostFacts, request: BootRequest) -> Edit:
    # Which file it is must not depend on what we have written before.
    reason = "gives the kernel arguments to mkinitcpio"
    if _drop_ins(facts):
        return Edit(DROP_IN, OwnFile(" ".join(request.arguments) + "\n"), reason)
    main = _main(facts)
    line = without_ours(_words(facts, main) if main else _running(facts), request)
    return Edit(CMDLINE, LineTokens(request.arguments, " ".join(line)), reason)


def _title(facts: HostFacts, image: _Image) -> str:
    """Return what systemd-boot shows for an image: images of one name are told apart by their files."""
    return f"{facts.distribution_name} ({image.path.rpartition('/')[2]})"


def _role(image: _Image, line: tuple[str, ...]) -> Role:
    if any(tokens.same(one, OFF) for one in line):
        return Role.FALLBACK
    return Role.RECOVERY if image.is_fallback else Role.NORMAL
