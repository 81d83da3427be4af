"""Lists of CPUs: what is printed is read back, and anything else is refused in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.binding.cpu_lists import parse_list, render_list
from virtpass.system.errors import UsageError

cpus = st.frozensets(st.integers(0, 300), max_size=40)


@given(cpus)
def test_what_is_printed_is_read_back(numbers: frozenset[int]) -> None:
    assert parse_list(render_list(numbers)) == numbers


@given(cpus)
def test_neighbours_are_one_range(numbers: frozenset[int]) -> None:
    """Else a comparison with what the kernel prints would fail."""
    gaps = sum(number + 1 not in numbers for number in numbers)
    assert len([part for part in render_list(numbers).split(",") if part]) == gaps


@given(st.text("0123456789,-: ^a", max_size=12))
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        numbers = parse_list(text)
    except UsageError as error:
        assert text in error.line
    else:
        assert all(str(low) for low in numbers) and max(numbers, default=0) < 1 << 16


@pytest.mark.parametrize(
    ("text", "numbers"), [("", set()), ("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), ("5,1", {1, 5})]
)
def test_lists_of_the_kernel(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize("text", [",", "1,", "3-1", "-1", "1-", "0-99999999", "٣", "1-2-3", "0x1", " 1"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(UsageError):
        parse_list(text)
