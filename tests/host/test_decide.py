"""From what a host is and what is wished to what is written: the least, and nothing that the host needs."""

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.machine import (
    IGPU,
    RUNNING,
    add_igpu,
    add_kernel,
    decided,
    look,
    machine,
    notes,
    set_module,
    switch_off,
)
from tests.simulation import AUDIO, CARD, DISK, NIC, PORT, SHARED, SPARE, TWIN, SimulatedHost
from virtpass.host.decide import decide
from virtpass.host.early import EarlyPlan
from virtpass.host.wishes import Wishes, wishes_from_json, wishes_to_json
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import read_inventory
from virtpass.system.errors import NotFoundError, RefusedError, UsageError, VirtpassError
from virtpass.system.host import Host

OTHER = "6.12.1-1-amd64"
CARD_IDS = "1234:1111:1af4:1100,8086:2668:1af4:1100"


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    return machine(tmp_path)


def plain(root: Path) -> SimulatedHost:
    return machine(root, kernels=())


# the IOMMU


def test_a_host_that_has_what_it_takes_gets_nothing(host: SimulatedHost) -> None:
    found = decided(host)
    assert (found.arguments, found.early.is_empty, found.devices, found.notes) == ((), True, {}, ())


def test_the_argument_is_written_where_the_iommu_waits_for_it(host: SimulatedHost) -> None:
    switch_off(host)
    found = decided(host)
    assert found.arguments == ("intel_iommu=on",)
    assert notes(found) == {"argument": ["intel_iommu=on switches on the IOMMU of Intel"]}


def test_what_switched_the_iommu_on_is_still_wanted_after_the_reboot(host: SimulatedHost) -> None:
    host.put("/proc/cmdline", "root=/dev/nvme0n1p1 ro intel_iommu=on virtpass=trial\n")
    assert decided(host).arguments == ("intel_iommu=on",)


@pytest.mark.parametrize(
    ("cmdline", "table", "words"),
    [
        ("intel_iommu=off", "DMAR", "take that argument out of the boot menu first"),
        ("", "IVRS", "switch it on in the firmware's settings"),
        ("", "", "switch it on in the firmware's settings"),
    ],
)
def test_no_argument_helps_where_the_cause_is_another(
    host: SimulatedHost, cmdline: str, table: str, words: str
) -> None:
    switch_off(host)
    host.put("/proc/cmdline", f"ro {cmdline}\n")
    os.unlink(host.path("/sys/firmware/acpi/tables/DMAR"))
    if table:
        host.put(f"/sys/firmware/acpi/tables/{table}")
    found = decided(host)
    assert found.arguments == ()
    (text,) = notes(found)["iommu"]
    assert text.startswith("!no IOMMU is active: ")
    assert words in text


def test_of_a_machine_that_is_not_there_nothing_is_claimed(tmp_path: Path) -> None:
    host = SimulatedHost(os.fspath(tmp_path))
    add_kernel(host, RUNNING)
    found = decided(host, passthrough=True)
    assert found.arguments == ("iommu=pt",)
    (text,) = notes(found)["iommu"]
    assert text.startswith("!there is no sysfs here, so nothing can be said of the machine; --kernel-arg")


def test_the_processor_s_graphics_are_included_only_when_they_are_wanted(host: SimulatedHost) -> None:
    add_igpu(host)
    found = decided(host)
    assert found.arguments == ()
    assert f"leaves the processor's own graphics ({IGPU}) out" in notes(found)["igpu"][0]
    found = decided(host, bind=(IGPU,))
    assert found.arguments == ("intel_iommu=on",)
    assert found.early.softdeps == ("i915",)
    assert decided(host, arguments=("intel_iommu=on",)).arguments == ("intel_iommu=on",)


def test_interrupts_that_are_not_remapped(host: SimulatedHost) -> None:
    assert "changes nothing" in notes(decided(host, unsafe_interrupts=True))["unsafe-interrupts"][0]
    assert not decided(host, unsafe_interrupts=True).early.unsafe_interrupts
    host.put("/sys/kernel/irq/24/chip_name", "PCI-MSIX\n")
    host.put("/sys/kernel/irq/9/chip_name", "IO-APIC\n")
    found = decided(host)
    assert not found.early.unsafe_interrupts
    assert "--unsafe-interrupts does without" in notes(found)["no-interrupt-remapping"][0]
    found = decided(host, unsafe_interrupts=True)
    assert found.early.unsafe_interrupts
    assert found.arguments == ()
    assert "!a guest with a device can send interrupts to the host" in notes(found)["unsafe-interrupts"][0]


