"""The commands as a user sees them: output, messages, exit statuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import Session
from tests.domain import documents
from tests.simulation import AUDIO, CARD, GUEST, SimulatedHost, domain_xml
from virtpass.cli import main
from virtpass.hook.entry import run
from virtpass.system.daemon_start import how_to_start
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection

ROOT = Path(__file__).parents[2]
NOWHERE = "qemu+unix:///system?socket=/nonexistent"
TEST_DRIVER = "test:///default"
Captured = pytest.CaptureFixture[str]


def call(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit status, standard output and standard error."""
    capfd.readouterr()
    status = main(list(arguments), host)
    return (status, *capfd.readouterr())


def test_the_list_shows_group_driver_and_verdict(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "devices")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["GROUP", "ADDRESS", "DRIVER", "DEVICE", "VERDICT"]
    (card,) = [line for line in lines if "0000:01:00.0" in line]
    (audio,) = [line for line in lines if "0000:01:00.1" in line]
    (disk,) = [line for line in lines if "0000:04:00.0" in line]
    assert card.split()[:3] == ["10", "0000:01:00.0", "bochs-drm"]
    assert card.endswith("ready: the host's only display: dark while it is away")
    # The second member of a group does not repeat its number.
    assert audio.split()[0] == "0000:01:00.1"
    assert disk.endswith("blocked: it holds the file system /")


def test_the_list_as_json(host: SimulatedHost, capfd: Captured) -> None:
    status, out, _ = call(host, capfd, "devices", "--json")
    assert status == 0
    devices = {one["address"]: one for one in json.loads(out)}
    assert devices["0000:01:00.0"]["verdict"] == "ready"
    assert devices["0000:06:01.0"]["verdict"] == "shared"
    assert devices["0000:06:01.0"]["reasons"][0]["id"] == "group-shared"
    assert devices["0000:00:04.0"]["verdict"] == "never"
    assert devices["0000:05:00.0"]["driver"] is None


def test_what_is_lent_shows_where_it_is(host: SimulatedHost, capfd: Captured) -> None:
    run(host, "prepare", domain_xml(CARD, AUDIO, name="my\x9b31m guest".replace("\x9b", "&#x9b;")))
    _, out, _ = call(host, capfd, "devices")
    (card,) = [line for line in out.splitlines() if "0000:01:00.0" in line]
    assert card.endswith("lent to my\\x9b31m guest")
    assert "\x9b" not in out


def test_names_from_outside_do_not_reach_the_terminal_as_they_are(
    host: SimulatedHost, capfd: Captured
) -> None:
    node = f"/sys/bus/pci/devices/{CARD}/drm/card0"
    host.put(f"{node}/dev", "226:0\n")
    host.put(f"{node}/uevent", "DEVNAME=dri/card0\n")
    host.put("/proc/812/comm", b"\x1b]0;x\x07\xff\n")
    host.put("/proc/812/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/812/fd/11"))
    for arguments in (("device", "show", "01:00.0"), ("device", "show", "01:00.0", "--json")):
        status, out, _ = call(host, capfd, *arguments)
        assert status == 0
        assert "\x1b" not in out
        assert "812" in out


