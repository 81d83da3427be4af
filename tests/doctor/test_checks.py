"""Each check: what it says of a host that is as it should be, and of one that is not."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulation import AUDIO, CARD, GUEST, NIC, PORT, SimulatedHost, domain_xml
from virtpass.binding.journal import read_journal
from virtpass.doctor.apparmor import read_profile
from virtpass.doctor.catalogue import CHECKS, examine
from virtpass.doctor.check import Outcome, Verdict
from virtpass.doctor.scene import Outside, Scene
from virtpass.hook.entry import run
from virtpass.hook.install import HOOK, INTERPRETER
from virtpass.host.status import Check as HostCheck
from virtpass.host.status import Verdict as HostVerdict
from virtpass.pci.address import PciAddress
from virtpass.system.host import Host

SECOND_CARD = PciAddress.parse("08:00.0")
KERNEL = "6.1.0-18-amd64"
CARD_PATH = f"/sys/bus/pci/devices/{CARD}"
WELL = Outside(
    is_root=True,
    user="root",
    libvirt_version="9.0.0",
    daemon="libvirtd.service",
    daemon_process=700,
    daemon_looked=2000.0,
    hook_written=1000.0,
    running=(),
)


@pytest.fixture
def sound(host: SimulatedHost) -> SimulatedHost:
    """A host on which nothing is to be said but that it has one screen and no hook."""
    host.put("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm\n")
    host.put("/dev/kvm")
    for name, number in (("kvm", "10:232"), ("rfkill", "10:242")):
        host.put(f"/sys/class/misc/{name}/dev", f"{number}\n")
    host.put("/proc/sys/kernel/osrelease", f"{KERNEL}\n")
    host.put("/proc/cmdline", "root=/dev/vda1 quiet\n")
    host.put(f"/lib/modules/{KERNEL}/modules.dep", "kernel/vfio-pci.ko:\nkernel/vfio_iommu_type1.ko:\n")
    host.put(f"/lib/modules/{KERNEL}/modules.builtin", "")
    host.put("/sys/class/iommu/ivhd0/name")
    host.put("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    host.put(f"{CARD_PATH}/reset_method", "flr bus\n")
    resource = "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n"
    host.put(f"{CARD_PATH}/resource", resource)
    host.put(
        "/proc/700/limits", "Max locked memory         unlimited            unlimited            bytes\n"
    )
    for name in ("nr", "free"):
        host.put(f"/sys/kernel/mm/hugepages/hugepages-2048kB/{name}_hugepages", "0\n")
    host.put(INTERPRETER)
    return host


def outcome(host: SimulatedHost, reference: str, outside: Outside = WELL) -> Outcome:
    (found,) = [one for one in examine(Scene(host, outside)) if one.check.reference == reference]
    return found


def said(host: SimulatedHost, reference: str, outside: Outside = WELL) -> tuple[Verdict, str, str]:
    """Return verdict, evidence and fix of the worst that a check finds."""
    first = outcome(host, reference, outside).findings[0]
    return first.verdict, f"{first.about} {first.evidence}".strip(), first.fix


def having(*addresses: PciAddress) -> Outside:
    """Return that a domain has devices."""
    return replace(WELL, domains=((GUEST, *map(str, addresses)),))


def test_a_sound_host(sound: SimulatedHost) -> None:
    verdicts = {one.check.reference: one.verdict for one in examine(Scene(sound, WELL))}
    attention = {name: verdict for name, verdict in verdicts.items() if verdict is not Verdict.PASS}
    assert attention == {"boot-display": Verdict.WARN, "hook": Verdict.FAIL}


def test_each_check_has_a_name_of_its_own_and_says_why() -> None:
    names = [check.reference for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(check.why.endswith(".") and len(check.why) > 60 for check in CHECKS)


def test_a_fault_in_one_check_keeps_no_other_from_its_answer(
    sound: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtpass.doctor.scene.read_inventory", lambda host: 1 // 0)
    verdict, evidence, _ = said(sound, "group-isolation")
    assert verdict is Verdict.UNKNOWN
    assert "fault in this check: ZeroDivisionError" in evidence
    assert outcome(sound, "lockdown").verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("cpuinfo", "verdict", "words"),
    [
        ("flags\t: fpu vmx\n", Verdict.FAIL, "modprobe kvm_intel"),
        ("flags\t: fpu svm\n", Verdict.FAIL, "modprobe kvm_amd"),
        ("flags\t: fpu\n", Verdict.FAIL, "firmware"),
        ("", Verdict.UNKNOWN, ""),
    ],
)
def test_virtualization(sound: SimulatedHost, cpuinfo: str, verdict: Verdict, words: str) -> None:
    sound.put("/proc/cpuinfo", cpuinfo)
    assert said(sound, "cpu-virtualization")[0] is Verdict.PASS
    # udev makes the node at boot, whether there is anything behind it or not.
    os.remove(sound.path("/sys/class/misc/kvm/dev"))
    os.rmdir(sound.path("/sys/class/misc/kvm"))
    found, _, fix = said(sound, "cpu-virtualization")
    assert found is verdict
    assert words in fix
    # What shows no such devices at all, as a snapshot does, proves nothing against the node.
    os.remove(sound.path("/sys/class/misc/rfkill/dev"))
    os.rmdir(sound.path("/sys/class/misc/rfkill"))
    assert said(sound, "cpu-virtualization")[0] is Verdict.PASS
    os.remove(sound.path("/dev/kvm"))
    assert said(sound, "cpu-virtualization")[0] is verdict


def test_surroundings(sound: SimulatedHost) -> None:
    sound.put("/proc/cpuinfo", "flags\t: svm hypervisor\n")
    assert said(sound, "surroundings")[0] is Verdict.WARN
    sound.put("/run/.containerenv")
    assert said(sound, "surroundings")[:2] == (Verdict.FAIL, "this is a container (/run/.containerenv)")


def test_the_iommu(sound: SimulatedHost) -> None:
    sound.switch_iommu_off()
    os.remove(sound.path("/sys/class/iommu/ivhd0/name"))
    os.rmdir(sound.path("/sys/class/iommu/ivhd0"))
    sound.put("/sys/firmware/acpi/tables/DMAR")
    verdict, evidence, fix = said(sound, "iommu")
    assert verdict is Verdict.FAIL
    assert "intel_iommu=on" in evidence
    assert "virtpass setup" in fix
    os.remove(sound.path("/sys/firmware/acpi/tables/DMAR"))
    sound.put("/proc/cpuinfo", "flags\t: vmx hypervisor\n")
    assert said(sound, "iommu")[2].startswith("give this virtual machine an IOMMU")
    # What depends on it is not judged twice.
    assert said(sound, "interrupt-remapping")[0] is Verdict.UNKNOWN
    assert said(sound, "group-isolation")[0] is Verdict.UNKNOWN


def test_unsafe_interrupts(sound: SimulatedHost) -> None:
    assert said(sound, "interrupt-remapping")[0] is Verdict.PASS
    sound.put("/sys/kernel/irq/1/chip_name", "IO-APIC\n")
    assert "--unsafe-interrupts" in said(sound, "interrupt-remapping")[2]
    # Where it was accepted, VFIO says so only as soon as its module is there.
    accepted = replace(WELL, accepts_unsafe=True)
    assert said(sound, "interrupt-remapping", accepted)[0] is Verdict.WARN
    sound.put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
    assert said(sound, "interrupt-remapping")[0] is Verdict.WARN


def test_lockdown(sound: SimulatedHost) -> None:
    sound.put("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    secure = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    sound.put(secure, b"\6\0\0\0\1")
    verdict, evidence, _ = said(sound, "lockdown")
    assert verdict is Verdict.WARN
    assert "(integrity), Secure Boot is on" in evidence
    os.remove(sound.path("/sys/kernel/security/lockdown"))
    assert said(sound, "lockdown", replace(WELL, is_root=False))[0] is Verdict.UNKNOWN


def test_modules_of_each_kernel(sound: SimulatedHost) -> None:
    sound.put("/lib/modules/6.1.0-18-cloud-amd64/modules.dep", "kernel/virtio.ko:\n")
    verdict, evidence, _ = said(sound, "vfio-modules")
    assert verdict is Verdict.WARN
    assert evidence == "6.1.0-18-cloud-amd64 lacks vfio-pci and vfio_iommu_type1"
    sound.put("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
    verdict, evidence, _ = said(sound, "vfio-modules")
    assert verdict is Verdict.FAIL
    assert evidence == "6.1.0-18-cloud-amd64 (running) lacks vfio-pci and vfio_iommu_type1"


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (HostVerdict.RIGHT, Verdict.PASS),
        (HostVerdict.WAITING, Verdict.WARN),
        (HostVerdict.WRONG, Verdict.FAIL),
        (HostVerdict.UNKNOWN, Verdict.UNKNOWN),
    ],
)
def test_what_was_applied(sound: SimulatedHost, seen: HostVerdict, verdict: Verdict) -> None:
    for reference, check in (
        ("boot-entry", "kernel-arguments"),
        ("command-line", "kernel-arguments"),
        ("initramfs", "initramfs"),
        ("early-binding", "early-binding"),
    ):
        outside = replace(WELL, host_checks=(HostCheck(reference, seen, "so it is"),))
        found = {one.check.reference: one for one in examine(Scene(sound, outside))}
        assert found[check].verdict is verdict
        assert found[check].findings[0].evidence == "so it is"
        # Each is told once.
        assert sum("so it is" in finding.evidence for one in found.values() for finding in one.findings) == 1


def test_a_record_that_cannot_be_read_is_no_clean_host(sound: SimulatedHost) -> None:
    secret = HostCheck("record", HostVerdict.UNKNOWN, "what virtpass has changed: only root may read it")
    for outside in (replace(WELL, host_problem="it is not understood"), replace(WELL, host_checks=(secret,))):
        for reference in ("kernel-arguments", "initramfs", "early-binding"):
            assert said(sound, reference, outside)[0] is Verdict.UNKNOWN


def test_a_change_that_was_cut_off(sound: SimulatedHost) -> None:
    found = said(sound, "kernel-arguments", replace(WELL, is_unfinished=True))
    assert found[0] is Verdict.FAIL
    assert "virtpass host recover" in found[2]


def test_a_group_that_holds_the_card_back(sound: SimulatedHost) -> None:
    assert said(sound, "group-isolation")[0] is Verdict.PASS
    sound.link(f"/sys/bus/pci/devices/{NIC}/iommu_group", "/sys/kernel/iommu_groups/10")
    sound.link(f"/sys/kernel/iommu_groups/10/devices/{NIC}", f"/sys/bus/pci/devices/{NIC}")
    verdict, evidence, fix = said(sound, "group-isolation")
    assert verdict is Verdict.FAIL
    assert evidence.startswith(str(CARD))
    assert str(NIC) in evidence
    assert fix.startswith(f"virtpass domain attach DOMAIN {CARD} {NIC} # ")
    named = replace(having(CARD), names=((GUEST, "win11"),))
    assert said(sound, "group-isolation", named)[2].startswith(f"virtpass domain attach win11 {CARD} {NIC} ")
    # With another card that is isolated, it matters only to a domain that has it.
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    assert said(sound, "group-isolation")[0] is Verdict.WARN
    assert said(sound, "group-isolation", having(CARD))[0] is Verdict.FAIL
    # What goes to another domain helps nobody.
    apart = replace(WELL, domains=((GUEST, str(CARD)), ("another", str(NIC))))
    assert said(sound, "group-isolation", apart)[0] is Verdict.FAIL
    together = said(sound, "group-isolation", having(CARD, NIC))
    assert together[:2] == (Verdict.PASS, f"{CARD} all of IOMMU group 10 goes to the same domain")


def test_groups_that_only_look_small(sound: SimulatedHost) -> None:
    sound.put("/proc/cmdline", "root=/dev/vda1 pcie_acs_override=downstream\n")
    assert said(sound, "group-isolation")[0] is Verdict.WARN


def test_the_only_screen(sound: SimulatedHost) -> None:
    sound.put(f"{CARD_PATH}/boot_vga", "1\n")
    sound.put(f"{CARD_PATH}/drm/card0/card0-HDMI-A-1/status", "connected\n")
    sound.put(f"{CARD_PATH}/drm/card0/card0-DP-1/status", "disconnected\n")
    verdict, evidence, fix = said(sound, "boot-display")
    assert verdict is Verdict.WARN
    assert "the firmware's display; connected: HDMI-A-1;" in evidence
    assert fix.startswith(f"sudo virtpass setup {CARD} DOMAIN --policy display=hand-over # ")
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    assert outcome(sound, "boot-display").verdict is Verdict.PASS


def test_the_last_screen_when_its_domain_may_have_it(sound: SimulatedHost) -> None:
    guest = replace(having(CARD), names=((GUEST, "win11"),))
    assert said(sound, "boot-display", guest)[2].startswith(f"sudo virtpass setup {CARD} win11 --policy ")
    ours = replace(guest, ours=(GUEST,))
    fix = said(sound, "boot-display", ours)[2]
    assert fix.startswith("virtpass domain policy win11 display=hand-over # ")
    may = replace(ours, handing_over=(GUEST,))
    verdict, evidence, fix = said(sound, "boot-display", may)
    assert (verdict, fix) == (Verdict.WARN, "start an SSH server")
    assert evidence.endswith("; no SSH server was found as a way in")
    os.makedirs(sound.path("/sys/fs/cgroup/system.slice/ssh.service"))
    assert said(sound, "boot-display", may)[0] is Verdict.PASS
    # Another domain that has it may not.
    both = replace(may, domains=(*may.domains, ("another", str(CARD))), names=(("another", "my win"),))
    both = replace(both, ours=(GUEST, "another"))
    fix = said(sound, "boot-display", both)[2]
    assert fix.startswith("virtpass domain policy 'my win' display=hand-over # ")


def test_the_last_screen_is_meant_to_stay_unless_a_domain_has_it(sound: SimulatedHost) -> None:
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="vfio-pci")
    assert outcome(sound, "boot-display").verdict is Verdict.PASS
    assert said(sound, "boot-display", having(CARD))[0] is Verdict.WARN
    run(sound, "prepare", domain_xml(CARD))
    assert "no card has a driver of the host" in said(sound, "boot-display")[1]


def test_a_monitor_that_is_only_on_the_guest_s_card(sound: SimulatedHost) -> None:
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    sound.put(f"{CARD_PATH}/drm/card0/card0-HDMI-A-1/status", "connected\n")
    other = f"/sys/bus/pci/devices/{SECOND_CARD}/drm/card1/card1-DP-1/status"
    sound.put(other, "disconnected\n")
    assert outcome(sound, "boot-display").verdict is Verdict.PASS
    verdict, evidence, fix = said(sound, "boot-display", having(CARD))
    assert verdict is Verdict.WARN
    assert "connected: HDMI-A-1; no other card has a monitor" in evidence
    assert fix == "connect a monitor to the card that stays"
    sound.put(other, "connected\n")
    assert outcome(sound, "boot-display", having(CARD)).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("driver", "owner", "kernel", "verdict", "fix"),
    [
        ("efi-framebuffer", "efifb", KERNEL, Verdict.WARN, "display=hand-over"),
        ("efi-framebuffer", "efifb", "5.10.0-1-amd64", Verdict.WARN, "display=hand-over"),
        ("simple-framebuffer", "BOOTFB", KERNEL, Verdict.WARN, "display=hand-over"),
        # Nothing in user space frees it there.
        ("simple-framebuffer", "BOOTFB", "5.10.0-1-amd64", Verdict.FAIL, "--framebuffer-off"),
    ],
)
def test_the_framebuffer_of_the_firmware(
    sound: SimulatedHost, driver: str, owner: str, kernel: str, verdict: Verdict, fix: str
) -> None:
    assert said(sound, "framebuffer")[0] is Verdict.PASS
    sound.put("/proc/sys/kernel/osrelease", f"{kernel}\n")
    sound.link(f"/sys/bus/platform/drivers/{driver}/{driver}.0", f"/sys/devices/platform/{driver}.0")
    # Elsewhere it is in nobody's way.
    sound.put("/proc/iomem", f"c0000000-c01fffff : {owner}\n")
    assert said(sound, "framebuffer")[0] is Verdict.PASS
    sound.put("/proc/iomem", f"fd000000-fd1fffff : {owner}\n")
    found = said(sound, "framebuffer")
    assert found[0] is verdict
    assert f"{CARD} {driver}.0, the framebuffer of the firmware, lies in its memory" in found[1]
    assert fix in found[2]
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    assert said(sound, "framebuffer")[0] is Verdict.PASS
    assert said(sound, "framebuffer", having(CARD))[0] is verdict
    may = replace(having(CARD), ours=(GUEST,), handing_over=(GUEST,))
    assert (said(sound, "framebuffer", may)[0] is Verdict.PASS) is (verdict is Verdict.WARN)


def test_resetting(sound: SimulatedHost) -> None:
    assert said(sound, "reset")[1].endswith("flr, bus")
    os.remove(sound.path(f"{CARD_PATH}/reset_method"))
    # Nothing but the functions of this card is behind that bridge.
    assert said(sound, "reset")[:2] == (
        Verdict.PASS,
        f"{CARD} with its bus as a whole, on which its functions are alone",
    )
    other = PciAddress.parse("01:01.0")
    sound.add_device(other, group=21, parent=sound.real_path(f"/sys/bus/pci/devices/{PORT}"))
    verdict, evidence, _ = said(sound, "reset")
    assert verdict is Verdict.WARN
    assert evidence.endswith("it may not start a second time")
    sound.put(f"{CARD_PATH}/reset")
    assert said(sound, "reset")[0] is Verdict.PASS


@pytest.mark.parametrize("functions", [("09:00.0",), ("00:09.0", "00:09.1")])
def test_a_card_without_a_reset(sound: SimulatedHost, functions: tuple[str, ...]) -> None:
    """A single function would have told of its bus, and above a root bus is no bridge that could reset it."""
    for number, text in enumerate(functions):
        bridge = sound.real_path(f"/sys/bus/pci/devices/{PORT}")
        parent = bridge if text.startswith("09") else "/sys/devices/pci0000:00"
        code = 0x040300 if number else 0x030000
        sound.add_device(PciAddress.parse(text), class_code=code, group=22, parent=parent)
    verdicts = {one.about: one.verdict for one in outcome(sound, "reset").findings}
    assert verdicts == {str(CARD): Verdict.PASS, f"0000:{functions[0]}": Verdict.WARN}


def test_memory_of_a_card(sound: SimulatedHost) -> None:
    assert said(sound, "card-memory")[1].endswith("16 MiB in region 0, below 4 GiB")
    resource = (
        "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
        "0x0000004000000000 0x000000400fffffff 0x000000000014220c\n"
    )
    sound.put(f"{CARD_PATH}/resource", resource)
    sound.put(f"{CARD_PATH}/resource1_resize", "00000000001f00\n")
    assert said(sound, "card-memory")[1].endswith(
        "256 MiB in region 1, above 4 GiB; it could have up to 4096 MiB"
    )
    # A region of I/O ports that got no address is nobody's loss.
    sound.put(f"{CARD_PATH}/resource", f"0x0 0x7f 0x0000000020000101\n{resource}")
    assert said(sound, "card-memory")[0] is Verdict.PASS
    sound.put(f"{CARD_PATH}/resource", "0x0000000000000000 0x000000000fffffff 0x0000000020142208\n")
    verdict, evidence, fix = said(sound, "card-memory")
    assert verdict is Verdict.FAIL
    assert "got no address" in evidence
    assert "Above 4G" in fix


def test_memory_that_the_kernel_has_forgotten(sound: SimulatedHost) -> None:
    """Where no address is left, the list of regions is empty; the device's own registers are not."""
    nothing, some = "0x0 0x0 0x0\n", "0xfdd68000 0xfdd68fff 0x40200\n"
    sound.put(f"{CARD_PATH}/resource", f"{nothing}{nothing}{some}")
    assert said(sound, "card-memory")[0] is Verdict.PASS
    registers = [0x0000000C, 0x0000000E, 0xFDD68000]
    sound.put(f"{CARD_PATH}/config", bytes(16) + b"".join(one.to_bytes(4, "little") for one in registers))
    verdict, evidence, fix = said(sound, "card-memory")
    assert verdict is Verdict.FAIL
    assert "memory region 0 got no address" in evidence
    assert "Above 4G" in fix
    # What follows one of 64 bits is the upper half of its address, and no region.
    sound.put(f"{CARD_PATH}/resource", f"0x0e00000000 0x0e0fffffff 0x14220c\n{nothing}{some}")
    assert said(sound, "card-memory")[0] is Verdict.PASS
    # One that does not answer reads as ones.
    sound.put(f"{CARD_PATH}/resource", f"{nothing}{nothing}{some}")
    sound.put(f"{CARD_PATH}/config", b"\xff" * 64)
    assert said(sound, "card-memory")[0] is Verdict.PASS


