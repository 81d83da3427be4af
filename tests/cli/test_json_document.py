"""docs/json.md has what the commands print with --json: each command, each field, its type, its values."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from tests.cli import test_log, test_preparation
from tests.cli.test_commands import NOWHERE, ROOT, TEST_DRIVER, Captured, call, overview_at
from tests.cli.test_device_functions import TYPE
from tests.cli.test_rehearse import Piped
from tests.host.machine import switch_off
from tests.host.rows import Programs
from tests.simulation import AUDIO, CARD, NIC, OTHER, SHARED, SimulatedHost, domain_xml
from virtpass.binding.policy import POLICY_KEYS
from virtpass.cli import cli
from virtpass.cli.hooks import STATES
from virtpass.cli.preparation import plan_json
from virtpass.doctor.check import Verdict as DoctorVerdict
from virtpass.hook import report
from virtpass.hook.entry import run
from virtpass.host.boot import Severity
from virtpass.host.iommu import IommuState
from virtpass.host.kernels import Presence
from virtpass.host.record import Attribute
from virtpass.host.status import Verdict as HostVerdict
from virtpass.host.wishes import Wishes
from virtpass.operations import hand_overs, host_preparation
from virtpass.pci.isolation import Level

DOCUMENT = Path(ROOT) / "docs" / "json.md"
PLAIN: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


# the document


class Field(NamedTuple):
    """One row of a table of fields."""

    kind: str
    values: frozenset[str]


def one_of(meaning: str) -> frozenset[str]:
    """Return the values that a sentence lists; none where any is possible."""
    listed = re.search(r"one of ((?:`[^`]+`(?:, )?)+)", meaning)
    return frozenset(re.findall(r"`([^`]+)`", listed[1]) if listed else ())


@cache
def sections() -> dict[str, dict[str, Field]]:
    """Return the fields of each value that has a heading, with those that it takes over from another."""
    found: dict[str, dict[str, Field]] = {}
    for part in re.split(r"^### ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        rows = re.findall(r"^\| ([\w-]+) \| (.+?) \| ?(.*?) ?\|$", text, re.MULTILINE)
        fields = {field: Field(kind, one_of(meaning)) for field, kind, meaning in rows if field != "field"}
        for base in re.findall(r"^All fields of \[(.+?)\]", text, re.MULTILINE):
            fields |= found[base]
        found[name] = fields
    return found


@cache
def commands() -> dict[str, str]:
    """Return the type of each command's value."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("\n## Commands\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(virtpass.*?)` \| ([^,|]+?)(?:,.*?)? \|", text, re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def named(kind: str) -> str | None:
    """Return the section that a type refers to."""
    found = re.fullmatch(r"(?:list of )?\[([\w-]+)\]\(#\1\)(?: or null)?", kind)
    return found[1] if found else None


def reachable(kind: str) -> set[str]:
    """Return all sections that a value of a type leads to."""
    found: set[str] = set()
    waiting = [kind]
    while waiting:
        name = named(waiting.pop())
        if name is not None and name not in found:
            found.add(name)
            waiting += [field.kind for field in sections()[name].values()]
    return found


def fit(value: Any, kind: str, seen: set[str], where: str = "", values: frozenset[str] = frozenset()) -> None:  # noqa: ANN401 (any JSON)
    """Compare a value with a type of the document, and add what was met to ``seen``."""
    if kind.endswith(" or null"):
        if value is not None:
            fit(value, kind.removesuffix(" or null"), seen, where, values)
    elif kind.startswith("list of "):
        assert isinstance(value, list), where
        for one in value:
            fit(one, kind.removeprefix("list of "), seen, f"{where}[]", values)
    elif (name := named(kind)) is not None:
        seen.add(name)
        fields = sections()[name]
        assert isinstance(value, dict), where
        assert value.keys() == fields.keys(), where
        for key, field in fields.items():
            fit(value[key], field.kind, seen, f"{where}.{key}", field.values)
    else:
        assert isinstance(value, PLAIN[kind]), (where, value)
        assert isinstance(value, bool) is (kind == "boolean"), (where, value)
        assert not values or value in values, (where, value)


