"""`virtpass setup` and `virtpass uninstall`, on a simulated host and libvirt's test driver."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.test_commands import TEST_DRIVER, Captured, call
from tests.cli.test_preparation import debian, tree, typed
from tests.domain.documents import UUID, domain, hostdev
from tests.host import choices, rows_grub
from tests.host.machine import switch_off
from tests.host.rows import Programs
from tests.simulation import AUDIO, CARD, GUEST, NIC, OTHER, SimulatedHost, domain_xml
from virtpass.hook.entry import run as run_hook
from virtpass.hook.install import HOOK
from virtpass.host.initramfs.initramfs_tools import InitramfsTools
from virtpass.operations import domains, hooks, setup, uninstall
from virtpass.operations.setup import SetupWish
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection

WISH = SetupWish(CARD, "guest", {"display": "hand-over"})
HAND_OVER = ("--policy", "display=hand-over")
BOOT = "/proc/sys/kernel/random/boot_id"
DEBIAN = next(row for row in rows_grub.ROWS if row.name == "debian-12-grub")


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    """A Debian host with GRUB whose IOMMU is on, with libvirt and Python."""
    host = debian(tmp_path)
    host.put(BOOT, "first\n")
    os.makedirs(host.path("/etc/libvirt"))
    os.makedirs(host.path("/usr/bin"), exist_ok=True)
    os.symlink("/usr/bin/python3", host.path("/usr/bin/python3"))
    return host


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """The distribution's programs, which do their work on the tree."""
    found = Programs({**DEBIAN.programs, **choices.PROGRAMS})
    for module, name in ((setup, "carry_out"), (uninstall, "uninstall")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), run=found))
    return found


@pytest.fixture
def connection() -> Iterator[Connection]:
    """libvirt's test driver, kept open: its domains live as long as somebody is connected."""
    pytest.importorskip("libvirt")
    with Connection.open(TEST_DRIVER) as opened:
        opened.define(domain(hostdev(str(NIC)), kind="test", name="guest", uuid=UUID), validate=False)
        yield opened


def xml(connection: Connection) -> str:
    return connection.domain("guest").inactive_xml()


def switch_on(host: SimulatedHost) -> None:
    """Boot anew, with the IOMMU on."""
    os.rename(host.path("/sys/class/none"), host.path("/sys/class/iommu"))
    os.rename(host.path("/sys/kernel/none"), host.path("/sys/kernel/iommu_groups"))
    for number in host.names("/sys/kernel/iommu_groups"):
        for address in host.names(f"/sys/kernel/iommu_groups/{number}/devices"):
            host.link(f"/sys/bus/pci/devices/{address}/iommu_group", f"/sys/kernel/iommu_groups/{number}")
    os.unlink(host.path("/sys/kernel/irq/24/chip_name"))
    host.put("/proc/cmdline", f"{host.read('/proc/cmdline')} intel_iommu=on\n")
    boot(host)


def boot(host: SimulatedHost) -> None:
    host.put(BOOT, "second\n")


def set_up(connection: Connection, host: SimulatedHost) -> None:
    setup.carry_out(connection, host, setup.plan_setup(connection, host, WISH))


def test_there_and_back(connection: Connection, host: SimulatedHost, programs: Programs) -> None:
    files, before = tree(host), xml(connection)
    set_up(connection, host)
    assert str(CARD.bus) in xml(connection)
    assert xml(connection) != before
    assert host.exists(HOOK)
    assert setup.check_start(connection, host, "guest").problem is None
    assert setup.plan_setup(connection, host, WISH).is_empty
    uninstall.uninstall(connection, host, uninstall.plan_uninstall(connection, host))
    assert tree(host) == files
    # The NIC was there before, and is still.
    assert xml(connection) == before
    assert uninstall.plan_uninstall(connection, host).is_empty


