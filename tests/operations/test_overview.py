"""The one next step, wherever a user stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.test_commands import NOWHERE, TEST_DRIVER
from tests.domain import documents
from tests.host import rows_grub
from tests.host.machine import on_row, switch_off
from tests.simulation import CARD, SimulatedHost, domain_xml
from virtpass.hook.entry import run
from virtpass.operations import domains
from virtpass.operations import overview as operation
from virtpass.operations.hooks import install_hook
from virtpass.operations.overview import overview
from virtpass.pci.address import PciAddress
from virtpass.system.errors import PermissionDeniedError, UnavailableError, VirtpassError
from virtpass.system.libvirt import Connection

DEBIAN = next(row for row in rows_grub.ROWS if row.name == "debian-12-grub")
START = "sudo systemctl start libvirtd.socket"
AWAY = UnavailableError("no-libvirt", "no such socket", START)
DENIED = PermissionDeniedError("libvirt-denied", "authentication failed", "run it as root")


def step(host: SimulatedHost, uri: str = TEST_DRIVER) -> str:
    return overview(host, uri).next_step


def install(host: SimulatedHost) -> None:
    host.put("/etc/libvirt/qemu.conf")
    host.put("/usr/bin/python3")
    install_hook(host)


def failing(monkeypatch: pytest.MonkeyPatch, error: VirtpassError) -> None:
    """Let libvirt not answer."""

    def connect(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(operation, "connect", connect)


def test_a_host_without_iommu_is_switched_on_where_an_argument_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = on_row(DEBIAN, tmp_path)
    switch_off(host)
    assert step(host) == "sudo virtpass setup"
    failing(monkeypatch, DENIED)
    assert step(host) == "sudo virtpass setup"
    # Without a daemon it would end at once.
    failing(monkeypatch, AWAY)
    assert step(host) == START
    os.remove(host.path("/sys/firmware/acpi/tables/DMAR"))
    assert step(host) == "virtpass doctor"


@pytest.mark.parametrize("is_installed", [False, True])
def test_libvirt_comes_first(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, is_installed: bool
) -> None:
    if is_installed:
        install(host)
    failing(monkeypatch, AWAY)
    assert step(host) == START
    failing(monkeypatch, DENIED)
    assert step(host) == "sudo virtpass"


def test_without_a_remedy_the_doctor_is_asked(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, UnavailableError("no-answer", "it hangs"))
    assert step(host) == "virtpass doctor"


def test_what_was_left_lent_takes_root_to_recover(host: SimulatedHost) -> None:
    run(host, "prepare", domain_xml(CARD))
    assert step(host) == "sudo virtpass recover"
    assert step(host, NOWHERE) != "sudo virtpass recover"


def test_a_domain_that_has_a_card_already_lacks_the_hook_alone(host: SimulatedHost) -> None:
    pytest.importorskip("libvirt")
    with Connection.open(TEST_DRIVER) as connection:
        connection.define(documents.domain(kind="test"), validate=False)
        assert step(host) == "sudo virtpass setup"
        domains.attach(connection, host, "guest", [PciAddress.parse("01:00.0")])
        assert step(host) == "sudo virtpass hook install"
        install(host)
        assert step(host) == "virtpass hook rehearse guest"
        os.chmod(host.path("/etc/libvirt/hooks/qemu.d/50-virtpass"), 0o644)
        assert step(host) == "sudo virtpass hook install"


def test_a_hook_that_cannot_be_looked_at_is_no_next_step(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "is_hidden", lambda path: True)
    assert overview(host, TEST_DRIVER).hook.state == "unknown"
    assert "hook install" not in step(host)
    assert step(host) == f"sudo virtpass setup {CARD} DOMAIN"


@pytest.mark.parametrize(
    ("address", "expected"),
    [("01:00.0", f"sudo virtpass setup {CARD} guest"), ("02:00.0", "virtpass domain adopt guest")],
    ids=["a card", "another device"],
)
def test_devices_that_were_added_elsewhere_get_looked_after(
    host: SimulatedHost, address: str, expected: str
) -> None:
    pytest.importorskip("libvirt")
    install(host)
    with Connection.open(TEST_DRIVER) as connection:
        connection.define(
            documents.domain(documents.hostdev(address, "03:00.0"), kind="test"), validate=False
        )
        assert step(host) == expected


def test_what_a_domain_has_beside_its_card_gets_looked_after_too(host: SimulatedHost) -> None:
    pytest.importorskip("libvirt")
    install(host)
    devices = documents.hostdev("02:00.0", "03:00.0")
    with Connection.open(TEST_DRIVER) as connection:
        connection.define(documents.domain(devices, kind="test"), validate=False)
        domains.attach(connection, host, "guest", [CARD])
        assert step(host) == "virtpass domain adopt guest"
        domains.adopt(connection, host, "guest")
        assert step(host) == "virtpass hook rehearse guest"
