"""Systems from images, deployed by OSTree: Silverblue, Kinoite, Bazzite, Fedora CoreOS, bootc.

rpm-ostree keeps the kernel arguments with each deployment. A change makes a new deployment, which is
*staged*: its boot entry is written at shutdown only, and until then it is described in
/run/ostree/staged-deployment. The deployment that runs stays on the boot menu as it is.

Arguments are added with ``--append``: ``--append-if-missing`` asks libostree, which looks at the key alone,
so ``video=efifb:off`` would not be added beside the user's ``video=HDMI-A-1:d``.
"""

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Note, Role, Severity
from virtpass.host.facts import HostFacts
from virtpass.host.loaders import bls, gvariant
from virtpass.host.versions import version_key
from virtpass.system.errors import FailedError, RefusedError
from virtpass.transaction.plan import Command

ENTRIES = "/boot/loader/entries"
STAGED = "/run/ostree/staged-deployment"
_BOOTED = "/run/ostree-booted"
_DEADLINE = 1800.0


class Ostree:
    """Deployments of OSTree whose arguments rpm-ostree keeps."""

    name = "rpm-ostree"
    title = "rpm-ostree"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See that OSTree booted this system; whatever loader it uses, OSTree writes the entries."""
        if not facts.has(_BOOTED):
            return None
        return Evidence(
            f"{_BOOTED} exists", "", ("grub", "grub-bls", "sdbootutil", "systemd-boot", "loader-entries")
        )

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Have one new deployment made with what the next one to boot lacks."""
        if not request.arguments:
            return BootPlan()
        if not facts.has_program("rpm-ostree"):
            lines = ", ".join(f'"{argument}"' for argument in request.arguments)
            raise RefusedError(
                "bootc",
                "this system comes from an image, and rpm-ostree, which could change its kernel arguments, "
                "is not there",
                f"build them into the image: kargs = [{lines}] in /usr/lib/bootc/kargs.d/50-virtpass.toml",
            )
        if request.is_trial:
            raise RefusedError(
                "no-trial",
                "a deployment of OSTree cannot be booted just once",
                "apply without --trial; the deployment that runs now stays on the boot menu",
            )
        notes = []
        if request.with_fallback:
            text = (
                "OSTree writes the boot menu, so no entry of virtpass can be added; the deployment that runs "
                "now stays there without the arguments until updates push it out "
                "('ostree admin pin booted' keeps it)"
            )
            notes.append(Note("no-fallback", text, Severity.WARNING))
        next_boot = self.entries(facts)
        present = next_boot[0].tokens if next_boot else ()
        return BootPlan((), (self._append(request.arguments, present),), tuple(notes))

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Return the deployments, the next one to boot first; it is the one that counts."""
        found = []
        if facts.has(STAGED):
            arguments = self._staged(facts)
            found.append(BootEntry("the staged deployment", "", STAGED, arguments))
        # OSTree numbers its entries, and the highest number is the first of the menu.
        written = [one for one in bls.list_entries(facts.host, ENTRIES) if one.is_linux]
        own = [one for one in written if any(tokens.key(token) == "ostree" for token in one.options)]
        for entry in sorted(own, key=lambda one: version_key(one.value("version")), reverse=True):
            # Older deployments are ways back, and keep the arguments that they had.
            role = Role.RECOVERY if found else Role.NORMAL
            found.append(BootEntry(entry.title, entry.name, entry.path, entry.options, role))
        return found

    def chosen(self, facts: HostFacts) -> str | None:
        """Know of no such choice."""
        return ""

    def _append(self, arguments: tuple[str, ...], present: tuple[str, ...]) -> Command:
        kargs = ("rpm-ostree", "kargs")
        # "If missing" looks at what stands before the "=" alone: it would leave out a second video= of ours.
        # But wherever it can be said, running the command twice is like running it once.
        keys = {tokens.key(token) for token in tokens.without(present, arguments)}
        keys |= {key for key in map(tokens.key, arguments) if [*map(tokens.key, arguments)].count(key) > 1}
        append = [
            f"--append={one}" if tokens.key(one) in keys else f"--append-if-missing={one}"
            for one in arguments
        ]
        return Command(
            (*kargs, *append),
            "makes a deployment with the kernel arguments, for the next boot",
            "up to a few minutes",
            _DEADLINE,
            revert=(*kargs, *(f"--delete-if-present={one}" for one in arguments)),
        )

    def _staged(self, facts: HostFacts) -> tuple[str, ...]:
        content = facts.host.read_bytes(STAGED)
        try:
            found = gvariant.strings(content or b"", "kargs")
        except ValueError:
            found = None
        if found is None:
            raise FailedError(
                "staged-deployment",
                f"the kernel arguments in {STAGED} cannot be read",
                "reboot into the staged deployment first, or drop it with: rpm-ostree cleanup --pending",
            )
        return found
