"""All checks, in the order in which their subjects matter, and how they are run."""

from virtpass.doctor import cards, conflicts, hooks, machine, preparation
from virtpass.doctor.check import Check, Finding, Outcome, Verdict, sorted_findings
from virtpass.doctor.scene import Scene
from virtpass.system.errors import VirtpassError, one_line

CHECKS: tuple[Check, ...] = (
    *machine.CHECKS,
    *preparation.CHECKS,
    *cards.CHECKS,
    *hooks.CHECKS,
    *conflicts.CHECKS,
)


def examine(scene: Scene) -> list[Outcome]:
    """Run all checks; one that fails itself cannot tell, and keeps no other from its answer."""
    return [Outcome(check, sorted_findings(_looked(check, scene))) for check in CHECKS]


def _looked(check: Check, scene: Scene) -> list[Finding]:
    try:
        return list(check.look(scene))
    except VirtpassError as error:
        return [Finding(Verdict.UNKNOWN, error.what, error.remedy)]
    except Exception as error:
        return [Finding(Verdict.UNKNOWN, one_line(f"fault in this check: {type(error).__name__}: {error}"))]