class Printed:
    """Runs commands and compares what they print with the document.

    Attributes:
        used: the commands that were run.
        seen: the sections that were met.
    """

    def __init__(self, host: SimulatedHost, capfd: Captured) -> None:
        self.host = host
        self.capfd = capfd
        self.used: set[str] = set()
        self.seen: set[str] = set()

    def __call__(self, command: str, *more: str, status: int = 0) -> Any:  # noqa: ANN401 (any JSON)
        """Run a command of the document's table, with what it needs; return the value."""
        words = [word for word in command.split()[1:] if not word.isupper()]
        ended, out, err = call(self.host, self.capfd, *words, *more, "--json")
        assert ended == status, err
        value = json.loads(out)
        self.used.add(command)
        fit(value, commands()[command], self.seen, command)
        return value

    def unmet(self) -> set[str]:
        """Return the sections that these commands lead to, and that were in none of the values."""
        return set().union(*(reachable(commands()[command]) for command in self.used)) - self.seen


@pytest.fixture
def printed(host: SimulatedHost, capfd: Captured) -> Printed:
    return Printed(host, capfd)


@pytest.fixture
def debian(tmp_path: Path, capfd: Captured) -> Printed:
    """A Debian host that can be prepared."""
    return Printed(test_preparation.debian(tmp_path), capfd)


programs = test_preparation.programs


# the document as a whole


def options_of(command: click.Command) -> set[str]:
    return {option for one in command.params for option in one.opts}


def with_json(group: click.Group, path: str) -> Iterator[str]:
    """Yield all commands that take --json."""
    context = click.Context(group)
    if "--json" in options_of(group):
        yield path
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from with_json(command, f"{path} {name}")
        elif "--json" in options_of(command):
            yield f"{path} {name}"


def test_every_command_with_json_is_there() -> None:
    assert {command.partition(" --")[0] for command in commands()} == set(with_json(cli, "virtpass"))


def test_every_value_belongs_to_a_command() -> None:
    assert set().union(*map(reachable, commands().values())) == set(sections())
    kinds = {field.kind for fields in sections().values() for field in fields.values()}
    simple = {kind.removeprefix("list of ").removesuffix(" or null") for kind in kinds if not named(kind)}
    assert simple <= set(PLAIN)
    assert all(sections().values())


@pytest.mark.parametrize(
    ("section", "field", "values"),
    [
        ("device", "verdict", [one.value for one in Level]),
        ("examination", "verdict", [one.value for one in DoctorVerdict]),
        ("check", "verdict", [one.value for one in DoctorVerdict]),
        ("finding", "verdict", [one.value for one in DoctorVerdict]),
        ("hook", "state", list(STATES)),
        ("iommu", "state", [one.value for one in IommuState]),
        ("plan-note", "severity", [one.value for one in Severity]),
        ("modules", "vfio-pci", [one.value for one in Presence]),
        ("host-check", "verdict", [one.value for one in HostVerdict]),
    ],
)
def test_all_values_are_named(section: str, field: str, values: list[str]) -> None:
    assert sections()[section][field].values == set(values)


def test_the_policy_has_its_keys() -> None:
    assert set(sections()["policy"]) == {*POLICY_KEYS, "wait"}


def test_a_failure_prints_no_json(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "device", "show", "0b:00.0", "--json")
    assert (status, out) == (3, "")
    assert err.startswith("virtpass: ")


# the commands


@pytest.mark.usefixtures("libvirt")
def test_where_you_stand(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    call(printed.host, printed.capfd, "domain", "attach", "guest", "01:00.0", "-c", TEST_DRIVER)
    run(printed.host, "prepare", domain_xml(NIC))
    for uri in (TEST_DRIVER, NOWHERE):
        monkeypatch.setattr("virtpass.cli.overview.overview", lambda host, uri=uri: overview_at(host, uri))
        found = printed("virtpass")
        assert (found["domains"] is None) is (uri == NOWHERE)
        assert [one["address"] for one in found["lent"]] == [str(NIC)]
    assert printed.unmet() == set()


def test_devices(printed: Printed) -> None:
    host = printed.host
    host.add_functions(NIC, 7, "igbvf", 40)
    host.add_mediated_type(CARD, TYPE, 2, "GRID T4-1B")
    node = f"/sys/bus/pci/devices/{CARD}/drm/card0"
    host.put(f"{node}/dev", "226:0\n")
    host.put(f"{node}/uevent", "DEVNAME=dri/card0\n")
    host.put("/proc/812/comm", "Xorg\n")
    host.put("/proc/812/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/812/fd/11"))
    made = printed("virtpass mdev create", str(CARD), TYPE)
    assert printed("virtpass devices")
    card = printed("virtpass device show", str(CARD))
    assert [one["program"] for one in card["used_by"]] == ["Xorg"]
    assert [one["uuid"] for one in card["mediated"]["devices"]] == [made["uuid"]]
    assert printed("virtpass device show", str(NIC))["virtual_functions"]["total"] == 7
    assert printed("virtpass mdev types")
    printed("virtpass mdev create --dry-run", str(CARD), TYPE)
    printed("virtpass mdev remove --dry-run", made["uuid"], "-c", NOWHERE)
    printed("virtpass mdev remove", made["uuid"], "-c", NOWHERE)
    assert printed.unmet() == set()


