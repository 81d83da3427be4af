"""Limine: CachyOS and Omarchy, whose limine-entry-tool writes the menu, and menus that are kept by hand."""

import re
from dataclasses import dataclass, field

from virtpass.host import tokens
from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.early import HEAD
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MarkedBlock, MenuLines, OwnFile
from virtpass.host.loaders.grub_cfg import role
from virtpass.host.loaders.marks import without_ours
from virtpass.host.loaders.roots import refuse_mixed, root_token, starts_this_root, the_one
from virtpass.system.errors import FailedError, RefusedError
from virtpass.transaction.plan import Command

# Read in this order: vendor's directory, /etc/limine-entry-tool.conf, the drop-ins, and these last.
_VENDOR = "/usr/share/limine-entry-tool.d"
_CONFIG = "/etc/limine-entry-tool.conf"
_DROP_INS = "/etc/limine-entry-tool.d"
DROP_IN = f"{_DROP_INS}/zz-virtpass.conf"
DEFAULTS = "/etc/default/limine"
_TOOLS = ("limine-update", "limine-mkinitcpio")
_MENUS = tuple(
    f"{partition}{folder}/limine.conf"
    for partition in PARTITIONS
    for folder in ("", "/limine", "/EFI/limine", "/EFI/BOOT")
)
# An assignment, not an addition, throws away what was read before it.
_ASSIGNED = re.compile(r"^[ \t]*KERNEL_CMDLINE\[\"?default\"?\]=", re.MULTILINE)
_DEFAULT = re.compile(r"^[ \t]*KERNEL_CMDLINE\[\"?default\"?\](\+?)=(.*)$", re.MULTILINE)
_PER_KERNEL = re.compile(r"^[ \t]*KERNEL_CMDLINE\[(?!\"?default\"?\])", re.MULTILINE)
_CMDLINE = r"(?i)[ \t]*(?:kernel_)?cmdline:[ \t]*(?P<options>.*?)[ \t\r]*$"
_SAFE_TITLE = "Without passthrough"
_DEADLINE = 1800.0
_ENROLLED = b"++CONFIG_B2SUM_SIGNATURE++"
_HASH = 128
_MAX_PROGRAM = 8 << 20


@dataclass(slots=True)
class _Entry:
    """One entry of a menu: its titles from the outermost, and its options in their order."""

    titles: tuple[str, ...]
    options: list[tuple[str, str]] = field(default_factory=list)

    def value(self, *names: str) -> str:
        return next((value for name, value in self.options if name.lower() in names), "")


