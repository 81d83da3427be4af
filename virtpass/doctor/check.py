"""A check, what it found, and how grave that is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from virtpass.doctor.scene import Scene


class Verdict(Enum):
    """How a check ended; from best to worst."""

    PASS = "pass"  # noqa: S105 (no password)
    WARN = "warn"
    UNKNOWN = "cannot tell"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check saw.

    Attributes:
        verdict: how it is.
        evidence: what was seen, one sentence without a full stop.
        fix: the command that mends it, or else what to do; empty where nothing needs to be done.
        about: what it is about where a check looks at several things, such as an address; may be empty.
    """

    verdict: Verdict
    evidence: str
    fix: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        reference: stable kebab-case name.
        title: what is looked at, a few words.
        why: why it matters, and what the verdicts mean: whole sentences.
        look: looks, and returns what it saw; nothing where there is nothing to look at.
    """

    reference: str
    title: str
    why: str
    look: Callable[[Scene], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check.

    Attributes:
        check: which one.
        findings: what it saw, the worst first.
    """

    check: Check
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings."""
        return worst(finding.verdict for finding in self.findings)


_ORDER = list(Verdict)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of several verdicts; pass where there is none."""
    return max(verdicts, key=_ORDER.index, default=Verdict.PASS)


def sorted_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings with the worst first; those alike stay in their order."""
    return tuple(sorted(findings, key=lambda one: -_ORDER.index(one.verdict)))


def passed(evidence: str, about: str = "") -> Finding:
    """Return a finding that is as it should be."""
    return Finding(Verdict.PASS, evidence, about=about)
