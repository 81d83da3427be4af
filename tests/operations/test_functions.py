"""Virtual functions are made, removed, and made again at boot."""

import errno
import os
from pathlib import Path

import pytest

from tests.simulation import GUEST, NIC, SPARE, TWIN, SimulatedHost, cutting, domain_xml
from virtpass.hook.entry import run
from virtpass.operations.functions import functions_at_boot, plan_functions, set_functions
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import physical_function
from virtpass.system.errors import (
    FailedError,
    NotFoundError,
    RefusedError,
    UsageError,
    VirtpassError,
)

FIRST, SECOND = PciAddress.parse("02:10.0"), PciAddress.parse("02:10.2")
PF = f"/sys/bus/pci/devices/{NIC}"
RECORD = f"/etc/virtpass/functions.d/{NIC}"
SERIAL = "00aabbffff112233"


@pytest.fixture
def card(host: SimulatedHost) -> SimulatedHost:
    """A host whose NIC can have seven functions."""
    host.add_functions(NIC, 7, "igbvf", 40)
    host.calls.clear()
    return host


def seen(host: SimulatedHost) -> tuple[int, bool | None]:
    found = physical_function(host, NIC)
    assert found is not None
    assert found.number == len(found.functions) == int(host.read(f"{PF}/sriov_numvfs") or "")
    return found.number, found.autoprobe


def error_of(host: SimulatedHost, count: int) -> VirtpassError:
    """Return why the number of functions cannot be changed, after seeing that it was not."""
    before, calls = seen(host), len(host.calls)
    with pytest.raises(VirtpassError) as caught:
        set_functions(host, NIC, count)
    assert seen(host) == before
    assert len(host.calls) == calls
    return caught.value


def test_no_driver_of_the_host_takes_a_new_function(card: SimulatedHost) -> None:
    plan = plan_functions(card, NIC, 2)
    assert card.calls == []
    assert set_functions(card, NIC, 2) == plan
    assert card.calls == [(f"{PF}/sriov_drivers_autoprobe", "0"), (f"{PF}/sriov_numvfs", "2")]
    assert seen(card) == (2, False)
    assert [sysfs.driver(card, one) for one in (FIRST, SECOND)] == [None, None]
    assert set_functions(card, NIC, 2).is_empty


