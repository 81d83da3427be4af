"""One module for each generator of an initramfs; `generator` says which one this host has."""

from virtpass.host.facts import HostFacts
from virtpass.host.initramfs.base import Generator
from virtpass.host.initramfs.booster import Booster
from virtpass.host.initramfs.by_hand import MKINITFS, RPM_OSTREE
from virtpass.host.initramfs.dracut import Dracut
from virtpass.host.initramfs.initramfs_tools import InitramfsTools
from virtpass.host.initramfs.mkinitcpio import Mkinitcpio
from virtpass.host.initramfs.sdbootutil import SdbootutilDracut
from virtpass.system.errors import RefusedError

GENERATORS: tuple[Generator, ...] = (
    Dracut(),
    SdbootutilDracut(),
    InitramfsTools(),
    Mkinitcpio(),
    Booster(),
    MKINITFS,
    RPM_OSTREE,
)


def generator(facts: HostFacts) -> Generator:
    """Return the generator that this host uses.

    Raises:
        RefusedError: none is recognised, or more than one.
    """
    found = [(one, seen) for one in GENERATORS if (seen := one.evidence(facts))]
    if not found:
        raise RefusedError(
            "no-initramfs-generator",
            "no known generator of an initramfs is on this host",
            "let the hook take devices when a domain starts; that needs no initramfs",
        )
    if len(found) > 1:
        seen = "; ".join(f"{one.title}: {text}" for one, text in found)
        raise RefusedError(
            "ambiguous-initramfs", f"more than one generator of an initramfs: {seen}", "remove one"
        )
    return found[0][0]
