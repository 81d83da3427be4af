"""What has the card open beside the desktop: sound servers of users, and NVIDIA's services.

They let go with the hand-over and come back with the card, under a real systemd and its managers of users;
while the host shuts down, nothing is started.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from . import topology
from .confinement import assert_nothing_denied
from .desktop import USER
from .guest import Guest
from .killed import killed
from .machine import Machine, Result
from .sessions import LIGHTDM, X, give, is_active, shown, unchanged
from .virtpass import journals, prepare, release, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO = topology.CARD, topology.CARD_AUDIO
EDU, NEIGHBOUR = topology.BRIDGED_OTHER, topology.BRIDGED_NIC
LENT = ("vfio-pci", "vfio-pci")

STAND_INS = "/run/stand-ins"
# Waits for the card as a sound server does, which is told by udev when there is another one.
SOUND = (
    "until (: < /dev/snd/controlC0) 2> /dev/null; do sleep 0.2; done\n"
    f"exec {STAND_INS}/pipewire infinity < /dev/snd/controlC0\n"
)
# As PipeWire's own units are, but that nobody can talk to the server.
SOUND_UNITS = {
    "pipewire.socket": "[Socket]\nListenStream=%t/pipewire-0\n",
    "pipewire.service": (
        f"[Unit]\nRequires=pipewire.socket\n[Service]\nExecStart=/bin/sh {STAND_INS}/pipewire.sh\n"
    ),
    # This one waits for somebody to talk to it: its server does not run.
    "pipewire-pulse.socket": "[Socket]\nListenStream=%t/pulse/native\n",
    "pipewire-pulse.service": (
        "[Unit]\nRequires=pipewire-pulse.socket\n[Service]\nExecStart=/bin/sleep infinity\n"
    ),
    "wireplumber.service": "[Service]\nExecStart=/bin/sleep infinity\n",
}
SOUND_RUNS = ["pipewire.socket", "pipewire.service", "pipewire-pulse.socket"]
SOUND_WANTED = {
    "pipewire.socket": "sockets",
    "pipewire-pulse.socket": "sockets",
    "pipewire.service": "default",
}

PERSISTENCED, POWERD = "nvidia-persistenced.service", "nvidia-powerd.service"
# It starts only when the driver's node is there.
HAS_NVIDIA_OPEN = "[Service]\nExecStart=/bin/sh -c 'exec {stand_ins}/{name} infinity < /dev/nvidia0'\n"
LOG = "/var/log/journal"
TIME = "__REALTIME_TIMESTAMP"
# logind says so first of all.
REBOOTS = "The system will reboot now!"
# And so when it has waited.
SHUTS_DOWN = "System is rebooting."
# Seconds for which logind waits.
DELAY = 15
LEFT = f"start {LIGHTDM} again: left, the host shuts down"
DESTROY_WHEN_ASKED = """
until [ "$(loginctl show-session --value -p PreparingForShutdown)" = yes ]; do sleep 0.1; done
virsh destroy "$1"
"""
# What a shutdown may take here, with a guest that has to shut down first: systemd gives each service 30 s.
SHUTDOWN = 60.0


def own(machine: Machine, *argv: str) -> Result:
    """Run systemctl for the service manager of the user."""
    number = machine.run(["id", "-u", USER]).check().text.strip()
    manager = ["env", f"XDG_RUNTIME_DIR=/run/user/{number}", "systemctl", "--user", *argv]
    return machine.run(["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", *manager])


def active(machine: Machine) -> list[str]:
    """Return which of the user's units for sound are active."""
    states = own(machine, "is-active", *SOUND_UNITS).text.split()
    return [unit for unit, state in zip(SOUND_UNITS, states, strict=False) if state == "active"]


@contextmanager
def stand_ins(machine: Machine, *names: str) -> Iterator[None]:
    """Have programs that do nothing but keep what they have open, under names of their own."""
    machine.run(["mkdir", STAND_INS]).check()
    try:
        for name in names:
            machine.run(["ln", "-s", "/usr/bin/sleep", f"{STAND_INS}/{name}"]).check()
        yield
    finally:
        machine.run(["rm", "-r", STAND_INS]).check()