def test_over_a_reboot_and_back(connection: Connection, host: SimulatedHost, programs: Programs) -> None:
    files, before = tree(host), xml(connection)
    switch_off(host)
    plan = setup.plan_setup(connection, host, WISH)
    assert plan.waits_for_reboot
    # All of it is seen before anything is done.
    assert "intel_iommu=on" in plan.host.plan.diff
    # Only the boot with the argument tells what the domain's start will do.
    assert setup.foresee(host, plan) is None
    assert str(CARD) in plan.domain.diff
    setup.carry_out(connection, host, plan)
    assert xml(connection) == before
    begun = setup.pending(host)
    assert begun is not None
    assert begun.wish == WISH
    with pytest.raises(RefusedError, match="not rebooted"):
        setup.resume(connection, host, begun)
    switch_on(host)
    setup.carry_out(connection, host, setup.resume(connection, host, begun))
    assert setup.pending(host) is None
    assert setup.check_start(connection, host, "guest").problem is None
    uninstall.uninstall(connection, host, uninstall.plan_uninstall(connection, host))
    assert tree(host) == files
    assert xml(connection) == before


def test_a_reboot_that_did_not_help(connection: Connection, host: SimulatedHost, programs: Programs) -> None:
    files = tree(host)
    switch_off(host)
    set_up(connection, host)
    boot(host)
    begun = setup.pending(host)
    assert begun is not None
    with pytest.raises(FailedError, match="IOMMU is still off; virtpass doctor"):
        setup.resume(connection, host, begun)
    # Whoever begins anew is not sent to reboot once more.
    with pytest.raises(RefusedError, match=r"no IOMMU is active.*virtpass doctor says what mends it"):
        setup.plan_setup(connection, host, WISH)
    uninstall.uninstall(connection, host, uninstall.plan_uninstall(connection, host))
    assert tree(host) == files


def test_another_card_at_the_address(connection: Connection, host: SimulatedHost, programs: Programs) -> None:
    switch_off(host)
    set_up(connection, host)
    switch_on(host)
    host.put(f"/sys/bus/pci/devices/{CARD}/device", "0x1112\n")
    begun = setup.pending(host)
    assert begun is not None
    with pytest.raises(RefusedError, match="not 1234:1111"):
        setup.resume(connection, host, begun)


