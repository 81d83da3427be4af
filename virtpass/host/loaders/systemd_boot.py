"""systemd-boot with entries that kernel-install writes: Debian, EndeavourOS, Gentoo.

kernel-install writes the whole command line of each entry from /etc/kernel/cmdline; where that is
missing, and /usr/lib/kernel/cmdline too, from the command line of the running kernel. So a file that we
make begins with the line of the newest entry, and is refused without root=. It also means that taking
such a file away while our arguments are running would bring them back: `virtpass.host.edits.compose`
leaves it, without our tokens, as long as that is so. Entries that nobody has touched since come back byte
for byte all the same: they are outputs of the commands, which the transaction keeps.

What is booted are copies: kernel-install takes kernel and initramfs along. On Debian the initramfs is
/boot/initrd.img-VERSION, and is given to kernel-install by name, as Debian's own hook does
(/etc/initramfs/post-update.d/systemd-boot): otherwise dracut's plugin would build another one, which
takes minutes, and both would be in the entry. Where there is none, kernel-install's plugins build it, and
nobody else needs to.
"""

from dataclasses import replace

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Note, Role
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import LineTokens
from virtpass.host.kernel_install import setting
from virtpass.host.loaders import sd_boot, sd_boot_once
from virtpass.host.loaders.bls import BlsEntry, newest, parse_entry, with_values
from virtpass.host.loaders.extra_entry import made, of_one_kernel
from virtpass.host.loaders.marks import without_ours
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CMDLINE = "/etc/kernel/cmdline"
_VENDOR_CMDLINE = "/usr/lib/kernel/cmdline"
_REINSTALL = "reinstall-kernels"
_IMAGES = ("/usr/lib/modules/{}/vmlinuz", "/boot/vmlinuz-{}", "/boot/vmlinux-{}")
_INITRD = "/boot/initrd.img-{}"
_COPY_DEADLINE = 600.0
# dracut takes minutes for each kernel on a slow machine.
_BUILD_DEADLINE = 3600.0


class SystemdBoot:
    """systemd-boot with kernel-install."""

    name = "systemd-boot"
    title = "systemd-boot with kernel-install"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See systemd-boot, kernel-install, and an entry in the layout of kernel-install."""
        directory = sd_boot.entries_directory(facts)
        if not facts.has_program("kernel-install") or not (text := sd_boot.evidence(facts)):
            return None
        if any(is_generated(entry) for entry in sd_boot.linux_entries(facts, directory)):
            return Evidence(f"{text}, with entries of kernel-install", sd_boot_once.LOADER)
        return None

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Write /etc/kernel/cmdline and let kernel-install make every entry anew.

        A trial changes neither; it has an entry of its own.
        """
        if not request.arguments and not request.rebuilds_initramfs:
            return BootPlan()
        if request.is_trial:
            sd_boot_once.refuse_unforgetting(facts)
        self._refuse_other_layout(facts)
        directory = sd_boot.entries_directory(facts)
        normal = sd_boot.normal_entries(facts, directory, _judge)
        model = newest(normal) or normal[0]
        line = _line(facts, model, request)
        _refuse_losing(facts, normal, line)
        is_written_anew = request.rebuilds_initramfs or not request.is_trial
        becoming = [_as_installed(facts, entry) for entry in normal] if is_written_anew else normal
        own = sd_boot.own_entry(facts, directory, request, becoming)
        arguments = () if request.is_trial else request.arguments
        edits = list(own.edits)
        if is_written_anew and (arguments or not facts.has(_VENDOR_CMDLINE)):
            reason = "gives the kernel arguments to kernel-install"
            edits.insert(0, Edit(CMDLINE, LineTokens(arguments, line), reason))
        commands = self._commands(facts, directory, normal) if is_written_anew else ()
        return replace(
            own,
            edits=tuple(edits),
            commands=commands,
            notes=(*_notes(facts, directory, own), *own.notes),
            builds_initramfs=bool(commands) and not any(_initrd(facts, one) for one in normal),
        )

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries on the EFI system partition."""
        return sd_boot.menu(facts, sd_boot.entries_directory(facts), _judge)

    def chosen(self, facts: HostFacts) -> str | None:
        """Read the EFI variable that systemd-boot removes when it reads it."""
        return sd_boot_once.chosen(facts)

    def _refuse_other_layout(self, facts: HostFacts) -> None:
        layout = setting(facts, "layout")
        if layout.value not in ("", "auto", "bls"):
            raise RefusedError(
                "install-layout",
                f"{layout.path} says {layout.line}, so kernel-install will not write the entries anew",
                f"add the arguments to {CMDLINE} by hand and run kernel-install add for each kernel",
            )

    def _commands(self, facts: HostFacts, directory: str, normal: list[BlsEntry]) -> tuple[Command, ...]:
        outputs = [_outputs(facts, directory, entry) for entry in normal]
        if facts.has_program(_REINSTALL):
            # EndeavourOS's loop over all kernels; it removes what is left of kernels that are gone.
            return (
                Command(
                    (_REINSTALL,),
                    "writes every boot entry and its initramfs anew",
                    f"some minutes for each of {len(normal)} kernels",
                    _BUILD_DEADLINE * max(1, len(normal)),
                    tuple(pattern for patterns in outputs for pattern in patterns),
                ),
            )
        commands = []
        for entry, patterns in zip(normal, outputs, strict=True):
            version = _version(entry)
            image, initrd = _image(facts, entry), _initrd(facts, entry)
            argv = ("kernel-install", "add", version, image, *((initrd,) if initrd else ()))
            cost, deadline = ("", _COPY_DEADLINE) if initrd else ("builds its initramfs too", _BUILD_DEADLINE)
            commands.append(
                Command(argv, f"writes the boot entry of kernel {version} anew", cost, deadline, patterns)
            )
        return tuple(commands)


def is_generated(entry: BlsEntry) -> bool:
    """Tell whether an entry has the layout of kernel-install: TOKEN-VERSION.conf and /TOKEN/VERSION/linux."""
    token, version, name = _parts(entry)
    return bool(token) and name == "linux" and entry.identifier.startswith(f"{token}-{version}")


def _parts(entry: BlsEntry) -> tuple[str, str, str]:
    """Return entry token, directory of the version, and file name of an entry's kernel."""
    parts = entry.value("linux").split("/")
    return (parts[-3], parts[-2], parts[-1]) if len(parts) >= 4 else ("", "", "")


