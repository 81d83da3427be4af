"""A release that waits in vain for the lock is made by whoever has it, or by the next hook."""

import os
import threading
from collections.abc import Callable

import pytest

from tests.simulation import CARD, GUEST, NIC, OTHER, SimulatedHost, domain_xml
from virtpass.binding import engine
from virtpass.binding.journal import journals
from virtpass.hook import entry, late_releases
from virtpass.hook.entry import run
from virtpass.operations.locking import locked
from virtpass.operations.recovery import recover
from virtpass.system.host import Host

MARK = f"/run/virtpass/released/{GUEST}"
XML = domain_xml(CARD)


@pytest.fixture
def late(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    """Lend a card, and let its release wait in vain; return the drivers before."""
    monkeypatch.setattr(engine, "LOCK_DEADLINE", 0.1)
    monkeypatch.setattr(entry, "_LAST_WAIT", 0.1)
    before = host.state()
    assert run(host, "prepare", XML) == 0
    held = engine.lock(host)
    assert run(host, "release", XML) == 0
    assert capfd.readouterr() == ("", "")
    assert journals(host) == [GUEST]
    assert host.exists(MARK)
    os.close(held)
    return before


@pytest.mark.parametrize("operation", ["prepare", "release"])
def test_the_next_hook_makes_it(host: SimulatedHost, late: object, operation: str) -> None:
    other = domain_xml(NIC, uuid=OTHER, name="other")
    assert run(host, operation, other) == 0
    assert host.read(f"/sys/bus/pci/devices/{CARD}/driver_override") == "(null)"
    assert journals(host) == ([OTHER] if operation == "prepare" else [])
    assert not host.exists(MARK)
    assert run(host, "release", other) == 0
    assert host.state() == late


def test_recover_makes_it(host: SimulatedHost, late: object) -> None:
    assert [one.state for one in recover(host, lambda: [])] == ["recovered"]
    assert host.state() == late


def test_a_domain_that_starts_again_keeps_its_card(host: SimulatedHost, late: object) -> None:
    assert run(host, "prepare", XML) == 0
    lent = host.state()
    assert lent[CARD] == ("vfio-pci", "vfio-pci")
    # Neither its own hook nor the next one obeys a mark of the time before.
    assert run(host, "prepare", domain_xml(NIC, uuid=OTHER, name="other")) == 0
    assert host.state()[CARD] == lent[CARD]


def test_the_hook_that_has_the_lock_makes_it_at_its_end(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()
    monkeypatch.setattr(engine, "LOCK_DEADLINE", 0.1)
    monkeypatch.setattr(entry, "_LAST_WAIT", 0.1)
    assert run(host, "prepare", XML) == 0
    lend: Callable[..., None] = engine.lend

    def meanwhile(*arguments: object, **more: object) -> None:
        monkeypatch.setattr(engine, "lend", lend)
        assert run(SimulatedHost(host.root), "release", XML) == 0
        assert journals(host) == [GUEST]
        lend(*arguments, **more)

    monkeypatch.setattr(engine, "lend", meanwhile)
    assert run(host, "prepare", domain_xml(NIC, uuid=OTHER, name="other")) == 0
    assert host.state()[CARD] == before[CARD]
    assert journals(host) == [OTHER]


def test_what_goes_wrong_with_it_is_not_the_other_domain_s_business(
    host: SimulatedHost, late: object, capfd: pytest.CaptureFixture[str]
) -> None:
    host.refusing.add(("bochs-drm", CARD))
    assert run(host, "prepare", domain_xml(NIC, uuid=OTHER, name="other")) == 0
    assert capfd.readouterr() == ("", "")
    assert journals(host) == sorted([GUEST, OTHER])
    # Every hook from now on would try it again, and wait for a driver that hangs.
    assert not host.exists(MARK)
    host.refusing.clear()
    assert [one.state for one in recover(host, lambda: [OTHER])] == ["recovered", "running"]


def test_a_start_that_needs_the_card_gets_it(host: SimulatedHost, late: object) -> None:
    assert run(host, "prepare", domain_xml(CARD, uuid=OTHER, name="other")) == 0
    assert journals(host) == [OTHER]
    assert host.state()[CARD] == ("vfio-pci", "vfio-pci")
    assert run(host, "release", domain_xml(CARD, uuid=OTHER, name="other")) == 0
    assert host.state() == late


def test_a_command_that_kept_the_lock_makes_it(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LOCK_DEADLINE", 0.1)
    monkeypatch.setattr(entry, "_LAST_WAIT", 0.1)
    before = host.state()
    assert run(host, "prepare", XML) == 0
    with locked(host):
        assert run(SimulatedHost(host.root), "release", XML) == 0
        assert host.exists(MARK)
    assert host.state() == before
    assert not host.exists(MARK)


def test_who_lets_go_just_then_is_waited_for(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder looked for marks before there was this one: nobody would come for it."""
    monkeypatch.setattr(engine, "LOCK_DEADLINE", 0.1)
    before = host.state()
    assert run(host, "prepare", XML) == 0
    held = engine.lock(host)
    mark = late_releases.mark

    def lets_go(*arguments: Host | str) -> None:
        mark(*arguments)  # type: ignore[arg-type]
        threading.Timer(0.3, os.close, [held]).start()

    monkeypatch.setattr(late_releases, "mark", lets_go)
    assert run(host, "release", XML) == 0
    assert host.state() == before
    assert not host.exists(MARK)


def test_a_domain_without_a_uuid_names_no_file(
    host: SimulatedHost, capfd: pytest.CaptureFixture[str]
) -> None:
    host.put("/run/virtpass/evil")
    assert run(host, "prepare", domain_xml(NIC, uuid="../evil")) == 1
    assert "is not a UUID" in capfd.readouterr().err
    assert host.exists("/run/virtpass/evil")


def test_a_mark_without_a_record_is_forgotten(host: SimulatedHost) -> None:
    host.put(MARK)
    assert run(host, "release", domain_xml(NIC, uuid=OTHER)) == 0
    assert not host.exists(MARK)
