"""``virtpass log``."""

import click

from virtpass.cli import options
from virtpass.cli.output import is_plain, note, say, say_fact, say_joined, say_json
from virtpass.operations.hand_overs import HandOver, LoggedStep, last_hand_overs
from virtpass.system.host import Host

_COLOURS = {"done": "green", "failed": "red"}
_MOST = 1000


@click.command()
@click.argument("domain", type=options.DOMAIN, required=False)
@click.option(
    "-n",
    "--count",
    type=options.NumberType(1, _MOST),
    default=10,
    show_default=True,
    metavar="COUNT",
    help="How many hand-overs to show.",
)
@options.as_json
@click.pass_obj
def log(host: Host, domain: str | None, count: int, as_json: bool) -> None:
    """Show the last hand-overs, of one DOMAIN (name or UUID) or of all, with the time of each step.

    A hand-over is what the hook does when a domain starts (prepare) or has ended (release).
    """
    found = last_hand_overs(host, domain, count)
    if as_json:
        say_json([_json(one) for one in found])
        return
    if not found:
        note("no hand-over is in the log" if domain is None else f"no hand-over of {domain} is in the log")
    for one in found:
        _show(one)


def _show(one: HandOver) -> None:
    date = one.began.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    name = one.domain or one.uuid or "-"
    say_joined(
        date, name, one.event, one.outcome, _seconds(one.milliseconds), colours={3: _COLOURS.get(one.outcome)}
    )
    for step in one.steps:
        _show_step(step)
    if one.detail:
        say_fact("Detail" if is_plain() else "", one.detail, indent="  ")
    if one.problem:
        _show_problem(one.problem, "  ")


def _show_step(step: LoggedStep) -> None:
    took = _seconds(step.milliseconds)
    say_joined(took if is_plain() else f"  {took:>10}", step.name, step.detail, colours={})
    indent = " " * 14
    if step.problem:
        _show_problem(step.problem, indent)
    for line in step.output.splitlines():
        say(f"Output: {line}" if is_plain() else f"{indent}| {line}")


def _show_problem(problem: str, indent: str) -> None:
    label = "Problem" if is_plain() else "problem: "
    say_fact(label, problem, indent=indent)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:.3f} s"


def _json(one: HandOver) -> dict[str, object]:
    return {
        "began": one.began.isoformat(),
        "domain": one.domain,
        "uuid": one.uuid,
        "event": one.event,
        "outcome": one.outcome,
        "milliseconds": one.milliseconds,
        "detail": one.detail,
        "problem": one.problem,
        "steps": [
            {
                "step": step.name,
                "detail": step.detail,
                "milliseconds": step.milliseconds,
                "outcome": step.outcome,
                "problem": step.problem,
                "output": step.output,
            }
            for step in one.steps
        ],
    }
