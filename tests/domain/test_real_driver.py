"""Our XML and libvirt's QEMU driver, in this process, without a daemon: it assigns real guest addresses.

Needs libvirt_driver_qemu and a QEMU binary (Debian: libvirt-daemon-driver-qemu, libvirt-daemon-system,
qemu-system-x86); the lab has them in any case.
"""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.simulation import AUDIO, CARD, NIC, SPARE, TWIN, SimulatedHost, desktop
from virtpass.domain.hostdev import Hostdev, parse_hostdevs
from virtpass.operations import domains
from virtpass.system.errors import VirtpassError
from virtpass.system.libvirt import Connection

libvirt = pytest.importorskip("libvirt")

QEMU = "/usr/bin/qemu-system-x86_64"
SETTINGS = (
    'stdio_handler = "file"\nuser = "root"\ngroup = "root"\nsecurity_driver = "none"\n'
    "cgroup_controllers = [ ]\nnamespaces = [ ]\n"
)


@pytest.fixture(scope="module")
def embedded() -> Iterator[Connection]:
    """Open the driver. One root for a process, and a short one: sockets lie below it."""
    if os.geteuid() != 0 or not os.path.exists(QEMU):
        pytest.skip("needs root and QEMU")
    root = Path(tempfile.mkdtemp(prefix="vp"))
    (root / "etc").mkdir()
    (root / "etc" / "qemu.conf").write_text(SETTINGS)
    libvirt.virEventRegisterDefaultImpl()

    def run_events() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=run_events, daemon=True).start()
    try:
        connection = Connection.open(f"qemu:///embed?root={root}")
    except VirtpassError as error:
        shutil.rmtree(root)
        pytest.skip(f"libvirt's QEMU driver is not here: {error.line}")
    with connection:
        yield connection
    shutil.rmtree(root)


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    return desktop(str(tmp_path / "host"))


@pytest.fixture(params=["q35", "pc"])
def guest(embedded: Connection, request: pytest.FixtureRequest) -> Iterator[str]:
    """A domain that was defined with as little as a user writes."""
    embedded.define(
        f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>lab</name>
        <metadata><l:libosinfo xmlns:l='http://libosinfo.org/xmlns/libvirt/domain/1.0'>
        <l:os id='http://debian.org/debian/12'/></l:libosinfo></metadata><memory unit='MiB'>64</memory>
        <os><type arch='x86_64' machine='{request.param}'>hvm</type></os>
        <devices><emulator>{QEMU}</emulator><video><model type='vga'/></video></devices>
        <seclabel type='none'/><qemu:commandline><qemu:arg value='-no-reboot'/></qemu:commandline></domain>"""
    )
    yield str(request.param)
    cast(Any, embedded)._handle.lookupByName("lab").undefine()


def hostdevs(connection: Connection) -> dict[str, Hostdev]:
    return {str(device.source): device for device in parse_hostdevs(connection.domain("lab").inactive_xml())}


def test_a_card_sits_in_one_guest_slot(embedded: Connection, host: SimulatedHost, guest: str) -> None:
    domains.attach(embedded, host, "lab", [CARD])
    found = hostdevs(embedded)
    card, audio = found[str(CARD)], found[str(AUDIO)]
    assert card.guest is not None
    assert audio.guest is not None
    assert card.guest[:3] == audio.guest[:3]
    assert (card.guest.function, audio.guest.function) == (0, 1)
    assert (card.is_multifunction, audio.is_multifunction) == (True, False)
    assert (card.guest.bus == 0) is (guest == "pc")


def test_attaching_and_detaching_gives_the_xml_back(
    embedded: Connection, host: SimulatedHost, guest: str
) -> None:
    before = embedded.domain("lab").inactive_xml()
    devices = [CARD, NIC, TWIN, SPARE]
    assert domains.attach(embedded, host, "lab", devices).is_applied
    assert domains.attach(embedded, host, "lab", devices).plan.is_empty
    assert domains.adopt(embedded, host, "lab").plan.is_empty
    assert len({device.guest for device in hostdevs(embedded).values()}) == 5
    domains.detach(embedded, host, "lab", devices)
    assert embedded.domain("lab").inactive_xml() == before


def test_cards_may_come_and_go_in_any_order(embedded: Connection, host: SimulatedHost, guest: str) -> None:
    before = embedded.domain("lab").inactive_xml()
    for address in (CARD, NIC, TWIN):
        domains.attach(embedded, host, "lab", [address])
    kept = hostdevs(embedded)[str(NIC)]
    domains.detach(embedded, host, "lab", [CARD])
    domains.attach(embedded, host, "lab", [SPARE])
    assert hostdevs(embedded)[str(NIC)] == kept
    for address in (NIC, SPARE, TWIN):
        domains.detach(embedded, host, "lab", [address])
    assert embedded.domain("lab").inactive_xml() == before


def test_addresses_that_libvirt_chose_are_kept(embedded: Connection, host: SimulatedHost, guest: str) -> None:
    text = embedded.domain("lab").inactive_xml()
    by_hand = "".join(
        f"<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='{address.bus}' slot='0' "
        f"function='{address.function}'/></source></hostdev>"
        for address in (CARD, AUDIO)
    )
    embedded.define(text.replace("</devices>", by_hand + "</devices>"))
    before = {source: device.guest for source, device in hostdevs(embedded).items()}
    result = domains.adopt(embedded, host, "lab")
    assert "separate devices" in result.notes[0]
    assert {source: device.guest for source, device in hostdevs(embedded).items()} == before
    assert all(device.is_managed for device in hostdevs(embedded).values())
