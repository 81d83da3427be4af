"""What virtpass has changed of devices with virtual functions since the host was booted.

A file for each device, ``/run/virtpass/functions/ADDRESS``, written before the change. Its lines:

    sriov_drivers_autoprobe 1    automatic probing of its functions was on, and is switched off
    made 4                       so many functions were made on demand, and go when nobody uses them

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host

DIRECTORY = "/run/virtpass/functions"
_MODE = 0o644
_AUTOPROBE = "sriov_drivers_autoprobe 1"
_MADE = "made "


class Mark(tuple[bool, int]):
    """What was changed of one device."""

    __slots__ = ()

    def __new__(cls, had_autoprobe: bool, made: int) -> Mark:
        """Hold both together."""
        return super().__new__(cls, (had_autoprobe, made))

    @property
    def had_autoprobe(self) -> bool:
        """Whether automatic probing was on, and virtpass has switched it off."""
        return self[0]

    @property
    def made(self) -> int:
        """How many functions virtpass has made on demand; 0 when it made none, or others made them."""
        return self[1]


def marked(host: Host) -> list[PciAddress]:
    """Return the devices of which something was changed."""
    return sysfs.parsed(host.names(DIRECTORY))


def read(host: Host, address: PciAddress) -> Mark:
    """Return what was changed of a device.

    Raises:
        RefusedError: others than root may write to what says so.
        PermissionDeniedError: this user may not read it.
    """
    lines = (host.read_own(DIRECTORY, str(address)) or b"").decode("ascii", "replace").splitlines()
    counts = [line.removeprefix(_MADE) for line in lines if line.startswith(_MADE)]
    made = int(counts[0]) if counts and counts[0].isascii() and counts[0].isdigit() else 0
    return Mark(_AUTOPROBE in lines, made)


def write(host: Host, address: PciAddress, mark: Mark) -> None:
    """Record what is about to be changed of a device; what is unchanged again has no file.

    What is on record already is not written again: it can be put back where nothing can be written any more.

    Raises:
        VirtpassError: it could not be recorded, and must not happen.
    """
    lines = [*([_AUTOPROBE] if mark.had_autoprobe else []), *([f"{_MADE}{mark.made}"] if mark.made else [])]
    if lines and read(host, address) != mark:
        host.replace_own(DIRECTORY, str(address), "".join(f"{line}\n" for line in lines).encode(), _MODE)
    elif not lines:
        host.remove_own(DIRECTORY, str(address))
