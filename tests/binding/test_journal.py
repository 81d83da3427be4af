"""The journal: what was written is read back, and nothing in it is trusted."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pci.test_address import addresses
from tests.simulation import AUDIO, CARD, GUEST, OTHER, SimulatedHost, domain_xml
from virtpass.binding.journal import DIRECTORY, NEWER, Home, Journal, journals, read_journal
from virtpass.hook.entry import run
from virtpass.operations.recovery import recover
from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.host import Host

drivers = st.none() | st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9_-]{0,20}", fullmatch=True)
homes = st.lists(st.builds(Home, addresses, drivers, drivers), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=40), homes=homes)
def test_what_was_written_is_read_back(tmp_path: Path, name: str, homes: list[Home]) -> None:
    host = Host(str(tmp_path))
    journal = Journal(host, GUEST, name)
    journal.begin(homes)
    seen = read_journal(host, GUEST)
    journal.remove()
    assert seen is not None
    assert (seen.name, seen.homes) == (name, homes)
    assert read_journal(host, GUEST) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_any_content_is_understood_or_refused(tmp_path: Path, content: bytes) -> None:
    host = SimulatedHost(str(tmp_path))
    host.put(f"{DIRECTORY}/{GUEST}", content)
    try:
        read_journal(host, GUEST)
    except FailedError as error:
        assert error.reference in ("journal-unreadable", NEWER)


@pytest.mark.parametrize(
    "line",
    [
        f"domain\t{OTHER}\tguest",
        "home\t0000:01:00.0\t../../x\t-",
        "home\t0000:01:00.0\ta%2fb\t-",
        "home\tnowhere\t-\t-",
        "home\t0000:01:00.0\t%\t-",
        "whatever",
        "starter\t12\tsoon",
        "ended\ttwice",
    ],
)
def test_a_record_that_is_none_of_ours_is_refused(host: SimulatedHost, line: str) -> None:
    host.put(f"{DIRECTORY}/{GUEST}", f"virtpass\t1\n{line}\n")
    with pytest.raises(FailedError, match="is not a record of virtpass"):
        read_journal(host, GUEST)


@pytest.mark.parametrize(
    ("content", "unknown"),
    [
        ("virtpass\t1\nhome\t0000:01:00.0\tbochs-drm\t-\nlater-kind\tx\ty\n", "line 3 .*'later-kind'"),
        ("virtpass\t2\nwhatever\n", "line 1 .*format 2"),
    ],
)
def test_what_only_a_newer_version_knows_is_kept_as_it_is(
    host: SimulatedHost, content: str, unknown: str
) -> None:
    host.put(f"{DIRECTORY}/{GUEST}", content)
    with pytest.raises(FailedError, match=unknown) as refused:
        read_journal(host, GUEST)
    assert (refused.value.reference, "\n" in refused.value.line) == (NEWER, False)
    assert "keep the file" in refused.value.remedy
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 1
    assert run(host, "release", domain_xml(CARD, AUDIO)) == 1
    (found,) = recover(host, lambda: [])
    assert found.state == "failed"
    assert (host.calls, host.read_bytes(f"{DIRECTORY}/{GUEST}")) == ([], content.encode())


def test_an_effect_that_only_a_newer_version_knows_stays_on_record(host: SimulatedHost) -> None:
    before = host.state()
    assert run(host, "prepare", domain_xml(CARD, AUDIO)) == 0
    journal = read_journal(host, GUEST)
    assert journal is not None
    journal.add(("later-effect", "x"))
    (found,) = recover(host, lambda: [])
    assert found.problems == (
        "'later-effect' on record is not known to this version of virtpass; install the newer one again that"
        " wrote it, then run virtpass recover",
    )
    # The devices are home all the same.
    assert host.state() == before
    left = read_journal(host, GUEST)
    assert left is not None
    assert left.effects == [("later-effect", "x")]


def test_another_format_is_refused(host: SimulatedHost) -> None:
    host.put(f"{DIRECTORY}/{GUEST}", "virtpass\t2\n")
    with pytest.raises(FailedError):
        read_journal(host, GUEST)


def test_a_line_that_was_cut_off_announced_nothing(host: SimulatedHost) -> None:
    host.put(f"{DIRECTORY}/{GUEST}", "virtpass\t1\nhome\t0000:01:00.0\tbochs-drm\t-\nhome\t0000:01")
    journal = read_journal(host, GUEST)
    assert journal is not None
    assert len(journal.homes) == 1


def test_only_uuids_name_journals(host: SimulatedHost) -> None:
    host.put(f"{DIRECTORY}/{GUEST}", "")
    host.put(f"{DIRECTORY}/notes.txt", "")
    assert journals(host) == [GUEST]


def test_a_link_in_place_of_a_journal_is_not_followed(host: SimulatedHost, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    os.makedirs(host.path(DIRECTORY))
    os.symlink(victim, host.path(f"{DIRECTORY}/{GUEST}"))
    with pytest.raises(RefusedError):
        Journal(host, GUEST, "guest").begin([])
    assert victim.read_text() == "precious\n"


def test_a_link_in_place_of_the_directory_is_not_followed(host: SimulatedHost, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.makedirs(host.path("/run/virtpass"))
    os.symlink(elsewhere, host.path(DIRECTORY))
    with pytest.raises(RefusedError):
        Journal(host, GUEST, "guest").begin([])
    assert list(elsewhere.iterdir()) == []


def test_a_directory_that_others_may_write_is_not_used(host: SimulatedHost) -> None:
    os.makedirs(host.path("/run/virtpass"))
    os.chmod(host.path("/run/virtpass"), 0o777)
    with pytest.raises(RefusedError, match="others than root may write"):
        Journal(host, GUEST, "guest").begin([])


def test_no_record_of_a_long_journal_is_lost(host: SimulatedHost) -> None:
    journal = Journal(host, GUEST, "guest")
    journal.begin([])
    effects = [("interrupt", GUEST, "2-3", str(number), "0-255", "0-1,4-255") for number in range(20_000)]
    journal.add(*effects)
    assert os.path.getsize(host.path(f"{DIRECTORY}/{GUEST}")) > 1 << 20
    found = read_journal(host, GUEST)
    assert found is not None
    assert found.effects == effects


def test_a_journal_that_would_be_too_long_announces_nothing(host: SimulatedHost) -> None:
    journal = Journal(host, GUEST, "guest")
    journal.begin([])
    with pytest.raises(FailedError, match="would exceed 4 MiB"):
        journal.add(*(("unit", "x" * 1000) for _ in range(5000)))
    found = read_journal(host, GUEST)
    assert found is not None
    assert found.effects == journal.effects == []
