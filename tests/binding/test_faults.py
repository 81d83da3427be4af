"""Every write of a hand-over, cut off by an error and by a kill: afterwards all can be brought back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.simulation import AUDIO, CARD, GUEST, NIC, OTHER, SimulatedHost, desktop, domain_xml
from virtpass.binding.journal import journals
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover

XML = domain_xml(CARD, AUDIO)


class Killed(BaseException):
    """The process ends here: nothing of it runs any more."""


class FaultyHost(SimulatedHost):
    """A host on which the n-th effect fails."""

    def __init__(self, root: str, at: int, kind: str) -> None:
        super().__init__(root)
        self.left = at
        self.kind = kind
        self.reached = False

    def _effect(self, effect: Callable[[], None]) -> None:
        self.left -= 1
        if self.left != 0:
            if self.reached and self.kind.startswith("kill"):
                raise Killed
            effect()
            return
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


def attempt(host: FaultyHost, operation: str) -> int | None:
    """Run the hook; None when it was killed."""
    try:
        return run(host, operation, XML)
    except Killed:
        return None


def count(root: Path, operation: str) -> int:
    """Return how many effects an operation has."""
    desktop(str(root))
    if operation == "release":
        assert run(SimulatedHost(str(root)), "prepare", XML) == 0
    host = FaultyHost(str(root), -1, "none")
    assert run(host, operation, XML) == 0
    return -1 - host.left


KINDS = ("error", "kill before", "kill after", "kill within")


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_cut_off_anywhere(tmp_path: Path, kind: str) -> None:
    effects = count(tmp_path / "count", "prepare")
    assert effects >= 7
    for at in range(1, effects + 1):
        root = tmp_path / str(at)
        before = desktop(str(root)).state()
        host = FaultyHost(str(root), at, kind)
        status = attempt(host, "prepare")
        assert host.reached
        fresh = SimulatedHost(str(root))
        if status == 1:
            assert fresh.state() == before, f"after an error at effect {at}"
        # What libvirt does after a prepare that failed; the domain never ran.
        assert run(fresh, "release", XML) == 0
        assert fresh.state() == before, f"{kind} at effect {at}"
        assert journals(fresh) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("healer", ["recover", "release", "next start"])
def test_release_cut_off_anywhere(tmp_path: Path, kind: str, healer: str) -> None:
    effects = count(tmp_path / "count", "release")
    for at in range(1, effects + 1):
        root = tmp_path / str(at)
        before = desktop(str(root)).state()
        assert run(SimulatedHost(str(root)), "prepare", XML) == 0
        attempt(FaultyHost(str(root), at, kind), "release")
        fresh = SimulatedHost(str(root))
        if healer == "recover":
            assert not [problem for one in recover(fresh, lambda: []) for problem in one.problems]
        elif healer == "next start":
            assert run(fresh, "prepare", XML) == 0
            assert run(fresh, "release", XML) == 0
        else:
            assert run(fresh, "release", XML) == 0
        assert fresh.state() == before, f"{kind} at effect {at}, {healer}"
        assert journals(fresh) == []


def test_recover_cut_off_anywhere_is_finished_by_the_next_one(tmp_path: Path) -> None:
    effects = count(tmp_path / "count", "release")
    for at in range(1, effects + 1):
        root = tmp_path / str(at)
        before = desktop(str(root)).state()
        assert run(SimulatedHost(str(root)), "prepare", XML) == 0
        with pytest.raises(Killed):
            recover(FaultyHost(str(root), at, "kill after"), lambda: [])
        recover(SimulatedHost(str(root)), lambda: [])
        assert SimulatedHost(str(root)).state() == before


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
