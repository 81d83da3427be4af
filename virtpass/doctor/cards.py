"""Checks of the graphics cards, one finding for each."""

from dataclasses import replace

from virtpass.binding import framebuffers, reach
from virtpass.doctor.check import Check, Finding, Verdict, passed
from virtpass.doctor.scene import Scene
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import Device
from virtpass.pci.isolation import Level, Reason, judge, must_go_along
from virtpass.pci.sysfs import device_path
from virtpass.system.errors import RefusedError

# What says that the group does not keep the card apart; other reasons have checks of their own, or pass.
_GROUP = ("group-shared", "group-bridge", "group-needed", "no-group", "direct-region")
# Of a BAR in the file `resource`: that it is memory, and that nobody gave it an address (IORESOURCE_MEM and
# _UNSET in the kernel's include/linux/ioport.h).
_MEMORY, _UNSET = 0x200, 0x20000000
_BARS = 6
# Where the BARs begin in the configuration space, and seconds for a device to wake and answer.
_FIRST_BAR, _CONFIG_DEADLINE = 0x10, 5.0
_MEBI = 1 << 20


def _none() -> list[Finding]:
    return [Finding(Verdict.WARN, "this host has no graphics card that Linux sees")]


def _isolation(scene: Scene) -> list[Finding]:
    if not scene.inventory.groups:
        return [Finding(Verdict.UNKNOWN, "groups exist only with the IOMMU on")]
    found = [_isolated(scene, card) for card in scene.cards]
    if any(one.verdict is Verdict.PASS for one in found):
        # There is a card for a guest; the others matter only to domains that have them.
        found = [
            replace(one, verdict=Verdict.WARN)
            if one.verdict is Verdict.FAIL and one.about not in scene.outside.assigned
            else one
            for one in found
        ]
    if any(token.partition("=")[0] == "pcie_acs_override" for token in scene.facts.running):
        what = "the kernel runs with pcie_acs_override: the groups look smaller than they are"
        found.append(Finding(Verdict.WARN, what, "give devices only to guests that you trust"))
    return found or _none()


def _isolated(scene: Scene, card: Device) -> Finding:
    about = str(card.address)
    functions = scene.inventory.card(card.address)
    given = [PciAddress.parse(one) for one in scene.outside.given_with(about)]
    going = frozenset((*functions, *given))
    reasons: list[Reason] = []
    for address in functions:
        judged = judge(scene.inventory, address, going)
        reasons += [one for one in judged.reasons if one.reference in _GROUP]
    if not reasons:
        together = set(scene.inventory.groups.get(card.group, ()) if card.group is not None else ())
        if together & going > set(functions):
            return passed(f"all of IOMMU group {card.group} goes to the same domain", about)
        return passed(f"nothing else is in IOMMU group {card.group}", about)
    texts = list(dict.fromkeys(reason.text for reason in reasons))
    if any(reason.level is Level.NEVER for reason in reasons):
        return Finding(Verdict.FAIL, "; ".join(texts), "another slot, or another firmware", about)
    if any(reason.level is Level.BLOCKED for reason in reasons):
        return Finding(Verdict.FAIL, "; ".join(texts), "put the card into another slot", about)
    along = dict.fromkeys(member for one in functions for member in must_go_along(scene.inventory, one))
    others = " ".join(str(member) for member in along if member not in going)
    domain = scene.outside.word(*scene.outside.having(about))
    fix = f"virtpass domain attach {domain} {about} {others} # or put the card into another slot"
    return Finding(Verdict.FAIL, "; ".join(texts), fix, about)


