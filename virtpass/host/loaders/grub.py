"""GRUB whose menu grub-mkconfig writes: Debian, Ubuntu, Proxmox VE, Arch and its family, openSUSE, Void."""

from dataclasses import replace

from virtpass.host.boot import (
    OFF,
    TRIAL,
    BootEntry,
    BootPlan,
    BootRequest,
    Evidence,
    Note,
    Role,
    Severity,
)
from virtpass.host.early import HEAD
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MarkedBlock, OwnFile
from virtpass.host.loaders.extra_entry import SAFE_TITLE, TRIAL_TITLE
from virtpass.host.loaders.grub_cfg import GENERATED, OURS, SUBMENU, parse_entries
from virtpass.host.loaders.grub_defaults import DEFAULTS, DROP_IN, drop_ins, settings
from virtpass.host.loaders.grubenv import choice, chosen, refuse_unforgetting
from virtpass.host.loaders.hidden_menu import of_grub
from virtpass.host.mounts import mount_of
from virtpass.system.commands import output_of
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.transaction.plan import Command

# After all others, so that no number in GRUB_DEFAULT comes to mean another entry.
SCRIPT = "/etc/grub.d/99_virtpass"
_LINUX_SCRIPT = "/etc/grub.d/10_linux"
# Ubuntu's, which does the work of 10_linux where the root file system is ZFS.
_ZFS_SCRIPT = "/etc/grub.d/10_linux_zfs"
_CONFIGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_GENERATORS = ("grub-mkconfig", "grub2-mkconfig")
_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_DEADLINE = 900.0
_SYNTAX_DEADLINE = 10.0
# A grub.cfg of a host with hundreds of snapshots has some megabytes.
_MAX_CONFIG = 16 << 20


class Grub:
    """GRUB with /etc/default/grub."""

    name = "grub"
    title = "GRUB"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See a menu and what generates it."""
        if (config := self._config(facts)) and (generator := self._generator(facts)):
            return Evidence(f"{config} and {generator} exist", "grub")
        return None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to GRUB_CMDLINE_LINUX_DEFAULT, which recovery entries do not read."""
        if not request.arguments:
            return BootPlan()
        config = self._config(facts)
        self._refuse_by_hand(facts, config)
        self._refuse_defaults(facts)
        first = self._first(facts)
        title = first.title if first is not None else facts.distribution_name
        edits = [self._defaults(facts, request)]
        missing = self._why_no_entry(facts)
        plan = BootPlan(commands=(self._refresh(facts, config),))
        if request.is_trial:
            if missing or first is None:
                why = missing or f"no entry of the distribution is seen in {config}"
                raise RefusedError("no-trial", f"{why}, so GRUB cannot get an entry for a trial")
            refuse_unforgetting(facts, config)
            edits.append(Edit(SCRIPT, OwnFile(script_text(request)), "adds the entry of the trial", 0o755))
            once = choice(facts, OURS + first.identifier, _environment(config))
            return replace(plan, edits=tuple(edits), tried=TRIAL_TITLE + title, choice=once)
        if request.with_fallback and missing:
            text = f"{missing}, so no entry without these arguments can be added"
            plan = replace(plan, notes=(Note("no-fallback", text, Severity.WARNING),))
        elif request.with_fallback:
            reason = "keeps a way back on the boot menu"
            edits.append(Edit(SCRIPT, OwnFile(script_text(request)), reason, 0o755))
            notes = of_grub(settings(facts, self._settings_files(facts)), {})
            plan = replace(plan, notes=notes, fallback=SAFE_TITLE + title)
        return replace(plan, edits=tuple(edits))

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the generated menu."""
        config = self._config(facts)
        content = facts.host.read_bytes(config, _MAX_CONFIG)
        if content is None:
            raise FailedError("grub-cfg", f"{config} cannot be read", "run it as root")
        return parse_entries(content.decode("utf-8", "surrogateescape"), config)

    def chosen(self, facts: HostFacts) -> str | None:
        """Read GRUB's environment block."""
        config = self._config(facts)
        return chosen(facts, _environment(config)) if config else None

    def _config(self, facts: HostFacts) -> str:
        return next((path for path in _CONFIGS if facts.has(path)), "")

    def _generator(self, facts: HostFacts) -> str:
        """Return the path of the program that writes the menu, empty when there is none."""
        paths = (f"{folder}/{name}" for name in _GENERATORS for folder in _FOLDERS)
        return next((path for path in paths if facts.has(path)), "")

    def _has_drop_ins(self, facts: HostFacts) -> bool:
        """Tell whether the generator has Debian's patch: upstream knows no drop-ins."""
        return "default/grub.d" in facts.text(self._generator(facts))

    def _refuse_by_hand(self, facts: HostFacts, config: str) -> None:
        content = facts.host.read_bytes(config, _MAX_CONFIG)
        if content is not None and GENERATED not in content:
            raise RefusedError(
                "grub-by-hand",
                f"{config} was not written by grub-mkconfig, which would overwrite it",
                "add the arguments to its linux lines by hand",
            )

    def _refuse_defaults(self, facts: HostFacts) -> None:
        """Refuse settings that are not there, or that a shell cannot parse; nothing in them is run."""
        if not facts.has(DEFAULTS):
            raise RefusedError(
                "grub-defaults",
                f"{DEFAULTS} is missing, so a new boot menu would lose the settings of the present one",
                "put it back first, from a backup or from the distribution's package",
            )
        for path in self._settings_files(facts):
            # Whoever may not read a file does not learn of its mistakes, and may not apply the plan either.
            if facts.host.read_bytes(path) is None:
                continue
            # By the shell of this machine, which is as good as that of a host below another root.
            real = facts.host.path(facts.host.real_path(path))
            checked = output_of(Host(), ("sh", "-n", real), _SYNTAX_DEADLINE)
            if checked is None:
                raise RefusedError(
                    "grub-syntax",
                    f"{path} cannot be parsed by a shell, so grub-mkconfig fails with it",
                    f"see what is wrong with: sh -n {path}",
                )

    def _settings_files(self, facts: HostFacts) -> tuple[str, ...]:
        """Return the files that the generator reads, in its order."""
        return (DEFAULTS, *(drop_ins(facts) if self._has_drop_ins(facts) else ()))

    def _defaults(self, facts: HostFacts, request: BootRequest) -> Edit:
        text = defaults_text(request)
        reason = "gives the kernel arguments to GRUB"
        if self._has_drop_ins(facts):
            return Edit(DROP_IN, OwnFile(HEAD + text), reason)
        return Edit(DEFAULTS, MarkedBlock(text), reason)

    def _refresh(self, facts: HostFacts, config: str) -> Command:
        if facts.has_program("update-bootloader") and facts.is_like("suse", "opensuse"):
            argv: tuple[str, ...] = ("update-bootloader", "--refresh")
        elif facts.has_program("update-grub"):
            argv = ("update-grub",)
        else:
            argv = (self._generator(facts).rpartition("/")[2], "-o", config)
        outputs = (config, f"{config}.new")
        return Command(argv, "writes the boot menu anew", "some seconds", _DEADLINE, outputs)

    def _why_no_entry(self, facts: HostFacts) -> str:
        """Return why our script could not repeat the distribution's entries; empty when it can."""
        if not facts.has(_LINUX_SCRIPT):
            return f"{_LINUX_SCRIPT} is not there"
        root = mount_of(facts.host, "/")
        if root is not None and root.kind == "zfs" and facts.has(_ZFS_SCRIPT):
            return f"the entries come from {_ZFS_SCRIPT}"
        return ""

    def _first(self, facts: HostFacts) -> BootEntry | None:
        """Return the distribution's first entry, which has its place outside of submenus."""
        try:
            found = [entry for entry in self.entries(facts) if entry.role is Role.NORMAL]
        except FailedError:
            found = []
        return next((entry for entry in found if SUBMENU not in entry.identifier), None)


