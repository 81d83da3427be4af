"""extlinux and syslinux: Alpine, whose update-extlinux writes the menu, and menus that are kept by hand."""

from dataclasses import dataclass

from virtpass.host import tokens
from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.early import HEAD
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MenuLines, OwnFile, VariableTokens
from virtpass.host.loaders.grub_cfg import role
from virtpass.host.loaders.marks import without_ours
from virtpass.host.loaders.roots import refuse_mixed, root_token, starts_this_root, the_one
from virtpass.system.errors import FailedError, RefusedError
from virtpass.transaction.plan import Command

SETTINGS = "/etc/update-extlinux.conf"
# update-extlinux appends the files in this directory to the menu.
FRAGMENT = "/etc/update-extlinux.d/virtpass.conf"
_MENUS = (
    "/boot/extlinux.conf",
    "/boot/extlinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/boot/syslinux.cfg",
)
_APPEND = r"(?i)[ \t]*APPEND[ \t]+(?P<options>.*?)[ \t\r]*$"
_LABEL = "virtpass"
_SAFE_TITLE = "Without passthrough"
_DEADLINE = 300.0


@dataclass(frozen=True, slots=True)
class _Label:
    """One label of a menu: its name, what the menu shows, and its other lines by keyword."""

    name: str
    title: str
    values: dict[str, str]


class Extlinux:
    """extlinux, syslinux."""

    name = "extlinux"
    title = "extlinux"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See a menu."""
        menu = self._menu(facts)
        return Evidence(f"{menu} exists") if menu and not facts.loader else None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to the options that update-extlinux gives to every kernel, or to the lines of a kept menu."""
        if not request.arguments:
            return BootPlan()
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "virtpass knows no way in which extlinux boots an entry exactly once",
                "apply without --trial; the fallback entry is the way back",
            )
        return (
            self._plan_generated(facts, request)
            if self._is_generated(facts)
            else self._plan_kept(facts, request)
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the menu."""
        menu = self._menu(facts)
        found = []
        for label in self._labels(facts):
            arguments = tokens.split(label.values.get("append", ""))
            if starts_this_root(arguments, facts):
                kind = role(arguments)
                if kind is Role.NORMAL and "fallback" in label.name.lower():
                    kind = Role.RECOVERY
                initrds = tuple(label.values.get("initrd", "").replace(",", " ").split())
                initrds += tuple(token[7:] for token in arguments if token.startswith("initrd="))
                found.append(BootEntry(label.title, label.name, menu, arguments, kind, initrds))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""

    def _plan_generated(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        menu = self._menu(facts)
        if "overwrite=1" not in facts.text(SETTINGS).split():
            raise RefusedError(
                "extlinux-overwrite",
                f"{SETTINGS} does not say overwrite=1, so update-extlinux leaves the menu alone",
                "set it, or add the arguments to the APPEND lines by hand",
            )
        form = VariableTokens("default_kernel_opts", request.arguments)
        edits = [Edit(SETTINGS, form, "gives the kernel arguments to extlinux")]
        notes: list[Note] = []
        text = self._fragment(facts, request) if request.with_fallback else ""
        if text:
            edits.append(Edit(FRAGMENT, OwnFile(text), "keeps a way back on the boot menu"))
        elif request.with_fallback:
            notes.append(_no_fallback(menu))
        refresh = Command(
            ("update-extlinux",),
            "writes the boot menu anew",
            "some seconds",
            _DEADLINE,
            (menu, f"{menu}.new", "/boot/ldlinux.*"),
        )
        return BootPlan(tuple(edits), (refresh,), tuple(notes), fallback=_SAFE_TITLE if text else "")

    def _plan_kept(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        menu = self._menu(facts)
        notes: list[Note] = []
        first = self._first(facts)
        entry = ""
        if request.with_fallback and first is not None:
            entry = _entry(first, "{options} " + OFF)
        elif request.with_fallback:
            notes.append(_no_fallback(menu))
        the_one(path for path in _MENUS if facts.has(path))
        refuse_mixed(facts, menu, (tokens.split(one.values.get("append", "")) for one in self._labels(facts)))
        form = MenuLines(_APPEND, root_token(facts), "all", request.arguments, entry)
        edit = Edit(menu, form, "gives the kernel arguments to extlinux")
        return BootPlan((edit,), (), tuple(notes), fallback=_SAFE_TITLE if entry else "")

    def _fragment(self, facts: HostFacts, request: BootRequest) -> str:
        """Return the entry without our arguments; empty when there is none to make it from."""
        first = self._first(facts)
        if first is None:
            return ""
        options = tokens.split(first.values.get("append", ""))
        original = without_ours(options, request)
        return HEAD + _entry(first, " ".join((*original, OFF)))

    def _first(self, facts: HostFacts) -> _Label | None:
        """Return the first label that starts this host's Linux in the usual way."""
        for label in self._labels(facts):
            arguments = tokens.split(label.values.get("append", ""))
            is_ours = label.name == _LABEL or not starts_this_root(arguments, facts)
            if not is_ours and role(arguments) is Role.NORMAL and _kernel(label):
                return label
        return None

    def _labels(self, facts: HostFacts) -> list[_Label]:
        content = facts.host.read_bytes(self._menu(facts))
        if content is None:
            raise FailedError("extlinux", f"{self._menu(facts)} cannot be read", "run it as root")
        return _parse(content.decode("utf-8", "surrogateescape"))

    def _menu(self, facts: HostFacts) -> str:
        return next((path for path in _MENUS if facts.has(path)), "")

    def _is_generated(self, facts: HostFacts) -> bool:
        return facts.has(SETTINGS) and facts.has_program("update-extlinux")


def _no_fallback(menu: str) -> Note:
    text = f"{menu} has no entry that could be repeated without these arguments"
    return Note("no-fallback", text, Severity.WARNING)


def _kernel(label: _Label) -> str:
    return label.values.get("linux", "") or label.values.get("kernel", "")


def _entry(like: _Label, options: str) -> str:
    """Render a label of ours that starts the same kernel."""
    lines = [f"LABEL {_LABEL}", f"  MENU LABEL {_SAFE_TITLE}", f"  LINUX {_kernel(like)}"]
    lines += [
        f"  {word.upper()} {value}" for word in ("initrd", "fdtdir") if (value := like.values.get(word))
    ]
    return "\n".join([*lines, f"  APPEND {options}"]) + "\n"


def _parse(text: str) -> list[_Label]:
    """Return the labels of a menu, in their order; keywords have no case."""
    found: list[_Label] = []
    for line in text.split("\n"):
        words = line.strip().split(None, 1)
        keyword, value = words[0].lower() if words else "", words[1].strip() if len(words) > 1 else ""
        if keyword == "label":
            found.append(_Label(value, value, {}))
        elif found and keyword == "menu":
            kind = value.split(None, 1)
            if kind and kind[0].lower() == "label" and len(kind) > 1:
                found[-1] = _Label(found[-1].name, kind[1].replace("^", ""), found[-1].values)
        elif found and keyword:
            found[-1].values[keyword] = value
    return [label for label in found if "append" in label.values]
