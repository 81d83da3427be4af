"""Every effect of a transaction, cut off by an error and by a kill: the tree is the one before or after."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.transaction.faults import Faults, Killed, Programs, install, snapshot
from virtpass.system.errors import VirtpassError
from virtpass.system.files import FileState, read_state
from virtpass.system.host import Host
from virtpass.transaction.engine import Kept, Room, Transaction
from virtpass.transaction.plan import Command, FileChange, Plan

pytestmark = pytest.mark.faults

ROOM = Room("/var/lib/virtpass/host")
OUTPUTS = ("/boot/grub/*", "/boot/initrd.img-*", "/boot/entries/*.conf")
# To die before an effect is to die after the one before it.
DIES = ("within", "after")
FAILS = ("EIO", "full")


def put(root: Path, path: str, content: str, mode: int = 0o644) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content)
    target.chmod(mode)
    os.utime(target, ns=(10**18, 10**18))


def build(root: Path) -> Host:
    """A host with files that are changed, and files that commands write."""
    root.mkdir()
    for directory in ("etc/kernel", "etc/modprobe.d", "etc/default", "boot/grub", "var/lib", "esp"):
        (root / directory).mkdir(parents=True)
    put(root, "etc/default/grub", "CMDLINE=quiet\n")
    put(root, "etc/modprobe.d/old.conf", "options old\n", 0o600)
    put(root, "etc/kernel/script", "#!/bin/sh\n")
    put(root, "boot/grub/grub.cfg", "menu of CMDLINE=quiet\n", 0o600)
    put(root, "boot/grub/stale", "stale\n")
    (root / "boot/grub/link").symlink_to("grub.cfg")
    put(root, "boot/initrd.img-1", "image " * 100)
    put(root, "boot/unrelated", "untouched\n")
    put(root, "esp/copy", "copy of CMDLINE=quiet\n")
    return Host(os.fspath(root))


def _menu(root: Path) -> None:
    text = (root / "etc/default/grub").read_text()
    (root / "boot/grub/grub.cfg").write_text(f"menu of {text}")


def _link(root: Path) -> None:
    (root / "boot/grub/link").unlink(missing_ok=True)
    (root / "boot/grub/link").write_text("a file now\n")


def _entry(root: Path) -> None:
    put(root, "boot/entries/new.conf", "entry\n")


def _image(root: Path) -> None:
    (root / "boot/initrd.img-1").write_text("rebuilt " * 50)


def _refresh(root: Path) -> None:
    (root / "esp/copy").write_text("copy of " + (root / "etc/default/grub").read_text())


PROGRAMS: dict[str, list[Callable[[Path], object]]] = {
    "rebuild": [
        _menu,
        _link,
        lambda root: (root / "boot/grub/stale").unlink(missing_ok=True),
        _entry,
        lambda root: put(root, "boot/initrd.img-1.new", "made"),
        _image,
    ],
    "refresh": [lambda root: (root / "esp/copy").write_text("half"), _refresh],
}
COMMANDS = (
    Command(("rebuild",), "builds", outputs=OUTPUTS),
    Command(("refresh",), "copies", "little"),
)


@dataclass
class Case:
    """One host and one transaction on it."""

    root: Path
    faults: Faults
    host: Host = field(init=False)
    programs: Programs = field(init=False)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.host = build(self.root)
        self.programs = Programs(self.faults, PROGRAMS)

    def transaction(self) -> Transaction:
        return Transaction(Host(self.host.root), ROOM, self.programs, lambda _: None)

    def run(self, plan: Plan, *, restore: tuple[Kept, ...] = (), keeps: bool = True) -> list[Kept]:
        found: list[Kept] = []

        def record(kept: list[Kept]) -> dict[str, object] | None:
            found.extend(kept)
            return {"kept": [one.path for one in kept]} if keeps else None

        self.transaction().execute(plan, record=record, prove=lambda: self.problems, restore=restore)
        return found

    def apply(self) -> list[Kept]:
        return self.run(apply_plan(self.host))

    def state(self, *, times: bool = False) -> dict[str, tuple[object, ...]]:
        return snapshot(self.root, times=times)

    def records(self) -> list[str]:
        room = self.root / ROOM.directory.lstrip("/")
        return sorted(os.listdir(room)) if room.exists() else []


def apply_plan(host: Host) -> Plan:
    def changed(path: str, content: bytes | None, mode: int | None = None) -> FileChange:
        before = read_state(host, path)
        if content is None:
            return FileChange(path, before, None, "is not needed")
        after = before.with_content(content) if before else FileState(content, 0o640)
        return FileChange(path, before, after if mode is None else FileState(content, mode), "is needed")

    return Plan(
        (
            changed("/etc/virtpass/deep/new.conf", b"new\n"),
            changed("/etc/default/grub", b"CMDLINE='quiet iommu=pt'\n"),
            changed("/etc/modprobe.d/old.conf", None),
            changed("/etc/kernel/script", b"#!/bin/sh\n", 0o755),
        ),
        directories=("/etc/virtpass", "/etc/virtpass/deep"),
        commands=COMMANDS,
    )


def revert_plan(host: Host, applied: Plan) -> Plan:
    changes = tuple(
        FileChange(one.path, read_state(host, one.path), one.before, "back")
        for one in reversed(applied.changes)
    )
    return Plan(changes, obsolete=applied.directories, commands=COMMANDS)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of small files are made."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    # No real program runs here, and looking for it in /proc takes longer than all the rest.
    monkeypatch.setattr("virtpass.transaction.engine.end_marked", lambda _: False)
    return install(monkeypatch)


@dataclass
class Story:
    """A transaction that can be told again and again.

    Attributes:
        case: a fresh host, ready for it.
        act: the transaction.
    """

    case: Case
    act: Callable[[], object]


def apply_story(root: Path, faults: Faults) -> Story:
    case = Case(root, faults)
    return Story(case, case.apply)


def failed_proof_story(root: Path, faults: Faults) -> Story:
    case = Case(root, faults, problems=["an entry lacks iommu=pt"])
    return Story(case, case.apply)


def revert_story(root: Path, faults: Faults) -> Story:
    case = Case(root, faults)
    plan = apply_plan(case.host)
    kept = tuple(case.run(plan))
    undo = revert_plan(case.host, plan)
    return Story(case, lambda: case.run(undo, restore=kept, keeps=False))


STORIES = {"apply": apply_story, "failed proof": failed_proof_story, "revert": revert_story}


def count(place: Path, faults: Faults, name: str) -> tuple[int, dict[str, tuple[object, ...]]]:
    """Return the number of effects of a story, and the tree after it."""
    story = STORIES[name](place / "count", faults)
    with faults.armed():
        try:
            story.act()
        except VirtpassError:
            assert name == "failed proof"
    assert story.case.records() == (["applied.json"] if name == "apply" else [])
    assert not (story.case.root / "var/lib/virtpass").exists() or name == "apply"
    return faults.count, story.case.state()


def test_the_whole_of_it_works(place: Path, faults: Faults) -> None:
    case = Case(place / "host", faults)
    before = case.state(times=True)
    plan = apply_plan(case.host)
    kept = tuple(case.run(plan))
    after = case.state()
    assert after["/boot/grub/grub.cfg"][1] == b"menu of CMDLINE='quiet iommu=pt'\n"
    assert {one.path for one in kept} == {
        "/boot/grub/grub.cfg",
        "/boot/grub/stale",
        "/boot/entries/new.conf",
        "/boot/initrd.img-1",
        "/boot/initrd.img-1.new",
    }
    case.run(revert_plan(case.host, plan), restore=kept, keeps=False)
    reverted = case.state(times=True)
    # Made by a command, and known to no pattern; a link that a command has replaced is not kept for later.
    for path in ("/esp/copy", "/boot/grub/link", "/boot/entries"):
        before.pop(path, None)
        reverted.pop(path, None)
    assert reverted == before


@pytest.mark.parametrize("name", STORIES)
def test_content_is_on_disk_before_its_name_and_the_name_before_the_next_effect(
    place: Path, faults: Faults, name: str
) -> None:
    count(place, faults, name)
    names = faults.names
    renamed = [position for position, effect in enumerate(names) if effect == "rename"]
    assert renamed
    for position in renamed:
        assert names[position - 1] in ("fsync", "symlink")
        assert names[position + 1] == "fsync"


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("kind", FAILS)
def test_an_error_at_each_effect(place: Path, faults: Faults, name: str, kind: str) -> None:
    effects, after = count(place, faults, name)
    assert effects > 60
    for at in range(1, effects + 1):
        story = STORIES[name](place / str(at), faults)
        case = story.case
        before = case.state(times=True)
        error = None
        with faults.armed(at, kind):
            try:
                story.act()
            except VirtpassError as found:
                error = found
        told = f"{kind} at effect {at} ({faults.names[at - 1 : at]}): {error}"
        if error is None or (error.reference in ("record-unsure",)):
            assert case.state() == after, told
        elif error.reference == "incomplete":
            # Only where the way back is cut off too.
            assert kind == "full" or name == "failed proof", told
        else:
            assert without_copy(case.state(times=True)) == without_copy(before), told
        assert "\n" not in str(error)
        case.transaction().recover()
        if error is None or error.reference == "record-unsure":
            assert case.state() == after, told
            assert case.records() in ([], ["applied.json"]), told
        else:
            assert without_copy(case.state(times=True)) == without_copy(before), told
            assert case.records() == (["applied.json"] if name == "revert" else []), told
        assert case.transaction().pending() is None


@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("kind", DIES)
def test_a_kill_at_each_effect(place: Path, faults: Faults, name: str, kind: str) -> None:
    effects, after = count(place, faults, name)
    names = list(faults.names)
    for at in range(1, effects + 1):
        if kind == "within" and names[at - 1] not in ("write", "command"):
            continue
        story = STORIES[name](place / str(at), faults)
        case = story.case
        before = case.state(times=True)
        with faults.armed(at, kind), pytest.raises(Killed):
            story.act()
        told = f"{kind} at effect {at} ({faults.names[at - 1]})"
        foreseen = case.transaction().foreseen()
        assert set(foreseen) == set(case.transaction().recover()), told
        is_after = case.state() == after
        if name == "failed proof" or not is_after:
            assert without_copy(case.state(times=True)) == without_copy(before), told
            assert case.records() == (["applied.json"] if name == "revert" else []), told
        else:
            assert case.records() == (["applied.json"] if name == "apply" else []), told
        assert (case.transaction().applied() is None) == (case.records() == []), told


@pytest.mark.parametrize("kind", (*DIES, "EIO", "full"))
@pytest.mark.parametrize("name", ["apply", "revert"])
def test_recover_cut_off_at_each_effect_is_finished_by_the_next(
    place: Path, faults: Faults, name: str, kind: str
) -> None:
    effects, _ = count(place, faults, name)
    late = last_chance(faults)
    assert late < effects

    def killed(root: Path) -> tuple[Case, dict[str, tuple[object, ...]]]:
        story = STORIES[name](root, faults)
        before = story.case.state(times=True)
        with faults.armed(late, "before"), pytest.raises(Killed):
            story.act()
        return story.case, before

    case, _ = killed(place / "length")
    with faults.armed():
        case.transaction().recover()
    names = list(faults.names)
    for at in range(1, len(names) + 1):
        if kind == "within" and names[at - 1] not in ("write", "command"):
            continue
        case, before = killed(place / f"at-{at}")
        with faults.armed(at, kind):
            try:
                case.transaction().recover()
            except (Killed, VirtpassError):
                pass
        case.transaction().recover()
        told = f"{kind} at effect {at} ({faults.names[at - 1]})"
        assert without_copy(case.state(times=True)) == without_copy(before), told
        assert case.records() == (["applied.json"] if name == "revert" else []), told


def last_chance(faults: Faults) -> int:
    """Return the effect that decides: the rename of the record of what is applied."""
    return len(faults.names) - faults.names[::-1].index("rename")


def without_copy(state: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """Take out the time of the one file that is written anew on the way back, by its own command."""
    path = "/esp/copy"
    return {key: value[:-1] if key == path else value for key, value in state.items()}
