"""Attach, detach, adopt and show on libvirt's test driver and a simulated host."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.domain.documents import OTHER_UUID, UUID, domain, hostdev, pci
from tests.simulation import AUDIO, CARD, DISK, NIC, PORT, SHARED, SPARE, TWIN, SimulatedHost, desktop
from virtpass.binding.policy import Policy
from virtpass.domain.hostdev import parse_hostdevs
from virtpass.domain.metadata import parse_passthrough
from virtpass.operations import domains
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, NotFoundError, RefusedError, UsageError, VirtpassError
from virtpass.system.libvirt import Connection, Domain

NAMES = ["guest", "two words", "--dashes", "'quotes\"", "ünïcode 日本", "a\\b", "$(x);`y`"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedHost]:
    host = desktop(str(tmp_path / "host"))
    yield host
    # The libvirt layer says who gets what; drivers are the hook's business.
    assert host.calls == []


def define(
    connection: Connection, *hostdevs: str, name: str = "guest", uuid: str = UUID, **more: str
) -> Domain:
    return connection.define(
        domain(*hostdevs, kind="test", name=name, uuid=uuid, **cast(Any, more)), validate=False
    )


def raw(connection: Connection, name: str = "guest") -> Any:  # noqa: ANN401 (libvirt has no types)
    return cast(Any, connection)._handle.lookupByName(name)


def xml(connection: Connection, name: str = "guest") -> str:
    return connection.domain(name).inactive_xml()


def sources(connection: Connection, name: str = "guest") -> list[PciAddress]:
    return [device.source for device in parse_hostdevs(xml(connection, name))]


def recorded(connection: Connection, name: str = "guest") -> list[PciAddress]:
    found = parse_passthrough(xml(connection, name))
    return [device.address for device in found.devices] if found else []


def test_releasing_takes_out_what_virtpass_wrote_and_nothing_else(
    connection: Connection, host: SimulatedHost
) -> None:
    define(connection, hostdev(str(NIC), managed=" managed='no'"), hostdev(str(TWIN)))
    before = xml(connection)
    assert domains.adopt(connection, host, "guest").is_applied
    assert domains.attach(connection, host, "guest", [CARD, NIC]).is_applied
    # Whoever looks after it twice forgets nothing of the first time.
    assert not domains.adopt(connection, host, "guest").is_applied
    assert not domains.release(connection, host, "guest", dry_run=True).is_applied
    result = domains.release(connection, host, "guest")
    assert result.is_applied
    assert f"set managed='no' on hostdev {NIC}" in result.plan.changes
    assert xml(connection) == before
    with pytest.raises(RefusedError, match="does not look after"):
        domains.release(connection, host, "guest")


@pytest.mark.parametrize("name", NAMES)
def test_a_card_goes_into_a_domain_and_out_again(
    connection: Connection, host: SimulatedHost, name: str
) -> None:
    define(connection, name=name)
    before = xml(connection, name)
    result = domains.attach(connection, host, name, [CARD])
    assert result.is_applied
    assert result.plan.name == name
    assert sources(connection, name) == recorded(connection, name) == [CARD, AUDIO]
    again = domains.attach(connection, host, name, [CARD])
    assert (again.is_applied, again.plan.is_empty, again.plan.diff) == (False, True, "")
    assert domains.detach(connection, host, name, [AUDIO]).is_applied
    assert xml(connection, name) == before


def test_the_uuid_will_do(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    domains.attach(connection, host, UUID, [SPARE])
    assert sources(connection) == [SPARE]


def test_a_dry_run_shows_the_plan_that_would_run(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    before = xml(connection)
    shown = domains.attach(connection, host, "guest", [CARD], dry_run=True)
    assert xml(connection) == before
    assert not shown.is_applied
    assert '+    <hostdev mode="subsystem" type="pci" managed="yes">' in shown.plan.diff
    assert domains.attach(connection, host, "guest", [CARD]).plan == shown.plan
    with_card = xml(connection)
    assert not domains.detach(connection, host, "guest", [CARD], dry_run=True).is_applied
    assert xml(connection) == with_card


def test_one_function_may_stay_with_the_host_when_the_group_allows(
    connection: Connection, host: SimulatedHost
) -> None:
    define(connection)
    with pytest.raises(RefusedError) as caught:
        domains.attach(connection, host, "guest", [CARD], whole_card=False)
    assert "0000:01:00.1 in its group must go with it" in caught.value.what
    domains.attach(connection, host, "guest", [SPARE], whole_card=False)
    assert sources(connection) == [SPARE]


def test_a_virtual_function_does_not_bring_its_siblings(connection: Connection, host: SimulatedHost) -> None:
    first, second = pci("07:00.1"), pci("07:00.2")
    host.add_device(pci("07:00.0"), group=20)
    for number, address in enumerate((first, second)):
        real = host.add_device(address, group=21 + number)
        host.link(f"{real}/physfn", "/sys/devices/pci0000:00/0000:07:00.0")
    define(connection)
    domains.attach(connection, host, "guest", [first])
    assert sources(connection) == [first]
    domains.attach(connection, host, "guest", [pci("07:00.0")])
    domains.attach(connection, host, "guest", [second])
    found = parse_hostdevs(xml(connection))
    assert sorted(device.source for device in found) == [pci("07:00.0"), first, second]
    assert {device.guest.function for device in found if device.guest} == {0}
    assert domains.adopt(connection, host, "guest").notes == ()
    domains.detach(connection, host, "guest", [first])
    domains.detach(connection, host, "guest", [pci("07:00.0")])
    assert sources(connection) == [second]


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        ([PORT], "bridges stay with the host"),
        ([DISK], "0000:04:00.0 cannot be given"),
        ([SHARED[0]], "0000:06:02.0 in its group must go with it"),
        ([SPARE, SHARED[1]], "0000:06:01.0 in its group must go with it"),
    ],
)
def test_what_cannot_be_isolated_is_refused_before_anything_is_written(
    connection: Connection, host: SimulatedHost, addresses: list[PciAddress], reason: str
) -> None:
    define(connection)
    before = xml(connection)
    with pytest.raises(RefusedError) as caught:
        domains.attach(connection, host, "guest", addresses)
    assert reason in caught.value.line
    assert xml(connection) == before


def test_devices_of_one_group_may_go_together(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    domains.attach(connection, host, "guest", SHARED)
    assert sources(connection) == list(SHARED)


def test_the_rest_of_a_group_may_be_there_already(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev(str(SHARED[0]), "03:00.0"))
    domains.attach(connection, host, "guest", [SHARED[1]])
    assert sources(connection) == list(SHARED)


def test_without_iommu_nothing_is_attached(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    host.switch_iommu_off()
    with pytest.raises(RefusedError) as caught:
        domains.attach(connection, host, "guest", [CARD])
    assert "IOMMU" in caught.value.what


def test_a_device_that_is_not_there(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    with pytest.raises(NotFoundError) as caught:
        domains.attach(connection, host, "guest", [pci("7f:00.0")])
    assert caught.value.reference == "no-device"
    with pytest.raises(NotFoundError) as other:
        domains.detach(connection, host, "guest", [CARD])
    assert other.value.reference == "not-attached"


def test_a_device_that_is_gone_can_be_detached(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev("7f:00.0", "03:00.0"))
    domains.detach(connection, host, "guest", [pci("7f:00.0")])
    assert sources(connection) == []


def every_change(connection: Connection, host: SimulatedHost, name: str) -> Iterator[Any]:
    yield lambda: domains.attach(connection, host, name, [SPARE])
    yield lambda: domains.detach(connection, host, name, [CARD])
    yield lambda: domains.adopt(connection, host, name)


def test_no_such_domain(connection: Connection, host: SimulatedHost) -> None:
    for change in every_change(connection, host, "nobody"):
        with pytest.raises(NotFoundError):
            change()
    with pytest.raises(NotFoundError):
        domains.show(connection, host, "nobody")


def test_a_running_domain_is_not_changed(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev(str(CARD), "03:00.0"))
    raw(connection).create()
    before = xml(connection)
    for change in every_change(connection, host, "guest"):
        with pytest.raises(RefusedError) as caught:
            change()
        assert (caught.value.reference, caught.value.remedy) == ("running", "shut it down first")
    assert xml(connection) == before


def test_a_transient_domain_is_not_changed(connection: Connection, host: SimulatedHost) -> None:
    cast(Any, connection)._handle.createXML(domain(hostdev(str(CARD)), root=None, kind="test"))
    for change in every_change(connection, host, "guest"):
        with pytest.raises(RefusedError) as caught:
            change()
        assert caught.value.reference == "transient"


def test_a_domain_with_a_saved_state_is_not_changed(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev(str(CARD), "03:00.0"))
    raw(connection).create()
    raw(connection).managedSave()
    for change in every_change(connection, host, "guest"):
        with pytest.raises(RefusedError) as caught:
            change()
        assert caught.value.reference == "saved-state"


def test_a_domain_of_virt_manager_is_adopted(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev(str(CARD), "03:00.0"), hostdev(str(AUDIO), "04:00.0"))
    result = domains.adopt(connection, host, "guest")
    assert result.is_applied
    assert recorded(connection) == [CARD, AUDIO]
    assert "separate devices" in result.notes[0]
    assert domains.adopt(connection, host, "guest").plan.is_empty


def test_a_domain_edited_by_hand_is_adopted(connection: Connection, host: SimulatedHost) -> None:
    by_hand = hostdev(str(SPARE), "03:00.0", managed="").replace("bus='0x05'", "bus='005'")
    decimal = hostdev(str(TWIN), "04:00.0", managed=" managed='no'").replace(
        "domain='0x0000' bus='0x03'", "bus='3'"
    )
    define(connection, by_hand, decimal)
    domains.adopt(connection, host, "guest")
    assert recorded(connection) == [TWIN, SPARE]
    assert all(device.is_managed for device in parse_hostdevs(xml(connection)))


def test_a_device_that_the_domain_has_already_keeps_its_settings(
    connection: Connection, host: SimulatedHost
) -> None:
    define(connection, hostdev(str(SPARE), "07:00.0", managed="", inside="<boot order='2'/>"))
    domains.attach(connection, host, "guest", [SPARE])
    (found,) = parse_hostdevs(xml(connection))
    assert (found.is_managed, found.guest, found.settings) == (True, pci("07:00.0"), ("boot",))


def test_another_domain_with_the_same_device_is_noted(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    define(connection, hostdev(str(AUDIO), "03:00.0"), name="other", uuid=OTHER_UUID)
    result = domains.attach(connection, host, "guest", [CARD])
    assert result.is_applied
    assert "domain 'other' has 0000:01:00.1 too; only one of them can run at a time" in result.notes


def test_metadata_that_is_not_understood_stops_every_change(
    connection: Connection, host: SimulatedHost
) -> None:
    newer = "<v:passthrough xmlns:v='urn:virtpass:passthrough:1'><v:policy display='take'/></v:passthrough>"
    define(connection, hostdev(str(CARD), "03:00.0"), metadata=newer)
    before = xml(connection)
    for change in every_change(connection, host, "guest"):
        with pytest.raises(UsageError):
            change()
    assert xml(connection) == before
    assert "display=take" in domains.show(connection, host, "guest").problem


def test_show(connection: Connection, host: SimulatedHost) -> None:
    define(connection, hostdev("7f:00.0", "03:00.0"))
    domains.attach(connection, host, "guest", [CARD])
    report = domains.show(connection, host, "guest")
    assert (report.name, report.uuid, report.is_active, report.is_ours, report.problem) == (
        "guest",
        UUID,
        False,
        True,
        "",
    )
    assert report.policy == Policy()
    found = {
        device.address: (device.recorded is not None, device.seen is not None, device.is_as_recorded)
        for device in report.devices
    }
    assert found == {
        CARD: (True, True, True),
        AUDIO: (True, True, True),
        pci("7f:00.0"): (False, False, False),
    }


def test_a_replaced_card_is_shown_as_such(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    domains.attach(connection, host, "guest", [SPARE])
    host.put(f"/sys/bus/pci/devices/{SPARE}/device", "0x9999\n")
    (device,) = domains.show(connection, host, "guest").devices
    assert not device.is_as_recorded
    assert device.seen is not None
    assert device.seen.device == 0x9999


def test_list(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    define(connection, hostdev(str(NIC), "03:00.0"), name="other", uuid=OTHER_UUID)
    domains.attach(connection, host, "guest", [SPARE])
    raw(connection, "other").create()
    found = [
        (report.name, report.is_active, report.is_ours, len(report.devices))
        for report in domains.list_domains(connection, host)
    ]
    assert found == [("guest", False, True, 1), ("other", True, False, 1)]


def ours(connection: Connection, host: SimulatedHost, **policy: str) -> None:
    define(connection)
    domains.attach(connection, host, "guest", [SPARE], policy=policy)


def test_the_policy_of_a_domain(connection: Connection, host: SimulatedHost) -> None:
    ours(connection, host, wait="30")
    assert domains.policy(connection, "guest") == Policy(wait=30)
    before = xml(connection)
    settings = {"display": "hand-over", "isolate-cpus": "yes"}
    shown = domains.set_policy(connection, host, "guest", settings, dry_run=True)
    assert (xml(connection), shown.is_applied) == (before, False)
    done = domains.set_policy(connection, host, UUID, settings)
    assert (done.plan, done.is_applied) == (shown.plan, True)
    wanted = Policy(display="hand-over", isolate_cpus="yes", wait=30)
    assert domains.policy(connection, "guest") == domains.show(connection, host, "guest").policy == wanted
    again = domains.set_policy(connection, host, "guest", settings)
    assert (again.is_applied, again.plan.is_empty, again.notes) == (False, True, ())
    domains.set_policy(connection, host, "guest", {"display": "refuse", "isolate-cpus": "no"})
    assert xml(connection) == before


def test_the_policy_of_a_running_domain_counts_from_its_next_start_on(
    connection: Connection, host: SimulatedHost
) -> None:
    ours(connection, host)
    raw(connection).create()
    live = raw(connection).XMLDesc(0)
    result = domains.set_policy(connection, host, "guest", {"wait": "5"})
    assert result.is_applied
    assert any("counts from its next start on" in note for note in result.notes)
    assert domains.policy(connection, "guest") == Policy(wait=5)
    assert raw(connection).XMLDesc(0) == live
    raw(connection).destroy()
    assert domains.policy(connection, "guest") == Policy(wait=5)


def test_a_saved_state_goes_on_with_its_own_policy(connection: Connection, host: SimulatedHost) -> None:
    ours(connection, host)
    raw(connection).create()
    raw(connection).managedSave()
    result = domains.set_policy(connection, host, "guest", {"wait": "5"})
    assert any("has a saved state" in note for note in result.notes)
    assert domains.policy(connection, "guest") == Policy(wait=5)
    assert raw(connection).hasManagedSaveImage()


def test_whose_policy_cannot_be_set(connection: Connection, host: SimulatedHost) -> None:
    def reference(name: str, error: type[VirtpassError], **settings: str) -> str:
        with pytest.raises(error) as caught:
            domains.set_policy(connection, host, name, settings)
        return caught.value.reference

    assert reference("nobody", NotFoundError, wait="1") == "no-domain"
    define(connection, hostdev(str(CARD), "03:00.0"))
    before = xml(connection)
    assert reference("guest", RefusedError, wait="1") == "not-ours"
    with pytest.raises(RefusedError):
        domains.policy(connection, "guest")
    domains.adopt(connection, host, "guest")
    assert reference("guest", UsageError, wait="-1") == "policy"
    assert reference("guest", UsageError, bogus="1") == "policy"
    assert domains.policy(connection, "guest") == Policy()
    mine = "<p:passthrough xmlns:p='urn:virtpass:passthrough:1'/>"
    transient = domain(root=None, kind="test", name="brief", uuid=OTHER_UUID, metadata=mine)
    cast(Any, connection)._handle.createXML(transient)
    assert reference("brief", RefusedError, wait="1") == "transient"
    assert domains.policy(connection, "brief") == Policy()
    assert before != xml(connection)


def test_a_policy_that_libvirt_loses_is_noticed(connection: Connection, host: SimulatedHost) -> None:
    ours(connection, host)
    before = xml(connection)
    forgetful = Forgetful(cast(Any, connection)._handle, connection.uri)
    forgetful.change = (r' wait="5"', "")
    with pytest.raises(FailedError) as caught:
        domains.set_policy(forgetful, host, "guest", {"wait": "5"})
    assert caught.value.reference == "not-as-planned"
    assert xml(connection) == before


class Forgetful(Connection):
    """libvirt that changes something without a word when it defines a domain."""

    change = ("", "")

    def define(self, xml: str, *, validate: bool = True) -> Domain:
        changed = re.sub(*self.change, xml, flags=re.DOTALL) if validate else xml
        return super().define(changed, validate=validate)


@pytest.mark.parametrize(
    "change",
    [
        (r" multifunction=.on.(?=/>\s*</hostdev)", ""),
        (r"<virtpass:device .*?/>", ""),
        (r"<metadata>.*</metadata>", ""),
        (r"<hostdev.*?</hostdev>", ""),
        (r" managed=.yes.", ""),
        (r'(?<=bus="0x03" slot="0x00" function=)"0x1"', '"0x2"'),
        (r"<input [^>]*/>", ""),
        (r"<title>.*</title>", ""),
    ],
)
def test_what_libvirt_drops_is_noticed_and_taken_back(
    connection: Connection, host: SimulatedHost, change: tuple[str, str]
) -> None:
    define(connection)
    before = xml(connection)
    forgetful = Forgetful(cast(Any, connection)._handle, connection.uri)
    forgetful.change = change
    with pytest.raises(FailedError) as caught:
        domains.attach(forgetful, host, "guest", [CARD])
    assert caught.value.reference == "not-as-planned"
    assert "is as it was" in caught.value.what
    assert xml(connection) == before


def test_a_domain_that_cannot_be_taken_back_is_not_lost(connection: Connection, host: SimulatedHost) -> None:
    class Broken(Forgetful):
        def define(self, xml: str, *, validate: bool = True) -> Domain:
            if not validate:
                raise FailedError("libvirt", "the disk is full")
            return super().define(xml, validate=validate)

    Broken.change = (r"<title>.*</title>", "")
    define(connection)
    before = xml(connection)
    with pytest.raises(FailedError) as caught:
        domains.attach(Broken(cast(Any, connection)._handle, connection.uri), host, "guest", [CARD])
    assert caught.value.reference == "not-restored"
    assert caught.value.__notes__ == [before]


def test_a_change_by_somebody_else_is_not_overwritten(connection: Connection, host: SimulatedHost) -> None:
    class Busy(Connection):
        @property
        def version(self) -> int:  # asked for after the XML was read, before it is defined
            define(connection, hostdev(str(NIC), "03:00.0"))
            return super().version

    define(connection)
    with pytest.raises(RefusedError) as caught:
        domains.attach(Busy(cast(Any, connection)._handle, connection.uri), host, "guest", [CARD])
    assert caught.value.reference == "changed"
    assert sources(connection) == [NIC]


def test_xml_that_libvirt_refuses_changes_nothing(connection: Connection, host: SimulatedHost) -> None:
    define(connection)
    folder = Path(host.path("/etc/virtpass/xml_templates"))
    folder.mkdir(parents=True)
    (folder / "hostdev.xml").write_text(
        "<hostdev mode='subsystem' type='pci' managed='yes' bogus='1'><source>"
        "<address domain='0' bus='0' slot='0' function='0'/></source>"
        "<address type='pci' domain='0' bus='0' slot='0' function='0'/></hostdev>"
    )
    before = xml(connection)
    with pytest.raises(FailedError) as caught:
        domains.attach(connection, host, "guest", [SPARE])
    assert caught.value.reference == "libvirt-xml"
    assert xml(connection) == before
