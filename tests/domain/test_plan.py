"""Plans: what changes, what stays, and that doing it twice or taking it back leaves nothing behind."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.documents import I440FX, Q35, domain, guest_address, hostdev, pci
from virtpass.domain.document import normalise
from virtpass.domain.hostdev import parse_hostdevs
from virtpass.domain.metadata import parse_passthrough
from virtpass.domain.plan import DomainPlan, plan_adopt, plan_attach, plan_detach
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import NotFoundError, RefusedError, UsageError, VirtpassError

CARD = (pci("01:00.0"), Identity(0x1234, 0x1111, 0x1AF4, 0x1100, "00aabbccddeeff11"))
AUDIO = (pci("01:00.1"), Identity(0x8086, 0x2668, 0x1AF4, 0x1100))
NIC = (pci("02:00.0"), Identity(0x8086, 0x10D3, 0x8086, 0))
IDENTITIES = dict((CARD, AUDIO, NIC))
VERSION = 9_000_000


def identify(address: PciAddress) -> Identity:
    return IDENTITIES[address]


def attach(xml: str, *devices: tuple[PciAddress, Identity]) -> DomainPlan:
    return plan_attach(xml, devices, VERSION)


def added(plan: DomainPlan) -> list[str]:
    return [line[1:].strip() for line in plan.diff.splitlines()[2:] if line.startswith("+")]


def removed(plan: DomainPlan) -> list[str]:
    return [line[1:].strip() for line in plan.diff.splitlines()[2:] if line.startswith("-")]


def guests(xml: str) -> dict[str, str]:
    return {str(device.source)[5:]: str(device.guest)[5:] for device in parse_hostdevs(xml) if device.guest}


def test_a_card_is_attached() -> None:
    xml = domain(ports=2)
    plan = attach(xml, CARD, AUDIO)
    assert (plan.name, plan.uuid) == ("guest", "6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a")
    assert plan.before == normalise(xml)
    assert plan.changes == (
        "add PCI Express root port 3",
        "add hostdev 0000:01:00.0 as guest address 0000:03:00.0",
        "add hostdev 0000:01:00.1 as guest address 0000:03:00.1",
        "record 0000:01:00.0 as 1234:1111 (1af4:1100) serial 00aabbccddeeff11",
        "record 0000:01:00.1 as 8086:2668 (1af4:1100)",
    )
    assert removed(plan) == []
    assert [device.is_multifunction for device in parse_hostdevs(plan.after)] == [True, False]
    assert all(device.is_managed for device in parse_hostdevs(plan.after))
    # In libvirt's own order and indentation: otherwise each look at the domain would show a difference.
    assert re.search(
        r'index="2".*\n(?:.*\n){4}    <controller type="pci" index="3" model="pcie-root-port"/>\n', plan.after
    )
    assert re.search(r"<input .*/>\n    <hostdev [^!]*\n    </hostdev>\n    <memballoon", plan.after)


def test_one_function_is_no_multifunction_device() -> None:
    assert "multifunction" not in "".join(added(attach(domain(), AUDIO)))


def test_hostdevs_stay_together() -> None:
    xml = domain(hostdev("05:00.0", "03:00.0"), devices="    <redirdev bus='usb' type='spicevmc'/>")
    plan = attach(xml, CARD)
    assert re.search(r"</hostdev>\n    <hostdev", plan.after)


def test_what_the_user_set_in_a_hostdev_stays() -> None:
    settings = "<!-- mine --><rom bar='off' file='/x.rom'/><boot order='3'/><alias name='ua-gpu'/>"
    xml = domain(hostdev("01:00.0", "02:00.0", managed="", inside=settings), used=("01:00.0",))
    plan = attach(xml, CARD)
    assert removed(plan) == ['<hostdev mode="subsystem" type="pci">']
    assert added(plan)[-1] == '<hostdev mode="subsystem" type="pci" managed="yes">'
    assert "set managed='yes' on hostdev 0000:01:00.0" in plan.changes


def test_a_function_joins_its_card_and_no_address_moves() -> None:
    xml = domain(hostdev("01:00.0", "02:00.0"), used=("01:00.0",))
    plan = attach(xml, CARD, AUDIO)
    assert guests(plan.after) == {"01:00.0": "02:00.0", "01:00.1": "02:00.1"}
    assert "set multifunction='on' on guest address 0000:02:00.0" in plan.changes


def test_functions_in_separate_slots_stay_there_and_a_note_says_so() -> None:
    xml = domain(hostdev("01:00.0", "02:00.0"), hostdev("01:00.1", "03:00.0"), used=("01:00.0",))
    plan = attach(xml, CARD, AUDIO)
    assert guests(plan.after) == guests(xml)
    assert plan.notes == (
        "the guest sees the functions of card 0000:01:00 as separate devices; their addresses stay",
    )


def test_a_device_that_was_replaced_is_recorded_anew() -> None:
    before = attach(domain(), CARD).after
    plan = attach(before, (CARD[0], NIC[1]))
    assert plan.changes == (f"record 0000:01:00.0 as 8086:10d3 (8086:0000), which was {CARD[1]}",)


def test_a_serial_number_is_not_forgotten_by_who_cannot_read_it() -> None:
    before = attach(domain(), CARD).after
    assert attach(before, (CARD[0], Identity(*CARD[1][:4]))).is_empty


def test_a_serial_number_is_added_by_who_can_read_it() -> None:
    before = attach(domain(), (CARD[0], Identity(*CARD[1][:4]))).after
    found = parse_passthrough(attach(before, CARD).after)
    assert found is not None
    assert found.identity(CARD[0]) == CARD[1]


def test_a_domain_without_pci_root_gets_hostdevs_without_address() -> None:
    plan = attach(domain(root=None), CARD, AUDIO)
    assert guests(plan.after) == {}
    assert "libvirt chooses the guest addresses" in plan.notes[0]


def test_a_domain_in_which_nothing_is_in_its_place_yet() -> None:
    plan = attach("<domain><name>n</name><uuid>u</uuid></domain>", CARD)
    assert "<uuid>u</uuid>\n  <metadata>" in plan.after or "<uuid>u</uuid><metadata>" in plan.after
    assert [device.source for device in parse_hostdevs(plan.after)] == [CARD[0]]
    assert plan_detach(plan.after, [CARD[0]]).after.count("virtpass") == 0


def test_interfaces_and_disks_of_the_domain_are_not_touched() -> None:
    devices = """    <interface type='hostdev' managed='yes'><source>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></source></interface>
    <disk type='nvme' device='disk'><source type='pci' managed='yes' namespace='1'>
      <address domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></source><target dev='vda'/></disk>"""
    for address, identity, reference in ((*NIC, "is-interface"), (*CARD, "is-disk")):
        with pytest.raises(RefusedError) as caught:
            attach(domain(devices=devices), (address, identity))
        assert caught.value.reference == reference
        with pytest.raises(RefusedError):
            plan_detach(domain(devices=devices), [address])


@pytest.mark.parametrize("root", [Q35, I440FX])
def test_detaching_leaves_nothing_behind(root: str) -> None:
    xml = domain(root=root, ports=2, used=("00:03.0",) if root == I440FX else ("01:00.0", "02:00.0"))
    plan = plan_detach(attach(xml, CARD, AUDIO, NIC).after, [CARD[0], AUDIO[0], NIC[0]])
    assert plan.after == normalise(xml)
    assert "remove hostdev 0000:01:00.0" in plan.changes


def test_detaching_one_card_leaves_the_other() -> None:
    before = attach(domain(), CARD).after
    assert plan_detach(attach(before, NIC).after, [NIC[0]]).after == before


def test_a_root_port_goes_with_the_last_card_behind_the_highest() -> None:
    both = attach(domain(ports=2), CARD, NIC).after
    first_gone = plan_detach(both, [CARD[0]])
    # Port 4 has the other card; without port 3 libvirt would fill the gap with a new one.
    assert 'index="3"' in first_gone.after
    assert plan_detach(first_gone.after, [NIC[0]]).after == normalise(domain(ports=2))


def test_a_root_port_that_virtpass_did_not_add_stays() -> None:
    assert plan_detach(attach(domain(ports=3), CARD).after, [CARD[0]]).after.count("pcie-root-port") == 6


@pytest.mark.parametrize(
    "change",
    [
        (
            'index="3" model="pcie-root-port"/>',
            'index="3" model="pcie-root-port"><alias name="ua-x"/></controller>',
        ),
        ('<memballoon model="none"/>', f'<rng model="virtio">{guest_address("03:01.0")}</rng>'),
    ],
    ids=["has a setting of the user", "has another device behind it"],
)
def test_a_root_port_in_use_stays(change: tuple[str, str]) -> None:
    attached = attach(domain(ports=2), CARD).after
    assert change[0] in attached
    assert 'index="3"' in plan_detach(attached.replace(*change), [CARD[0]]).after


def test_settings_that_go_with_a_hostdev_are_named() -> None:
    xml = domain(hostdev("01:00.0", "03:00.0", inside="<rom bar='off'/>"))
    assert plan_detach(xml, [CARD[0]]).changes == ("remove hostdev 0000:01:00.0 with its settings: rom",)


def test_a_record_without_a_hostdev_can_be_detached() -> None:
    recorded = plan_adopt(
        domain(hostdev("01:00.0", "03:00.0"), hostdev("02:00.0", "04:00.0")), identify
    ).after
    by_hand = re.sub(
        r'\n    <hostdev(?:(?!</hostdev>)[^!])*bus="0x02"(?:(?!</hostdev>)[^!])*</hostdev>', "", recorded
    )
    assert len(parse_hostdevs(by_hand)) == 1
    assert attach(by_hand, CARD).notes == (
        "0000:02:00.0 is recorded, but no longer in the domain; virtpass domain adopt guest forgets it",
    )
    assert plan_detach(by_hand, [NIC[0]]).changes == ("forget what is recorded of 0000:02:00.0",)
    assert plan_adopt(by_hand, identify).changes == ("forget what is recorded of 0000:02:00.0",)


def test_a_device_that_is_not_there_cannot_be_detached() -> None:
    with pytest.raises(NotFoundError) as caught:
        plan_detach(domain(hostdev("01:00.0", "03:00.0")), [CARD[0], NIC[0]])
    assert "0000:02:00.0 is not in domain 'guest'" in caught.value.what


def test_a_card_does_not_stay_without_its_function_0() -> None:
    attached = attach(domain(), CARD, AUDIO).after
    with pytest.raises(RefusedError) as caught:
        plan_detach(attached, [CARD[0]])
    assert "0000:03:00.1" in caught.value.what
    assert guests(plan_detach(attached, [AUDIO[0]]).after) == {"01:00.0": "03:00.0"}


def test_adopting_records_what_is_there() -> None:
    xml = domain(hostdev("01:00.0", "03:00.0", managed=" managed='no'"), hostdev("02:00.0", "04:00.0"))
    plan = plan_adopt(xml, identify)
    assert plan.changes == (
        "set managed='yes' on hostdev 0000:01:00.0",
        "record 0000:01:00.0 as 1234:1111 (1af4:1100) serial 00aabbccddeeff11",
        "record 0000:02:00.0 as 8086:10d3 (8086:0000)",
    )
    assert plan_adopt(plan.after, identify).is_empty
    assert attach(plan.after, CARD, NIC).is_empty


def test_adopting_leaves_interfaces_to_libvirt() -> None:
    devices = """    <interface type='hostdev' managed='yes'><source>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/></source></interface>"""
    plan = plan_adopt(domain(hostdev("01:00.0", "03:00.0"), devices=devices), identify)
    assert plan.notes == ("0000:05:00.0 is a network interface of the domain; libvirt looks after it",)
    found = parse_passthrough(plan.after)
    assert found is not None
    assert [device.address for device in found.devices] == [CARD[0]]


def test_there_must_be_something_to_adopt() -> None:
    with pytest.raises(RefusedError) as caught:
        plan_adopt(domain(), identify)
    assert caught.value.reference == "no-hostdev"


@pytest.mark.parametrize("xml", ["", "x", "<domain/>", "<domain><name>n</name></domain>", "<network/>"])
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(UsageError):
        attach(xml, CARD)
    with pytest.raises(UsageError):
        plan_detach(xml, [CARD[0]])
    with pytest.raises(UsageError):
        plan_adopt(xml, identify)


def test_no_device_is_nothing_to_do() -> None:
    with pytest.raises(UsageError):
        attach(domain())
    with pytest.raises(UsageError):
        plan_detach(domain(), [])


ids = st.integers(0, 0xFFFF)
identities = st.builds(Identity, ids, ids, ids, ids, st.just("") | st.just("0123456789abcdef"))
new_devices = st.dictionaries(
    st.builds(PciAddress, st.integers(0, 1), st.integers(1, 3), st.integers(0, 1), st.integers(0, 7)),
    identities,
    min_size=1,
    max_size=10,
)
foreign = st.sampled_from(["", "<l:os xmlns:l='urn:l'><l:x/></l:os>", "<!-- a --><l:os xmlns:l='urn:l'/>"])
# The user's own hostdevs are of other cards (bus 0x20 and up) than those that are attached.
theirs = st.lists(st.integers(0x20, 0x28), unique=True, max_size=3)


@st.composite
def domains(draw: st.DrawFn) -> str:
    root = draw(st.sampled_from([Q35, I440FX, None]))
    ports = draw(st.integers(0, 6))
    slots = (
        [f"{bus:02x}:00.0" for bus in range(1, 12)]
        if root == Q35
        else [f"00:{slot:02x}.0" for slot in range(3, 12)]
    )
    used = draw(st.lists(st.sampled_from(slots), unique=True))
    free = [slot for slot in slots if slot not in used]
    hostdevs = [
        hostdev(f"{bus:02x}:00.0", free[index] if root and index < len(free) else "", managed=draw(managed))
        for index, bus in enumerate(draw(theirs))
    ]
    xml = domain(*hostdevs, root=root, ports=ports, used=used, metadata=draw(foreign))
    return xml if draw(st.booleans()) else re.sub(r">\s+<", "><", xml)


managed = st.sampled_from(["", " managed='no'", " managed='yes'"])


@pytest.mark.property
@given(domains(), new_devices, st.sampled_from([9_000_000, 11_003_000]))
def test_attaching_twice_is_attaching_once(
    xml: str, devices: dict[PciAddress, Identity], version: int
) -> None:
    once = plan_attach(xml, list(devices.items()), version)
    assert plan_attach(once.after, list(devices.items()), version).is_empty
    assert {device.source for device in parse_hostdevs(once.after)} >= devices.keys()
    recorded = parse_passthrough(once.after)
    assert recorded is not None
    assert {device.address: device.identity for device in recorded.devices} == devices


@pytest.mark.property
@given(domains(), new_devices, st.sampled_from([9_000_000, 11_003_000]))
def test_attaching_and_detaching_changes_nothing(
    xml: str, devices: dict[PciAddress, Identity], version: int
) -> None:
    attached = plan_attach(xml, list(devices.items()), version)
    assert not attached.is_empty
    assert plan_detach(attached.after, devices).after == attached.before == normalise(xml)


@pytest.mark.property
@given(domains(), new_devices)
def test_guest_slots_are_sound(xml: str, devices: dict[PciAddress, Identity]) -> None:
    before = {device.source: device.guest for device in parse_hostdevs(xml)}
    found = parse_hostdevs(plan_attach(xml, list(devices.items()), VERSION).after)
    assert {device.source: device.guest for device in found if device.source in before} == before
    placed = [device for device in found if device.source in devices and device.guest is not None]
    assert len({device.guest for device in placed}) == len(placed)
    slots: dict[tuple[int, int, int], list[int]] = {}
    for device in placed:
        assert device.guest is not None
        slots.setdefault(device.guest[:3], []).append(device.guest.function)
        assert {
            other.source[:3] for other in placed if other.guest and other.guest[:3] == device.guest[:3]
        } == {device.source[:3]}
    for slot, functions in slots.items():
        assert 0 in functions
        marked = any(device.is_multifunction for device in placed if device.guest == PciAddress(*slot, 0))
        assert marked is (len(functions) > 1)


@pytest.mark.property
@given(
    st.text(max_size=60)
    | st.builds(lambda text: f"<domain><name>{text}</name></domain>", st.text(max_size=30))
)
def test_any_text_is_planned_or_refused(xml: str) -> None:
    with pytest.raises(VirtpassError) as caught:
        attach(xml, CARD)
    assert caught.value.line.isprintable()


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_password_is_kept_and_not_shown(quote: str) -> None:
    password = f"passwd={quote}TOP SECRET{quote}"
    plan = attach(
        domain(devices=f"<graphics type='vnc' port='-1' {password} passwdValidTo='2030-01-01'/>"), CARD
    )
    assert "TOP SECRET" in plan.after
    assert plan.diff
    assert "SECRET" not in plan.diff
    changed = replace(plan, before=plan.before.replace("SECRET", "OTHER"))
    assert "OTHER" in changed.before
    assert "OTHER" not in changed.diff


def test_cookies_of_a_network_disk_are_not_shown_and_no_line_moves() -> None:
    disk = (
        "<disk type='network' device='disk'><source protocol='https' name='x'>"
        "<host name='example.org' port='443'/>\n"
        "<cookies><cookie name='empty'/>\n"
        "<cookie name='first'>TOP\nSECRET &lt;1&gt;</cookie><cookie name='second'>SECRET</cookie></cookies>\n"
        "</source><target dev='vda'/></disk>"
    )
    plan = attach(domain(devices=disk), CARD)
    assert "SECRET" in plan.after
    other = replace(plan, before=plan.before.replace("example.org", "example.net").replace("SECRET", "OTHER"))
    assert "SECRET" not in other.diff
    assert "OTHER" not in other.diff
    lines = other.diff.splitlines()
    # What follows the line that differs is the same on both sides, with all of its lines.
    where = next(number for number, line in enumerate(lines) if line.startswith("+") and "example" in line)
    assert lines[where + 1 : where + 4] == [
        ' <cookies><cookie name="empty"/>',
        ' <cookie name="first">***',
        ' </cookie><cookie name="second">***</cookie></cookies>',
    ]
