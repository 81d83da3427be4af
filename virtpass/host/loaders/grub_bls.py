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
all entries anew (``--update-bls-cmdline``; on Fedora always). That concerns the entries whose names begin
with the id of the machine, so ours do not. The entry of the rescue kernel stays as it is where it has
arguments of its own.

Nothing in an entry of ours is indented: the GRUB of this family frees a line where it ends up after blanks,
not where it began, and stops at that (fatal: unaligned pointer).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Role
from virtpass.host.edits import Edit, Written, digest
from virtpass.host.facts import HostFacts
from virtpass.host.forms import EntryOptions, EnvironmentTokens, LineTokens, MarkedBlock, VariableTokens
from virtpass.host.loaders import bls, grub_defaults, grubenv
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.extra_entry import is_apart, is_dead, made, of_one_kernel, own_entry, role
from virtpass.host.loaders.grub_defaults import DEFAULTS
from virtpass.host.loaders.hidden_menu import of_grub
from virtpass.host.loaders.marks import without_ours
from virtpass.host.loaders.roots import starts_this_root
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.files import read_state

ENTRIES = "/boot/loader/entries"
CMDLINE = "/etc/kernel/cmdline"
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
        edits = [] if request.is_trial else self._edits(facts, normal, original, request.arguments)
        own = own_entry(request, normal, normal, original, machine=_machine(facts))
        notes = own.notes
        once = None
        if request.is_trial:
            entry = made(own.edits[0])
            once = grubenv.choice(facts, entry.name, facts.host.real_path(_ENVIRONMENT))
        elif own.fallback:
            settings = grub_defaults.settings(facts, (DEFAULTS,))
            hidden = of_grub(settings, self._environment(facts))
            notes = (*notes, of_one_kernel(made(own.edits[0])), *hidden)
        return replace(own, edits=(*edits, *own.edits), notes=notes, choice=once)

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries in the order of the menu, GRUB's variables replaced."""
        environment = self._environment(facts)
        found = []
        for entry in bls.in_menu_order(self._own(facts, _listed(facts))):
            options = _replaced(entry.options, environment)
            kind = role(entry, options)
            # The path of the kernel begins at the boot partition if there is one.
            if not is_dead(facts, entry, "", "/boot"):
                found.append(BootEntry(entry.title, entry.name, entry.path, options, kind, entry.initrds))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Read GRUB's environment block."""
        return grubenv.chosen(facts, facts.host.real_path(_ENVIRONMENT))

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
        machine = _machine(facts)
        environment = self._environment(facts)
        return [
            entry
            for entry in entries
            if entry.is_linux
            and (
                (machine and (entry.name.startswith(f"{machine}-") or is_apart(entry, machine)))
                or starts_this_root(_replaced(entry.options, environment), facts)
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


def _machine(facts: HostFacts) -> str:
    return facts.text("/etc/machine-id").strip()


def _wants_entries(facts: HostFacts) -> bool:
    """Tell whether the defaults switch the entries on."""
    return grub_defaults.settings(facts, (DEFAULTS,)).get("GRUB_ENABLE_BLSCFG") == "true"


def _replaced(options: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Replace variables as GRUB does; those that are not set leave nothing."""
    found: list[str] = []
    for token in options:
        if token.startswith("$"):
            found += tokens.split(environment.get(token[1:], ""))
        else:
            found.append(token)
    return tuple(found)
