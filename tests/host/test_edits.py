"""From wishes and records to changes: what is ours comes and goes, what is others' stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from virtpass.host.edits import (
    Composed,
    Edit,
    Written,
    compose,
    written_from_json,
    written_to_json,
)
from virtpass.host.forms import EntryOptions, LineTokens, MarkedBlock, OwnFile
from virtpass.system.errors import RefusedError
from virtpass.system.files import FileState, read_state
from virtpass.system.host import Host
from virtpass.transaction.engine import Room, Transaction
from virtpass.transaction.plan import Plan

GRUB = "/etc/default/grub"
DROP_IN = "/etc/modprobe.d/virtpass.conf"
SCRIPT = "/etc/virtpass/deep/early-bind"
BLOCK = Edit(GRUB, MarkedBlock("X=1\n"), "gives the arguments")
OWN = Edit(DROP_IN, OwnFile("softdep\n"), "tells modprobe")
DEEP = Edit(SCRIPT, OwnFile("#!/bin/sh\n"), "binds", 0o755)
EDITS = (BLOCK, OWN, DEEP)


class Record:
    """What is applied on a host, kept through JSON as the real one is."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.written: dict[str, Any] = {}
        self.made: tuple[str, ...] = ()

    def compose(self, edits: Sequence[Edit]) -> Composed:
        recorded = {path: written_from_json(one) for path, one in self.written.items()}
        return compose(self.host, edits, recorded, self.made)

    def apply(self, *edits: Edit) -> Composed:
        composed = self.compose(edits)
        plan = Plan(composed.changes, composed.directories, composed.obsolete)
        room = Room("/var/lib/virtpass/host")

        def runs_nothing(*_: object) -> Any:  # noqa: ANN401
            raise AssertionError

        Transaction(self.host, room, runs_nothing, lambda _: None).execute(
            plan, record=lambda _: None, prove=list
        )
        self.written = {one.path: written_to_json(one) for one in composed.written}
        self.made = composed.made
        return composed


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for directory in ("etc/default", "etc/modprobe.d", "var/lib", "boot", "proc/self"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/default/grub").write_text("CMDLINE=quiet")
    (tmp_path / "etc/default/grub").chmod(0o640)
    os.utime(tmp_path / "etc/default/grub", ns=(10**18, 10**18 + 1))
    return Host(os.fspath(tmp_path))


@pytest.fixture
def record(host: Host) -> Record:
    return Record(host)


def at(host: Host, path: str) -> Path:
    return Path(host.path(path))


def paths(composed: Composed) -> set[str]:
    return {change.path for change in composed.changes}


def test_the_first_apply_makes_files_and_directories(host: Host, record: Record) -> None:
    composed = record.apply(*EDITS)
    assert paths(composed) == {GRUB, DROP_IN, SCRIPT}
    assert composed.directories == composed.made == ("/etc/virtpass", "/etc/virtpass/deep")
    assert (composed.obsolete, composed.drifted) == ((), ())
    assert at(host, SCRIPT).stat().st_mode & 0o7777 == 0o755
    assert at(host, GRUB).stat().st_mode & 0o7777 == 0o640
    assert at(host, GRUB).read_bytes().startswith(b"CMDLINE=quiet\n# BEGIN virtpass")


def test_the_second_apply_changes_nothing(record: Record) -> None:
    first = record.apply(*EDITS)
    second = record.compose(EDITS)
    assert second.changes == ()
    assert second.directories == second.obsolete == second.drifted == ()
    assert second.made == first.made
    assert {one.path: one for one in second.written} == {one.path: one for one in first.written}


def test_changed_wishes_change_what_they_mean(host: Host, record: Record) -> None:
    original = read_state(host, GRUB)
    record.apply(*EDITS)
    composed = record.apply(Edit(GRUB, MarkedBlock("X=2\n"), "gives others"), OWN)
    assert paths(composed) == {GRUB, SCRIPT}
    assert composed.obsolete == ("/etc/virtpass", "/etc/virtpass/deep")
    assert composed.made == ()
    assert at(host, GRUB).read_text().count("# BEGIN virtpass") == 1
    assert "X=1" not in at(host, GRUB).read_text()
    assert not at(host, "/etc/virtpass").exists()
    record.apply()
    assert read_state(host, GRUB) == original


def test_revert_brings_back_untouched_files_with_their_time(host: Host, record: Record) -> None:
    original = read_state(host, GRUB)
    record.apply(*EDITS)
    record.apply()
    assert read_state(host, GRUB) == original
    assert sorted(os.listdir(at(host, "/etc"))) == ["default", "modprobe.d"]
    assert os.listdir(at(host, "/etc/modprobe.d")) == []
    assert record.written == {}


def test_revert_takes_only_our_part_out_of_a_file_that_was_edited_since(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    path = at(host, GRUB)
    path.write_bytes(b"# mine\n" + path.read_bytes() + b"TIMEOUT=3\n")
    composed = record.apply()
    assert composed.drifted == (GRUB,)
    content = path.read_bytes()
    assert content.startswith(b"# mine\nCMDLINE=quiet\n")
    assert content.endswith(b"TIMEOUT=3\n")
    assert b"X=1" not in content


def test_a_file_that_was_removed_since_stays_away(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    at(host, GRUB).unlink()
    at(host, SCRIPT).unlink()
    at(host, "/etc/virtpass/deep").rmdir()
    composed = record.apply()
    assert paths(composed) == {DROP_IN}
    assert composed.obsolete == ("/etc/virtpass",)
    assert not at(host, GRUB).exists()
    assert not at(host, "/etc/virtpass").exists()


def test_a_file_of_ours_that_was_removed_since_is_made_again(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    at(host, SCRIPT).unlink()
    at(host, "/etc/virtpass/deep").rmdir()
    composed = record.apply(*EDITS)
    assert paths(composed) == {SCRIPT}
    assert composed.directories == ("/etc/virtpass/deep",)
    assert composed.made == ("/etc/virtpass", "/etc/virtpass/deep")


def test_a_file_that_was_replaced_by_a_link_is_refused(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    at(host, GRUB).rename(at(host, "/etc/default/grub.real"))
    at(host, GRUB).symlink_to("grub.real")
    for edits in (EDITS, ()):
        with pytest.raises(RefusedError, match=r"/etc/default/grub is a symbolic link"):
            record.compose(edits)


def test_a_directory_of_ours_with_something_of_others_stays(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    at(host, "/etc/virtpass/mine").write_text("mine")
    record.apply()
    assert os.listdir(at(host, "/etc/virtpass")) == ["mine"]
    assert record.made == ()


def test_a_directory_that_was_there_before_stays(host: Host, record: Record) -> None:
    at(host, "/etc/virtpass").mkdir()
    composed = record.apply(*EDITS)
    assert composed.made == ("/etc/virtpass/deep",)
    record.apply()
    assert at(host, "/etc/virtpass").exists()
    assert not at(host, "/etc/virtpass/deep").exists()


def test_permissions_that_were_changed_since_survive_the_revert(host: Host, record: Record) -> None:
    original = read_state(host, GRUB)
    record.apply(*EDITS)
    at(host, GRUB).chmod(0o600)
    assert record.compose(EDITS).changes == ()
    composed = record.apply()
    assert composed.drifted == ()
    found = read_state(host, GRUB)
    assert found is not None
    assert original is not None
    assert (found.content, found.mode, found.mtime_ns) == (original.content, 0o600, original.mtime_ns)


def test_permissions_of_a_file_of_our_own_are_made_right_again(host: Host, record: Record) -> None:
    record.apply(*EDITS)
    at(host, SCRIPT).chmod(0o644)
    composed = record.apply(*EDITS)
    assert paths(composed) == {SCRIPT}
    assert at(host, SCRIPT).stat().st_mode & 0o7777 == 0o755


def test_a_boot_partition_has_permissions_of_its_own(host: Host, record: Record) -> None:
    at(host, "/proc/self/mountinfo").write_text("30 1 8:1 / /boot rw - vfat /dev/vda1 rw\n")
    entry = Edit("/boot/loader/entries/x.conf", OwnFile("title x\n"), "adds an entry")
    record.apply(entry)
    at(host, entry.path).chmod(0o700)  # as vfat would show it
    composed = record.compose([entry])
    assert (composed.changes, composed.drifted) == ((), ())
    assert paths(record.apply(Edit(entry.path, OwnFile("title y\n"), "adds another"))) == {entry.path}
    assert at(host, entry.path).read_text() == "title y\n"
    record.apply()
    assert os.listdir(at(host, "/boot")) == []


def test_an_own_file_that_was_edited_is_shown_and_written_anew(host: Host, record: Record) -> None:
    record.apply(OWN)
    at(host, DROP_IN).write_text("mine\n")
    composed = record.compose([OWN])
    assert composed.drifted == (DROP_IN,)
    assert "-mine\n+softdep\n" in composed.changes[0].diff


def test_an_own_file_in_the_place_of_somebody_elses_is_refused(host: Host, record: Record) -> None:
    at(host, DROP_IN).write_text("mine\n")
    with pytest.raises(RefusedError, match=f"{DROP_IN} is left alone"):
        record.compose([OWN])


def test_what_is_there_already_does_not_become_ours(host: Host, record: Record) -> None:
    cmdline = at(host, "/etc/kernel-cmdline")
    cmdline.write_text("root=x iommu=pt\n")
    at(host, DROP_IN).write_text("softdep\n")
    edits = (Edit("/etc/kernel-cmdline", LineTokens(("iommu=pt",)), "adds"), OWN)
    composed = record.apply(*edits)
    assert (composed.changes, composed.written) == ((), ())
    cmdline.write_text("root=y iommu=pt\n")
    assert record.compose([]) == Composed((), (), (), (), (), ())


def test_a_file_made_for_our_part_goes_when_nothing_else_is_in_it(host: Host, record: Record) -> None:
    edit = Edit("/etc/new.conf", MarkedBlock("X=1\n"), "adds")
    record.apply(edit)
    path = at(host, "/etc/new.conf")
    path.write_bytes(path.read_bytes().replace(b"X=1", b"X=1 # edited in our block"))
    record.apply()
    assert not path.exists()
    record.apply(edit)
    path.write_bytes(b"mine\n" + path.read_bytes())
    record.apply()
    assert path.read_bytes() == b"mine\n"


def test_another_form_for_the_same_file_replaces_the_first(host: Host, record: Record) -> None:
    entry = at(host, "/boot/x.conf")
    entry.write_text("options root=x\n")
    record.apply(Edit("/boot/x.conf", EntryOptions(("a",)), "adds"))
    assert entry.read_text() == "options root=x a\n"
    record.apply(Edit("/boot/x.conf", MarkedBlock("#"), "adds"))
    assert " a\n" not in entry.read_text()
    record.apply()
    assert entry.read_text() == "options root=x\n"


@pytest.mark.parametrize(
    "broken",
    [
        {"path": "../etc/shadow"},
        {"path": 5},
        {"left": "x"},
        {"left": None},
        {"form": {"kind": "none"}},
        {"form": {"kind": "own-file", "text": 5}},
        {"form": {"kind": "own-file", "other": ""}},
        {"form": []},
        {"original": {"content": "!"}},
    ],
)
def test_a_record_that_is_none(broken: dict[str, object]) -> None:
    written = Written(GRUB, OwnFile("x"), FileState(b"x"), "0" * 64)
    data = written_to_json(written)
    assert written_from_json(data) == written
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        written_from_json({**data, **broken})