class Running:
    """A simulated host as the machine itself: not below another root."""

    root = ""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)


@pytest.mark.parametrize(
    ("value", "is_running", "is_told"), [("N\n", True, True), ("Y\n", True, False), ("N\n", False, False)]
)
def test_what_vfio_accepts_at_once_is_told(
    host: SimulatedHost, value: str, is_running: bool, is_told: bool
) -> None:
    host.put("/sys/kernel/irq/24/chip_name", "PCI-MSIX\n")
    host.put("/sys/kernel/irq/9/chip_name", "IO-APIC\n")
    host.put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", value)
    facts, iommu = look(host)
    if is_running:
        facts = replace(facts, host=cast(Host, Running(host)))
    wishes = Wishes(unsafe_interrupts=True)
    found = notes(decide(facts, iommu, read_inventory(host), wishes, runs_scripts=True))
    assert ("unsafe-interrupts-now" in found) is is_told
    if is_told:
        assert "from now on" in found["unsafe-interrupts-now"][0]


# arguments


def test_what_is_useless_is_not_written_and_the_plan_says_why(host: SimulatedHost) -> None:
    wanted = ("amd_iommu=on", "video=vesafb:off", "quiet", "intremap=on", "quiet")
    found = decided(host, arguments=wanted)
    assert found.arguments == ("quiet",)
    texts = notes(found)["useless-argument"]
    assert [text.split(" ")[2] for text in texts] == ["amd_iommu=on", "video=vesafb:off", "intremap=on"]
    assert all(text.startswith("not written: ") for text in texts)


@pytest.mark.parametrize("argument", ["intremap=off", "iommu=off", "vfio-pci.ids=8086:10d3"])
def test_what_harms_is_refused_unless_the_risk_is_accepted(host: SimulatedHost, argument: str) -> None:
    with pytest.raises(RefusedError, match="--accept-risk writes it all the same") as caught:
        decided(host, arguments=(argument,))
    assert caught.value.reference == "harmful-argument"
    found = decided(host, arguments=(argument,), accept_risk=True)
    assert found.arguments == (argument,)
    assert notes(found)["harmful-argument"][0].startswith(f"!{argument} ")


@pytest.mark.parametrize(
    "argument",
    [
        "root=/dev/sdb1",
        "virtpass=off",
        "vfio-pci.ids=1b36:0010",
        "pci-stub.ids=1b36:0010",
        "1",
        "blacklist=nvme",
    ],
)
def test_what_is_forbidden_stays_so(host: SimulatedHost, argument: str) -> None:
    with pytest.raises(RefusedError) as caught:
        decided(host, arguments=(argument,), accept_risk=True)
    assert caught.value.reference == "forbidden-argument"
    assert caught.value.what.startswith(f"{argument} ")


def test_an_option_of_its_own_is_the_user_s_word(host: SimulatedHost) -> None:
    host.put("/proc/kallsyms", "0 t pcie_acs_overrides\n")
    found = decided(host, acs_override="downstream,multifunction", framebuffer_off=True, passthrough=True)
    assert found.arguments == (
        "iommu=pt",
        "pcie_acs_override=downstream,multifunction",
        "initcall_blacklist=sysfb_init",
    )
    assert len(notes(found)["harmful-argument"]) == 2
    assert "hardly ever needed here" in notes(found)["framebuffer"][0]
    # One option says nothing of the other argument.
    with pytest.raises(
        RefusedError, match="initcall_blacklist=sysfb_init leaves the host without any picture"
    ):
        decided(host, acs_override="downstream", arguments=("initcall_blacklist=sysfb_init",))


def test_the_acs_override_is_not_written_for_stock_kernels(host: SimulatedHost) -> None:
    found = decided(host, acs_override="downstream")
    assert found.arguments == ()
    assert "not known to any installed kernel" in notes(found)["useless-argument"][0]


