"""GRUB that reads boot loader entries: Fedora, RHEL and its family from 8 on.

The distribution's tool for the entries is grubby. virtpass edits the files itself, because grubby

* deletes every argument with the same key before it adds one (``video=``, ``console=``),
* changes what starts a kernel, be it a rescue entry or our own fallback, where ``--update-kernel`` names it,
* writes /etc/kernel/cmdline and /etc/default/grub only along with ``ALL``, and makes the former of the last
  entry of the menu when there is none,
* puts the arguments in another order when it takes some out.

An edit of ours is shown before it is made, and is taken back exactly. What kernel packages read when they
write the entry of a new kernel gets the arguments too: /etc/kernel/cmdline, or on RHEL 8 the variable
``kernelopts`` in GRUB's environment block; and /etc/default/grub, from which ``grub2-mkconfig`` can write
all entries anew. The entry of the rescue kernel stays as it is where it has arguments of its own.
"""

from collections.abc import Mapping, Sequence

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.edits import Edit, Written, digest
from virtpass.host.facts import HostFacts
from virtpass.host.forms import EntryOptions, EnvironmentTokens, LineTokens, MarkedBlock, VariableTokens
from virtpass.host.loaders import bls, grubenv
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.extra_entry import extra_entry, role, without_ours
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.files import read_state
from virtpass.transaction.plan import Command

ENTRIES = "/boot/loader/entries"
CMDLINE = "/etc/kernel/cmdline"
DEFAULTS = "/etc/default/grub"
_ENVIRONMENT = "/boot/grub2/grubenv"
_PLACE = "/boot/loader"
_CONFIG = "/boot/grub2/grub.cfg"
_EFI = "/boot/efi/EFI"
_VARIABLE = "$kernelopts"
_DEFAULTS_VARIABLE = "GRUB_CMDLINE_LINUX"


