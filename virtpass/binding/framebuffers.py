"""The firmware's framebuffer lets go of a card that is lent, and comes back where the kernel can do that.

Until a driver of its own has taken a card, the kernel draws into the memory that the firmware left mapped. It
does so through a platform device (``efi-framebuffer.0`` and the like) whose driver (efifb, vesafb, simplefb,
simpledrm, and their successors) keeps that part of the card's memory reserved; a domain could not map it.
From the kernel's sources (aperture.c, sysfb.c, vfio_pci_core.c, and __request_region in resource.c):

* From 6.0 on vfio-pci removes the platform device itself when it takes a card of class 0300, and only then.
  It is unregistered, and the kernel makes none again before the next boot: nothing is left to be bound.
* Otherwise the device stays when it is unbound from its driver, and can be bound again.
* ``simple-framebuffer`` has the memory reserved as a device (BOOTFB), with a driver or without: where
  vfio-pci does not remove it, nothing in user space can.
* efifb keeps a pointer to the card. Bound again after the card was removed and found anew, it follows that
  into freed memory (kernel bug 216475); so it is bound only to the card as it was.

Imported by the hook: the imports here are on its allow-list.
"""

from __future__ import annotations

import time

from virtpass.binding import engine
from virtpass.binding.effects import GONE, nobody
from virtpass.binding.journal import Journal
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from virtpass.binding.effects import Tell

    Range = tuple[int, int]

FRAMEBUFFER = "framebuffer"
# What to do with a card that only a hand-over may take.
GIVE_DISPLAY = (
    "give it to a domain that may have the display (virtpass domain policy DOMAIN display=hand-over)"
)
DEADLINE = 10.0

_DRIVERS = "/sys/bus/platform/drivers"
_DEVICES = "/sys/bus/platform/devices"
_SIMPLE = "simple-framebuffer"
# Drivers as sysfs calls them, and as what they reserve memory in /proc/iomem.
_KNOWN = {
    "efi-framebuffer": ("efifb", "efidrm"),
    "vesa-framebuffer": ("vesafb", "vesadrm"),
    _SIMPLE: ("simplefb", "simpledrm"),
}
# What the device itself reserves, beneath what its driver does.
_OF_DEVICE = {_SIMPLE: ("BOOTFB",)}

# The first kernel whose vfio-pci removes framebuffers, and the class of those cards.
_EVICTS, _VGA = (6, 0), 0x0300
# Of a line of a device's ``resource``: memory; and how many lines are its BARs, before that of its ROM.
_MEMORY, _BARS = 0x200, 6


class Framebuffer(tuple[str, str, PciAddress]):
    """A framebuffer of the firmware that a driver draws on: the driver, its platform device, and the card."""

    __slots__ = ()

    def __new__(cls, driver: str, device: str, card: PciAddress) -> Framebuffer:
        """Hold the three together."""
        return super().__new__(cls, (driver, device, card))


def over(host: Host, addresses: list[PciAddress]) -> list[Framebuffer]:
    """Return the framebuffers of the firmware that lie in the memory of devices and have a driver.

    Where the kernel does not say which device one belongs to (before 6.9, when it has reserved nothing, or to
    others than root), it is that of the card with which the host was booted.
    """
    found = []
    for driver in _KNOWN:
        for device in host.names(f"{_DRIVERS}/{driver}"):
            if _is_device(driver, device):
                card = _card(host, driver, device, addresses)
                found += [Framebuffer(driver, device, card)] if card is not None else []
    return found


def path(framebuffer: Framebuffer) -> str:
    """Return where the platform device of a framebuffer is in sysfs."""
    return f"{_DEVICES}/{framebuffer[1]}"


def refuse_in_the_way(host: Host, addresses: list[PciAddress], *, hands_over: bool) -> None:
    """Refuse cards on which the firmware's framebuffer shows the host's console, unless it can be taken off.

    Args:
        host: the host.
        addresses: the devices.
        hands_over: whether the host may lose its picture.

    Raises:
        RefusedError: naming the framebuffer.
    """
    for driver, device, card in over(host, addresses):
        if not hands_over:
            raise RefusedError(
                "framebuffer",
                f"{card} shows the console of this host, on the framebuffer of the firmware ({device})",
                GIVE_DISPLAY,
            )
        if driver == _SIMPLE and not _is_evicted(host, card):
            raise RefusedError(
                "framebuffer",
                f"the kernel keeps memory of {card} for the framebuffer of the firmware ({device}) until a"
                " graphics driver takes the card",
                "load that driver at boot, or boot without framebuffer: virtpass host plan --framebuffer-off",
            )