def test_the_hook_and_the_daemon(sound: SimulatedHost) -> None:
    assert said(sound, "hook")[2] == "sudo virtpass hook install"
    assert said(sound, "hook-known")[0] is Verdict.PASS
    later = replace(WELL, hook_written=3000.0)
    assert said(sound, "hook-known", later)[0] is Verdict.WARN
    assert said(sound, "hook-known", later)[2] == "sudo systemctl reload libvirtd.service"
    # systemd tells whole seconds, files more.
    assert said(sound, "hook-known", replace(WELL, hook_written=2000.9))[0] is Verdict.PASS
    # Without systemd it is not known which process is the daemon.
    assert said(sound, "hook-known", replace(later, daemon="", daemon_looked=None))[0] is Verdict.UNKNOWN
    away = replace(later, daemon="", daemon_looked=None, libvirt_version="")
    assert said(sound, "hook-known", away)[0] is Verdict.PASS
    assert said(sound, "hook-known", replace(later, daemon_looked=None))[0] is Verdict.UNKNOWN
    assert said(sound, "hook-known", replace(later, hook_written=None))[0] is Verdict.UNKNOWN


PROFILE = "/etc/apparmor.d/usr.sbin.libvirtd"
LOCAL = "/etc/apparmor.d/local/usr.sbin.libvirtd"
CONFINED = """
profile libvirtd /usr/sbin/libvirtd flags=(attach_disconnected) {
  include <abstractions/base>
  /** rwmkl,
  /{usr/,}bin/* PUx,
  /etc/libvirt/hooks/** rmix,
  profile qemu_bridge_helper {
    deny /etc/libvirt/hooks/** x,
  }
  include if exists <local/usr.sbin.libvirtd>
}
"""


