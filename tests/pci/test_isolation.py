"""Verdicts: the kernel's rule, and what the host cannot spare."""

import shutil

import pytest

from tests.simulation import AUDIO, CARD, DISK, NIC, PORT, SHARED, SPARE, TWIN, SimulatedHost
from virtpass.operations.mediated_devices import create
from virtpass.pci.address import PciAddress
from virtpass.pci.inventory import read_inventory
from virtpass.pci.isolation import Level, Verdict, judge
from virtpass.system.errors import NotFoundError


def verdict(host: SimulatedHost, address: PciAddress, *going: PciAddress) -> Verdict:
    return judge(read_inventory(host), address, frozenset(going) if going else None)


def references(host: SimulatedHost, address: PciAddress) -> set[str]:
    return {reason.reference for reason in verdict(host, address).reasons}


def test_a_card_goes_with_its_audio_function(host: SimulatedHost) -> None:
    assert verdict(host, CARD).level is Level.READY
    assert verdict(host, AUDIO).level is Level.READY


def test_its_audio_function_alone_is_not_enough(host: SimulatedHost) -> None:
    alone = verdict(host, AUDIO, AUDIO)
    assert alone.level is Level.SHARED
    assert str(CARD) in alone.reasons[0].text


def test_a_device_without_driver_in_the_group_is_no_obstacle(host: SimulatedHost) -> None:
    host.write_attribute("/sys/bus/pci/drivers/snd_hda_intel/unbind", str(AUDIO), 1)
    assert verdict(host, CARD, CARD).level is Level.READY


def test_the_only_display_is_ready_and_says_what_it_costs(host: SimulatedHost) -> None:
    assert references(host, CARD) == {"only-display"}


def test_a_second_card_takes_that_note_away(host: SimulatedHost) -> None:
    host.add_device(PciAddress.parse("07:00.0"), class_code=0x030000, group=17, native="amdgpu")
    assert references(host, CARD) == set()


def test_a_bridge_on_pcieport_in_the_group_is_exempt(host: SimulatedHost) -> None:
    host.link(f"/sys/kernel/iommu_groups/10/devices/{PORT}", f"/sys/devices/pci0000:00/{PORT}")
    host.link(f"/sys/devices/pci0000:00/{PORT}/iommu_group", "/sys/kernel/iommu_groups/10")
    assert verdict(host, CARD).level is Level.READY


def test_a_bridge_with_another_driver_is_not(host: SimulatedHost) -> None:
    bridge = PciAddress.parse("00:05.0")
    host.add_device(bridge, class_code=0x060400, header_type=1, group=10, native="shpchp")
    assert verdict(host, CARD).level is Level.BLOCKED
    assert "group-bridge" in references(host, CARD)


def test_a_group_of_two_cards_goes_as_a_whole(host: SimulatedHost) -> None:
    assert verdict(host, SHARED[0]).level is Level.SHARED
    assert verdict(host, SHARED[0], *SHARED).level is Level.READY


def test_bridges_stay(host: SimulatedHost) -> None:
    assert references(host, PORT) == {"bridge"}


def test_the_boot_disk_stays(host: SimulatedHost) -> None:
    found = verdict(host, DISK)
    assert found.level is Level.BLOCKED
    assert found.reasons[0].text == "it holds the file system /"


def test_without_iommu_nothing_goes(host: SimulatedHost) -> None:
    host.switch_iommu_off()
    assert references(host, NIC) == {"no-iommu"}
    # It may only be switched off: that is not for ever, as it is with bridges.
    assert verdict(host, NIC).level is Level.BLOCKED
    assert verdict(host, PORT).level is Level.NEVER


def test_a_device_without_group_stays(host: SimulatedHost) -> None:
    lonely = PciAddress.parse("09:00.0")
    host.add_device(lonely, native="e1000e")
    assert references(host, lonely) == {"no-group"}


def test_memory_that_the_firmware_reserves_for_a_device(host: SimulatedHost) -> None:
    regions = "0x00000000bf800000 0x00000000bfffffff direct\n0xfee00000 0xfeefffff msi\n"
    host.put("/sys/kernel/iommu_groups/11/reserved_regions", regions)
    assert references(host, NIC) == {"direct-region"}


def test_relaxable_regions_do_not_count(host: SimulatedHost) -> None:
    host.put("/sys/kernel/iommu_groups/11/reserved_regions", "0x0 0xffffff direct-relaxable\n")
    assert verdict(host, NIC).level is Level.READY


@pytest.mark.parametrize(
    ("chip", "allowed", "level"),
    [
        ("IO-APIC", "N", Level.BLOCKED),
        ("IO-APIC", "Y", Level.READY),
        ("IR-IO-APIC", "N", Level.READY),
        ("GICv3", "N", Level.READY),
    ],
)
def test_interrupt_remapping(host: SimulatedHost, chip: str, allowed: str | None, level: Level) -> None:
    host.put("/sys/kernel/irq/24/chip_name", chip + "\n")
    if allowed:
        host.put("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", allowed + "\n")
    assert verdict(host, NIC).level is level


