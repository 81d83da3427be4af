"""What is said of hosts that somebody has taken a snapshot of stays what somebody has found to be right.

Each file in tests/snapshots is a host, and the one of the same name beside it what is said of that host:
verdicts of the doctor, and on its devices. With --golden these are written anew; look at what has changed.
The first host is a simulated one (tests/simulation.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from virtpass.operations.devices import list_devices
from virtpass.operations.doctor import examine_host
from virtpass.operations.snapshot import opened

SNAPSHOTS = sorted((Path(__file__).parents[1] / "snapshots").glob("*.snapshot"))


def test_there_are_some() -> None:
    assert SNAPSHOTS


@pytest.mark.parametrize("path", SNAPSHOTS, ids=[path.stem for path in SNAPSHOTS])
def test_what_is_said_of_a_host(path: Path, request: pytest.FixtureRequest) -> None:
    with opened(str(path)) as host:
        found = {
            "checks": {one.check.reference: one.verdict.value for one in examine_host(host).outcomes},
            "devices": {
                str(one.device.address): [
                    one.verdict.level.value,
                    *(reason.text for reason in one.verdict.reasons),
                ]
                for one in list_devices(host)
            },
        }
    expected = path.with_suffix(".json")
    if request.config.getoption("--golden"):
        expected.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    assert found == json.loads(expected.read_text(encoding="utf-8"))
