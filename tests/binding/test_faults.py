"""Every access of a hand-over, cut off by an error and by a kill: afterwards all can be brought back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.binding.test_display import (
    CARD0,
    LOGIND,
    MANAGER,
    PIPEWIRE,
    SHELL,
    SOUND,
    USER,
    XORG,
    Desktop,
    consoles,
    with_lightdm,
)
from tests.simulation import AUDIO, CARD, GUEST, NIC, OTHER, PORT, SimulatedHost, desktop, domain_xml
from virtpass.binding.journal import journals
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover

XML = domain_xml(CARD, AUDIO)
GETTY = "getty@tty1.service"
LOGIN = LOGIND + 1

Answer = TypeVar("Answer")


class Killed(BaseException):
    """The process ends here: nothing of it runs any more."""


class FaultyHost(SimulatedHost):
    """A host on which the n-th effect fails."""

    def __init__(self, root: str, at: int, kind: str) -> None:
        super().__init__(root)
        self.left = at
        self.kind = kind
        self.reached = False

    def _effect(self, effect: Callable[[], Answer]) -> Answer:
        self.left -= 1
        if self.left != 0:
            if self.reached and self.kind.startswith("kill"):
                raise Killed
            return effect()
        self.reached = True
        if self.kind == "kill after":
            effect()
        if self.kind == "error":
            raise OSError(5, "Input/output error")
        raise Killed

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        self._effect(lambda: super(FaultyHost, self).write_attribute(path, value, deadline))

    def append_own(self, directory: str, name: str, content: bytes) -> None:
        if self.left == 1 and self.kind == "kill within":
            super().append_own(directory, name, content[: len(content) // 2])
        self._effect(lambda: super(FaultyHost, self).append_own(directory, name, content))

    def remove_own(self, directory: str, name: str) -> None:
        self._effect(lambda: super(FaultyHost, self).remove_own(directory, name))


class Lived(Desktop):
    """A desktop whose units really go and come.

    There are a display manager with its X server, somebody logged in on the first terminal by an autologin,
    and his sound server, which outlives his session.
    """

    # What each unit brings: process, name, control group and what it has open.
    BRINGS = {
        MANAGER: [(XORG, "Xorg", f"/system.slice/{MANAGER}", CARD0)],
        GETTY: [
            (LOGIN, "login", f"/system.slice/system-getty.slice/{GETTY}", "/dev/tty1"),
            (SHELL, "sway", f"{USER}/session-5.scope", CARD0),
        ],
        "pipewire.service": [
            (PIPEWIRE, "pipewire", f"{USER}/user@1000.service/session.slice/pipewire.service", SOUND)
        ],
    }

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.staying = {"1000"}
        self.user_state = "lingering"

    @classmethod
    def build(cls, root: str) -> None:
        """Make one in a directory."""
        desktop(root)
        host = cls(root)
        for address, below, number, node in (
            (CARD, "drm/card0", "226:0", "dri/card0"),
            (AUDIO, "sound/card0/controlC0", "116:0", "snd/controlC0"),
        ):
            host.put(f"/sys/bus/pci/devices/{address}/{below}/dev", f"{number}\n")
            host.put(f"/sys/bus/pci/devices/{address}/{below}/uevent", f"DEVNAME={node}\n")
        for address in (CARD, AUDIO, PORT):
            host.put(f"/sys/bus/pci/devices/{address}/power/control", "auto\n")
        consoles(host, CARD)
        with_lightdm(host)
        host.session("5", terminal="1")
        host.put("/run/user/1000/systemd/private")
        for unit in cls.BRINGS:
            host.start(unit)

    def start(self, unit: str) -> None:
        """Let the processes of a unit run that do not."""
        for process, name, cgroup, node in self.BRINGS.get(unit, []):
            if not self.exists(f"/proc/{process}/comm"):
                self.begin(process, name, cgroup, node)

    def runs(self) -> set[tuple[str, str]]:
        """Return name and control group of what runs."""
        found = (
            (self.read(f"/proc/{name}/comm"), self.read(f"/proc/{name}/cgroup"))
            for name in self.names("/proc")
        )
        return {(comm, cgroup) for comm, cgroup in found if comm and cgroup}

    def run(self, argv: list[str], deadline: float) -> int | None:
        status = super().run(argv, deadline)
        units = argv[argv.index("--") + 1 :] if "--" in argv else []
        for unit in units:
            if "start" in argv:
                self.start(unit)
            elif "stop" in argv:
                _, _, cgroup, _ = self.BRINGS[unit][0]
                shutil.rmtree(self.path(f"/sys/fs/cgroup{cgroup}"))
        if "terminate-session" in argv and self.exists(f"/proc/{LOGIN}/comm"):
            # With its getty there, an autologin comes again at once.
            self.start(GETTY)
        return status


class FaultyDesktop(FaultyHost, Lived):
    """The same, where the n-th access fails: programs count too, and one that fails has done nothing."""

    def run(self, argv: list[str], deadline: float) -> int | None:
        if self.kind == "error" and argv[0].endswith("/setpriv"):
            # Sound that does not start again is told and forgotten on purpose.
            return super(FaultyHost, self).run(argv, deadline)
        try:
            return self._effect(lambda: super(FaultyDesktop, self).run(argv, deadline))
        except OSError:
            return 1

    def run_program(
        self, argv: list[str], environment: dict[str, str], deadline: float, *, limit: int = 0
    ) -> tuple[int | None, str]:
        return self._effect(
            lambda: super(FaultyDesktop, self).run_program(argv, environment, deadline, limit=limit)
        )


@dataclass(frozen=True)
class Case:
    """What is handed over, and from which host.

    Attributes:
        build: makes the host in a directory.
        host: is that host as it should be.
        faulty: is it with a fault.
        xml: the domain.
        accesses: how many prepare and release have at least.
    """

    build: Callable[[str], object]
    host: type[SimulatedHost]
    faulty: type[FaultyHost]
    xml: bytes
    accesses: dict[str, int]

    def traces(self, root: Path) -> tuple[object, ...]:
        """Return all that has to be as before: drivers, overrides, power, consoles, what runs, our files."""
        host = self.host(str(root))
        paths = [f"/sys/class/vtconsole/{name}/bind" for name in host.names("/sys/class/vtconsole")]
        paths += [f"/sys/bus/pci/devices/{address}/power/control" for address in host.state()]
        runs = host.runs() if isinstance(host, Lived) else set()
        ours = [host.names(f"/run/virtpass/{name}") for name in ("lent", "released", "stuck")]
        return host.state(), [host.read(path) for path in paths], runs, ours


PLAIN = Case(desktop, SimulatedHost, FaultyHost, XML, {"prepare": 7, "release": 7})
HAND_OVER = Case(
    Lived.build,
    Lived,
    FaultyDesktop,
    domain_xml(
        CARD,
        AUDIO,
        metadata=(
            "<virtpass:passthrough xmlns:virtpass='urn:virtpass:passthrough:1'>"
            "<virtpass:policy display='hand-over' wait='0'/></virtpass:passthrough>"
        ),
    ),
    {"prepare": 20, "release": 20},
)


def attempt(host: FaultyHost, operation: str, xml: bytes) -> int | None:
    """Run the hook; None when it was killed."""
    try:
        return run(host, operation, xml)
    except Killed:
        return None


def count(case: Case, root: Path, operation: str, kind: str) -> int:
    """Make a host, run an operation, and return how many effects it has that can be cut off in this way."""
    case.build(str(root))
    before = case.traces(root)
    if operation == "release":
        assert run(case.host(str(root)), "prepare", case.xml) == 0
        assert case.traces(root) != before
    host = case.faulty(str(root), -1, kind)
    assert run(host, operation, case.xml) == 0
    assert (case.traces(root) == before) is (operation == "release")
    effects = -1 - host.left
    assert effects >= case.accesses[operation]
    return effects


KINDS = ("error", "kill before", "kill after", "kill within")
# "kill within" is a kill before whatever cannot be half done, and after one access is before the next: for
# the many accesses of a hand-over that is enough.
CASES_AND_KINDS = [
    *(pytest.param(PLAIN, kind, id=f"plain-{kind}") for kind in KINDS),
    *(pytest.param(HAND_OVER, kind, id=f"hand-over-{kind}") for kind in ("error", "kill within")),
]


@pytest.mark.parametrize(("case", "kind"), CASES_AND_KINDS)
@pytest.mark.parametrize("healer", ["recover", "release"])
def test_prepare_cut_off_anywhere(tmp_path: Path, case: Case, kind: str, healer: str) -> None:
    effects = count(case, tmp_path, "prepare", kind)
    assert run(case.host(str(tmp_path)), "release", case.xml) == 0
    before = case.traces(tmp_path)
    for at in range(1, effects + 1):
        host = case.faulty(str(tmp_path), at, kind)
        status = attempt(host, "prepare", case.xml)
        assert host.reached
        if status == 1:
            assert case.traces(tmp_path) == before, f"after an error at effect {at}"
        fresh = case.host(str(tmp_path))
        if healer == "recover":
            assert not [problem for one in recover(fresh, lambda: []) for problem in one.problems]
        else:
            # What libvirt does after a prepare that failed; the domain never ran.
            assert run(fresh, "release", case.xml) == 0
        assert case.traces(tmp_path) == before, f"{kind} at effect {at}"


@pytest.mark.parametrize(("case", "kind"), CASES_AND_KINDS)
@pytest.mark.parametrize("healer", ["recover", "release", "next start"])
def test_release_cut_off_anywhere(tmp_path: Path, case: Case, kind: str, healer: str) -> None:
    effects = count(case, tmp_path, "release", kind)
    before = case.traces(tmp_path)
    for at in range(1, effects + 1):
        assert run(case.host(str(tmp_path)), "prepare", case.xml) == 0
        attempt(case.faulty(str(tmp_path), at, kind), "release", case.xml)
        fresh = case.host(str(tmp_path))
        if healer == "recover":
            assert not [problem for one in recover(fresh, lambda: []) for problem in one.problems]
        elif healer == "next start":
            assert run(fresh, "prepare", case.xml) == 0
            assert run(fresh, "release", case.xml) == 0
        else:
            assert run(fresh, "release", case.xml) == 0
        assert case.traces(tmp_path) == before, f"{kind} at effect {at}, {healer}"


@pytest.mark.parametrize("case", [PLAIN, HAND_OVER], ids=["plain", "hand-over"])
def test_recover_cut_off_anywhere_is_finished_by_the_next_one(tmp_path: Path, case: Case) -> None:
    effects = count(case, tmp_path, "release", "kill after")
    before = case.traces(tmp_path)
    for at in range(1, effects + 1):
        assert run(case.host(str(tmp_path)), "prepare", case.xml) == 0
        with pytest.raises(Killed):
            recover(case.faulty(str(tmp_path), at, "kill after"), lambda: [])
        recover(case.host(str(tmp_path)), lambda: [])
        assert case.traces(tmp_path) == before


def test_recover_leaves_running_domains_alone(host: SimulatedHost) -> None:
    run(host, "prepare", XML)
    lent = host.state()
    assert [one.state for one in recover(host, lambda: [GUEST])] == ["running"]
    assert host.state() == lent


def test_without_libvirt_an_open_group_tells_that_the_domain_runs(host: SimulatedHost) -> None:
    before = host.state()
    run(host, "prepare", XML)
    host.busy_groups.add(10)
    assert [one.state for one in recover(host, lambda: None)] == ["running"]
    host.busy_groups.clear()
    assert [one.state for one in recover(host, lambda: None)] == ["recovered"]
    assert host.state() == before


def test_a_dry_run_tells_the_steps_and_makes_none(host: SimulatedHost) -> None:
    run(host, "prepare", XML)
    lent = host.state()
    (found,) = recover(host, lambda: [], dry_run=True)
    assert found.state == "pending"
    assert found.steps[0] == f"{CARD}: set driver_override to bochs-drm"
    assert host.state() == lent
    (done,) = recover(host, lambda: [])
    assert done.steps == found.steps


def test_a_record_that_cannot_be_read_is_reported_and_kept(host: SimulatedHost) -> None:
    host.put(f"/run/virtpass/lent/{GUEST}", "rubbish\n")
    (found,) = recover(host, lambda: [])
    assert found.state == "failed"
    assert "is not a record of virtpass" in found.problems[0]
    assert journals(host) == [GUEST]


def test_a_domain_that_starts_while_libvirt_is_asked_keeps_its_card(host: SimulatedHost) -> None:
    run(host, "prepare", XML)

    def meanwhile() -> list[str]:
        # What was left is made good by the start itself, and the card is lent anew.
        assert run(host, "prepare", XML) == 0
        return []

    lent = host.state()
    assert [one.state for one in recover(host, meanwhile)] == ["running"]
    assert host.state() == lent


def test_a_domain_that_starts_for_the_first_time_meanwhile(host: SimulatedHost) -> None:
    run(host, "prepare", domain_xml(NIC, uuid=OTHER))
    before = host.state()

    def meanwhile() -> list[str]:
        assert run(host, "prepare", XML) == 0
        return [OTHER]

    assert {one.state for one in recover(host, meanwhile)} == {"running"}
    assert host.state()[CARD] == ("vfio-pci", "vfio-pci")
    assert host.state()[NIC] == before[NIC]