def test_one_device_with_its_surroundings(host: SimulatedHost, capfd: Captured) -> None:
    host.put(f"/sys/bus/pci/devices/{CARD}/reset_method", "flr bus\n")
    status, out, _ = call(host, capfd, "device", "show", "01:00.0")
    assert status == 0
    assert "0000:01:00.1" in out
    assert "flr, bus" in out
    details = json.loads(call(host, capfd, "device", "show", "01:00.0", "--json")[1])
    assert details["card"] == ["0000:01:00.0", "0000:01:00.1"]
    assert (details["reset_methods"], details["resets_with_bus"]) == (["flr", "bus"], True)
    assert "with its bus as a whole" in call(host, capfd, "device", "show", "01:00.1")[1]
    assert "none: it may not start a second time" in call(host, capfd, "device", "show", "03:00.0")[1]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("device", "show", "nonsense"), 2, "'nonsense' is not a PCI address"),
        (("device", "show", "0b:00.0"), 3, "there is no PCI device 0000:0b:00.0 on this host"),
        (("device", "show"), 2, "Missing argument 'ADDRESS'"),
        (("device", "show", "\x1b[31m"), 2, "'\\x1b[31m' is not a PCI address"),
        (("devices", "--colour"), 2, "No such option"),
        (
            ("devices", "--jsn"),
            2,
            "No such option: --jsn; did you mean --json? Else see virtpass devices --help",
        ),
        (("frobnicate",), 2, "No such command 'frobnicate'; see virtpass --help"),
        (("docter",), 2, "No such command 'docter'; did you mean virtpass doctor? Else see virtpass --help"),
        (("device", "function-at-boot"), 2, "did you mean virtpass device functions? Else see"),
        (("hook", "Reherse"), 2, "did you mean virtpass hook rehearse? Else see virtpass hook --help"),
        (("\x1bdoctor",), 2, "No such command '\\x1bdoctor'; did you mean virtpass doctor?"),
        (("device", "detach", "01:00.0", "-c", NOWHERE), 6, "/nonexistent"),
        (("domain", "attach", "guest", "01:00.0", "-c", NOWHERE), 6, "/nonexistent"),
        (("domain", "attach", "guest", "-c", NOWHERE), 2, "Missing argument 'ADDRESS...'"),
        (("domain", "attach", "guest", "x", "-c", NOWHERE), 2, "'x' is not a PCI address"),
        (("domain", "policy"), 2, "Missing argument 'DOMAIN'"),
        (("domain", "policy", "guest", "-c", NOWHERE), 6, "/nonexistent"),
        (("domain", "policy", "guest", "wait", "-c", NOWHERE), 2, "'wait' is not KEY=VALUE; known: display="),
        (("domain", "policy", "guest", "wait=301", "-c", NOWHERE), 2, "wait=0..300"),
        (("domain", "policy", "guest", "screen=x", "-c", NOWHERE), 2, "there is no key 'screen'; known: dis"),
        (("domain", "policy", "guest", "wait=1", "wait=1", "-c", NOWHERE), 2, "wait is given twice"),
        (("domain", "policy", "guest", "wait=1", "--json", "-c", NOWHERE), 2, "--json shows the policy"),
        (("domain", "attach", "guest", "01:00.0", "--policy", "display=x"), 2, "display=refuse|hand-over"),
        (("domain", "attach", "guest", "01:00.0", "--policy", "wait=1", "--policy", "wait="), 2, "twice"),
        (("hook", "install"), 6, "libvirt is not installed"),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    host: SimulatedHost, capfd: Captured, arguments: tuple[str, ...], status: int, words: str
) -> None:
    before = host.state()
    seen, out, err = call(host, capfd, *arguments)
    assert (seen, out) == (status, "")
    assert err.startswith("virtpass: ")
    assert err.count("\n") == 1
    assert words in err
    assert host.calls == []
    assert host.state() == before


def policy(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    return call(host, capfd, "domain", "policy", "guest", *arguments, "-c", TEST_DRIVER)


@pytest.mark.usefixtures("libvirt")
def test_the_policy_of_a_domain_is_shown_with_what_it_costs(host: SimulatedHost, capfd: Captured) -> None:
    setting = ("--policy", "display=hand-over", "--policy", "wait=0")
    status, out, err = call(host, capfd, "domain", "attach", "guest", "01:00.0", *setting, "-c", TEST_DRIVER)
    assert (status, out) == (0, "")
    assert "guest: set policy display=hand-over instead of refuse\n" in err
    assert "note: display=hand-over: the desktop session" in err
    status, out, err = policy(host, capfd)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "display=hand-over",
        "companions=bind",
        "huge-pages=no",
        "isolate-cpus=no",
        "governor=keep",
        "wait=0",
    ]
    assert [line.endswith(" (default)") for line in lines] == [False, True, True, True, True, False]
    assert lines[0].endswith("unsaved work is lost")
    found = json.loads(policy(host, capfd, "--json")[1])
    assert found["policy"] == {**found["defaults"], "display": "hand-over", "wait": 0}
    assert found["defaults"]["wait"] == 15
    assert found["meaning"]["display"] in lines[0]
    shown = ("domain", "show", "guest", "-c", TEST_DRIVER)
    assert "  policy        display=hand-over, wait=0\n" in call(host, capfd, *shown)[1]
    assert json.loads(call(host, capfd, *shown, "--json")[1])["policy"] == found["policy"]


