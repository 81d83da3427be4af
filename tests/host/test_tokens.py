"""Kernel command lines: split as the kernel does, and nothing written that a bootloader could misread."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.host import tokens
from virtpass.system.errors import UsageError

ALPHABET = st.sampled_from('ab=-_,. \t\n"')
SAFE = st.text("abcxyzABC019_.,:=@/+-", min_size=1, max_size=20).filter(lambda text: text[0] not in "=,-")


def as_the_kernel_does(line: str) -> list[str]:
    """Follow next_arg() of the kernel's lib/cmdline.c, but keep the quotes."""
    found = []
    rest = line.lstrip(" \t\n\v\f\r")
    while rest:
        inside = False
        end = 0
        while end < len(rest) and (inside or rest[end] not in " \t\n\v\f\r"):
            inside ^= rest[end] == '"'
            end += 1
        found.append(rest[:end])
        rest = rest[end:].lstrip(" \t\n\v\f\r")
    return found


@given(st.text(ALPHABET))
def test_a_line_is_split_where_the_kernel_splits_it(line: str) -> None:
    assert list(tokens.split(line)) == as_the_kernel_does(line)


@given(st.lists(SAFE))
def test_what_is_joined_is_split_again(words: list[str]) -> None:
    assert list(tokens.split("  ".join(words) + "\n")) == words


def test_blanks_in_quotes_do_not_split() -> None:
    line = 'quiet dyndbg="file drivers/usb/* +p" "x=a b"c  ro\n'
    assert tokens.split(line) == ("quiet", 'dyndbg="file drivers/usb/* +p"', '"x=a b"c', "ro")
    assert tokens.split('a "b c') == ("a", '"b c')


@given(st.lists(SAFE, unique=True), st.lists(SAFE, unique=True))
def test_what_is_added_can_be_taken_away(own: list[str], added: list[str]) -> None:
    wanted = tokens.missing(tuple(added), tuple(own))
    both = (*own, *wanted)
    assert tokens.missing(tuple(added), both) == ()
    assert tokens.without(both, wanted) == tuple(own)


def test_the_last_of_two_equal_tokens_is_taken_away() -> None:
    assert tokens.without(("a", "b", "a", "c"), ("a", "missing")) == ("a", "b", "c")


def test_dashes_and_underscores_in_a_name_are_one_to_the_kernel() -> None:
    assert tokens.missing(("vfio-pci.ids=8086:10d3",), ("vfio_pci.ids=8086:10d3",)) == ()
    assert tokens.missing(("x=a-b",), ("x=a_b",)) == ("x=a-b",)
    assert tokens.missing(("quiet",), ("quiet=",)) == ("quiet",)


def test_a_quote_before_a_name_is_no_part_of_it() -> None:
    assert tokens.key('"root=/dev/my disk"') == "root"
    line = '"BOOT_IMAGE=/a b" "root=/dev/my disk" ro'
    assert tokens.lasting(tokens.split(line)) == ('"root=/dev/my disk"', "ro")
    assert tokens.missing(("iommu=pt",), ('"iommu=pt"',)) == ("iommu=pt",)


def test_what_stands_behind_the_dashes_is_not_for_the_kernel() -> None:
    assert tokens.missing(("iommu=pt",), ("ro", "iommu=pt", "--", "x")) == ()
    assert tokens.missing(("iommu=pt",), ("ro", "--", "iommu=pt")) == ("iommu=pt",)


def test_what_the_bootloader_makes_does_not_last() -> None:
    line = r"BOOT_IMAGE=/vmlinuz root=/dev/sda1 initrd=\EFI\initrd initrd=/b ro"
    assert tokens.lasting(tokens.split(line)) == ("root=/dev/sda1", "ro")


@given(SAFE)
def test_a_safe_argument_is_written_as_it_was_typed(text: str) -> None:
    assert tokens.parse_argument(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a\nb",
        'x="y"',
        'root="/dev/sda1"',
        '"root=/dev/sda1"',
        'r"oot=/dev/sda1"',
        "root='/dev/sda1'",
        "x='y'",
        "x=$(reboot)",
        "x=`id`",
        "x=${HOME}",
        "a;b",
        "a|b",
        "a&b",
        "a\\b",
        "a#b",
        "a%b",
        "a*b",
        "a\0b",
        "ä",
        "--",
        "-b",
        "-s",
        "=x",
        ",x",
        "x" * 513,
    ],
)
def test_what_some_bootloader_would_take_for_its_own_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be written as a kernel argument safely"):
        tokens.parse_argument(text)
