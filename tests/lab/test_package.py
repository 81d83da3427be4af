"""The Debian package through its life: installed, upgraded at work, at boot, removed without a trace."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import image, topology
from .confinement import assert_confined, assert_nothing_denied
from .guest import DAEMON, Guest
from .machine import Machine, Result
from .virtpass import HOOK, JOURNALS, journals, read_json, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NIC = topology.NIC
UNITS = ("virtpass-recover.service", "virtpass-host-recover.service")
OLDER = "0.0.9"

# Where a package could leave something, but for what dpkg, systemd, libvirt and Python keep there themselves:
# libvirt leaves a profile for each domain that has run.
PASSED_OVER = ("/var/lib/dpkg", "/var/lib/libvirt", "/var/lib/systemd", "/etc/apparmor.d/libvirt")
LISTING = ["find", "/etc", "/usr", "/var/lib", "(", "-name", "__pycache__"]
LISTING += [word for path in PASSED_OVER for word in ("-o", "-path", path)]
LISTING += [")", "-prune", "-o", "-printf", "%p %m %u\\n"]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Machine]:
    """A machine of this module alone, without virtpass at first."""
    with Machine(image.ready()) as machine:
        assert_confined(machine)
        yield machine
        assert_confined(machine)
        assert_nothing_denied(machine)


@pytest.fixture(scope="module")
def before(fresh: Machine) -> set[str]:
    """What is there without virtpass."""
    return listing(fresh)


@pytest.fixture(scope="module")
def older(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with another version number, and a hook that differs."""
    tree = tmp_path_factory.mktemp("older")
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    modules = tree / "usr/lib/python3/dist-packages/virtpass"
    for path, pattern, text in (
        (tree / "DEBIAN/control", r"^Version: .*$", f"Version: {OLDER}"),
        (modules / "__init__.py", r"^__version__ = .*$", f'__version__ = "{OLDER}"'),
    ):
        path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))
    made = tree.parent / f"virtpass_{OLDER}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    return made


@pytest.fixture
def borrower(fresh: Machine) -> Iterator[Guest]:
    guest = Guest(fresh)
    guest.define()
    yield guest
    guest.remove()


def listing(machine: Machine) -> set[str]:
    return set(machine.run(LISTING, timeout=120).check().text.splitlines())


def give(guest: Guest) -> None:
    virtpass(guest.machine, "domain", "attach", guest.name, NIC).check()


def dpkg(machine: Machine, *arguments: str) -> Result:
    return machine.run(["dpkg", *arguments], timeout=300)


def crash_with_the_daemon(guest: Guest) -> None:
    """Let QEMU and the libvirt daemon die, and the daemon forget the domain: nobody gives anything back."""
    machine = guest.machine
    machine.run(["systemctl", "stop", *DAEMON]).check()
    machine.run(["pkill", "-9", "-f", f"guest={guest.name}"]).check()
    machine.run(["sh", "-c", f"rm /run/libvirt/qemu/{guest.name}.*"]).check()
    assert len(journals(machine)) == 1
    assert machine.driver(NIC) == "vfio-pci"


def start_daemon(machine: Machine) -> None:
    machine.run(["systemctl", "start", "libvirtd.socket", "libvirtd.service"]).check()


def left_behind(machine: Machine) -> bool:
    (found,) = [one for one in read_json(machine, "devices") if one["address"] == NIC]
    return bool(found["left_behind"])


def test_it_is_installed_and_waits_for_the_next_boot(fresh: Machine, before: set[str], older: Path) -> None:
    fresh.install(older)
    for unit in UNITS:
        assert fresh.run(["systemctl", "is-enabled", unit]).text == "enabled\n"
        assert fresh.run(["systemctl", "is-active", unit]).text == "inactive\n"
    # No hook without being asked for, and nothing else beside the package's own files.
    assert fresh.run(["test", "-e", HOOK]).status == 1
    assert not {line for line in listing(fresh) - before if line.startswith("/var")}


def test_an_upgrade_renews_the_hook_while_a_domain_runs(
    fresh: Machine, package: Path, borrower: Guest
) -> None:
    virtpass(fresh, "hook", "install").check()
    old = read_json(fresh, "hook", "status")["version"]
    assert old.startswith(f"{OLDER}-")
    give(borrower)
    borrower.start().check()
    fresh.install(package)
    status = read_json(fresh, "hook", "status")
    assert status["state"] == "current"
    assert not status["version"].startswith(OLDER)
    borrower.destroy()
    assert fresh.driver(NIC) == "e1000e"
    assert journals(fresh) == []


def test_a_hook_that_somebody_switched_off_stays_off(fresh: Machine, package: Path) -> None:
    fresh.run(["chmod", "-x", HOOK]).check()
    fresh.install(package)
    assert fresh.run(["test", "-x", HOOK]).status == 1
    fresh.run(["chmod", "+x", HOOK]).check()