def comes_back(host: Host, framebuffer: Framebuffer) -> bool:
    """Tell whether a framebuffer can be bound again when its card is back."""
    _, _, card = framebuffer
    return not _is_evicted(host, card) and not sysfs.is_on_vfio(host, card)


def warning(host: Host, addresses: list[PciAddress]) -> str:
    """Return what to tell of framebuffers that do not come back before the next boot; empty for nothing."""
    lost = [one[2] for one in over(host, addresses) if not comes_back(host, one)]
    if not lost:
        return ""
    return (
        f"the framebuffer of the firmware on {lost[0]} does not come back before the next boot: without a"
        " graphics driver that screen stays dark"
    )


def let_go(host: Host, journal: Journal, addresses: list[PciAddress], *, tell: Tell = nobody) -> None:
    """Take the framebuffers of the firmware off devices; what can be bound again is on record before.

    Args:
        host: the host.
        journal: where it is recorded.
        addresses: the devices, which nobody uses any more.
        tell: is told of each: what, to what, how many seconds it took.

    Raises:
        RefusedError: somebody has one open still.
        FailedError: it could not be recorded, or the kernel refused or did not answer.
    """
    for driver, device, card in over(host, addresses):
        began = time.monotonic()
        # One over a card that is kept for domains shows nothing, and would write to a card that sleeps.
        if not sysfs.is_on_vfio(host, card):
            journal.add((FRAMEBUFFER, driver, device, str(card), _state(host, card)))
        _unbind(host, driver, device, card)
        if any(_overlap(span, bar) for span in _reserved(host, _KNOWN[driver]) for bar in _bars(host, card)):
            # Its driver frees the memory when the last one closes it.
            raise RefusedError(
                "held",
                f"the framebuffer of the firmware on {card} ({device}) is still in use",
                "end what uses it; lsof /dev/fb* /dev/dri/card* may tell",
            )
        tell(FRAMEBUFFER, f"{device} taken off {card}", time.monotonic() - began)


def bind_again(host: Host, fields: tuple[str, ...]) -> None:
    """Bind a framebuffer to its driver again.

    Raises:
        FailedError: it cannot come back (the reference is ``gone``), not yet, or its driver hangs.
        ValueError: the record is none.
    """
    driver, device, address, state = fields
    if driver not in _KNOWN or not _is_device(driver, device):
        raise ValueError("not a framebuffer that virtpass unbinds")
    card = PciAddress.parse(address)
    engine.refuse_stuck(host, card)
    name = f"the framebuffer of the firmware on {card} ({device})"
    if not host.exists(f"{_DEVICES}/{device}"):
        if has_display(host, card):
            return
        raise FailedError(GONE, f"{name} does not come back before the next boot: the kernel has removed it")
    if _is_bound(host, device):
        return
    if sysfs.is_on_vfio(host, card):
        raise FailedError("framebuffer", f"{name} has to wait: the card is not back", "run virtpass recover")
    if _state(host, card) != state:
        raise FailedError(GONE, f"{name} does not come back before the next boot: the card was found anew")
    refusal = _write(
        host, f"{_DRIVERS}/{driver}/bind", device, card, f"{name} does not come back from its driver"
    )
    if not _is_bound(host, device):
        # It would be so at each attempt, and must not keep the domain from starting for ever.
        raise FailedError(GONE, f"{name} does not come back: {refusal or 'no driver took it'}")


def has_display(host: Host, address: PciAddress) -> bool:
    """Tell whether a driver of the host shows pictures with a device."""
    path = sysfs.device_path(address)
    return bool(host.names(f"{path}/drm") or host.names(f"{path}/graphics"))


