"""Devices that libvirt detaches and reattaches, several at once, on a simulated kernel."""

import os
import signal
from collections.abc import Callable
from types import FrameType

import pytest

from tests.simulation import AUDIO, CARD, NIC, SimulatedHost
from virtpass.operations import node_devices
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host
from virtpass.system.libvirt import Addressed, Connection

HOME = {CARD: "nouveau", AUDIO: "snd_hda_intel"}


class Libvirt(Connection):
    """What the two calls of libvirt do to drivers; each may be made to fail, or to lie."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self.calls: list[tuple[str, PciAddress]] = []
        self.fails: set[tuple[str, PciAddress]] = set()
        self.lies: set[tuple[str, PciAddress]] = set()
        self.meanwhile: dict[tuple[str, PciAddress], Callable[[], None]] = {}

    def detach_node_device(self, address: Addressed) -> None:
        self._act("detach", address)

    def reattach_node_device(self, address: Addressed) -> None:
        self._act("reattach", address)

    def _act(self, call: str, address: Addressed) -> None:
        assert isinstance(address, PciAddress)
        driver = "vfio-pci" if call == "detach" else HOME[address]
        self.calls.append((call, address))
        if (call, address) in self.fails:
            raise FailedError("libvirt", f"libvirt would not {call} {address}")
        if (call, address) in self.lies:
            return
        path = sysfs.device_path(address)
        self._host.write_attribute(f"{path}/driver_override", driver, 1)
        if bound := sysfs.driver(self._host, address):
            self._host.write_attribute(f"{sysfs.DRIVERS}/{bound}/unbind", str(address), 1)
        self._host.write_attribute("/sys/bus/pci/drivers_probe", str(address), 1)
        self.meanwhile.get((call, address), lambda: None)()


def drivers(host: Host) -> dict[PciAddress, str | None]:
    return {address: sysfs.driver(host, address) for address in HOME}


@pytest.fixture
def libvirt(host: SimulatedHost) -> Libvirt:
    HOME.update({address: sysfs.driver(host, address) or "" for address in (CARD, AUDIO)})
    return Libvirt(host)


def test_a_card_goes_with_all_its_functions_and_comes_back(host: SimulatedHost, libvirt: Libvirt) -> None:
    before = drivers(host)
    assert node_devices.detach(libvirt, host, [CARD, AUDIO]) == [AUDIO, CARD]
    assert drivers(host) == {CARD: "vfio-pci", AUDIO: "vfio-pci"}
    assert node_devices.detach(libvirt, host, [CARD, AUDIO, CARD]) == []
    assert node_devices.reattach(libvirt, host, [AUDIO, CARD]) == [CARD, AUDIO]
    assert drivers(host) == before
    assert node_devices.reattach(libvirt, host, [AUDIO, CARD]) == []


def test_nothing_moves_when_one_of_them_is_refused(host: SimulatedHost, libvirt: Libvirt) -> None:
    before = drivers(host)
    route = "\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0"
    host.put("/proc/net/route", f"Iface\tDestination\nenp2s0{route}\n")
    host.link("/sys/class/net/enp2s0", f"{host.real_path(sysfs.device_path(NIC))}/net/enp2s0")
    with pytest.raises(RefusedError, match="carries the default route"):
        node_devices.detach(libvirt, host, [CARD, NIC])
    assert libvirt.calls == []
    assert drivers(host) == before


def test_a_card_that_shows_the_console_stays(host: SimulatedHost, libvirt: Libvirt) -> None:
    """As at the start of a domain with display=refuse."""
    framebuffer = "/sys/devices/platform/efi-framebuffer.0"
    drivers_of_framebuffers = "/sys/bus/platform/drivers/efi-framebuffer"
    host.put(f"{framebuffer}/modalias", "platform:efi-framebuffer\n")
    host.link("/sys/bus/platform/devices/efi-framebuffer.0", framebuffer)
    host.link(f"{drivers_of_framebuffers}/efi-framebuffer.0", framebuffer)
    host.put("/proc/iomem", "f8000000-f87fffff : efifb\n")
    host.put(f"{sysfs.device_path(CARD)}/resource", "0xf8000000 0xf8ffffff 0x42208\n")
    before = drivers(host)
    with pytest.raises(RefusedError, match=f"{CARD} shows the console of this host") as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert "display=hand-over" in error.value.remedy
    assert (libvirt.calls, drivers(host)) == ([], before)
    assert node_devices.detach(libvirt, host, [AUDIO]) == [AUDIO]


@pytest.mark.parametrize("way", ["fails", "lies"])
def test_what_has_gone_comes_back_when_another_does_not_go(
    host: SimulatedHost, libvirt: Libvirt, way: str
) -> None:
    before = drivers(host)
    getattr(libvirt, way).add(("detach", CARD))
    with pytest.raises(FailedError, match=str(CARD)) as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert "put back" not in error.value.what
    assert drivers(host) == before


def test_it_is_said_what_could_not_be_put_back(host: SimulatedHost, libvirt: Libvirt) -> None:
    libvirt.fails |= {("detach", CARD), ("reattach", AUDIO)}
    with pytest.raises(FailedError) as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert error.value.what == (
        f"libvirt would not detach {CARD}; and not everything could be put back:"
        f" libvirt would not reattach {AUDIO}"
    )


def test_each_is_tried_on_the_way_back(host: SimulatedHost, libvirt: Libvirt) -> None:
    home = drivers(host)[AUDIO]
    node_devices.detach(libvirt, host, [CARD, AUDIO])
    libvirt.fails.add(("reattach", CARD))
    with pytest.raises(FailedError, match=f"libvirt would not reattach {CARD}"):
        node_devices.reattach(libvirt, host, [CARD, AUDIO])
    assert drivers(host) == {CARD: "vfio-pci", AUDIO: home}


def fault() -> None:
    raise ZeroDivisionError("a fault")


def interrupt() -> None:
    raise KeyboardInterrupt


def passed_on(number: int, frame: FrameType | None) -> None:
    """Handle a signal that should have been held."""


def end_of_session() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("where", [AUDIO, CARD])
@pytest.mark.parametrize(
    ("what", "comes_out"),
    [(fault, ZeroDivisionError), (interrupt, KeyboardInterrupt), (end_of_session, KeyboardInterrupt)],
)
def test_whatever_stops_it_all_are_where_they_were(
    host: SimulatedHost,
    libvirt: Libvirt,
    where: PciAddress,
    what: Callable[[], None],
    comes_out: type[BaseException],
) -> None:
    before = drivers(host)
    libvirt.meanwhile["detach", where] = what
    # Otherwise a signal that is not held would end the tests.
    handler = signal.signal(signal.SIGTERM, passed_on)
    try:
        with pytest.raises(comes_out):
            node_devices.detach(libvirt, host, [CARD, AUDIO])
        kept = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert drivers(host) == before
    assert kept is passed_on


def test_who_stops_it_is_told_what_could_not_be_put_back(host: SimulatedHost, libvirt: Libvirt) -> None:
    libvirt.meanwhile["detach", CARD] = interrupt
    libvirt.fails.add(("reattach", AUDIO))
    with pytest.raises(FailedError) as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert error.value.what == (
        f"interrupted; and not everything could be put back: libvirt would not reattach {AUDIO}"
    )


def unbind(host: SimulatedHost, address: PciAddress) -> None:
    host.write_attribute(f"{sysfs.DRIVERS}/{sysfs.driver(host, address)}/unbind", str(address), 1)


def test_it_is_said_when_a_device_gets_a_driver_that_it_did_not_have(
    host: SimulatedHost, libvirt: Libvirt
) -> None:
    unbind(host, AUDIO)
    libvirt.fails.add(("detach", CARD))
    with pytest.raises(FailedError) as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert error.value.what == (
        f"libvirt would not detach {CARD}; and not everything could be put back:"
        f" {AUDIO} is bound to {HOME[AUDIO]} now, and was bound to none"
    )


def test_a_device_without_a_driver_that_did_not_go_stays_without(
    host: SimulatedHost, libvirt: Libvirt
) -> None:
    unbind(host, AUDIO)
    libvirt.fails.add(("detach", AUDIO))
    with pytest.raises(FailedError) as error:
        node_devices.detach(libvirt, host, [CARD, AUDIO])
    assert error.value.what == f"libvirt would not detach {AUDIO}"
    assert sysfs.driver(host, AUDIO) is None