@pytest.fixture
def confined(sound: SimulatedHost) -> SimulatedHost:
    """A host where AppArmor confines the daemon with rules like those of libvirt's own profile."""
    sound.put("/sys/module/apparmor/parameters/enabled", "Y\n")
    sound.put("/etc/apparmor.d/abstractions/base", "  /etc/localtime r,\n")
    sound.put(PROFILE, CONFINED)
    return sound


def test_what_may_run(confined: SimulatedHost) -> None:
    assert said(confined, "hook-runs")[:2] == (
        Verdict.PASS,
        f"the AppArmor profile {PROFILE} lets the hook run",
    )
    os.remove(confined.path(INTERPRETER))
    assert said(confined, "hook-runs")[0] is Verdict.FAIL


@pytest.mark.parametrize(
    "rule",
    [
        "deny /etc/libvirt/hooks/** x,",
        "audit deny /etc/libvirt/hooks/qemu.d/{50,60}-* mx,  # not here",
        "deny x /etc/libvirt/**,",
        "deny /usr/bin/python3{,.[0-9]*} x,",
        "deny file,",
    ],
)
def test_apparmor_forbids_the_hook(confined: SimulatedHost, rule: str) -> None:
    confined.put(LOCAL, f"# of the administrator\n{rule}\n")
    verdict, evidence, fix = said(confined, "hook-runs")
    assert verdict is Verdict.FAIL
    assert f"forbids the hook: {rule.partition('  #')[0]} in {LOCAL}" in evidence
    assert fix == f"take that rule out of {LOCAL}, then: sudo apparmor_parser -r {PROFILE}"
    for label in ("unconfined", "libvirtd (complain)"):
        assert said(confined, "hook-runs", replace(WELL, daemon_label=label))[0] is Verdict.PASS
    assert said(confined, "hook-runs", replace(WELL, daemon_label="libvirtd (enforce)"))[0] is Verdict.FAIL
    # Another daemon has another profile, and here none.
    split = replace(WELL, daemon="virtqemud.service", daemon_label="virtqemud (enforce)")
    assert said(confined, "hook-runs", split)[0] is Verdict.UNKNOWN
    confined.link("/etc/apparmor.d/disable/usr.sbin.libvirtd", PROFILE)
    assert said(confined, "hook-runs")[0] is Verdict.PASS


