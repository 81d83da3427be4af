"""``virtpass doctor``."""

from typing import Any

import click

from virtpass.cli import options
from virtpass.cli.output import note, say, say_fact, say_json
from virtpass.doctor.check import Check, Finding, Outcome, Verdict
from virtpass.operations.doctor import Examination, check_named, examine_host
from virtpass.system.errors import EXIT_FAILED
from virtpass.system.host import Host
from virtpass.system.tasks import under_way

_COLOURS = {
    Verdict.PASS: "green",
    Verdict.WARN: "yellow",
    Verdict.UNKNOWN: "cyan",
    Verdict.FAIL: "red",
}
# docs/exit-status.md has these.
_STATUSES = {Verdict.PASS: 0, Verdict.WARN: 10, Verdict.UNKNOWN: 11, Verdict.FAIL: EXIT_FAILED}
_LABEL = 15
_INDENT = "  "


@click.command()
@click.option(
    "--explain", metavar="ID", type=options.CHECK, help="Say what a check looks at, and why it matters."
)
@click.option("--all", "shows_all", is_flag=True, help="Show also what is as it should be, in detail.")
@options.as_json
@options.connect
@options.snapshot
@click.pass_context
def doctor(context: click.Context, explain: str | None, shows_all: bool, as_json: bool, uri: str) -> None:
    """Look for everything that keeps this host from giving devices away, and say what mends it.

    Exits with 0 when all is well, 10 when the worst is a warning, 11 when something could not be told, and 1
    when something fails.
    """
    host: Host = context.obj
    if explain is not None:
        check = check_named(explain)
        if as_json:
            say_json(_check_json(check))
        else:
            say(f"{check.reference}: {check.title}")
            say_fact("", check.why)
        return
    with under_way("looking at this host"):
        found = examine_host(host, uri)
    if as_json:
        say_json(examination_json(found))
    else:
        _show(found, shows_all=shows_all)
    context.exit(_STATUSES[found.verdict])


def _show(found: Examination, *, shows_all: bool) -> None:
    """Print what needs attention in detail, and the rest as one line."""
    right = [one for one in found.outcomes if one.verdict is Verdict.PASS]
    for outcome in found.outcomes:
        if outcome.verdict is Verdict.PASS and not shows_all:
            continue
        say(f"{outcome.check.title} ({outcome.check.reference})")
        for finding in outcome.findings:
            _finding(finding)
    if right and not shows_all:
        names = ", ".join(one.check.reference for one in right)
        say_fact("pass", names, _LABEL, colour=_COLOURS[Verdict.PASS])
    counts = {verdict: sum(one.verdict is verdict for one in found.outcomes) for verdict in Verdict}
    say(", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count))
    if not found.is_root:
        note("some of this shows only to root: sudo virtpass doctor")
    if found.verdict is not Verdict.PASS:
        note("why one of them matters: virtpass doctor --explain ID")


def _finding(finding: Finding) -> None:
    about = f"{finding.about}: " if finding.about else ""
    colour = _COLOURS[finding.verdict]
    say_fact(
        finding.verdict.value,
        f"{about}{finding.evidence}",
        _LABEL - len(_INDENT),
        indent=_INDENT,
        colour=colour,
    )
    if finding.fix:
        say_fact("", f"fix: {finding.fix}", _LABEL - len(_INDENT), indent=_INDENT)


def examination_json(found: Examination) -> dict[str, Any]:
    """Return an examination as the documented JSON value."""
    return {
        "verdict": found.verdict.value,
        "is_root": found.is_root,
        "checks": [_outcome_json(outcome) for outcome in found.outcomes],
    }


def _check_json(check: Check) -> dict[str, Any]:
    return {"id": check.reference, "title": check.title, "why": check.why}


def _outcome_json(outcome: Outcome) -> dict[str, Any]:
    return {
        **_check_json(outcome.check),
        "verdict": outcome.verdict.value,
        "findings": [
            {
                "verdict": one.verdict.value,
                "about": one.about or None,
                "evidence": one.evidence,
                "fix": one.fix or None,
            }
            for one in outcome.findings
        ],
    }
