"""Boot loader entries as files, and GRUB's environment block."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.bls_trees import MACHINE
from virtpass.host import tokens
from virtpass.host.forms import (
    EntryOptions,
    EnvironmentTokens,
    LineTokens,
    form_from_json,
    form_to_json,
)
from virtpass.host.loaders import bls, grubenv
from virtpass.host.loaders.bls import BlsEntry
from virtpass.host.loaders.grub_bls import ENTRIES
from virtpass.host.versions import compare_versions, version_key
from virtpass.system.errors import RefusedError

ENTRY = st.lists(
    st.one_of(
        st.sampled_from(
            [b"options root=x  quiet", b"options\ta=b", b"  options c", b"title T", b"# c", b"linux /v"]
        ),
        st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")),
    ),
    max_size=8,
)
SAFE = st.lists(st.from_regex(r"[a-z][a-z0-9_.]{0,8}(=[a-z0-9:,]{1,8})?", fullmatch=True), max_size=4)


@given(ENTRY, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), SAFE)
def test_an_entry_is_read_without_loss(
    lines: list[bytes], end: bytes, is_ended: bool, words: list[str]
) -> None:
    content = end.join(lines) + (end if is_ended else b"")
    entry = bls.parse_entry(content, f"{ENTRIES}/x.conf")
    assert entry.content == content
    assert all(key and not key.startswith("#") for key, _ in entry.fields)
    form = EntryOptions(tuple(words)).for_base(content)
    try:
        added = form.add(content)
    except RefusedError:
        return
    assert form.remove(added) == content
    assert form.add(added) == added
    assert bls.parse_entry(added, "").options[: len(entry.options)] == entry.options


def test_values_keys_and_options_of_an_entry() -> None:
    text = b'# c\r\ntitle  A B \r\n\tlinux\t/v\r\noptions a="b c"\r\noptions d\r\ninitrd /1\r\ninitrd /2'
    entry = bls.parse_entry(text, "/e/m-1.2+3-1.conf")
    assert entry.title == "A B"
    assert entry.values("initrd") == ("/1", "/2")
    assert entry.value("initrd") == "/2"
    assert entry.options == ('a="b c"', "d")
    assert entry.is_linux
    assert (entry.name, entry.identifier) == ("m-1.2+3-1", "m-1.2.conf")
    made = bls.with_values(entry, {"title": "T", "options": "x", "version": "0", "initrd": None})
    assert made.text == "title T\nlinux /v\noptions x\nversion 0\n"


def test_an_entry_without_title_is_called_by_version_or_name() -> None:
    assert bls.parse_entry(b"version 1.2\n", "/e/a.conf").title == "1.2"
    assert bls.parse_entry(b"", "/e/a.conf").title == "a"


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.9", "6.10"),
        ("6.9", "6.9.1"),
        ("6.9~rc1", "6.9"),
        ("6.9", "6.9^git1"),
        ("6.9^git1", "6.9.1"),
        ("rescue", "virtpass"),
        ("a", "1"),
        ("", "0"),
        ("009", "10"),
    ],
)
def test_versions_are_compared_as_rpm_does(older: str, newer: str) -> None:
    assert compare_versions(older, newer) < 0 < compare_versions(newer, older)
    assert compare_versions(newer, newer) == 0


NAMES = st.lists(st.from_regex(r"[a-z0-9.~^+_-]{1,14}", fullmatch=True), min_size=1, max_size=6, unique=True)


@given(NAMES)
def test_versions_have_an_order(versions: list[str]) -> None:
    ordered = sorted(versions, key=version_key)
    assert all(compare_versions(one, two) <= 0 for one, two in pairwise(ordered))


@given(NAMES, st.integers(0, 5), st.sampled_from(["", MACHINE, "ab" * 16, "0" * 32]))
def test_an_entry_of_ours_comes_last_or_is_refused(names: list[str], number: int, machine: str) -> None:
    head = machine or "m"
    entries = [BlsEntry(f"/e/{head}-{name}.conf", f"version {name}\n".encode()) for name in names]
    model = entries[number % len(entries)]
    try:
        name = bls.sibling_name(model, "virtpass", entries, machine)
    except RefusedError:
        return
    assert not machine or not name.startswith(machine)
    ours = BlsEntry(f"/e/{name}.conf", b"")
    assert bls.in_menu_order([*entries, ours])[-1] is ours


def test_the_entry_comes_after_the_kernels_and_before_the_rescue_entry_or_after_it() -> None:
    names = (f"{MACHINE}-7.0.10-301.fc44.x86_64", f"{MACHINE}-6.19.8-300.fc44.x86_64")
    kernels = [BlsEntry(f"/e/{name}.conf", f"version {name[33:]}\n".encode()) for name in names]
    assert bls.sibling_name(kernels[0], "virtpass", kernels) == f"{MACHINE}-0-virtpass"
    assert bls.sibling_name(kernels[0], "virtpass", kernels, MACHINE) == f"~virtpass-0-{MACHINE[:8]}"


VALUE = st.from_regex(r"[a-z0-9=/ .,:-]{0,200}", fullmatch=True)


@given(VALUE, SAFE, st.integers(0, 600), st.booleans())
def test_an_environment_block_gets_tokens_and_loses_them(
    value: str, words: list[str], padding: int, is_last: bool
) -> None:
    lines = [f"kernelopts={value}", "saved_entry=x"]
    text = "\n".join(["# GRUB Environment Block", *(reversed(lines) if is_last else lines)]) + "\n"
    base = text.encode() + b"#" * padding
    form = EnvironmentTokens("kernelopts", tuple(dict.fromkeys(words))).for_base(base)
    try:
        added = form.add(base)
    except RefusedError as error:
        assert error.reference == "environment-full"
        return
    assert len(added) == len(base)
    assert form.remove(added) == base
    assert form.add(added) == added
    assert grubenv.variables(added)["saved_entry"] == "x"
    assert tokens.split(grubenv.variables(added)["kernelopts"]) == (*tokens.split(value), *form.tokens)
    assert form_from_json(form_to_json(form)) == form


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"kernelopts=x\n",
        b"# GRUB Environment Block\nsaved_entry=x\n###",
        b"# GRUB Environment Block\r\n",
    ],
)
def test_what_is_no_environment_block_is_refused(content: bytes) -> None:
    form = EnvironmentTokens("kernelopts", ("a",))
    with pytest.raises(RefusedError):
        form.add(content)
    assert form.remove(content) == content


def test_variables_of_an_environment_block_lose_their_escapes() -> None:
    assert grubenv.variables(b"# GRUB Environment Block\na=b\\\\c\nd=\nnothing\n###") == {
        "a": "b\\c",
        "d": "",
    }


def test_a_users_line_is_never_taken_for_ours() -> None:
    form = LineTokens(("a",), "root=x quiet").for_base(b"root=x quiet\n")
    added = form.add(b"root=x quiet\n")
    assert form.remove(added) == b"root=x quiet\n"
