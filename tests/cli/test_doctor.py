"""`virtpass doctor` as a user sees it."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.test_commands import NOWHERE, ROOT, TEST_DRIVER, Captured, call
from tests.domain.documents import UUID, domain, hostdev
from tests.simulation import CARD, SimulatedHost
from virtpass.doctor.catalogue import CHECKS
from virtpass.system.libvirt import Connection

DOCUMENT = Path(ROOT) / "docs" / "doctor.md"


def test_what_needs_attention_comes_with_its_fix(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "doctor", "-c", TEST_DRIVER)
    assert status == 1
    lines = out.splitlines()
    at = lines.index("the hook (hook)")
    assert lines[at + 1].split(maxsplit=1) == ["fail", "the hook is not installed"]
    assert lines[at + 2].strip() == "fix: sudo virtpass hook install"
    # What is right takes one line for all of it.
    assert lines[-2].startswith("pass ")
    assert "libvirt," in lines[-2]
    assert f"{CARD}: nothing else is in IOMMU group 10" not in out
    assert re.fullmatch(r"\d+ pass, \d+ warn, .*\d+ fail", lines[-1])
    assert "virtpass doctor --explain ID" in err


def test_all_of_it(host: SimulatedHost, capfd: Captured) -> None:
    _, out, _ = call(host, capfd, "doctor", "--all", "-c", TEST_DRIVER)
    assert f"{CARD}: nothing else is in IOMMU group 10" in out
    assert all(f"({check.reference})" in out for check in CHECKS)


def test_as_json(host: SimulatedHost, capfd: Captured) -> None:
    status, out, _ = call(host, capfd, "doctor", "--json", "-c", TEST_DRIVER)
    assert status == 1
    found = json.loads(out)
    assert found["verdict"] == "fail"
    assert [one["id"] for one in found["checks"]] == [check.reference for check in CHECKS]
    (hook,) = [one for one in found["checks"] if one["id"] == "hook"]
    assert hook["findings"] == [
        {
            "verdict": "fail",
            "about": None,
            "evidence": "the hook is not installed",
            "fix": "sudo virtpass hook install",
        }
    ]


def test_a_daemon_that_is_away_is_a_finding(host: SimulatedHost, capfd: Captured) -> None:
    status, out, _ = call(host, capfd, "doctor", "-c", NOWHERE)
    assert status == 1
    assert "libvirt does not answer: " in out


def test_a_card_that_was_added_elsewhere(host: SimulatedHost, capfd: Captured, libvirt: Connection) -> None:
    """What the doctor tells to type can be typed, and mends it."""
    libvirt.define(domain(hostdev(str(CARD)), uuid=UUID, kind="test"), validate=False)
    finding = f"guest: virtpass does not look after {CARD}: at its start nothing is checked"
    out = call(host, capfd, "doctor", "-c", TEST_DRIVER)[1]
    assert finding in out
    assert "fix: virtpass domain adopt guest\n" in out
    assert f"fix: sudo virtpass setup {CARD} guest --policy display=hand-over # " in out
    assert call(host, capfd, "domain", "adopt", "guest", "-c", TEST_DRIVER)[0] == 0
    out = call(host, capfd, "doctor", "-c", TEST_DRIVER)[1]
    assert finding not in out
    assert "fix: virtpass domain policy guest display=hand-over # " in out
    assert call(host, capfd, "domain", "policy", "guest", "display=hand-over", "-c", TEST_DRIVER)[0] == 0
    out = call(host, capfd, "doctor", "-c", TEST_DRIVER)[1]
    assert "display=hand-over" not in out
    assert "fix: start an SSH server\n" in out


@pytest.mark.parametrize("verdict", ["pass", "warn", "cannot tell", "fail"])
def test_the_exit_status_tells_the_worst(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch, verdict: str
) -> None:
    from virtpass.doctor import catalogue
    from virtpass.doctor.check import Check, Finding, Verdict

    made = Check("made", "made up", "Because.", lambda scene: [Finding(Verdict(verdict), "so it is")])
    monkeypatch.setattr(catalogue, "CHECKS", (made,))
    status, _, _ = call(host, capfd, "doctor", "-c", TEST_DRIVER)
    assert status == {"pass": 0, "warn": 10, "cannot tell": 11, "fail": 1}[verdict]
    assert f"| {status} |" in (Path(ROOT) / "docs" / "exit-status.md").read_text(encoding="utf-8")


def test_interfaces_of_a_domain_are_libvirt_s_own(
    host: SimulatedHost, capfd: Captured, libvirt: Connection
) -> None:
    """To adopt the domain would not put them on record."""
    interface = (
        "<interface type='hostdev' managed='yes'><source>"
        "<address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></source></interface>"
    )
    libvirt.define(domain(interface, uuid=UUID, kind="test"), validate=False)
    assert "virtpass does not look after" not in call(host, capfd, "doctor", "-c", TEST_DRIVER)[1]


def test_explaining(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "doctor", "--explain", "iommu")
    assert call(host, capfd, "doctor", "--explain", "IOMMU") == (status, out, err)
    assert (status, err) == (0, "")
    assert out.startswith("iommu: IOMMU\n")
    status, out, err = call(host, capfd, "doctor", "--explain", "nothing")
    assert (status, out) == (3, "")
    assert "there is no check 'nothing'; the checks are cpu-virtualization, " in err


def test_every_check_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    flat = " ".join(text.split())
    headings = re.findall(r"^### `(.*)`$", text, re.MULTILINE)
    assert headings == [check.reference for check in CHECKS]
    assert all(check.why in flat for check in CHECKS)
