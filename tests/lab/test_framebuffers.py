"""A card on which the host draws through the framebuffer of the firmware goes to a domain and comes back.

The machine boots from UEFI without a driver for its card, so that efifb has it. Once the card is a VGA
controller, whose framebuffer the kernel gives up for good when vfio-pci takes it, and once it is none.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import image, topology
from .confinement import assert_confined, assert_nothing_denied
from .guest import Guest, draws, nested
from .killed import NEVER, accesses, killed
from .machine import Machine
from .progress import say
from .virtpass import (
    AS_LIBVIRT,
    HOOK,
    UNBIND,
    covered,
    journals,
    live_xml,
    never_answering,
    release,
    virtpass,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO = topology.CARD, topology.CARD_AUDIO
LENT = ("vfio-pci", "vfio-pci")
FRAMEBUFFER = "efi-framebuffer.0"
# The audio function is unbound first, when the framebuffer is off the card and vfio-pci has not taken it yet.
UNBIND_AUDIO = UNBIND.format(driver="snd_hda_intel")
NOT_BACK = "does not come back before the next boot"
# udev leaves the driver alone; whoever names it can still load it.
WITHOUT_DRIVER = "modprobe.blacklist=bochs"
# Who draws, where the text consoles are, which memory is reserved.
SCREEN = """
cat /proc/fb
cd /sys/class/vtconsole && grep -H . */name */bind
ls -d /sys/bus/platform/drivers/efi-framebuffer/efi-framebuffer.*
grep efifb /proc/iomem
true
"""
# Some of what the hook is killed before.
OF_PREPARE = (f"efi-framebuffer/unbind {FRAMEBUFFER}", "vtconsole/vtcon", f"drivers_probe {CARD}")
OF_RELEASE = (f"unbind {CARD}", f"efi-framebuffer/bind {FRAMEBUFFER}", "remove_own /run/virtpass/lent")
TERMINAL = "/dev/tty1"
RED = (170, 0, 0)


@pytest.fixture(scope="module", params=[topology.VGA, topology.DISPLAY])
def host(request: pytest.FixtureRequest, package: Path) -> Iterator[Machine]:
    """A host with the hook, whose card has no driver but that of the firmware's framebuffer."""
    uefi = image.ready().under_uefi()
    with Machine(uefi, card=request.param, kernel_arguments=[WITHOUT_DRIVER]) as machine:
        machine.install(package)
        assert_confined(machine)
        virtpass(machine, "hook", "install").check()
        say(f"the machine with the card {request.param} is ready, with {package.name}")
        yield machine
        assert_nothing_denied(machine)


@pytest.fixture
def guest(host: Machine) -> Iterator[Guest]:
    """A nested guest in it, without any host device."""
    yield from nested(host)


@pytest.fixture
def before(host: Machine) -> Iterator[str]:
    """Who draws on the screen; all of that is so at the end, the console draws, and nothing is on record."""
    state, screen = host.state(), screen_of(host)
    assert FRAMEBUFFER in screen
    yield screen
    assert (host.state(), screen_of(host)) == (state, screen)
    assert journals(host) == []
    assert is_drawn_on(host)


with_vga = pytest.mark.parametrize("host", [topology.VGA], indirect=True)
with_display = pytest.mark.parametrize("host", [topology.DISPLAY], indirect=True)


def screen_of(machine: Machine) -> str:
    """Return what tells who draws on the screen."""
    return machine.run(["sh", "-c", SCREEN]).check().text


def is_drawn_on(machine: Machine) -> bool:
    """Paint the text console red, and return whether that is seen; the console is empty afterwards."""
    machine.run(["tee", TERMINAL], b"\033[41m\033[2J").check()
    # A graphics driver may take a moment to bring it to the screen.
    is_red = any(machine.picture().share(RED) > 0.9 for _ in range(3))
    machine.run(["tee", TERMINAL], b"\033c").check()
    return is_red


def give(guest: Guest, display: str = "hand-over") -> None:
    """Attach the card to the domain, with this policy."""
    virtpass(guest.machine, "domain", "attach", guest.name, CARD).check()
    virtpass(guest.machine, "domain", "policy", guest.name, f"display={display}").check()


def last_hand_over(machine: Machine) -> str:
    """Return what the log tells of it."""
    return virtpass(machine, "log", "guest", "-n", "1").check().text


def lend_and_draw(guest: Guest) -> None:
    """Start the domain, and look how the framebuffer is gone and the guest draws."""
    guest.start().check()
    machine = guest.machine
    state = machine.state()
    assert state[CARD] == state[AUDIO] == LENT
    assert "efi" not in screen_of(machine).lower()
    assert not is_drawn_on(machine)
    assert guest.wait_ready()["0000:01:00.0"].driver == "bochs-drm"
    machine.wait_until(lambda: draws(machine.picture()), "the guest draws on the card")


@with_vga
def test_a_card_that_shows_the_console_is_refused_without_a_hand_over(
    host: Machine, guest: Guest, before: str
) -> None:
    give(guest, "refuse")
    refused = guest.start()
    assert refused.status != 0
    (line,) = [line for line in refused.error_text.splitlines() if "virtpass: " in line]
    assert line.endswith(
        f"virtpass: {CARD} shows the console of this host, on the framebuffer of the firmware"
        f" ({FRAMEBUFFER}); give it to a domain that may have the display"
        " (virtpass domain policy DOMAIN display=hand-over)"
    )
    assert (guest.state(), screen_of(host)) == ("shut off", before)


