"""systemd-boot with sdboot-manage: Manjaro and CachyOS.

The tool is a bash script that sources /etc/sdboot-manage.conf, so a block at its end is read whatever
quotes and comments stand before it. By default it removes every entry before it writes its own: an entry
of ours would go at the next update of a kernel. So the way back is the tool's own fallback entry, which
has options of its own.
"""

import re

from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MarkedBlock
from virtpass.host.loaders import hidden_menu, sd_boot, sd_boot_once
from virtpass.host.loaders.bls import BlsEntry, list_entries
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CONFIG = "/etc/sdboot-manage.conf"
_PROGRAM = "sdboot-manage"
_FALLBACK = "-fallback"
_DEADLINE = 600.0


class SdbootManage:
    """systemd-boot whose entries sdboot-manage writes."""

    name = "sdboot-manage"
    title = "systemd-boot with sdboot-manage"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the tool, its settings, and entries of systemd-boot."""
        text = sd_boot.evidence(facts)
        if not text or not facts.has(CONFIG) or not facts.has_program(_PROGRAM):
            return None
        return Evidence(f"{CONFIG} exists; {text}", sd_boot_once.LOADER, ("systemd-boot", "loader-entries"))

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to LINUX_OPTIONS and mark the fallback entries; a trial has an entry of its own."""
        if not request.arguments:
            return BootPlan()
        directory = sd_boot.entries_directory(facts)
        normal = sd_boot.normal_entries(facts, directory, _judge)
        if request.is_trial:
            sd_boot_once.refuse_unforgetting(facts)
            return sd_boot.own_entry(facts, directory, request, normal)
        self._refuse_losing(facts, directory)
        fallback = self._fallback(facts, directory) if request.with_fallback else None
        notes = []
        if request.with_fallback and fallback is None:
            text = "sdboot-manage writes no fallback entry here, and removes entries that others add"
            notes.append(Note("no-fallback", text, Severity.WARNING))
        if fallback is not None:
            notes += hidden_menu.of_systemd_boot(facts)
        reason = "gives the kernel arguments to sdboot-manage"
        text = config_text(request.arguments, has_fallback=fallback is not None)
        refresh = Command(
            (_PROGRAM, "gen"),
            "writes the boot entries anew",
            "",
            _DEADLINE,
            (f"{directory}/*.conf", f"{directory.removesuffix('/entries')}/loader.conf"),
        )
        return BootPlan(
            (Edit(CONFIG, MarkedBlock(text), reason),),
            (refresh,),
            tuple(notes),
            f"{fallback.title} (fallback)" if fallback is not None else "",
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries on the EFI system partition."""
        return sd_boot.menu(facts, sd_boot.entries_directory(facts), _judge)

    def chosen(self, facts: HostFacts) -> str | None:
        """Read the EFI variable that systemd-boot removes when it reads it."""
        return sd_boot_once.chosen(facts)

    def _fallback(self, facts: HostFacts, directory: str) -> BlsEntry | None:
        """Return a fallback entry that the tool has written, and whose files are there."""
        root = directory.removesuffix("/loader/entries")
        for entry in sd_boot.linux_entries(facts, directory):
            if entry.name.endswith(_FALLBACK) and all(
                facts.has(root + path) for path in (entry.value("linux"), *entry.values("initrd"))
            ):
                return entry
        return None

    def _refuse_losing(self, facts: HostFacts, directory: str) -> None:
        """Refuse when the tool would remove what it does not write, or not write what is there.

        Raises:
            RefusedError: the entries would not be those that are there, with our arguments.
        """
        text = facts.text(CONFIG)
        removes = _setting(text, "REMOVE_EXISTING", "yes") == "yes"
        if not removes and _setting(text, "OVERWRITE_EXISTING", "no") != "yes":
            raise RefusedError(
                "entries-kept",
                f"{CONFIG} says that entries which exist are not written anew",
                'set OVERWRITE_EXISTING="yes" there first',
            )
        if not removes or _setting(text, "PRESERVE_FOREIGN", "no") == "yes":
            return
        foreign = [
            one.path
            for one in list_entries(facts.host, directory)
            if not one.value("linux").rpartition("/")[2].startswith("vmlinuz-")
        ]
        if foreign:
            raise RefusedError(
                "foreign-entries",
                f"sdboot-manage would remove entries that it did not write: {', '.join(foreign)}",
                f'set PRESERVE_FOREIGN="yes" in {CONFIG} first',
            )


def config_text(arguments: tuple[str, ...], *, has_fallback: bool) -> str:
    """Render the lines of shell that add the arguments."""
    text = _appended("LINUX_OPTIONS", " ".join(arguments))
    return text + _appended("LINUX_FALLBACK_OPTIONS", OFF) if has_fallback else text


def _appended(name: str, words: str) -> str:
    return f'{name}="${{{name}:+${name} }}{words}"\n'


def _setting(text: str, name: str, default: str) -> str:
    """Return what a plain assignment says, in lower case; the last one counts."""
    found = re.findall(rf"^[ \t]*(?:export[ \t]+)?{name}=[\"']?([A-Za-z]*)", text, re.MULTILINE)
    return found[-1].lower() if found else default


def _judge(entry: BlsEntry) -> Role:
    return Role.RECOVERY if entry.name.endswith(_FALLBACK) else Role.NORMAL