@pytest.fixture
def desktop_with_sound(desktop: Machine) -> Iterator[Machine]:
    """A desktop on the card, whose user has sound; everything is the same at the end."""
    folder = "/run/systemd/user"
    with stand_ins(desktop, "pipewire"):
        desktop.put(SOUND, f"{STAND_INS}/pipewire.sh")
        for unit, text in SOUND_UNITS.items():
            desktop.put(text, f"{folder}/{unit}")
        for unit, target in SOUND_WANTED.items():
            wants = f"{folder}/{target}.target.wants"
            desktop.run(["mkdir", "-p", wants]).check()
            desktop.run(["ln", "-s", f"../{unit}", f"{wants}/{unit}"]).check()
        try:
            with shown(desktop, X), unchanged(desktop):
                desktop.wait_until(lambda: server(desktop) != "", "the sound server has the card open")
                yield desktop
        finally:
            desktop.run(["rm", "-r", folder]).check()


def server(machine: Machine) -> str:
    """Return the process that is the sound server; empty if it is none yet."""
    return machine.run(["pgrep", "-x", "pipewire"]).text.strip()


def test_sound_servers_let_go_with_the_desktop_and_come_back(
    desktop_with_sound: Machine, desktop_guest: Guest
) -> None:
    """The user's service manager stays when his session ends, as that of somebody who is logged in twice."""
    machine = desktop_with_sound
    number = server(machine)
    assert active(machine) == SOUND_RUNS
    give(desktop_guest, CARD, display="refuse")
    refused = desktop_guest.start()
    assert refused.status != 0
    assert re.search(rf"in use by .*pipewire \(process {number}, /dev/snd/controlC0\)", refused.error_text)
    assert server(machine) == number

    virtpass(machine, "domain", "policy", "guest", "display=hand-over").check()
    with lingering(machine):
        desktop_guest.start().check()
        assert machine.state()[CARD] == machine.state()[AUDIO] == LENT
        assert own(machine, "is-system-running").text == "running\n"
        # Sound goes on without the card, which this server waits for.
        machine.wait_until(lambda: active(machine) == SOUND_RUNS, "the user's other sound is back")
        assert server(machine) == ""
        desktop_guest.destroy()
        machine.wait_until(lambda: X.is_seen(machine), "the desktop is on the monitor again", 90)
        machine.wait_until(lambda: server(machine) != "", "the sound server has the card open again")
        assert server(machine) != number
        # What did not run does not run now.
        assert active(machine) == SOUND_RUNS

        # Nothing stays silent when the hook is killed: before it stops them, after, before it starts them.
        for operation, access in (
            ("prepare", "--user stop"),
            ("prepare", "vtcon"),
            ("release", "--user start"),
        ):
            if operation == "release":
                prepare(machine, desktop_guest.name).check()
            ended = killed(machine, desktop_guest, operation, access)
            assert ended.status == -signal.SIGKILL, str(ended)
            virtpass(machine, "recover").check()
            machine.wait_until(lambda: X.is_seen(machine), f"the desktop is back after {access}", 90)
            machine.wait_until(lambda: server(machine) != "", "the sound server has the card again")
            assert active(machine) == SOUND_RUNS
            assert journals(machine) == []


@contextmanager
def lingering(machine: Machine) -> Iterator[None]:
    """Let the user's service manager outlive his sessions, and have sound without one."""
    machine.run(["usermod", "--append", "--groups", "audio", USER]).check()
    machine.run(["loginctl", "enable-linger", USER]).check()
    try:
        yield
    finally:
        machine.run(["loginctl", "disable-linger", USER]).check()
        machine.run(["gpasswd", "--delete", USER, "audio"]).check()


def test_sound_servers_of_somebody_who_has_gone_come_back_with_his_next_login(
    desktop_with_sound: Machine, desktop_guest: Guest
) -> None:
    machine = desktop_with_sound
    number = server(machine)
    give(desktop_guest, CARD)
    prepare(machine, desktop_guest.name).check()
    assert server(machine) == ""
    machine.wait_until(lambda: own(machine, "is-system-running").status != 0, "his manager has ended")
    release(machine, desktop_guest.name).check()
    machine.wait_until(lambda: X.is_seen(machine), "the desktop is on the monitor again", 90)
    machine.wait_until(lambda: server(machine) not in ("", number), "the sound server has the card again")
    assert active(machine) == SOUND_RUNS