# devices


def test_a_card_is_bound_by_address_as_a_whole(host: SimulatedHost) -> None:
    found = decided(host, bind=(AUDIO,))
    assert found.arguments == ()
    assert list(found.devices) == [CARD, AUDIO]
    assert [(one.address, one.modules) for one in found.early.devices] == [
        (CARD, ("bochs",)),
        (AUDIO, ("snd_hda_intel",)),
    ]
    assert found.early.softdeps == ("bochs", "snd_hda_intel")
    assert found.early.modules == ("vfio_pci", "vfio", "vfio_iommu_type1")
    assert found.early.blacklist == ()
    assert notes(found)["only-display"] == [
        f"!{CARD} is the host's only display: from the next boot on it stays dark"
    ]


def test_a_twin_stays_with_the_host(host: SimulatedHost) -> None:
    found = decided(host, bind=(NIC,))
    assert [one.address for one in found.early.devices] == [NIC]
    assert found.arguments == ()
    assert found.early.softdeps == ("e1000e",)


def test_a_device_without_a_driver_needs_no_soft_dependency(host: SimulatedHost) -> None:
    found = decided(host, bind=(SPARE,))
    assert found.early.softdeps == ()
    assert [one.modules for one in found.early.devices] == [()]


def test_what_is_bound_already_is_decided_the_same_way(host: SimulatedHost) -> None:
    before = decided(host, bind=(CARD,))
    for address in (CARD, AUDIO):
        driver = host.link_name(f"/sys/bus/pci/devices/{address}/driver") or ""
        host.write_attribute(f"/sys/bus/pci/drivers/{driver}/unbind", str(address), 1)
        host.write_attribute(f"/sys/bus/pci/devices/{address}/driver_override", "vfio-pci", 1)
        host.write_attribute("/sys/bus/pci/drivers_probe", str(address), 1)
    set_module(host, CARD, "vfio_pci")
    assert decided(host, bind=(CARD,)).early == before.early


def test_a_driver_that_is_built_in_has_no_soft_dependency(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("e1000e",))
    assert decided(host, bind=(NIC,)).early.softdeps == ()


def test_a_driver_that_no_index_names_is_found_by_what_is_bound(host: SimulatedHost) -> None:
    add_kernel(host, RUNNING)
    host.put(f"/usr/lib/modules/{RUNNING}/modules.alias", "")
    assert decided(host, bind=(NIC,)).early.softdeps == ("e1000e",)


# what the host needs, whether the IOMMU is on or is about to be


@pytest.mark.parametrize("is_on", [True, False])
@pytest.mark.parametrize(
    ("address", "words"),
    [
        (DISK, "it holds the file system /"),
        (PORT, "bridges stay with the host"),
    ],
)
def test_what_the_host_needs_is_refused(
    host: SimulatedHost, address: PciAddress, words: str, is_on: bool
) -> None:
    if not is_on:
        switch_off(host)
    with pytest.raises(RefusedError, match=words) as caught:
        decided(host, bind=(address,), accept_risk=True)
    assert caught.value.reference == "not-bindable"
    assert str(address) in caught.value.what


@pytest.mark.parametrize("is_on", [True, False])
def test_the_way_to_the_network_is_refused(host: SimulatedHost, is_on: bool) -> None:
    real = host.real_path(f"/sys/bus/pci/devices/{NIC}")
    host.put(f"{real}/net/enp2s0/ifindex", "2\n")
    host.link("/sys/class/net/enp2s0", f"{real}/net/enp2s0")
    host.link(f"{real}/net/enp2s0/device", real)
    host.put(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "enp2s0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\n",
    )
    if not is_on:
        switch_off(host)
    with pytest.raises(RefusedError, match="cannot be taken from the host at boot: it "):
        decided(host, bind=(NIC,))
    assert decided(host, bind=(TWIN,)).devices