@pytest.mark.parametrize(
    "rule",
    [
        "# deny /etc/libvirt/hooks/** x,",
        "deny /etc/libvirt/hooks/** w,",
        "deny /etc/libvirt/hooks/*/10-other x,",
        "deny @{HOME}/** x,",
        "capability sys_admin,",
    ],
)
def test_rules_that_are_not_about_the_hook(confined: SimulatedHost, rule: str) -> None:
    confined.put(LOCAL, f"{rule}\n")
    assert said(confined, "hook-runs")[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("rule", "fix"),
    [
        ("  /etc/libvirt/hooks/** rmix,\n", "/etc/libvirt/hooks/** rmix,"),
        ("  /{usr/,}bin/* PUx,\n", f"{INTERPRETER} PUx,"),
    ],
)
def test_apparmor_has_no_rule_for_the_hook(confined: SimulatedHost, rule: str, fix: str) -> None:
    assert rule in CONFINED
    confined.put(PROFILE, CONFINED.replace(rule, ""))
    verdict, evidence, command = said(confined, "hook-runs")
    assert verdict is Verdict.FAIL
    assert "has no rule to run" in evidence
    assert command == f"echo '{fix}' | sudo tee -a {LOCAL} && sudo apparmor_parser -r {PROFILE}"
    confined.put(LOCAL, f"{fix}\n")
    assert said(confined, "hook-runs")[0] is Verdict.PASS
    # What is included and cannot be read may have the rule.
    os.remove(confined.path(LOCAL))
    os.remove(confined.path("/etc/apparmor.d/abstractions/base"))
    assert said(confined, "hook-runs")[0] is Verdict.UNKNOWN


