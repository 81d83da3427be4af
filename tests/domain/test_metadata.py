"""Our element in the domain's XML."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.domain.documents import domain, pci
from virtpass.binding.policy import KNOWN_POLICY, NAMESPACE, Policy, parse_policy
from virtpass.domain.document import normalise, parse_document, serialise
from virtpass.domain.metadata import (
    Passthrough,
    RecordedDevice,
    parse_passthrough,
    template_policy,
    write_passthrough,
)
from virtpass.domain.templates import packaged_templates
from virtpass.hook import request
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

TEMPLATE = packaged_templates().metadata
CARD = RecordedDevice(pci("01:00.0"), Identity(0x1234, 0x1111, 0x1AF4, 0x1100, "00aabbccddeeff11"))
AUDIO = RecordedDevice(pci("01:00.1"), Identity(0x8086, 0x2668, 0x1AF4, 0x1100))
DEVICE = (
    "<p:device address='0000:01:00.0' vendor='0x1234' device='0x1111' subsystem-vendor='0x1af4' "
    "subsystem-device='0x1100'/>"
)


def written(passthrough: Passthrough | None, xml: str) -> str:
    root = parse_document(xml)
    write_passthrough(root, passthrough, TEMPLATE)
    return serialise(root)


def element(content: str, attributes: str = "") -> str:
    return domain(metadata=f"<p:passthrough xmlns:p='{NAMESPACE}'{attributes}>{content}</p:passthrough>")


def test_the_element_as_it_is_written() -> None:
    before = domain()
    after = written(Passthrough(devices=(CARD, AUDIO), root_ports=(4,)), before)
    expected = """\
  <metadata>
    <virtpass:passthrough xmlns:virtpass="urn:virtpass:passthrough:1">
      <virtpass:policy display="refuse"/>
      <virtpass:device address="0000:01:00.0" vendor="0x1234" device="0x1111" subsystem-vendor="0x1af4" \
subsystem-device="0x1100" serial="00aabbccddeeff11"/>
      <virtpass:device address="0000:01:00.1" vendor="0x8086" device="0x2668" subsystem-vendor="0x1af4" \
subsystem-device="0x1100"/>
      <virtpass:root-port index="4"/>
    </virtpass:passthrough>
  </metadata>