def _environment(config: str) -> str:
    """Return the environment block, which lies beside the menu."""
    return f"{config.removesuffix('grub.cfg')}grubenv"


def defaults_text(request: BootRequest) -> str:
    """Render the shell lines that add the arguments; what was there before is kept for the other entries."""
    # grub-mkconfig runs the scripts in /etc/grub.d with what is exported.
    keep = 'export GRUB_VIRTPASS_BEFORE="$GRUB_CMDLINE_LINUX_DEFAULT"\n'
    if request.is_trial:
        return keep
    value = f'"${{GRUB_CMDLINE_LINUX_DEFAULT:+$GRUB_CMDLINE_LINUX_DEFAULT }}{" ".join(request.arguments)}"'
    return f"{keep}GRUB_CMDLINE_LINUX_DEFAULT={value}\n"


def script_text(request: BootRequest) -> str:
    """Render the script that repeats the distribution's own entries with other arguments."""
    if request.is_trial:
        title, added = TRIAL_TITLE, " ".join((*request.arguments, TRIAL))
    else:
        title, added = SAFE_TITLE, OFF
    return f"""#!/bin/sh
{HEAD}set -e

# Nothing is repeated once virtpass's part of /etc/default/grub is gone.
[ "${{GRUB_VIRTPASS_BEFORE+set}}" = set ] || exit 0

# Exported one by one: what was not set before would not reach the script otherwise. None of these entries is
# ever remembered as the default (GRUB_SAVEDEFAULT).
export GRUB_CMDLINE_LINUX_DEFAULT="${{GRUB_VIRTPASS_BEFORE:+$GRUB_VIRTPASS_BEFORE }}{added}"
export GRUB_DISABLE_RECOVERY=true
export GRUB_SAVEDEFAULT=false
# What keeps us from repeating them must not keep others from writing their menu.
[ -x {_LINUX_SCRIPT} ] || exit 0
entries=$({_LINUX_SCRIPT}) || exit 0
printf '%s\\n' "$entries" | sed \\
    -e "s/^\\([[:blank:]]*\\(menuentry\\|submenu\\) '\\)/\\1{title}/" \\
    -e "s/\\(menuentry_id_option '\\)gnulinux-/\\1{OURS}gnulinux-/"
"""
