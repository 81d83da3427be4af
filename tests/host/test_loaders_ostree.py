"""Systems from images: rpm-ostree, and what OSTree writes of a staged deployment."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host import rows_ostree
from tests.host.bls_trees import ARGUMENTS, apply, by_role, facts_of
from tests.host.rows import build
from virtpass.host.boot import BootRequest, Role
from virtpass.host.facts import read_facts
from virtpass.host.loaders import gvariant
from virtpass.host.loaders.grub_bls import ENTRIES
from virtpass.host.loaders.ostree import STAGED, Ostree
from virtpass.system.errors import FailedError


def test_rpm_ostree_is_told_exactly_what_to_add_and_to_delete(tmp_path: Path) -> None:
    plan = Ostree().plan(facts_of(tmp_path, rows_ostree.SILVERBLUE), BootRequest(ARGUMENTS))
    (command,) = plan.commands
    # The host has a video= of its own, beside which "if missing" would add nothing.
    assert command.argv == (
        "rpm-ostree",
        "kargs",
        "--append-if-missing=intel_iommu=on",
        "--append=video=efifb:off",
    )
    assert command.revert == (
        "rpm-ostree",
        "kargs",
        "--delete-if-present=intel_iommu=on",
        "--delete-if-present=video=efifb:off",
    )
    assert command.outputs == ()
    assert [note.reference for note in plan.notes] == ["no-fallback"]


def test_the_staged_deployment_counts_and_the_running_one_is_a_way_back(tmp_path: Path) -> None:
    staged = rows_ostree.staged_deployment(("root=UUID=8e1f", "quiet"))
    facts = facts_of(tmp_path, rows_ostree.SILVERBLUE, {STAGED: staged})
    entries = Ostree().entries(facts)
    assert [(one.role, one.path.rpartition("/")[2]) for one in entries] == [
        (Role.NORMAL, "staged-deployment"),
        (Role.RECOVERY, "ostree-2.conf"),
        (Role.RECOVERY, "ostree-1.conf"),
    ]
    assert entries[0].tokens == ("root=UUID=8e1f", "quiet")


def test_without_a_staged_deployment_the_running_one_is_what_a_new_one_begins_with(tmp_path: Path) -> None:
    files = {path: content for path, content in rows_ostree.SILVERBLUE.files.items() if path != STAGED}
    facts = read_facts(build(tmp_path, files))
    (normal,) = by_role(Ostree().entries(facts), Role.NORMAL)
    assert normal.path == f"{ENTRIES}/ostree-2.conf"
    apply(facts, Ostree().plan(facts, BootRequest(ARGUMENTS)), rows_ostree.SILVERBLUE, {})
    (staged,) = by_role(Ostree().entries(facts), Role.NORMAL)
    assert staged.path == STAGED
    assert staged.tokens == (*(one for one in normal.tokens if not one.startswith("ostree=")), *ARGUMENTS)


@pytest.mark.parametrize("content", [b"", b"nonsense", rows_ostree.serialized({"kargs": b"x\0\0s"})])
def test_a_staged_deployment_that_is_not_understood_is_said(tmp_path: Path, content: bytes) -> None:
    facts = facts_of(tmp_path, rows_ostree.SILVERBLUE, {STAGED: content})
    with pytest.raises(FailedError):
        Ostree().entries(facts)


# formats

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300), max_size=40)


@given(WORDS)
def test_strings_of_a_staged_deployment_are_read_back(words: list[str]) -> None:
    assert gvariant.strings(rows_ostree.staged_deployment(words), "kargs") == tuple(words)


@given(st.binary(max_size=600))
def test_any_bytes_are_a_dictionary_or_an_error(content: bytes) -> None:
    try:
        gvariant.strings(content, "kargs")
    except ValueError:
        pass