def test_doctor(printed: Printed) -> None:
    printed("virtpass doctor", "-c", NOWHERE, status=1)
    printed("virtpass doctor --explain ID", "iommu")
    assert printed.unmet() == set()


@pytest.mark.usefixtures("libvirt")
def test_domains(printed: Printed) -> None:
    call(printed.host, printed.capfd, "domain", "attach", "guest", "01:00.0", "-c", TEST_DRIVER)
    found = printed("virtpass domain show", "guest", "-c", TEST_DRIVER)
    assert [one["address"] for one in found["devices"]] == [str(CARD), str(AUDIO)]
    printed("virtpass domain policy", "guest", "-c", TEST_DRIVER)
    assert printed.unmet() == set()


def test_the_hook(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed("virtpass hook status", status=1)["state"] == "absent"
    for addresses, status in (((CARD,), 0), ((SHARED[0],), 1)):
        monkeypatch.setattr(sys, "stdin", Piped(domain_xml(*addresses)))
        found = printed("virtpass hook rehearse", "-", status=status)
        assert found["would_start"] is (status == 0)
    assert printed.unmet() == set()


def test_the_log(printed: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = test_log.Journal()
    monkeypatch.setattr(report, "send", journal.take)
    monkeypatch.setattr(hand_overs, "output_of", journal.output_of)
    printed.host.put(test_log.JOURNAL, b"LPKSHHRH")
    printed.host.put("/usr/bin/journalctl")
    test_log.hand_over()
    test_log.hand_over("release", problem="the driver refuses")
    report.Report("prepare", "other", OTHER).done("checks", "", 0.02)
    assert [one["outcome"] for one in printed("virtpass log")] == ["done", "failed", "unfinished"]
    assert printed.unmet() == set()


def test_recovering(printed: Printed) -> None:
    assert printed("virtpass recover", "-c", NOWHERE) == []
    run(printed.host, "prepare", domain_xml(CARD, AUDIO))
    assert printed("virtpass recover", "--dry-run", "-c", NOWHERE)[0]["state"] == "pending"
    assert printed("virtpass recover", "-c", NOWHERE)[0]["state"] == "recovered"
    assert printed.unmet() == set()


def test_a_snapshot(printed: Printed, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert printed("virtpass snapshot", "--list", "-c", NOWHERE)["files"]
    file = tmp_path_factory.mktemp("taken") / "x.snapshot"
    printed("virtpass snapshot", os.fspath(file), "-c", NOWHERE)
    assert printed.unmet() == set()


def test_preparing_the_host(debian: Printed, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    host = debian.host
    assert debian("virtpass host revert", "--yes") is None
    assert debian("virtpass host status")["applied"] is None
    planned = debian("virtpass host plan", "--pt")
    assert planned["files"]
    assert debian("virtpass host apply", "--pt", "--trial", "--yes")["trial_entry"]
    assert debian("virtpass host status")["checks"]
    host.put("/proc/cmdline", f"{host.read('/proc/cmdline')} iommu=pt virtpass=trial\n")
    debian("virtpass host confirm", "--yes")
    assert debian("virtpass host status")["applied"]["arguments"] == ["iommu=pt"]
    debian("virtpass host revert", "--yes")
    test_preparation.cut_off(host, monkeypatch)
    assert debian("virtpass host recover", "--dry-run")
    assert debian("virtpass host recover")
    switch_off(host)
    assert debian("virtpass host plan")["iommu"]["state"] == "kernel argument missing"
    # Only a plan for the machine itself has these, not one for a host below a directory.
    assert debian.unmet() == {"kernel-parameter"}
    switches = (Attribute("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y"),)
    wanted = replace(host_preparation.plan(host, Wishes()), switches=switches)
    fit(plan_json(wanted), commands()["virtpass host plan"], debian.seen)
    assert debian.unmet() == set()