def test_the_way_out_stays_through_bridge_and_bond(host: SimulatedHost) -> None:
    host.put(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\nbr0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\n",
    )
    host.put("/sys/class/net/br0/uevent")
    host.link("/sys/class/net/br0/lower_bond0", "/sys/class/net/bond0")
    host.put("/sys/class/net/bond0/uevent")
    host.link("/sys/class/net/bond0/lower_eth0", "/sys/class/net/eth0")
    host.put(f"/sys/devices/pci0000:00/{NIC}/net/eth0/uevent")
    host.link("/sys/class/net/eth0", f"/sys/devices/pci0000:00/{NIC}/net/eth0")
    assert verdict(host, NIC).reasons[0].text == "it carries the default route (br0)"
    assert verdict(host, TWIN).level is Level.READY


def test_a_file_system_on_luks_or_lvm_leads_to_its_disk(host: SimulatedHost) -> None:
    """btrfs shows a made-up number, and a node that is named otherwise than the kernel names the device."""
    host.put("/proc/self/mountinfo", "22 1 0:25 / / rw - btrfs /dev/mapper/luks-1 rw\n")
    host.numbers["/dev/mapper/luks-1"] = "254:0"
    host.link("/sys/dev/block/254:0", "/sys/devices/virtual/block/dm-0")
    host.link("/sys/devices/virtual/block/dm-0/slaves/nvme0n1p1", "/sys/class/block/nvme0n1p1")
    host.link("/sys/class/block/dm-0", "/sys/devices/virtual/block/dm-0")
    assert verdict(host, DISK).reasons[0].text == "it holds the file system /"


def test_swap_leads_to_its_disk(host: SimulatedHost) -> None:
    host.put("/proc/self/mountinfo", "")
    host.put("/proc/swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n")
    assert verdict(host, DISK).reasons[0].text == "it holds swap"


def test_a_disk_that_is_part_of_something_else_stays(host: SimulatedHost) -> None:
    host.put("/proc/self/mountinfo", "")
    assert verdict(host, DISK).level is Level.READY
    host.put("/sys/class/block/nvme0n1p1/holders/md0/uevent")
    assert verdict(host, DISK).reasons[0].text == "it has a disk in use (nvme0n1p1)"


def test_a_multipath_disk_leads_to_its_controller(host: SimulatedHost) -> None:
    subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    host.put(f"{subsystem}/nvme0n1/nvme0n1p1/dev", "259:1\n")
    host.link(f"{subsystem}/nvme0", f"/sys/devices/pci0000:00/{SPARE}/nvme/nvme0")
    host.put(f"/sys/devices/pci0000:00/{SPARE}/nvme/nvme0/uevent")
    host.link("/sys/class/block/nvme0n1p1", f"{subsystem}/nvme0n1/nvme0n1p1")
    host.link("/sys/dev/block/259:1", f"{subsystem}/nvme0n1/nvme0n1p1")
    assert verdict(host, SPARE).reasons[0].text == "it holds the file system /"


def test_virtual_functions_would_vanish(host: SimulatedHost) -> None:
    host.link(f"/sys/bus/pci/devices/{NIC}/virtfn0", f"/sys/bus/pci/devices/{TWIN}")
    assert verdict(host, NIC).level is Level.BLOCKED
    assert references(host, NIC) == {"virtual-functions"}


def test_mediated_devices_would_vanish(host: SimulatedHost) -> None:
    host.add_mediated_type(NIC, "small", 1)
    create(host, NIC, "small")
    assert verdict(host, NIC).level is Level.BLOCKED
    assert references(host, NIC) == {"mediated-devices"}
    assert references(host, TWIN) == set()


def test_a_device_that_does_not_answer(host: SimulatedHost) -> None:
    host.put(f"/sys/bus/pci/devices/{NIC}/config", b"\xff" * 64)
    assert references(host, NIC) == {"no-answer"}


def keyboard(name: str, path: str) -> str:
    keys = "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe"
    return f'I: Bus=0003\nN: Name="{name}"\nS: Sysfs={path}\nH: Handlers=sysrq kbd\nB: KEY={keys}\n\n'


POWER_BUTTON = (
    'N: Name="Power Button"\nS: Sysfs=/devices/LNXSYSTM:00/input/input0\nB: KEY=10000000000000 0\n\n'
)


def test_the_only_keyboard_stays(host: SimulatedHost) -> None:
    usb = f"/devices/pci0000:00/{SPARE}/usb1/1-1/input/input3"
    host.put("/proc/bus/input/devices", POWER_BUTTON + keyboard("A", usb))
    assert verdict(host, SPARE).reasons[0].text == "it has the only keyboard"


