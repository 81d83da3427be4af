"""The boot machines are what docs/lab.md says, without virtpass: a change made inside is there afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import bootloader, image, topology
from .disk import BOOT_KINDS, ROOT_UUID, Kind
from .machine import Machine

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CHOSEN = "lab.chosen=1"
# As systemd-boot wants it; GRUB does not care.
ENTRY = "own.conf"


@pytest.fixture(params=BOOT_KINDS, ids=[kind.name for kind in BOOT_KINDS])
def booted(request: pytest.FixtureRequest) -> Iterator[Machine]:
    kind: Kind = request.param
    with Machine(image.ready(kind)) as machine:
        yield machine


def test_machine_boots_as_its_own_bootloader_is_told(booted: Machine) -> None:
    """One test, because each boot takes half a minute."""
    loader = bootloader.of(booted)
    assert f"root=UUID={ROOT_UUID}" in loader.arguments()
    assert CHOSEN not in loader.arguments()
    state = booted.state()
    assert {address: state[address][0] for address in topology.DRIVERS} == topology.DRIVERS
    for group in topology.GROUPS:
        assert group in booted.groups().values()
    assert booted.run(["systemctl", "is-system-running", "--wait"]).text.strip() == "running"
    assert (booted.run(["test", "-d", "/sys/firmware/efi"]).status == 0) == booted.image.kind.uefi

    loader.add_entry(ENTRY, CHOSEN)
    loader.choose_once(ENTRY)
    booted.put("written", "/root/written")
    booted.run(["sync"]).check()
    booted.put("lost", "/run/lost")
    booted.reset()
    assert CHOSEN in loader.arguments()
    assert booted.get("/root/written") == b"written"
    assert booted.run(["test", "-e", "/run/lost"]).status == 1

    booted.reboot()
    assert CHOSEN not in loader.arguments(), "an entry is chosen once"
    assert booted.state() == state
