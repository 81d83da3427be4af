"""What a benchmark says: one thing against another."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        name: what was measured.
        ours: median seconds of what we do.
        theirs: median seconds of what it is compared with.
        ratio: median of the pairs' ratios.
        aim: the ratio that is wanted.
        runs: number of pairs.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    aim: float
    runs: int


def figure(name: str, pairs: Sequence[tuple[float, float]], aim: float) -> Figure:
    """Make a comparison of pairs that were measured in turns.

    Args:
        name: what was measured.
        pairs: seconds of ours and of theirs.
        aim: the wanted ratio.
    """
    return Figure(
        name,
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(ours / theirs for ours, theirs in pairs),
        aim,
        len(pairs),
    )


def print_figures(figures: Sequence[Figure]) -> None:
    """Print comparisons as a table."""
    print(f"{'':<52} {'ours':>11} {'theirs':>11} {'ratio':>6} {'aim':>5} {'runs':>5}")
    for one in figures:
        print(
            f"{one.name:<52} {one.ours * 1000:>8.2f} ms {one.theirs * 1000:>8.2f} ms "
            f"{one.ratio:>6.2f} {one.aim:>5.1f} {one.runs:>5}"
        )
