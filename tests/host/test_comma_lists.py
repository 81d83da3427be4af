"""A list with commas in a YAML file: what a parser of YAML sees of the edit, and what is left alone."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.host.test_forms import YAML
from virtpass.host.forms import CommaList
from virtpass.system.errors import RefusedError

FORM = CommaList("k", ("vfio_pci", "vfio"))

# What may stand around the list: whatever opens something that goes on in the next line has to be refused.
PIECES = st.sampled_from(
    ["k: a", "k: a,b", "l: ", "'", '"', "|", ">", "{", "}", "[", "]", "&x ", "*x", "- ", "?", " ", ": ", "#"]
)
NOISE = st.lists(st.one_of(PIECES, st.just("\n"), st.just("\n  ")), max_size=10).map("".join)


def names(data: object) -> list[str]:
    """Return a list as booster reads it."""
    return [one for name in str(data or "").split(",") if (one := name.strip())]


@given(st.one_of(YAML.map(bytes.decode), NOISE))
def test_a_parser_sees_our_names_and_nothing_else_changed(text: str) -> None:
    yaml = pytest.importorskip("yaml")
    try:
        added = FORM.for_base(text.encode()).add(text.encode()).decode()
    except RefusedError:
        assume(False)
    try:
        # Not what makes numbers and truth values of words, which a Go program that asks for text does not do.
        before = yaml.load(text, yaml.BaseLoader) or {}
    except yaml.YAMLError:
        # Nor would booster have built anything with it.
        return
    after = yaml.load(added, yaml.BaseLoader)
    had = names(before.pop("k", ""))
    assert names(after.pop("k")) == [*had, *(one for one in FORM.names if one not in had)]
    assert after == before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("k: a,b  # mine\nl: c\n", "k: a,b,vfio_pci,vfio  # mine\nl: c\n"),
        ("k: 'a'", "k: 'a,vfio_pci,vfio'"),
        ('k: "a, vfio" \r\n', 'k: "a, vfio,vfio_pci" \r\n'),
        ("k:\n", "k: vfio_pci,vfio\n"),
        ("k: # none\n", "k: vfio_pci,vfio # none\n"),
        ("k: ''\n", "k: 'vfio_pci,vfio'\n"),
        ("k: a,\n", "k: a,vfio_pci,vfio\n"),
        ("---\nk : a\n", "---\nk : a,vfio_pci,vfio\n"),
        ("k: vfio,vfio_pci\n", "k: vfio,vfio_pci\n"),
    ],
)
def test_names_go_to_the_end_of_the_list(before: str, after: str) -> None:
    form = FORM.for_base(before.encode())
    assert form.add(before.encode()).decode() == after
    assert form.remove(after.encode()) == before.encode()


def test_without_a_list_one_is_appended_and_marked() -> None:
    assert FORM.for_base(b"l: a").add(b"l: a").decode() == (
        "l: a\n# BEGIN virtpass (a line break was added before)\nk: vfio_pci,vfio\n# END virtpass\n"
    )


@pytest.mark.parametrize(
    ("edited", "left"),
    [
        (b"k: a,vfio_pci,vfio,b\n", b"k: a,b\n"),
        (b"k: vfio_pci , vfio\n", b"k: \n"),
        (b"k: a,vfio\n", b"k: a\n"),
        (b"l: b\nk: a,vfio_pci,vfio\n", b"l: b\nk: a\n"),
        (b"l: b\n", b"l: b\n"),
        # Forms that are not understood, elsewhere in the file and in a list without our names.
        (b"l:\n- &x b\nk: a,vfio_pci,vfio  # mine\n\xff\n", b"l:\n- &x b\nk: a  # mine\n\xff\n"),
        (b"k: |\n  a\nl: vfio\n", b"k: |\n  a\nl: vfio\n"),
    ],
)
def test_from_a_list_that_was_edited_since_only_our_names_go(edited: bytes, left: bytes) -> None:
    assert FORM.for_base(b"k: a\n").remove(edited) == left


@pytest.mark.parametrize(
    "edited",
    [
        b"l: b\nk: |\n  vfio_pci\n",
        b"l: b\nk: a,\n  vfio\n",
        b"l: b\n{k: vfio}\n",
        b'l: b\n"k": vfio\n',
        b"l: b\nk: [vfio]\n",
        b"l: b\nk:\n- vfio\n",
    ],
)
def test_names_that_nobody_can_take_out_are_told_by_their_line(edited: bytes) -> None:
    with pytest.raises(RefusedError, match="in line 2, k is no plain list") as caught:
        FORM.for_base(b"k: a\n").remove(edited)
    assert "by hand" in caught.value.remedy


@pytest.mark.parametrize(
    "content",
    [
        b"k: a\nk: b\n",
        b"k: a\n  b\n",
        b"k:\n  - a\n",
        b"k: [a, b]\n",
        b"k: |\n  a\n",
        b"k: &x a\n",
        b"k: *x\n",
        b"k: null\n",
        b"k: ~\n",
        b"k: - a\n",
        b"k: 'it''s'\n",
        b"k:\ta\n",
        b'l: "a\nk: b"\n',
        b"l: {a: b,\nk: c}\n",
        b"m:\n  l: 'a\nk: b'\n",
        b'"k": a\n',
        b"{k: a}\n",
        b"- k: a\n",
        b"  k: a\n",
        b"? k\n: a\n",
        b"l: a\n---\nk: b\n",
        b"---\n---\nk: b\n",
        b"k: a\n...\n",
        b"%YAML 1.2\n---\nk: a\n",
        b"<<: *x\n",
        b"l: a\rk: b\n",
        "l: a\u2028k: b\n".encode(),
        b"\xef\xbb\xbfk: a\n",
        b"k: \xff\n",
        b"k: a\n# BEGIN virtpass\n# END virtpass\n",
    ],
)
def test_what_only_a_parser_understands_is_refused_and_left_alone(content: bytes) -> None:
    with pytest.raises(RefusedError):
        FORM.for_base(content).add(content)