@given(st.text(alphabet='/etclibvrhoksqmudx*?{},[]@\\"#\n rwmi-x>', max_size=200))
def test_no_profile_makes_the_check_fail_itself(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    host = Host(str(tmp_path_factory.getbasetemp()))
    path = Path(host.path("/profile"))
    path.write_text(text, encoding="utf-8")
    profile = read_profile(host, "/profile")
    assert profile is not None
    profile.execution(HOOK)


def test_selinux(sound: SimulatedHost) -> None:
    sound.put("/sys/fs/selinux/enforce", "1")
    sound.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", "1 1")
    labelled = replace(WELL, hook_label="system_u:object_r:virt_hook_t:s0")
    assert said(sound, "hook-runs", labelled)[0] is Verdict.PASS
    assert said(sound, "hook-runs", WELL)[:2] == (
        Verdict.UNKNOWN,
        "the SELinux label of the hook cannot be read",
    )
    modular = replace(labelled, daemon="virtqemud.service")
    assert said(sound, "hook-runs", modular)[0] is Verdict.UNKNOWN
    wrong = replace(WELL, hook_label="unconfined_u:object_r:etc_t:s0")
    assert "restorecon" in said(sound, "hook-runs", wrong)[2]
    sound.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", "0 0")
    assert "setsebool" in said(sound, "hook-runs", labelled)[2]


def test_other_hooks(sound: SimulatedHost) -> None:
    for name in ("50-virtpass.bak", "10-mine", "a b~"):
        path = f"{HOOK.rpartition('/')[0]}/{name}"
        sound.put(path, "#!/bin/sh\n")
        os.chmod(sound.path(path), 0o755)
    findings = {one.about: one for one in outcome(sound, "hook-others").findings}
    assert findings[f"{HOOK}.bak"].fix == f"sudo chmod -x {HOOK}.bak"
    assert (
        findings[f"{HOOK.rpartition('/')[0]}/a b~"].fix == f"sudo chmod -x '{HOOK.rpartition('/')[0]}/a b~'"
    )
    assert "runs at every start" in findings[f"{HOOK.rpartition('/')[0]}/10-mine"].evidence


def test_libvirt(sound: SimulatedHost) -> None:
    away = replace(WELL, libvirt_version="", libvirt_problem="no such socket", running=None)
    assert said(sound, "libvirt", away)[0] is Verdict.FAIL
    assert "install libvirt (Debian, Ubuntu: sudo apt install" in said(sound, "libvirt", away)[2]
    sound.put("/usr/sbin/libvirtd")
    assert said(sound, "libvirt", away)[2] == "start the service libvirtd"
    sound.put("/usr/lib/systemd/system/libvirtd.socket")
    assert said(sound, "libvirt", away)[2] == "sudo systemctl start libvirtd.socket"
    sound.put("/usr/lib/systemd/system/virtqemud.socket")
    sound.put("/etc/systemd/system/sockets.target.wants/libvirtd.socket")
    assert said(sound, "libvirt", away)[2] == "sudo systemctl start libvirtd.socket"
    sound.put("/etc/systemd/system/sockets.target.wants/virtqemud.socket")
    assert said(sound, "libvirt", away)[2] == "sudo systemctl start virtqemud.socket"
    assert "a daemon for QEMU alone" in said(sound, "libvirt", replace(WELL, daemon="virtqemud.service"))[1]
    unbound = replace(away, libvirt_remedy="install python3-libvirt")
    assert said(sound, "libvirt", unbound)[2] == "install python3-libvirt"
    assert said(sound, "libvirt", replace(away, libvirt_refuses=True))[0] is Verdict.UNKNOWN
    assert said(sound, "domain-devices", away)[0] is Verdict.UNKNOWN
    user = replace(WELL, is_root=False, user="me", groups=("video",))
    assert said(sound, "libvirt-group", user)[2] == "sudo usermod -aG libvirt me # then log in anew"
    # Behind sudo it is about whoever called it.
    assert said(sound, "libvirt-group", replace(user, is_root=True))[0] is Verdict.WARN
    assert said(sound, "libvirt-group", replace(user, groups=("libvirt",)))[0] is Verdict.PASS


@pytest.mark.parametrize(
    ("limit", "capabilities", "verdict"),
    [("65536", "0000000000000000", Verdict.FAIL), ("65536", "0000000001000000", Verdict.PASS)],
)
def test_locked_memory(sound: SimulatedHost, limit: str, capabilities: str, verdict: Verdict) -> None:
    sound.put("/proc/700/limits", f"Max locked memory         {limit}     {limit}     bytes\n")
    sound.put("/proc/700/status", f"Name:\tlibvirtd\nCapEff:\t{capabilities}\n")
    assert said(sound, "locked-memory")[0] is verdict


def test_overrides_of_others(sound: SimulatedHost) -> None:
    assert run(sound, "prepare", domain_xml(CARD)) == 0
    assert said(sound, "driver-override")[0] is Verdict.PASS
    sound.put(f"/sys/bus/pci/devices/{NIC}/driver_override", "vfio-pci\n")
    verdict, evidence, fix = said(sound, "driver-override")
    assert verdict is Verdict.WARN
    assert evidence.startswith(str(NIC))
    assert fix == f"echo | sudo tee /sys/bus/pci/devices/{NIC}/driver_override"
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="vfio-pci")
    sound.put(f"/sys/bus/pci/devices/{SECOND_CARD}/driver_override", "vfio-pci\n")
    fixes = {one.about: one.fix for one in outcome(sound, "driver-override").findings}
    assert fixes[str(SECOND_CARD)] == f"sudo virtpass device reattach {SECOND_CARD}"
    sound.put(f"/sys/bus/pci/devices/{SECOND_CARD}/driver_override", "(null)\n")
    # libvirt's own, for a domain that runs without virtpass.
    assert said(sound, "driver-override", having(NIC))[0] is Verdict.WARN
    assert said(sound, "driver-override", replace(having(NIC), running=(GUEST,)))[0] is Verdict.PASS
    assert said(sound, "driver-override", replace(WELL, bound_early=(str(NIC),)))[0] is Verdict.PASS
    sound.put(f"/etc/driverctl.d/{NIC}", "vfio-pci\n")
    for reference in ("driverctl", "driver-override"):
        assert said(sound, reference)[2] == f"sudo driverctl unset-override {NIC}"
    assert f"{NIC} driverctl binds it to vfio-pci at boot" in said(sound, "driverctl")[1]