def _display(scene: Scene) -> list[Finding]:
    cards = scene.cards
    if not cards:
        return _none()
    staying = [card for card in cards if card.driver not in (None, "vfio-pci")]
    found = []
    for card in cards:
        about = str(card.address)
        monitors = _connected(scene, card)
        shows = "the firmware's display" if card.is_boot_display else "not the firmware's display"
        others = [_connected(scene, one) for one in staying if one is not card]
        seen = f"{shows}; {_counted(monitors)}" if monitors is not None else shows
        is_last = [one.address for one in staying] == [card.address]
        # With a second card that is set aside for a guest, the last one is meant to stay.
        if is_last and (len(cards) == 1 or about in scene.outside.assigned):
            what = f"{seen}; the host has no other screen, and is dark while a guest has it"
            found.append(_last_screen(scene, what, about))
        elif about in scene.outside.assigned and monitors and not any(one is None or one for one in others):
            what = f"{seen}; no other card has a monitor: the host shows nothing while a guest has it"
            found.append(Finding(Verdict.WARN, what, "connect a monitor to the card that stays", about))
        else:
            found.append(passed(seen, about))
    if not staying:
        what = "no card has a driver of the host: there is no screen but that of a guest"
        found.append(_without_screen(scene, what))
    return found


def _last_screen(scene: Scene, what: str, about: str) -> Finding:
    if fix := scene.outside.to_hand_over(about):
        comment = "lets the desktop go; have SSH as a way in"
        return Finding(Verdict.WARN, what, f"{fix} # {comment}", about)
    return _without_screen(scene, what, about)


def _without_screen(scene: Scene, what: str, about: str = "") -> Finding:
    """Judge a host that is meant to have no screen: well, as long as one can log in elsewhere."""
    if reach.has_other_login(scene.host):
        return passed(f"{what}; one can log in without", about)
    return Finding(Verdict.WARN, f"{what}; no SSH server was found as a way in", "start an SSH server", about)


def _counted(monitors: list[str]) -> str:
    if not monitors:
        return "no monitor is connected"
    return f"connected: {', '.join(monitors)}"


def _connected(scene: Scene, card: Device) -> list[str] | None:
    """Return the connectors of a card that have a monitor; None when it has no DRM driver."""
    base = f"{device_path(card.address)}/drm"
    nodes = [name for name in scene.host.names(base) if name.startswith("card")]
    if not nodes:
        return None
    return [
        name.partition("-")[2]
        for node in nodes
        for name in scene.host.names(f"{base}/{node}")
        if name.startswith(f"{node}-") and scene.host.read(f"{base}/{node}/{name}/status") == "connected"
    ]


def _framebuffers(scene: Scene) -> list[Finding]:
    found = []
    for card in scene.cards:
        about = str(card.address)
        devices = [device for _, device, _ in framebuffers.over(scene.host, [card.address])]
        if not devices:
            found.append(passed("no framebuffer of the firmware lies in its memory", about))
            continue
        what = f"{', '.join(devices)}, the framebuffer of the firmware, lies in its memory"
        if len(scene.cards) > 1 and about not in scene.outside.assigned:
            found.append(passed(f"{what}, and no domain has the card", about))
            continue
        try:
            framebuffers.refuse_in_the_way(scene.host, [card.address], hands_over=True)
        except RefusedError as error:
            found.append(Finding(Verdict.FAIL, f"{what}: {error.what}", error.remedy, about))
            continue
        what = f"{what}: a domain starts only if it may take that off"
        fix = scene.outside.to_hand_over(about)
        found.append(Finding(Verdict.WARN, what, fix, about) if fix else passed(f"{what}, and it may", about))
    return found


def _reset(scene: Scene) -> list[Finding]:
    found = []
    for card in scene.cards:
        about = str(card.address)
        methods = (scene.host.read(f"{device_path(card.address)}/reset_method") or "").split()
        if methods:
            found.append(passed(", ".join(methods), about))
        elif not scene.host.exists(f"{device_path(card.address)}/reset"):
            if scene.inventory.resets_with_bus(card.address):
                found.append(passed("with its bus as a whole, on which its functions are alone", about))
                continue
            what = "the kernel knows no way to reset it: it may not start a second time"
            fix = "shut guests down rather than end them; for some cards of AMD there is vendor-reset"
            found.append(Finding(Verdict.WARN, what, fix, about))
        else:
            found.append(passed("it can be reset", about))
    return found


