"""Which of two versions is newer: of kernels, of packages, of boot entries."""

import functools
import re

_SEGMENTS = re.compile(r"\d+|[A-Za-z]+|~|\^")


def compare_versions(first: str, second: str) -> int:
    """Compare two versions as RPM, GRUB and systemd-boot do; return less than, equal to or more than 0.

    Runs of digits count as numbers, and are newer than runs of letters; ``~`` is older than the end, ``^``
    newer than it but older than anything else.
    """
    one, other = _SEGMENTS.findall(first), _SEGMENTS.findall(second)
    for left, right in zip(one, other, strict=False):
        if left == right or (left.isdigit() and right.isdigit() and int(left) == int(right)):
            continue
        return _rank(left) - _rank(right) or (1 if _rank_within(left) > _rank_within(right) else -1)
    if len(one) == len(other):
        return 0
    longer, sign = (one, 1) if len(one) > len(other) else (other, -1)
    return -sign if longer[min(len(one), len(other))] == "~" else sign


version_key = functools.cmp_to_key(compare_versions)


def _rank(segment: str) -> int:
    return {"~": 0, "^": 1}.get(segment, 3 if segment.isdigit() else 2)


def _rank_within(segment: str) -> tuple[int, str]:
    return (int(segment), "") if segment.isdigit() else (0, segment)
