"""The devices as they are shown: what no start would touch."""

import os

from tests.simulation import AUDIO, CARD, GUEST, NIC, PORT, SimulatedHost
from virtpass.binding import engine
from virtpass.binding.journal import Journal
from virtpass.cli.devices import device_json, verdict
from virtpass.operations.devices import DeviceReport, list_devices, show_device
from virtpass.pci.address import PciAddress
from virtpass.pci.isolation import Level

WORDS = "a driver hangs with it until the next boot"


def shown(host: SimulatedHost, address: PciAddress) -> DeviceReport:
    (found,) = [one for one in list_devices(host) if one.device.address == address]
    return found


def test_a_device_with_which_a_driver_hangs_is_not_ready(host: SimulatedHost) -> None:
    assert shown(host, NIC).verdict.level is Level.READY
    engine.mark_stuck(host, NIC, "unbind")
    found = shown(host, NIC)
    assert found.verdict.level is Level.BLOCKED
    assert verdict(found) == f"blocked: {WORDS}"
    assert device_json(found)["reasons"] == [{"id": "stuck", "text": WORDS}]
    assert show_device(host, NIC).report == found
    assert shown(host, CARD).verdict.level is Level.READY


def test_one_that_is_lent_still_is_shown_as_both(host: SimulatedHost) -> None:
    """The record of the domain stays until the next boot, too."""
    journal = Journal(host, GUEST, "guest")
    engine.lend(host, journal, engine.homes(host, [NIC]))
    engine.mark_stuck(host, NIC, "unbind")
    assert verdict(shown(host, NIC)) == f"lent to guest; {WORDS}"


def test_that_it_does_not_answer_is_no_second_reason(host: SimulatedHost) -> None:
    host.put(f"/sys/bus/pci/devices/{NIC}/config", b"\xff" * 64)
    assert shown(host, NIC).verdict.level is Level.NEVER
    engine.mark_stuck(host, NIC, "unbind")
    found = shown(host, NIC).verdict
    assert (found.level, [one.reference for one in found.reasons]) == (Level.BLOCKED, ["stuck"])


def test_other_reasons_stay(host: SimulatedHost) -> None:
    engine.mark_stuck(host, PORT, "unbind")
    found = shown(host, PORT).verdict
    assert (found.level, {one.reference for one in found.reasons}) == (Level.NEVER, {"stuck", "bridge"})


def test_a_mark_that_cannot_be_read_is_none_the_less_one(host: SimulatedHost) -> None:
    """No start touches the device then either."""
    engine.mark_stuck(host, CARD, "unbind")
    os.symlink("/etc/passwd", host.path(f"{engine.STUCK_DIRECTORY}/{AUDIO}"))
    host.put(f"{engine.STUCK_DIRECTORY}/rubbish")
    assert {one.device.address for one in list_devices(host) if one.verdict.level is Level.BLOCKED} >= {
        CARD,
        AUDIO,
    }
    assert shown(host, AUDIO).verdict.reasons[0].reference == "stuck"
