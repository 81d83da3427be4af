"""The last hand-overs, from what the hook told the system's log."""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from virtpass.hook.report import IDENTIFIER
from virtpass.system.commands import output_of
from virtpass.system.errors import FailedError, PermissionDeniedError, UnavailableError
from virtpass.system.host import Host

# Where the systemd journal is kept, each in a directory named after the machine.
_JOURNALS = ("/var/log/journal", "/run/log/journal")
_SYSTEM_JOURNAL = "system.journal"
_PROGRAMS = ("/usr/bin/journalctl", "/bin/journalctl")
_DEADLINE = 30.0
# Lines to ask for: as many as the last hand-overs may have, and once more when these were too few.
_FEW, _MANY = 2000, 50000
_MOST_BYTES = 64 << 20

_FIELD = re.compile(r'([a-z]+)=("(?:[^"\\]|\\.)*"|[^ "]+)(?: |\Z)')
_NEEDED = frozenset(("event", "id", "ms", "outcome"))
# Of milliseconds: a hundred years have fewer.
_DIGITS = 14

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step of a hand-over.

    Attributes:
        name: what was done.
        detail: to what; may be empty.
        milliseconds: how long it took.
        outcome: ``done`` or ``failed``.
        problem: what went wrong; may be empty.
        output: the end of what a program said; may be empty.
    """

    name: str
    detail: str
    milliseconds: int
    outcome: str
    problem: str
    output: str


@dataclass(slots=True)
class HandOver:
    """What the hook did in one call.

    Attributes:
        began: when.
        domain: the domain's name; empty when the hook did not get to know it.
        uuid: its UUID; the same.
        event: ``prepare`` or ``release``.
        outcome: ``done``, ``failed``, or ``unfinished`` when the hook is at work or was killed.
        milliseconds: how long it took; of an unfinished one, all of its steps together.
        detail: what was done.
        problem: what went wrong.
        steps: what was done in it, in order.
    """

    began: datetime
    domain: str
    uuid: str
    event: str
    outcome: str = UNFINISHED
    milliseconds: int = 0
    detail: str = ""
    problem: str = ""
    steps: list[LoggedStep] = field(default_factory=list)


def last_hand_overs(host: Host, domain: str | None, count: int) -> list[HandOver]:
    """Return the last hand-overs, the newest last.

    Args:
        host: the host.
        domain: name or UUID of the domain; None for all.
        count: how many at most.

    Raises:
        UnavailableError: the host keeps no systemd journal.
        PermissionDeniedError: this user may not read it.
        FailedError: it cannot be read.
    """
    _refuse_unreadable(host)
    found: list[HandOver] = []
    for limit in (_FEW, _MANY):
        lines = _lines(host, limit)
        found = hand_overs(lines)
        is_all = len(lines) < limit
        if not is_all:
            # The first one may have begun before the first line.
            del found[:1]
        if domain is not None:
            found = [one for one in found if domain == one.domain or domain.lower() == one.uuid]
        if is_all or len(found) >= count:
            break
    return found[-count:]


def hand_overs(lines: list[str]) -> list[HandOver]:
    """Put the journal's entries together.

    Args:
        lines: the entries as ``journalctl -o json`` prints them; what is not in the hook's form is left out.
    """
    found: dict[tuple[str, ...], HandOver] = {}
    for line in lines:
        entry = _entry(line)
        if entry is None:
            continue
        ended, fields = entry
        milliseconds = int(fields["ms"])
        began = ended - timedelta(milliseconds=milliseconds)
        # The domain is not known yet in the first lines of some.
        key = (fields["id"], fields["event"])
        one = found.setdefault(key, HandOver(began, "", "", fields["event"]))
        one.domain = fields.get("domain", one.domain)
        one.uuid = fields.get("uuid", one.uuid)
        detail, problem = fields.get("detail", ""), fields.get("problem", "")
        if (name := fields.get("step")) is None:
            one.began, one.milliseconds, one.outcome = began, milliseconds, fields["outcome"]
            one.detail, one.problem = detail, problem
            continue
        output = fields.get("output", "")
        one.steps.append(LoggedStep(name, detail, milliseconds, fields["outcome"], problem, output))
        if one.outcome == UNFINISHED:
            one.milliseconds += milliseconds
    return list(found.values())


def parse_line(text: str) -> dict[str, str] | None:
    """Parse a line of `virtpass.hook.report`; None when it is none."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        if match is None or match[1] in fields:
            return None
        try:
            fields[match[1]] = json.loads(match[2]) if match[2].startswith('"') else match[2]
        except ValueError:
            return None
        at = match.end()
    is_line = fields.keys() >= _NEEDED and fields["ms"].isdecimal() and len(fields["ms"]) < _DIGITS
    return fields if is_line else None


def _entry(line: str) -> tuple[datetime, dict[str, str]] | None:
    """Return when an entry of the journal was made, and what it says; None when it is not the hook's."""
    try:
        entry = json.loads(line)
        message = entry["MESSAGE"]
        if isinstance(message, list):
            # So it prints what it takes for unprintable.
            message = bytes(message).decode("utf-8")
        at = datetime.fromtimestamp(int(entry["__REALTIME_TIMESTAMP"]) / 1_000_000, UTC)
        fields = parse_line(message)
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
    return None if fields is None else (at, fields)


def _lines(host: Host, limit: int) -> list[str]:
    # Anybody may log under any name; the journal says who did.
    argv = ("journalctl", "-t", IDENTIFIER, "_UID=0", "-o", "json", "--all", "--no-pager", "--quiet")
    output = output_of(host, (*argv, "-n", str(limit)), _DEADLINE, _MOST_BYTES)
    if output is None:
        raise FailedError(
            "journal",
            f"journalctl failed, or did not answer within {_DEADLINE:.0f} s",
            f"look what it says: journalctl -t {IDENTIFIER}",
        )
    # Not splitlines: other characters than a line break separate lines there.
    return output.split("\n")[:-1]


def _refuse_unreadable(host: Host) -> None:
    files = [f"{top}/{name}/{_SYSTEM_JOURNAL}" for top in _JOURNALS for name in host.names(top)]
    files = [path for path in files if host.exists(path)]
    if not files or not any(map(host.exists, _PROGRAMS)):
        raise UnavailableError(
            "no-journal",
            "this host keeps no systemd journal",
            f"look for lines of {IDENTIFIER} where its syslog writes (grep {IDENTIFIER} /var/log/messages or"
            " /var/log/syslog)",
        )
    if not any(host.read_bytes(path, 1) for path in files):
        raise PermissionDeniedError(
            "journal-permission",
            "this user may not read the journal of the system",
            "run it as root, or as a member of the group systemd-journal or adm",
        )