def test_the_policy_of_a_domain_is_set(libvirt: Connection, host: SimulatedHost, capfd: Captured) -> None:
    call(host, capfd, "domain", "attach", "guest", "01:00.0", "-c", TEST_DRIVER)
    before = libvirt.domain("guest").inactive_xml()
    shown = ("domain", "show", "guest", "-c", TEST_DRIVER)
    assert "policy" not in call(host, capfd, *shown)[1]
    status, out, err = policy(host, capfd, "huge-pages=yes", "--dry-run")
    assert status == 0
    assert '\n+      <virtpass:policy display="refuse" huge-pages="yes"/>\n' in out
    assert err == "note: huge-pages=yes: the domain's memory is reserved in huge pages; " + (
        "the host is without it while the domain runs\n"
    )
    assert libvirt.domain("guest").inactive_xml() == before
    status, out, err = policy(host, capfd, "huge-pages=yes", "governor=performance")
    assert (status, out) == (0, "")
    assert err.startswith("guest: set policy huge-pages=yes instead of no\n")
    assert "nothing to do" in policy(host, capfd, "governor=performance")[2]
    assert "set policy governor=keep instead of performance" in policy(host, capfd, "governor=")[2]
    assert "  policy        huge-pages=yes\n" in call(host, capfd, *shown)[1]
    assert policy(host, capfd, "huge-pages=")[0] == 0
    assert libvirt.domain("guest").inactive_xml() == before


@pytest.mark.usefixtures("libvirt")
@pytest.mark.parametrize("arguments", [(), ("--json",), ("wait=1",), ("wait=1", "--dry-run")])
def test_a_domain_that_is_not_ours_has_no_policy(
    host: SimulatedHost, capfd: Captured, arguments: tuple[str, ...]
) -> None:
    status, out, err = policy(host, capfd, *arguments)
    assert (status, out) == (4, "")
    assert "virtpass domain adopt" in err


def test_the_hook_s_status_is_1_until_it_is_installed(host: SimulatedHost, capfd: Captured) -> None:
    status, out, _ = call(host, capfd, "hook", "status")
    assert status == 1
    assert "not installed" in out
    os.makedirs(host.path("/etc/libvirt"))
    os.makedirs(host.path("/usr/bin"))
    os.symlink("/usr/bin/python3", host.path("/usr/bin/python3"))
    status, out, err = call(host, capfd, "hook", "install")
    assert (status, out) == (0, "")
    assert "/etc/libvirt/hooks/qemu.d/50-virtpass" in err
    assert call(host, capfd, "hook", "status")[0] == 0
    assert json.loads(call(host, capfd, "hook", "status", "--json")[1])["state"] == "current"
    assert "hook removed" in call(host, capfd, "hook", "uninstall")[2]
    assert call(host, capfd, "hook", "status")[0] == 1


def test_recover_says_what_it_would_do_and_then_does_it(host: SimulatedHost, capfd: Captured) -> None:
    nothing = (0, "nothing is lent: there is nothing to recover\n", "")
    assert call(host, capfd, "recover", "-c", NOWHERE) == nothing
    assert call(host, capfd, "recover", "--dry-run", "-c", NOWHERE) == nothing
    before = host.state()
    run(host, "prepare", domain_xml(CARD, AUDIO))
    lent = host.state()
    status, out, _ = call(host, capfd, "recover", "--dry-run", "-c", NOWHERE)
    assert status == 0
    assert out.splitlines()[:2] == [
        "guest: would be given back",
        "  0000:01:00.0: set driver_override to bochs-drm",
    ]
    assert host.state() == lent
    status, out, _ = call(host, capfd, "recover", "--json", "-c", NOWHERE)
    assert (status, json.loads(out)[0]["state"]) == (0, "recovered")
    assert host.state() == before


