"""Mediated devices are made and removed."""

import shutil
from collections.abc import Iterator

import pytest

from tests.domain import documents
from tests.simulation import AUDIO, CARD, GUEST, NIC, SimulatedHost, domain_xml
from virtpass.hook.entry import run
from virtpass.operations import mediated_devices as operation
from virtpass.operations.mediated_devices import create, list_types, plan_create, plan_remove, remove
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, NotFoundError, RefusedError, UsageError, VirtpassError
from virtpass.system.libvirt import Connection

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
TYPE = "nvidia-222"
TYPES = f"/sys/bus/pci/devices/{CARD}/mdev_supported_types"


@pytest.fixture
def card(host: SimulatedHost) -> SimulatedHost:
    """A host whose card offers two mediated devices of one type and none of another."""
    host.add_mediated_type(CARD, TYPE, 2, "GRID T4-1B")
    host.add_mediated_type(CARD, "nvidia-230", 0, "GRID T4-16Q")
    return host


def nobody() -> dict[str, str]:
    return {}


def test_a_device_is_made_and_removed(card: SimulatedHost) -> None:
    plan = plan_create(card, CARD, TYPE, UUID.upper())
    assert (plan.path, plan.value) == (f"{TYPES}/{TYPE}/create", UUID)
    assert card.calls == []
    create(card, CARD, TYPE, UUID)
    first, second = list_types(card, CARD)
    assert (first.type.available, [one.uuid for one in first.devices]) == (1, [UUID])
    assert (second.type.available, second.devices) == (0, ())
    assert list_types(card) == [first, second]
    planned = plan_remove(card, UUID, nobody)
    assert (planned.path, planned.value) == (f"/sys/bus/mdev/devices/{UUID}/remove", "1")
    remove(card, UUID, nobody)
    assert list_types(card, CARD)[0].devices == ()


def test_each_device_gets_a_uuid_of_its_own(card: SimulatedHost) -> None:
    made = {create(card, CARD, TYPE).uuid for _ in range(2)}
    assert {one.uuid for one in list_types(card, CARD)[0].devices} == made
    assert len(made) == 2
    with pytest.raises(RefusedError) as caught:
        create(card, CARD, TYPE)
    assert caught.value.reference == "mediated-exhausted"


@pytest.mark.parametrize(
    ("parent", "type_name", "uuid", "kind", "words"),
    [
        (CARD, "nvidia-1", UUID, NotFoundError, "has no type 'nvidia-1'"),
        (CARD, "../../..", UUID, NotFoundError, "has no type '../../..'"),
        (CARD, f"{TYPE}/", UUID, NotFoundError, "has no type"),
        (CARD, "", UUID, NotFoundError, "has no type"),
        (CARD, f"{TYPE}\n", UUID, NotFoundError, "has no type"),
        (CARD, TYPE, "../create", UsageError, "'../create' is not a UUID"),
        (CARD, TYPE, "", UsageError, "'' is not a UUID"),
        (CARD, TYPE, UUID.replace("-", ""), UsageError, "is not a UUID"),
        (CARD, TYPE, f"{UUID}\n", UsageError, "is not a UUID"),
        (CARD, "nvidia-230", UUID, RefusedError, "can have no more"),
        (NIC, TYPE, UUID, RefusedError, "offers no mediated devices"),
        (PciAddress.parse("7f:00.0"), TYPE, UUID, NotFoundError, "there is no PCI device"),
    ],
)
def test_what_cannot_be_made_is_refused_before_a_write(
    card: SimulatedHost,
    parent: PciAddress,
    type_name: str,
    uuid: str,
    kind: type[VirtpassError],
    words: str,
) -> None:
    with pytest.raises(kind) as caught:
        create(card, parent, type_name, uuid)
    assert words in caught.value.line
    assert card.calls == []


def test_a_uuid_is_used_once(card: SimulatedHost) -> None:
    create(card, CARD, TYPE, UUID)
    with pytest.raises(RefusedError) as caught:
        create(card, CARD, TYPE, UUID)
    assert caught.value.reference == "mediated-exists"