"""
    title = "  <title>A guest</title>\n"
    assert after == normalise(before).replace(title, title + expected)


def test_a_domain_without_it() -> None:
    foreign = "<l:libosinfo xmlns:l='http://libosinfo.org/x'><l:os id='x'/></l:libosinfo>"
    assert parse_passthrough(domain()) is None
    assert parse_passthrough(domain(metadata=foreign)) is None
    assert parse_passthrough(domain(metadata="<passthrough xmlns='urn:virtpass:passthrough:2'/>")) is None


@pytest.mark.parametrize("prefix", ["virtpass:", "v:", ""])
def test_the_prefix_does_not_count(prefix: str) -> None:
    declaration = f"xmlns:{prefix.rstrip(':')}" if prefix else "xmlns"
    text = f"<p:passthrough xmlns:p='{NAMESPACE}'><p:policy display='refuse'/>{DEVICE}</p:passthrough>"
    text = text.replace("xmlns:p", declaration).replace("p:", prefix)
    assert parse_passthrough(domain(metadata=text)) == Passthrough(
        Policy("refuse"), (RecordedDevice(CARD.address, Identity(*CARD.identity[:4])),)
    )


def test_elements_of_others_and_comments_stay() -> None:
    foreign = "<l:os xmlns:l='urn:l'><!-- theirs --><l:x/></l:os>"
    before = domain(metadata=foreign)
    after = written(Passthrough(devices=(CARD,)), before)
    assert "<!-- theirs -->" in after
    assert written(None, after) == normalise(before)
    with_comment = after.replace("<virtpass:policy", "<!-- mine --><virtpass:policy")
    assert "<!-- mine -->" in written(Passthrough(devices=(AUDIO,)), with_comment)


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (element("<p:policy display='ask'/>"), ["display=ask", "display=refuse|hand-over"]),
        (element("<p:policy wait='015'/>"), ["wait=015", "wait=0..300"]),
        (element("<p:policy screen='x'/>"), ["'screen' of policy", "display, governor"]),
        (element("<p:policy/><p:policy/>"), ["policy appears twice"]),
        (element("<p:command/>"), ["'command'", "known: device, policy, root-port"]),
        (element("<other/>"), ["'other'"]),
        (element(DEVICE + DEVICE), ["a device appears twice"]),
        (element(DEVICE.replace("/>", "><p:x/></p:device>")), ["device has elements in it"]),
        (element(DEVICE.replace("/>", " run='x'/>")), ["'run' of device"]),
        (element(DEVICE.replace("0000:01:00.0", "1:0.0")), ["'1:0.0' is not a PCI address"]),
        (element(DEVICE.replace(" vendor='0x1234'", "")), ["'' is not a PCI id"]),
        (element(DEVICE.replace("0x1234", "1234")), ["'1234' is not a PCI id"]),
        (element(DEVICE.replace("0x1234", "0x12345")), ["'0x12345' is not a PCI id"]),
        (element(DEVICE.replace("/>", " serial='abc'/>")), ["'abc' is not a PCI serial number"]),
        (element("<p:root-port/>"), ["root port '' is not a number"]),
        (element("", " version='2'"), ["'version' of passthrough", "known: none"]),
        (
            domain(metadata=f"<passthrough xmlns='{NAMESPACE}'/><passthrough xmlns='{NAMESPACE}'/>"),
            ["the element appears twice"],
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(xml: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passthrough(xml)
    for word in words:
        assert word in caught.value.line
    assert caught.value.remedy


addresses = st.builds(
    PciAddress, st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7)
)
ids = st.integers(0, 0xFFFF)
identities = st.builds(
    Identity, ids, ids, ids, ids, st.just("") | st.from_regex(r"[0-9a-f]{16}", fullmatch=True)
)
policies = st.builds(
    Policy, *(st.sampled_from(values) for values in KNOWN_POLICY.values()), wait=st.integers(0, 300)
)
passthroughs = st.builds(
    Passthrough,
    policy=policies,
    devices=st.lists(
        st.builds(RecordedDevice, addresses, identities), max_size=6, unique_by=lambda device: device.address
    ).map(tuple),
    root_ports=st.lists(st.integers(1, 255), unique=True, max_size=4).map(lambda ports: tuple(sorted(ports))),
)


@pytest.mark.property
@given(passthroughs)
def test_what_is_written_is_read_back(passthrough: Passthrough) -> None:
    assert parse_passthrough(written(passthrough, domain())) == passthrough


@pytest.mark.property
@given(passthroughs, passthroughs)
def test_the_last_word_counts(first: Passthrough, second: Passthrough) -> None:
    found = parse_passthrough(written(second, written(first, domain())))
    assert found is not None
    assert set(found.devices) == set(second.devices)
    assert set(found.root_ports) == set(second.root_ports)
    assert found.policy == second.policy


@pytest.mark.property
@given(passthroughs)
def test_the_hook_reads_the_same(passthrough: Passthrough) -> None:
    read = request.parse_request(written(passthrough, domain()).encode())
    assert read.is_ours
    assert parse_policy(read.policy) == passthrough.policy
    assert read.identities == {device.address: device.identity for device in passthrough.devices}


def policy_element(xml: str) -> str | None:
    """Return our policy element as it stands in a domain."""
    found = re.search(r"<\w+:policy.*?/>", xml)
    return found and found[0]


def with_policy(xml: str, policy: Policy) -> str:
    return written(Passthrough(policy, (CARD,)), xml)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    xml = with_policy(domain(), Policy(huge_pages="yes", wait=30))
    assert policy_element(xml) == '<virtpass:policy display="refuse" huge-pages="yes" wait="30"/>'
    xml = with_policy(xml, Policy(display="hand-over", wait=30))
    assert policy_element(xml) == '<virtpass:policy display="hand-over" wait="30"/>'


@pytest.mark.property
@given(policies)
def test_a_policy_that_goes_back_leaves_the_same_bytes(policy: Policy) -> None:
    before = with_policy(domain(), Policy())
    there = with_policy(before, policy)
    assert with_policy(there, Policy()) == before


@pytest.mark.parametrize(
    "content",
    ["", "<p:policy/>", "<p:policy wait='15' display='refuse'/>", "<p:policy governor='keep'/><!-- mine -->"],
)
@pytest.mark.parametrize("device", ["", DEVICE])
def test_defaults_that_are_written_out_or_not_stay_as_they_are(content: str, device: str) -> None:
    xml = element(content + device)
    found = parse_passthrough(xml)
    assert found is not None
    assert written(found, xml) == normalise(xml)


def test_a_policy_that_was_not_there_goes_with_its_last_value() -> None:
    xml = element(DEVICE)
    found = parse_passthrough(xml)
    assert found is not None
    there = written(replace(found, policy=Policy(wait=0)), xml)
    assert policy_element(there) == '<p:policy wait="0"/>'
    assert written(found, there) == normalise(xml)


def test_what_the_template_says_stays_said() -> None:
    template = TEMPLATE.replace('display="refuse"', 'governor="performance" wait="15"')
    assert template != TEMPLATE
    root = parse_document(domain())
    write_passthrough(root, Passthrough(template_policy(template), (CARD,)), template)
    assert policy_element(serialise(root)) == '<virtpass:policy governor="performance" wait="15"/>'
    write_passthrough(root, Passthrough(Policy(wait=1), (CARD,)), template)
    assert policy_element(serialise(root)) == '<virtpass:policy governor="keep" wait="1"/>'
    write_passthrough(root, Passthrough(Policy(), (CARD,)), template)
    assert policy_element(serialise(root)) == '<virtpass:policy governor="keep" wait="15"/>'


def test_the_example_in_the_documentation_is_understood() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metadata.md").read_text()
    example = text.partition("```xml\n")[2].partition("```")[0]
    found = parse_passthrough(domain().replace("  <memory", f"{example}  <memory", 1))
    assert found is not None
    assert [str(device.address) for device in found.devices] == ["0000:01:00.0", "0000:01:00.1"]
    assert found.root_ports == (5,)