def _memory(scene: Scene) -> list[Finding]:
    return [found for card in scene.cards if (found := _bars(scene, card))]


def _bars(scene: Scene, card: Device) -> Finding | None:
    about = str(card.address)
    lines = (scene.host.read(f"{device_path(card.address)}/resource") or "").splitlines()[:_BARS]
    declared = _declared(scene, card)
    largest = (0, 0, 0)  # size, start, number
    for number, line in enumerate(lines):
        try:
            start, end, flags = (int(field, 16) for field in line.split())
        except ValueError:
            continue
        # Depending on how it failed, the kernel marks the region, or forgets it.
        is_forgotten = not (start or end or flags) and number in declared
        if not flags & _MEMORY and not is_forgotten:
            continue
        if flags & _UNSET or is_forgotten:
            what = f"its memory region {number} got no address: the firmware has no room for it"
            return Finding(Verdict.FAIL, what, "switch Above 4G Decoding on in the firmware", about)
        if end > start:
            largest = max(largest, (end - start + 1, start, number))
    size, start, number = largest
    if not size:
        return None
    where = "above 4 GiB" if start >= 1 << 32 else "below 4 GiB"
    text = f"{size // _MEBI} MiB in region {number}, {where}"
    possible = _possible(scene.host.read(f"{device_path(card.address)}/resource{number}_resize") or "")
    if possible:
        text += f"; it could have up to {possible >> 20} MiB"
    return passed(text, about)


def _declared(scene: Scene, card: Device) -> set[int]:
    """Return which BARs are memory by what the device itself says: low bits of each register tell its kind.

    One of 32 bits that is not prefetchable reads as zero until it has an address, like none.
    """
    size = _FIRST_BAR + 4 * _BARS
    try:
        config = scene.host.read_device(f"{device_path(card.address)}/config", size, _CONFIG_DEADLINE)
    except OSError:
        return set()
    found, number = set(), 0
    while number < _BARS:
        at = _FIRST_BAR + 4 * number
        register = int.from_bytes(config[at : at + 4], "little")
        is_memory = not register & 1
        if is_memory and register & 0xE:
            found.add(number)
        # The upper half of an address follows as a register of its own.
        number += 2 if is_memory and register & 0x6 == 0x4 else 1
    return found


def _possible(text: str) -> int:
    """Return the largest size that a resizable BAR can have, in bytes: bit n stands for 2^(n+20)."""
    try:
        bits = int(text, 16)
    except ValueError:
        return 0
    return 1 << (bits.bit_length() + 19) if bits else 0


CHECKS = (
    Check(
        "group-isolation",
        "IOMMU groups of the cards",
        "All devices of a group can reach each other, so the kernel gives them away together or not at all."
        " What shares the group of a card must go along, or the card belongs into another slot.",
        _isolation,
    ),
    Check(
        "boot-display",
        "which card shows the host",
        "While a guest has the host's only card, the host shows nothing. That works, if the desktop may be"
        " ended for it and there is another way in should something go wrong.",
        _display,
    ),
    Check(
        "framebuffer",
        "the firmware's framebuffer",
        "Until a graphics driver has taken a card, the kernel draws into memory that the firmware left"
        " mapped. A guest cannot have that memory before the framebuffer has let go. Over which card it lies"
        " is in the kernel's list of reserved memory, which it shows to root.",
        _framebuffers,
    ),
    Check(
        "reset",
        "resetting the cards",
        "Between two guests, or guest and host, a card has to be reset. Without a way to do it the second"
        " start may find the card as the first guest left it, until the host is switched off. Where no"
        " function has a way of its own, as with many cards of NVIDIA, their bus is reset once the guest has"
        " all of them.",
        _reset,
    ),
    Check(
        "card-memory",
        "memory regions of the cards",
        "Large regions need addresses above 4 GiB. Where the firmware has no room for one, the card does not"
        " work, on the host or in a guest. Drivers of recent cards are faster with a resized region.",
        _memory,
    ),
)
