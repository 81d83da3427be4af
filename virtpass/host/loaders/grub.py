"""GRUB whose menu grub-mkconfig writes: Debian, Ubuntu, Proxmox VE, Arch and its family, openSUSE, Void."""

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
from virtpass.host.loaders.grub_cfg import GENERATED, OURS, parse_entries
from virtpass.host.loaders.grubenv import refuse_unforgetting
from virtpass.host.mounts import mount_of
from virtpass.system.commands import output_of
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.transaction.plan import Command

DEFAULTS = "/etc/default/grub"
_DROP_INS = "/etc/default/grub.d"
# Read in the order of their names, and others assign what we add to.
DROP_IN = f"{_DROP_INS}/zz-virtpass.cfg"
# After all others, so that no number in GRUB_DEFAULT comes to mean another entry.
SCRIPT = "/etc/grub.d/99_virtpass"
_LINUX_SCRIPT = "/etc/grub.d/10_linux"
# Ubuntu's, which does the work of 10_linux where the root file system is ZFS.
_ZFS_SCRIPT = "/etc/grub.d/10_linux_zfs"
_CONFIGS = ("/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")
_GENERATORS = ("grub-mkconfig", "grub2-mkconfig")
_FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
_SAFE_TITLE = "Without passthrough: "
_TRIAL_TITLE = "Trial of passthrough: "
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
        edits = [self._defaults(facts, request)]
        notes = []
        missing = self._why_no_entry(facts)
        if request.is_trial:
            if missing:
                raise RefusedError("no-trial", f"{missing}, so GRUB cannot get an entry for a trial")
            refuse_unforgetting(facts, config)
            edits.append(Edit(SCRIPT, OwnFile(script_text(request)), "adds the entry of the trial", 0o755))
        elif request.with_fallback and missing:
            text = f"{missing}, so no entry without these arguments can be added"
            notes.append(Note("no-fallback", text, Severity.WARNING))
        elif request.with_fallback:
            reason = "keeps a way back on the boot menu"
            edits.append(Edit(SCRIPT, OwnFile(script_text(request)), reason, 0o755))
        title = self._first_title(facts)
        return BootPlan(
            tuple(edits),
            (self._refresh(facts, config),),
            tuple(notes),
            fallback=_SAFE_TITLE + title
            if request.with_fallback and not missing and not request.is_trial
            else "",
            tried=_TRIAL_TITLE + title if request.is_trial else "",
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the generated menu."""
        config = self._config(facts)
        content = facts.host.read_bytes(config, _MAX_CONFIG)
        if content is None:
            raise FailedError("grub-cfg", f"{config} cannot be read", "run it as root")
        return parse_entries(content.decode("utf-8", "surrogateescape"), config)

    def one_shot(self, facts: HostFacts, entry: BootEntry) -> Command | None:
        """Write the choice into GRUB's environment block, which the menu empties when it reads it."""
        prefix = "grub2" if facts.has_program("grub2-reboot") else "grub"
        environment = self._config(facts).removesuffix("grub.cfg") + "grubenv"
        return Command(
            (f"{prefix}-reboot", entry.identifier),
            "boots the trial once",
            outputs=(environment,),
            revert=(f"{prefix}-editenv", environment, "unset", "next_entry"),
        )

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
        paths = [DEFAULTS]
        if self._has_drop_ins(facts):
            names = facts.host.names(_DROP_INS)
            paths += [f"{_DROP_INS}/{name}" for name in names if name.endswith(".cfg")]
        for path in paths:
            # Whoever may not read a file does not learn of its mistakes, and may not apply the plan either.
            if facts.host.read_bytes(path) is None:
                continue
            # By the shell of this machine, which is as good as that of a host below another root.
            checked = output_of(Host(), ("sh", "-n", facts.host.path(path)), _SYNTAX_DEADLINE)
            if checked is None:
                raise RefusedError(
                    "grub-syntax",
                    f"{path} cannot be parsed by a shell, so grub-mkconfig fails with it",
                    f"see what is wrong with: sh -n {path}",
                )

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

    def _first_title(self, facts: HostFacts) -> str:
        """Return the title of the distribution's first entry, or how the distribution is called."""
        try:
            found = [entry for entry in self.entries(facts) if entry.role is Role.NORMAL]
        except FailedError:
            found = []
        return found[0].title if found else facts.distribution_name


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
        title, added = _TRIAL_TITLE, " ".join((*request.arguments, TRIAL))
    else:
        title, added = _SAFE_TITLE, OFF
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
