"""Who has borrowed a device and will never give it back: only what is certain counts."""

import os
from pathlib import Path

import pytest

from tests.simulation import AUDIO, CARD, GUEST, NIC, OTHER, SimulatedHost, domain_xml
from virtpass.binding import reservations
from virtpass.binding.journal import DIRECTORY, journals, read_journal
from virtpass.hook.entry import run
from virtpass.operations.devices import list_devices
from virtpass.operations.recovery import recover

FIRST = domain_xml(CARD, AUDIO, name="first")
SECOND = domain_xml(CARD, AUDIO, uuid=OTHER, name="second")
HOME = ("bochs-drm", "(null)")
DAEMON = f"/proc/{os.getppid()}/stat"


def stat(started: int, state: str = "S") -> str:
    """Return what /proc says of a daemon: names of programs may have blanks and brackets."""
    return f"{os.getppid()} (rpc) lib virt) {state} " + "0 " * 18 + f"{started} 0 0\n"


@pytest.fixture
def lent(host: SimulatedHost) -> SimulatedHost:
    """A host whose card a domain has borrowed; the daemon that starts it lives."""
    host.put(DAEMON, stat(4711))
    assert run(host, "prepare", FIRST) == 0
    return host


def is_stale(host: SimulatedHost) -> bool:
    journal = read_journal(host, GUEST)
    assert journal is not None
    return reservations.is_stale(host, journal)


def restart_daemon(host: SimulatedHost) -> None:
    host.put(DAEMON, stat(815_000))


def cut_off(host: SimulatedHost) -> None:
    """Let the domain end with a driver that does not take its card back at once."""
    host.refusing.add(("bochs-drm", CARD))
    assert run(host, "release", FIRST) == 1
    host.refusing.clear()


def test_a_domain_that_may_be_about_to_start_keeps_its_devices(
    lent: SimulatedHost, capfd: pytest.CaptureFixture[str]
) -> None:
    before = lent.state()
    assert not is_stale(lent)
    assert run(lent, "prepare", SECOND) == 1
    assert "is lent to the domain first" in capfd.readouterr().err
    assert lent.state() == before
    assert [one.state for one in recover(lent, lambda: None)] == ["running"]


@pytest.mark.parametrize("gone", ["restarted", "dead", "a zombie"])
def test_when_the_daemon_is_gone_the_next_start_takes_them(lent: SimulatedHost, gone: str) -> None:
    if gone == "restarted":
        restart_daemon(lent)
    elif gone == "dead":
        os.unlink(lent.path(DAEMON))
    else:
        lent.put(DAEMON, stat(4711, "Z"))
    assert is_stale(lent)
    assert run(lent, "prepare", SECOND) == 0
    assert journals(lent) == [OTHER]
    # Where the first had found them, not where it had left them.
    assert run(lent, "release", SECOND) == 0
    assert lent.state()[CARD] == HOME


def test_when_libvirt_has_said_so_the_next_start_takes_them(lent: SimulatedHost) -> None:
    cut_off(lent)
    assert is_stale(lent)
    assert run(lent, "prepare", SECOND) == 0
    assert journals(lent) == [OTHER]


def test_a_running_qemu_keeps_them_whatever_became_of_the_daemon(lent: SimulatedHost) -> None:
    restart_daemon(lent)
    lent.busy_groups.add(10)
    assert not is_stale(lent)
    lent.busy_groups.clear()
    # Memory is prepared before it opens any device.
    lent.put("/run/libvirt/qemu/first.pid", "9312\n")
    lent.put("/proc/9312/stat", stat(5000))
    assert not is_stale(lent)
    assert run(lent, "prepare", SECOND) == 1
    assert [one.state for one in recover(lent, lambda: None)] == ["running"]
    os.unlink(lent.path("/proc/9312/stat"))
    assert is_stale(lent)


def test_a_number_that_cannot_be_read_counts_as_a_process(lent: SimulatedHost) -> None:
    restart_daemon(lent)
    lent.put("/run/libvirt/qemu/first.pid", "")
    assert not is_stale(lent)


def test_a_record_that_knows_no_daemon_proves_nothing(host: SimulatedHost) -> None:
    """As the hook of an earlier version wrote it."""
    assert run(host, "prepare", FIRST) == 0
    assert not is_stale(host)
    assert run(host, "prepare", SECOND) == 1


def test_what_nobody_wants_stays_on_record(lent: SimulatedHost) -> None:
    restart_daemon(lent)
    before = lent.state()
    assert run(lent, "prepare", domain_xml(NIC, uuid=OTHER)) == 0
    assert journals(lent) == sorted([GUEST, OTHER])
    assert lent.state()[CARD] == before[CARD]


def test_what_cannot_be_given_back_is_taken_by_nobody(
    lent: SimulatedHost, capfd: pytest.CaptureFixture[str]
) -> None:
    restart_daemon(lent)
    lent.refusing.add(("bochs-drm", CARD))
    assert run(lent, "prepare", SECOND) == 1
    assert "could not be bound to bochs-drm" in capfd.readouterr().err
    assert journals(lent) == [GUEST]


def test_a_stale_record_is_shown(lent: SimulatedHost) -> None:
    def shown() -> set[tuple[str | None, bool]]:
        return {(one.lent_to, one.is_left) for one in list_devices(lent) if one.lent_to is not None}

    assert shown() == {("first", False)}
    restart_daemon(lent)
    assert shown() == {("first", True)}


def test_the_end_is_not_written_into_a_record_that_was_cut_off(lent: SimulatedHost) -> None:
    record = Path(lent.path(f"{DIRECTORY}/{GUEST}"))
    record.write_bytes(record.read_bytes() + b"did\thuge-pa")
    cut_off(lent)
    journal = read_journal(lent, GUEST)
    assert journal is not None
    assert (journal.has_ended, journal.name) == (True, "first")
    assert all(kind != "huge-pa" for kind, *_ in journal.effects)


def test_at_boot_services_are_left_to_systemd(lent: SimulatedHost) -> None:
    journal = read_journal(lent, GUEST)
    assert journal is not None
    journal.add(("unit", "lightdm.service"))
    restart_daemon(lent)
    # Nothing here can start a service: to try would leave a problem on record.
    (shown,) = recover(lent, lambda: None, dry_run=True, at_boot=True)
    assert all("lightdm" not in step for step in shown.steps)
    (done,) = recover(lent, lambda: None, at_boot=True)
    assert (done.state, done.problems) == ("recovered", ())
    assert lent.state()[CARD] == HOME
    assert journals(lent) == []