def _unbind(host: Host, driver: str, device: str, card: PciAddress) -> None:
    what = f"the framebuffer of the firmware ({device}) cannot be taken off {card}"
    path = f"{_DRIVERS}/{driver}/unbind"
    refusal = _write(host, path, device, card, f"{what}: its driver does not come back")
    # It may have gone by itself meanwhile.
    if _is_bound(host, device):
        reason = refusal or "it is still bound"
        raise FailedError("framebuffer", f"{what}: {reason}", "look at the kernel log")


def _write(host: Host, path: str, device: str, card: PciAddress, hanging: str) -> str:
    """Bind or unbind a framebuffer.

    Args:
        host: the host.
        path: the attribute of its driver.
        device: its platform device.
        card: the card beneath it.
        hanging: what to say when the driver does not answer.

    Returns:
        how the kernel refused; empty when it did not.

    Raises:
        FailedError: the driver hangs; the card is marked stuck, because whatever takes it would wait too.
    """
    try:
        host.write_attribute(path, device, DEADLINE)
    except NoAnswer as error:
        engine.mark_stuck(host, card, FRAMEBUFFER)
        raise FailedError("stuck", hanging, "reboot the host") from error
    except OSError as error:
        return str(error.strerror)
    return ""


def _card(host: Host, driver: str, device: str, addresses: list[PciAddress]) -> PciAddress | None:
    """Return the one of the devices to which a framebuffer belongs."""
    # From 6.9 on it is a child of the card.
    above = controller(host.real_path(f"{_DEVICES}/{device}"))
    if above is not None:
        return above if above in addresses else None
    spans = _reserved(host, (*_KNOWN[driver], *_OF_DEVICE.get(driver, ())))
    for address in addresses:
        bars = _bars(host, address) if spans else []
        if any(_overlap(span, bar) for span in spans for bar in bars):
            return address
        if not spans and host.read(f"{sysfs.device_path(address)}/boot_vga") == "1":
            return address
    return None


def _reserved(host: Host, names: tuple[str, ...]) -> list[Range]:
    """Return the ranges of memory that are reserved under names; others than root see none."""
    found = []
    for line in (host.read("/proc/iomem") or "").splitlines():
        span, _, name = line.strip().partition(" : ")
        start, _, end = span.partition("-")
        if name in names and (parsed := _range(start, end)):
            found.append(parsed)
    return found


def _bars(host: Host, address: PciAddress) -> list[Range]:
    """Return where a device's memory lies."""
    found = []
    for line in (host.read(f"{sysfs.device_path(address)}/resource") or "").splitlines()[:_BARS]:
        start, end, flags = [*line.split(), "", "", ""][:3]
        kind = _range("0", flags)
        if kind and kind[1] & _MEMORY and (parsed := _range(start, end)):
            found.append(parsed)
    return found


def _range(start: str, end: str) -> Range | None:
    """Return a range of two hexadecimal numbers; None for an empty one, as what is not shown is."""
    try:
        first, last = int(start, 16), int(end, 16)
    except ValueError:
        return None
    return (first, last) if first <= last and last else None


def _overlap(one: Range, other: Range) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _state(host: Host, card: PciAddress) -> str:
    """Return what differs when a card was removed and found anew, or its memory has moved."""
    path = sysfs.device_path(card)
    number, _ = host.version(path) or (0, 0)
    return " ".join([str(number), *(f"{start:x}-{end:x}" for start, end in _bars(host, card))])


def _is_evicted(host: Host, card: PciAddress) -> bool:
    """Tell whether vfio-pci removes a framebuffer over a card by itself; so where the kernel is not known."""
    if (sysfs.number(host, card, "class") or 0) >> 8 != _VGA:
        return False
    major, minor, *_ = [*(host.read("/proc/sys/kernel/osrelease") or "").split("."), "", ""]
    return not (major.isdecimal() and minor.isdecimal()) or (int(major), int(minor)) >= _EVICTS


def _is_bound(host: Host, device: str) -> bool:
    return host.exists(f"{_DEVICES}/{device}/driver")


def _is_device(driver: str, device: str) -> bool:
    """Tell whether a name is that of a device which the kernel makes of the firmware's framebuffer."""
    number = device.removeprefix(f"{driver}.")
    return device.startswith(f"{driver}.") and number.isascii() and number.isdigit()


UNDO = {FRAMEBUFFER: bind_again}
