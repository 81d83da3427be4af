"""What kernel arguments really do on a host: useful, useless, harmful, forbidden."""

from pathlib import Path

import pytest

from tests.host.machine import RUNNING, add_igpu, add_kernel, judged, machine, switch_off
from tests.simulation import CARD, SimulatedHost
from virtpass.host.known_arguments import Effect, Judgement

OLD = "5.15.0-9-generic"
SYMBOLS = "0000000000000000 t pcie_acs_overrides\n"


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    return machine(tmp_path)


def as_amd(host: SimulatedHost) -> None:
    switch_off(host)
    host.put("/sys/firmware/acpi/tables/IVRS")
    host.put("/sys/class/iommu/ivhd0/amd-iommu/cap")


@pytest.mark.parametrize(
    ("argument", "effect", "words"),
    [
        ("amd_iommu=on", Effect.USELESS, "a value that no kernel knows"),
        ("amd_iommu=pt", Effect.USELESS, "a value that no kernel knows"),
        ("amd_iommu=pgtbl_v2", Effect.USELESS, "does nothing on a host with an IOMMU of Intel"),
        ("iommu=on", Effect.USELESS, "a value that no kernel knows"),
        ("intel_iommu=on", Effect.USELESS, "not needed: the IOMMU is on without it"),
        ("intel_iommu=on,sm_on", Effect.UNKNOWN, ""),
        ("intremap=on", Effect.USELESS, "is the default"),
        ("intremap=no_x2apic_optout", Effect.USEFUL, "x2APIC"),
        ("intremap=off", Effect.HARMFUL, "makes VFIO refuse every device"),
        ("intremap=nosid", Effect.HARMFUL, "interrupts of another one"),
        ("intel_iommu=off", Effect.HARMFUL, "switches off what passthrough needs"),
        ("iommu=off", Effect.HARMFUL, "switches off what passthrough needs"),
        ("intel_iommu=igfx_off", Effect.HARMFUL, "processor's own graphics"),
        ("iommu=pt", Effect.USEFUL, "spares the host's own devices translation"),
        ("iommu.passthrough=1", Effect.USEFUL, "spares the host's own devices translation"),
        ("video=vesafb:off", Effect.USELESS, "not looked at by vesafb"),
        ("video=vesa:off", Effect.USELESS, "names no driver"),
        ("video=simplefb:off", Effect.USELESS, "simpledrm"),
        ("video=efifb:off", Effect.USELESS, "by itself"),
        ("video=HDMI-A-1:1920x1080", Effect.UNKNOWN, ""),
        ("initcall_blacklist=sysfb_init", Effect.HARMFUL, "without any picture"),
        ("pcie_acs_override=downstream", Effect.USELESS, "not known to any installed kernel"),
        ("vfio_iommu_type1.allow_unsafe_interrupts=1", Effect.HARMFUL, "--unsafe-interrupts"),
        ("vfio-iommu-type1.allow_unsafe_interrupts=1", Effect.HARMFUL, "--unsafe-interrupts"),
        ("iommufd.allow_unsafe_interrupts=Y", Effect.HARMFUL, "--unsafe-interrupts"),
        ("vfio.enable_unsafe_noiommu_mode=1", Effect.HARMFUL, "all memory of the host"),
        ("vfio-pci.disable_vga=1", Effect.USEFUL, "SeaBIOS"),
        ("modprobe.blacklist=nouveau", Effect.HARMFUL, "--softdep"),
        ("module_blacklist=vfio_pci", Effect.FORBIDDEN, "VFIO itself"),
        ("module_blacklist=i915,nvme", Effect.FORBIDDEN, "0000:04:00.0, which holds the file system /"),
        ("root=/dev/sda9", Effect.FORBIDDEN, "how the host itself boots"),
        ("rd.luks.uuid=x", Effect.FORBIDDEN, "how the host itself boots"),
        ("single", Effect.FORBIDDEN, "how the host itself boots"),
        ("initrd=/x", Effect.FORBIDDEN, "the bootloader"),
        ("BOOT_IMAGE=/x", Effect.FORBIDDEN, "the bootloader"),
        ("virtpass=off", Effect.FORBIDDEN, "its own boot entries"),
        ("mitigations=auto", Effect.UNKNOWN, ""),
        ("hugepages=16", Effect.UNKNOWN, ""),
        # lists: each element counts
        ("intremap=off,nosid", Effect.HARMFUL, "makes VFIO refuse every device"),
        ("intremap=on,nosid", Effect.HARMFUL, "interrupts of another one"),
        ("intremap=on,no_x2apic_optout", Effect.USEFUL, "x2APIC"),
        ("intremap=on,nopost", Effect.UNKNOWN, ""),
        ("intel_iommu=on,igfx_off", Effect.HARMFUL, "processor's own graphics"),
        ("intel_iommu=on,off", Effect.HARMFUL, "switches off what passthrough needs"),
        ("intel-iommu=off", Effect.HARMFUL, "switches off what passthrough needs"),
        ("intel_iommu=offline", Effect.HARMFUL, "switches off what passthrough needs"),
        ("intel_iommu=", Effect.UNKNOWN, ""),
        ("iommu=pt,off", Effect.HARMFUL, "switches off what passthrough needs"),
        ("iommu=on,pt", Effect.USEFUL, "spares the host's own devices translation"),
        ("iommu=nopt", Effect.UNKNOWN, ""),
        ("iommu.passthrough=on", Effect.USEFUL, "spares the host's own devices translation"),
        ("iommu.passthrough=0", Effect.UNKNOWN, ""),
        # interrupts, memory, ACPI
        ("nointremap", Effect.HARMFUL, "makes VFIO refuse every device"),
        ("noapic", Effect.HARMFUL, "interrupt remapping"),
        ("nosmp", Effect.HARMFUL, "interrupt remapping"),
        ("maxcpus=0", Effect.HARMFUL, "interrupt remapping"),
        ("maxcpus=4", Effect.UNKNOWN, ""),
        ("nolapic", Effect.HARMFUL, "interrupts"),
        ("disableapic", Effect.HARMFUL, "interrupts"),
        ("acpi=off", Effect.HARMFUL, "tables"),
        ("acpi=noirq", Effect.HARMFUL, "interrupts"),
        ("acpi=strict", Effect.UNKNOWN, ""),
        ("pci=noacpi", Effect.HARMFUL, "interrupts"),
        ("pci=noaer,nomsi", Effect.HARMFUL, "message-signalled interrupts"),
        ("pci=off", Effect.FORBIDDEN, "every PCI device"),
        ("pci=disable_acs_redir=0000:00:1c.0", Effect.HARMFUL, "isolation"),
        ("pci=noats", Effect.UNKNOWN, ""),
        ("mem=4G", Effect.HARMFUL, "memory"),
        ("nomodeset", Effect.HARMFUL, "graphics driver"),
        ("panic=10", Effect.UNKNOWN, ""),
        # what the kernel starts
        ("initcall_blacklist=simpledrm_platform_driver_init", Effect.HARMFUL, "part of the kernel"),
        ("initcall-blacklist=acpi_init,sysfb_init", Effect.HARMFUL, "without any picture"),
        ("initcall_blacklist=vfio_pci_init", Effect.FORBIDDEN, "VFIO itself"),
        ("initcall_blacklist=sysfb_init,nvme_init", Effect.FORBIDDEN, "the file system /"),
        ("initcall_blacklist=", Effect.USELESS, "names nothing"),
        # what keeps modules away
        ("blacklist=nouveau", Effect.HARMFUL, "--softdep"),
        ("blacklist=nvme", Effect.FORBIDDEN, "0000:04:00.0, which holds the file system /"),
        ("rdblacklist=nvme", Effect.FORBIDDEN, "0000:04:00.0, which holds the file system /"),
        ("module-blacklist=nvme", Effect.FORBIDDEN, "0000:04:00.0, which holds the file system /"),
        ("modprobe.blacklist=", Effect.USELESS, "names nothing"),
        ("modprobe.blacklist=,", Effect.USELESS, "names nothing"),
        # switches
        ("vfio.enable-unsafe-noiommu-mode=Y", Effect.HARMFUL, "all memory of the host"),
        ("vfio.enable_unsafe_noiommu_mode", Effect.HARMFUL, "all memory of the host"),
        ("vfio.enable_unsafe_noiommu_mode=yes", Effect.HARMFUL, "all memory of the host"),
        ("vfio.enable_unsafe_noiommu_mode=0", Effect.USELESS, "is the default"),
        ("vfio.enable_unsafe_noiommu_mode=off", Effect.USELESS, "is the default"),
        ("vfio.enable_unsafe_noiommu_mode=maybe", Effect.UNKNOWN, ""),
        ("vfio_iommu_type1.allow_unsafe_interrupts", Effect.HARMFUL, "--unsafe-interrupts"),
        ("vfio_iommu_type1.allow_unsafe_interrupts=N", Effect.USELESS, "is the default"),
        ("vfio_pci.disable_vga=Y", Effect.USEFUL, "SeaBIOS"),
    ],
)
def test_what_is_known(host: SimulatedHost, argument: str, effect: Effect, words: str) -> None:
    found = judged(host, argument)
    assert found.effect is effect, found
    assert words in found.text
    assert bool(found.text) is (effect is not Effect.UNKNOWN)


