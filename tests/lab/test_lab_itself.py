"""The lab is what docs/lab.md says, without virtpass: else a failing scenario would prove nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from . import topology
from .guest import Guest, draws, hostdev_xml
from .machine import CommandTimeout, Machine

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The folder for pictures: $VIRTPASS_LAB_PICTURES if somebody wants to look at them."""
    folder = Path(os.environ.get("VIRTPASS_LAB_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_devices_have_their_documented_addresses_and_drivers(bare_machine: Machine) -> None:
    state = bare_machine.state()
    assert {address: state[address] for address in topology.DRIVERS} == {
        address: (driver, "") for address, driver in topology.DRIVERS.items()
    }


def test_groups_are_as_documented(bare_machine: Machine) -> None:
    groups = list(bare_machine.groups().values())
    for expected in topology.GROUPS:
        assert expected in groups


def test_twins_have_the_same_ids(bare_machine: Machine) -> None:
    functions = bare_machine.pci()
    first, second = functions[topology.NIC], functions[topology.SECOND_NIC]
    assert (first.vendor, first.device) == (second.vendor, second.device)


def test_libvirtd_is_confined(bare_machine: Machine) -> None:
    profiles = bare_machine.get("/sys/kernel/security/apparmor/profiles").decode()
    assert "libvirtd (enforce)" in profiles
    assert bare_machine.confinement() == "libvirtd (enforce)"


def test_commands_are_binary_safe(bare_machine: Machine) -> None:
    every_byte = bytes(range(256)) * 1000
    result = bare_machine.run(["cat"], every_byte).check()
    assert result.stdout == every_byte
    assert bare_machine.run(["sh", "-c", "echo no >&2; exit 3"]).status == 3


def test_files_go_there_and_back(bare_machine: Machine) -> None:
    bare_machine.put(b"\0\xff", "/root/deep/er/file", mode=0o750)
    assert bare_machine.get("/root/deep/er/file") == b"\0\xff"
    assert bare_machine.run(["stat", "-c", "%a", "/root/deep/er/file"]).text == "750\n"


def test_a_command_that_takes_too_long_is_ended(bare_machine: Machine) -> None:
    with pytest.raises(CommandTimeout, match="before"):
        bare_machine.run(["sh", "-c", "echo before; sleep 1000"], timeout=2)


def test_a_command_runs_in_the_background(bare_machine: Machine) -> None:
    job = bare_machine.begin(["sleep", "1000"])
    assert bare_machine.run(["true"]).status == 0
    job.signal(signal.SIGTERM)
    assert job.wait().status == -signal.SIGTERM


def test_a_device_is_plugged_in_and_out(bare_machine: Machine) -> None:
    bare_machine.plug("e1000e", "extra", topology.EMPTY_PORT)
    bare_machine.wait_until(lambda: topology.PLUGGED in bare_machine.pci(), "the new device is there")
    bare_machine.unplug("extra")
    assert topology.PLUGGED not in bare_machine.pci()


def test_the_card_goes_to_the_guest_and_comes_back(
    bare_machine: Machine, guest: Guest, pictures: Path
) -> None:
    """Nothing but libvirt's own managed='yes': host console, guest's picture, host console again."""
    state = bare_machine.state()
    before = bare_machine.screendump(pictures / "1-host.png")
    assert not before.is_blank()
    assert not draws(before)

    guest.define(
        hostdev_xml(topology.CARD, bus=1, multifunction=True)
        + hostdev_xml(topology.CARD_AUDIO, bus=1, function=1),
        confined=True,
    )
    guest.start().check()
    assert bare_machine.driver(topology.CARD) == bare_machine.driver(topology.CARD_AUDIO) == "vfio-pci"
    seen = guest.wait_ready()
    assert seen["0000:01:00.0"].driver == "bochs-drm"
    assert seen["0000:01:00.1"].driver == "snd_hda_intel"
    bare_machine.wait_until(lambda: draws(bare_machine.picture()), "the guest draws", timeout=30)
    during = bare_machine.screendump(pictures / "2-guest.png")
    assert before.difference(during) > 0.5
    assert during.shows(before) < 0.5

    guest.shutdown()
    bare_machine.wait_until(lambda: bare_machine.state() == state, "every driver is back")
    bare_machine.wait_until(
        lambda: bare_machine.picture().shows(before) > 0.95, "the host's console is back", timeout=30
    )
    bare_machine.screendump(pictures / "3-host.png")


def test_what_needs_dma_works(bare_machine: Machine) -> None:
    """An IOMMU that sends DMA astray would not show in drivers and groups."""
    written = os.urandom(1 << 20)
    bare_machine.run(["dd", "of=/dev/nvme0n1", "bs=1M", "oflag=direct"], written).check()
    read = ["dd", "if=/dev/nvme0n1", "bs=1M", "count=1", "iflag=direct"]
    assert bare_machine.run(read).check().stdout == written