@pytest.fixture
def nvidia(desktop: Machine) -> Iterator[Machine]:
    """A device with a driver that is used as NVIDIA's is, and NVIDIA's two services, which do not run yet."""
    desktop.run(["modprobe", "-a", "nvidia", "nvidia_modeset"]).check()
    with stand_ins(desktop, "nvidia-persistenced", "nvidia-powerd"):
        for unit in (PERSISTENCED, POWERD):
            text = HAS_NVIDIA_OPEN.format(stand_ins=STAND_INS, name=unit.removesuffix(".service"))
            desktop.put(text, f"/run/systemd/system/{unit}")
        desktop.run(["systemctl", "daemon-reload"]).check()
        try:
            with unchanged(desktop):
                yield desktop
        finally:
            desktop.run(["systemctl", "stop", PERSISTENCED, POWERD]).check()
            desktop.run(["rm", *(f"/run/systemd/system/{unit}" for unit in (PERSISTENCED, POWERD))]).check()
            desktop.run(["systemctl", "daemon-reload"]).check()
    desktop.run(["modprobe", "-r", "nvidia_modeset", "nvidia"]).check()


def test_nvidia_s_services_let_go_and_those_that_ran_come_back(nvidia: Machine, desktop_guest: Guest) -> None:
    nvidia.run(["systemctl", "start", PERSISTENCED, POWERD]).check()
    give(desktop_guest, EDU, NEIGHBOUR)
    desktop_guest.start().check()
    assert nvidia.state()[EDU] == LENT
    assert running(nvidia) == []
    desktop_guest.destroy()
    nvidia.wait_until(lambda: journals(nvidia) == [], "everything is back")
    assert running(nvidia) == [PERSISTENCED, POWERD]

    nvidia.run(["systemctl", "stop", POWERD]).check()
    prepare(nvidia, desktop_guest.name).check()
    assert running(nvidia) == []
    release(nvidia, desktop_guest.name).check()
    assert running(nvidia) == [PERSISTENCED]


def running(machine: Machine) -> list[str]:
    """Return which of NVIDIA's services run, each with the driver's node open."""
    units = [unit for unit in (PERSISTENCED, POWERD) if is_active(machine, unit)]
    wanted = sorted(unit.removesuffix(".service")[:15] for unit in units)
    # To systemd a service is there before its shell has become it.
    machine.wait_until(
        lambda: sorted(machine.run(["pgrep", "-l", "nvidia-"]).text.split()[1::2]) == wanted,
        f"{', '.join(units)} run, and nothing else of NVIDIA",
    )
    return units


@pytest.fixture
def lasting_log(desktop: Machine) -> Iterator[str]:
    """The log of the host is kept over a reboot, in a folder that goes afterwards; the boot's identifier."""
    desktop.put("[Journal]\nStorage=persistent\n", "/run/systemd/journald.conf.d/zz-lab.conf")
    desktop.run(["mkdir", "-p", LOG]).check()
    desktop.run(["systemctl", "restart", "systemd-journald.service"]).check()
    desktop.run(["journalctl", "--flush"]).check()
    yield desktop.get("/proc/sys/kernel/random/boot_id").decode().strip().replace("-", "")
    desktop.run(["rm", "-r", LOG]).check()


@pytest.fixture
def libvirt_guests(desktop: Machine) -> Iterator[str]:
    """The service of libvirt that shuts guests down with the host, which the lab's image has not."""
    mask = "/etc/systemd/system/libvirt-guests.service"
    desktop.run(["rm", mask]).check()
    yield "libvirt-guests.service"
    desktop.run(["ln", "-s", "/dev/null", mask]).check()
    desktop.run(["systemctl", "daemon-reload"]).check()


@pytest.fixture
def graphical(desktop: Machine) -> Iterator[None]:
    """The machine boots into the desktop."""
    desktop.run(["systemctl", "set-default", "graphical.target"]).check()
    yield
    desktop.run(["systemctl", "set-default", "multi-user.target"]).check()


