"""rEFInd, which starts kernels directly with the lines of refind_linux.conf beside them."""

import re

from virtpass.host import tokens
from virtpass.host.boot import OFF, BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit
from virtpass.host.efi import PARTITIONS
from virtpass.host.facts import HostFacts
from virtpass.host.forms import MenuLines
from virtpass.host.loaders.grub_cfg import role
from virtpass.system.errors import FailedError, RefusedError

_FILE = "/boot/refind_linux.conf"
_CONFIGS = tuple(f"{esp}/EFI/{folder}/refind.conf" for esp in PARTITIONS for folder in ("refind", "BOOT"))
# "title" "options"; lines of comments begin with a hash mark.
_LINE = r'[ \t]*"[^"]*"[ \t]+"(?P<options>[^"]*)"(?!")'
_ENTRY = re.compile(r'[ \t]*"(?P<title>[^"]*)"[ \t]+"(?P<options>[^"]*)"(?!")')
_STANZA = re.compile(r"^[ \t]*menuentry\b[^{]*\{(?P<body>[^}]*)\}", re.MULTILINE)
_SAFE_TITLE = "Without passthrough"


class Refind:
    """rEFInd with refind_linux.conf."""

    name = "refind"
    title = "rEFInd"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the file; rEFInd says nothing of itself in LoaderInfo."""
        return Evidence(f"{_FILE} exists") if facts.has(_FILE) and not facts.loader else None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to the first line, which is booted unless another is chosen; the others are ways back."""
        if not request.arguments:
            return BootPlan()
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "rEFInd cannot boot an entry exactly once",
                "apply without --trial; the other lines of its menu are the way back",
            )
        entry = f'"{_SAFE_TITLE}" "{{options}} {OFF}"' if request.with_fallback else ""
        form = MenuLines(_LINE, "", "first", request.arguments, entry)
        edit = Edit(_FILE, form, "gives the kernel arguments to rEFInd")
        return BootPlan(
            (edit,), notes=tuple(self._notes(facts)), fallback=_SAFE_TITLE if request.with_fallback else ""
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the lines."""
        content = facts.host.read_bytes(_FILE)
        if content is None:
            raise FailedError("refind", f"{_FILE} cannot be read", "run it as root")
        return parse_lines(content.decode("utf-8", "surrogateescape"), _FILE)

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""

    def _notes(self, facts: HostFacts) -> list[Note]:
        for path in _CONFIGS:
            for stanza in _STANZA.finditer(facts.text(path)):
                words = stanza["body"].split()
                if "disabled" not in words and "options" in words and "vmlinu" in stanza["body"]:
                    text = f"{path} has entries of its own for kernels, which are left as they are"
                    return [Note("refind-entries", text, Severity.WARNING)]
        return []


def parse_lines(text: str, path: str) -> list[BootEntry]:
    """Return the lines of refind_linux.conf as entries: the first is what is booted, the others are choices.

    Args:
        text: the file.
        path: where it stands.
    """
    found: list[BootEntry] = []
    for line in text.split("\n"):
        if match := _ENTRY.match(line):
            arguments = tokens.split(match["options"])
            kind = role(arguments)
            if kind is Role.NORMAL and found:
                kind = Role.RECOVERY
            # Without any rEFInd looks for one by itself.
            initrds = tuple(token[7:] for token in arguments if token.startswith("initrd=")) or None
            found.append(BootEntry(match["title"], "", path, arguments, kind, initrds))
    return found