@pytest.mark.parametrize(
    "argument",
    [
        *("0", "1", "2", "3", "4", "5", "6", "s", "S", "single", "emergency", "rescue", "softlevel=boot"),
        *("ro", "rw", "root=UUID=1", "rootflags=subvol=@", "init=/bin/sh", "rdinit=/bin/sh", "noinitrd"),
        *(
            "nomodule",
            "resume=/dev/sda2",
            "resume_offset=1",
            "resume-offset=1",
            "md=0,/dev/sda1",
            "raid=part",
        ),
        *("dm-mod.create=x", "dm_mod.create=x", "systemd.unit=rescue.target", "rd.systemd.unit=x.target"),
        *("systemd.mask=gdm.service", "rd.systemd.mask=x", "systemd.wants=x.service", "systemd.run=/bin/x"),
        *("systemd.run-success-action=reboot", "systemd.volatile=yes", "systemd.verity=no", "roothash=0"),
        *("systemd.confirm_spawn", "systemd.break", "rd.systemd.break=pre-mount", "systemd.gpt_auto=0"),
        *("luks=no", "luks.uuid=1", "rd.luks=0", "rd.luks.name=1=x", "fstab=no", "rd.fstab=0", "mount.usr=x"),
        *("rd.lvm.lv=vg/root", "rd.lvm=0", "rd.md=0", "rd.md.uuid=1", "rd.dm=0", "rd.dm.uuid=1", "rd.auto"),
        *("rd.break", "rd.break=mount", "rd.emergency", "rd.rescue", "rd.live.image", "rd.hostonly=0"),
        *("rd_NO_LUKS", "rd_LVM_LV=vg/root", "netroot=iscsi:x", "boot=nfs", "break", "break=premount"),
        *("overlayroot=tmpfs", "cryptdevice=/dev/sda2:x", "cryptkey=rootfs:/x", "cryptopts=source=/dev/sda2"),
        *(
            "disablehooks=encrypt",
            "real_root=/dev/sda2",
            "real_init=/bin/sh",
            "crypt_root=/dev/sda2",
            "dolvm",
        ),
        "ostree=/ostree/boot.1/x",
    ],
)
def test_how_the_host_boots_is_not_ours_to_change(host: SimulatedHost, argument: str) -> None:
    found = judged(host, argument)
    assert found == Judgement(Effect.FORBIDDEN, "decides how the host itself boots; change that by hand")


