"""Ways to have a desktop on the card's monitor, and what of the machine has to be as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .confinement import assert_confined
from .desktop import AUTOLOGIN, GREEN, ORANGE, USER
from .guest import Guest
from .machine import Machine
from .picture import Colour, Picture
from .virtpass import journals, virtpass

LIGHTDM, GETTY = "lightdm.service", "getty@tty1.service"
# What a hand-over may change beside drivers: power management, the consoles, what runs.
SETTINGS = """
cd /sys/bus/pci/devices && grep . */power/control */d3cold_allowed
cd /sys/class/vtconsole && grep . */name */bind
systemctl list-units --failed --no-legend --plain
systemctl is-active lightdm.service getty@tty1.service libvirtd.service
"""
# Control, Alt and F1: the ioctl is VT_ACTIVATE.
FIRST_TERMINAL = "import fcntl; fcntl.ioctl(open('/dev/tty0'), 0x5606, 1)"
# On which nobody but the console draws.
OTHER_TERMINAL = 2
# What openbox paints its menu on.
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Session:
    """A way to have a desktop: what draws, who starts it again, where, and the files that make it so."""

    name: str
    program: str
    unit: str
    colour: Colour
    terminal: int
    files: tuple[tuple[str, str], ...] = ()
    has_menu: bool = False

    def runs(self, machine: Machine) -> list[str]:
        """Return the processes of what draws."""
        return machine.run(["pgrep", "-x", self.program]).text.split()

    def is_seen(self, machine: Machine) -> bool:
        """Return whether the monitor shows it."""
        return machine.picture().share(self.colour) > 0.9

    def console(self, machine: Machine) -> Picture:
        """Return what the monitor shows when the keyboard asks for the login on a text console."""
        switch_to(machine, OTHER_TERMINAL)
        machine.wait_until(lambda: b"login:" in machine.get(f"/dev/vcs{OTHER_TERMINAL}"), "there is a login")
        machine.wait_until(lambda: not self.is_seen(machine), f"{self.name} is not on the monitor")
        picture = machine.picture()
        switch_to(machine, self.terminal)
        machine.wait_until(lambda: self.is_seen(machine), f"{self.name} is on the monitor again")
        return picture

    def save(self, machine: Machine, path: Path) -> None:
        """Save what the monitor shows, with the menu that a click opens if there is one."""
        if not self.has_menu:
            machine.screendump(path)
            return
        for is_down in (True, False):
            click = {"type": "btn", "data": {"down": is_down, "button": "right"}}
            machine.qmp("input-send-event", events=[click])
        machine.wait_until(lambda: machine.picture().share(WHITE) > 0.01, "the menu is open")
        machine.screendump(path)
        machine.qmp("send-key", keys=[{"type": "qcode", "data": "esc"}])
        machine.wait_until(lambda: machine.picture().share(WHITE) < 0.001, "the menu is closed")


X = Session("X by lightdm", "Xorg", LIGHTDM, ORANGE, 7, has_menu=True)
WAYLAND = Session(
    "Wayland by lightdm",
    "weston",
    LIGHTDM,
    GREEN,
    7,
    (("/etc/lightdm/lightdm.conf.d/60-wayland.conf", "[Seat:*]\nautologin-session=weston\n"),),
)
CONSOLE = Session(
    "Wayland from a console",
    "weston",
    GETTY,
    GREEN,
    1,
    ((f"/etc/systemd/system/{GETTY}.d/autologin.conf", AUTOLOGIN),),
)
SESSIONS = (X, WAYLAND, CONSOLE)


def switch_to(machine: Machine, terminal: int) -> None:
    """Press Control, Alt and the key of a virtual terminal."""
    keys = [{"type": "qcode", "data": key} for key in ("ctrl", "alt", f"f{terminal}")]
    machine.qmp("send-key", keys=keys)


@contextmanager
def shown(machine: Machine, session: Session) -> Iterator[None]:
    """Have a desktop that somebody sees, which is there at the end as well."""
    for path, text in session.files:
        machine.put(text, path)
    try:
        machine.run(["systemctl", "daemon-reload"]).check()
        machine.run(["systemctl", "restart", session.unit], timeout=120).check()
        machine.wait_until(lambda: session.is_seen(machine), f"{session.name} is on the monitor", 90)
        yield
        machine.wait_until(lambda: session.is_seen(machine), f"{session.name} is on the monitor again", 90)
    finally:
        machine.run(["rm", "-f", *(path for path, _ in session.files)]).check()
        machine.run(["systemctl", "daemon-reload"]).check()
        machine.run(["systemctl", "stop", session.unit], timeout=120).check()
        machine.run(["loginctl", "terminate-user", USER])
        machine.wait_until(lambda: not session.runs(machine), f"{session.name} has ended")
        # lightdm leaves its own terminal on the monitor.
        machine.run(["python3", "-c", FIRST_TERMINAL]).check()
        machine.run(["systemctl", "start", GETTY]).check()


@contextmanager
def unchanged(machine: Machine) -> Iterator[tuple[object, str]]:
    """Yield drivers and settings; they must be the same at the end, with nothing on record.

    AppArmor confines the daemon all the time.
    """
    assert_confined(machine)
    state, settings = machine.state(), settings_of(machine)
    yield state, settings
    machine.wait_until(lambda: journals(machine) == [], "nothing is on record")
    assert machine.state() == state
    assert settings_of(machine) == settings
    assert_confined(machine)


def settings_of(machine: Machine) -> str:
    """Return what a hand-over may change beside drivers."""
    return machine.run(["sh", "-c", SETTINGS]).text


def give(guest: Guest, *addresses: str, display: str = "hand-over") -> None:
    """Attach devices to the domain, with this policy."""
    virtpass(guest.machine, "domain", "attach", guest.name, *addresses).check()
    virtpass(guest.machine, "domain", "policy", guest.name, f"display={display}").check()


def is_active(machine: Machine, unit: str) -> bool:
    """Return whether a unit runs."""
    return machine.run(["systemctl", "is-active", "--quiet", unit]).status == 0
