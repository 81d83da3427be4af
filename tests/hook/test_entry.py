"""The hook as a whole on a simulated host: what it says, what it leaves."""

import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable
from xml.sax.saxutils import escape

import pytest

from tests.pci.test_isolation import OTHER_USB, USB, keyboard
from tests.simulation import (
    AUDIO,
    CARD,
    DISK,
    GUEST,
    NIC,
    OTHER,
    PORT,
    SHARED,
    SPARE,
    TWIN,
    SimulatedHost,
    domain_xml,
)
from virtpass.binding import engine, power
from virtpass.binding.journal import journals
from virtpass.hook import entry
from virtpass.hook import report as report_module
from virtpass.hook.entry import run
from virtpass.operations.hand_overs import parse_line
from virtpass.operations.mediated_devices import create
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError
from virtpass.system.host import Host

# By then this process has run for longer than is noticed: Python and pytest have started.
IMPORTED = time.monotonic()

Captured = pytest.CaptureFixture[str]


def refused(host: SimulatedHost, capfd: Captured, xml: bytes) -> str:
    """Run prepare, which must refuse without a write; return its line."""
    before = host.state()
    host.calls.clear()
    assert run(host, "prepare", xml) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert host.calls == []
    assert host.state() == before
    assert journals(host) == []
    return err


def test_start_and_stop_say_nothing(host: SimulatedHost, capfd: Captured) -> None:
    before = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 0
    assert host.state()[CARD] == ("vfio-pci", "vfio-pci")
    assert run(host, "release", domain_xml(CARD, AUDIO)) == 0
    assert host.state() == before
    assert capfd.readouterr() == ("", "")


def test_a_domain_without_our_metadata_is_untouched(host: SimulatedHost) -> None:
    before = host.state()
    xml = domain_xml(CARD, AUDIO, metadata="")
    assert run(host, "prepare", xml) == 0
    assert run(host, "release", xml) == 0
    assert host.calls == []
    assert host.state() == before


def test_what_the_domain_borrowed_comes_back_even_when_the_metadata_is_gone(host: SimulatedHost) -> None:
    before = host.state()
    run(host, "prepare", domain_xml(CARD, AUDIO))
    assert run(host, "release", domain_xml(metadata="")) == 0
    assert host.state() == before


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ([PciAddress.parse("0b:00.0")], "there is no PCI device 0000:0b:00.0"),
        ([PORT], "is a bridge"),
        ([DISK], "holds the file system /"),
        ([SHARED[0]], "IOMMU group 15 cannot be split: 0000:06:02.0 (e1000)"),
    ],
)
def test_refusals_name_the_reason(
    host: SimulatedHost, capfd: Captured, devices: list[PciAddress], words: str
) -> None:
    assert words in refused(host, capfd, domain_xml(*devices))


def test_without_iommu(host: SimulatedHost, capfd: Captured) -> None:
    host.switch_iommu_off()
    line = refused(host, capfd, domain_xml(NIC))
    assert "no IOMMU is active on this host; virtpass doctor says what mends it" in line


def test_a_boot_that_was_chosen_as_the_way_back_lends_nothing(host: SimulatedHost, capfd: Captured) -> None:
    host.put("/proc/cmdline", "root=/dev/vda1 ro virtpass=off\n")
    assert "this boot keeps all devices with the host (virtpass=off)" in refused(
        host, capfd, domain_xml(CARD, AUDIO)
    )


def test_what_was_lent_before_comes_back_in_such_a_boot_too(host: SimulatedHost) -> None:
    before = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 0
    host.put("/proc/cmdline", "virtpass=off\n")
    assert run(host, "release", domain_xml(CARD, AUDIO)) == 0
    assert host.state() == before


