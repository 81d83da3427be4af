"""Virtual functions that the hook makes when a domain needs one, and removes when nobody uses them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.domain.documents import domain, hostdev
from tests.simulation import CARD, DISK, GUEST, NIC, OTHER, TWIN, SimulatedHost, cutting, domain_xml
from virtpass.binding import engine, functions
from virtpass.binding.journal import journals
from virtpass.domain.hostdev import parse_hostdevs
from virtpass.hook.entry import run
from virtpass.operations import domains
from virtpass.operations.functions import functions_at_boot, set_functions
from virtpass.operations.recovery import recover
from virtpass.operations.rehearsal import rehearse
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import physical_function
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.libvirt import Connection

FIRST, SECOND, THIRD = (PciAddress.parse(f"02:{place}") for place in ("10.0", "10.2", "10.4"))
PF = f"/sys/bus/pci/devices/{NIC}"
RECORD = f"/etc/virtpass/functions.d/{NIC}"
MARKS = "/run/virtpass/functions"
MAKE = [(f"{PF}/sriov_drivers_autoprobe", "0"), (f"{PF}/sriov_numvfs", "2")]
REMOVE = [(f"{PF}/sriov_numvfs", "0"), (f"{PF}/sriov_drivers_autoprobe", "1")]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def card(host: SimulatedHost) -> SimulatedHost:
    """A host whose NIC gets two of its seven functions on demand, and has none now."""
    host.add_functions(NIC, 7, "igbvf", 40)
    set_functions(host, NIC, 2, on_demand=True)
    recover(host, nobody)
    assert seen(host) == (0, True)
    assert host.names(MARKS) == []
    host.calls.clear()
    return host


def nobody() -> frozenset[str]:
    """No domain runs, as libvirt says."""
    return frozenset()


def seen(host: SimulatedHost) -> tuple[int, bool | None]:
    found = physical_function(host, NIC)
    assert found is not None
    assert found.number == int(host.read(f"{PF}/sriov_numvfs") or "")
    return found.number, found.autoprobe


def sriov(host: SimulatedHost) -> list[tuple[str, str]]:
    """Return what was written about functions since the last call."""
    found = [(path, value) for path, value in host.calls if "/sriov_" in path]
    host.calls.clear()
    return found


def starts(host: SimulatedHost, *addresses: PciAddress, uuid: str = GUEST) -> int:
    return run(host, "prepare", domain_xml(*addresses, uuid=uuid, name=f"guest-{uuid[0]}"))


def stops(host: SimulatedHost, *addresses: PciAddress, uuid: str = GUEST) -> int:
    return run(host, "release", domain_xml(*addresses, uuid=uuid, name=f"guest-{uuid[0]}"))


def refused(host: SimulatedHost, capfd: Captured, *addresses: PciAddress) -> str:
    """Return the one line of a start that must fail."""
    capfd.readouterr()
    assert starts(host, *addresses) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert journals(host) == []
    return err


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that fills with the lines of the log."""
    lines: list[str] = []
    monkeypatch.setattr("virtpass.hook.report.send", lambda priority, text: lines.append(text))
    return lines


def test_a_start_makes_them_and_the_stop_removes_them(card: SimulatedHost, capfd: Captured) -> None:
    before = card.state()
    for _ in range(2):
        assert starts(card, SECOND) == 0
        assert sriov(card) == MAKE
        assert (sysfs.driver(card, FIRST), sysfs.driver(card, SECOND)) == (None, "vfio-pci")
        assert sysfs.driver(card, NIC) == "e1000e"
        assert stops(card, SECOND) == 0
        assert sriov(card) == REMOVE
        assert (card.state(), seen(card), card.names(MARKS)) == (before, (0, True), [])
    assert capfd.readouterr() == ("", "")