class Limine:
    """Limine."""

    name = "limine"
    title = "Limine"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See a menu."""
        menu = self._menu(facts)
        return Evidence(f"{menu} exists", "limine") if menu else None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to the default command line of limine-entry-tool, or to the lines of a kept menu."""
        tool = next((name for name in _TOOLS if facts.has_program(name)), "")
        # It may build every initramfs too, and keeps copies of kernels: what it writes is not known.
        refresh = Command((tool,), "writes the boot menu anew", "up to some minutes", _DEADLINE)
        if not request.arguments:
            return BootPlan((), (refresh,)) if tool and request.rebuilds_initramfs else BootPlan()
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "Limine cannot boot an entry exactly once",
                "apply without --trial; the boot menu can edit an entry before it is booted (key E)",
            )
        return self._plan_generated(facts, request, refresh) if tool else self._plan_kept(facts, request)

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the menu."""
        menu = self._menu(facts)
        found = []
        for entry in self._entries(facts):
            arguments = tokens.split(entry.value("cmdline", "kernel_cmdline"))
            is_snapshot = any("snapshot" in title.lower() for title in entry.titles)
            if not starts_this_root(arguments, facts) or is_snapshot:
                continue
            kind = role(arguments)
            if kind is Role.NORMAL and "fallback" in entry.titles[-1].lower():
                kind = Role.RECOVERY
            initrds = tuple(value for name, value in entry.options if name.lower() == "module_path")
            title, place = entry.titles[-1], "/".join(entry.titles)
            found.append(BootEntry(title, place, menu, arguments, kind, initrds))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""

    def _plan_generated(self, facts: HostFacts, request: BootRequest, refresh: Command) -> BootPlan:
        normal = [entry for entry in self.entries(facts) if entry.role is Role.NORMAL]
        if not normal:
            raise RefusedError(
                "no-entries",
                f"{self._menu(facts)} has no entry with kernel arguments to read (unified kernel images?)",
                f"add by hand: {' '.join(request.arguments)}",
            )
        for path in _settings(facts):
            if _PER_KERNEL.search(facts.text(path)):
                raise RefusedError(
                    "limine-per-kernel",
                    f"{path} gives a kernel a command line of its own, which the common one does not reach",
                    f"add there by hand: {' '.join(request.arguments)}",
                )
        _refuse_losing(facts, without_ours(normal[0].tokens, request))
        # Blanks at both ends: others may be added before and after.
        text = f'KERNEL_CMDLINE[default]+=" {" ".join(request.arguments)} "\n'
        reason = "gives the kernel arguments to Limine"
        if _ASSIGNED.search(facts.text(DEFAULTS)):
            edit = Edit(DEFAULTS, MarkedBlock(text), reason)
        else:
            edit = Edit(DROP_IN, OwnFile(HEAD + text), reason)
        notes = []
        if request.with_fallback:
            reason = "limine-entry-tool owns the boot menu, so no entry without these arguments is added"
            notes.append(Note("no-fallback", reason, Severity.WARNING))
        return BootPlan((edit,), (refresh,), tuple(notes))

    def _plan_kept(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        menu = self._menu(facts)
        entry = ""
        notes = []
        first = self._first(facts)
        if request.with_fallback and first is not None:
            lines = [f"/{_SAFE_TITLE}"]
            for name, value in first.options:
                is_line = name.lower() in ("cmdline", "kernel_cmdline")
                lines.append(f"    {name}: " + (f"{{options}} {OFF}" if is_line else value))
            entry = "\n".join(lines) + "\n"
        elif request.with_fallback:
            text = f"{menu} has no entry that could be repeated without these arguments"
            notes.append(Note("no-fallback", text, Severity.WARNING))
        the_one(path for path in _MENUS if facts.has(path))
        found = self._entries(facts)
        refuse_mixed(facts, menu, (tokens.split(one.value("cmdline", "kernel_cmdline")) for one in found))
        _refuse_hashes(facts, menu, found)
        form = MenuLines(_CMDLINE, root_token(facts), "all", request.arguments, entry)
        edit = Edit(menu, form, "gives the kernel arguments to Limine")
        return BootPlan((edit,), (), tuple(notes), fallback=_SAFE_TITLE if entry else "")

    def _first(self, facts: HostFacts) -> _Entry | None:
        for entry in self._entries(facts):
            arguments = tokens.split(entry.value("cmdline", "kernel_cmdline"))
            if starts_this_root(arguments, facts) and role(arguments) is Role.NORMAL:
                return entry
        return None

    def _entries(self, facts: HostFacts) -> list[_Entry]:
        content = facts.host.read_bytes(self._menu(facts))
        if content is None:
            raise FailedError("limine", f"{self._menu(facts)} cannot be read", "run it as root")
        return _parse(content.decode("utf-8", "surrogateescape"))

    def _menu(self, facts: HostFacts) -> str:
        return next((path for path in _MENUS if facts.has(path)), "")


def _settings(facts: HostFacts) -> list[str]:
    """Return the files of limine-entry-tool in the order in which it reads them, without our own."""
    folders = [
        [f"{folder}/{name}" for name in facts.host.names(folder) if name.endswith(".conf")]
        for folder in (_VENDOR, _DROP_INS)
    ]
    return [path for path in (*folders[0], _CONFIG, *folders[1], DEFAULTS) if path != DROP_IN]


def _refuse_losing(facts: HostFacts, line: tuple[str, ...]) -> None:
    """Refuse settings to which nothing can be added: without any, the tool asks the command line that runs.

    Args:
        facts: the host.
        line: the kernel arguments that an entry has without us.

    Raises:
        RefusedError: the entries would lose the root file system.
    """
    text = ""
    for path in _settings(facts):
        for plus, value in _DEFAULT.findall(facts.text(path)):
            text = f"{text} {value}" if plus else value
    words = tokens.split(text.replace('"', " ").replace("'", " "))
    if any(tokens.key(one) == "root" for one in line) and not any(tokens.key(one) == "root" for one in words):
        raise RefusedError(
            "no-root",
            "limine-entry-tool takes the command line from the running kernel, and would not any more once "
            "something is added to KERNEL_CMDLINE[default]: no entry would name the root file system",
            f'write the whole line into {DEFAULTS} first: KERNEL_CMDLINE[default]="{" ".join(line)}"',
        )


def _refuse_hashes(facts: HostFacts, menu: str, entries: list[_Entry]) -> None:
    """Refuse a menu that Limine would not accept after an edit, or whose files it would not.

    Raises:
        RefusedError: the program has the hash of its menu inside, or the menu has hashes of files.
    """
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in _MENUS):
        for name in facts.host.names(folder):
            if not name.lower().endswith(".efi"):
                continue
            content = facts.host.read_bytes(f"{folder}/{name}", _MAX_PROGRAM) or b""
            _, mark, rest = content.partition(_ENROLLED)
            if mark and rest[:_HASH].strip(b"0"):
                raise RefusedError(
                    "enrolled",
                    f"{folder}/{name} accepts no other {menu} than the one it was enrolled with",
                    "add the arguments by hand, and enrol it anew",
                )
    if any("#" in value for entry in entries for name, value in entry.options if name.endswith("path")):
        raise RefusedError(
            "file-hashes",
            f"{menu} has hashes of kernels or images, which would not fit those that are built anew",
            "add the arguments by hand",
        )


def _parse(text: str) -> list[_Entry]:
    """Return the entries that start a Linux; a title has as many slashes before it as it has levels."""
    found: list[_Entry] = []
    titles: list[str] = []
    current: _Entry | None = None
    for line in text.split("\n"):
        stripped = line.strip()
        if stripped.startswith("/"):
            level = len(stripped) - len(stripped.lstrip("/"))
            titles = [*titles[: level - 1], stripped.lstrip("/").lstrip("+")]
            current = _Entry(tuple(titles))
            found.append(current)
        elif current is not None and not stripped.startswith("#"):
            name, colon, value = stripped.partition(":")
            if colon:
                current.options.append((name.strip(), value.strip()))
    return [entry for entry in found if entry.value("protocol") == "linux"]
