"""Each form: taken out again exactly, put in once, and edits around it survive."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from virtpass.host.forms import (
    CommaList,
    EntryOptions,
    Form,
    LineTokens,
    MarkedBlock,
    MenuLines,
    OwnFile,
    VariableTokens,
    form_from_json,
    form_to_json,
)
from virtpass.system.errors import RefusedError

TOKENS = ("intel_iommu=on", "iommu=pt", "vfio-pci.ids=10de:1b80")

# Lines as people leave them: our own tokens among theirs, quotes, comments, odd blanks, any bytes.
WORDS = st.sampled_from(
    [
        "root=UUID=1",
        "ro",
        "quiet",
        "iommu=pt",
        "intel-iommu=on",
        'foo="a iommu=pt b"',
        '"',
        "\t",
        " ",
        "  ",
        "\\",
        "'",
        "#",
        "=",
        "é",
        "$x",
    ]
)
LINES = st.lists(WORDS, max_size=6).map(" ".join)
ENDS = st.sampled_from(["\n", "\r\n", "\n\n", ""])


def texts(*heads: str) -> st.SearchStrategy[bytes]:
    """Return contents of files whose lines begin with one of these, or with nothing."""
    lines = st.tuples(st.sampled_from([*heads, "", "# "]), LINES, ENDS).map("".join)
    tails = st.sampled_from([b"", b"\xff\xfe", b"\n"])
    return st.tuples(st.lists(lines, max_size=5).map("".join).map(str.encode), tails).map(b"".join)


# Files of YAML as people write them, entry by entry; many are refused, which is tested below.
ENTRIES = st.sampled_from(
    [
        "k: a,b",
        "k: a , vfio",
        "k:",
        "k:   # none",
        "k: 'a,b '  # two",
        'k: ""',
        "k : a,",
        "# k: a",
        "l: 'it''s'",
        "m: {a: b, c: d}",
        "m:",
        "  n: x # y",
        "  - z",
        "---",
        "",
    ]
)
YAML = st.lists(st.tuples(ENTRIES, st.sampled_from(["\n", "\r\n"])).map("".join), max_size=5).flatmap(
    lambda lines: st.sampled_from(["".join(lines), "".join(lines).rstrip("\r\n")]).map(str.encode)
)
FORMS: list[tuple[Form, st.SearchStrategy[bytes]]] = [
    (MarkedBlock('X="${X:+$X }a"\n'), st.one_of(texts("A=", "B='"), st.binary(max_size=40))),
    (LineTokens(TOKENS, "root=UUID=1 ro"), texts("root=UUID=1 ro ")),
    (EntryOptions(TOKENS), texts("options ", "options\t", " options ", "title ", "linux ")),
    (VariableTokens("OPTS", TOKENS), texts('OPTS="', "OPTS='", "export OPTS=", "OTHER=")),
    (
        MenuLines(
            r"(?i)[ \t]*APPEND[ \t]+(?P<options>.*?)[ \t\r]*$", "root=UUID=1", "all", TOKENS, "E {options}\n"
        ),
        texts("APPEND root=UUID=1 ", "\tappend root=UUID=1 ", "APPEND root=UUID=2 ", "LABEL "),
    ),
    (
        MenuLines(
            r'[ \t]*"[^"]*"[ \t]+"(?P<options>[^"]*)"(?!")', "", "first", TOKENS, '"E" "{options} x"\n'
        ),
        texts('"a" "root=UUID=1 ro"', '"b" "root=UUID=1 ro iommu=pt"', '"c" ""'),
    ),
]
FORMS += [
    (
        CommaList("k", ("vfio_pci", "vfio")),
        st.one_of(YAML, texts("k: ", "k:", "k: 'a,"), st.binary(max_size=20)),
    )
]
BOTH = st.sampled_from(FORMS).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


def made_for(form: Form, base: bytes | None) -> Form:
    """Return the form for a base, and give the example up where the file is refused."""
    try:
        made = form.for_base(base)
        made.add(base)
    except RefusedError:
        assume(False)
    return made


@given(BOTH)
def test_what_is_added_is_taken_out_exactly(pair: tuple[Form, bytes]) -> None:
    form = made_for(*pair)
    assert form.remove(form.add(pair[1])) == pair[1]


@given(BOTH)
def test_a_second_addition_changes_nothing(pair: tuple[Form, bytes]) -> None:
    form = made_for(*pair)
    once = form.add(pair[1])
    assert form.add(once) == once


@given(BOTH)
def test_a_record_gives_the_same_form_back(pair: tuple[Form, bytes]) -> None:
    form = made_for(*pair)
    read = form_from_json(json.loads(json.dumps(form_to_json(form))))
    assert read == form
    assert read.remove(form.add(pair[1])) == pair[1]


def test_a_quote_that_runs_into_the_next_line_is_refused() -> None:
    base = b'root=UUID=1 ro\nquiet "\nroot=UUID=1 iommu=pt\n'
    with pytest.raises(RefusedError, match="not closed"):
        LineTokens(("iommu=pt",)).add(base)


@given(BOTH, st.sampled_from([b"# theirs\n", b"X=1\n", b"# intel_iommu=on\n"]))
def test_lines_that_others_add_around_it_survive(pair: tuple[Form, bytes], line: bytes) -> None:
    form, base = made_for(*pair), pair[1]
    # A command line is all lines of its file; in others a line of theirs is no business of ours.
    assume(not isinstance(form, LineTokens) or line.startswith(b"#"))
    assert form.remove(line + form.add(base)) == line + base


@pytest.mark.parametrize(
    "form",
    [MarkedBlock("a\n"), LineTokens(TOKENS, "root=x"), OwnFile("a\n"), CommaList("k", ("vfio_pci",))],
)
def test_a_file_that_was_made_for_it_goes(form: Form) -> None:
    assert form.remove(form.for_base(None).add(None)) is None


def test_an_empty_file_that_was_there_stays() -> None:
    assert MarkedBlock("a\n").remove(MarkedBlock("a\n").add(b"")) == b""


def test_a_block_keeps_what_was_written_behind_it() -> None:
    form = MarkedBlock("a\n")
    assert form.remove(form.add(b"x") + b"y\n") == b"x\ny\n"


def test_a_file_of_the_administrator_is_not_taken_for_one_of_ours() -> None:
    form = LineTokens(TOKENS, "root=x").for_base(b"root=x")
    assert form.remove(form.add(b"root=x")) == b"root=x"


def test_a_command_line_of_our_tokens_alone_is_never_made() -> None:
    with pytest.raises(RefusedError) as caught:
        LineTokens(TOKENS).add(None)
    assert caught.value.reference == "no-command-line"


@pytest.mark.parametrize(
    ("form", "content"),
    [
        (LineTokens(TOKENS), b'root=x dyndbg="module vfio +p\n'),
        (EntryOptions(TOKENS), b'options root=x dyndbg="module vfio +p\n'),
    ],
)
def test_a_quote_that_is_left_open_is_refused(form: Form, content: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        form.for_base(content).add(content)
    assert caught.value.reference == "open-quote"


@pytest.mark.parametrize(
    "content",
    [
        b"OPTS=quiet\n",
        b'OPTS="a"\nOPTS="b"\n',
        b'OPTS="a \\\nb"\n',
        b'OPTS="$X a"\n',
        b'OPTS="a"\ntest -e x && OPTS=b\n',
        b'OPTS="a"\nif true; then\n  OPTS="b"\nfi\n',
        b"",
    ],
)
def test_what_only_a_shell_understands_is_refused(content: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        VariableTokens("OPTS", TOKENS).for_base(content)
    assert caught.value.reference == "not-plain"


def test_an_options_line_with_a_tab_is_read_whole() -> None:
    content = b"options\troot=x iommu=pt quiet\n"
    assert EntryOptions(TOKENS).for_base(content) == EntryOptions((TOKENS[0], TOKENS[2]))


def test_the_entry_of_ours_has_the_options_as_they_were() -> None:
    form = MenuLines(
        r"cmdline: (?P<options>.*)$", "root=x", "all", ("iommu=pt",), "/Safe\ncmdline: {options} off\n"
    )
    base = b"/A\ncmdline: root=x ro\n/B\ncmdline: root=y\n/C\ncmdline: root=x iommu=pt\n"
    added = form.for_base(base).add(base)
    assert added.startswith(
        b"/A\ncmdline: root=x ro iommu=pt\n/B\ncmdline: root=y\n/C\ncmdline: root=x iommu=pt\n#"
    )
    assert b"/Safe\ncmdline: root=x ro off\n" in added


def test_a_menu_line_that_was_edited_since_loses_only_our_tokens() -> None:
    form = MenuLines(r"cmdline: (?P<options>.*)$", "", "all", ("iommu=pt", "a=b")).for_base(
        b"cmdline: root=x ro\n"
    )
    edited = b"cmdline: root=x debug ro iommu=pt a=b\n/New\ncmdline: root=z\n"
    assert form.remove(edited) == b"cmdline: root=x debug ro\n/New\ncmdline: root=z\n"
