"""A desktop lets go of its card and comes back: whoever has it open is asked in the right way, or named."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.simulation import AUDIO, CARD, GUEST, NIC, SimulatedHost, desktop, domain_xml
from virtpass.binding import attributes, display, effects, engine, nvidia, owners, power, safety
from virtpass.binding.journal import Journal, journals, read_journal
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover
from virtpass.operations.rehearsal import rehearse
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError

# No process of the machine that runs the tests has such a number.
XORG, SHELL, PIPEWIRE, SSH, CONTAINER, LOGIND = range(7_000_001, 7_000_007)
CARD0, SOUND = "/dev/dri/card0", "/dev/snd/controlC0"
MANAGER = "lightdm.service"
USER = "/user.slice/user-1000.slice"
KEPT_OUT = "/run/modprobe.d/00-virtpass-lent.conf"
DEVICES = [CARD, AUDIO]
HAND_OVER = (
    "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:policy display='hand-over'/></v:passthrough>"
)


class Desktop(SimulatedHost):
    """A host with programs that have devices open, and systemd, which stops and starts them.

    Attributes:
        programs: what was run, as words.
        stubborn: units that do not stop.
        refusing_to_start: units that do not start.
        loaded_again: modules that are in use.
        ruled: modules that rules of udev load again as soon as they go.
        broken: modules that cannot be loaded.
        endless: modules whose unloading does not come back.
        dependents: units that go down with another one.
        properties: what systemd tells of units beside that, such as ``After=``.
        listening: sockets of users' sound servers that are active.
        staying: users who are logged in from elsewhere, or linger.
        user_state: what logind says of each of these.
        system_state: what systemd says of the host as a whole.
        is_about_to_stop: whether logind says that it will be shut down.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.programs: list[str] = []
        self.stubborn: set[str] = set()
        self.refusing_to_start: set[str] = set()
        self.loaded_again: set[str] = set()
        self.ruled: set[str] = set()
        self.broken: set[str] = set()
        self.endless: set[str] = set()
        self.dependents: dict[str, list[str]] = {}
        self.properties: dict[str, list[str]] = {}
        self.listening: set[str] = set()
        self.staying: set[str] = set()
        self.user_state = "closing"
        self.system_state = "running"
        self.is_about_to_stop = False

    def begin(self, process: int, name: str, cgroup: str, node: str) -> None:
        """Let a process run and have a node open."""
        self.put(f"/proc/{process}/comm", f"{name}\n")
        self.put(f"/proc/{process}/cgroup", f"0::{cgroup}\n")
        self.put(f"/proc/{process}/fd/.keep")
        os.symlink(node, self.path(f"/proc/{process}/fd/11"))
        os.makedirs(self.path(f"/sys/fs/cgroup{cgroup}"), exist_ok=True)

    def end(self, part: str) -> None:
        """End the processes whose cgroup has a part."""
        for name in self.names("/proc"):
            if part in (self.read(f"/proc/{name}/cgroup") or "").split("/"):
                shutil.rmtree(self.path(f"/proc/{name}"))

    def run(self, argv: list[str], deadline: float) -> int | None:
        self.programs.append(" ".join([os.path.basename(argv[0]), *argv[1:]]))
        name = os.path.basename(argv[0])
        if name == "systemctl":
            verb, units = argv[1], argv[argv.index("--") + 1 :]
            if verb == "stop":
                along = [one for unit in units for one in self.dependents.get(unit, [])]
                for one in [*units, *along]:
                    if one not in self.stubborn:
                        self.end(one)
                return 1 if self.stubborn & set(units) else 0
            return 1 if verb == "start" and self.refusing_to_start & set(units) else 0
        if name == "setpriv":
            if "stop" in argv:
                for unit in argv[argv.index("--") + 1 :]:
                    self.end(unit)
                return 5
            return 1 if self.refusing_to_start & set(argv) else 0
        if name == "loginctl":
            for number in argv[2:]:
                self.end(f"session-{number}.scope")
                session = self.read(f"/run/systemd/sessions/{number}") or ""
                user = next((line[4:] for line in session.splitlines() if line.startswith("UID=")), "")
                if user not in self.staying:
                    self.end(f"user@{user}.service")
            return 0
        if name == "rmmod":
            module = argv[-1]
            if module in self.endless:
                os.unlink(self.path(f"/sys/bus/pci/devices/{CARD}/driver"))
                return None
            if module in self.loaded_again or self.names(f"/sys/module/{module}/holders"):
                return 1
            shutil.rmtree(self.path(f"/sys/module/{module}"))
            if module == "nvidia":
                for address in (CARD, NIC):
                    if self.link_name(f"/sys/bus/pci/devices/{address}/driver") == "nvidia":
                        os.unlink(self.path(f"/sys/bus/pci/devices/{address}/driver"))
                        Path(self.path(f"/sys/bus/pci/drivers/nvidia/{address}")).unlink(missing_ok=True)
                shutil.rmtree(self.path("/sys/bus/pci/drivers/nvidia"))
            if module in self.ruled and not self.is_kept_out(module):
                self.put(f"/sys/module/{module}/refcnt", "0\n")
                self.put(f"/sys/module/nvidia/holders/{module}")
            return 0
        if name == "modprobe" and argv[-1].startswith("nvidia"):
            if self.is_kept_out(argv[-1]) or argv[-1] in self.broken:
                return 1
            self.put(f"/sys/module/{argv[-1]}/refcnt", "0\n")
            if not self.exists("/sys/bus/pci/drivers/nvidia"):
                self.add_driver("nvidia")
            return 0
        return 0 if name == "udevadm" else super().run(argv, deadline)

    def is_kept_out(self, module: str) -> bool:
        """Tell whether modprobe would not load a module."""
        return f"install {module} /bin/false\n" in (self.read(KEPT_OUT) or "") + "\n"

    def run_program(
        self, argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        if argv[1] == "is-system-running":
            return 1, self.system_state
        if argv[:5] == ["/sbin/modprobe", "-n", "-a", "--", "vfio"]:
            return (1 if self.broken & set(argv[4:]) else 0), ""
        if argv[1] == "show-user":
            return (0, self.user_state) if self.user_state else (1, "")
        if argv[1] == "show-session":
            return 0, "yes" if self.is_about_to_stop else "no"
        blocks = []
        words = argv[: argv.index("--", 6)]
        user = next((word.rpartition("/")[2] for word in words if word.startswith("XDG_RUNTIME_DIR=")), "")
        above = f"user.slice/user-{user}.slice/user@{user}.service" if user else "system.slice"
        active = {path.name for path in Path(self.path(f"/sys/fs/cgroup/{above}")).rglob("*.*")}
        for unit in argv[argv.index("--", 6) + 1 :]:
            is_active = unit in active | (self.listening if user else set())
            state = "active" if is_active else "inactive"
            needing = " ".join(self.dependents.get(unit, []))
            lines = [f"Id={unit}", f"ActiveState={state}", f"RequiredBy={needing}", "BoundBy=", "ConsistsOf="]
            blocks.append("\n".join([*lines, *self.properties.get(unit, [])]))
        return 0, "\n\n".join(blocks)

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        if path.endswith(("/power/control", "/d3cold_allowed")) or "/vtconsole/" in path:
            self.put(path, f"{value}\n")
            return
        super().write_attribute(path, value, deadline)

    def session(self, number: str, *, seat: str = "seat0", terminal: str = "7") -> None:
        """Let logind know of a session of the first user."""
        self.put(f"/run/systemd/sessions/{number}", f"UID=1000\nSEAT={seat}\nVTNR={terminal}\nTYPE=x11\n")


@pytest.fixture
def host(tmp_path: Path) -> Desktop:
    plain = desktop(os.fspath(tmp_path))
    host = Desktop(plain.root)
    host.__dict__.update({key: value for key, value in plain.__dict__.items() if key not in host.__dict__})
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/dev", "226:0\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/uevent", "DEVNAME=dri/card0\n")
    host.put(f"/sys/bus/pci/devices/{AUDIO}/sound/card0/controlC0/dev", "116:0\n")
    host.put(f"/sys/bus/pci/devices/{AUDIO}/sound/card0/controlC0/uevent", "DEVNAME=snd/controlC0\n")
    return host


def with_lightdm(host: Desktop) -> None:
    host.link("/etc/systemd/system/display-manager.service", f"/lib/systemd/system/{MANAGER}")
    host.begin(XORG, "Xorg", f"/system.slice/{MANAGER}", CARD0)
    host.session("3")


def begun(host: Desktop) -> Journal:
    journal = Journal(host, GUEST, "guest")
    journal.begin(engine.homes(host, DEVICES))
    return journal


def hand_over(host: Desktop, journal: Journal) -> list[str]:
    return display.hand_over(host, journal, DEVICES, 0.1)


def test_a_card_that_nobody_uses_needs_nothing_to_be_stopped(host: Desktop) -> None:
    assert hand_over(host, begun(host)) == []
    assert host.programs == []


def test_the_display_manager_is_stopped_and_started_again(host: Desktop) -> None:
    with_lightdm(host)
    journal = begun(host)
    assert hand_over(host, journal) == [f"{MANAGER} stopped"]
    assert host.programs == [f"systemctl stop -- {MANAGER}"]
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    assert effects.undo(host, found) == []
    # The card's node is waited for before anything draws on it.
    assert host.programs == [
        "udevadm settle --timeout=10",
        f"systemctl reset-failed -- {MANAGER}",
        f"systemctl start -- {MANAGER}",
    ]


def test_consoles_come_back_where_the_kernel_ignores_a_bind(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, dummy = (f"/sys/class/vtconsole/vtcon{number}/bind" for number in (0, 1))
    host.put(ours, "0\n")
    host.put(dummy, "1\n")

    def write(path: str, value: str, deadline: float) -> None:
        if value == "0":
            for console in (ours, dummy):
                host.put(console, "0\n" if console == path else "1\n")

    monkeypatch.setattr(host, "write_attribute", write)
    attributes.put_back(host, (ours, "1", "0"))
    assert (host.read(ours), host.read(dummy)) == ("1", "0")


def test_what_systemd_and_logind_hold_for_a_session_goes_with_it(host: Desktop) -> None:
    host.session("3", terminal="1")
    host.begin(1, "systemd", "/init.scope", CARD0)
    host.begin(LOGIND, "systemd-logind", "/system.slice/systemd-logind.service", CARD0)
    host.begin(SHELL, "weston", f"{USER}/session-3.scope", CARD0)
    assert display.stoppable(host, DEVICES) == display.Asked([], ["3"], [])
    # In a message they would only distract.
    with pytest.raises(RefusedError) as refused:
        safety.refuse_in_use(host, DEVICES)
    assert f"in use by weston (process {SHELL}, {CARD0});" in refused.value.line
    host.end("session-3.scope")
    assert display.stoppable(host, DEVICES) == display.Asked([], [], [])
    with pytest.raises(RefusedError, match="still in use by systemd "):
        hand_over(host, begun(host))


def test_a_session_of_wayland_does_not_end_with_the_display_manager(host: Desktop) -> None:
    with_lightdm(host)
    host.begin(SHELL, "gnome-shell", f"{USER}/user@1000.service/session.slice/shell.service", CARD0)
    host.begin(PIPEWIRE, "pipewire", f"{USER}/user@1000.service/session.slice/pipewire.service", SOUND)
    done = hand_over(host, begun(host))
    assert done == [f"{MANAGER} stopped", "pipewire.service of user 1000 stopped", "session 3 ended"]
    assert host.programs[0] == f"systemctl stop -- {MANAGER}"
    assert "loginctl terminate-session 3" in host.programs


def test_a_login_that_comes_by_itself_again_is_stopped_too(host: Desktop) -> None:
    host.session("5", terminal="1")
    getty = "getty@tty1.service"
    os.makedirs(host.path(f"/sys/fs/cgroup/system.slice/system-getty.slice/{getty}"))
    host.begin(SHELL, "sway", f"{USER}/session-5.scope", CARD0)
    journal = begun(host)
    assert hand_over(host, journal) == [f"{getty} stopped", "session 5 ended"]
    assert ("unit", getty) in journal.effects


def test_services_that_use_the_card_are_stopped(host: Desktop) -> None:
    host.begin(XORG, "nvidia-persiste", "/system.slice/nvidia-persistenced.service", CARD0)
    assert hand_over(host, begun(host)) == ["nvidia-persistenced.service stopped"]


@pytest.mark.parametrize(
    ("name", "cgroup"),
    [
        ("cuda", f"{USER}/session-9.scope"),
        ("ollama", "/machine.slice/docker-4f3e.scope"),
        ("stranger", "/"),
    ],
)
def test_who_cannot_be_asked_is_named_before_anything_is_stopped(
    host: Desktop, name: str, cgroup: str
) -> None:
    with_lightdm(host)
    host.session("9", seat="", terminal="")
    host.begin(SSH, name, cgroup, CARD0)
    journal = begun(host)
    with pytest.raises(RefusedError, match=f"{name} \\(process {SSH}, {CARD0}\\)"):
        hand_over(host, journal)
    assert host.programs == []
    assert journal.effects == []


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("/system.slice/lightdm.service", ("unit", "lightdm.service")),
        ("/system.slice/system-getty.slice/getty@tty1.service", ("unit", "getty@tty1.service")),
        ("/system.slice/foo.service/of/its/own", ("unit", "foo.service")),
        ("/user.slice/user-1000.slice/session-3.scope", ("session", "3")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", ("user", "1000")),
        # The same names within containers, and in cgroups that a service makes for itself.
        ("/machine.slice/systemd-nspawn@box.service/payload/system.slice/ssh.service", None),
        ("/system.slice/docker-ab.scope/system.slice/lightdm.service", None),
        ("/lxc.payload.box/user.slice/user-1000.slice/session-2.scope", None),
        ("/system.slice/foo.service/user@1000.service", ("unit", "foo.service")),
        ("/user.slice/user-1000.slice/user@1001.service", None),
        ("/user.slice/user-x.slice/session-2.scope", None),
        ("/user.slice/user-1000.slice/session--2.scope", None),
        ("/user.slice", None),
        ("/", None),
        ("", None),
    ],
)
def test_who_a_process_belongs_to(host: Desktop, cgroup: str, expected: tuple[str, str] | None) -> None:
    host.put("/proc/7000001/cgroup", f"12:cpu:/elsewhere\n0::{cgroup}\n")
    assert owners.owner(host, 7_000_001) == (expected or ("unknown", cgroup))


@pytest.mark.parametrize("unit", ["ssh.service", "cron.service", "libvirtd.service"])
def test_services_that_the_host_needs_are_not_stopped(host: Desktop, unit: str) -> None:
    host.begin(SSH, "cuda", f"/system.slice/{unit}", CARD0)
    with pytest.raises(RefusedError, match="cuda"):
        hand_over(host, begun(host))
    assert host.programs == []


def test_what_is_undone_is_not_undone_again_when_the_rest_is_not(host: Desktop) -> None:
    with_lightdm(host)
    journal = begun(host)
    hand_over(host, journal)
    journal.add(("unit", "other.service"))
    host.refusing_to_start.add(MANAGER)
    assert len(effects.undo(host, journal)) == 1
    found = read_journal(host, GUEST)
    assert found is not None
    assert found.effects == [("unit", MANAGER), ("unit", "other.service")] == journal.effects
    host.refusing_to_start.clear()
    assert effects.undo(host, found) == []


def test_logind_itself_is_never_stopped(host: Desktop) -> None:
    host.begin(XORG, "systemd-logind", "/system.slice/systemd-logind.service", CARD0)
    with pytest.raises(RefusedError, match="systemd-logind"):
        hand_over(host, begun(host))
    assert host.programs == []


def test_a_service_that_does_not_stop(host: Desktop) -> None:
    with_lightdm(host)
    host.stubborn.add(MANAGER)
    journal = begun(host)
    with pytest.raises(FailedError, match=f"{MANAGER} cannot be stopped"):
        hand_over(host, journal)
    # It is on record all the same: it may have stopped half way.
    assert ("unit", MANAGER) in journal.effects


def test_nothing_is_started_on_a_card_without_a_display(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_lightdm(host)
    hand_over(host, begun(host))
    shutil.rmtree(host.path(f"/sys/bus/pci/devices/{CARD}/drm"))
    monkeypatch.setattr(display, "_NODE_DEADLINE", 0.05)
    host.programs.clear()
    found = read_journal(host, GUEST)
    assert found is not None
    problems = effects.undo(host, found)
    assert [problem.what for problem in problems] == [
        f"{CARD} is back, but its driver shows no display",
        f"{MANAGER} is not started: its display is not there",
    ]
    assert not [one for one in host.programs if "start" in one]


@pytest.mark.parametrize(
    "unit",
    ["-H.service", "a b.service", "../x.service", "lightdm", "--now.service", "-.mount", "x.scope", ""],
)
def test_a_record_names_a_service_and_nothing_else(host: Desktop, unit: str) -> None:
    journal = begun(host)
    journal.add(("unit", unit))
    assert len(effects.undo(host, journal)) == 1
    assert host.programs == []


# consoles


def consoles(host: Desktop, *cards: PciAddress) -> None:
    host.put("/sys/class/vtconsole/vtcon0/name", "(S) dummy device\n")
    host.put("/sys/class/vtconsole/vtcon0/bind", "0\n")
    host.put("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    host.put("/sys/class/vtconsole/vtcon1/bind", "1\n")
    for number, card in enumerate(cards):
        real = host.real_path(f"/sys/bus/pci/devices/{card}")
        host.put(f"{real}/graphics/fb{number}/dev", f"29:{number}\n")
        host.link(f"/sys/class/graphics/fb{number}", f"{real}/graphics/fb{number}")


def test_the_consoles_leave_the_card_and_come_back(host: Desktop) -> None:
    consoles(host, CARD)
    journal = begun(host)
    hand_over(host, journal)
    assert host.read("/sys/class/vtconsole/vtcon1/bind") == "0"
    assert effects.undo(host, journal) == []
    assert host.read("/sys/class/vtconsole/vtcon1/bind") == "1"
    assert host.read("/sys/class/vtconsole/vtcon0/bind") == "0"


def test_consoles_stay_that_are_on_another_card_too(host: Desktop) -> None:
    consoles(host, CARD, NIC)
    hand_over(host, begun(host))
    assert host.read("/sys/class/vtconsole/vtcon1/bind") == "1"


# power


def test_devices_and_the_port_above_them_are_kept_awake(host: Desktop) -> None:
    above = PciAddress.parse("00:04.0")
    for address in (CARD, AUDIO, above):
        host.put(f"/sys/bus/pci/devices/{address}/power/control", "auto\n")
        host.put(f"/sys/bus/pci/devices/{address}/d3cold_allowed", "1\n")
    journal = begun(host)
    power.keep_awake(host, journal, DEVICES)

    def read(name: str) -> set[str | None]:
        return {host.read(f"/sys/bus/pci/devices/{one}/{name}") for one in DEVICES}

    assert (read("power/control"), read("d3cold_allowed")) == ({"on"}, {"0"})
    # Somebody else's later word stays.
    host.put(f"/sys/bus/pci/devices/{AUDIO}/power/control", "auto\n")
    assert effects.undo(host, journal) == []
    assert (read("power/control"), read("d3cold_allowed")) == ({"auto"}, {"1"})


def test_an_attribute_that_is_as_it_was_is_not_written(
    host: Desktop, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"/sys/bus/pci/devices/{CARD}/power/control"
    written: list[str] = []
    monkeypatch.setattr(host, "write_attribute", lambda path, value, deadline: written.append(value))
    for present in ("auto", "other", "on"):
        host.put(path, f"{present}\n")
        attributes.put_back(host, (path, "auto", "on"))
    assert written == ["auto"]
    # A write that has not come back may still change it; another one waits behind it.
    host.put(path, "auto\n")
    monkeypatch.setattr(host, "may_be_written_yet", lambda asked: asked == path)
    attributes.put_back(host, (path, "auto", "on"))
    assert written == ["auto", "auto"]


@pytest.mark.parametrize("is_there", [True, False])
def test_an_attribute_whose_device_vanishes_before_it_is_written_has_nothing_to_put_back(
    host: Desktop, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    path = f"/sys/bus/pci/devices/{CARD}/power/control"
    host.put(path, "on\n")

    def refuse(path: str, value: str, deadline: float) -> None:
        if not is_there:
            os.unlink(host.path(path))
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)

    monkeypatch.setattr(host, "write_attribute", refuse)
    with pytest.raises(OSError, match="No such device") if is_there else nullcontext():
        attributes.put_back(host, (path, "auto", "on"))


# nvidia


def on_nvidia(host: Desktop, *addresses: PciAddress) -> None:
    host.add_driver("nvidia")
    for address in addresses:
        path = f"/sys/bus/pci/devices/{address}/driver"
        host.link(path, "/sys/bus/pci/drivers/nvidia")
        host.link(f"/sys/bus/pci/drivers/nvidia/{address}", f"/sys/bus/pci/devices/{address}")
    for name in ("nvidia", "nvidia_modeset", "nvidia_drm"):
        host.put(f"/sys/module/{name}/refcnt", "1\n")


def test_nvidia_is_unloaded_and_never_unbound(host: Desktop) -> None:
    on_nvidia(host, CARD)
    nvidia.refuse_shared(host, DEVICES)
    journal = begun(host)
    nvidia.unload(host, journal, DEVICES)
    assert host.programs == ["rmmod -- nvidia_drm", "rmmod -- nvidia_modeset", "rmmod -- nvidia"]
    assert host.calls == []
    host.programs.clear()
    assert effects.undo(host, journal) == []
    assert host.programs == ["modprobe -- nvidia_drm", "modprobe -- nvidia_modeset", "modprobe -- nvidia"]


def test_where_nobody_can_tell_nvidia_is_unloaded(host: Desktop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a snapshot without the answer, or without modprobe."""

    def fail(*_: object, **__: object) -> tuple[int | None, str]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    on_nvidia(host, CARD)
    monkeypatch.setattr(host, "run_program", fail)
    nvidia.refuse_lasting_unload(host, DEVICES)


@pytest.mark.parametrize("gone", ["nvidia_drm", "vfio"])
def test_nvidia_that_could_not_be_loaded_again_is_not_unloaded(
    host: Desktop, capfd: pytest.CaptureFixture[str], gone: str
) -> None:
    """As when the kernel was updated since the boot: its modules are no longer there."""
    on_nvidia(host, CARD)
    # Debian has an install line for each of NVIDIA's, of which a dry run tells nothing.
    host.broken.add(gone)
    before = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO, metadata=HAND_OVER)) == 1
    said = capfd.readouterr().err
    assert "modprobe would not load all of nvidia_drm, nvidia_modeset, nvidia again" in said
    assert "if the kernel was updated since the last boot, reboot the host" in said
    assert not [program for program in host.programs if program.startswith("rmmod")]
    assert host.state() == before
    assert host.exists("/sys/module/nvidia_drm")


def test_a_rule_that_loads_a_module_of_nvidia_again_is_in_vain(host: Desktop) -> None:
    """Else it would be in time to keep the next one in use, or load it as long as the card is lent."""
    on_nvidia(host, CARD)
    host.ruled.update(("nvidia_drm", "nvidia_modeset", "nvidia"))
    journal = begun(host)
    nvidia.unload(host, journal, DEVICES)
    assert not any(host.exists(f"/sys/module/{name}") for name in ("nvidia_drm", "nvidia_modeset", "nvidia"))
    assert all(host.is_kept_out(name) for name in ("nvidia", "nvidia_uvm", "nvidia_peermem"))
    assert effects.undo(host, journal) == []
    assert host.exists("/sys/module/nvidia_drm")
    assert not host.exists(KEPT_OUT)


def test_the_card_goes_back_to_nvidia_although_its_modules_are_kept_out(host: Desktop) -> None:
    on_nvidia(host, CARD)
    host.put(f"/sys/bus/pci/devices/{CARD}/native", "nvidia")
    before = host.state()
    xml = domain_xml(CARD, AUDIO, metadata=HAND_OVER)
    assert run(host, "prepare", xml) == 0
    assert host.state()[CARD] == ("vfio-pci", "vfio-pci")
    assert host.exists(KEPT_OUT)
    # Another domain's start or stop, or somebody else, has let them in: nothing depends on it.
    os.unlink(host.path(KEPT_OUT))
    assert run(host, "release", xml) == 0
    assert host.state() == before
    assert run(host, "prepare", xml) == 0
    assert run(host, "release", xml) == 0
    assert host.state() == before
    assert not host.exists(KEPT_OUT)
    assert journals(host) == []


def test_nvidia_that_cannot_be_loaded_again_is_kept_out_until_it_can(host: Desktop) -> None:
    """Else rules of udev would go on with what has failed."""
    on_nvidia(host, CARD)
    journal = begun(host)
    nvidia.unload(host, journal, DEVICES)
    host.broken.add("nvidia_drm")
    host.broken.add("nvidia_modeset")
    host.broken.add("nvidia")
    assert {one.reference for one in effects.undo(host, journal)} == {"module"}
    assert host.exists(KEPT_OUT)
    host.broken.clear()
    assert effects.undo(host, journal) == []
    assert not host.exists(KEPT_OUT)


def test_modprobe_that_cannot_be_told_is_no_reason_to_refuse(host: Desktop) -> None:
    on_nvidia(host, CARD)
    os.makedirs(host.path("/run"), exist_ok=True)
    os.symlink("/tmp", host.path("/run/modprobe.d"))
    done, problem = nvidia.unload(host, begun(host), DEVICES)
    assert done == "nvidia_drm, nvidia_modeset, nvidia unloaded"
    assert problem.startswith("modprobe may load them again: /run/modprobe.d is a symbolic link")


def test_what_keeps_nvidia_out_goes_when_nothing_is_on_record_for_it(host: Desktop) -> None:
    on_nvidia(host, CARD)
    journal = begun(host)
    nvidia.unload(host, journal, DEVICES)
    nvidia.let_in_unless_lent(host)
    assert host.exists(KEPT_OUT)
    assert "virtpass recover" in (host.read(KEPT_OUT) or "")
    # Somebody has removed a record that could not be read.
    journal.remove()
    assert recover(host, frozenset, dry_run=True) == []
    assert host.exists(KEPT_OUT)
    assert recover(host, frozenset) == []
    assert not host.exists(KEPT_OUT)


def test_the_other_functions_of_an_nvidia_card_let_go_first(host: Desktop) -> None:
    """They are consumers of function 0, which loses its driver with the module."""
    on_nvidia(host, CARD)
    host.put(f"/sys/bus/pci/devices/{CARD}/native", "nvidia")
    before = host.state()
    seen: list[str] = []
    write, program = host.write_attribute, host.run

    def wrote(path: str, value: str, deadline: float) -> None:
        if path.endswith("/unbind"):
            seen.append(f"unbind {value}")
        write(path, value, deadline)

    def ran(argv: list[str], deadline: float) -> int | None:
        if argv[0].endswith("rmmod"):
            seen.append(f"rmmod {argv[-1]}")
        return program(argv, deadline)

    host.write_attribute, host.run = wrote, ran  # type: ignore[method-assign]
    xml = domain_xml(CARD, AUDIO, metadata=HAND_OVER)
    foreseen = [one.text for one in rehearse(host, xml.decode()).steps]
    assert run(host, "prepare", xml) == 0
    assert seen == [f"unbind {AUDIO}", "rmmod nvidia_drm", "rmmod nvidia_modeset", "rmmod nvidia"]
    told = [one for one in foreseen if "unbind" in one or "unload " in one]
    assert told == [
        f"{AUDIO}: unbind from snd_hda_intel",
        "unload nvidia_drm",
        "unload nvidia_modeset",
        "unload nvidia",
    ]
    assert run(host, "release", xml) == 0
    assert host.state() == before


def test_services_of_a_card_whose_driver_is_not_back_are_not_started(host: Desktop) -> None:
    """It had no display, whose coming back would tell."""
    host.begin(XORG, "nvidia-persiste", "/system.slice/nvidia-persistenced.service", "/dev/nvidia0")
    journal = begun(host)
    journal.add(("unit", "nvidia-persistenced.service"))
    (problem,) = effects.undo(host, journal, stays=True)
    assert "nvidia-persistenced.service is not started" in problem.what
    assert host.programs == []
    assert effects.undo(host, journal) == []
    assert host.programs[-1] == "systemctl start -- nvidia-persistenced.service"


def test_nvidia_in_use_is_told_and_loaded_again(host: Desktop) -> None:
    on_nvidia(host, CARD)
    host.loaded_again.add("nvidia_modeset")
    journal = begun(host)
    with pytest.raises(RefusedError, match=r"nvidia_modeset cannot be unloaded: it is in use \(1 users\)"):
        nvidia.unload(host, journal, DEVICES)
    assert effects.undo(host, journal) == []
    assert host.exists("/sys/module/nvidia_drm")
    assert not host.exists(KEPT_OUT)


def test_nvidia_that_another_card_needs_stays(host: Desktop) -> None:
    on_nvidia(host, CARD, NIC)
    with pytest.raises(RefusedError, match=f"{NIC} would lose it too"):
        nvidia.refuse_shared(host, DEVICES)


def test_another_driver_is_not_unloaded(host: Desktop) -> None:
    assert nvidia.unload(host, begun(host), DEVICES) == []
    nvidia.refuse_shared(host, DEVICES)
    assert host.programs == []


def test_nvidia_that_does_not_come_back_from_unloading_is_stuck(host: Desktop) -> None:
    on_nvidia(host, CARD)
    host.endless.add("nvidia")
    with pytest.raises(FailedError, match="nvidia does not come back from its driver") as caught:
        nvidia.unload(host, begun(host), DEVICES)
    assert caught.value.reference == "stuck"
    with pytest.raises(FailedError, match=f"a driver hangs with {CARD}"):
        engine.refuse_stuck(host, CARD)
    engine.refuse_stuck(host, AUDIO)


def test_who_has_the_nodes_of_nvidia_open_lets_go_or_is_named(host: Desktop) -> None:
    """They are no children of the device in sysfs."""
    on_nvidia(host, CARD)
    host.put("/dev/nvidia0")
    host.put("/dev/nvidiactl")
    host.begin(XORG, "nvidia-persistenced", "/system.slice/nvidia-persistenced.service", "/dev/nvidiactl")
    journal = begun(host)
    assert hand_over(host, journal) == ["nvidia-persistenced.service stopped"]
    host.begin(CONTAINER, "python3", "/machine.slice/libpod-1.scope", "/dev/nvidia0")
    with pytest.raises(RefusedError, match=f"python3 \\(process {CONTAINER}, /dev/nvidia0\\)"):
        display.stoppable(host, DEVICES)
    assert display.stoppable(host, [NIC]) == display.Asked([], [], [])


# a driver that hangs


def lend(host: Desktop, journal: Journal, addresses: list[PciAddress]) -> None:
    """Lend devices as the hook does."""

    def prepare() -> None:
        display.hand_over(host, journal, addresses, 0.1)

    engine.lend(host, journal, engine.homes(host, addresses), prepare)


def test_the_desktop_comes_back_although_another_device_hangs(host: Desktop) -> None:
    with_lightdm(host)
    host.hanging.add(NIC)
    journal = Journal(host, GUEST, "guest")
    addresses = [*DEVICES, NIC]
    with pytest.raises(FailedError, match=f"{NIC}: unbind e1000e does not come back"):
        lend(host, journal, addresses)
    assert host.programs[-1] == f"systemctl start -- {MANAGER}"


def test_the_desktop_stays_away_from_a_card_that_hangs(host: Desktop) -> None:
    with_lightdm(host)
    host.hanging.add(CARD)
    journal = Journal(host, GUEST, "guest")
    with pytest.raises(FailedError, match=f"{CARD}: unbind bochs-drm does not come back") as caught:
        lend(host, journal, DEVICES)
    assert f"{MANAGER} is not started: its display is not there" in caught.value.what
    assert not [one for one in host.programs if " start " in one]
