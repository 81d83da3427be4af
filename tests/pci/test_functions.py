"""What sysfs says of virtual functions and mediated devices."""

from tests.simulation import CARD, NIC, SimulatedHost
from virtpass.pci.address import PciAddress
from virtpass.pci.functions import PhysicalFunction, owner, physical_function
from virtpass.pci.mediated import mediated_devices, mediated_types, parents

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


def test_a_device_that_can_have_functions(host: SimulatedHost) -> None:
    assert physical_function(host, NIC) is None
    host.add_functions(NIC, 7, "igbvf", 40)
    found = physical_function(host, NIC)
    assert found is not None
    assert (found.total, found.number, found.autoprobe, found.functions) == (7, 0, True, ())


def test_functions_are_in_the_order_of_the_device(host: SimulatedHost) -> None:
    host.add_functions(NIC, 12, "igbvf", 40)
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs", "11", 1)
    found = physical_function(host, NIC)
    assert found is not None
    assert found.number == len(found.functions) == 11
    # Not as the names of links are sorted, in which virtfn10 comes before virtfn2.
    assert list(found.functions) == sorted(found.functions)
    assert found.functions[1] == PciAddress.parse("02:10.2")
    assert owner(host, found.functions[10]) == NIC
    assert owner(host, NIC) is None


def test_what_is_no_number_counts_as_none(host: SimulatedHost) -> None:
    for text in ("", "many\n", "0\n"):
        host.put(f"/sys/bus/pci/devices/{NIC}/sriov_totalvfs", text)
        assert physical_function(host, NIC) is None
    host.put(f"/sys/bus/pci/devices/{NIC}/sriov_totalvfs", "4\n")
    host.put(f"/sys/bus/pci/devices/{NIC}/virtfnx")
    found = physical_function(host, NIC)
    assert found is not None
    # Kernels before 4.12 have no automatic probing to switch off.
    assert (found.number, found.autoprobe, found.functions) == (0, None, ())


def test_where_functions_come(host: SimulatedHost) -> None:
    """As the lab's 82576 numbers them, and devices that go on at the next bus, or do not tell."""
    host.add_functions(NIC, 12, "igbvf", 40)
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/sriov_numvfs", "11", 1)
    found = physical_function(host, NIC)
    assert found is not None
    assert found.expected(11) == found.functions
    assert found.expected(0) == ()
    last = PciAddress(0x10000, 0xFE, 0x1F, 7)
    further = PhysicalFunction(last, 300, None, 1, 1, ())
    assert further.expected(1) == (PciAddress(0x10000, 0xFF, 0, 0),)
    assert further.expected(256)[-1] == PciAddress(0x10000, 0xFF, 0x1F, 7)
    # Beyond the last bus, or without an offset, there is no such place.
    assert further.expected(257) == ()
    for offset, stride in ((0, 0), (0, 1), (-1, 1), (1, -1)):
        assert PhysicalFunction(NIC, 7, None, offset, stride, ()).expected(2) == ()
    assert PhysicalFunction(NIC, 7, None, 128, 0, ()).expected(1) == (PciAddress.parse("02:10.0"),)


def test_the_types_of_mediated_devices(host: SimulatedHost) -> None:
    assert mediated_types(host, CARD) == ()
    assert parents(host) == []
    host.add_mediated_type(CARD, "i915-GVTg_V5_8", 2)
    host.add_mediated_type(CARD, "nvidia-222", 16, "GRID T4-1B")
    host.put(
        f"/sys/bus/pci/devices/{CARD}/mdev_supported_types/i915-GVTg_V5_8/description",
        "low_gm_size: 64MB\nfence: 4\n",
    )
    host.put(f"/sys/bus/pci/devices/{CARD}/mdev_supported_types/nvidia-222/available_instances", "some\n")
    assert parents(host) == [CARD]
    first, second = mediated_types(host, CARD)
    assert (first.name, first.available, first.api) == ("i915-GVTg_V5_8", 2, "vfio-pci")
    assert first.description == "low_gm_size: 64MB, fence: 4"
    assert (second.label, second.available) == ("GRID T4-1B", None)


def test_mediated_devices(host: SimulatedHost) -> None:
    host.add_mediated_type(CARD, "nvidia-222", 16)
    host.write_attribute(f"/sys/bus/pci/devices/{CARD}/mdev_supported_types/nvidia-222/create", UUID, 1)
    (found,) = mediated_devices(host)
    assert (found.uuid, found.parent, found.type_name, found.group) == (UUID, CARD, "nvidia-222", 100)