def test_ids(sound: SimulatedHost) -> None:
    sound.put("/etc/modprobe.d/vfio.conf", "options vfio_pci ids=10de:1b80\n")
    assert "/etc/modprobe.d/vfio.conf lets vfio-pci take" in said(sound, "vfio-ids")[1]
    sound.put("/etc/modprobe.d/vfio.conf", "# options vfio-pci ids=10de:1b80\n")
    assert said(sound, "vfio-ids")[0] is Verdict.PASS
    sound.put("/proc/cmdline", "vfio_pci.ids=10de:1b80\n")
    assert said(sound, "vfio-ids")[0] is Verdict.WARN
    assert said(sound, "vfio-ids", replace(WELL, applied=("vfio_pci.ids=10de:1b80",)))[0] is Verdict.PASS


def test_nvidia(sound: SimulatedHost) -> None:
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="nvidia")
    sound.put("/usr/lib/systemd/system/nvidia-persistenced.service")
    sound.put("/usr/lib/udev/rules.d/71-nvidia.rules", 'RUN+="/sbin/modprobe nvidia-modeset"\n')
    verdict, evidence, _ = said(sound, "nvidia")
    assert verdict is Verdict.WARN
    assert "nvidia-persistenced" not in evidence
    os.makedirs(sound.path("/sys/fs/cgroup/system.slice/nvidia-persistenced.service"))
    assert "; nvidia-persistenced.service keeps it in use" in said(sound, "nvidia")[1]
    assert "loaded again by /usr/lib/udev/rules.d/71-nvidia.rules" in evidence
    ours = replace(having(SECOND_CARD), names=((GUEST, "win11"),), ours=(GUEST,))
    assert said(sound, "nvidia", ours)[2] == (
        "virtpass domain policy win11 display=hand-over; virtpass hook rehearse win11 shows the steps"
    )
    assert said(sound, "nvidia", replace(ours, handing_over=(GUEST,)))[0] is Verdict.PASS


