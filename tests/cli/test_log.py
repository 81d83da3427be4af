"""``virtpass log`` as a user sees it, on what the hook writes and journalctl prints."""

import json
from pathlib import Path

import pytest

from tests.simulation import GUEST, OTHER, SimulatedHost
from virtpass.cli import main
from virtpass.hook import report
from virtpass.hook.report import IDENTIFIER, Report
from virtpass.operations import hand_overs
from virtpass.system.host import Host

Captured = pytest.CaptureFixture[str]
JOURNAL = "/var/log/journal/0123456789abcdef0123456789abcdef/system.journal"
# 2026-03-01 12:00:00 UTC, in microseconds.
BEGIN = 1772366400000000


class Journal:
    """A systemd journal: takes what the hook sends and prints it as journalctl does.

    Attributes:
        entries: (microseconds, message) of each.
        fails: whether journalctl does.
        asked: how many lines were asked for, each time.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []
        self.fails = False
        self.asked: list[int] = []

    def take(self, priority: int, message: str) -> None:
        self.entries.append((BEGIN + len(self.entries) * 1_000_000, message))

    def output_of(self, host: Host, argv: tuple[str, ...], deadline: float, limit: int) -> str | None:
        assert argv[:3] == ("journalctl", "-t", IDENTIFIER)
        assert {"_UID=0", "json", "--no-pager", "--all"} <= set(argv)
        if self.fails:
            return None
        count = int(argv[argv.index("-n") + 1])
        self.asked.append(count)
        return "".join(
            json.dumps({"__REALTIME_TIMESTAMP": str(at), "MESSAGE": text}, ensure_ascii=False) + "\n"
            for at, text in self.entries[-count:]
        )


@pytest.fixture
def journal(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> Journal:
    found = Journal()
    monkeypatch.setattr(report, "send", found.take)
    monkeypatch.setattr(hand_overs, "output_of", found.output_of)
    monkeypatch.setenv("TZ", "UTC")
    host.put(JOURNAL, b"LPKSHHRH")
    host.put("/usr/bin/journalctl")
    return found


def call(host: SimulatedHost, capfd: Captured, *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    status = main(["log", *arguments], host)
    return (status, *capfd.readouterr())


def hand_over(event: str = "prepare", domain: str = "guest", uuid: str = GUEST, problem: str = "") -> None:
    report = Report(event, domain, uuid)
    report.done("checks", "", 0.02)
    report.done("unbind", "0000:01:00.0", 0.132, problem)
    report.finish("" if problem else "0000:01:00.0 lent", problem)


@pytest.mark.usefixtures("journal")
def test_each_hand_over_has_its_steps_below_it(host: SimulatedHost, capfd: Captured) -> None:
    hand_over()
    hand_over("release", problem="the driver refuses")
    status, out, err = call(host, capfd)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[1:4] == ["guest", "prepare", "done"]
    assert lines[0].startswith("2026-03-01 ")
    assert [line.split() for line in lines[1:3]] == [
        ["0.020", "s", "checks"],
        ["0.132", "s", "unbind", "0000:01:00.0"],
    ]
    assert lines[3].strip() == "0000:01:00.0 lent"
    assert lines[4].split("  ")[1:4] == ["guest", "release", "failed"]
    assert lines[-1].strip() == "problem: the driver refuses"


@pytest.mark.usefixtures("journal")
def test_as_json(host: SimulatedHost, capfd: Captured) -> None:
    report = Report("prepare", "guest", GUEST)
    report.done("step", "/etc/virtpass/hooks.d/prepare.d/10-x", 1.5, "it failed", "first\nlast")
    report.finish(problem="it failed")
    (one,) = json.loads(call(host, capfd, "--json")[1])
    assert (one["domain"], one["uuid"], one["event"], one["outcome"]) == ("guest", GUEST, "prepare", "failed")
    assert one["began"].startswith("2026-03-01T12:00:0")
    assert one["steps"] == [
        {
            "step": "step",
            "detail": "/etc/virtpass/hooks.d/prepare.d/10-x",
            "milliseconds": 1500,
            "outcome": "failed",
            "problem": "it failed",
            "output": "first\nlast",
        }
    ]


@pytest.mark.usefixtures("journal")
def test_a_name_or_a_uuid_selects(host: SimulatedHost, capfd: Captured) -> None:
    hand_over()
    hand_over(domain="my guest", uuid=OTHER)
    for selected in ("my guest", OTHER, OTHER.upper()):
        assert [one["domain"] for one in json.loads(call(host, capfd, selected, "--json")[1])] == ["my guest"]
    status, out, err = call(host, capfd, "gue")
    assert (status, out) == (0, "")
    assert err == "no hand-over of gue is in the log\n"
    assert call(host, capfd, "gue", "--json")[1] == "[]\n"


@pytest.mark.usefixtures("journal")
def test_the_last_ones_are_shown_the_newest_last(host: SimulatedHost, capfd: Captured) -> None:
    assert "no hand-over is in the log" in call(host, capfd)[2]
    for number in range(12):
        hand_over(domain=f"d{number}")
    names = [one["domain"] for one in json.loads(call(host, capfd, "--json")[1])]
    assert names == [f"d{number}" for number in range(2, 12)]
    names = [one["domain"] for one in json.loads(call(host, capfd, "--json", "-n", "2")[1])]
    assert names == ["d10", "d11"]


@pytest.mark.usefixtures("journal")
def test_the_count_is_checked(host: SimulatedHost, capfd: Captured) -> None:
    for count in ("0", "-1", "x", "100000"):
        assert call(host, capfd, "-n", count)[0] == 2


@pytest.mark.usefixtures("journal")
@pytest.mark.parametrize(
    "name", ['my "best" guest', "a\nevent=release b", "\x1b[31mred", "日本\u2028", "x=y\\"]
)
def test_hostile_names_are_found_and_harm_no_terminal(
    host: SimulatedHost, capfd: Captured, name: str
) -> None:
    hand_over(domain=name)
    (one,) = json.loads(call(host, capfd, name, "--json")[1])
    assert one["domain"] == name
    assert len(one["steps"]) == 2
    out = call(host, capfd, name)[1]
    assert len(out.splitlines()) == 4
    assert "\x1b" not in out


def test_a_hand_over_that_was_cut_off_shows_what_it_did(
    host: SimulatedHost, capfd: Captured, journal: Journal
) -> None:
    hand_over()
    del journal.entries[-1]
    (one,) = json.loads(call(host, capfd, "--json")[1])
    assert (one["outcome"], one["milliseconds"], len(one["steps"])) == ("unfinished", 152, 2)


@pytest.mark.usefixtures("journal")
def test_two_at_once_are_kept_apart(host: SimulatedHost, capfd: Captured) -> None:
    first, second = Report("prepare", "a", GUEST), Report("prepare", "b", OTHER)
    first.done("checks", "", 0)
    second.done("checks", "", 0)
    second.done("unbind", "", 0)
    second.finish()
    first.finish()
    found = json.loads(call(host, capfd, "--json")[1])
    assert [(one["domain"], len(one["steps"])) for one in found] == [("a", 1), ("b", 2)]


def test_what_is_not_of_that_form_is_left_out(host: SimulatedHost, capfd: Captured, journal: Journal) -> None:
    for text in (
        "prepare guest: 0000:01:00.0 lent in 0.31 s",
        "",
        "event=prepare",
        "event=prepare id=1 ms=-1 outcome=done",
        "event=prepare id=1 ms=1 ms=2 outcome=done",
        'event="prepare id=1 ms=1 outcome=done',
        'event="\\q" id=1 ms=1 outcome=done',
        "event=prepare id=1 ms=99999999999999999999 outcome=done",
    ):
        journal.take(0, text)
    hand_over()
    journal.take(0, "fault in the hook")
    assert len(json.loads(call(host, capfd, "--json")[1])) == 1


def test_odd_entries_of_the_journal() -> None:
    report = "event=prepare domain=guest id=1 ms=1 outcome=done steps=0"
    at = str(BEGIN)
    entries = [
        {"__REALTIME_TIMESTAMP": at, "MESSAGE": None},
        {"__REALTIME_TIMESTAMP": at},
        {"MESSAGE": report},
        {"__REALTIME_TIMESTAMP": "9" * 40, "MESSAGE": report},
        {"__REALTIME_TIMESTAMP": at, "MESSAGE": [255, 254]},
        {"__REALTIME_TIMESTAMP": at, "MESSAGE": [report]},
        [report],
    ]
    assert hand_overs.hand_overs(["", "{", *map(json.dumps, entries)]) == []
    # As bytes it comes when journalctl takes it for unprintable.
    as_bytes = json.dumps({"__REALTIME_TIMESTAMP": at, "MESSAGE": list(report.encode())})
    (one,) = hand_overs.hand_overs([as_bytes])
    assert (one.domain, one.outcome) == ("guest", "done")


def test_a_domain_that_started_long_ago_is_found(
    host: SimulatedHost, capfd: Captured, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_overs, "_FEW", 10)
    hand_over(domain="old")
    for _ in range(10):
        hand_over(domain="new")
    # The window of ten lines cuts off the third from the end: it is not shown as a part.
    found = json.loads(call(host, capfd, "--json", "-n", "3")[1])
    assert [len(one["steps"]) for one in found] == [2, 2, 2]
    assert len(json.loads(call(host, capfd, "old", "--json")[1])) == 1
    assert journal.asked == [10, 10, hand_overs._MANY]


def test_without_a_journal(host: SimulatedHost, capfd: Captured, journal: Journal) -> None:
    Path(host.path(JOURNAL)).unlink()
    status, out, err = call(host, capfd)
    assert (status, out) == (6, "")
    assert err.count("\n") == 1
    assert "keeps no systemd journal; look for lines of virtpass-hook" in err


def test_a_journal_that_this_user_may_not_read(
    host: SimulatedHost, capfd: Captured, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "read_bytes", lambda path, limit=0: None)
    status, out, err = call(host, capfd)
    assert (status, out) == (5, "")
    assert err.count("\n") == 1
    assert "member of the group systemd-journal or adm" in err


def test_a_journalctl_that_fails(host: SimulatedHost, capfd: Captured, journal: Journal) -> None:
    journal.fails = True
    status, out, err = call(host, capfd)
    assert (status, out) == (1, "")
    assert "journalctl failed" in err
