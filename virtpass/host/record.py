"""What is on record of host preparation: what was wished, what was written, and how to take it back."""

from dataclasses import dataclass
from typing import Any

from virtpass.host.boot import Choice
from virtpass.host.edits import Written, written_from_json, written_to_json
from virtpass.host.iommu import UNSAFE_INTERRUPTS
from virtpass.host.wishes import Wishes, wishes_from_json, wishes_to_json
from virtpass.pci.address import PciAddress
from virtpass.system.errors import VirtpassError
from virtpass.transaction.engine import Kept, Room
from virtpass.transaction.journal import (
    absolute,
    command_from_json,
    command_to_json,
    state_from_json,
    state_to_json,
    unreadable,
)
from virtpass.transaction.plan import Command

ROOM = Room("/var/lib/virtpass/host")


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs together: files, and the commands that make them take effect.

    Attributes:
        written: our parts of files.
        directories: directories that virtpass made.
        commands: what was run.
    """

    written: tuple[Written, ...] = ()
    directories: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing of ours."""
        return not (self.written or self.commands)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A parameter of a module of the running kernel, in sysfs.

    Attributes:
        path: where it is.
        value: what it says.
    """

    path: str
    value: str


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What virtpass has made of a host.

    Attributes:
        wishes: what the user wanted.
        loader: name of the bootloader.
        generator: name of the generator of the initramfs; empty when it was not needed.
        arguments: the kernel arguments that virtpass added.
        devices: the devices that vfio-pci has from boot on.
        image_files: files that every initramfs has, without a slash before them.
        images: what modprobe and the initramfs are told.
        boot: what the bootloader is told.
        kept: small files that commands wrote, as they were before.
        unsafe_interrupts: whether VFIO was told to accept interrupts that are not remapped.
        fallback: title of the boot entry without our arguments; empty for none.
        tried: title of the boot entry of a trial; empty when nothing is on trial.
        boot_id: the boot in which it was applied; empty for another root.
        choice: what made the next boot the trial; None without a trial, or where the loader cannot.
        switched: attributes of the running kernel that virtpass has changed, as they were before.
    """

    wishes: Wishes
    loader: str
    generator: str
    arguments: tuple[str, ...]
    devices: tuple[PciAddress, ...]
    image_files: tuple[str, ...]
    images: Part
    boot: Part
    kept: tuple[Kept, ...]
    unsafe_interrupts: bool
    fallback: str
    tried: str
    boot_id: str
    choice: Choice | None = None
    switched: tuple[Attribute, ...] = ()


NOTHING = HostRecord(Wishes(), "", "", (), (), (), Part(), Part(), (), False, "", "", "")


def record_to_json(record: HostRecord) -> dict[str, Any]:
    """Render a record."""
    return {
        "wishes": wishes_to_json(record.wishes),
        "loader": record.loader,
        "generator": record.generator,
        "arguments": list(record.arguments),
        "devices": [str(address) for address in record.devices],
        "image_files": list(record.image_files),
        "images": _part_to_json(record.images),
        "boot": _part_to_json(record.boot),
        "kept": [[one.path, state_to_json(one.before), one.left] for one in record.kept],
        "unsafe_interrupts": record.unsafe_interrupts,
        "fallback": record.fallback,
        "tried": record.tried,
        "boot_id": record.boot_id,
        "choice": None
        if record.choice is None
        else [record.choice.identifier, command_to_json(record.choice.command)],
        "switched": [[one.path, one.value] for one in record.switched],
    }


def record_from_json(data: dict[str, Any]) -> HostRecord:
    """Parse a record.

    Raises:
        FailedError: it is none.
    """
    try:
        return HostRecord(
            wishes=wishes_from_json(data["wishes"]),
            loader=str(data["loader"]),
            generator=str(data["generator"]),
            arguments=tuple(str(one) for one in data["arguments"]),
            devices=tuple(PciAddress.parse(one) for one in data["devices"]),
            image_files=tuple(str(one) for one in data["image_files"]),
            images=_part_from_json(data["images"]),
            boot=_part_from_json(data["boot"]),
            kept=tuple(
                Kept(absolute(path), state_from_json(before), str(left))
                for path, before, left in data["kept"]
            ),
            unsafe_interrupts=bool(data["unsafe_interrupts"]),
            fallback=str(data["fallback"]),
            tried=str(data["tried"]),
            boot_id=str(data["boot_id"]),
            choice=_choice_from_json(data["choice"]),
            switched=tuple(_attribute_from_json(one) for one in data["switched"]),
        )
    except (KeyError, TypeError, ValueError, VirtpassError) as error:
        raise unreadable(ROOM.applied) from error


def _choice_from_json(data: Any) -> Choice | None:  # noqa: ANN401 (whatever JSON holds)
    if data is None:
        return None
    identifier, command = data
    return Choice(str(identifier), command_from_json(command))


def _attribute_from_json(data: Any) -> Attribute:  # noqa: ANN401 (whatever JSON holds)
    path, value = data
    if path not in UNSAFE_INTERRUPTS:
        raise ValueError(path)
    return Attribute(path, str(value))


def _part_to_json(part: Part) -> dict[str, Any]:
    return {
        "written": [written_to_json(one) for one in part.written],
        "directories": list(part.directories),
        "commands": [command_to_json(one) for one in part.commands],
    }


def _part_from_json(data: dict[str, Any]) -> Part:
    return Part(
        tuple(written_from_json(one) for one in data["written"]),
        tuple(absolute(one) for one in data["directories"]),
        tuple(command_from_json(one) for one in data["commands"]),
    )