@with_vga
def test_who_has_the_framebuffer_open_is_named(host: Machine, guest: Guest, before: str) -> None:
    give(guest)
    # What a container is for systemd: it can be asked by nobody.
    holder = host.begin(["systemd-run", "--scope", "--quiet", "sh", "-c", "exec sleep 1000 < /dev/fb0"])
    host.wait_until(lambda: host.run(["fuser", "-s", "/dev/fb0"]).status == 0, "the program has it open")
    refused = guest.start()
    assert refused.status != 0
    assert "virtpass: the device is still in use by sleep (process " in refused.error_text
    assert "/dev/fb0" in refused.error_text
    assert screen_of(host) == before
    holder.signal(signal.SIGTERM)
    holder.wait()


def test_a_start_that_fails_after_it_was_taken_off_brings_it_back(
    host: Machine, guest: Guest, before: str
) -> None:
    give(guest)
    with covered(host, UNBIND_AUDIO, "/dev/full"):
        failed = guest.start()
    assert failed.status != 0
    assert f"virtpass: {AUDIO}: unbind snd_hda_intel: No space left on device" in failed.error_text
    assert "not everything could be put back" not in failed.error_text
    assert f"{FRAMEBUFFER} taken off {CARD}" in last_hand_over(host)
    assert guest.state() == "shut off"


@with_vga
def test_recover_brings_it_back_when_the_hook_was_killed(host: Machine, guest: Guest, before: str) -> None:
    give(guest)
    xml = live_xml(host, "guest")
    with never_answering(host, UNBIND_AUDIO):
        hook = host.begin([*AS_LIBVIRT, HOOK, "guest", "prepare", "begin", "-"], xml)
        # The overrides are set when it is off, one line before the audio function is unbound.
        host.wait_until(lambda: host.pci()[CARD].override == "vfio-pci", "the hook is half done")
        (process,) = host.run(["pgrep", "-f", "-o", "virtpass.hook.entry"]).text.split()
        host.run(["kill", "-9", process]).check()
        assert hook.wait().status == -signal.SIGKILL
    assert FRAMEBUFFER not in screen_of(host)
    assert not is_drawn_on(host)
    virtpass(host, "recover").check()


def made_good(guest: Guest, operation: str, access: int | str, state: object, screen: str) -> str:
    """Kill the hook before an access, and recover: drivers and who draws are as before.

    Returns what the access is.
    """
    machine = guest.machine
    ended = killed(machine, guest, operation, access)
    assert ended.status == -signal.SIGKILL, str(ended)
    before = accesses(ended)[-1]
    where = f"{operation} was killed before {before}"
    virtpass(machine, "recover").check()
    assert (machine.state(), screen_of(machine)) == (state, screen), where
    assert journals(machine) == [], where
    return before


@with_vga
def test_recover_brings_it_back_as_long_as_the_kernel_has_it(
    host: Machine, guest: Guest, before: str
) -> None:
    """Killed from its unbind on until vfio-pci takes the card.

    That probe lets the kernel remove the platform device for good: nothing that recovers could bring it back.
    """
    give(guest)
    state = host.state()
    for access in (f"unbind {FRAMEBUFFER}", f"{CARD}/driver_override vfio-pci", f"drivers_probe {CARD}"):
        made_good(guest, "prepare", access, state, before)


@with_display
def test_recover_brings_it_back_wherever_the_hook_was_killed(
    host: Machine, guest: Guest, before: str
) -> None:
    """Killed before every access of prepare and of release, but for those to the audio function.

    Before these too the same card is given back in test_desktop.py.
    """
    give(guest)
    state = host.state()

    def lend() -> list[str]:
        return accesses(killed(host, guest, "prepare", NEVER).check())

    # The first has to load VFIO's modules.
    lend()
    release(host, guest.name).check()
    lent = lend()
    given_back = accesses(killed(host, guest, "release", NEVER).check())
    for operation, accessed, telling in (("prepare", lent, OF_PREPARE), ("release", given_back, OF_RELEASE)):
        assert all(any(text in one for one in accessed) for text in telling), accessed
        for number, access in enumerate(accessed):
            if AUDIO in access:
                continue
            if operation == "release":
                lend()
            assert made_good(guest, operation, number, state, before) == access


@with_display
def test_it_comes_back_when_the_card_is_no_vga_controller(host: Machine, guest: Guest, before: str) -> None:
    give(guest)
    assert NOT_BACK not in str(virtpass(host, "hook", "rehearse", "guest").check())
    lend_and_draw(guest)
    guest.shutdown()
    host.wait_until(lambda: screen_of(host) == before, "the framebuffer is back")


# The last one with its machine: what it takes away does not come back.
@with_vga
def test_it_is_gone_for_good_when_the_card_is_a_vga_controller(host: Machine, guest: Guest) -> None:
    give(guest)
    assert f"take the framebuffer of the firmware off {CARD} ({FRAMEBUFFER}): it {NOT_BACK}" in (
        virtpass(host, "hook", "rehearse", "guest").check().text
    )
    state = host.state()
    lend_and_draw(guest)
    assert f"on {CARD} {NOT_BACK}: without a graphics driver that screen stays dark" in last_hand_over(host)

    guest.shutdown()
    host.wait_until(lambda: journals(host) == [], "nothing is on record")
    assert host.state() == state
    assert f"on {CARD} ({FRAMEBUFFER}) {NOT_BACK}: the kernel has removed it" in last_hand_over(host)
    assert "nothing to recover" in virtpass(host, "recover").check().text
    assert host.run(["cat", "/proc/fb"]).text == ""
    assert not is_drawn_on(host)
    assert host.picture().is_blank()

    host.run(["modprobe", "bochs"]).check()
    host.wait_until(lambda: is_drawn_on(host), "a graphics driver brings the console back")