def test_the_functions_beside_a_bridge_do_not_stand_for_it(host: SimulatedHost) -> None:
    bridge, audio = PciAddress.parse("00:1f.0"), PciAddress.parse("00:1f.3")
    host.add_device(bridge, class_code=0x060100, group=16)
    host.add_device(audio, class_code=0x040300, group=16, native="snd_hda_intel")
    with pytest.raises(RefusedError, match=f"{bridge} cannot be taken from the host at boot: bridges"):
        decided(host, bind=(bridge,))


def test_a_device_that_shares_its_group_is_bound_with_a_warning(host: SimulatedHost) -> None:
    found = decided(host, bind=SHARED[:1])
    assert list(found.devices) == [SHARED[0]]
    assert notes(found)["group-shared"] == [
        f"!{SHARED[0]}: {SHARED[1]} in its group must go with it (bound to e1000)"
    ]
    assert "group-shared" not in notes(decided(host, bind=SHARED))


def test_the_only_display_is_told_while_the_iommu_is_off_too(host: SimulatedHost) -> None:
    switch_off(host)
    found = decided(host, bind=(CARD,))
    assert "only-display" in notes(found)
    assert found.arguments == ("intel_iommu=on",)


def test_a_device_that_the_iommu_does_not_concern_is_refused(host: SimulatedHost) -> None:
    lonely = PciAddress.parse("07:00.0")
    host.add_device(lonely)
    with pytest.raises(RefusedError, match="it has no IOMMU group"):
        decided(host, bind=(lonely,))


def test_a_virtual_function_is_not_there_at_boot(host: SimulatedHost) -> None:
    function = PciAddress.parse("02:10.0")
    real = host.add_device(function, group=20)
    host.link(f"{real}/physfn", host.real_path(f"/sys/bus/pci/devices/{NIC}"))
    with pytest.raises(RefusedError, match="let the hook take it") as caught:
        decided(host, bind=(function,))
    assert caught.value.reference == "virtual-function"


def test_a_device_that_is_not_there(host: SimulatedHost) -> None:
    with pytest.raises(NotFoundError, match=r"no PCI device 0000:0b:00\.0"):
        decided(host, bind=(PciAddress.parse("0b:00.0"),))


# by id


def test_a_vfio_pci_that_is_built_in_binds_by_id(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio", "vfio-pci", "vfio-pci-core", "vfio_iommu_type1"))
    found = decided(host, bind=(CARD,))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS}",)
    assert found.early == EarlyPlan()
    assert list(found.devices) == [CARD, AUDIO]
    assert "since vfio-pci is built into a kernel" in notes(found)["by-id"][0]


def test_two_cards_by_id_are_no_harm_of_ours(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",))
    found = decided(host, bind=(CARD, SPARE))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS},1234:11e8:1af4:1100",)


def test_an_initramfs_without_scripts_binds_nothing_that_the_host_would_have_first(
    host: SimulatedHost,
) -> None:
    with pytest.raises(RefusedError, match="the host's drivers would come before vfio-pci") as caught:
        decided(host, runs_scripts=False, bind=(CARD,))
    assert caught.value.reference == "no-early-binding"


def test_a_built_in_vfio_pci_needs_no_script(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",))
    found = decided(host, runs_scripts=False, bind=(CARD,))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS}",)
    assert found.early.devices == ()


def test_an_initramfs_that_loads_vfio_pci_first_binds_by_id(host: SimulatedHost) -> None:
    found = decided(host, runs_scripts=False, loads_first=True, bind=(CARD,))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS}",)
    assert (found.early.devices, [one.address for one in found.early.by_id]) == ((), [CARD, AUDIO])
    assert found.early.rivals == ("bochs", "snd_hda_intel")
    assert found.early.needs_initramfs


def test_a_device_that_no_module_knows_needs_the_initramfs_too(host: SimulatedHost) -> None:
    found = decided(host, runs_scripts=False, loads_first=True, bind=(SPARE,)).early
    assert (found.softdeps, found.rivals, found.needs_initramfs) == ((), (), True)


def test_what_is_loaded_first_is_of_no_use_where_it_is_built_in(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",))
    found = decided(host, runs_scripts=False, loads_first=True, bind=(CARD,))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS}",)
    assert (found.early.by_id, found.early.needs_initramfs) == ((), False)