@pytest.mark.parametrize(
    "argument",
    [
        *(
            "rootwait",
            "rootdelay=5",
            "rd.timeout=60",
            "rd.retry=60",
            "rd.driver.pre=vfio-pci",
            "rd.udev.debug",
        ),
        *("systemd.show_status=yes", "systemd.log_level=debug", "fsck.mode=force", "modules_load=vfio-pci"),
        # Read by nobody in this spelling: they decide nothing.
        *("real-root=/dev/sda2", "crypt-root=/dev/sda2", "Single", "7x", "boot_delay=1", "rdblacklists=x"),
    ],
)
def test_what_does_not_decide_how_the_host_boots(host: SimulatedHost, argument: str) -> None:
    assert judged(host, argument) == Judgement(Effect.UNKNOWN)


def test_dashes_and_underscores_are_one_wherever_the_kernel_reads(host: SimulatedHost) -> None:
    for one, other in (
        ("vfio-pci.disable-vga=1", "vfio_pci.disable_vga=1"),
        ("initcall-blacklist=sysfb_init", "initcall_blacklist=sysfb_init"),
        ("pcie-acs-override=downstream", "pcie_acs_override=downstream"),
        ("intel-iommu=igfx_off", "intel_iommu=igfx_off"),
    ):
        assert judged(host, one) == judged(host, other)
        assert judged(host, one).effect is not Effect.UNKNOWN