def test_recover_tells_by_its_status_that_something_is_left(host: SimulatedHost, capfd: Captured) -> None:
    run(host, "prepare", domain_xml(CARD, AUDIO))
    host.refusing.add(("bochs-drm", CARD))
    status, out, err = call(host, capfd, "recover", "-c", NOWHERE)
    assert status == 1
    assert "guest: failed" in out
    assert "could not be bound to bochs-drm" in err
    assert (Path(host.path("/run/virtpass/lent")) / GUEST).exists()


def test_where_you_stand_without_libvirt_and_without_iommu(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtpass.cli.overview.overview", lambda h: overview_at(h, NOWHERE))
    status, out, _ = call(host, capfd)
    assert status == 0
    assert "IOMMU active, 7 groups" in out
    assert "Hook     not installed" in out
    assert "Domains  unknown: " in out
    # Setting up takes libvirt, too.
    assert out.splitlines()[-1] == f"Next     {how_to_start(Host())}"
    host.switch_iommu_off()
    out = call(host, capfd)[1]
    assert "no IOMMU is active" in out
    assert out.splitlines()[-1] == "Next     virtpass doctor"


def overview_at(host: SimulatedHost, uri: str) -> object:
    from virtpass.operations.overview import overview

    return overview(host, uri)


def in_terminal(columns: int) -> str:
    """Run the list on a terminal of a given width, and return what it shows."""
    session = Session("devices", columns=columns, environment={"NO_COLOR": "1"})
    session.end()
    return session.raw.replace("\r\n", "\n")


def test_a_narrow_terminal_shortens_the_names_only() -> None:
    wide, narrow, narrowest = in_terminal(250), in_terminal(90), in_terminal(60)
    addresses = [line.split()[1] for line in wide.splitlines()[1:] if line.split()[1].count(":") == 2]
    assert addresses
    for address in addresses:
        assert f" {address} " in narrow
        assert f"Address: {address}\n" in narrowest
    assert max(map(len, narrow.splitlines())) <= 90


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "virtpass", "devices"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("devices >/dev/full", "No space left on device"),
        ("devices --json >/dev/full", "No space left on device"),
        ("--help >/dev/full", "No space left on device"),
        ("devices >&-", "it is closed"),
        ("devices --json >&-", "it is closed"),
    ],
)
def test_what_cannot_be_written_is_one_line(command: str, reason: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m virtpass {command}', sys.executable],
        stderr=subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        text=True,
        check=False,
    )
    assert done.returncode == 1
    line = f"virtpass: the output cannot be written: {reason}; free some space, or write elsewhere\n"
    assert done.stderr == line


def test_notes_that_nobody_takes_cut_nothing_off() -> None:
    for redirection in ("2>/dev/full", "2>&-"):
        done = subprocess.run(
            ["/bin/sh", "-c", f'exec "$0" -m virtpass devices {redirection}', sys.executable],
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
            text=True,
            check=False,
        )
        assert done.stdout.startswith("GROUP ")


@pytest.mark.parametrize("key", [b"\x03", b"\x04"])
def test_a_question_that_is_left_ends_its_line(key: bytes) -> None:
    code = (
        "import sys; import virtpass.cli as c; from virtpass.cli.output import agree; "
        "c.cli.main = lambda *a, **k: agree('Do this?'); sys.exit(c.main([]))"
    )
    session = Session("-c", code)
    session.shows("Do this? [y/N]:")
    session.press_until_it_ends(key)
    assert session.end() == 130
    assert session.screen.lines[-2:] == ["virtpass: interrupted", ""]


def test_a_card_that_waits_for_the_iommu_is_not_lost_for_ever(host: SimulatedHost, capfd: Captured) -> None:
    host.switch_iommu_off()
    status, out, err = call(host, capfd, "devices")
    (card,) = [line for line in out.splitlines() if str(CARD) in line]
    assert card.endswith("blocked: no IOMMU is active on this host")
    told = "no IOMMU is active: virtpass doctor tells what mends it\n"
    assert (status, err) == (0, told)
    assert call(host, capfd, "device", "show", "01:00.0")[2] == told


