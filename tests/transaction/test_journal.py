"""Records: what goes in comes out, and whatever else is found there is one clear error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.system.errors import FailedError
from virtpass.system.files import DirectoryState, FileState
from virtpass.transaction import journal
from virtpass.transaction.journal import Pending
from virtpass.transaction.outputs import Output
from virtpass.transaction.plan import Command, FileChange

PATH = "/var/lib/virtpass/host/pending.json"

# Whatever can be the name of a file or an argument: bytes without NUL, as Python shows them.
names = st.binary(min_size=1, max_size=8).filter(lambda one: b"\0" not in one)
texts = names.map(lambda one: one.decode("utf-8", "surrogateescape"))
paths = st.lists(
    texts.filter(lambda one: "/" not in one and one not in (".", "..")), min_size=1, max_size=4
).map(lambda parts: "/" + "/".join(parts))
owners = st.none() | st.tuples(st.integers(0, 0xFFFFFFFE), st.integers(0, 0xFFFFFFFE))
states = st.none() | st.builds(
    FileState,
    st.binary(max_size=64),
    st.integers(0, 0o7777),
    owners,
    st.none() | st.integers(-(10**18), 10**19 // 2),
    st.lists(st.tuples(texts, st.binary(max_size=8)), max_size=2).map(tuple),
)
commands = st.builds(
    Command,
    st.lists(texts, min_size=1, max_size=3).map(tuple),
    texts,
    texts,
    st.floats(0.1, 1e6),
    st.lists(paths, max_size=2).map(tuple),
    st.lists(texts, max_size=2).map(tuple),
)
digests = st.just("") | st.binary(min_size=32, max_size=32).map(bytes.hex)
records = st.builds(
    Pending,
    st.integers(0, 1 << 40),
    st.binary(min_size=16, max_size=16).map(bytes.hex),
    st.lists(st.builds(FileChange, paths, states, states, texts), max_size=2).map(tuple),
    st.lists(paths, max_size=2).map(tuple),
    st.lists(st.builds(DirectoryState, paths, st.integers(0, 0o7777), owners), max_size=2).map(tuple),
    st.lists(commands, max_size=2).map(tuple),
    st.lists(
        st.builds(Output, paths, st.just("") | st.integers(0, 99).map(str), digests, st.just("") | texts),
        max_size=2,
    ).map(tuple),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.property
@given(records)
def test_a_record_comes_back_as_it_was(pending: Pending) -> None:
    assert journal.pending_from_json(journal.pending_to_json(pending), PATH) == pending


@pytest.mark.property
@given(st.binary(max_size=64))
def test_bytes_that_are_no_record(content: bytes) -> None:
    for read in (journal.pending_from_json, journal.applied_from_json):
        with pytest.raises(FailedError):
            read(content, PATH)


@pytest.mark.property
@given(records, st.data())
def test_a_record_with_one_value_replaced_is_read_or_refused(pending: Pending, data: st.DataObject) -> None:
    document = json.loads(journal.pending_to_json(pending))
    node, position = data.draw(st.sampled_from(list(places(document))))
    node[position] = data.draw(anything)
    try:
        found = journal.pending_from_json(json.dumps(document).encode(), PATH)
    except FailedError as error:
        assert "\n" not in str(error)
        return
    for path in (
        *(one.path for one in found.changes),
        *found.directories,
        *(one.path for one in found.outputs),
    ):
        assert path.startswith("/") and ".." not in path.split("/")
    # Whatever was read can be written again: nothing odd is left in it.
    journal.pending_to_json(found)


def places(node: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 (whatever JSON holds)
    """Yield every place in a document at which a value stands."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield node, key
        if isinstance(value, dict | list):
            yield from places(value)


@pytest.mark.parametrize(
    "path",
    ["", "etc/x", "/etc/../x", "/etc/./x", "/etc//x", "/etc/x/", "/..", "/", "/a\0b", "/\ud800", 7, None],
)
def test_a_path_that_names_no_single_place(path: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        journal.absolute(path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"version": 2, "number": 1}',
        b'{"version": true, "number": 1, "record": null}',
        b'{"version": 1, "number": -1, "record": null}',
        b'{"version": 1, "number": 1, "record": []}',
        b'{"version": 1, "number": 1}',
        b'{"version": 1, "number": 1e3, "record": null}',
        b'{"version": ' + b"9" * 5000 + b"}",
        b"null",
        b"",
    ],
)
def test_a_record_of_what_is_applied_that_is_none(content: bytes) -> None:
    with pytest.raises(FailedError):
        journal.applied_from_json(content, PATH)


def test_a_record_of_another_version_says_so() -> None:
    with pytest.raises(FailedError, match="another version of virtpass") as caught:
        journal.pending_from_json(b'{"version": 99}', PATH)
    assert caught.value.reference == "record-version"


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-1", "0", "1e999", '"5"', "true", "1" + "0" * 400])
def test_a_deadline_that_is_none(seconds: str) -> None:
    command = json.dumps(journal.command_to_json(Command(("true",), "", deadline=1234.5)))
    with pytest.raises((ValueError, TypeError, OverflowError)):
        journal.command_from_json(json.loads(command.replace("1234.5", seconds)))
