"""systemd-boot with kernelstub: Pop!_OS.

kernelstub reads its options from a JSON file, which it writes anew, in the layout of `json.dump`, whenever
it runs. So the file is edited in that layout, and `kernelstub` is run without options: `--add-options`
would do no more, `--delete-options` puts all options into another order, and `--dry-run` saves them all the
same.
"""

import json
from dataclasses import replace
from typing import Any

from virtpass.host import tokens
from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence, Role
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.host.forms import JsonTokens
from virtpass.host.loaders import sd_boot, sd_boot_once
from virtpass.host.loaders.bls import BlsEntry
from virtpass.system.errors import RefusedError
from virtpass.transaction.plan import Command

CONFIG = "/etc/kernelstub/configuration"
_KEYS = ("user", "kernel_options")
# kernelstub copies kernel and initramfs of the two newest kernels to the EFI system partition.
_MADE = ("-current", "-oldkern")
_OWN_KEYS = ("root", "ro")
_DEADLINE = 600.0
# Settings with which kernelstub does more, or less, than to write entries of systemd-boot.
_NEEDED = {"setup_loader": True, "manage_mode": True, "unified_kernel": False, "live_mode": False}


class Kernelstub:
    """systemd-boot whose entries kernelstub writes."""

    name = "kernelstub"
    title = "systemd-boot with kernelstub"

    def evidence(self, facts: HostFacts) -> Evidence | None:
        """See the tool, its configuration, and entries of systemd-boot."""
        text = sd_boot.evidence(facts)
        if not text or not facts.has(CONFIG) or not facts.has_program("kernelstub"):
            return None
        return Evidence(f"{CONFIG} exists; {text}", sd_boot_once.LOADER, ("systemd-boot", "loader-entries"))

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        """Add to the user's options in the configuration; kernelstub leaves entries of others alone."""
        if not request.arguments and not request.rebuilds_initramfs:
            return BootPlan()
        if request.is_trial:
            sd_boot_once.refuse_unforgetting(facts)
        directory = sd_boot.entries_directory(facts)
        normal = sd_boot.normal_entries(facts, directory, _judge)
        options = _options(facts)
        _refuse_losing(normal, options)
        newest = [entry for entry in normal if entry.name.endswith(_MADE[0])] or normal
        own = sd_boot.own_entry(facts, directory, request, newest)
        edits = list(own.edits)
        if request.arguments and not request.is_trial:
            reason = "gives the kernel arguments to kernelstub"
            edits.insert(0, Edit(CONFIG, JsonTokens(_KEYS, request.arguments), reason))
        is_written_anew = request.rebuilds_initramfs or not request.is_trial
        commands = (_refresh(directory, normal),) if is_written_anew else ()
        return replace(own, edits=tuple(edits), commands=commands)

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        """Parse the entries on the EFI system partition."""
        return sd_boot.menu(facts, sd_boot.entries_directory(facts), _judge)

    def chosen(self, facts: HostFacts) -> str | None:
        """Read the EFI variable that systemd-boot removes when it reads it."""
        return sd_boot_once.chosen(facts)


def _judge(entry: BlsEntry) -> Role:
    return Role.NORMAL if entry.name.endswith(_MADE) else Role.OTHER


def _options(facts: HostFacts) -> tuple[str, ...]:
    """Return the kernel arguments in the configuration.

    Raises:
        RefusedError: kernelstub would do something else than write entries with these.
    """
    content = facts.host.read_bytes(CONFIG) or b""
    try:
        data: Any = json.loads(content.decode())
        settings = {name: data["user"].get(name) for name in _NEEDED}
        found = data["user"]["kernel_options"]
        is_own_layout = json.dumps(data, indent=2) == content.decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(
            "not-json", f"{CONFIG} is not understood", "look at it, or let kernelstub write it anew"
        ) from error
    for name, needed in _NEEDED.items():
        # Older versions do not know all of them.
        if bool(settings[name]) is not needed:
            raise RefusedError(
                "kernelstub-mode",
                f"{CONFIG} says {name}: {json.dumps(settings[name])}, and virtpass knows kernelstub with "
                f"{json.dumps(needed)} only",
                "add the kernel arguments with: sudo kernelstub --add-options",
            )
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise RefusedError("not-json", f"{CONFIG} has no list of kernel options", "run kernelstub once first")
    if not is_own_layout:
        raise RefusedError(
            "kernelstub-layout",
            f"{CONFIG} is not as kernelstub writes it, so that it would be changed as a whole",
            "run kernelstub once first",
        )
    return tuple(word for one in found for word in tokens.split(one))


def _refuse_losing(normal: list[BlsEntry], options: tuple[str, ...]) -> None:
    """Refuse when kernelstub would drop arguments that an entry has.

    Raises:
        RefusedError: an entry was edited by hand, or the configuration was.
    """
    for entry in normal:
        lost = [one for one in tokens.missing(entry.options, options) if tokens.key(one) not in _OWN_KEYS]
        if lost:
            raise RefusedError(
                "entry-differs",
                f"kernelstub would drop arguments that {entry.path} has, because they are not in {CONFIG}: "
                f"{' '.join(lost)}",
                f"add them with: sudo kernelstub --add-options '{' '.join(lost)}'",
            )


def _refresh(directory: str, normal: list[BlsEntry]) -> Command:
    root = directory.removesuffix("/loader/entries")
    copies = dict.fromkeys(f"{root}{one.value('linux').rpartition('/')[0]}/*" for one in normal)
    outputs = (*(f"{directory}/*{name}.conf" for name in _MADE), *copies, f"{root}/loader/loader.conf")
    return Command(("kernelstub",), "writes the boot entries anew", "some seconds", _DEADLINE, outputs)
