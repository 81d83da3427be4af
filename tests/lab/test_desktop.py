"""The only card goes from a running desktop to a domain, and the desktop comes back with it.

Each test begins with a session that draws on the card's monitor, and ends with one. Pictures of that monitor
go to $VIRTPASS_LAB_PICTURES.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from . import topology
from .guest import Guest, draws
from .killed import NEVER, accesses, killed
from .machine import Machine, Result
from .sessions import (
    CONSOLE,
    GETTY,
    LIGHTDM,
    SESSIONS,
    Session,
    X,
    give,
    is_active,
    settings_of,
    shown,
    unchanged,
)
from .virtpass import (
    AS_LIBVIRT,
    HOOK,
    UNBIND,
    covered,
    journals,
    live_xml,
    never_answering,
    read_json,
    release,
    virtpass,
)

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO = topology.CARD, topology.CARD_AUDIO
LENT = ("vfio-pci", "vfio-pci")
UNBIND_CARD = UNBIND.format(driver="bochs-drm")
# What goes down with the display manager, and is no service.
ALONG = {
    "along.socket": f"[Unit]\nPartOf={LIGHTDM}\n[Socket]\nListenStream=/run/along\n",
    "along.timer": f"[Unit]\nBindsTo={LIGHTDM}\nAfter={LIGHTDM}\n[Timer]\nOnActiveSec=1d\n",
    "along.service": "[Service]\nExecStart=/bin/true\n",
}
# What a hook that is killed before every access is killed before, among others.
KINDS = (
    ("prepare", f"systemctl stop -- {LIGHTDM}"),
    ("prepare", "append_own /run/virtpass/lent"),
    ("prepare", "/vtcon0/bind 0"),
    ("prepare", f"{CARD}/driver_override vfio-pci"),
    ("prepare", UNBIND_CARD),
    ("prepare", f"drivers_probe {CARD}"),
    ("release", f"{CARD}/driver_override bochs-drm"),
    ("release", UNBIND.format(driver="vfio-pci")),
    ("release", f"drivers_probe {CARD}"),
    ("release", "udevadm settle"),
    ("release", f"systemctl start -- {LIGHTDM}"),
    ("release", "remove_own /run/virtpass/lent"),
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for pictures: $VIRTPASS_LAB_PICTURES if somebody wants to look at them."""
    folder = Path(os.environ.get("VIRTPASS_LAB_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(params=[X], ids=[X.name])
def session(request: pytest.FixtureRequest, desktop: Machine) -> Iterator[Session]:
    """A desktop that somebody sees, which is there at the end as well."""
    session: Session = request.param
    with shown(desktop, session):
        yield session


@pytest.fixture(autouse=True)
def before(desktop: Machine, session: Session) -> Iterator[tuple[object, str]]:
    """Drivers and settings at the beginning; they must be the same at the end, with nothing on record."""
    with unchanged(desktop) as found:
        yield found


@pytest.mark.parametrize("session", SESSIONS, ids=[session.name for session in SESSIONS], indirect=True)
def test_the_desktop_lets_the_card_go_and_comes_back(
    desktop: Machine, desktop_guest: Guest, session: Session, pictures: Path
) -> None:
    name = session.name.lower().replace(" ", "-")
    session.save(desktop, pictures / f"{name}-1-before.png")
    console = session.console(desktop)
    running = session.runs(desktop)
    desktop_guest.define(confined=True)
    give(desktop_guest, CARD, display="refuse")
    refused = desktop_guest.start()
    assert refused.status != 0
    assert (
        f"virtpass: the device is in use by {session.program} (process {running[0]}, /dev/dri/card"
        in refused.error_text
    )
    assert session.runs(desktop) == running
    assert session.is_seen(desktop)

    virtpass(desktop, "domain", "policy", "guest", "display=hand-over").check()
    desktop_guest.start().check()
    assert desktop.state()[CARD] == desktop.state()[AUDIO] == LENT
    assert session.runs(desktop) == []
    assert not is_active(desktop, session.unit)
    assert desktop_guest.wait_ready()["0000:01:00.0"].driver == "bochs-drm"
    desktop.wait_until(lambda: draws(desktop.picture()), "the guest draws on the card")
    desktop.screendump(pictures / f"{name}-2-during.png")

    desktop_guest.shutdown()
    desktop.wait_until(lambda: session.is_seen(desktop), "the desktop is on the monitor again", 90)
    assert is_active(desktop, session.unit)
    assert session.runs(desktop) not in ([], running)
    session.save(desktop, pictures / f"{name}-3-after.png")
    # A text console is where it was, as a picture too, and the way back leads to the desktop.
    assert session.console(desktop).shows(console) > 0.9


def test_a_start_that_fails_after_the_desktop_was_stopped_brings_it_back(
    desktop: Machine, desktop_guest: Guest, session: Session
) -> None:
    running = session.runs(desktop)
    give(desktop_guest, CARD)
    for unit, text in ALONG.items():
        desktop.put(text, f"/run/systemd/system/{unit}")
    desktop.run(["systemctl", "daemon-reload"]).check()
    desktop.run(["systemctl", "start", "along.socket", "along.timer"]).check()
    since = active_since(desktop)
    with covered(desktop, UNBIND_CARD, "/dev/full"):
        failed = desktop_guest.start()
    assert failed.status != 0
    assert f"virtpass: {CARD}: unbind bochs-drm: No space left on device" in failed.error_text
    assert "not everything could be put back" not in failed.error_text
    assert desktop_guest.state() == "shut off"
    assert is_active(desktop, session.unit)
    desktop.wait_until(lambda: session.is_seen(desktop), "the desktop is on the monitor again", 90)
    assert session.runs(desktop) != running
    # Those that went down with it are up again.
    assert is_active(desktop, "along.socket")
    assert is_active(desktop, "along.timer")
    assert all(now > before for now, before in zip(active_since(desktop), since, strict=True))
    desktop.run(["systemctl", "stop", *ALONG]).check()
    desktop.run(["rm", *(f"/run/systemd/system/{unit}" for unit in ALONG)]).check()


def active_since(machine: Machine) -> list[int]:
    """Return when the units that go along became active, in microseconds since the boot."""
    argv = ["systemctl", "show", "--value", "-p", "ActiveEnterTimestampMonotonic"]
    return [int(text) for text in machine.run([*argv, "along.socket", "along.timer"]).check().text.split()]


def test_recover_brings_the_desktop_back_when_the_hook_was_killed(
    desktop: Machine, desktop_guest: Guest, session: Session
) -> None:
    give(desktop_guest, CARD)
    xml = live_xml(desktop, "guest")
    with never_answering(desktop, UNBIND_CARD):
        hook = desktop.begin([*AS_LIBVIRT, HOOK, "guest", "prepare", "begin", "-"], xml)
        desktop.wait_until(lambda: desktop.driver(AUDIO) == "vfio-pci", "the hook is half done")
        assert not is_active(desktop, session.unit)
        assert session.runs(desktop) == []
        (process,) = desktop.run(["pgrep", "-f", "-o", "virtpass.hook.entry"]).text.split()
        desktop.run(["kill", "-9", process]).check()
        assert hook.wait().status == -signal.SIGKILL
    assert not is_active(desktop, session.unit)
    recovered = virtpass(desktop, "recover").check()
    assert "guest" in recovered.text
    assert is_active(desktop, session.unit)
    desktop.wait_until(lambda: session.is_seen(desktop), "the desktop is on the monitor again", 90)


def lend(machine: Machine, guest: Guest) -> list[str]:
    """Let the hook lend the card; return its accesses."""
    return accesses(killed(machine, guest, "prepare", NEVER).check())


def made_good(
    machine: Machine, session: Session, before: tuple[object, str], operation: str, ended: Result
) -> tuple[str, str]:
    """Recover from a kill: drivers, consoles, services and the session are as before.

    Returns the operation, and the access before which it was killed.
    """
    assert ended.status == -signal.SIGKILL, str(ended)
    access = accesses(ended)[-1]
    where = f"{operation} was killed before {access}"
    virtpass(machine, "recover").check()
    machine.wait_until(lambda: session.is_seen(machine), f"the desktop is back after {where}", 90)
    assert session.runs(machine) != [], where
    assert (machine.state(), settings_of(machine)) == before, where
    assert journals(machine) == [], where
    return operation, access


def test_recover_brings_the_desktop_back_wherever_the_hook_was_killed(
    desktop: Machine, desktop_guest: Guest, session: Session, before: tuple[object, str]
) -> None:
    """Killed before every access: of prepare from the one on that stops lightdm, of release from the first.

    An access is a write to a record, a device or a console, or a program that is run. Of what comes before
    the first stop nobody at the monitor notices anything; test_survival.py kills the hook there.
    """
    give(desktop_guest, CARD)
    points: list[tuple[str, str]] = []
    whole = lend(desktop, desktop_guest)
    for access in count():
        assert desktop.state()[CARD] == desktop.state()[AUDIO] == LENT
        assert session.runs(desktop) == []
        ended = killed(desktop, desktop_guest, "release", access)
        if ended.status == 0:
            break
        points.append(made_good(desktop, session, before, "release", ended))
        # Not that of the first time, which had to load VFIO's modules.
        whole = lend(desktop, desktop_guest)
    desktop.wait_until(lambda: session.is_seen(desktop), "the desktop is on the monitor again", 90)
    stops = next(number for number, one in enumerate(whole) if "systemctl stop" in one)
    for access in count(stops):
        ended = killed(desktop, desktop_guest, "prepare", access)
        if ended.status == 0:
            break
        points.append(made_good(desktop, session, before, "prepare", ended))
    release(desktop, desktop_guest.name).check()
    missing = [kind for kind in KINDS if not any(one[0] == kind[0] and kind[1] in one[1] for one in points)]
    assert missing == [], points


@pytest.mark.parametrize("session", [CONSOLE], ids=[CONSOLE.name], indirect=True)
def test_recover_brings_back_what_logind_has_ended_when_the_hook_was_killed(
    desktop: Machine, desktop_guest: Guest, session: Session, before: tuple[object, str]
) -> None:
    """Only where the way of such a session is another one than that of Xorg, which ends with lightdm."""
    give(desktop_guest, CARD)
    for access in ("loginctl terminate-session", "/vtcon0/bind 0"):
        made_good(desktop, session, before, "prepare", killed(desktop, desktop_guest, "prepare", access))
    for access in (f"systemctl start -- {GETTY}", "remove_own"):
        lend(desktop, desktop_guest)
        made_good(desktop, session, before, "release", killed(desktop, desktop_guest, "release", access))


def test_who_cannot_be_asked_is_named_before_anything_is_stopped(
    desktop: Machine, desktop_guest: Guest, session: Session
) -> None:
    running = session.runs(desktop)
    give(desktop_guest, CARD)
    # What a container is for systemd: a scope that is nobody's session.
    holder = desktop.begin(
        ["systemd-run", "--scope", "--quiet", "sh", "-c", "exec sleep 1000 < /dev/dri/card0"]
    )
    desktop.wait_until(
        lambda: any("sleep" in str(one) for one in read_json(desktop, "device", "show", CARD)["used_by"]),
        "the program has the card open",
    )
    refused = desktop_guest.start()
    assert refused.status != 0
    assert "still in use by sleep (process " in refused.error_text
    assert session.runs(desktop) == running
    holder.signal(signal.SIGTERM)
    holder.wait()