@pytest.mark.parametrize("name", ["guest", "win11-b_1.0", "it's mine", "späte", "a b"])
def test_a_card_that_was_renumbered(host: SimulatedHost, capfd: Captured, name: str) -> None:
    metadata = (
        "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:device address='0000:02:00.0' "
        "vendor='0x10de' "
        "device='0x1b80' subsystem-vendor='0x1462' subsystem-device='0x3362'/></v:passthrough>"
    )
    moved = PciAddress.parse("0c:00.0")
    host.add_device(moved, ids=(0x10DE, 0x1B80, 0x1462, 0x3362))
    line = refused(host, capfd, domain_xml(NIC, metadata=metadata, name=escape(name)))
    assert "0000:02:00.0 is 8086:10d3 (8086:0000) now, not 10de:1b80 (1462:3362)" in line
    # Without a serial number nobody knows whether it is the same.
    assert f"; one like that is at {moved}; if that is it, virtpass domain attach " in line
    # As they stand there they can be given to a shell.
    assert shlex.split(line.partition(", or ")[2])[:4] == ["virtpass", "domain", "adopt", name]
    words = shlex.split(line.partition(f" is at {moved}; ")[2])
    at = words.index("attach")
    assert words[at - 2 : at + 3] == ["virtpass", "domain", "attach", name, str(moved)]
    at = words.index("detach")
    assert words[at - 2 : at + 2] == ["virtpass", "domain", "detach", name]
    assert words[at + 2].rstrip(",") == "0000:02:00.0"


GONE = PciAddress.parse("0b:00.0")


def with_serial(host: SimulatedHost, address: PciAddress, serial: int) -> None:
    """Give a device a serial number in its configuration space."""
    capability = (0x0001_0003).to_bytes(4, "little") + serial.to_bytes(8, "little")
    host.put(f"/sys/bus/pci/devices/{address}/config", bytes(0x100) + capability + bytes(0xEF4))


def recorded(*devices: tuple[PciAddress, str, int]) -> str:
    """Return the metadata of a domain with devices of one kind: their addresses, ids and serial numbers."""
    elements = []
    for address, device, serial in devices:
        known = f" serial='{serial:016x}'" if serial else ""
        elements.append(
            f"<v:device address='{address}' vendor='0x8086' device='{device}' subsystem-vendor='0x8086' "
            f"subsystem-device='0x0000'{known}/>"
        )
    return f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'>{''.join(elements)}</v:passthrough>"


def test_twins_that_have_changed_places_are_told_apart_by_their_serial_numbers(
    host: SimulatedHost, capfd: Captured
) -> None:
    with_serial(host, NIC, 2)
    with_serial(host, TWIN, 1)
    line = refused(host, capfd, domain_xml(NIC, metadata=recorded((NIC, "0x10d3", 1))))
    assert "serial 0000000000000002 now, not 8086:10d3 (8086:0000) serial 0000000000000001" in line
    assert f"; that is at {TWIN}; " in line


def test_twins_of_one_domain_that_have_changed_places(host: SimulatedHost, capfd: Captured) -> None:
    with_serial(host, NIC, 2)
    with_serial(host, TWIN, 1)
    metadata = recorded((NIC, "0x10d3", 1), (TWIN, "0x10d3", 2))
    line = refused(host, capfd, domain_xml(NIC, TWIN, metadata=metadata))
    # To detach one address would take away what the other one has just been attached for.
    assert f"; that is at {TWIN}; several have moved: find them in virtpass devices, " in line
    assert line.rstrip().endswith(", then virtpass domain adopt guest")
    assert str(NIC) not in line.partition("several")[2]


def test_where_a_device_that_is_gone_may_be(host: SimulatedHost, capfd: Captured) -> None:
    for address in SHARED:
        with_serial(host, address, 2)
    metadata = recorded((GONE, "0x10d3", 1))
    line = refused(host, capfd, domain_xml(GONE, metadata=metadata))
    assert f"there is no PCI device {GONE} any more" in line
    # Whose serial number is not known may be the one.
    assert f"; one like that is at {NIC} and at {TWIN}; " in line
    assert (
        "with the address of the right one, virtpass domain attach guest ADDRESS"
        f" and then virtpass domain detach guest {GONE}"
    ) in line
    with_serial(host, TWIN, 1)
    assert f"; that is at {TWIN}; " in refused(host, capfd, domain_xml(GONE, metadata=metadata))