def test_the_switch_of_intel_with_others_may_be_why_the_iommu_is_on(host: SimulatedHost) -> None:
    host.put("/proc/cmdline", "root=/dev/sda1 intel-iommu=on,sm_on iommu=pt,nomerge\n")
    for group in host.names("/sys/kernel/iommu_groups"):
        host.put(f"/sys/kernel/iommu_groups/{group}/type", "identity\n")
    assert judged(host, "intel_iommu=on").effect is Effect.USEFUL
    assert judged(host, "iommu=pt").effect is Effect.USEFUL


def test_the_switch_of_intel_is_useful_where_the_iommu_waits_for_it(host: SimulatedHost) -> None:
    switch_off(host)
    assert judged(host, "intel_iommu=on").effect is Effect.USEFUL


def test_the_switch_of_intel_may_be_why_the_iommu_is_on(host: SimulatedHost) -> None:
    host.put("/proc/cmdline", "root=/dev/sda1 intel_iommu=on\n")
    assert judged(host, "intel_iommu=on").effect is Effect.USEFUL


def test_the_switch_of_intel_includes_graphics_that_are_left_out(host: SimulatedHost) -> None:
    add_igpu(host)
    assert judged(host, "intel_iommu=on") == Judgement(
        Effect.USEFUL, "includes the processor's own graphics in the IOMMU"
    )


def test_amd_s_own(host: SimulatedHost) -> None:
    as_amd(host)
    assert judged(host, "intel_iommu=on").text == "does nothing on a host with an IOMMU of AMD"
    assert judged(host, "amd_iommu=on").effect is Effect.USELESS
    assert judged(host, "amd_iommu=force_isolation").effect is Effect.UNKNOWN
    assert judged(host, "amd_iommu=off").effect is Effect.HARMFUL
    assert judged(host, "amd_iommu=fullflush,off").effect is Effect.HARMFUL
    assert judged(host, "amd_iommu=on,force_isolation").effect is Effect.UNKNOWN
    assert judged(host, "intel_iommu=off").text == "does nothing on a host with an IOMMU of AMD"


def test_pt_mode_that_is_the_kernel_s_default_needs_no_argument(host: SimulatedHost) -> None:
    for group in host.names("/sys/kernel/iommu_groups"):
        host.put(f"/sys/kernel/iommu_groups/{group}/type", "identity\n")
    assert judged(host, "iommu=pt").effect is Effect.USELESS
    host.put("/proc/cmdline", "root=/dev/sda1 iommu=pt\n")
    assert judged(host, "iommu=pt").effect is Effect.USEFUL


def test_a_framebuffer_on_an_older_kernel_is_not_taken_away_by_itself(host: SimulatedHost) -> None:
    add_kernel(host, OLD)
    assert judged(host, "video=efifb:off").effect is Effect.HARMFUL