def _version(entry: BlsEntry) -> str:
    return _parts(entry)[1]


def _judge(entry: BlsEntry) -> Role:
    if not is_generated(entry):
        return Role.OTHER
    token, version, _ = _parts(entry)
    # Rescue images of dracut (0-rescue), and second entries of one kernel such as VERSION-fallback.
    is_plain = entry.identifier == f"{token}-{version}.conf" and version != "0-rescue"
    return Role.NORMAL if is_plain else Role.RECOVERY


def _line(facts: HostFacts, model: BlsEntry, request: BootRequest) -> str:
    """Return the command line to begin a new file with: that which the newest entry has without us.

    Raises:
        RefusedError: it would not name the root file system.
    """
    found = without_ours(model.options, request)
    if not facts.has(CMDLINE) and not any(tokens.key(token) == "root" for token in found):
        raise RefusedError(
            "no-root",
            f"{CMDLINE} does not exist, and {model.path} has no root= that a new one could begin with",
            f"write the whole command line with root= into {CMDLINE} first",
        )
    return " ".join(found)


def _source(facts: HostFacts) -> str:
    """Return the file from which kernel-install takes the command line; empty when it is the running one."""
    return next((path for path in (CMDLINE, _VENDOR_CMDLINE) if facts.has(path)), "")


def _refuse_losing(facts: HostFacts, normal: list[BlsEntry], line: str) -> None:
    """Refuse when kernel-install would drop arguments that an entry has.

    Raises:
        RefusedError: an entry has arguments that the source of all entries lacks.
    """
    source = _source(facts)
    content = facts.host.read_bytes(source) if source else line.encode("utf-8", "surrogateescape")
    if content is None:
        raise RefusedError("unreadable", f"{source} cannot be read", "run it as root")
    for entry in normal:
        # kernel-install adds that one by itself.
        present = tuple(one for one in entry.options if tokens.key(one) != "systemd.machine_id")
        if lost := LineTokens(present).for_base(content).tokens:
            raise RefusedError(
                "entry-differs",
                f"kernel-install would drop arguments that {entry.path} has, because they are not in "
                f"{source or 'the newest entry'}: {' '.join(lost)}",
                f"write the whole command line into {CMDLINE} first",
            )


def _image(facts: HostFacts, entry: BlsEntry) -> str:
    version = _version(entry)
    found = next((path for one in _IMAGES if facts.has(path := one.format(version))), "")
    if not found:
        raise RefusedError(
            "no-kernel-image",
            f"{entry.path} cannot be written anew: its kernel {version} is not installed any more",
            f"remove it with: kernel-install remove {version}",
        )
    return found


def _as_installed(facts: HostFacts, entry: BlsEntry) -> BlsEntry:
    """Return an entry with the initramfs that kernel-install will write into it."""
    initrd = _initrd(facts, entry)
    if not initrd:
        return entry
    folder, name = entry.value("linux").rpartition("/")[0], initrd.rpartition("/")[2]
    form = with_values(entry, {"initrd": f"{folder}/{name}"})
    return parse_entry(form.add(None), entry.path)


def _initrd(facts: HostFacts, entry: BlsEntry) -> str:
    path = _INITRD.format(_version(entry))
    return path if facts.has(path) else ""


def _outputs(facts: HostFacts, directory: str, entry: BlsEntry) -> tuple[str, ...]:
    """Return patterns of all that kernel-install writes for one kernel; our own entries do not match."""
    token, version, _ = _parts(entry)
    root = directory.removesuffix("/loader/entries")
    return (
        f"{directory}/{token}-{version}*.conf",
        f"{root}/{token}/{version}/*",
        # depmod's, which is the first plugin.
        f"/usr/lib/modules/{version}/modules.*",
    )


def _notes(facts: HostFacts, directory: str, own: BootPlan) -> list[Note]:
    notes = []
    for entry in sd_boot.linux_entries(facts, directory):
        if sd_boot.role(entry, _judge) is Role.OTHER:
            text = f"{entry.path} was made by hand and stays as it is"
            notes.append(Note("hand-made-entry", text))
    if own.fallback:
        notes.append(of_one_kernel(made(own.edits[0])))
    return notes