def test_a_function_that_has_moved_is_not_taken_for_another_of_its_card(
    host: SimulatedHost, capfd: Captured
) -> None:
    """All functions of a card may have the card's serial number."""
    was, moved = PciAddress.parse("0c:00.1"), PciAddress.parse("0d:00.1")
    for address in (PciAddress.parse("0d:00.0"), moved):
        host.add_device(address, ids=(0x8086, 0x10D3, 0x8086, 0))
        with_serial(host, address, 5)
    line = refused(host, capfd, domain_xml(was, metadata=recorded((was, "0x10d3", 5))))
    assert f"; that is at {moved}; virtpass domain attach guest {moved} and then " in line
    assert "0d:00.0" not in line


def test_a_device_that_is_where_it_was_is_not_taken_for_another_that_is_gone(
    host: SimulatedHost, capfd: Captured
) -> None:
    for address in SHARED:
        with_serial(host, address, 2)
    metadata = recorded((NIC, "0x10d3", 0), (GONE, "0x10d3", 3))
    line = refused(host, capfd, domain_xml(NIC, GONE, metadata=metadata))
    assert f"; one like that is at {TWIN}; " in line


def test_a_device_that_is_nowhere(host: SimulatedHost, capfd: Captured) -> None:
    line = refused(host, capfd, domain_xml(GONE, metadata=recorded((GONE, "0xbeef", 0))))
    assert f"there is no PCI device {GONE} any more, which was 8086:beef" in line
    assert line.rstrip().endswith(f"; if it is gone for good: virtpass domain detach guest {GONE}")
    line = refused(host, capfd, domain_xml(NIC, metadata=recorded((NIC, "0xbeef", 0))))
    assert " is at " not in line
    assert "attach the device at its new address, or virtpass domain adopt guest" in line


def test_a_policy_that_this_version_does_not_know(host: SimulatedHost, capfd: Captured) -> None:
    metadata = (
        "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:policy display='seize'/></v:passthrough>"
    )
    assert "display=seize is not known" in refused(host, capfd, domain_xml(NIC, metadata=metadata))


def test_a_card_that_is_gone_is_said_to_be_gone(host: SimulatedHost, capfd: Captured) -> None:
    metadata = (
        "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:device address='0000:0b:00.0' "
        "vendor='0x10de' device='0x1b80' subsystem-vendor='0x1462' "
        "subsystem-device='0x3362'/></v:passthrough>"
    )
    line = refused(host, capfd, domain_xml(PciAddress.parse("0b:00.0"), metadata=metadata))
    assert "there is no PCI device 0000:0b:00.0" in line


def test_metadata_that_was_spoilt_while_the_domain_ran(host: SimulatedHost, capfd: Captured) -> None:
    before = host.state()
    run(host, "prepare", domain_xml(NIC))
    metadata = "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:device address='x'/></v:passthrough>"
    assert run(host, "release", domain_xml(NIC, metadata=metadata)) == 0
    assert host.state() == before
    assert "is not understood" in refused(host, capfd, domain_xml(NIC, metadata=metadata))


def test_a_card_that_does_not_answer_any_more(host: SimulatedHost, capfd: Captured) -> None:
    host.put(f"/sys/bus/pci/devices/{NIC}/config", b"\xff" * 64)
    assert "does not answer any more" in refused(host, capfd, domain_xml(NIC))


def test_interrupts_that_are_not_remapped(host: SimulatedHost, capfd: Captured) -> None:
    host.put("/sys/kernel/irq/24/chip_name", "IO-APIC\n")
    line = refused(host, capfd, domain_xml(NIC))
    assert "interrupts are not remapped" in line
    assert "for guests that you trust: sudo virtpass setup --unsafe-interrupts" in line