def test_another_number_goes_through_none(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    card.calls.clear()
    set_functions(card, NIC, 4)
    assert card.calls == [(f"{PF}/sriov_numvfs", "0"), (f"{PF}/sriov_numvfs", "4")]
    assert seen(card) == (4, False)


@pytest.mark.parametrize("was", [True, False])
def test_removing_them_leaves_the_device_as_it_was(card: SimulatedHost, was: bool) -> None:
    card.put(f"{PF}/sriov_drivers_autoprobe", f"{int(was)}\n")
    for count in (2, 3, 0):
        set_functions(card, NIC, count)
    assert seen(card) == (0, was)
    assert card.names("/run/virtpass/functions") == []


def test_what_somebody_has_removed_by_hand_leaves_nothing_switched_off(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    card.write_attribute(f"{PF}/sriov_numvfs", "0", 1)
    set_functions(card, NIC, 0)
    assert seen(card) == (0, True)
    assert set_functions(card, NIC, 0).is_empty


def test_a_function_goes_to_a_domain_and_comes_back_without_driver(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    assert run(card, "prepare", domain_xml(FIRST)) == 0
    assert sysfs.driver(card, FIRST) == "vfio-pci"
    assert "lent to the domain guest" in error_of(card, 0).what
    assert "lent to the domain guest" in error_of(card, 4).what
    assert run(card, "release", domain_xml(FIRST)) == 0
    assert sysfs.driver(card, FIRST) is None
    set_functions(card, NIC, 0)
    assert seen(card) == (0, True)


def test_a_function_of_a_running_domain_stays(card: SimulatedHost) -> None:
    """Also of one that virtpass has nothing to do with."""
    set_functions(card, NIC, 2)
    card.busy_groups.add(41)
    error = error_of(card, 0)
    assert isinstance(error, RefusedError)
    assert error.what == f"{SECOND} is used by a running virtual machine"


def with_interface(host: SimulatedHost, name: str) -> str:
    set_functions(host, NIC, 2)
    real = host.real_path(f"/sys/bus/pci/devices/{FIRST}")
    host.put(f"{real}/net/{name}/address", "52:54:00:00:00:09\n")
    host.link(f"/sys/class/net/{name}", f"{real}/net/{name}")
    return f"{real}/net/{name}"


def test_a_function_that_carries_the_default_route_stays(card: SimulatedHost) -> None:
    with_interface(card, "enp2s0v0")
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
    card.put("/proc/net/route", f"{head}enp2s0v0 00000000 0100000A 0003 0 0 100 00000000 0 0 0\n")
    assert "carries the default route (enp2s0v0)" in error_of(card, 0).what


def test_a_function_in_a_bridge_or_under_a_macvtap_stays(card: SimulatedHost) -> None:
    interface = with_interface(card, "enp2s0v0")
    card.link(f"{interface}/upper_macvtap0", "/sys/devices/virtual/net/macvtap0")
    assert error_of(card, 3).what == f"{FIRST} (enp2s0v0) is part of macvtap0"


def test_a_function_that_a_program_has_open_stays(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    real = card.real_path(f"/sys/bus/pci/devices/{FIRST}")
    card.put(f"{real}/drm/card7/dev", "226:7\n")
    card.put(f"{real}/drm/card7/uevent", "DEVNAME=dri/card7\n")
    card.put("/proc/812/comm", "compositor\n")
    card.put("/proc/812/fd/.keep")
    os.symlink("/dev/dri/card7", card.path("/proc/812/fd/11"))
    assert "compositor" in error_of(card, 0).what


def test_a_function_with_a_mediated_device_stays(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    card.add_mediated_type(FIRST, "nvidia-700", 1)
    card.write_attribute(f"/sys/bus/pci/devices/{FIRST}/mdev_supported_types/nvidia-700/create", GUEST, 1)
    error = error_of(card, 0)
    assert (error.reference, error.remedy) == ("mediated-devices", f"virtpass mdev remove {GUEST}")


def test_the_number_is_refused_before_anything_is_written(card: SimulatedHost) -> None:
    assert error_of(card, 8).what == f"{NIC} can have 7 virtual functions, not 8"
    assert isinstance(error_of(card, -1), UsageError)


def test_what_can_have_no_functions_is_refused(card: SimulatedHost) -> None:
    with pytest.raises(RefusedError) as none:
        set_functions(card, TWIN, 1)
    assert none.value.reference == "no-functions"
    with pytest.raises(NotFoundError):
        set_functions(card, PciAddress.parse("7f:00.0"), 1)
    set_functions(card, NIC, 1)
    with pytest.raises(RefusedError) as itself:
        set_functions(card, FIRST, 1)
    assert itself.value.remedy == f"its physical function is {NIC}"


def test_only_a_device_with_its_driver_makes_functions(card: SimulatedHost) -> None:
    assert run(card, "prepare", domain_xml(NIC)) == 0
    assert error_of(card, 2).reference == "lent"
    assert run(card, "release", domain_xml(NIC)) == 0
    card.write_attribute("/sys/bus/pci/drivers/e1000e/unbind", str(NIC), 1)
    assert error_of(card, 2).reference == "no-host-driver"


@pytest.mark.parametrize("before", [0, 2])
def test_a_driver_that_cannot_set_them_up_leaves_what_was_there(card: SimulatedHost, before: int) -> None:
    set_functions(card, NIC, before)
    was = seen(card)
    card.most_functions = 3
    with pytest.raises(FailedError) as caught:
        set_functions(card, NIC, 5, persistent=True)
    assert caught.value.what.endswith(f"Cannot allocate memory; it has {before} as before")
    assert seen(card) == was
    assert not card.exists(RECORD)
    assert bool(card.names("/run/virtpass/functions")) is bool(before)


def test_a_driver_that_hangs_is_not_touched_again(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    card.hanging.add(SECOND)
    with pytest.raises(FailedError) as caught:
        set_functions(card, NIC, 0)
    assert (caught.value.reference, caught.value.remedy) == ("stuck", "reboot the host")
    card.calls.clear()
    with pytest.raises(FailedError) as again:
        set_functions(card, NIC, 0)
    assert again.value.reference == "stuck"
    assert card.calls == []


class Killed(BaseException):
    """What ends a command as SIGKILL does: nothing of it runs any more."""


@pytest.mark.faults
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("end", [Killed, OSError])
def test_wherever_it_is_cut_off_the_next_command_puts_it_right(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch, is_done: bool, end: type[BaseException]
) -> None:
    """At each write to the kernel and to a record: with two functions, three are wanted, at boot too."""
    cut, is_through = 0, False
    while not is_through:
        set_functions(card, NIC, 2)
        left = [cut]
        with monkeypatch.context() as patch:
            for name in ("write_attribute", "replace_own", "remove_own"):
                patch.setattr(card, name, cutting(getattr(card, name), left, end, is_done=is_done))
            try:
                set_functions(card, NIC, 3, persistent=True)
                is_through = True
            except (Killed, OSError, VirtpassError):
                cut += 1
        assert seen(card)[1] is False
        set_functions(card, NIC, 3, persistent=True)
        assert seen(card) == (3, False)
        assert card.names("/etc/virtpass/functions.d") == [str(NIC)]
        set_functions(card, NIC, 0, persistent=True)
        assert seen(card) == (0, True)
        for folder in ("/etc/virtpass/functions.d", "/run/virtpass/functions"):
            assert card.names(folder) == []
    # The record, and the number twice.
    assert cut == 3


def test_a_device_whose_driver_keeps_its_lock_is_looked_at_all_the_same(card: SimulatedHost) -> None:
    """Reading the number of functions would wait for that lock, maybe for ever."""
    set_functions(card, NIC, 2)
    content = card.path(f"{PF}/sriov_numvfs")
    os.unlink(content)
    os.mkfifo(content)
    found = physical_function(card, NIC)
    assert found is not None
    assert found.functions == (FIRST, SECOND)


def test_functions_stay_removed_when_only_the_mark_cannot_be(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_functions(card, NIC, 2)

    def refused(*_: object) -> None:
        raise FailedError("file", "no space")

    with monkeypatch.context() as patch:
        patch.setattr(card, "remove_own", refused)
        with pytest.raises(FailedError):
            set_functions(card, NIC, 0)
    assert seen(card) == (0, True)
    set_functions(card, NIC, 0)
    assert card.names("/run/virtpass/functions") == []


def test_functions_stay_removed_when_probing_cannot_be_switched_on(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make them again then could give them to drivers of the host."""
    set_functions(card, NIC, 2)
    write = card.write_attribute

    def failing(path: str, value: str, deadline: float) -> None:
        write(path, value, deadline)
        if path.endswith("sriov_drivers_autoprobe"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patch:
        patch.setattr(card, "write_attribute", failing)
        with pytest.raises(FailedError) as caught:
            set_functions(card, NIC, 0)
    assert caught.value.what.endswith("Input/output error; its functions are removed")
    assert seen(card) == (0, True)
    set_functions(card, NIC, 0)
    assert card.names("/run/virtpass/functions") == []


def test_a_command_that_is_killed_early_leaves_no_trace(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Automatic probing is on record as switched off, and is not yet."""

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(card, "write_attribute", killed)
        with pytest.raises(Killed):
            set_functions(card, NIC, 2)
    assert card.names("/run/virtpass/functions") == [str(NIC)]
    set_functions(card, NIC, 0)
    assert seen(card) == (0, True)
    assert card.names("/run/virtpass/functions") == []


def reboot(host: SimulatedHost) -> None:
    """Let the kernel forget everything: functions, settings, /run."""
    host.write_attribute(f"{PF}/sriov_numvfs", "0", 1)
    host.put(f"{PF}/sriov_drivers_autoprobe", "1\n")
    for name in host.names("/run/virtpass/functions"):
        os.unlink(host.path(f"/run/virtpass/functions/{name}"))
    host.calls.clear()


def test_what_is_on_record_is_there_after_a_boot(card: SimulatedHost) -> None:
    set_functions(card, NIC, 3, persistent=True)
    reboot(card)
    (result,) = functions_at_boot(card)
    assert (result.name, result.count, result.problem) == (str(NIC), 3, None)
    assert seen(card) == (3, False)
    # Without --persistent, the record stays what it is.
    set_functions(card, NIC, 1)
    reboot(card)
    functions_at_boot(card)
    assert seen(card)[0] == 3
    set_functions(card, NIC, 0, persistent=True)
    assert card.names("/etc/virtpass/functions.d") == []
    assert functions_at_boot(card) == []


def test_functions_that_are_there_can_be_put_on_record(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2)
    card.calls.clear()
    plan = set_functions(card, NIC, 2, persistent=True)
    assert not plan.is_empty
    assert plan.sentences == (f"write {RECORD}",)
    assert card.calls == []
    assert Path(card.path(RECORD)).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("change", ["ids", "serial", "gone", "out"])
def test_another_card_gets_nothing_at_boot(card: SimulatedHost, change: str) -> None:
    with_serial(card, SERIAL)
    set_functions(card, NIC, 3, persistent=True)
    reboot(card)
    words = "now, not 8086:10d3"
    if change == "ids":
        card.put(f"{PF}/device", "0x1521\n")
    elif change == "serial":
        # Its twin: the ids are the same.
        with_serial(card, SERIAL[:-1] + "4")
        words = f"not 8086:10d3 (8086:0000) serial {SERIAL} as recorded"
    elif change == "gone":
        os.unlink(card.path(PF))
        words = "there is no PCI device"
    else:
        os.unlink(card.path(f"{PF}/sriov_totalvfs"))
        words = "can have no virtual functions"
    (result,) = functions_at_boot(card)
    assert result.problem is not None
    assert words in result.problem.line
    assert card.calls == []


def with_serial(host: SimulatedHost, serial: str) -> None:
    config = bytearray(512)
    config[0x100:0x104] = (0x0003 | 1 << 16).to_bytes(4, "little")
    config[0x104:0x10C] = int(serial, 16).to_bytes(8, "little")
    host.put(f"{PF}/config", bytes(config))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"identity 8086:10d3 8086:0000\n",
        b"count 2\n",
        b"identity 8086:10d3 8086:0000\ncount 0\n",
        b"identity 8086:10d3 8086:0000\ncount -1\n",
        b"identity 8086:10d3 8086:0000\ncount 65536\n",
        b"identity 8086:10d3 8086:0000\ncount 2 3\n",
        b"identity 8086:10d3 8086:0000\ncount two\n",
        b"identity 8086:10d3 8086:0000\ncount 2\nwhen always\n",
        b"identity 8086:10d3 8086:0000\ncount 2\nwhen\n",
        b"identity 8086:10d3 8086:0000\ncount 2\nwhen demand now\n",
        b"identity 8086:10d3 8086:0000\ncount 2\ncount 3\n",
        b"identity 8086:10d3 8086:0000\nidentity 8086:1521 8086:0000\ncount 2\n",
        b"identity 8086:10d3\ncount 2\n",
        b"identity 8086:10d 8086:0000\ncount 2\n",
        b"identity 8086:10d3 8086:0000 77\ncount 2\n",
        b"identity 8086:10d3 8086:0000 \xff\ncount 2\n",
        b"\0\n",
    ],
)
def test_a_record_that_is_not_understood_changes_nothing(card: SimulatedHost, content: bytes) -> None:
    card.put(RECORD, content)
    (result,) = functions_at_boot(card)
    assert result.problem is not None
    assert result.problem.reference == "functions-record"
    assert RECORD in result.problem.what
    assert card.calls == []


def test_one_bad_record_keeps_no_other_from_its_turn(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, persistent=True)
    reboot(card)
    folder = "/etc/virtpass/functions.d"
    for name in ("0000:00:1e.9", "02:00.0", "note"):
        card.put(f"{folder}/{name}", "identity 8086:10d3 8086:0000\ncount 2\n")
    for left in (f"{NIC}~", ".hidden", f"{NIC}.dpkg-old"):
        card.put(f"{folder}/{left}", "what editors and package managers leave\n")
    results = {one.name: one.problem for one in functions_at_boot(card)}
    assert set(results) == {"0000:00:1e.9", "02:00.0", "note", str(NIC)}
    assert [name for name, problem in results.items() if problem is None] == [str(NIC)]
    assert seen(card)[0] == 2


def test_a_record_that_others_may_write_is_not_obeyed(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, persistent=True)
    reboot(card)
    os.chmod(card.path(RECORD), 0o666)
    (result,) = functions_at_boot(card)
    assert result.problem is not None
    assert result.problem.reference == "unsafe-file"
    assert card.calls == []


def test_the_way_back_makes_no_functions(card: SimulatedHost) -> None:
    set_functions(card, NIC, 2, persistent=True)
    reboot(card)
    card.put("/proc/cmdline", "root=/dev/sda1 virtpass=off\n")
    with pytest.raises(RefusedError) as caught:
        functions_at_boot(card)
    assert caught.value.reference == "switched-off"
    assert card.calls == []


def test_a_device_without_driver_gets_no_record(card: SimulatedHost) -> None:
    card.add_functions(SPARE, 2, "igbvf", 60)
    with pytest.raises(RefusedError) as caught:
        set_functions(card, SPARE, 1, persistent=True)
    assert caught.value.what == f"{SPARE} is bound to no driver, and only its own driver makes functions"
    assert card.names("/etc/virtpass/functions.d") == []