def test_a_driver_that_is_built_in_comes_before_what_is_loaded_first(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("e1000e",))
    with pytest.raises(RefusedError, match=f"e1000e is built into kernel .* takes {NIC} before") as caught:
        decided(host, runs_scripts=False, loads_first=True, bind=(NIC, TWIN, *SHARED))
    assert caught.value.reference == "built-in-driver"


def test_twins_cannot_be_told_apart_by_id(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",))
    with pytest.raises(RefusedError, match=f"{NIC} cannot be told from {TWIN} at boot") as caught:
        decided(host, bind=(NIC,))
    assert caught.value.reference == "same-ids"
    # The simulated group of two has their ids too.
    both = decided(host, bind=(NIC, TWIN, *SHARED))
    assert both.arguments == ("vfio-pci.ids=8086:10d3:8086:0000",)


def test_of_two_lists_of_ids_the_kernel_would_take_the_last(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",))
    with pytest.raises(RefusedError, match="of two the kernel takes the last; name all devices with --bind"):
        decided(host, bind=(CARD,), arguments=("vfio_pci.ids=1234:11e8",))


def test_a_list_of_ids_that_the_kernel_runs_with_is_told(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("vfio-pci",), cmdline="ro vfio_pci.ids=10de:1b06")
    (text,) = notes(decided(host, bind=(CARD,)))["two-ids"]
    assert text.startswith("!the kernel runs with vfio_pci.ids=10de:1b06, and of two it takes the last")
    host.put("/proc/cmdline", f"ro vfio-pci.ids={CARD_IDS}\n")
    assert "two-ids" not in notes(decided(host, bind=(CARD,)))


# kernels


def test_kernels_of_which_one_has_vfio_pci_built_in(host: SimulatedHost) -> None:
    add_kernel(host, OTHER, built_in=("vfio-pci",))
    found = decided(host, bind=(CARD,))
    assert found.arguments == (f"vfio-pci.ids={CARD_IDS}",)
    # For the other one, whose drivers are all modules.
    assert found.early.softdeps == ("bochs", "snd_hda_intel")
    assert found.early.modules == ("vfio_pci", "vfio", "vfio_iommu_type1")


def test_kernels_of_which_one_has_no_vfio_pci(host: SimulatedHost) -> None:
    add_kernel(host, OTHER, without=("vfio",))
    found = decided(host, bind=(CARD,))
    assert "vfio_pci" in found.early.modules
    assert notes(found)["no-vfio"] == [
        f"!no vfio-pci in {OTHER}: with this kernel no device can be given to a domain"
    ]


def test_kernels_without_vfio_pci(tmp_path: Path) -> None:
    host = plain(tmp_path)
    add_kernel(host, RUNNING, without=("vfio",))
    assert notes(decided(host))["no-vfio"]
    with pytest.raises(RefusedError, match=f"no vfio-pci in {RUNNING}"):
        decided(host, bind=(CARD,))


def test_no_kernel_at_all(tmp_path: Path) -> None:
    host = plain(tmp_path)
    assert decided(host, passthrough=True).arguments == ("iommu=pt",)
    with pytest.raises(RefusedError, match="nothing can be bound at boot"):
        decided(host, bind=(CARD,))


def test_virqfd_is_never_named(host: SimulatedHost) -> None:
    # Where it is a module of its own, up to 6.1, vfio-pci depends on it.
    host.put(
        f"/usr/lib/modules/{RUNNING}/modules.dep",
        "kernel/vfio-pci.ko: kernel/vfio_virqfd.ko\nkernel/vfio_virqfd.ko:\nkernel/bochs.ko:\n",
    )
    assert decided(host, bind=(CARD,)).early.modules == ("vfio_pci",)


# soft dependencies and blacklists


def test_a_soft_dependency_is_added_to_those_of_the_devices(host: SimulatedHost) -> None:
    found = decided(host, bind=(AUDIO,), softdeps=("xhci_pci", "bochs"))
    assert found.early.softdeps == ("bochs", "snd_hda_intel", "xhci_pci")
    assert notes(found)["no-module"] == ["!no installed kernel has a module xhci_pci"]


def test_a_blacklist_says_who_else_loses_his_driver(host: SimulatedHost) -> None:
    found = decided(host, bind=(NIC,), blacklist=("e1000e",))
    assert found.early.blacklist == ("e1000e",)
    assert notes(found)["blacklist"] == [
        "the blacklist of e1000e counts in every boot, that of the fallback entry included",
        f"!without e1000e these devices have no driver either: {TWIN}; --softdep would spare them",
    ]


def test_a_blacklist_of_whole_cards_takes_nobody_else_s_driver(host: SimulatedHost) -> None:
    found = notes(decided(host, bind=(CARD,), blacklist=("snd-hda-intel",)))["blacklist"]
    assert not any(text.startswith("!") for text in found)


def test_what_counts_in_every_boot_cannot_be_tried_in_one(host: SimulatedHost) -> None:
    with pytest.raises(RefusedError, match="--blacklist would count in every boot"):
        decided(host, blacklist=("i915",), trial=True)
    with pytest.raises(RefusedError, match="--softdep would count in every boot"):
        decided(host, softdeps=("i915",), trial=True)


def test_a_trial_with_unsafe_interrupts_is_refused(host: SimulatedHost) -> None:
    with pytest.raises(RefusedError, match="--unsafe-interrupts would count in every boot"):
        decided(host, unsafe_interrupts=True, trial=True)


def test_the_driver_of_what_the_host_needs_is_not_blacklisted(host: SimulatedHost) -> None:
    with pytest.raises(RefusedError, match=f"nvme is the driver of {DISK}, which holds the file system /"):
        decided(host, blacklist=("nvme",))
    assert decided(host, blacklist=("nvme",), accept_risk=True).early.blacklist == ("nvme",)


def test_a_blacklist_does_not_change_what_is_built_in(tmp_path: Path) -> None:
    host = machine(tmp_path, built_in=("i915",))
    assert "which a blacklist does not change" in notes(decided(host, blacklist=("i915",)))["built-in"][0]


# wishes


@pytest.mark.parametrize("field", ["softdeps", "blacklist"])
@pytest.mark.parametrize(
    "name", ["", " ", "a b", "../x", "a\nb", "-x", "a;b", "x" * 65, "vfio-pci", "vfio_iommu_type1", "ä"]
)
def test_a_name_that_is_no_host_driver_s(field: str, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Wishes(**{field: (name,)})  # type: ignore[arg-type]
    assert (caught.value.reference, caught.value.exit_status) == ("module-name", 2)
    assert caught.value.remedy


@pytest.mark.parametrize("value", ["on", "downstream,", "downstream multifunction", "id:1234", "id:12345:1"])
def test_a_value_that_the_acs_override_does_not_know(value: str) -> None:
    with pytest.raises(UsageError, match="no value for the ACS override"):
        Wishes(acs_override=value)


@pytest.mark.parametrize("value", ["", "downstream", "multifunction,id:8086:a110", "id:10DE:1b06"])
def test_a_value_that_the_acs_override_knows(value: str) -> None:
    assert Wishes(acs_override=value).acs_override == value


def test_an_argument_that_is_not_safe() -> None:
    with pytest.raises(UsageError, match="cannot be written as a kernel argument safely"):
        Wishes(arguments=("quiet", "x=$(id)"))


ADDRESSES = st.builds(
    PciAddress, st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7)
)
WISHES = st.builds(
    Wishes,
    bind=st.lists(ADDRESSES).map(tuple),
    passthrough=st.booleans(),
    acs_override=st.sampled_from(["", "downstream"]),
    softdeps=st.lists(st.sampled_from(["i915", "snd-hda-intel"])).map(tuple),
    arguments=st.lists(st.sampled_from(["quiet", "iommu=pt"])).map(tuple),
    trial=st.booleans(),
)


@given(WISHES)
def test_wishes_come_back_from_the_record(wishes: Wishes) -> None:
    assert wishes_from_json(wishes_to_json(wishes)) == wishes


@pytest.mark.parametrize("change", [{"bind": ["x"]}, {"softdeps": ["a b"]}, {"unknown": 1}, {"bind": None}])
def test_wishes_that_are_not_on_record_as_such(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, VirtpassError)):
        wishes_from_json({**wishes_to_json(Wishes()), **change})