def test_metadata_of_others_that_expat_refuses(host: SimulatedHost, capfd: Captured) -> None:
    """libvirt keeps it all the same."""
    before = host.state()
    odd = "<x:foo xmlns:x='urn:u'><q:bar/></x:foo>"
    assert run(host, "prepare", domain_xml(NIC, metadata=odd)) == 0
    assert host.state() == before
    ours = "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'/>"
    assert "cannot be read" in refused(host, capfd, domain_xml(NIC, metadata=odd + ours))
    assert run(host, "prepare", domain_xml(NIC)) == 0
    assert run(host, "release", domain_xml(NIC, metadata=odd)) == 0
    assert host.state() == before


def test_a_hostdev_that_is_not_understood_is_not_left_out(host: SimulatedHost, capfd: Captured) -> None:
    xml = domain_xml(NIC).replace(b"bus='0x02'", b"bus='08'")
    assert "is not a number" in refused(host, capfd, xml)


def test_a_record_that_could_not_be_written_keeps_nobody_else_out(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = host.append_own

    def full(directory: str, name: str, content: bytes) -> None:
        append(directory, name, content[:40])
        raise FailedError("file", "No space left on device")

    monkeypatch.setattr(host, "append_own", full)
    assert run(host, "prepare", domain_xml(NIC)) == 1
    monkeypatch.undo()
    assert run(host, "prepare", domain_xml(NIC, uuid=OTHER)) == 0


def test_a_card_with_virtual_functions(host: SimulatedHost, capfd: Captured) -> None:
    host.link(f"/sys/bus/pci/devices/{NIC}/virtfn0", f"/sys/bus/pci/devices/{TWIN}")
    assert "has 1 virtual functions" in refused(host, capfd, domain_xml(NIC))


def test_a_card_with_mediated_devices(host: SimulatedHost, capfd: Captured) -> None:
    """Unbinding its driver would wait for whoever has one of them."""
    host.add_mediated_type(NIC, "small", 1)
    made = create(host, NIC, "small").uuid
    assert f"has mediated devices, which would vanish from whoever uses them: {made}" in refused(
        host, capfd, domain_xml(NIC)
    )


def test_a_virtual_machine_that_somebody_else_started_has_it(host: SimulatedHost, capfd: Captured) -> None:
    host.busy_groups.add(11)
    assert "is used by a running virtual machine" in refused(host, capfd, domain_xml(NIC))


def test_the_nvidia_driver_is_not_unbound(host: SimulatedHost, capfd: Captured) -> None:
    card = PciAddress.parse("0c:00.0")
    host.add_device(card, class_code=0x030000, group=20, native="nvidia")
    line = refused(host, capfd, domain_xml(card))
    assert (
        "; with virtpass domain policy DOMAIN display=hand-over the domain's start unloads it; else " in line
    )
    assert "modprobe -r nvidia_drm" in line


def test_a_disk_that_is_in_use_in_a_way_that_no_table_shows(host: SimulatedHost, capfd: Captured) -> None:
    host.put("/proc/self/mountinfo", "22 1 0:30 / / rw - zfs rpool/root rw\n")
    host.claimed.add("/dev/nvme0n1p1")
    assert "has a disk in use (nvme0n1p1)" in refused(host, capfd, domain_xml(DISK))


def test_a_process_that_has_the_card_open(host: SimulatedHost, capfd: Captured) -> None:
    node = f"/sys/bus/pci/devices/{CARD}/drm/card0"
    host.put(f"{node}/dev", "226:0\n")
    host.put(f"{node}/uevent", "MAJOR=226\nMINOR=0\nDEVNAME=dri/card0\n")
    host.put("/proc/812/comm", "Xorg\n")
    host.put("/proc/812/fd/.keep")
    host.put("/dev/dri/card0")
    os.symlink("/dev/dri/card0", host.path("/proc/812/fd/11"))
    line = refused(host, capfd, domain_xml(CARD, AUDIO))
    assert "in use by Xorg (process 812, /dev/dri/card0)" in line


def test_another_domain_has_it(host: SimulatedHost, capfd: Captured) -> None:
    run(host, "prepare", domain_xml(CARD, AUDIO, name="first one"))
    lent = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO, uuid=OTHER, name="second")) == 1
    assert "is lent to the domain first one; shut that down first" in capfd.readouterr().err
    assert run(host, "release", domain_xml(CARD, AUDIO, uuid=OTHER, name="second")) == 0
    assert host.state() == lent
    assert journals(host) == [GUEST]