def test_what_fails_in_the_end_leaves_nothing(
    connection: Connection, host: SimulatedHost, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = frozenset({"etc/modprobe.d/virtpass.conf", "etc/virtpass/early-bind", "lib/vfio-pci.ko.xz"})
    monkeypatch.setattr(
        InitramfsTools,
        "content",
        lambda *_: names if host.exists("/etc/modprobe.d/virtpass.conf") else frozenset(),
    )
    files, before = tree(host), xml(connection)
    wish = SetupWish(CARD, "guest", {"display": "refuse"}, bind=True)
    plan = setup.plan_setup(connection, host, wish)
    assert not plan.host.is_empty
    attach = domains.attach

    def fails(*arguments: object, **options: object) -> object:
        raise FailedError("libvirt", "libvirt says no")

    monkeypatch.setattr(domains, "attach", fails)
    said: list[str] = []
    with pytest.raises(FailedError, match="libvirt says no"):
        setup.carry_out(connection, host, plan, say=said.append)
    monkeypatch.setattr(domains, "attach", attach)
    assert "putting the hook back" in said
    assert "putting the host back" in said
    assert tree(host) == files
    assert xml(connection) == before


def test_a_hook_that_fails_after_it_was_written_goes_again(
    connection: Connection, host: SimulatedHost, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tree(host)
    plan = setup.plan_setup(connection, host, WISH)
    install = hooks.install_hook

    def fails_late(where: Host) -> object:
        install(where)
        raise FailedError("daemon-reload", "the daemon could not be reloaded")

    monkeypatch.setattr(hooks, "install_hook", fails_late)
    with pytest.raises(FailedError, match="could not be reloaded"):
        setup.carry_out(connection, host, plan)
    assert tree(host) == files


def test_a_domain_that_changes_meanwhile_loses_nothing(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    domains.adopt(connection, host, "guest")
    domains.set_policy(connection, host, "guest", {"wait": "20"})
    plan = setup.plan_setup(connection, host, WISH)
    domains.set_policy(connection, host, "guest", {"wait": "30"})
    before = xml(connection)
    with pytest.raises(RefusedError, match="was changed meanwhile"):
        setup.carry_out(connection, host, plan)
    assert xml(connection) == before


def test_interrupts_that_the_plan_accepts_do_not_refuse_it(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    for interrupt in host.names("/sys/kernel/irq"):
        os.unlink(host.path(f"/sys/kernel/irq/{interrupt}/chip_name"))
    host.put("/sys/kernel/irq/1/chip_name", "IO-APIC\n")
    host.put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n")
    with pytest.raises(RefusedError, match=r"not remapped.*virtpass doctor says what mends it"):
        setup.plan_setup(connection, host, WISH)
    plan = setup.plan_setup(connection, host, replace(WISH, unsafe_interrupts=True))
    assert not plan.host.is_empty


def test_a_card_whose_first_function_the_domain_had(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    mine = hostdev(str(CARD), "00:05.0")
    connection.define(domain(mine, kind="test", name="guest", uuid=UUID), validate=False)
    before = xml(connection)
    set_up(connection, host)
    assert "multifunction='on'" in xml(connection)
    uninstall.uninstall(connection, host, uninstall.plan_uninstall(connection, host))
    assert xml(connection) == before


def test_metadata_that_is_not_understood_is_not_passed_over(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    set_up(connection, host)
    odd = xml(connection).replace("added='yes'", "added='perhaps'").replace('added="yes"', 'added="perhaps"')
    connection.define(odd, validate=False)
    with pytest.raises(RefusedError, match=r"domain 'guest' cannot be given back.*perhaps"):
        uninstall.plan_uninstall(connection, host)


def test_a_hook_that_somebody_has_deleted_is_not_nothing(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    files = tree(host)
    set_up(connection, host)
    domains.release(connection, host, "guest")
    os.unlink(host.path(HOOK))
    plan = uninstall.plan_uninstall(connection, host)
    assert not plan.is_empty
    uninstall.uninstall(connection, host, plan)
    assert tree(host) == files


def test_nothing_is_taken_back_while_a_device_is_lent(
    connection: Connection, host: SimulatedHost, programs: Programs
) -> None:
    set_up(connection, host)
    assert run_hook(host, "prepare", domain_xml(CARD, uuid=GUEST)) == 0
    with pytest.raises(RefusedError, match="lent to the domain guest"):
        uninstall.plan_uninstall(connection, host)


def command(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    return call(host, capfd, *arguments, "-c", TEST_DRIVER)


def test_the_command_without_a_terminal(
    connection: Connection, host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    before = xml(connection)
    status, _, err = command(host, capfd, "setup")
    assert status == 2
    assert f"ADDRESS is not given, and there is no terminal to ask on: {CARD}" in err
    status, _, err = command(host, capfd, "setup", "01:00.0")
    assert status == 2
    assert "DOMAIN is not given" in err
    assert "guest" in err
    status, _, err = command(host, capfd, "setup", "01:00.0", "guest", "--yes")
    assert status == 2
    assert "--policy display=hand-over" in err
    arguments = ("setup", "01:00.0", "guest", "--policy", "display=hand-over")
    assert command(host, capfd, *arguments)[0] == 2
    status, out, _ = command(host, capfd, *arguments, "--dry-run")
    assert status == 0
    # What it comes to stands below what changes line by line, and with it what the domain's start will do.
    assert out.index("+    <hostdev") < out.index("\nCard     ") < out.index("\nHost     is ready\n")
    assert f"\nDomain   guest will have {CARD}, {AUDIO}\n" in out
    assert "\nAt the next start of guest:\n 1. wait for others who move devices" in out
    assert out.endswith("guest would start; all of this is undone when it stops\n")
    assert xml(connection) == before
    assert not host.exists(HOOK)

    status, out, err = command(host, capfd, *arguments, "--yes")
    assert status == 0
    assert "At the next start of guest:\n 1. wait for others who move devices" in out
    assert err.splitlines()[-1] == "next: virsh -c test:///default start guest, or the button in virt-manager"
    assert xml(connection) != before
    # A second time there is nothing to do, and the same check at the end.
    status, out, err = command(host, capfd, *arguments, "--yes")
    assert status == 0
    assert "all of this is set up already" in err

    status, out, _ = command(host, capfd, "uninstall", "--dry-run")
    assert status == 0
    assert "-    <hostdev" in out
    assert f"Hook: {HOOK} goes, with what it runs" in out
    assert command(host, capfd, "uninstall")[0] == 2
    status, _, err = command(host, capfd, "uninstall", "--yes")
    assert status == 0
    assert "this host is as it was before virtpass" in err
    assert xml(connection) == before
    status, _, err = command(host, capfd, "uninstall", "--yes")
    assert (status, err) == (0, "nothing of virtpass is on this host\n")


def test_what_comes_next_can_be_typed_whatever_the_name(
    connection: Connection, host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    name = "my win; reboot"
    connection.define(domain(kind="test", name=name, uuid=OTHER), validate=False)
    status, _, err = command(host, capfd, "setup", "01:00.0", name, *HAND_OVER, "--yes")
    assert status == 0, err
    words = shlex.split(err.splitlines()[-1].partition(", or ")[0])
    assert words == ["next:", "virsh", "-c", TEST_DRIVER, "start", name]


def test_the_command_asks(
    connection: Connection,
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = xml(connection)
    # Which card (there is one), which domain (the driver has another of its own), the desktop, all of it.
    typed(monkeypatch, "\n1\ny\nn\n")
    status, out, err = command(host, capfd, "setup")
    assert status == 4
    assert f"  1. {CARD}" in out
    assert "Which virtual machine?" in err
    assert "nothing was changed" in err
    assert "\nAt the next start of guest:\n" in out
    assert xml(connection) == before
    typed(monkeypatch, "\n1\ny\ny\n")
    status, out, err = command(host, capfd, "setup")
    assert status == 0
    assert "display=hand-over" in out
    assert out.endswith("guest is set up: its next start goes as shown above\n")


@pytest.mark.parametrize("before", ["hand-over", "refuse"])
def test_a_policy_that_a_domain_has_is_the_answer(
    connection: Connection,
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
) -> None:
    wish = replace(WISH, policy={"display": before})
    setup.carry_out(connection, host, setup.plan_setup(connection, host, wish))
    agreed = xml(connection)
    # Neither at a terminal, where Enter would be an answer, nor without one is it asked for.
    with monkeypatch.context() as terminal:
        typed(terminal, "\n")
        status, out, err = command(host, capfd, "setup", "01:00.0", "guest", "--dry-run")
    assert status == 0, err
    assert "May the desktop be ended" not in err
    assert "Changes of the domain" not in out
    _, _, err = command(host, capfd, "setup", "01:00.0", "guest", "--yes")
    assert "all of this is set up already" in err
    assert xml(connection) == agreed
    # What is named counts.
    other = {"hand-over": "refuse", "refuse": "hand-over"}[before]
    named = ("setup", "01:00.0", "guest", "--policy", f"display={other}")
    assert f"display={other}" in command(host, capfd, *named, "--dry-run")[1]


def test_a_domain_that_is_not_there_is_told_before_its_desktop_is_asked_for(
    connection: Connection, host: SimulatedHost, capfd: Captured
) -> None:
    status, _, err = command(host, capfd, "setup", "01:00.0", "gast", "--yes")
    assert status == 3
    assert "there is no domain 'gast'" in err


def test_an_iommu_that_setup_switches_on_speaks_against_no_card(
    connection: Connection,
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch_off(host)
    typed(monkeypatch, "\n1\ny\ny\n")
    status, out, err = command(host, capfd, "setup")
    assert status == 0, err
    assert f"  1. {CARD}" in out
    assert "never" not in out
    assert "Which card? [1]" in err, "the only one is offered"
    assert "now reboot" in err
    # The boot did not switch it on, and nothing that setup does would: the card is what it is.
    boot(host)
    status, out, err = command(
        host, capfd, "setup", "01:00.0", "guest", "--policy", "display=refuse", "--yes"
    )
    assert status == 4, err
    assert "no IOMMU is active" in err


def test_the_command_goes_on_after_a_reboot(
    connection: Connection, host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    switch_off(host)
    arguments = ("setup", "01:00.0", "guest", "--policy", "display=hand-over", "--yes")
    status, _, err = command(host, capfd, *arguments)
    assert status == 0
    assert err.splitlines()[-1] == "now reboot; then virtpass setup goes on here"
    assert "sudo virtpass setup (it goes on after the reboot)" in call(host, capfd)[1]
    status, _, err = command(host, capfd, "setup")
    assert status == 4
    assert "the host was not rebooted since; reboot" in err
    switch_on(host)
    # Options would be other ones than those that were agreed to.
    status, _, err = command(host, capfd, "setup", "--policy", "display=refuse")
    assert status == 2
    assert "leave the options out" in err
    # The domain was made anew since: nobody has agreed to that.
    agreed = connection.domain("guest").inactive_xml()
    connection.define(agreed.replace("A guest", "Another guest"), validate=False)
    status, _, err = command(host, capfd, "setup")
    assert status == 2
    assert "the domain is not as it was when this was agreed to" in err
    connection.define(agreed, validate=False)
    # What was agreed to is not asked again.
    status, out, err = command(host, capfd, "setup")
    assert status == 0, err
    assert f"going on with {CARD} for guest" in err
    assert "At the next start of guest:" in out


def test_a_bootloader_that_cannot_be_told_is_named(
    connection: Connection, host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    switch_off(host)
    host.put("/boot/extlinux/extlinux.conf", "LABEL linux\n  LINUX /vmlinuz\n  APPEND root=/dev/sda1 ro\n")
    arguments = ("setup", "01:00.0", "guest", "--policy", "display=hand-over", "--yes")
    status, _, err = command(host, capfd, *arguments)
    assert status == 4
    assert "say which with --bootloader, one of: grub, extlinux\n" in err
    status, _, err = command(host, capfd, *arguments, "--bootloader", "lilo")
    assert status == 2
    assert "virtpass knows no bootloader 'lilo'; it knows grub, " in err
    status, _, err = command(host, capfd, *arguments, "--bootloader", "grub")
    assert status == 0, err
    assert err.splitlines()[-1] == "now reboot; then virtpass setup goes on here"
    assert command(host, capfd, "setup", "--bootloader", "grub")[0] == 2, "it was agreed to as it is"
    switch_on(host)
    # It is neither asked again after the reboot nor for whatever is set up later.
    status, _, err = command(host, capfd, "setup")
    assert status == 0, err
    assert command(host, capfd, *arguments, "--bind", "--dry-run")[0] == 0


def test_only_root_sets_up(
    connection: Connection,
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    arguments = ("setup", "01:00.0", "guest", "--policy", "display=hand-over", "--yes")
    status, _, err = command(host, capfd, *arguments)
    assert status == 5
    assert "setting up takes root; sudo virtpass setup" in err
    assert not host.exists(HOOK)


def test_a_record_that_is_not_understood(host: SimulatedHost, capfd: Captured) -> None:
    pytest.importorskip("libvirt")
    host.put("/var/lib/virtpass/setup", "{}")
    os.chmod(host.path("/var/lib/virtpass"), 0o755)
    status, _, err = command(host, capfd, "setup")
    assert status == 1
    assert "/var/lib/virtpass/setup is not understood; remove it" in err
