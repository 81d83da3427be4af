"""Domain XML against libvirt's real QEMU driver: it assigns guest addresses and formats what it was given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import topology
from .machine import Machine, Result
from .virtpass import read_json, told, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, AUDIO, NIC, TWIN = topology.CARD, topology.CARD_AUDIO, topology.NIC, topology.SECOND_NIC
NAME = "xml"

XML = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>xml</name>
  <uuid>3e9c1f5a-7b0d-4c6e-8f21-5a4b3c2d1e0f</uuid>
  <title>it's &lt;a&gt; title</title>
  <metadata><o:info xmlns:o='urn:other'><o:note>kept</o:note></o:info></metadata>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='{machine}'>hvm</type></os>
  <devices><video><model type='vga'/></video>{devices}</devices>
  <qemu:commandline><qemu:arg value='-no-reboot'/></qemu:commandline>
</domain>
"""


@pytest.fixture(params=["q35", "pc"])
def kind(machine: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """The kind of machine of a domain that was defined with as little as a user writes."""
    define(machine, str(request.param))
    yield str(request.param)
    machine.run(["virsh", "undefine", NAME]).check()


def define(machine: Machine, kind: str, devices: str = "") -> None:
    machine.run(["virsh", "define", "/dev/stdin"], XML.format(machine=kind, devices=devices).encode()).check()


def text(machine: Machine) -> str:
    return machine.run(["virsh", "dumpxml", "--inactive", NAME]).check().text


def change(machine: Machine, verb: str, *addresses: str) -> Result:
    return virtpass(machine, "domain", verb, NAME, *addresses).check()


def places(machine: Machine) -> dict[str, str]:
    """Return the guest addresses by host address."""
    shown = read_json(machine, "domain", "show", NAME)
    return {device["address"]: device["guest_address"] for device in shown["devices"]}


def test_a_card_sits_in_one_guest_slot(machine: Machine, kind: str) -> None:
    change(machine, "attach", CARD)
    found = places(machine)
    slot, function = found[CARD].split(".")
    assert function == "0"
    assert found[AUDIO] == f"{slot}.1"
    # Behind a root port where the machine has PCI Express, else on the only bus.
    assert slot.startswith("0000:00:") is (kind == "pc")


def test_attaching_and_detaching_gives_the_xml_back(machine: Machine, kind: str) -> None:
    before = text(machine)
    devices = (CARD, NIC, TWIN, topology.NVME)
    change(machine, "attach", *devices)
    attached = text(machine)
    assert "nothing to do" in change(machine, "attach", *devices).error_text
    assert "nothing to do" in change(machine, "adopt").error_text
    assert text(machine) == attached
    assert len(set(places(machine).values())) == 5
    change(machine, "detach", *devices)
    assert text(machine) == before


def test_cards_may_come_and_go_in_any_order(machine: Machine, kind: str) -> None:
    before = text(machine)
    for address in (CARD, NIC, TWIN):
        change(machine, "attach", address)
    kept = places(machine)[NIC]
    change(machine, "detach", CARD)
    change(machine, "attach", topology.NVME)
    assert places(machine)[NIC] == kept
    for address in (NIC, topology.NVME, TWIN):
        change(machine, "detach", address)
    assert text(machine) == before


def test_devices_that_were_added_by_hand_are_adopted_where_they_are(machine: Machine, kind: str) -> None:
    """As virt-manager writes them, in decimal; as people write them, in octal and without managed."""
    by_hand = (
        "<hostdev mode='subsystem' type='pci' managed='yes'>"
        "<source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>"
        "<hostdev mode='subsystem' type='pci'>"
        "<source><address domain='0' bus='01' slot='00' function='1'/></source></hostdev>"
    )
    define(machine, kind, by_hand)
    before = places(machine)
    assert set(before) == {CARD, AUDIO}
    adopted = change(machine, "adopt")
    assert places(machine) == before
    assert "separate devices" in adopted.error_text
    assert text(machine).count("managed='yes'") == 2
    assert read_json(machine, "domain", "show", NAME)["ours"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("attach", "nobody", NIC), 3, "nobody"),
        (("attach", NAME, "0000:1e:00.0"), 3, "there is no PCI device 0000:1e:00.0"),
        (("attach", NAME, topology.BRIDGE), 4, "bridge"),
        (("attach", NAME, topology.BOOT_DISK), 4, "holds the file system /"),
        (("attach", NAME, "zz:00.0"), 2, "is not a PCI address"),
        (("detach", NAME, NIC), 3, NIC),
        (("adopt", NAME), 4, "PCI"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    machine: Machine, kind: str, arguments: tuple[str, ...], status: int, words: str
) -> None:
    before = text(machine)
    refused = virtpass(machine, "domain", *arguments)
    assert (refused.status, refused.text) == (status, "")
    assert len(told(refused)) == 1
    assert words in refused.error_text
    assert text(machine) == before


def test_a_running_domain_is_not_changed(machine: Machine, kind: str) -> None:
    machine.run(["virsh", "start", NAME], timeout=120).check()
    before = text(machine)
    refused = virtpass(machine, "domain", "attach", NAME, NIC)
    machine.run(["virsh", "destroy", NAME], timeout=60).check()
    assert refused.status == 4
    assert "shut" in refused.error_text
    assert text(machine) == before


def test_someone_without_permission_is_told_so(machine: Machine, kind: str) -> None:
    before = text(machine)
    refused = machine.run(
        ["setpriv", "--reuid", "nobody", "--clear-groups", "virtpass", "domain", "attach", NAME, NIC]
    )
    assert refused.status == 5, refused
    assert len(told(refused)) == 1
    assert text(machine) == before
    shown = machine.run(["setpriv", "--reuid", "nobody", "--clear-groups", "virtpass", "devices"])
    assert shown.status == 0, shown
    assert CARD in shown.text