def test_the_acs_override_on_a_kernel_with_the_patch(host: SimulatedHost) -> None:
    host.put("/proc/kallsyms", SYMBOLS)
    found = judged(host, "pcie_acs_override=downstream,multifunction")
    assert found == Judgement(Effect.HARMFUL, "lets the kernel believe in an isolation that is not there")
    add_kernel(host, OLD)
    assert judged(host, "pcie_acs_override=downstream").text.endswith(f", and only {RUNNING} knows it")


@pytest.mark.parametrize(
    ("ids", "effect", "words"),
    [
        ("1234:1111", Effect.USEFUL, f"takes {CARD}"),
        ("1234:1111:1af4", Effect.USEFUL, f"takes {CARD}"),
        ("1234:1111:ffffffff:1100", Effect.USEFUL, f"takes {CARD}"),
        ("1234:1111,8086:2668", Effect.USEFUL, f"takes {CARD}, 0000:01:00.1"),
        ("1234:ffffffff", Effect.HARMFUL, "takes every device with the ids 1234:ffffffff"),
        ("8086:10D3", Effect.HARMFUL, "0000:02:00.0, 0000:03:00.0"),
        ("1234:1111:8086", Effect.USELESS, "matches no device"),
        ("1234:1111:1af4:1100:040000:ff0000", Effect.USELESS, "matches no device"),
        ("1234:1111:1af4:1100:030000:ff0000", Effect.USEFUL, f"takes {CARD}"),
        ("10de:1b06", Effect.USELESS, "matches no device"),
        ("1234", Effect.USELESS, "matches no device"),
        ("", Effect.USELESS, "matches no device"),
        ("x:y,z", Effect.USELESS, "matches no device"),
        ("1B36:10", Effect.FORBIDDEN, "takes 0000:04:00.0, which holds the file system /"),
        ("1234:1111,ffffffff:ffffffff", Effect.FORBIDDEN, "0000:04:00.0"),
    ],
)
@pytest.mark.parametrize("name", ["vfio-pci.ids", "vfio_pci.ids"])
def test_ids_take_every_device_that_has_them(
    host: SimulatedHost, name: str, ids: str, effect: Effect, words: str
) -> None:
    found = judged(host, f"{name}={ids}")
    assert found.effect is effect
    assert words in found.text


@pytest.mark.parametrize(
    ("ids", "effect", "words"),
    [
        ("1234:1111", Effect.USEFUL, f"keeps {CARD} from the host's drivers"),
        (
            "8086:10D3",
            Effect.HARMFUL,
            "keeps every device with the ids 8086:10D3 (0000:02:00.0, 0000:03:00.0,",
        ),
        ("1b36:0010", Effect.FORBIDDEN, "takes 0000:04:00.0, which holds the file system /"),
        ("10de:1b06", Effect.USELESS, "matches no device"),
    ],
)
@pytest.mark.parametrize("name", ["pci-stub.ids", "pci_stub.ids"])
def test_ids_of_pci_stub_take_devices_from_the_host_too(
    host: SimulatedHost, name: str, ids: str, effect: Effect, words: str
) -> None:
    add_kernel(host, RUNNING)
    host.put(f"/usr/lib/modules/{RUNNING}/modules.builtin", "kernel/drivers/pci/pci-stub.ko\n")
    found = judged(host, f"{name}={ids}")
    assert found.effect is effect
    assert words in found.text


def test_ids_of_pci_stub_do_nothing_without_it(host: SimulatedHost) -> None:
    assert judged(host, "pci-stub.ids=1234:1111") == Judgement(
        Effect.USELESS, "needs pci-stub, which no installed kernel has"
    )


def test_ids_need_vfio_pci_in_one_kernel_at_least(tmp_path: Path) -> None:
    host = machine(tmp_path, kernels=())
    add_kernel(host, RUNNING, without=("vfio",))
    assert "no installed kernel has" in judged(host, "vfio-pci.ids=1234:1111").text
    add_kernel(host, "6.12.1-1-amd64")
    assert judged(host, "vfio-pci.ids=1234:1111").effect is Effect.USEFUL
