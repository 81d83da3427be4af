"""What the hook reads from libvirt: exactly that, and nothing that could hurt it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pci.test_address import addresses
from tests.simulation import AUDIO, CARD, GUEST, domain_xml
from virtpass.binding.demand import Demand
from virtpass.hook.request import parse_request
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

RECORDED = (
    "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:policy display='refuse'/>"
    "<v:device address='0000:01:00.0' vendor='0x1234' device='0x1111' subsystem-vendor='0x1af4' "
    "subsystem-device='0x1100' serial='0011223344556677'/></v:passthrough>"
)


def test_a_domain_of_ours() -> None:
    request = parse_request(domain_xml(CARD, AUDIO, metadata=RECORDED))
    assert (request.name, request.uuid, request.is_ours) == ("guest", GUEST, True)
    assert request.devices == [CARD, AUDIO]
    assert request.policy == {"display": "refuse"}
    assert request.identities == {CARD: Identity(0x1234, 0x1111, 0x1AF4, 0x1100, "0011223344556677")}


@given(st.lists(addresses, unique=True, max_size=6))
def test_all_addresses_arrive(devices: list[PciAddress]) -> None:
    assert parse_request(domain_xml(*devices)).devices == devices


@pytest.mark.parametrize(
    "metadata", ["", "<o:x xmlns:o='urn:other'><o:passthrough/></o:x>", "<passthrough/>"]
)
def test_other_metadata_is_not_ours(metadata: str) -> None:
    assert not parse_request(domain_xml(CARD, metadata=metadata)).is_ours


def test_our_element_elsewhere_does_not_count() -> None:
    nested = "<o:x xmlns:o='urn:other'><v:passthrough xmlns:v='urn:virtpass:passthrough:1'/></o:x>"
    assert not parse_request(domain_xml(CARD, metadata=nested)).is_ours


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a b", "a b"),
        ("&quot;x&apos;&amp;&lt;", "\"x'&<"),
        ("--force", "--force"),
        ("Müller ⚙", "Müller ⚙"),
        ("$(id)", "$(id)"),
    ],
)
def test_names_as_people_choose_them(name: str, shown: str) -> None:
    assert parse_request(domain_xml(CARD, name=name)).name == shown


@pytest.mark.parametrize(("bus", "seen"), [("1", 1), ("010", 8), ("0x0a", 10), ("255", 255)])
def test_numbers_as_libvirt_reads_them(bus: str, seen: int) -> None:
    xml = domain_xml(CARD).replace(b"bus='0x01'", f"bus='{bus}'".encode())
    assert parse_request(xml).devices == [PciAddress(0, seen, 0, 0)]


@pytest.mark.parametrize("bus", ["08", "ff", "", "1_0", "１", "-1", "256"])
def test_numbers_that_libvirt_would_refuse(bus: str) -> None:
    request = parse_request(domain_xml(CARD).replace(b"bus='0x01'", f"bus='{bus}'".encode()))
    assert request.problem is not None
    # What is given back at the stop does not depend on it.
    assert request.uuid == GUEST


def test_usb_devices_and_guest_addresses_are_no_host_devices() -> None:
    usb = b"<hostdev mode='subsystem' type='usb'><source><address bus='1' device='2'/></source></hostdev>"
    guest = b"<address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></hostdev>"
    xml = domain_xml(CARD).replace(b"</hostdev>", guest).replace(b"</devices>", usb + b"</devices>")
    assert parse_request(xml).devices == [CARD]


BOMB = (
    b"<!DOCTYPE d [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'>]>"
    b"<domain><name>&b;</name></domain>"
)
OUTSIDE = b"<!DOCTYPE d [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain><name>&a;</name></domain>"


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"\n",
        b"no xml",
        b"<domain>",
        b"<network/>",
        b"\0" * 50,
        BOMB,
        OUTSIDE,
        b"<domain/>" + b" " * (17 << 20),
    ],
)
def test_what_is_no_domain_is_refused_in_one_line(xml: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(xml)
    assert caught.value.line.isprintable()


@given(st.binary(max_size=300))
def test_any_bytes_are_understood_or_refused(xml: bytes) -> None:
    try:
        parse_request(xml)
    except UsageError:
        pass


@pytest.mark.parametrize("broken", ["vendor='x'", "vendor='0x10000'", "", "vendor='0x1234' new='1'"])
def test_a_record_that_cannot_be_understood_is_a_problem_of_the_start_only(broken: str) -> None:
    request = parse_request(domain_xml(CARD, metadata=RECORDED.replace("vendor='0x1234'", broken, 1)))
    assert request.problem is not None
    assert (request.uuid, request.is_ours) == (GUEST, True)


@pytest.mark.parametrize(
    "more",
    [
        "<v:tuning cpus='2'/>",
        "<tuning/>",
        "<policy display='refuse'/>",
        "<v:policy display='refuse'/>",
        "<v:root-port bus='1'/>",
        "<v:root-port index='1'><v:x/></v:root-port>",
        RECORDED[RECORDED.index("<v:device") : RECORDED.index("</v:pass")],
    ],
)
def test_what_a_later_version_may_write_is_not_ignored(more: str) -> None:
    metadata = RECORDED.replace("</v:passthrough>", f"{more}</v:passthrough>")
    assert parse_request(domain_xml(CARD, metadata=metadata)).problem is not None


def test_a_second_element_is_not_merged() -> None:
    assert parse_request(domain_xml(CARD, metadata=RECORDED + RECORDED)).problem is not None


def test_a_root_port_that_was_added_is_known() -> None:
    metadata = RECORDED.replace("</v:passthrough>", "<v:root-port index='1'/></v:passthrough>")
    assert parse_request(domain_xml(CARD, metadata=metadata)).problem is None


def test_encodings_that_nobody_uses_are_refused() -> None:
    for encoding in (b"utf-7", b"nonsense", b"utf-16"):
        with pytest.raises(UsageError):
            parse_request(b"<?xml version='1.0' encoding='" + encoding + b"'?><domain/>")


def test_deep_nesting_is_no_work() -> None:
    deep = "<x>" * 50000 + "</x>" * 50000
    assert parse_request(domain_xml(CARD, metadata=f"<o:a xmlns:o='urn:other'>{deep}</o:a>")).devices == [
        CARD
    ]


def demand_of(tuning: str) -> Demand:
    request = parse_request(domain_xml(CARD, tuning=tuning))
    assert request.problem is None
    return request.demand


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("<memory unit='KiB'>262144</memory>", 262144),
        ("<memory>262144</memory>", 262144),
        ("<memory unit='GiB'>4</memory>", 4 << 20),
        ("<memory unit='G'>4</memory>", 4 << 20),
        ("<memory unit='MB'>1</memory>", 977),
        ("<memory unit='bytes'>1025</memory>", 2),
        ("<memory dumpCore='on' unit='KiB'> 8 </memory>", 8),
    ],
)
def test_memory_in_each_unit_of_libvirt(text: str, kib: int) -> None:
    xml = domain_xml(CARD).replace(b"<memory unit='KiB'>262144</memory>", text.encode())
    assert parse_request(xml).demand.memory == kib


def test_pinned_processors() -> None:
    demand = demand_of(
        "<cputune><vcpupin vcpu='0' cpuset='2'/><vcpupin vcpu='1' cpuset='3,6-7'/>"
        "<emulatorpin cpuset='0-1'/><iothreadpin iothread='1' cpuset='5'/></cputune>"
    )
    assert demand.vcpu_pins == {2, 3, 6, 7}
    assert demand.emulator_pins == {0, 1}
    assert demand.iothread_pins == {5}
    assert demand.pinned == {0, 1, 2, 3, 5, 6, 7}


def test_huge_pages_and_nodes() -> None:
    demand = demand_of(
        "<memoryBacking><hugepages><page size='1' unit='G' nodeset='0,2-3'/><page size='2048' unit='KiB'/>"
        "</hugepages></memoryBacking><numatune><memory mode='strict' nodeset='0-1'/>"
        "<memnode cellid='1' mode='strict' nodeset='1'/><memnode cellid='2' mode='preferred' nodeset='0'/>"
        "</numatune><cpu><numa><cell id='0' cpus='0-1' memory='1' unit='GiB'/>"
        "<cell id='1' cpus='2-3' memory='524288' unit='KiB'/></numa></cpu>"
    )
    assert demand.has_huge_pages
    assert demand.pages == [(1 << 20, frozenset({0, 2, 3})), (2048, None)]
    assert demand.cells == {0: 1 << 20, 1: 524288}
    assert demand.host_nodes == frozenset({0, 1})
    assert demand.cell_nodes == {1: frozenset({1})}
    assert demand.problem is None


def test_a_domain_without_tuning_asks_for_none() -> None:
    demand = demand_of("")
    assert not demand.has_huge_pages
    assert (demand.pinned, demand.host_nodes, demand.cells, demand.problem) == (frozenset(), None, {}, None)


@pytest.mark.parametrize(
    "tuning",
    [
        "<cputune><vcpupin vcpu='0' cpuset='2-'/></cputune>",
        "<memoryBacking><hugepages><page size='x'/></hugepages></memoryBacking>",
        "<memoryBacking><hugepages><page size='1' unit='yard'/></hugepages></memoryBacking>",
        "<cpu><numa><cell id='a' memory='1'/></numa></cpu>",
    ],
)
def test_tuning_that_is_not_understood_does_not_keep_others_from_starting(tuning: str) -> None:
    assert demand_of(tuning).problem is not None
