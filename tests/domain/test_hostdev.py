"""Reading the PCI devices in a domain's XML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.documents import domain, hostdev, pci
from virtpass.domain.hostdev import Hostdev, parse_hostdevs
from virtpass.pci.address import libvirt_number
from virtpass.system.errors import UsageError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("00", 0),
        ("8", 8),
        ("010", 8),
        ("0x10", 16),
        ("0X1f", 31),
        ("0x0000", 0),
        ("10000", 10000),
        ("0xffffffff", 0xFFFFFFFF),
    ],
)
def test_numbers_are_read_as_libvirt_reads_them(text: str, number: int) -> None:
    assert libvirt_number(text) == number


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "08", "0x", "ff", "-1", "+1", "1_0", "0b1", "0o7", "1.0", "٣", "0x1g", "1\n"]
)
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        libvirt_number(text)
    assert "is not a number" in caught.value.line
    assert "\n" not in caught.value.line


@pytest.mark.property
@given(st.integers(0, 0xFFFFFFFF))
def test_all_three_spellings_mean_the_same(number: int) -> None:
    assert (
        libvirt_number(f"{number:#x}")
        == libvirt_number(f"{number}")
        == libvirt_number(f"0{number:o}")
        == number
    )


@pytest.mark.property
@given(st.text(max_size=12))
def test_any_text_is_a_number_or_an_error_of_ours(text: str) -> None:
    try:
        assert libvirt_number(text) >= 0
    except UsageError as error:
        assert error.line.isprintable()


def test_a_hostdev_with_everything() -> None:
    text = hostdev(
        "0000:01:00.0",
        "0000:03:00.0",
        inside="<driver model='vfio-pci'/><alias name='ua-gpu'/><rom bar='off'/><boot order='1'/>",
        extra=" multifunction='on'",
    )
    assert parse_hostdevs(domain(text)) == (
        Hostdev(
            pci("01:00.0"),
            is_managed=True,
            guest=pci("03:00.0"),
            is_multifunction=True,
            alias="ua-gpu",
            driver_model="vfio-pci",
            settings=("alias", "rom", "boot"),
        ),
    )


@pytest.mark.parametrize(
    ("managed", "expected"), [("", False), (" managed='no'", False), (" managed='yes'", True)]
)
def test_managed_counts_only_when_it_says_yes(managed: str, expected: bool) -> None:
    (found,) = parse_hostdevs(domain(hostdev("01:00.0", managed=managed)))
    assert found.is_managed is expected


def test_addresses_written_by_hand() -> None:
    text = hostdev("01:00.0", "03:00.0").replace(
        "domain='0x0000' bus='0x01' slot='0x00' function='0x0'",
        "domain='65536' bus='010' slot='31' function='7'",
    )
    (found,) = parse_hostdevs(domain(text))
    assert found.source == pci("10000:08:1f.7")


@pytest.mark.parametrize(
    "wrong", ["bus='08'", "bus='ff'", "bus='256'", "bus=''", "slot='32'", "function='8'"]
)
def test_an_address_that_is_none_is_refused(wrong: str) -> None:
    part = wrong.partition("=")[0]
    text = hostdev("01:00.0")
    start = text.index(f"{part}='")
    end = text.index("'", start + len(part) + 2) + 1
    with pytest.raises(UsageError):
        parse_hostdevs(domain(text[:start] + wrong + text[end:]))


def test_devices_that_are_not_pci_hostdevs_are_left_out() -> None:
    others = """
    <hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>
    <hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>
      <address uuid='6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5b'/></source></hostdev>
    <hostdev mode='capabilities' type='misc'><source><char>/dev/x</char></source></hostdev>
    <interface type='network'><source network='default'/></interface>"""
    assert parse_hostdevs(domain(devices=others)) == ()


def test_interfaces_and_nvme_disks_are_told_apart() -> None:
    devices = """
    <interface type='hostdev' managed='yes'><mac address='52:54:00:00:00:01'/><source>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x10' function='0x1'/></source></interface>
    <disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>
      <address domain='0x0000' bus='0x04' slot='0x00' function='0x0'/></source><target dev='vda'/></disk>"""
    found = {
        device.kind: (device.source, device.is_managed) for device in parse_hostdevs(domain(devices=devices))
    }
    assert found == {"interface": (pci("02:10.1"), True), "disk": (pci("04:00.0"), True)}


def test_a_device_that_the_guest_is_not_to_see() -> None:
    (found,) = parse_hostdevs(domain(hostdev("01:00.0", inside="<address type='unassigned'/>")))
    assert (found.guest, found.is_assigned) == (None, False)


def test_an_address_left_to_libvirt_counts_as_none() -> None:
    (found,) = parse_hostdevs(domain(hostdev("01:00.0", inside="<address type='pci'/>")))
    assert (found.guest, found.is_assigned) == (None, True)
