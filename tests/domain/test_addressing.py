"""Where the guest sees a card."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.documents import I440FX, domain, hostdev, pci
from virtpass.domain.addressing import Placement, guest_functions, place, read_topology
from virtpass.domain.document import parse_document
from virtpass.domain.hostdev import parse_hostdevs
from virtpass.system.errors import RefusedError


def placed(xml: str, *new: str) -> Placement:
    return place(read_topology(parse_document(xml)), parse_hostdevs(xml), [pci(address) for address in new])


def shown(placement: Placement) -> dict[str, str]:
    return {str(host)[5:]: str(guest)[5:] for host, guest in placement.addresses.items()}


@pytest.mark.parametrize(
    ("functions", "taken", "expected"),
    [
        ([0], set(), {0: 0}),
        ([0, 1], set(), {0: 0, 1: 1}),
        ([0, 1, 2, 3], set(), {0: 0, 1: 1, 2: 2, 3: 3}),
        ([0, 3], set(), {0: 0, 3: 3}),
        ([1], set(), {1: 0}),
        ([2, 3], set(), {2: 0, 3: 3}),
        ([1], {0}, {1: 1}),
        ([1], {0, 1}, {1: 2}),
        ([0], {0}, {0: 1}),
        ([0, 1], {0}, {0: 2, 1: 1}),
        ([1], {1}, {1: 0}),
        ([0, 1], {1}, {0: 0, 1: 2}),
    ],
)
def test_function_numbers(functions: list[int], taken: set[int], expected: dict[int, int]) -> None:
    assert guest_functions(functions, taken) == expected


@pytest.mark.property
@given(st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7), min_size=1))
def test_function_0_exists_and_no_number_is_given_twice(taken: set[int], functions: set[int]) -> None:
    wanted = sorted(functions)[: 8 - len(taken)]
    if not wanted:
        return
    numbers = guest_functions(wanted, taken)
    assert sorted(numbers) == wanted
    assert len(set(numbers.values()) | taken) == len(wanted) + len(taken)
    assert 0 in taken | set(numbers.values())
    assert all(0 <= number <= 7 for number in numbers.values())


def test_a_card_goes_behind_the_free_root_port_of_the_lowest_index() -> None:
    placement = placed(domain(ports=5), "01:00.0", "01:00.1")
    assert shown(placement) == {"01:00.0": "03:00.0", "01:00.1": "03:00.1"}
    assert placement.new_root_ports == ()


def test_a_root_port_is_added_when_all_are_taken() -> None:
    placement = placed(domain(ports=2), "01:00.0", "02:00.0")
    assert shown(placement) == {"01:00.0": "03:00.0", "02:00.0": "04:00.0"}
    assert placement.new_root_ports == (3, 4)


def test_cards_do_not_share_a_slot() -> None:
    placement = placed(domain(ports=3), "01:00.1", "01:01.1", "02:00.0", "02:00.3")
    assert shown(placement) == {
        "01:00.1": "03:00.0",
        "01:01.1": "04:00.0",
        "02:00.0": "05:00.0",
        "02:00.3": "05:00.3",
    }


def test_a_root_port_on_an_expander_bus_is_left_alone() -> None:
    devices = """
    <controller type='pci' index='3' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x09' slot='0x00' function='0x0'/>
    </controller>"""
    assert placed(domain(ports=2, devices=devices), "01:00.0").new_root_ports == (4,)


def test_the_port_of_another_hostdev_is_not_free() -> None:
    assert shown(placed(domain(hostdev("02:00.0", "03:00.0")), "01:00.0")) == {"01:00.0": "04:00.0"}


def test_a_host_address_does_not_make_a_guest_bus_busy() -> None:
    assert shown(placed(domain(hostdev("03:00.0", "02:00.1")), "01:00.0")) == {"01:00.0": "03:00.0"}


def test_i440fx_gets_slots_on_bus_0_beyond_those_that_libvirt_keeps() -> None:
    xml = domain(root=I440FX, used=("00:03.0", "00:05.0"))
    assert shown(placed(xml, "01:00.0", "01:00.1", "02:00.0")) == {
        "01:00.0": "00:04.0",
        "01:00.1": "00:04.1",
        "02:00.0": "00:06.0",
    }


def test_a_function_joins_the_rest_of_its_card() -> None:
    xml = domain(hostdev("01:00.0", "02:00.0"), used=("01:00.0",))
    assert shown(placed(xml, "01:00.1")) == {"01:00.1": "02:00.1"}


def test_a_function_joins_its_card_where_the_number_is_taken() -> None:
    xml = domain(hostdev("01:00.1", "02:00.0"), used=("01:00.0", "02:00.2"))
    assert shown(placed(xml, "01:00.0", "01:00.2")) == {"01:00.0": "02:00.1", "01:00.2": "02:00.3"}


def test_without_a_pci_root_libvirt_chooses() -> None:
    placement = placed(domain(root=None), "01:00.0")
    assert placement.addresses == {}
    assert "libvirt chooses" in placement.notes[0]


@pytest.mark.parametrize("root", ["pcie-root", "pci-root"])
def test_a_full_guest_is_refused(root: str) -> None:
    full = (
        [f"{bus:02x}:00.0" for bus in range(1, 256)]
        if root == "pcie-root"
        else [f"00:{s:02x}.0" for s in range(3, 32)]
    )
    with pytest.raises(RefusedError) as caught:
        placed(domain(root=root, used=full), "01:00.0")
    assert caught.value.reference == "guest-full"
