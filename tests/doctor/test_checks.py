"""Each check: what it says of a host that is as it should be, and of one that is not."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.simulation import AUDIO, CARD, GUEST, NIC, SimulatedHost, domain_xml
from virtpass.binding.journal import read_journal
from virtpass.doctor.catalogue import CHECKS, examine
from virtpass.doctor.check import Outcome, Verdict
from virtpass.doctor.scene import Outside, Scene
from virtpass.hook.entry import run
from virtpass.hook.install import HOOK, INTERPRETER
from virtpass.host.status import Check as HostCheck
from virtpass.host.status import Verdict as HostVerdict
from virtpass.pci.address import PciAddress

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
    host.put("/proc/meminfo", "HugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB\n")
    host.put(INTERPRETER)
    return host


def outcome(host: SimulatedHost, reference: str, outside: Outside = WELL) -> Outcome:
    (found,) = [one for one in examine(Scene(host, outside)) if one.check.reference == reference]
    return found


def said(host: SimulatedHost, reference: str, outside: Outside = WELL) -> tuple[Verdict, str, str]:
    """Return verdict, evidence and fix of the worst that a check finds."""
    first = outcome(host, reference, outside).findings[0]
    return first.verdict, f"{first.about} {first.evidence}".strip(), first.fix


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
    os.remove(sound.path("/dev/kvm"))
    found, _, fix = said(sound, "cpu-virtualization")
    assert found is verdict
    assert words in fix


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
    # What depends on it is not judged twice.
    assert said(sound, "interrupt-remapping")[0] is Verdict.UNKNOWN
    assert said(sound, "group-isolation")[0] is Verdict.UNKNOWN


def test_unsafe_interrupts(sound: SimulatedHost) -> None:
    assert said(sound, "interrupt-remapping")[0] is Verdict.PASS
    sound.put("/sys/kernel/irq/1/chip_name", "IO-APIC\n")
    assert "--unsafe-interrupts" in said(sound, "interrupt-remapping")[2]
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
    assert evidence == "6.1.0-18-cloud-amd64 it lacks vfio-pci, vfio_iommu_type1"
    sound.put("/proc/sys/kernel/osrelease", "6.1.0-18-cloud-amd64\n")
    assert said(sound, "vfio-modules")[0] is Verdict.FAIL


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
    assert f"virtpass device show {CARD}" in fix
    # With another card that is isolated, it matters only to a domain that has it.
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    assert said(sound, "group-isolation")[0] is Verdict.WARN
    assert said(sound, "group-isolation", replace(WELL, assigned=(str(CARD),)))[0] is Verdict.FAIL


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
    assert "display=hand-over" in fix
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="i915")
    assert outcome(sound, "boot-display").verdict is Verdict.PASS


def test_the_last_screen_is_meant_to_stay_unless_a_domain_has_it(sound: SimulatedHost) -> None:
    sound.add_device(SECOND_CARD, class_code=0x030000, group=20, native="vfio-pci")
    assert outcome(sound, "boot-display").verdict is Verdict.PASS
    assert said(sound, "boot-display", replace(WELL, assigned=(str(CARD),)))[0] is Verdict.WARN
    run(sound, "prepare", domain_xml(CARD))
    assert "no card has a driver of the host" in said(sound, "boot-display")[1]


def test_resetting(sound: SimulatedHost) -> None:
    assert said(sound, "reset")[1].endswith("flr, bus")
    os.remove(sound.path(f"{CARD_PATH}/reset_method"))
    assert said(sound, "reset")[0] is Verdict.WARN
    sound.put(f"{CARD_PATH}/reset")
    assert said(sound, "reset")[0] is Verdict.PASS


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


def test_what_may_run(sound: SimulatedHost) -> None:
    sound.put("/sys/module/apparmor/parameters/enabled", "Y\n")
    profile = "/etc/apparmor.d/usr.sbin.libvirtd"
    sound.put(profile, "profile libvirtd {\n}\n")
    assert said(sound, "hook-runs")[0] is Verdict.WARN
    sound.put(profile, "profile libvirtd {\n  /etc/libvirt/hooks/** rmix,\n}\n")
    assert said(sound, "hook-runs")[0] is Verdict.PASS
    os.remove(sound.path(INTERPRETER))
    assert said(sound, "hook-runs")[0] is Verdict.FAIL


def test_selinux(sound: SimulatedHost) -> None:
    sound.put("/sys/fs/selinux/enforce", "1")
    sound.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", "1 1")
    labelled = replace(WELL, hook_label="system_u:object_r:virt_hook_t:s0")
    assert said(sound, "hook-runs", labelled)[0] is Verdict.PASS
    modular = replace(labelled, daemon="virtqemud.service")
    assert said(sound, "hook-runs", modular)[0] is Verdict.UNKNOWN
    wrong = replace(WELL, hook_label="unconfined_u:object_r:etc_t:s0")
    assert "restorecon" in said(sound, "hook-runs", wrong)[2]
    sound.put("/sys/fs/selinux/booleans/virt_hooks_unconfined", "0 0")
    assert "setsebool" in said(sound, "hook-runs", labelled)[2]


def test_other_hooks(sound: SimulatedHost) -> None:
    for name in ("50-virtpass.bak", "10-mine"):
        path = f"{HOOK.rpartition('/')[0]}/{name}"
        sound.put(path, "#!/bin/sh\n")
        os.chmod(sound.path(path), 0o755)
    findings = {one.about: one for one in outcome(sound, "hook-others").findings}
    assert findings[f"{HOOK}.bak"].fix == f"sudo chmod -x {HOOK}.bak"
    assert "runs at every start" in findings[f"{HOOK.rpartition('/')[0]}/10-mine"].evidence


def test_libvirt(sound: SimulatedHost) -> None:
    away = replace(WELL, libvirt_version="", libvirt_problem="no such socket", running=None)
    assert said(sound, "libvirt", away)[0] is Verdict.FAIL
    unbound = replace(away, libvirt_remedy="install python3-libvirt")
    assert said(sound, "libvirt", unbound)[2] == "install python3-libvirt"
    assert said(sound, "libvirt", replace(away, libvirt_refuses=True))[0] is Verdict.UNKNOWN
    assert said(sound, "domain-devices", away)[0] is Verdict.UNKNOWN
    user = replace(WELL, is_root=False, user="me", groups=("video",))
    assert "usermod -aG libvirt me" in said(sound, "libvirt-group", user)[2]
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
    verdict, evidence, _ = said(sound, "driver-override")
    assert verdict is Verdict.WARN
    assert evidence.startswith(str(NIC))
    assert said(sound, "driver-override", replace(WELL, bound_early=(str(NIC),)))[0] is Verdict.PASS
    sound.put(f"/etc/driverctl.d/{NIC}", "vfio-pci\n")
    assert said(sound, "driverctl")[1] == f"{NIC} driverctl binds it to vfio-pci at boot"


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
    assert "kept in use by nvidia-persistenced.service" in evidence
    assert "loaded again by /usr/lib/udev/rules.d/71-nvidia.rules" in evidence


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


def test_huge_pages(sound: SimulatedHost) -> None:
    sound.put("/proc/meminfo", "HugePages_Total: 512\nHugePages_Free: 512\nHugepagesize: 2048 kB\n")
    assert said(sound, "huge-pages")[0] is Verdict.WARN
    sound.put("/proc/meminfo", "HugePages_Total: 512\nHugePages_Free: 0\nHugepagesize: 2048 kB\n")
    assert said(sound, "huge-pages")[0] is Verdict.PASS
