"""What the hook tells the system's log, and that it can be read back."""

import _socket
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation import GUEST
from virtpass.hook import report as report_module
from virtpass.hook.report import ERROR, INFO, LONGEST, Report
from virtpass.operations.hand_overs import parse_line
from virtpass.system.errors import FailedError

# What can come from a file name or an XML document: all characters, and bytes that are no UTF-8.
TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
        st.sampled_from(' "\\=\n\r\t\x1b\0'),
    ),
    max_size=200,
)


class Log:
    """What reached the system's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.priorities: list[int] = []

    def take(self, priority: int, line: str) -> None:
        line.encode()  # as the module does
        self.priorities.append(priority)
        self.lines.append(line)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    found = Log()
    monkeypatch.setattr(report_module, "send", found.take)
    return found


def without_times(line: str) -> str:
    """Return a line without its id and its milliseconds."""
    return " ".join(one for one in line.split(" ") if not one.startswith(("id=", "ms=")))


def test_people_can_read_it(log: Log) -> None:
    report = Report("prepare", "my guest", GUEST)
    with report.step("unbind", "0000:01:00.0"):
        pass
    report.finish("0000:01:00.0 lent")
    assert list(map(without_times, log.lines)) == [
        f'event=prepare domain="my guest" uuid={GUEST} step=unbind detail=0000:01:00.0 outcome=done',
        f'event=prepare domain="my guest" uuid={GUEST} detail="0000:01:00.0 lent" outcome=done steps=1',
    ]
    assert log.priorities == [INFO] * 2


def test_a_failure_is_told_and_goes_on(log: Log) -> None:
    report = Report("release", "guest", GUEST)
    with pytest.raises(FailedError), report.step("unbind"):
        raise FailedError("x", "the driver refuses", "look")
    with pytest.raises(KeyboardInterrupt), report.step("probe"):
        raise KeyboardInterrupt
    report.finish(problem="not everything is back")
    assert log.priorities == [ERROR] * 3
    assert "step=unbind" in log.lines[0]
    assert 'outcome=failed problem="the driver refuses; look"' in log.lines[0]
    assert "outcome=failed problem=KeyboardInterrupt" in log.lines[1]
    assert log.lines[2].endswith('outcome=failed problem="not everything is back" steps=2')


def test_what_happened_before_a_crash_is_told_already(log: Log) -> None:
    report = Report("prepare", "guest", GUEST)
    report.done("modprobe", "vfio-pci", 0.25)
    assert len(log.lines) == 1
    assert " ms=250 " in log.lines[0]


def test_what_comes_before_the_first_step_is_told_where_it_is_noticed(log: Log) -> None:
    quick, slow = Report("prepare", "guest", GUEST), Report("prepare", began=time.monotonic() - 0.25)
    quick.started()
    quick.finish("lent")
    assert len(log.lines) == 1
    log.lines.clear()
    slow.started()
    assert log.lines == []
    slow.finish("lent")
    first, last = (parse_line(line) or {} for line in log.lines)
    assert (first["step"], first["detail"]) == ("start", "the hook itself")
    assert 250 <= int(first["ms"]) <= int(last["ms"])


def test_all_lines_of_one_hand_over_have_its_id_and_no_other_has(log: Log) -> None:
    for _ in range(2):
        report = Report("prepare")
        report.done("checks", "", 0)
        report.domain, report.uuid = "guest", GUEST
        report.finish()
    ids = [(parse_line(line) or {})["id"] for line in log.lines]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_log_that_does_not_take_it_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "LOG", "/nonexistent/log")
    with Report("prepare").step("unbind"):
        pass


def test_a_log_that_is_full_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "log")
    log = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    log.bind(path)
    monkeypatch.setattr(report_module, "LOG", path)
    report = Report("prepare", "guest", GUEST)
    for _ in range(5000):
        # Nobody reads: with a log that is waited for, this test would never end.
        report.done("unbind", "d" * 900, 0.0)
    log.setblocking(False)
    first = log.recv(8192).decode()
    assert first.startswith("<30>")
    assert f" virtpass-hook[{os.getpid()}]: event=prepare domain=guest uuid={GUEST} " in first
    log.close()


@pytest.mark.property
@given(st.lists(TEXT, min_size=6, max_size=6), st.floats(0, 1e6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(log: Log, texts: list[str], seconds: float) -> None:
    log.lines.clear()
    domain, uuid, detail, problem, output, event = texts
    report = Report(f"e{event}", domain, uuid)
    report.done("step", detail, seconds, problem, output)
    (line,) = log.lines
    assert line.isprintable()
    fields = parse_line(line)
    assert fields is not None
    expected = {
        "event": f"e{event}",
        "domain": domain,
        "uuid": uuid,
        "step": "step",
        "detail": detail,
        "outcome": "failed" if problem else "done",
        "problem": problem,
        "output": output,
    }
    assert {key: fields.get(key, "") for key in expected} == expected
    assert abs(int(fields["ms"]) - seconds * 1000) <= 0.5


def test_of_long_values_the_beginning_is_told_and_of_output_the_end(log: Log) -> None:
    report = Report("prepare", "d" * 5000)
    report.done("step", "x", 0, output="first\n" + "o" * 5000 + "last")
    fields = parse_line(log.lines[0]) or {}
    assert fields["domain"] == "d" * (LONGEST - 1) + "…"
    assert fields["output"].endswith("last")
    assert len(fields["output"]) == LONGEST