class GrubBls:
    """GRUB with boot loader entries in /boot/loader/entries."""

    name = "grub-bls"
    title = "GRUB with boot loader entries"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See entries, and a GRUB that is told to read them."""
        config = _config(facts)
        if not config and not _wants_entries(facts):
            return None
        # Only root can list the entries; for others it has to do that there is a place for them.
        names = facts.host.names(ENTRIES)
        if not any(name.endswith(bls.SUFFIX) for name in names) and (names or not facts.has(_PLACE)):
            return None
        seen = f"{config} reads" if config else f"GRUB_ENABLE_BLSCFG in {DEFAULTS} makes GRUB read"
        return Evidence(f"{seen} {ENTRIES}", "grub", ("grub",))

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to each normal entry, to what later kernels get, and an entry of our own."""
        if not request.arguments:
            return BootPlan()
        normal = self._normal(facts)
        if not normal:
            raise RefusedError(
                "no-entries",
                f"no entry in {ENTRIES} starts the system that runs",
                "look for the right root= in these files",
            )
        original = self._original(facts, normal, request)
        if request.is_trial:
            self._refuse_trial(facts)
        notes: list[Note] = []
        edits = [] if request.is_trial else self._edits(facts, normal, original, request.arguments)
        fallback = tried = ""
        if request.is_trial or request.with_fallback:
            try:
                extra = extra_entry(request, normal, normal, original)
            except RefusedError as error:
                if request.is_trial:
                    raise RefusedError("no-trial", error.what, error.remedy) from error
                notes.append(Note("no-fallback", error.what, Severity.WARNING))
            else:
                edits.append(extra.edit)
                fallback, tried = ("", extra.title) if request.is_trial else (extra.title, "")
                if fallback:
                    notes.append(_of_one_kernel(extra.edit))
        return BootPlan(tuple(edits), (), tuple(notes), fallback, tried)

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries in the order of the menu, GRUB's variables replaced."""
        environment = self._environment(facts)
        found = []
        for entry in bls.in_menu_order(self._own(facts, _listed(facts))):
            options = _replaced(entry.options, environment)
            kind = role(entry, options)
            # Ours stay when the kernel that they start is removed; then they are no way back any more.
            if kind not in (Role.FALLBACK, Role.TRIAL) or _has_kernel(facts, entry):
                found.append(BootEntry(entry.title, entry.name, entry.path, options, kind))
        return found

    def one_shot(self, facts: HostFacts, entry: BootEntry) -> Command | None:
        """Write the choice into GRUB's environment block, which the menu empties when it reads it."""
        return Command(
            ("grub2-reboot", entry.identifier),
            "boots the trial once",
            outputs=(facts.host.real_path(_ENVIRONMENT),),
            revert=("grub2-editenv", "-", "unset", "next_entry"),
        )

    def inherited(self, facts: HostFacts, recorded: Mapping[str, Written]) -> dict[str, Written]:
        """Return our arguments in the entries of kernels that came since, as if virtpass had written them.

        Args:
            facts: the host.
            recorded: what virtpass has written, by path.
        """
        source = recorded.get(CMDLINE)
        if source is None or not isinstance(source.form, LineTokens):
            return {}
        form = EntryOptions(source.form.tokens)
        found = {}
        for entry in self._normal(facts):
            if entry.path in recorded or tokens.missing(form.tokens, entry.options):
                continue
            state = read_state(facts.host, entry.path)
            before = form.remove(state.content) if state is not None else None
            if state is not None and before is not None and before != state.content:
                base = state.with_content(before)
                found[entry.path] = Written(entry.path, form, base, digest(state.content))
        return found

    def _refuse_trial(self, facts: HostFacts) -> None:
        grubenv.refuse_unforgetting(facts, facts.host.real_path(_ENVIRONMENT))
        config = _config(facts)
        if "next_entry" not in facts.text(config):
            raise RefusedError(
                "no-trial",
                f"{config or _CONFIG} does not take a choice for one boot (next_entry)",
                "apply without --trial; the fallback entry is the way back",
            )

    def _own(self, facts: HostFacts, entries: Sequence[BlsEntry]) -> list[BlsEntry]:
        """Return the entries that start a Linux of this host."""
        machine = facts.text("/etc/machine-id")
        environment = self._environment(facts)
        return [
            entry
            for entry in entries
            if entry.is_linux
            and (
                (machine and entry.name.startswith(f"{machine}-"))
                or bls.is_of_root(_replaced(entry.options, environment), facts.root_words)
            )
        ]

    def _normal(self, facts: HostFacts) -> list[BlsEntry]:
        """Return the normal entries in the order of the menu."""
        environment = self._environment(facts)
        return [
            entry
            for entry in bls.in_menu_order(self._own(facts, _listed(facts)))
            if role(entry, _replaced(entry.options, environment)) is Role.NORMAL
        ]

    def _edits(
        self,
        facts: HostFacts,
        normal: Sequence[BlsEntry],
        original: tuple[str, ...],
        arguments: tuple[str, ...],
    ) -> list[Edit]:
        reason = "gives the kernel arguments to the boot entry"
        literal = [entry for entry in normal if _VARIABLE not in entry.options]
        edits = [Edit(entry.path, EntryOptions(arguments), reason) for entry in literal]
        if len(literal) < len(normal):
            path = facts.host.real_path(_ENVIRONMENT)
            form = EnvironmentTokens(_VARIABLE.removeprefix("$"), arguments)
            edits.append(Edit(path, form, "gives the kernel arguments to the entries that refer to it"))
        # Before the command line: where that is the older one, the installation of a kernel makes
        # grub2-mkconfig write all entries anew.
        if facts.has(DEFAULTS):
            edits.append(self._defaults(facts, arguments))
        # Where entries refer to the variable, those of later kernels do too.
        if len(literal) == len(normal) or facts.has(CMDLINE):
            line = " ".join(token for token in original if not token.startswith("$"))
            edits.append(
                Edit(
                    CMDLINE,
                    LineTokens(arguments, line),
                    "gives the kernel arguments to the entries of later kernels",
                )
            )
        return edits

    def _defaults(self, facts: HostFacts, arguments: tuple[str, ...]) -> Edit:
        """Edit in place as the distribution's tools do, or append when there is no plain assignment."""
        reason = "keeps the kernel arguments when grub2-mkconfig writes the entries anew"
        in_place = VariableTokens(_DEFAULTS_VARIABLE, arguments)
        content = facts.host.read_bytes(DEFAULTS) or b""
        try:
            in_place.for_base(content)
        except RefusedError:
            name = _DEFAULTS_VARIABLE
            value = f'"${{{name}:+${name} }}{" ".join(arguments)}"'
            return Edit(DEFAULTS, MarkedBlock(f"{name}={value}\n"), reason)
        return Edit(DEFAULTS, in_place, reason)

    def _environment(self, facts: HostFacts) -> dict[str, str]:
        return grubenv.variables(facts.host.read_bytes(_ENVIRONMENT) or b"")

    def _original(
        self, facts: HostFacts, normal: Sequence[BlsEntry], request: BootRequest
    ) -> tuple[str, ...]:
        """Return the arguments of the newest entry without ours.

        The variable that our arguments go to is replaced; others stay what they are.
        """
        options = (bls.newest(normal) or normal[0]).options
        value = self._environment(facts).get(_VARIABLE.removeprefix("$"), "")
        found: list[str] = []
        for token in options:
            found += tokens.split(value) if token == _VARIABLE else (token,)
        return without_ours(found, request)


def _listed(facts: HostFacts) -> list[BlsEntry]:
    found = bls.list_entries(facts.host, ENTRIES)
    if not found:
        raise FailedError("boot-entries", f"no boot loader entry is seen in {ENTRIES}", "run it as root")
    return found


def _config(facts: HostFacts) -> str:
    """Return the configuration that has GRUB read the entries; empty when none is seen to."""
    paths = [_CONFIG, *(f"{_EFI}/{name}/grub.cfg" for name in facts.host.names(_EFI))]
    return next((path for path in paths if "blscfg" in facts.text(path)), "")


def _has_kernel(facts: HostFacts, entry: BlsEntry) -> bool:
    """Tell whether the kernel of an entry is there; its path begins at the boot partition if there is one."""
    path = entry.value("linux")
    return facts.has(path) or facts.has(f"/boot{path}")


def _of_one_kernel(edit: Edit) -> Note:
    kernel = bls.parse_entry(edit.form.add(None), edit.path).value("linux").rpartition("/")[2]
    return Note(
        "fallback-kernel",
        f"the entry without the arguments starts {kernel}, also when later kernels come; when that one is "
        "removed, run virtpass host apply again",
    )


def _wants_entries(facts: HostFacts) -> bool:
    """Tell whether the defaults switch the entries on; the last assignment counts."""
    value = ""
    for line in facts.text(DEFAULTS).splitlines():
        name, _, text = line.strip().partition("=")
        if name == "GRUB_ENABLE_BLSCFG":
            value = text.strip("\"'")
    return value == "true"


def _replaced(options: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Replace variables as GRUB does; those that are not set leave nothing."""
    found: list[str] = []
    for token in options:
        if token.startswith("$"):
            found += tokens.split(environment.get(token[1:], ""))
        else:
            found.append(token)
    return tuple(found)