def test_a_failure_half_way_is_told_in_one_line_and_undone(host: SimulatedHost, capfd: Captured) -> None:
    before = host.state()
    host.refusing.add(("vfio-pci", CARD))
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 1
    assert host.state() == before
    assert capfd.readouterr().err.startswith(
        "virtpass: 0000:01:00.0 could not be bound to vfio-pci: no driver took it;"
    )


def test_the_next_start_finishes_what_a_killed_hook_left(host: SimulatedHost) -> None:
    before = host.state()
    run(host, "prepare", domain_xml(CARD, AUDIO))
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 0
    assert run(host, "release", domain_xml(CARD, AUDIO)) == 0
    assert host.state() == before


def test_an_identical_twin_is_not_touched(host: SimulatedHost) -> None:
    run(host, "prepare", domain_xml(NIC))
    assert host.state()[TWIN] == ("e1000e", "(null)")


@pytest.mark.parametrize(
    "operation",
    [
        ("start", "begin"),
        ("started", "begin"),
        ("stopped", "end"),
        ("reconnect", "begin"),
        ("restore", "begin"),
        ("migrate", "begin"),
        ("attach", "begin"),
        ("prepare", "end"),
        ("whatever comes later", "begin"),
        ("", ""),
    ],
)
def test_other_operations_succeed_in_silence(
    operation: tuple[str, str], capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(entry, "run", lambda *_: pytest.fail("nothing may run"))
    assert entry.main(["guest", *operation, "-"]) == 0
    assert entry.main(["guest"]) == 0
    assert capfd.readouterr() == ("", "")


def test_an_ordinary_user_s_session_daemon_is_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(entry, "run", lambda *_: pytest.fail("nothing may run"))
    assert entry.main(["guest", "prepare", "begin", "-"]) == 0


def test_a_fault_of_our_own_is_one_line_too(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()

    def fault(*_: object) -> None:
        raise ZeroDivisionError("not\nthought of")

    monkeypatch.setattr("virtpass.binding.engine.probe", fault)
    assert run(host, "prepare", domain_xml(NIC)) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "ZeroDivisionError" in err
    monkeypatch.undo()
    assert run(host, "release", domain_xml(NIC)) == 0
    assert host.state() == before


def policy(**values: str) -> str:
    attributes = " ".join(f"{key.replace('_', '-')}='{value}'" for key, value in values.items())
    return f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:policy {attributes}/></v:passthrough>"


@pytest.mark.parametrize(("companions", "driver"), [("bind", "vfio-pci"), ("free", None)])
def test_the_rest_of_the_card_goes_along(host: SimulatedHost, companions: str, driver: str | None) -> None:
    before = host.state()
    xml = domain_xml(CARD, metadata=policy(companions=companions))
    assert run(host, "prepare", xml) == 0
    assert (sysfs.driver(host, CARD), sysfs.driver(host, AUDIO)) == ("vfio-pci", driver)
    assert run(host, "release", xml) == 0
    assert host.state() == before


def test_the_rest_of_the_card_is_checked_like_the_card(host: SimulatedHost, capfd: Captured) -> None:
    run(host, "prepare", domain_xml(AUDIO))
    lent = host.state()
    assert run(host, "prepare", domain_xml(CARD, uuid=OTHER, name="second")) == 1
    assert "is lent to the domain guest" in capfd.readouterr().err
    assert host.state() == lent


def test_a_desktop_that_may_go_is_asked(host: SimulatedHost, capfd: Captured) -> None:
    node = f"/sys/bus/pci/devices/{CARD}/drm/card0"
    host.put(f"{node}/dev", "226:0\n")
    host.put(f"{node}/uevent", "DEVNAME=dri/card0\n")
    host.put("/proc/7000001/comm", "Xorg\n")
    host.put("/proc/7000001/cgroup", "0::/machine.slice/docker-1.scope\n")
    host.put("/proc/7000001/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/7000001/fd/11"))
    xml = domain_xml(CARD, AUDIO)
    assert "virtpass domain policy DOMAIN display=hand-over" in refused(host, capfd, xml)
    # A container cannot be asked.
    xml = domain_xml(CARD, AUDIO, metadata=policy(display="hand-over"))
    assert "still in use by Xorg (process 7000001, /dev/dri/card0)" in refused(host, capfd, xml)
    shutil.rmtree(host.path("/proc/7000001"))
    assert run(host, "prepare", xml) == 0
    assert sysfs.driver(host, CARD) == "vfio-pci"


def test_all_keyboards_do_not_go_at_once(host: SimulatedHost, capfd: Captured) -> None:
    host.put("/proc/bus/input/devices", keyboard("A", USB) + keyboard("B", OTHER_USB))
    line = refused(host, capfd, domain_xml(SPARE, TWIN))
    assert f"has, together with {TWIN}, the last keyboards of this host" in line
    assert str(SPARE) in line


def test_nor_one_after_the_other(host: SimulatedHost, capfd: Captured) -> None:
    host.put("/proc/bus/input/devices", keyboard("A", USB) + keyboard("B", OTHER_USB))
    assert run(host, "prepare", domain_xml(SPARE)) == 0
    # Its driver is gone, and the keyboards behind it with that.
    host.put("/proc/bus/input/devices", keyboard("B", OTHER_USB))
    assert run(host, "prepare", domain_xml(TWIN, uuid=OTHER, name="second")) == 1
    assert f"{TWIN} has the only keyboard of this host" in capfd.readouterr().err


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What the hook tells the system's log."""
    told: list[dict[str, str]] = []
    monkeypatch.setattr(report_module, "send", lambda _, line: told.append(parse_line(line) or {}))
    return told


def steps_of(log: list[dict[str, str]]) -> list[str]:
    return [line["step"] for line in log if "step" in line]


@pytest.fixture
def last_screen(host: SimulatedHost) -> SimulatedHost:
    """The only screen of a host without SSH is on the card, and no program has it open."""
    real = host.real_path(f"/sys/bus/pci/devices/{CARD}")
    host.put(f"{real}/drm/card0/dev", "226:0\n")
    host.link("/sys/class/drm/card0", f"{real}/drm/card0")
    host.put("/usr/bin/udevadm")
    host.put("/sys/fs/cgroup/system.slice/cgroup.procs")
    return host


def test_the_last_screen_stays_where_nobody_could_log_in_any_more(
    last_screen: SimulatedHost, capfd: Captured
) -> None:
    line = refused(last_screen, capfd, domain_xml(CARD))
    assert "the last screen of this host would go, and no SSH server was found" in line
    assert "display=hand-over" in line
    last_screen.put("/sys/fs/cgroup/system.slice/sshd.service/cgroup.procs", "9\n")
    assert run(last_screen, "prepare", domain_xml(CARD)) == 0


def test_the_last_screen_goes_with_a_warning_where_it_may(
    last_screen: SimulatedHost, log: list[dict[str, str]]
) -> None:
    xml = domain_xml(CARD, metadata=policy(display="hand-over"))
    assert run(last_screen, "prepare", xml) == 0
    (warning,) = [line["detail"] for line in log if line.get("step") == "warning"]
    assert "nobody can log in" in warning
    # Before the driver may be unloaded, too.
    assert steps_of(log).count("override") == 4
    log.clear()
    # Somebody can.
    xml = domain_xml(NIC, uuid=OTHER, metadata=policy(display="hand-over"))
    assert run(last_screen, "prepare", xml) == 0
    assert "warning" not in steps_of(log)


def test_a_hand_over_begins_when_libvirt_calls_the_hook(
    host: SimulatedHost, log: list[dict[str, str]]
) -> None:
    began = entry._began(Host())
    assert began < IMPORTED
    assert run(host, "prepare", domain_xml(NIC), began) == 0
    assert (log[0]["step"], log[0]["detail"], log[0]["domain"]) == ("start", "the hook itself", "guest")
    assert int(log[-1]["ms"]) >= int(log[0]["ms"]) >= 100


def test_a_stop_that_has_nothing_to_do_tells_nothing(host: SimulatedHost, log: list[dict[str, str]]) -> None:
    assert run(host, "release", domain_xml(NIC), time.monotonic() - 1) == 0
    assert log == []


def test_a_stop_that_waited_for_nothing_ends_in_the_log(
    host: SimulatedHost, log: list[dict[str, str]]
) -> None:
    held = engine.lock(host)
    timer = threading.Timer(0.3, os.close, [held])
    timer.start()
    assert run(host, "release", domain_xml(NIC)) == 0
    timer.join()
    assert [(one.get("step"), one["detail"]) for one in log] == [
        ("wait", "for others who move devices"),
        (None, "nothing was lent"),
    ]


def test_what_takes_no_time_has_no_line(host: SimulatedHost, log: list[dict[str, str]]) -> None:
    host.put(f"/sys/bus/pci/devices/{NIC}/power/control", "on\n")
    assert run(host, "prepare", domain_xml(NIC)) == 0
    assert steps_of(log) == ["check", "override", "unbind", "probe"]
    log.clear()
    assert run(host, "release", domain_xml(NIC)) == 0
    assert steps_of(log) == ["override", "unbind", "probe", "override"]


def test_a_wait_for_the_lock_is_told(host: SimulatedHost, log: list[dict[str, str]]) -> None:
    held = engine.lock(host)
    timer = threading.Timer(0.3, os.close, [held])
    timer.start()
    assert run(host, "prepare", domain_xml(NIC)) == 0
    timer.join()
    assert (log[0]["step"], log[0]["detail"]) == ("wait", "for others who move devices")
    assert 100 <= int(log[0]["ms"]) < 5000
    assert log[0]["domain"] == "guest"


def test_a_device_that_is_slow_to_wake_is_told(
    host: SimulatedHost, log: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> None:
        threading.Event().wait(0.15)

    def failing(*_: object) -> None:
        raise FailedError("attribute", "the kernel refused")

    monkeypatch.setattr(power, "keep_awake", slow)
    assert run(host, "prepare", domain_xml(NIC)) == 0
    assert [line["detail"] for line in log if line.get("step") == "awake"] == [str(NIC)]
    log.clear()
    monkeypatch.setattr(power, "keep_awake", failing)
    assert run(host, "prepare", domain_xml(TWIN, uuid=OTHER)) == 1
    assert [line["problem"] for line in log if line.get("step") == "awake"] == ["the kernel refused"]


def test_what_others_had_left_is_told_where_it_takes_time(
    host: SimulatedHost, log: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[Callable[[], object]] = [lambda: threading.Event().wait(0.15), lambda: None]
    monkeypatch.setattr(entry, "release_late", lambda _: waits.pop(0)())
    assert run(host, "prepare", domain_xml(NIC)) == 0
    assert log[0]["detail"] == "what others had left to be given back"
    assert steps_of(log).count("free") == 1