def test_it_is_not_removed_while_a_device_is_lent(fresh: Machine, borrower: Guest) -> None:
    give(borrower)
    borrower.start().check()
    refused = dpkg(fresh, "--remove", "virtpass")
    assert refused.status != 0
    assert "are lent to virtual machines" in refused.error_text
    # It is as it was: the units are enabled, the hook is there, the device comes back.
    assert read_json(fresh, "hook", "status")["state"] == "current"
    assert fresh.run(["systemctl", "is-enabled", UNITS[0]]).text == "enabled\n"
    borrower.destroy()
    assert fresh.driver(NIC) == "e1000e"


def test_the_next_domain_takes_what_a_crash_left_lent(fresh: Machine, borrower: Guest) -> None:
    give(borrower)
    borrower.start().check()
    assert not left_behind(fresh)
    crash_with_the_daemon(borrower)
    assert left_behind(fresh)
    assert "which has ended" in virtpass(fresh, "devices").check().text
    start_daemon(fresh)
    other = Guest(fresh, "second one")
    other.define()
    try:
        give(other)
        other.start().check()
        assert len(journals(fresh)) == 1
        assert not left_behind(fresh)
        other.destroy()
        assert fresh.driver(NIC) == "e1000e"
        assert journals(fresh) == []
    finally:
        other.remove()


def test_systemd_gives_back_what_a_crash_left_lent(fresh: Machine, borrower: Guest) -> None:
    state = fresh.state()
    give(borrower)
    borrower.start().check()
    # A running domain is left alone, although the unit does not ask libvirt.
    fresh.run(["systemctl", "restart", UNITS[0]], timeout=180).check()
    assert fresh.driver(NIC) == "vfio-pci"
    crash_with_the_daemon(borrower)
    # Without libvirt, which it must not wake at boot.
    fresh.run(["systemctl", "restart", UNITS[0]], timeout=180).check()
    assert fresh.state() == state
    assert journals(fresh) == []
    assert fresh.run(["systemctl", "is-active", "libvirtd.service"]).text == "inactive\n"
    start_daemon(fresh)


def test_a_recovery_that_fails_shows_and_says_why(fresh: Machine) -> None:
    record = f"{JOURNALS}/6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a"
    fresh.put("rubbish\n", record)
    assert fresh.run(["systemctl", "restart", UNITS[0]], timeout=180).status != 0
    assert UNITS[0] in fresh.run(["systemctl", "--failed", "--plain", "--no-legend"]).text
    log = fresh.run(["journalctl", "-b", "-u", UNITS[0], "-o", "cat"]).text
    assert f"line 1 of {record} is not a record of virtpass" in log
    fresh.run(["rm", record]).check()
    fresh.run(["systemctl", "reset-failed"]).check()


def test_after_a_power_cut_nothing_is_lent_and_nothing_has_failed(fresh: Machine, borrower: Guest) -> None:
    state = fresh.state()
    give(borrower)
    borrower.start().check()
    fresh.run(["sync"]).check()
    # The log goes with the power.
    assert_nothing_denied(fresh)
    fresh.reset()
    assert_confined(fresh)
    assert fresh.state() == state
    assert journals(fresh) == []
    assert fresh.run(["systemctl", "--failed", "--plain", "--no-legend"]).text == ""
    shown = fresh.run(["systemctl", "show", "-p", "ConditionResult", UNITS[0]]).text
    assert shown == "ConditionResult=no\n"
    assert read_json(fresh, "hook", "status")["state"] == "current"


def test_a_soft_reboot_gives_back_before_libvirt_starts(fresh: Machine, borrower: Guest) -> None:
    """It keeps the kernel, its drivers and /run, and ends all programs."""
    state = fresh.state()
    give(borrower)
    borrower.start().check()
    crash_with_the_daemon(borrower)
    fresh.soft_reboot()
    assert_confined(fresh)
    assert fresh.state() == state
    assert journals(fresh) == []
    times = fresh.run(["systemctl", "show", "-p", "ExecMainExitTimestampMonotonic", "--value", UNITS[0]]).text
    daemon = fresh.run(
        ["systemctl", "show", "-p", "ExecMainStartTimestampMonotonic", "--value", "libvirtd.service"]
    ).text
    assert 0 < int(times) <= int(daemon)


def test_removed_and_purged_it_leaves_nothing(fresh: Machine, before: set[str]) -> None:
    dpkg(fresh, "--remove", "virtpass").check()
    assert fresh.run(["test", "-e", HOOK]).status == 1
    for unit in UNITS:
        assert fresh.run(["systemctl", "cat", unit]).status != 0
    dpkg(fresh, "--purge", "virtpass").check()
    assert listing(fresh) ^ before == set()
    assert fresh.run(["test", "-e", "/run/virtpass"]).status == 1
    assert "virtpass" not in fresh.run(["find", "/var/lib/systemd", "-name", "virtpass*"]).text
