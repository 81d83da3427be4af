"""``virtpass device functions`` and ``virtpass mdev`` as a user sees them."""

import json

import pytest

from tests.simulation import CARD, NIC, SimulatedHost
from virtpass.cli import main

NOWHERE = "qemu+unix:///system?socket=/nonexistent"
UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
TYPE = "nvidia-222"
RECORD = f"/etc/virtpass/functions.d/{NIC}"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def card(host: SimulatedHost) -> SimulatedHost:
    """A host whose NIC can have functions, and whose card offers mediated devices."""
    host.add_functions(NIC, 7, "igbvf", 40)
    host.add_mediated_type(CARD, TYPE, 2, "GRID T4-1B")
    return host


def call(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main(list(arguments), host)
    return (status, *capfd.readouterr())


def functions(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    return call(host, capfd, "device", "functions", *arguments)


def test_functions_are_shown_made_and_removed(card: SimulatedHost, capfd: Captured) -> None:
    shown = ("device", "show", "02:00.0")
    assert "  Functions     0 of 7 virtual functions\n" in call(card, capfd, *shown)[1]
    status, out, err = functions(card, capfd, "02:00.0", "2", "--dry-run")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{NIC}: write 0 to sriov_drivers_autoprobe",
        f"{NIC}: write 2 to sriov_numvfs",
    ]
    assert card.calls == []
    assert functions(card, capfd, "02:00.0", "2") == (0, "", f"{NIC} has 2 virtual functions\n")
    text = call(card, capfd, *shown)[1]
    assert "  Functions     2 of 7 virtual functions\n" in text
    assert "0000:02:10.2\n" in text
    assert json.loads(call(card, capfd, *shown, "--json")[1])["virtual_functions"] == {
        "total": 7,
        "count": 2,
        "autoprobe": False,
        "addresses": ["0000:02:10.0", "0000:02:10.2"],
    }
    assert "nothing to do" in functions(card, capfd, "02:00.0", "2")[2]
    assert functions(card, capfd, "02:00.0", "2", "--dry-run") == (0, "nothing to do\n", "")
    assert functions(card, capfd, "02:00.0", "0") == (0, "", f"{NIC} has 0 virtual functions\n")
    assert (
        json.loads(call(card, capfd, "device", "show", "01:00.0", "--json")[1])["virtual_functions"] is None
    )


def test_functions_at_every_boot(card: SimulatedHost, capfd: Captured) -> None:
    assert f"write {RECORD}\n" in functions(card, capfd, "02:00.0", "2", "--persistent", "--dry-run")[1]
    assert not card.exists(RECORD)
    status, out, err = functions(card, capfd, "02:00.0", "2", "--persistent")
    assert (status, out) == (0, "")
    assert f"{NIC} has 2 virtual functions, at every boot\n" in err
    assert "nothing makes them at boot here: sudo systemctl enable virtpass-functions.service\n" in err
    card.put("/etc/systemd/system/multi-user.target.wants/virtpass-functions.service")
    assert functions(card, capfd, "02:00.0", "1")[2].splitlines() == [
        f"{NIC} has 1 virtual function",
        "at boot it gets 2, as on record; --persistent changes that, too",
    ]
    assert call(card, capfd, "device", "functions-at-boot") == (0, "", f"{NIC} has 2 virtual functions\n")
    card.put(f"/sys/bus/pci/devices/{NIC}/device", "0x1521\n")
    status, out, err = call(card, capfd, "device", "functions-at-boot")
    assert (status, out) == (1, "")
    assert err.startswith(f"virtpass: {NIC} is 8086:1521")
    assert err.count("\n") == 1
    assert functions(card, capfd, "02:00.0", "0", "--persistent") == (
        0,
        "",
        f"{NIC} has 0 virtual functions\n",
    )
    assert not card.exists(RECORD)
    assert call(card, capfd, "device", "functions-at-boot") == (0, "", "")


def test_functions_on_demand(card: SimulatedHost, capfd: Captured) -> None:
    status, out, _ = functions(card, capfd, "02:00.0", "2", "--on-demand", "--dry-run")
    assert (status, out.splitlines()) == (
        0,
        [
            f"{NIC}: write 0 to sriov_drivers_autoprobe",
            f"{NIC}: write 2 to sriov_numvfs",
            f"write {RECORD}",
        ],
    )
    assert card.calls == []
    told = f"{NIC} has 2 virtual functions, and whenever a domain needs one\n"
    assert functions(card, capfd, "02:00.0", "2", "--on-demand") == (0, "", told)
    assert functions(card, capfd, "02:00.0", "1")[2].splitlines() == [
        f"{NIC} has 1 virtual function",
        "on demand it gets 2, as on record; --on-demand changes that, too",
    ]
    card.calls.clear()
    assert call(card, capfd, "device", "functions-at-boot") == (0, "", "")
    assert card.calls == []
    told = f"{NIC} has 0 virtual functions\n"
    assert functions(card, capfd, "02:00.0", "0", "--on-demand") == (0, "", told)
    assert not card.exists(RECORD)


def test_what_recover_says_of_functions_on_demand(card: SimulatedHost, capfd: Captured) -> None:
    functions(card, capfd, "02:00.0", "2", "--on-demand")
    card.calls.clear()
    steps = f"  {NIC}: write 0 to sriov_numvfs\n  {NIC}: write 1 to sriov_drivers_autoprobe\n"
    name = f"virtual functions of {NIC}"
    assert call(card, capfd, "recover", "--dry-run") == (0, f"{name}: would be given back\n{steps}", "")
    assert card.calls == []
    assert call(card, capfd, "recover") == (0, f"{name}: recovered\n{steps}", "")
    assert call(card, capfd, "recover") == (0, "nothing is lent: there is nothing to recover\n", "")


def test_what_has_functions_says_how_to_remove_them(card: SimulatedHost, capfd: Captured) -> None:
    functions(card, capfd, "02:00.0", "2")
    status, _, err = call(card, capfd, "device", "detach", "02:00.0", "-c", "test:///default")
    assert status == 4
    assert f"virtpass device functions {NIC} 0\n" in err


def test_mediated_devices_are_listed_made_and_removed(card: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(card, capfd, "mdev", "types")
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()] == [
        ["ADDRESS", "TYPE", "FREE", "API", "NAME"],
        [str(CARD), TYPE, "2", "vfio-pci", "GRID", "T4-1B"],
    ]
    create = ("mdev", "create", "01:00.0", TYPE, UUID)
    path = f"/sys/bus/pci/devices/{CARD}/mdev_supported_types/{TYPE}/create"
    assert call(card, capfd, *create, "--dry-run") == (0, f"write {UUID} to {path}\n", "")
    assert card.calls == []
    assert call(card, capfd, *create) == (0, f"{UUID}\n", "")
    assert f"exists: {UUID}\n" in call(card, capfd, "mdev", "types", "01:00.0")[1]
    (found,) = json.loads(call(card, capfd, "mdev", "types", "--json")[1])
    assert (found["parent"], found["available"], found["devices"]) == (str(CARD), 1, [UUID])
    shown = ("device", "show", "01:00.0")
    assert f"{UUID} ({TYPE})\n" in call(card, capfd, *shown)[1]
    mediated = json.loads(call(card, capfd, *shown, "--json")[1])["mediated"]
    assert mediated["devices"] == [{"uuid": UUID, "type": TYPE}]
    assert mediated["types"][0]["name"] == "GRID T4-1B"
    remove = ("mdev", "remove", UUID, "-c", NOWHERE)
    planned = json.loads(call(card, capfd, *remove, "--dry-run", "--json")[1])
    assert planned["path"] == f"/sys/bus/mdev/devices/{UUID}/remove"
    assert len(card.calls) == 1
    status, out, err = call(card, capfd, *remove)
    assert (status, out) == (0, "")
    assert "libvirt does not say which domains run" in err
    assert err.endswith(f"{UUID} is removed\n")
    made = json.loads(call(card, capfd, "mdev", "create", "01:00.0", TYPE, "--json")[1])
    assert (made["parent"], made["type"]) == (str(CARD), TYPE)


def test_what_lasts_is_left_to_mdevctl(card: SimulatedHost, capfd: Captured) -> None:
    card.put("/usr/sbin/mdevctl")
    assert (
        f"mdevctl define --auto --uuid {UUID}"
        in call(card, capfd, "mdev", "create", "01:00.0", TYPE, UUID)[2]
    )
    card.put(f"/etc/mdevctl.d/{CARD}/{UUID}", "{}")
    assert f"mdevctl undefine --uuid {UUID}" in call(card, capfd, "mdev", "remove", UUID, "-c", NOWHERE)[2]


def test_a_host_without_mediated_devices(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "mdev", "types")
    assert (status, out, err) == (0, "", "no PCI device of this host offers mediated devices\n")
    assert json.loads(call(host, capfd, "mdev", "types", "--json")[1]) == []


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("device", "functions", "02:00.0"), 2, "Missing argument 'COUNT'"),
        (("device", "functions", "02:00.0", "-1"), 2, "No such option"),
        (("device", "functions", "02:00.0", "--", "-1"), 2, "COUNT is a number from 0 on"),
        (("device", "functions", "02:00.0", "two"), 2, "COUNT is a number from 0 on"),
        (("device", "functions", "2", "1"), 2, "'2' is not a PCI address"),
        (("device", "functions", "7f:00.0", "1"), 3, "there is no PCI device"),
        (("device", "functions", "02:00.0", "8"), 4, "can have 7 virtual functions, not 8"),
        (("device", "functions", "02:00.0", "1", "--persistent", "--on-demand"), 2, "choose --persistent or"),
        (("device", "functions", "03:00.0", "1"), 4, "can have no virtual functions (SR-IOV)"),
        (("mdev", "types", "x"), 2, "'x' is not a PCI address"),
        (("mdev", "types", "02:00.0"), 4, "offers no mediated devices"),
        (("mdev", "create", "01:00.0"), 2, "Missing argument 'TYPE'"),
        (("mdev", "create", "01:00.0", "\x1b[31m"), 3, "no type '\\x1b[31m'"),
        (("mdev", "create", "01:00.0", TYPE, "../x"), 2, "'../x' is not a UUID"),
        (("mdev", "remove", "x", "-c", NOWHERE), 2, "'x' is not a UUID"),
        (("mdev", "remove", UUID, "-c", NOWHERE), 3, f"there is no mediated device {UUID}"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    card: SimulatedHost, capfd: Captured, arguments: tuple[str, ...], status: int, words: str
) -> None:
    seen, out, err = call(card, capfd, *arguments)
    assert (seen, out) == (status, "")
    assert err.startswith("virtpass: ")
    assert err.count("\n") == 1
    assert words in err
    assert card.calls == []


@pytest.mark.parametrize("arguments", [("mdev",), ("mdev", "create"), ("device", "functions")])
def test_help(card: SimulatedHost, capfd: Captured, arguments: tuple[str, ...]) -> None:
    status, out, err = call(card, capfd, *arguments, "--help")
    assert (status, err) == (0, "")
    assert ("mdevctl" in out) is (arguments[0] == "mdev")
    assert "at-boot" not in call(card, capfd, "device", "--help")[1]