def test_a_card_that_is_lent_makes_none(card: SimulatedHost) -> None:
    assert run(card, "prepare", domain_xml(CARD, AUDIO)) == 0
    # They go with the driver.
    shutil.rmtree(card.path(TYPES))
    with pytest.raises(RefusedError) as caught:
        create(card, CARD, TYPE)
    assert caught.value.reference == "lent"


@pytest.mark.parametrize(
    ("text", "kind"), [(GUEST, NotFoundError), ("..", UsageError), ("*", UsageError), (UUID[:-1], UsageError)]
)
def test_what_is_not_there_is_not_removed(card: SimulatedHost, text: str, kind: type[VirtpassError]) -> None:
    create(card, CARD, TYPE, UUID)
    card.calls.clear()
    with pytest.raises(kind):
        remove(card, text, nobody)
    assert card.calls == []


def test_a_device_that_is_open_is_not_removed(card: SimulatedHost) -> None:
    """Whoever has it: libvirt may know nothing of that."""
    create(card, CARD, TYPE, UUID)
    card.busy_groups.add(100)
    card.calls.clear()
    with pytest.raises(RefusedError) as caught:
        remove(card, UUID, nobody)
    assert caught.value.reference == "mediated-in-use"
    assert card.calls == []


def test_a_domain_that_takes_it_while_libvirt_is_asked_keeps_it(card: SimulatedHost) -> None:
    create(card, CARD, TYPE, UUID)
    card.calls.clear()
    looked = card.device_node_is_busy("/dev/vfio/100")

    def lock(directory: str, name: str, deadline: float) -> int:
        card.busy_groups.add(100)
        return SimulatedHost.lock(card, directory, name, deadline)

    card.lock = lock  # type: ignore[method-assign]
    with pytest.raises(RefusedError):
        remove(card, UUID, nobody)
    assert looked is False
    assert card.calls == []


def test_a_driver_that_hangs_is_not_touched_again(
    card: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(card, CARD, TYPE, UUID)
    # It is opened between the look and the write.
    monkeypatch.setattr(operation, "_refuse_open", lambda host, device: None)
    card.busy_groups.add(100)
    with pytest.raises(FailedError) as caught:
        remove(card, UUID, nobody)
    assert (caught.value.reference, caught.value.remedy) == ("stuck", "reboot the host")
    with pytest.raises(FailedError) as again:
        create(card, CARD, TYPE)
    assert again.value.reference == "stuck"


def test_what_the_kernel_refuses_is_told(card: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    create(card, CARD, TYPE, UUID)
    monkeypatch.setattr(operation, "mediated_devices", lambda host: [])
    with pytest.raises(FailedError) as caught:
        create(card, CARD, TYPE, UUID)
    assert caught.value.what == f"making the mediated device {UUID}: File exists"


@pytest.fixture
def libvirt() -> Iterator[Connection]:
    """libvirt's own test driver with a domain that has the device."""
    pytest.importorskip("libvirt")
    hostdev = (
        "<hostdev mode='subsystem' type='mdev' model='vfio-pci'>"
        f"<source><address uuid='{UUID}'/></source></hostdev>"
    )
    with Connection.open("test:///default") as connection:
        connection.define(documents.domain(hostdev, kind="test"), validate=False)
        yield connection


def test_a_device_of_a_running_domain_is_not_removed(card: SimulatedHost, libvirt: Connection) -> None:
    create(card, CARD, TYPE, UUID)
    assert operation.users(libvirt) == {}
    libvirt.domain("guest")._handle.create()  # type: ignore[attr-defined]
    assert operation.users(libvirt) == {UUID: "guest"}
    with pytest.raises(RefusedError) as caught:
        remove(card, UUID, lambda: operation.users(libvirt))
    assert caught.value.what == f"the mediated device {UUID} is used by the domain guest"
    assert caught.value.remedy == "shut that down first"