def test_what_is_left_behind(sound: SimulatedHost) -> None:
    sound.put(f"/run/virtpass/stuck/{AUDIO}")
    assert said(sound, "stuck")[0] is Verdict.FAIL
    os.remove(sound.path(f"/run/virtpass/stuck/{AUDIO}"))
    assert run(sound, "prepare", domain_xml(NIC)) == 0
    assert read_journal(sound, GUEST) is not None
    assert said(sound, "unfinished")[2] == "sudo virtpass recover"
    assert said(sound, "unfinished", replace(WELL, running=(GUEST,)))[0] is Verdict.PASS
    assert said(sound, "unfinished", replace(WELL, running=None))[0] is Verdict.UNKNOWN


def test_a_domain_whose_card_has_moved(sound: SimulatedHost) -> None:
    outside = replace(WELL, misplaced=(("win11", "it has 0000:09:00.0, which this host has not"),))
    verdict, evidence, _ = said(sound, "domain-devices", outside)
    assert verdict is Verdict.FAIL
    assert evidence == "win11 it has 0000:09:00.0, which this host has not"


def test_a_domain_that_virtpass_has_not_been_told_of(sound: SimulatedHost) -> None:
    assert said(sound, "unadopted")[0] is Verdict.PASS
    assert said(sound, "unadopted", replace(WELL, running=None))[0] is Verdict.UNKNOWN
    foreign = replace(having(CARD, AUDIO), names=((GUEST, "my win"),), unrecorded=((GUEST, str(CARD)),))
    assert said(sound, "unadopted", foreign) == (
        Verdict.WARN,
        f"my win virtpass does not look after {CARD}: at its start nothing is checked",
        "virtpass domain adopt 'my win'",
    )
    verdict, evidence, fix = said(sound, "unadopted", replace(foreign, ours=(GUEST,)))
    assert (verdict, fix) == (Verdict.WARN, "virtpass domain adopt 'my win'")
    assert evidence.startswith(f"my win not on record: {CARD}; ")


