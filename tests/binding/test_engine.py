"""The engine on a simulated kernel: devices get to vfio-pci and back, whatever stands in the way."""

import os

import pytest

from tests.simulation import AUDIO, CARD, GUEST, NIC, SPARE, TWIN, SimulatedHost
from virtpass.binding import engine
from virtpass.binding.journal import Home, Journal, journals, read_journal
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError


def lend(host: SimulatedHost, *addresses: PciAddress) -> Journal:
    journal = Journal(host, GUEST, "guest")
    engine.lend(host, journal, engine.homes(host, list(addresses)))
    return journal


def give_back(host: SimulatedHost) -> list[str]:
    journal = read_journal(host, GUEST)
    assert journal is not None
    return [problem.what for problem in engine.give_back(host, journal)]


def drivers(host: SimulatedHost, *addresses: PciAddress) -> list[str | None]:
    state = host.state()
    return [state[address][0] for address in addresses]


def test_a_card_goes_and_comes_back_as_it_was(host: SimulatedHost) -> None:
    before = host.state()
    lend(host, CARD, AUDIO)
    assert drivers(host, CARD, AUDIO) == ["vfio-pci", "vfio-pci"]
    assert give_back(host) == []
    assert host.state() == before
    assert journals(host) == []


def test_the_identical_twin_stays_with_the_host(host: SimulatedHost) -> None:
    lend(host, NIC)
    assert drivers(host, NIC, TWIN) == ["vfio-pci", "e1000e"]
    assert host.state()[TWIN] == ("e1000e", "(null)")


def test_the_override_comes_first_and_nothing_is_written_to_new_id(host: SimulatedHost) -> None:
    lend(host, CARD, AUDIO)
    written = [path.rpartition("/")[2] for path, _ in host.calls]
    assert written == ["driver_override"] * 2 + ["unbind", "drivers_probe"] * 2


def test_siblings_leave_before_function_0_and_return_after_it(host: SimulatedHost) -> None:
    lend(host, CARD, AUDIO)
    assert [value for path, value in host.calls if path.endswith("unbind")] == [str(AUDIO), str(CARD)]
    host.calls.clear()
    give_back(host)
    probed = [value for path, value in host.calls if path.endswith("drivers_probe")]
    assert probed == [str(CARD), str(AUDIO)]


def test_while_the_kernel_probes_the_override_names_the_home_driver(host: SimulatedHost) -> None:
    """Else another driver that matches, nouveau beside nvidia, could take the card."""
    lend(host, NIC)
    host.calls.clear()
    give_back(host)
    path = f"/sys/bus/pci/devices/{NIC}/driver_override"
    assert [value for where, value in host.calls if where == path] == ["e1000e", "\n"]


