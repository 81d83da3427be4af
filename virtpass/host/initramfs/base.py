"""What every module for a generator of an initramfs speaks in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from virtpass.host.boot import BootEntry, Note
from virtpass.host.early import EarlyPlan
from virtpass.host.edits import Edit
from virtpass.host.facts import HostFacts
from virtpass.transaction.plan import Command

# Debian's kernels take less than a minute on a usual machine; dracut on a slow one takes minutes for each.
REBUILD_DEADLINE = 3600.0
# Reference of the refusal to run what would put a kernel without signature in the place of a signed one.
UNSIGNED = "unsigned-kernel"


@dataclass(frozen=True, slots=True)
class InitramfsPlan:
    """How early binding gets into the initramfs.

    Attributes:
        edits: what is wanted in files.
        commands: what is run then; it rebuilds the image of every installed kernel.
        notes: what the user should know.
    """

    edits: tuple[Edit, ...] = ()
    commands: tuple[Command, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """One initramfs.

    Attributes:
        path: the file; a unified kernel image has it inside.
        kernel: version of the kernel that it is for.
    """

    path: str
    kernel: str


class Generator(Protocol):
    """One generator of an initramfs. Implementations have no state."""

    name: str
    title: str
    # Whether scripts of ours can run in it: without, devices are bound by id only.
    runs_scripts: bool
    # Whether it loads vfio-pci before other drivers even so, which is enough to bind by id.
    loads_first: bool

    def evidence(self, facts: HostFacts) -> str:
        """Return why this generator seems to be the host's; empty when nothing speaks for it."""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        """Plan how the files and modules of early binding get into every image.

        Raises:
            RefusedError: it cannot be done safely; nothing has changed.
        """

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        """Return what every image has to have for early binding, without a slash before it."""

    def images(self, facts: HostFacts) -> list[Image]:
        """Return the images of the installed kernels."""

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        """Return the paths in an image, without a slash before them; None when they cannot be listed."""


@runtime_checkable
class ByName(Protocol):
    """A generator whose own tool builds one image for each kernel, under a name that is known before."""

    def absent(self, facts: HostFacts) -> list[Image]:
        """Return the images that it would build and that are not there."""

    def strangers(self, facts: HostFacts, entries: Sequence[BootEntry]) -> list[str]:
        """Return which normal boot entries start with none of its images, one sentence for each."""