@pytest.mark.usefixtures("graphical")
def test_nothing_is_started_while_the_host_shuts_down(
    desktop: Machine, desktop_guest: Guest, lasting_log: str, libvirt_guests: str
) -> None:
    """From here on the machine boots again at the end."""
    # As older versions of libvirt have it. That of Debian 13 puts neither before the other: when QEMU has
    # ended, systemd ends the daemon, and soon its hook, which is at work.
    desktop.put("[Unit]\nAfter=libvirtd.service\n", f"/run/systemd/system/{libvirt_guests}.d/order.conf")
    desktop.run(["systemctl", "daemon-reload"]).check()
    desktop.run(["systemctl", "start", libvirt_guests]).check()
    with shown(desktop, X), unchanged(desktop):
        give(desktop_guest, CARD)
        desktop_guest.start().check()
        desktop_guest.wait_ready()
        desktop.reboot()
        assert desktop_guest.state() == "shut off"
        desktop.wait_until(lambda: X.is_seen(desktop), "the desktop is on the monitor again", 90)
        assert_left(shutdown(desktop, lasting_log))


@pytest.mark.usefixtures("graphical")
def test_nothing_is_started_while_somebody_delays_the_shutdown(
    desktop: Machine, desktop_guest: Guest, lasting_log: str
) -> None:
    """logind waits for him, and systemd does not know of the shutdown yet."""
    desktop.put(f"[Login]\nInhibitDelayMaxSec={DELAY}\n", "/run/systemd/logind.conf.d/delay.conf")
    desktop.run(["systemctl", "reload", "systemd-logind.service"]).check()
    with shown(desktop, X), unchanged(desktop):
        give(desktop_guest, CARD)
        desktop_guest.start().check()
        desktop.begin(["systemd-inhibit", "--what=shutdown", "--mode=delay", "sleep", "infinity"])
        desktop.wait_until(
            lambda: "sleep infinity" in desktop.run(["systemd-inhibit", "--list"]).text, "somebody delays it"
        )
        desktop.begin(["sh", "-c", DESTROY_WHEN_ASKED, "sh", desktop_guest.name])
        desktop.reboot()
        desktop.wait_until(lambda: X.is_seen(desktop), "the desktop is on the monitor again", 90)
        lines = shutdown(desktop, lasting_log)
        assert_left(lines)
    said = [str(line.get("MESSAGE")) for line in lines]
    assert next(number for number, one in enumerate(said) if LEFT in one) < said.index(SHUTS_DOWN)


@pytest.mark.usefixtures("graphical")
def test_the_power_fails_while_a_guest_has_the_desktop_s_card(desktop: Machine, desktop_guest: Guest) -> None:
    """What the hand-over has stopped comes with the boot, as ever: nothing is on record, and recover idle."""
    with shown(desktop, X), unchanged(desktop):
        give(desktop_guest, CARD)
        desktop_guest.start().check()
        assert desktop.state()[CARD] == desktop.state()[AUDIO] == LENT
        assert not is_active(desktop, LIGHTDM)
        desktop.run(["sync"]).check()
        # The log goes with the power.
        assert_nothing_denied(desktop)
        desktop.reset()
        desktop.wait_until(lambda: X.is_seen(desktop), "the desktop is on the monitor again", 90)
        assert is_active(desktop, LIGHTDM)
        assert desktop_guest.state() == "shut off"
        assert "nothing to recover" in virtpass(desktop, "recover").check().text


def assert_left(lines: list[dict[str, object]]) -> None:
    """During a shutdown, devices were given back, and nobody has begun to start the display manager.

    Nothing was waited for until it was killed.
    """
    assert [line for line in lines if line.get("UNIT") == LIGHTDM] == []
    assert [line for line in lines if "timed out" in str(line.get("MESSAGE"))] == []
    assert int(str(lines[-1][TIME])) - int(str(lines[0][TIME])) < SHUTDOWN * 1e6
    log = [str(line["MESSAGE"]) for line in lines if line.get("SYSLOG_IDENTIFIER") == "virtpass-hook"]
    assert any(LEFT in line for line in log), log
    assert re.search(r'^event=release .* detail=".* given back" .* outcome=done', log[-1]), log
    assert all("outcome=failed" not in line for line in log), log


def shutdown(machine: Machine, boot: str) -> list[dict[str, object]]:
    """Return what an earlier boot has logged from its shutdown on."""
    argv = ["journalctl", "-D", LOG, f"_BOOT_ID={boot}", "-o", "json", "--no-pager"]
    said = machine.run(argv, timeout=120).check().text
    lines: list[dict[str, object]] = [json.loads(line) for line in said.splitlines()]
    begins = next(number for number, line in enumerate(lines) if line.get("MESSAGE") == REBOOTS)
    return lines[begins:]
