"""`--plain`, and what terminals of different widths get without it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.cli.terminal import Session
from tests.cli.test_commands import NOWHERE, Captured, call, overview_at
from tests.simulation import AUDIO, CARD, SimulatedHost
from virtpass.cli import hand_overs
from virtpass.cli.output import note, say_fact, say_table
from virtpass.cli.progress import width
from virtpass.operations.hand_overs import HandOver, LoggedStep


@pytest.mark.parametrize("arguments", [("--plain", "devices"), ("devices", "--plain")])
def test_a_table_is_a_fact_a_line(host: SimulatedHost, capfd: Captured, arguments: tuple[str, ...]) -> None:
    status, out, err = call(host, capfd, *arguments)
    assert (status, err) == (0, "")
    (card,) = [one.splitlines() for one in out.split("\n\n") if f"Address: {CARD}" in one]
    (audio,) = [one.splitlines() for one in out.split("\n\n") if f"Address: {AUDIO}" in one]
    assert card[:3] == ["Group: 10", f"Address: {CARD}", "Driver: bochs-drm"]
    assert card[4] == "Verdict: ready: the host's only display: dark while it is away"
    # Nobody has to look what is above: the group is said again.
    assert audio[0] == "Group: 10"
    assert "  " not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("device", "--plain", "show", "01:00.0"),
        ("device", "show", "01:00.0", "--plain"),
        ("--plain", "device", "show", "01:00.0"),
    ],
)
def test_it_can_stand_anywhere(host: SimulatedHost, capfd: Captured, arguments: tuple[str, ...]) -> None:
    _, out, _ = call(host, capfd, *arguments)
    assert "\nDriver: bochs-drm\nIOMMU group: 10\nAlso in the group: 0000:01:00.1, " in out
    assert "\nReason: the host's only display: dark while it is away\n" in out
    # The next command of the same process starts afresh.
    assert "  Driver        bochs-drm\n" in call(host, capfd, "device", "show", "01:00.0")[1]


def test_no_output_is_padded(host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.cli.overview.overview", lambda h: overview_at(h, NOWHERE))
    for arguments in ((), ("doctor", "-c", NOWHERE), ("doctor", "--all", "-c", NOWHERE), ("hook", "status")):
        _, out, _ = call(host, capfd, "--plain", *arguments)
        assert out
        assert "  " not in out
    assert (
        "\nfail: the hook is not installed\nfix: sudo virtpass hook install\n"
        in call(host, capfd, "doctor", "--plain", "-c", NOWHERE)[1]
    )


def test_the_log_is_plain_too(host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    step = LoggedStep("bind", "01:00.0", 20, "failed", "it failed: no", "first\nlast")
    one = HandOver(
        datetime(2026, 1, 2, tzinfo=UTC),
        "win11",
        "",
        "prepare",
        "done",
        1200,
        "all lent",
        "it failed",
        [step],
    )
    monkeypatch.setattr(hand_overs, "last_hand_overs", lambda *_: [one])
    out = call(host, capfd, "log", "--plain")[1].splitlines()
    assert out[0].endswith(", win11, prepare, done, 1.200 s")
    assert out[1:] == [
        "0.020 s, bind, 01:00.0",
        "Problem: it failed: no",
        "Output: first",
        "Output: last",
        "Detail: all lent",
        "Problem: it failed",
    ]
    out = call(host, capfd, "log")[1].splitlines()
    assert out[2:] == [
        f"{'':14}problem: it failed: no",
        f"{'':14}| first",
        f"{'':14}| last",
        "  all lent",
        "  problem: it failed",
    ]


def test_characters_of_two_columns_shift_nothing(capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.cli.output._columns", lambda _: 60)
    rows = [("显卡显卡显卡", "一二三四五六七八九十" * 3, "好"), ("card", "short", "fine: 没有问题，" * 6)]
    say_table(("NAME", "TEXT", "VERDICT"), rows, flexible=1, styles=[None, None])
    lines = capfd.readouterr().out.splitlines()
    assert all(width(line) <= 60 for line in lines)
    at = lines[0].index("VERDICT")
    assert width(lines[1][: lines[1].index("好")]) == at == width(lines[2][: lines[2].index("fine")])
    # Without spaces it breaks all the same, and loses nothing; no line begins with a comma.
    assert "".join(line[at:] if line[0] == " " else line.partition("fine")[2] for line in lines[2:]).replace(
        " ", ""
    ) == rows[1][2].replace(" ", "").removeprefix("fine")
    assert not any(line.strip().startswith("，") for line in lines)
    say_fact("显卡", "在用", 9)
    assert capfd.readouterr().out == "显卡     在用\n"


def test_json_is_the_same_with_it(host: SimulatedHost, capfd: Captured) -> None:
    assert call(host, capfd, "devices", "--json", "--plain") == call(host, capfd, "devices", "--json")


def test_every_command_has_it(host: SimulatedHost, capfd: Captured) -> None:
    for words in ((), ("devices",), ("host",), ("host", "plan"), ("device", "detach"), ("domain", "policy")):
        assert "--plain" in call(host, capfd, *words, "--help")[1]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_cuts_no_verdict(columns: int, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.cli.output._columns", lambda _: columns)
    row = ("10", "0000:01:00.0", "nvidia", "GeForce RTX 3090 with a name that goes on [10de:2204]")
    verdict = "ready: the host's only display: dark while it is away"
    say_table(
        ("GROUP", "ADDRESS", "DRIVER", "DEVICE", "VERDICT"), [(*row, verdict)], flexible=3, styles=[None]
    )
    out = capfd.readouterr().out
    if columns == 40:
        assert out.endswith(f"\nVerdict: {verdict}\n")
        assert row[3] in out
    else:
        heading, *lines = out.splitlines()
        assert all(len(line) <= columns for line in lines)
        at = heading.index("VERDICT")
        assert " ".join(line[at:] for line in lines) == verdict


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
@pytest.mark.parametrize(
    "command",
    [
        "sudo virtpass hook install",
        "virtpass domain policy win11 display=hand-over",
        "systemctl start libvirtd",
    ],
)
def test_no_command_is_broken(
    columns: int, command: str, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtpass.cli.output._columns", lambda _: columns)
    for print_it in (lambda text: say_fact("fail", text, 15), note):
        print_it(f"something of the host is as it should not be; {command}, and then once more (or reboot)")
        shown = capfd.readouterr()
        assert command in shown.out + shown.err
    note("virtpass has changed nothing on this host, and virtpass leaves it as it is")
    # What only looks like a command is broken as any other sentence.
    assert max(map(len, capfd.readouterr().err.splitlines())) <= columns


def test_only_the_verdict_has_a_colour() -> None:
    code = (
        "from virtpass.cli.output import say_fact\n"
        "say_fact('fail', 'the hook is not installed', 8, colour='red')"
    )
    for environment, expected in (
        ({}, "\x1b[31mfail\x1b[0m    the hook is not installed\r\n"),
        ({"NO_COLOR": "1"}, "fail    the hook is not installed\r\n"),
        ({"TERM": "dumb"}, "fail    the hook is not installed\r\n"),
    ):
        session = Session("-c", code, environment=environment)
        session.end()
        assert session.raw == expected