def test_what_goes_with_the_only_keyboard_stays_too(host: SimulatedHost) -> None:
    usb = f"/devices/pci0000:00/{CARD}/usb1/1-1/input/input3"
    host.put("/proc/bus/input/devices", keyboard("A", usb))
    assert verdict(host, CARD).level is Level.BLOCKED
    found = verdict(host, AUDIO)
    assert (found.level, [reason.text for reason in found.reasons]) == (
        Level.BLOCKED,
        [f"{CARD} of its card cannot go: it has the only keyboard"],
    )


def test_a_port_goes_without_the_others_that_the_iommu_keeps_apart(host: SimulatedHost) -> None:
    first, second = PciAddress.parse("0a:00.0"), PciAddress.parse("0a:00.1")
    for number, port in enumerate((first, second)):
        host.add_device(port, group=70 + number)
    host.put("/proc/bus/input/devices", keyboard("A", f"/devices/pci0000:00/{first}/usb1/1-1/input/input3"))
    found = verdict(host, second)
    assert found.level is Level.READY
    (reason,) = found.reasons
    assert reason.text.startswith(f"{first} of its card cannot go: it has the only keyboard; it goes without")


def test_one_of_two_keyboards_may_go(host: SimulatedHost) -> None:
    usb = f"/devices/pci0000:00/{SPARE}/usb1/1-1/input/input3"
    ps2 = "/devices/platform/i8042/serio0/input/input1"
    host.put("/proc/bus/input/devices", keyboard("A", usb) + keyboard("B", ps2))
    assert verdict(host, SPARE).level is Level.READY


USB = f"/devices/pci0000:00/{SPARE}/usb1/1-1/input/input3"
OTHER_USB = f"/devices/pci0000:00/{TWIN}/usb2/2-1/input/input4"


def test_of_two_controllers_with_keyboards_one_may_go_and_not_both(host: SimulatedHost) -> None:
    host.put("/proc/bus/input/devices", keyboard("A", USB) + keyboard("B", OTHER_USB) + POWER_BUTTON)
    assert verdict(host, SPARE).level is verdict(host, TWIN).level is Level.READY
    assert verdict(host, SPARE, SPARE, NIC).level is Level.READY
    both = verdict(host, SPARE, SPARE, TWIN)
    assert both.level is Level.BLOCKED
    assert both.reasons[0].text == f"it has, together with {TWIN}, the last keyboards"
    # What goes with them is not to blame.
    assert verdict(host, NIC, SPARE, TWIN, NIC).level is Level.READY


def test_two_controllers_with_keyboards_may_go_where_a_third_keyboard_stays(host: SimulatedHost) -> None:
    ps2 = "/devices/platform/i8042/serio0/input/input1"
    found = keyboard("A", USB) + keyboard("B", OTHER_USB) + keyboard("C", ps2)
    host.put("/proc/bus/input/devices", found)
    assert verdict(host, SPARE, SPARE, TWIN).level is Level.READY


def test_a_keyboard_that_a_program_made_does_not_count(host: SimulatedHost) -> None:
    usb = f"/devices/pci0000:00/{SPARE}/usb1/1-1/input/input3"
    host.put("/proc/bus/input/devices", keyboard("A", usb) + keyboard("B", "/devices/virtual/input/input9"))
    assert verdict(host, SPARE).reasons[0].text == "it has the only keyboard"


def test_a_missing_device_is_not_found(host: SimulatedHost) -> None:
    with pytest.raises(NotFoundError):
        verdict(host, PciAddress.parse("0a:00.0"))


def test_unsafe_interrupts_may_be_allowed_by_a_module_that_is_not_loaded_yet(host: SimulatedHost) -> None:
    host.put("/sys/kernel/irq/24/chip_name", "IO-APIC\n")
    shutil.rmtree(host.path("/sys/module/vfio_iommu_type1"))
    assert verdict(host, NIC).level is Level.READY
    (reason,) = verdict(host, NIC).reasons
    assert reason.reference == "no-interrupt-remapping"
    assert reason.text.endswith("only where that is accepted, with --unsafe-interrupts")


def test_the_nvidia_driver_is_noted(host: SimulatedHost) -> None:
    card = PciAddress.parse("0c:00.0")
    host.add_device(card, class_code=0x030000, group=20, native="nvidia")
    texts = {reason.reference: reason.text for reason in verdict(host, card).reasons}
    assert texts["nvidia-driver"] == "bound to nvidia: goes only with display=hand-over, or unloaded before"


@pytest.mark.parametrize("above", ["br0", "bond0"])
def test_a_port_of_a_bridge_or_a_bond_stays_without_any_route(host: SimulatedHost, above: str) -> None:
    real = host.real_path(f"/sys/bus/pci/devices/{NIC}")
    host.link("/sys/class/net/enp2s0", f"{real}/net/enp2s0")
    host.put(f"{real}/net/enp2s0/address")
    assert verdict(host, NIC).level is Level.READY
    host.link(f"{real}/net/enp2s0/master", f"/sys/devices/virtual/net/{above}")
    (reason,) = verdict(host, NIC).reasons
    assert f"is a port of {above} (enp2s0)" in reason.text
