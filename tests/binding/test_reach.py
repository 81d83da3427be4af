"""Whether a host without its screens can be reached: which screens it has, and who else can log in."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.simulation import AUDIO, CARD, NIC, SimulatedHost
from virtpass.binding import reach
from virtpass.pci.address import PciAddress
from virtpass.system.errors import RefusedError

DEVICES = [CARD, AUDIO]
SLICE = "/sys/fs/cgroup/system.slice"
WANTS = "/etc/systemd/system/{}.target.wants"


@pytest.fixture
def host(host: SimulatedHost) -> SimulatedHost:
    """A host with systemd, whose card has its only screen."""
    host.put(f"{SLICE}/cgroup.procs")
    show(host, "/sys/class/drm/card0", CARD)
    return host


def show(host: SimulatedHost, node: str, device: PciAddress) -> None:
    host.link(node, f"{host.real_path(f'/sys/bus/pci/devices/{device}')}/drm/{node.rpartition('/')[2]}")


def are_last(host: SimulatedHost, devices: list[PciAddress]) -> bool:
    """Tell whether there is a warning with a hand-over and, just then, a refusal without."""
    told = reach.warning(host, devices)
    if not told:
        assert reach.refuse_last(host, devices) == ""
        return False
    assert "no SSH server was found" in told
    with pytest.raises(RefusedError, match="the last screen of this host would go") as refused:
        reach.refuse_last(host, devices)
    assert refused.value.reference == "last-console"
    assert refused.value.remedy.startswith("start an SSH server, or ")
    return True


def test_the_last_screen(host: SimulatedHost) -> None:
    assert are_last(host, DEVICES)
    assert not are_last(host, [NIC])


def test_a_card_that_shows_nothing(host: SimulatedHost) -> None:
    assert not are_last(host, [NIC, AUDIO])


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (f"{SLICE}/ssh.service/cgroup.procs", "9\n"),
        (f"{SLICE}/system-serial\\x2dgetty.slice/serial-getty@ttyS0.service/x", ""),
        ("/proc/net/tcp", "head\n  0: 00000000:0016 00000000:0000 0A 0\n"),
        ("/proc/net/tcp6", "head\n  0: 00000000000000000000000000000000:0016 0:0000 0A 0\n"),
        # A domain may start by itself before these do.
        (f"{WANTS.format('multi-user')}/sshd.service", ""),
        # On another port, perhaps.
        (f"{WANTS.format('sockets')}/ssh.socket", ""),
        (f"{WANTS.format('sockets')}/cockpit.socket", ""),
        (f"{WANTS.format('getty')}/serial-getty@ttyAMA0.service", ""),
        ("/run/systemd/generator/getty.target.wants/serial-getty@ttyS0.service", ""),
    ],
)
def test_another_way_to_the_host_is_enough(host: SimulatedHost, path: str, content: str) -> None:
    host.put(path, content)
    assert not are_last(host, DEVICES)


@pytest.mark.parametrize(
    "line", ["0100007F:0016 00000000:0000 0A", "00000000:0016 00000000:0000 01", "00000000:1600 0:0 0A"]
)
def test_a_server_for_the_host_alone_and_another_port_are_none(host: SimulatedHost, line: str) -> None:
    host.put("/proc/net/tcp", f"head\n  0: {line} 0\n")
    assert are_last(host, DEVICES)


@pytest.mark.parametrize("unit", ["getty@tty1.service", "ssh-agent.service", "sshguard.service"])
def test_other_services_are_none(host: SimulatedHost, unit: str) -> None:
    host.put(f"{WANTS.format('multi-user')}/{unit}")
    assert are_last(host, DEVICES)


def test_another_screen_is_enough(host: SimulatedHost) -> None:
    show(host, "/sys/class/drm/card1", NIC)
    assert not are_last(host, DEVICES)


@pytest.mark.parametrize(("driver", "counts"), [("nvidia", True), ("vfio-pci", False), (None, False)])
def test_another_card_counts_as_long_as_the_host_has_a_driver_for_it(
    host: SimulatedHost, driver: str | None, counts: bool
) -> None:
    """NVIDIA's driver has no node without modesetting."""
    host.put(f"/sys/bus/pci/devices/{NIC}/class", "0x030000\n")
    os.unlink(host.path(f"/sys/bus/pci/devices/{NIC}/driver"))
    if driver:
        host.link(f"/sys/bus/pci/devices/{NIC}/driver", f"/sys/bus/pci/drivers/{driver}")
    assert are_last(host, DEVICES) is not counts


@pytest.mark.parametrize("node", ["graphics/fb0", "drm/card1"])
def test_a_framebuffer_of_the_firmware_over_another_card_is_enough(host: SimulatedHost, node: str) -> None:
    """Before Linux 6.9 it lies below a platform device, not below the card."""
    host.link(f"/sys/class/{node}", f"/sys/devices/platform/simple-framebuffer.0/{node}")
    assert not are_last(host, DEVICES)


def test_a_node_that_shows_nothing_is_no_screen(host: SimulatedHost) -> None:
    host.link("/sys/class/drm/card1", "/sys/devices/faux/vkms/drm/card1")
    assert are_last(host, DEVICES)


def test_without_systemd_there_is_a_warning_and_no_more(host: SimulatedHost) -> None:
    shutil.rmtree(host.path(SLICE))
    told = reach.refuse_last(host, DEVICES)
    assert told == reach.warning(host, DEVICES) != ""