def test_where_everything_was_is_on_record_before_the_first_write(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = host.write_attribute

    def checked(path: str, value: str, deadline: float) -> None:
        record = (host.read_own("/run/virtpass/lent", GUEST) or b"").decode().splitlines()
        assert f"home\t{CARD}\tbochs-drm\t-" in record
        assert f"home\t{AUDIO}\tsnd_hda_intel\t-" in record
        write(path, value, deadline)

    monkeypatch.setattr(host, "write_attribute", checked)
    lend(host, CARD, AUDIO)


def test_a_record_that_cannot_grow_does_not_keep_devices_from_coming_back(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()
    lend(host, CARD, AUDIO)

    def full(*_: object) -> None:
        raise FailedError("file", "No space left on device")

    monkeypatch.setattr(host, "append_own", full)
    assert give_back(host) == []
    assert host.state() == before


def test_a_device_on_vfio_pci_already_stays_there(host: SimulatedHost) -> None:
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/driver_override", "vfio-pci", 1)
    host.write_attribute("/sys/bus/pci/drivers/e1000e/unbind", str(NIC), 1)
    host.write_attribute("/sys/bus/pci/drivers_probe", str(NIC), 1)
    before = host.state()
    host.calls.clear()
    lend(host, NIC)
    assert give_back(host) == []
    assert host.calls == []
    assert host.state() == before


def test_a_device_without_driver_comes_back_without_driver(host: SimulatedHost) -> None:
    lend(host, SPARE)
    assert drivers(host, SPARE) == ["vfio-pci"]
    assert give_back(host) == []
    assert host.state()[SPARE] == (None, "(null)")


def test_a_device_that_has_a_driver_but_was_unbound_stays_unbound(host: SimulatedHost) -> None:
    host.write_attribute("/sys/bus/pci/drivers/e1000e/unbind", str(NIC), 1)
    lend(host, NIC)
    assert give_back(host) == []
    assert host.state()[NIC] == (None, "(null)")


def test_an_override_of_somebody_else_comes_back(host: SimulatedHost) -> None:
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/driver_override", "e1000e", 1)
    lend(host, NIC)
    give_back(host)
    assert host.state()[NIC] == ("e1000e", "e1000e")


def test_an_override_that_somebody_set_meanwhile_stays(host: SimulatedHost) -> None:
    lend(host, NIC)
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/driver_override", "pci-stub", 1)
    assert give_back(host) == []
    assert host.state()[NIC] == ("e1000e", "pci-stub")


@pytest.mark.parametrize("override", ["vfio-pci", "none"])
def test_a_device_whose_override_names_another_driver_than_it_has(host: SimulatedHost, override: str) -> None:
    """Boot scripts and half-followed guides leave this."""
    host.write_attribute(f"/sys/bus/pci/devices/{NIC}/driver_override", override, 1)
    lend(host, NIC)
    assert drivers(host, NIC) == ["vfio-pci"]
    assert give_back(host) == []
    assert host.state()[NIC] == ("e1000e", override)


def test_a_variant_of_vfio_that_libvirt_preferred_is_left_too(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()
    lend(host, NIC)
    host.add_driver("some_vfio_pci")
    path = f"/sys/bus/pci/devices/{NIC}"
    host.write_attribute("/sys/bus/pci/drivers/vfio-pci/unbind", str(NIC), 1)
    os.symlink("../../../bus/pci/drivers/some_vfio_pci", host.path(f"{path}/driver"))
    os.makedirs(host.path(f"{path}/vfio-dev/vfio0"))
    write = host.write_attribute

    def kernel(path_: str, value: str, deadline: float) -> None:
        write(path_, value, deadline)
        if path_.endswith("some_vfio_pci/unbind"):
            os.removedirs(host.path(f"{path}/vfio-dev/vfio0"))

    monkeypatch.setattr(host, "write_attribute", kernel)
    assert give_back(host) == []
    assert host.state() == before


def test_a_device_that_was_on_a_variant_of_vfio_comes_back_to_it(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = host.state()
    monkeypatch.setattr(
        "virtpass.pci.sysfs.is_on_vfio", lambda _, address: host.state()[address][0] in ("vfio-pci", "e1000e")
    )
    lend(host, NIC)
    assert give_back(host) == []
    assert host.state() == before


def test_an_override_that_libvirt_wrote_for_a_variant_goes_too() -> None:
    home = Home(NIC, "mlx5_core", None)
    seen = engine.Seen(NIC, "mlx5_vfio_pci", "mlx5_vfio_pci", True)
    steps = engine.steps_to_give_back([home], [seen])
    assert [str(step) for step in steps] == [
        f"{NIC}: set driver_override to mlx5_core",
        f"{NIC}: unbind from mlx5_vfio_pci",
        f"{NIC}: let mlx5_core bind it",
        f"{NIC}: clear driver_override",
    ]


def test_a_write_of_a_killed_hook_that_arrives_late_is_made_good(host: SimulatedHost) -> None:
    before = host.state()
    Journal(host, GUEST, "guest").begin(engine.homes(host, [NIC]))
    read = host.read_attribute

    def late(path: str, deadline: float) -> str:
        # The reader waits for the device's lock, and thus for the write that a dead hook's child still makes.
        host.read_attribute = read  # type: ignore[method-assign]
        host.write_attribute("/sys/bus/pci/drivers/e1000e/unbind", str(NIC), 1)
        return read(path, deadline)

    host.read_attribute = late  # type: ignore[method-assign]
    assert give_back(host) == []
    assert host.state() == before


def test_two_failures_of_one_kind_are_both_told(host: SimulatedHost) -> None:
    host.refusing |= {("vfio-pci", CARD), ("snd_hda_intel", AUDIO)}
    with pytest.raises(FailedError) as caught:
        lend(host, CARD, AUDIO)
    assert f"{CARD} could not be bound to vfio-pci" in caught.value.line
    assert f"{AUDIO} could not be bound to snd_hda_intel" in caught.value.line
    assert caught.value.line.endswith("run virtpass recover")
    assert journals(host) == [GUEST]


def test_an_override_that_no_driver_can_have_stops_it_before_the_first_write(host: SimulatedHost) -> None:
    host.put(f"/sys/bus/pci/devices/{NIC}/driver_override", "../x\n")
    with pytest.raises(RefusedError):
        lend(host, NIC)
    assert host.calls == []
    assert journals(host) == []


def test_when_the_second_function_cannot_be_bound_everything_is_back(host: SimulatedHost) -> None:
    before = host.state()
    host.refusing.add(("vfio-pci", CARD))
    with pytest.raises(FailedError, match=f"{CARD} could not be bound to vfio-pci: no driver took it"):
        lend(host, CARD, AUDIO)
    assert host.state() == before
    assert journals(host) == []


def test_a_driver_that_hangs_is_left_and_the_rest_comes_back(host: SimulatedHost) -> None:
    before = host.state()
    host.hanging.add(CARD)
    with pytest.raises(FailedError, match="does not come back from the driver") as caught:
        lend(host, CARD, AUDIO)
    assert caught.value.line.endswith("reboot the host")
    assert host.state()[AUDIO] == before[AUDIO]
    host.calls.clear()
    with pytest.raises(FailedError, match="hangs"):
        lend(host, CARD)
    assert host.calls == []


def test_a_device_that_a_guest_still_uses_is_not_touched(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CLOSING", 0.1)
    lend(host, CARD, AUDIO)
    host.busy_groups.add(10)
    host.calls.clear()
    told: list[tuple[object, ...]] = []
    journal = read_journal(host, GUEST)
    assert journal is not None
    problems = [one.what for one in engine.give_back(host, journal, tell=lambda *one: told.append(one))]
    assert any("still used by a running virtual machine" in problem for problem in problems)
    assert host.calls == []
    assert [one[:2] for one in told] == [("wait", "until no virtual machine has the devices open")]
    host.busy_groups.clear()
    assert give_back(host) == []
    assert drivers(host, CARD, AUDIO) == ["bochs-drm", "snd_hda_intel"]


def test_a_module_that_was_unloaded_meanwhile_is_loaded_again(host: SimulatedHost) -> None:
    lend(host, NIC)
    for attribute in ("bind", "unbind"):
        os.unlink(host.path(f"/sys/bus/pci/drivers/e1000e/{attribute}"))
    os.rmdir(host.path("/sys/bus/pci/drivers/e1000e"))
    host.modules[host.read(f"/sys/bus/pci/devices/{NIC}/modalias") or ""] = "e1000e"
    assert give_back(host) == []
    assert drivers(host, NIC) == ["e1000e"]


def test_a_module_that_no_alias_finds_is_loaded_by_its_name(host: SimulatedHost) -> None:
    """As where modprobe.d keeps it from being loaded by the device's alias."""
    before = host.state()
    lend(host, NIC)
    os.unlink(host.path("/sys/bus/pci/drivers/e1000e/bind"))
    os.unlink(host.path("/sys/bus/pci/drivers/e1000e/unbind"))
    os.rmdir(host.path("/sys/bus/pci/drivers/e1000e"))
    host.modules["e1000e"] = "e1000e"
    assert give_back(host) == []
    assert host.state() == before


def test_a_host_driver_that_refuses_is_reported_and_the_record_kept(host: SimulatedHost) -> None:
    lend(host, CARD, AUDIO)
    host.refusing.add(("bochs-drm", CARD))
    assert give_back(host) == [f"{CARD} could not be bound to bochs-drm: no driver took it"]
    assert drivers(host, CARD, AUDIO) == [None, "snd_hda_intel"]
    host.refusing.clear()
    assert give_back(host) == []
    assert drivers(host, CARD) == ["bochs-drm"]


def test_a_device_that_vanished_is_forgotten(host: SimulatedHost) -> None:
    lend(host, CARD, NIC)
    os.unlink(host.path(f"/sys/bus/pci/devices/{NIC}"))
    assert give_back(host) == []
    assert drivers(host, CARD) == ["bochs-drm"]


class Pulled(SimulatedHost):
    """A host from which the NIC is pulled out before one of the writes."""

    def __init__(self, root: str, at: int) -> None:
        super().__init__(root)
        self.left = at

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        if self.left == 0:
            os.unlink(self.path(f"/sys/bus/pci/devices/{NIC}"))
        self.left -= 1
        super().write_attribute(path, value, deadline)


# Two devices, each with override, unbind, probe; on the way back the override once more.
@pytest.mark.parametrize("at", range(6))
def test_a_device_that_vanishes_while_it_is_lent_stops_that(host: SimulatedHost, at: int) -> None:
    pulled = Pulled(host.root, at)
    with pytest.raises(FailedError) as failed:
        lend(pulled, CARD, NIC)
    assert failed.value.what.startswith((f"{NIC}: ", f"{NIC} could not be bound"))
    assert "not everything" not in failed.value.what
    assert journals(host) == []
    assert host.state()[CARD] == ("bochs-drm", "(null)")
    assert NIC not in host.state()


@pytest.mark.parametrize("at", range(8))
def test_a_device_that_vanishes_while_it_is_given_back_is_forgotten(host: SimulatedHost, at: int) -> None:
    lend(host, CARD, NIC)
    assert give_back(Pulled(host.root, at)) == []
    assert NIC not in host.state()
    assert host.state()[CARD] == ("bochs-drm", "(null)")
    assert journals(host) == []


def test_what_libvirt_gave_back_already_is_left_alone(host: SimulatedHost) -> None:
    lend(host, CARD, AUDIO)
    for address in (CARD, AUDIO):
        host.write_attribute(f"/sys/bus/pci/devices/{address}/driver_override", "\n", 1)
        host.write_attribute("/sys/bus/pci/drivers/vfio-pci/unbind", str(address), 1)
        host.write_attribute("/sys/bus/pci/drivers_probe", str(address), 1)
    host.calls.clear()
    assert give_back(host) == []
    assert host.calls == []


def test_vfio_is_loaded_when_it_is_missing(host: SimulatedHost) -> None:
    for attribute in ("bind", "unbind"):
        os.unlink(host.path(f"/sys/bus/pci/drivers/vfio-pci/{attribute}"))
    os.rmdir(host.path("/sys/bus/pci/drivers/vfio-pci"))
    with pytest.raises(FailedError, match="cannot be loaded"):
        lend(host, NIC)
    host.modules["vfio-pci"] = "vfio-pci"
    lend(host, NIC)
    assert drivers(host, NIC) == ["vfio-pci"]
