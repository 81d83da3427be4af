"""PCI addresses as users, sysfs and libvirt write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.pci.address import PciAddress
from virtpass.system.errors import UsageError

addresses = st.builds(
    PciAddress, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("0000:01:00.0", (0, 1, 0, 0)),
        ("01:00.0", (0, 1, 0, 0)),
        ("0000:FF:1f.7", (0, 255, 31, 7)),
        ("10000:e1:00.0", (0x10000, 0xE1, 0, 0)),
        ("00000000:01:00.0", (0, 1, 0, 0)),
    ],
)
def test_what_people_and_sysfs_write(text: str, parts: tuple[int, int, int, int]) -> None:
    assert PciAddress.parse(text) == parts


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01:00",
        "1:00.0",
        "01:0.0",
        "01:00.00",
        "001:00.0",
        "000:01:00.0",
        "000000000:01:00.0",
        "01:20.0",
        "01:00.8",
        "0x01:00.0",
        " 01:00.0",
        "01:00.0\n",
        "01:00.٠",
        "０１:00.0",
        "+1:00.0",
        "-1:00.0",
        "0_:00.0",
        "pci_0000_01_00_0",
        "01:00.0/../../x",
        "\x1b[2J",
    ],
)
def test_anything_else_is_refused_in_one_printable_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        PciAddress.parse(text)
    assert caught.value.line.isprintable()


@given(addresses)
def test_text_leads_back_to_the_address_and_libvirt_names_it_alike(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address
    assert address.node_device == "pci_" + str(address).replace(":", "_").replace(".", "_")


@given(st.text(alphabet="0123456789abcdefABCDEFx:._- \n", max_size=16))
def test_what_is_accepted_is_equal_to_what_is_shown(text: str) -> None:
    try:
        address = PciAddress.parse(text)
    except UsageError:
        return
    shown = str(address)
    assert int(shown.partition(":")[0], 16) == int(text.partition(":")[0], 16) or text.count(":") == 1
    assert shown.endswith(text.lower()[-7:])


def test_functions_of_one_card_share_a_slot() -> None:
    card = PciAddress.parse("01:00.0")
    assert card.same_slot(PciAddress.parse("01:00.1"))
    assert not card.same_slot(PciAddress.parse("01:01.0"))