def test_devices_without_names_show_their_ids_first(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.operations.devices.device_names", lambda *_: {})
    capfd.readouterr()
    assert main(["devices"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r" \[[0-9a-f]{4}:[0-9a-f]{4}\] \(no name\)", out)
    assert err.count("names come from systemd's hardware database") == 1


def test_the_name_of_a_node_device_is_an_address(host: SimulatedHost, capfd: Captured) -> None:
    by_name = call(host, capfd, "device", "show", "pci_0000_01_00_0")
    assert by_name == call(host, capfd, "device", "show", "01:00.0")
    assert call(host, capfd, "device", "show", "pci_0000_01_00")[0] == 2


@pytest.mark.usefixtures("libvirt")
def test_a_group_that_goes_together_comes_with_its_command(host: SimulatedHost, capfd: Captured) -> None:
    arguments = ("domain", "attach", "guest", "06:01.0", "-c", TEST_DRIVER)
    status, _, err = call(host, capfd, *arguments)
    assert status == 4
    assert err.endswith("; virtpass domain attach guest 0000:06:01.0 0000:06:02.0\n")
    together = ("domain", "attach", "guest", "0000:06:01.0", "0000:06:02.0", "-c", TEST_DRIVER)
    assert call(host, capfd, *together)[0] == 0


def test_a_device_that_is_not_recorded_is_shown_as_that(
    libvirt: Connection, host: SimulatedHost, capfd: Captured
) -> None:
    shown = ("domain", "show", "guest", "-c", TEST_DRIVER)
    assert call(host, capfd, "domain", "attach", "guest", "01:00.0", "-c", TEST_DRIVER)[0] == 0
    assert "not recorded" not in call(host, capfd, *shown)[1]
    xml = libvirt.domain("guest").inactive_xml()
    device = (
        "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
        "<address domain='0' bus='2' slot='0' function='0'/></source></hostdev>"
    )
    libvirt.define(xml.replace("</devices>", f"{device}</devices>"), validate=False)
    status, out, err = call(host, capfd, *shown)
    assert status == 0
    assert out.count("not recorded: nobody notices if another device is there\n") == 1
    assert err == "next: virtpass domain adopt guest\n"
    assert call(host, capfd, "domain", "adopt", "guest", "-c", TEST_DRIVER)[0] == 0
    assert "not recorded" not in call(host, capfd, *shown)[1]


def test_a_domain_that_is_not_looked_after_says_so_in_the_data(
    libvirt: Connection, host: SimulatedHost, capfd: Captured
) -> None:
    libvirt.define(documents.domain(documents.hostdev("01:00.0", "03:00.0"), kind="test"), validate=False)
    _, out, err = call(host, capfd, "domain", "show", "guest", "-c", TEST_DRIVER)
    assert out.endswith("virtpass does not look after it\n")
    assert err == "next: virtpass domain adopt guest\n"


@pytest.mark.parametrize("group", ["", "device", "domain", "hook", "host", "mdev"])
def test_help_cuts_no_sentence_off(host: SimulatedHost, capfd: Captured, group: str) -> None:
    for line in call(host, capfd, *group.split(), "--help")[1].partition("Commands:")[2].splitlines():
        assert not line.endswith("..."), line


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("devices", "--help"),
        ("domain", "attach", "--help"),
        ("domain", "policy", "--help"),
        ("--version",),
    ],
)
def test_help_works_everywhere(host: SimulatedHost, capfd: Captured, arguments: tuple[str, ...]) -> None:
    status, out, err = call(host, capfd, *arguments)
    assert (status, err) == (0, "")
    assert out


def test_the_overview_loads_nothing_of_what_it_does_not_say() -> None:
    """It stands at the prompt of everybody, so its start counts."""
    code = "import sys, virtpass.cli.overview; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONPATH": str(ROOT)},
        text=True,
        check=True,
    )
    loaded = {name for name in done.stdout.split() if name.startswith("virtpass.")}
    assert "virtpass.operations.overview" in loaded
    for name in ("virtpass.doctor", "virtpass.host", "virtpass.transaction", "virtpass.operations.rehearsal"):
        assert not {one for one in loaded if one == name or one.startswith(f"{name}.")}