def test_the_log_says_so(card: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = told(monkeypatch)
    starts(card, FIRST)
    stops(card, FIRST)
    for words in (
        f'detail="make 2 virtual functions of {NIC}"',
        f'detail="remove 2 virtual functions of {NIC}"',
    ):
        assert [line for line in lines if words in line and "outcome=done" in line]


def test_the_last_of_two_domains_removes_them(card: SimulatedHost) -> None:
    assert starts(card, FIRST) == 0
    assert sriov(card) == MAKE
    assert starts(card, SECOND, uuid=OTHER) == 0
    assert sriov(card) == []
    assert stops(card, FIRST) == 0
    assert sriov(card) == []
    assert sysfs.driver(card, SECOND) == "vfio-pci"
    # And once more, while the other one runs.
    assert starts(card, FIRST) == 0
    assert stops(card, FIRST) == 0
    assert sriov(card) == []
    assert stops(card, SECOND, uuid=OTHER) == 0
    assert sriov(card) == REMOVE
    assert seen(card) == (0, True)


def test_a_stop_of_another_domain_leaves_those_that_were_just_made_for_an_attach(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, on_demand=True)
    assert starts(card, TWIN) == 0
    assert stops(card, TWIN) == 0
    assert seen(card) == (2, False)
    assert starts(card, FIRST) == 0
    assert stops(card, FIRST) == 0
    assert seen(card) == (0, True)


@pytest.mark.parametrize("made_by", ["hand", "command", "boot"])
def test_what_was_not_made_on_demand_stays(card: SimulatedHost, made_by: str) -> None:
    if made_by == "hand":
        card.put(f"{PF}/sriov_drivers_autoprobe", "0\n")
        card.write_attribute(f"{PF}/sriov_numvfs", "2", 1)
    else:
        set_functions(card, NIC, 2, persistent=made_by == "boot")
    assert starts(card, FIRST) == 0
    assert stops(card, FIRST) == 0
    recover(card, nobody)
    assert seen(card) == (2, False)


def test_what_is_asked_for_at_every_boot_since_stays(card: SimulatedHost) -> None:
    assert starts(card, FIRST) == 0
    set_functions(card, NIC, 2, persistent=True)
    assert stops(card, FIRST) == 0
    recover(card, nobody)
    assert seen(card) == (2, False)


def test_another_number_than_was_made_stays(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, on_demand=True)
    card.write_attribute(f"{PF}/sriov_numvfs", "0", 1)
    card.write_attribute(f"{PF}/sriov_numvfs", "3", 1)
    recover(card, nobody)
    assert seen(card) == (3, False)


@pytest.mark.parametrize("user", ["driver", "group", "other card"])
def test_functions_in_use_stay_until_they_are_not(card: SimulatedHost, user: str) -> None:
    assert starts(card, FIRST) == 0
    if user == "driver":
        card.write_attribute(f"/sys/bus/pci/devices/{SECOND}/driver_override", "igbvf", 1)
        card.write_attribute("/sys/bus/pci/drivers_probe", str(SECOND), 1)
    elif user == "group":
        card.busy_groups.add(41)
    else:
        card.put(f"{PF}/device", "0x1521\n")
    sriov(card)
    assert stops(card, FIRST) == 0
    assert recover(card, nobody) == []
    assert sriov(card) == []
    assert seen(card) == (2, False)
    card.busy_groups.clear()
    card.put(f"{PF}/device", "0x10d3\n")
    if user == "driver":
        card.write_attribute("/sys/bus/pci/drivers/igbvf/unbind", str(SECOND), 1)
    recover(card, nobody)
    assert seen(card) == (0, True)


def test_a_failed_start_takes_them_back(card: SimulatedHost, capfd: Captured) -> None:
    assert f"{DISK} holds the file system /" in refused(card, capfd, FIRST, DISK)
    assert sriov(card) == [*MAKE, *REMOVE]
    # Later, when the devices move already.
    card.refusing.add(("vfio-pci", FIRST))
    assert f"{FIRST} could not be bound to vfio-pci" in refused(card, capfd, FIRST)
    assert sriov(card) == [*MAKE, *REMOVE]
    assert (seen(card), card.names(MARKS)) == ((0, True), [])
    assert stops(card, FIRST) == 0


def test_a_failed_start_leaves_those_of_another_domain(card: SimulatedHost, capfd: Captured) -> None:
    assert starts(card, FIRST, uuid=OTHER) == 0
    sriov(card)
    capfd.readouterr()
    assert starts(card, FIRST) == 1
    assert "is lent to the domain guest-b" in capfd.readouterr().err
    assert sriov(card) == []
    assert seen(card) == (2, False)


def test_a_function_that_is_not_the_recorded_one(card: SimulatedHost, capfd: Captured) -> None:
    metadata = (
        f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:device address='{FIRST}' vendor='0x8086' "
        "device='0x1520' subsystem-vendor='0x8086' subsystem-device='0x0000'/></v:passthrough>"
    )
    assert run(card, "prepare", domain_xml(FIRST, metadata=metadata)) == 1
    assert f"{FIRST} is 8086:10ca (8086:0000) now, not 8086:1520" in capfd.readouterr().err
    assert seen(card) == (0, True)


def without_driver(host: SimulatedHost) -> None:
    host.write_attribute("/sys/bus/pci/drivers/e1000e/unbind", str(NIC), 1)


def on_vfio(host: SimulatedHost) -> None:
    assert starts(host, NIC, uuid=OTHER) == 0


def other_card(host: SimulatedHost) -> None:
    host.put(f"{PF}/device", "0x1521\n")


def smaller_card(host: SimulatedHost) -> None:
    host.put(f"{PF}/sriov_totalvfs", "1\n")
    # So that the function is still one of those that it can have.
    host.put(RECORD, (host.read(RECORD) or "").replace("count 2", "count 3") + "\n")


def another_number(host: SimulatedHost) -> None:
    host.write_attribute(f"{PF}/sriov_numvfs", "1", 1)


def weak_driver(host: SimulatedHost) -> None:
    host.most_functions = 1


def hanging_driver(host: SimulatedHost) -> None:
    engine.mark_stuck(host, NIC, "sriov_numvfs")


def bad_record(host: SimulatedHost) -> None:
    host.put(RECORD, "count many\n")


def foreign_record(host: SimulatedHost) -> None:
    os.chmod(host.path(RECORD), 0o666)


def way_back(host: SimulatedHost) -> None:
    host.put("/proc/cmdline", "root=/dev/sda1 virtpass=off\n")


def record_for_boot(host: SimulatedHost) -> None:
    host.put(RECORD, (host.read(RECORD) or "").replace("when demand", "") + "\n")


def no_record(host: SimulatedHost) -> None:
    os.unlink(host.path(RECORD))


@pytest.mark.parametrize(
    ("change", "wanted", "words"),
    [
        (without_driver, SECOND, f"{NIC} is bound to no driver, and only its own driver makes functions"),
        (on_vfio, SECOND, f"{NIC} is lent to the domain guest-b"),
        (other_card, SECOND, f"{NIC} is 8086:1521 (8086:0000) now, not 8086:10d3 (8086:0000) as recorded"),
        (smaller_card, FIRST, f"{NIC} can have 1 virtual function, not 3"),
        (another_number, SECOND, f"{SECOND} is not there: {NIC} has 1 virtual function, not 2 as on record"),
        (
            weak_driver,
            SECOND,
            f"{NIC}: writing 2 to sriov_numvfs: Cannot allocate memory; it has 0 as before",
        ),
        (hanging_driver, SECOND, f"a driver hangs with {NIC}"),
        (bad_record, SECOND, f"{RECORD} is not understood"),
        (foreign_record, SECOND, f"{RECORD} is not a regular file of root"),
        (way_back, SECOND, "this boot keeps all devices with the host (virtpass=off)"),
        (record_for_boot, SECOND, f"there is no PCI device {SECOND}"),
        (no_record, SECOND, f"there is no PCI device {SECOND}"),
        # The record is of two functions only, and this one would be the third.
        (lambda host: None, THIRD, f"there is no PCI device {THIRD}"),
    ],
)
def test_why_they_are_not_made(
    card: SimulatedHost,
    capfd: Captured,
    change: Callable[[SimulatedHost], None],
    wanted: PciAddress,
    words: str,
) -> None:
    change(card)
    before, count = card.state(), card.read(f"{PF}/sriov_numvfs")
    capfd.readouterr()
    assert starts(card, wanted) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert (card.state(), card.read(f"{PF}/sriov_numvfs")) == (before, count)
    assert card.read(f"{PF}/sriov_drivers_autoprobe") == "1"
    rehearsed = rehearse(card, domain_xml(wanted).decode()).problem
    # What the driver will say is known by then only.
    assert rehearsed is None if change is weak_driver else rehearsed and words in rehearsed.line
    assert card.names(MARKS) == []


def test_a_driver_that_hangs_while_it_makes_them(
    card: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang(card, monkeypatch, "2")
    assert "does not come back from the driver; reboot the host" in refused(card, capfd, FIRST)
    assert "a driver hangs with" in refused(card, capfd, FIRST)
    # Nothing is written to it any more, neither by a stop nor by hand.
    card.calls.clear()
    assert stops(card, FIRST) == 0
    recover(card, nobody)
    assert [value for path, value in card.calls if "/sriov_" in path] == []
    # When the driver comes back after all, it is known whose functions these are.
    assert card.exists(f"{MARKS}/{NIC}")
    assert seen(card)[1] is False


def test_a_write_that_is_still_on_its_way_is_not_overtaken(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook was killed, and its child is in the write: no functions yet, and a mark."""
    set_functions(card, NIC, 2, on_demand=True)
    card.write_attribute(f"{PF}/sriov_numvfs", "0", 1.0)
    monkeypatch.setattr(engine, "wait_for_orphans", lambda *_: False)
    assert stops(card, FIRST) == 0
    recover(card, nobody)
    assert card.exists(f"{MARKS}/{NIC}")
    assert seen(card)[1] is False
    card.write_attribute(f"{PF}/sriov_numvfs", "2", 1.0)
    monkeypatch.undo()
    recover(card, nobody)
    assert seen(card) == (0, True)


def test_a_stop_waits_for_a_write_only_where_functions_may_go(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[None] = []

    def wait(host: SimulatedHost, *_: object) -> bool:
        waits.append(None)
        return True

    assert starts(card, FIRST) == 0
    assert starts(card, SECOND, uuid=OTHER) == 0
    monkeypatch.setattr(engine, "wait_for_orphans", wait)
    # Other devices, and a function while a domain has another one of the same device.
    functions.take_back(card, [CARD])
    functions.take_back(card, [FIRST])
    assert (waits, seen(card)[0]) == ([], 2)
    monkeypatch.setattr(functions, "made", lambda host: [NIC, NIC])
    monkeypatch.setattr(functions, "_is_any_used", lambda host, addresses: False)
    monkeypatch.setattr(functions, "remove", lambda host, device: None)
    # However many there are.
    functions.take_back(card, [FIRST])
    assert waits == [None]


def test_what_a_late_write_has_made_is_seen(card: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child of a killed hook makes functions while it is waited for."""
    set_functions(card, NIC, 2, on_demand=True)
    card.write_attribute(f"{PF}/sriov_numvfs", "0", 1.0)

    def wait(host: SimulatedHost, *_: object) -> bool:
        host.write_attribute(f"{PF}/sriov_numvfs", "2", 1.0)
        return True

    monkeypatch.setattr(engine, "wait_for_orphans", wait)
    functions.take_back(card)
    assert seen(card) == (0, True)
    assert card.names(MARKS) == []


def hang(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """Let the driver never come back from a write of a number of functions."""
    from tests.simulation import Hangs

    write = host.write_attribute

    def hanging(path: str, value: str, deadline: float) -> None:
        if path.endswith("sriov_numvfs") and value == number:
            host.calls.append((path, value))
            raise Hangs(path)
        write(path, value, deadline)

    monkeypatch.setattr(host, "write_attribute", hanging)


@pytest.mark.parametrize("how", ["refuses", "hangs", "fault"])
def test_a_stop_succeeds_when_they_cannot_be_removed(
    card: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert starts(card, FIRST) == 0
    lines = told(monkeypatch)
    with monkeypatch.context() as patch:
        if how == "hangs":
            hang(card, patch, "0")
        elif how == "fault":
            patch.setattr(functions, "take_back", None)
        else:
            write = card.write_attribute

            def refusing(path: str, value: str, deadline: float) -> None:
                if path.endswith("sriov_numvfs"):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
                write(path, value, deadline)

            patch.setattr(card, "write_attribute", refusing)
        assert stops(card, FIRST) == 0
    assert capfd.readouterr() == ("", "")
    assert journals(card) == []
    (line,) = [line for line in lines if "step=functions" in line]
    assert "outcome=failed" in line
    if how != "hangs":
        recover(card, nobody)
        assert seen(card) == (0, True)


class Killed(BaseException):
    """What ends a hook as SIGKILL does: nothing of it runs any more."""


@pytest.mark.faults
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("end", [Killed, OSError])
@pytest.mark.parametrize("healed_by", ["release", "recover", "next start"])
def test_wherever_a_hook_is_cut_off_nothing_is_left(
    card: SimulatedHost,
    monkeypatch: pytest.MonkeyPatch,
    is_done: bool,
    end: type[BaseException],
    healed_by: str,
) -> None:
    """At each write to the kernel and to a file of ours, of a start and of the stop after it."""
    before = card.state()
    cut, is_through = 0, False
    while not is_through:
        left = [cut]
        with monkeypatch.context() as patch:
            for name in ("write_attribute", "replace_own", "append_own", "remove_own"):
                patch.setattr(card, name, cutting(getattr(card, name), left, end, is_done=is_done))
            try:
                starts(card, FIRST)
                stops(card, FIRST)
                is_through = left[0] >= 0
            except Killed:
                pass
        cut += 1
        if healed_by == "next start":
            assert starts(card, FIRST) == 0
        if healed_by == "recover":
            recover(card, nobody)
        else:
            assert stops(card, FIRST) == 0
        # What went wrong at the very end is a warning, and is mended with the next occasion.
        if card.names(MARKS):
            recover(card, nobody)
        assert (card.state(), seen(card)) == (before, (0, True))
        assert (card.names(MARKS), journals(card)) == ([], [])
    assert cut > 8


def test_what_a_rehearsal_says(card: SimulatedHost) -> None:
    found = rehearse(card, domain_xml(SECOND).decode())
    assert found.problem is None
    assert [step.text for step in found.steps] == [
        "wait for others who move devices",
        f"make 2 virtual functions of {NIC}; what does not exist yet ({SECOND}) can be checked only then",
        "check the devices, their group, and who uses them",
        f"{SECOND}: set driver_override to vfio-pci",
        f"{SECOND}: let vfio-pci bind it",
    ]
    assert found.steps[1].bound == functions.DEADLINE
    assert (card.calls, seen(card)) == ([], (0, True))
    assert starts(card, SECOND) == 0
    assert [path.rpartition("/")[2] for path, _ in card.calls] == [
        "sriov_drivers_autoprobe",
        "sriov_numvfs",
        "driver_override",
        "drivers_probe",
    ]
    # What else the domain has is checked.
    problem = rehearse(card, domain_xml(SECOND, DISK, uuid=OTHER).decode()).problem
    assert problem is not None


def test_a_rehearsal_checks_the_devices_that_are_there(card: SimulatedHost) -> None:
    problem = rehearse(card, domain_xml(SECOND, DISK).decode()).problem
    assert problem is not None
    assert problem.reference == "host-needs-it"
    found = rehearse(card, domain_xml(SECOND, CARD).decode())
    assert found.problem is None
    assert any(f"{CARD}: unbind from bochs-drm" in step.text for step in found.steps)


def test_a_boot_leaves_it_to_the_hook(card: SimulatedHost) -> None:
    assert functions_at_boot(card) == []
    assert card.calls == []


@pytest.mark.parametrize("option", ["persistent", "on_demand"])
def test_none_ends_it(card: SimulatedHost, option: str) -> None:
    set_functions(card, NIC, 0, **{option: True})
    assert card.names("/etc/virtpass/functions.d") == []


def test_none_for_now_leaves_the_record(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, on_demand=True)
    set_functions(card, NIC, 0)
    assert (seen(card), card.names(MARKS)) == ((0, True), [])
    assert starts(card, FIRST) == 0


def test_a_device_that_does_not_say_where_its_functions_come(card: SimulatedHost) -> None:
    """The offset may change with their number; what cannot be told before is refused when it is asked for."""
    set_functions(card, NIC, 0, on_demand=True)
    card.put(f"{PF}/sriov_offset", "256\n")
    with pytest.raises(FailedError) as caught:
        set_functions(card, NIC, 2, on_demand=True)
    assert caught.value.reference == "function-place"
    assert (seen(card), card.names(MARKS), card.exists(RECORD)) == ((0, True), [], False)
    set_functions(card, NIC, 2, persistent=True)
    assert seen(card) == (2, False)


def by_hand(host: SimulatedHost, count: int) -> None:
    """Let there be functions that virtpass has not made."""
    host.put(f"{PF}/sriov_drivers_autoprobe", "0\n")
    host.write_attribute(f"{PF}/sriov_numvfs", str(count), 1)
    host.calls.clear()


@pytest.mark.parametrize("count", [2, 4])
def test_a_device_that_announces_another_place_while_it_has_none(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """A start compares with what it announces then, so the command has to, whatever is there before."""
    set_functions(card, NIC, 0, on_demand=True)
    by_hand(card, 2)
    write = card.write_attribute

    def moving(path: str, value: str, deadline: float) -> None:
        write(path, value, deadline)
        if path.endswith("sriov_numvfs"):
            card.put(f"{PF}/sriov_offset", "256\n" if value == "0" else "128\n")

    monkeypatch.setattr(card, "write_attribute", moving)
    with pytest.raises(FailedError) as caught:
        set_functions(card, NIC, count, on_demand=True)
    assert caught.value.what.endswith("cannot be made on demand; it has 2 as before")
    assert (seen(card), card.names(MARKS), card.exists(RECORD)) == ((2, False), [], False)


def test_functions_that_are_there_are_made_anew_once(card: SimulatedHost) -> None:
    set_functions(card, NIC, 0, on_demand=True)
    by_hand(card, 2)
    plan = set_functions(card, NIC, 2, on_demand=True)
    assert plan.sentences[:2] == (f"{NIC}: write 0 to sriov_numvfs", f"{NIC}: write 2 to sriov_numvfs")
    assert sriov(card) == [(f"{PF}/sriov_numvfs", "0"), (f"{PF}/sriov_numvfs", "2")]
    assert set_functions(card, NIC, 2, on_demand=True).is_empty
    assert sriov(card) == []
    recover(card, nobody)
    assert seen(card) == (0, False)
    assert starts(card, FIRST) == 0


def test_functions_come_back_where_new_ones_cannot_be_marked(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as where /run is full: what is there must not be lost for that."""
    set_functions(card, NIC, 0, on_demand=True)
    by_hand(card, 2)
    replace = card.replace_own

    def full(directory: str, name: str, content: bytes, mode: int) -> None:
        if directory == MARKS:
            raise FailedError("file", f"{directory}/{name}: No space left on device")
        replace(directory, name, content, mode)

    monkeypatch.setattr(card, "replace_own", full)
    with pytest.raises(FailedError, match="No space left on device; it has 2 as before"):
        set_functions(card, NIC, 4, on_demand=True)
    assert (seen(card), card.names(MARKS), card.exists(RECORD)) == ((2, False), [], False)


@pytest.mark.parametrize("user", ["domain", "group", "driver"])
def test_functions_that_somebody_has_are_not_made_anew(card: SimulatedHost, user: str) -> None:
    set_functions(card, NIC, 0, on_demand=True)
    by_hand(card, 2)
    words, remedy = "", ""
    if user == "domain":
        assert starts(card, SECOND) == 0
        words = f"{SECOND} is lent to the domain"
    elif user == "group":
        card.busy_groups.add(41)
        words = f"{SECOND} is used by a running virtual machine"
    else:
        card.write_attribute(f"/sys/bus/pci/devices/{SECOND}/driver_override", "igbvf", 1)
        card.write_attribute("/sys/bus/pci/drivers_probe", str(SECOND), 1)
        words = f"{NIC} has 2 virtual functions already, and {SECOND} is bound to igbvf"
        remedy = f"virtpass device functions {NIC} 0, then ask again"
    sriov(card)
    with pytest.raises(RefusedError) as caught:
        set_functions(card, NIC, 2, on_demand=True)
    assert words in caught.value.what
    assert remedy in (caught.value.remedy or "")
    assert (sriov(card), seen(card), card.exists(RECORD)) == ([], (2, False), False)


@pytest.mark.faults
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("end", [Killed, OSError])
@pytest.mark.parametrize(("had", "wanted"), [("on demand", 4), ("by hand", 4), ("by hand", 2)])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_wherever_another_number_on_demand_is_cut_off_nothing_is_left_or_taken(
    card: SimulatedHost,
    monkeypatch: pytest.MonkeyPatch,
    is_done: bool,
    end: type[BaseException],
    had: str,
    wanted: int,
    fails: bool,
) -> None:
    """At each write, also at those that put back what a driver could not set up."""
    cut, is_through = 0, False
    while not is_through:
        card.most_functions = None
        if had == "by hand":
            by_hand(card, 2)
        else:
            set_functions(card, NIC, 2, on_demand=True)
        card.most_functions = 3 if fails and wanted > 3 else None
        left = [cut]
        with monkeypatch.context() as patch:
            for name in ("write_attribute", "replace_own", "remove_own"):
                patch.setattr(card, name, cutting(getattr(card, name), left, end, is_done=is_done))
            try:
                set_functions(card, NIC, wanted, on_demand=True)
            except (Killed, OSError, VirtpassError):
                pass
            is_through = left[0] >= 0
        cut += 1
        recover(card, nobody)
        if had == "on demand":
            # All of them were made on demand, and nobody uses one.
            assert (seen(card), card.names(MARKS)) == ((0, True), [])
        else:
            # What was there before virtpass came is there, or went as it was told to; no mark takes it.
            assert seen(card)[0] in (0, 2)
            assert card.names(MARKS) == []
        card.most_functions = None
        set_functions(card, NIC, 3, on_demand=True)
        recover(card, nobody)
        assert (seen(card)[0], card.names(MARKS)) == (0, [])
        set_functions(card, NIC, 0, on_demand=True)
    assert cut >= 5


def test_a_device_that_is_lent_itself_makes_none(card: SimulatedHost) -> None:
    assert starts(card, NIC) == 0
    with pytest.raises(RefusedError):
        set_functions(card, NIC, 2, on_demand=True)
    assert stops(card, NIC) == 0


def test_recover_at_boot(card: SimulatedHost) -> None:
    """After a soft reboot /run and the functions are still there."""
    set_functions(card, NIC, 2, on_demand=True)
    (found,) = recover(card, lambda: None, at_boot=True)
    assert (found.uuid, found.state) == ("", "recovered")
    assert seen(card) == (0, True)


def test_a_domain_loses_one_function_while_none_is_there(card: SimulatedHost) -> None:
    """Functions of one slot are no card: those that are not named stay."""
    pytest.importorskip("libvirt")
    with Connection.open("test:///default") as connection:
        connection.define(domain(hostdev(str(FIRST)), hostdev(str(SECOND)), kind="test", name="pair"))
        domains.detach(connection, card, "pair", [FIRST])
        left = parse_hostdevs(connection.domain("pair").inactive_xml())
        assert [one.source for one in left] == [SECOND]