def test_a_domain_at_whose_start_the_daemon_may_hang(sound: SimulatedHost) -> None:
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="nvidia")
    devices = ((GUEST, str(CARD), str(SECOND_CARD)),)
    foreign = replace(WELL, domains=devices, names=((GUEST, "win11"),), unrecorded=devices)
    verdict, evidence, fix = said(sound, "unadopted", foreign)
    assert (verdict, fix) == (Verdict.FAIL, "virtpass domain adopt win11")
    assert f"libvirt unbinds {SECOND_CARD} from nvidia, which may hang for ever" in evidence
    # Of a domain that is looked after the hook knows better.
    assert said(sound, "unadopted", replace(foreign, ours=(GUEST,)))[0] is Verdict.WARN


def test_steps_of_the_administrator(sound: SimulatedHost) -> None:
    assert said(sound, "steps")[:2] == (Verdict.PASS, "there are none")
    step = "/etc/virtpass/hooks.d/prepare.d/10-backup"
    sound.put(step, "#!/bin/sh\n")
    os.chmod(sound.path(step), 0o755)
    assert said(sound, "steps")[:2] == (Verdict.PASS, step)
    sound.put("/etc/virtpass/hooks.d/started.d/10-light", "#!/bin/sh\n")
    verdict, evidence, fix = said(sound, "steps")
    assert (verdict, evidence) == (
        Verdict.WARN,
        "/etc/virtpass/hooks.d/started.d is for no event, and nothing in it runs",
    )
    assert fix == "programs go into prepare.d and release.d"
    os.chmod(sound.path(step), 0o777)
    verdict, evidence, _ = said(sound, "steps")
    assert (verdict, evidence) == (
        Verdict.FAIL,
        f"others than root may write to the step {step}, so no domain starts",
    )


def test_huge_pages(sound: SimulatedHost) -> None:
    def pool(size: int, total: int, free: int) -> None:
        for name, number in (("nr", total), ("free", free)):
            sound.put(f"/sys/kernel/mm/hugepages/hugepages-{size}kB/{name}_hugepages", f"{number}\n")

    pool(2048, 512, 0)
    assert said(sound, "huge-pages")[:2] == (Verdict.PASS, "512 huge pages of 2 MiB, 0 of them free")
    # Each size is a pool of its own.
    pool(1048576, 8, 8)
    verdict, evidence, _ = said(sound, "huge-pages")
    assert (verdict, evidence) == (
        Verdict.WARN,
        "8 huge pages of 1 GiB are set aside, and nobody uses one",
    )


def test_a_kernel_without_huge_pages(sound: SimulatedHost) -> None:
    shutil.rmtree(sound.path("/sys/kernel/mm/hugepages"), ignore_errors=True)
    assert said(sound, "huge-pages")[0] is Verdict.UNKNOWN


def test_a_libvirt_of_the_user_s_own(sound: SimulatedHost) -> None:
    verdict, _, fix = said(sound, "libvirt", replace(WELL, libvirt_is_of_session=True))
    assert (verdict, fix) == (Verdict.FAIL, "virtpass doctor --connect qemu:///system")
