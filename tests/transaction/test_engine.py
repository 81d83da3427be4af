"""What a transaction refuses, what it shows, and what it does when others have a hand in."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from virtpass.system.commands import Outcome
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError
from virtpass.system.files import FileState, read_state
from virtpass.system.host import Host
from virtpass.system.tasks import Task, shown_by
from virtpass.transaction import outputs
from virtpass.transaction.engine import Kept, Room, Transaction, TransactionError, locked, merged
from virtpass.transaction.journal import Pending, pending_to_json
from virtpass.transaction.plan import Command, FileChange, Plan

ROOM = Room("/var/lib/virtpass/host")
REFRESH = Command(("refresh",), "because")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for directory in ("etc", "boot", "var/lib"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "etc/file").write_text("old\n")
    (tmp_path / "boot/image").write_text("old image\n")
    return Host(os.fspath(tmp_path))


class Runner:
    """Runs a function in place of every command."""

    def __init__(self, act: Callable[[Host, str], Outcome | None] = lambda *_: None) -> None:
        self.act = act
        self.calls: list[str] = []

    def __call__(self, host: Host, argv: tuple[str, ...], deadline: float) -> Outcome:
        self.calls.append(argv[0])
        return self.act(host, argv[0]) or Outcome(0, "")


def transaction(
    host: Host, run: Runner | None = None, say: Callable[[str], None] = lambda _: None
) -> Transaction:
    return Transaction(host, ROOM, run or Runner(), say)


def change(host: Host, content: str = "new\n", path: str = "/etc/file") -> FileChange:
    before = read_state(host, path)
    after = FileState(content.encode()) if before is None else before.with_content(content.encode())
    return FileChange(path, before, after, "because")


def execute(
    host: Host,
    plan: Plan,
    run: Runner | None = None,
    prove: Callable[[], list[str]] = list,
    say: Callable[[str], None] = lambda _: None,
    restore: tuple[Kept, ...] = (),
) -> list[Kept]:
    found: list[Kept] = []

    def record(kept: list[Kept]) -> dict[str, Any]:
        found.extend(kept)
        return {"what": "ours"}

    transaction(host, run, say).execute(plan, record=record, prove=prove, restore=restore)
    return found


def text(host: Host, path: str = "/etc/file") -> str:
    return Path(host.path(path)).read_text()


def test_records_are_roots_alone(host: Host) -> None:
    seen: dict[str, int] = {}

    def look(host: Host, _: str) -> None:
        for folder, directories, names in os.walk(host.path("/var/lib/virtpass")):
            for name in (*directories, *names):
                seen[name] = os.lstat(os.path.join(folder, name)).st_mode & 0o777

    Path(host.path("/boot/image")).chmod(0o644)
    command = Command(("x",), "", outputs=("/boot/*",))
    execute(host, Plan((change(host),), commands=(command,)), Runner(look))
    assert seen.pop("0") == 0o644  # the copy is as its file, in a directory that nobody else may enter
    assert seen == {"host": 0o700, "pending.json": 0o600, "started": 0o600, "outputs": 0o700}
    assert os.listdir(host.path(ROOM.directory)) == ["applied.json"]
    assert transaction(host).applied() == {"what": "ours"}


def test_nothing_is_left_of_what_came_to_nothing(host: Host) -> None:
    with pytest.raises(TransactionError):
        execute(host, Plan((change(host),)), prove=lambda: ["it is wrong"])
    assert os.listdir(host.path("/var/lib")) == []
    assert text(host) == "old\n"


def test_a_file_that_moved_since_the_plan_is_refused(host: Host) -> None:
    plan = Plan((change(host),))
    Path(host.path("/etc/file")).write_text("mine\n")
    with pytest.raises(RefusedError) as caught:
        execute(host, plan)
    assert caught.value.reference == "changed-meanwhile"
    assert text(host) == "mine\n"
    assert os.listdir(host.path("/var/lib")) == []


def test_a_file_that_moves_at_the_last_moment_is_not_overwritten(host: Host) -> None:
    def say(said: str) -> None:
        if said == "writing /etc/file":
            Path(host.path("/etc/file")).write_text("mine\n")

    with pytest.raises(TransactionError) as caught:
        execute(host, Plan((change(host, path="/etc/other"), change(host))), say=say)
    assert caught.value.reference == "incomplete"
    assert text(host) == "mine\n"
    assert not host.exists("/etc/other")
    # Whoever did it says that it is meant so.
    with pytest.raises(TransactionError):
        transaction(host).recover()
    assert "/etc/file left as somebody else has changed it" in transaction(host).recover(keep=True)
    assert text(host) == "mine\n"
    assert os.listdir(host.path("/var/lib")) == []


def test_what_takes_long_is_told_with_its_deadline(host: Host) -> None:
    told: list[Task] = []

    def show(task: Task) -> AbstractContextManager[None]:
        told.append(task)
        return nullcontext()

    command = Command(("refresh", "--all"), "because", deadline=600.0, outputs=("/boot/*",))
    with shown_by(show), locked(host, ROOM):
        execute(host, Plan((change(host),), commands=(command,)))
    execute(host, Plan((change(host, "newer\n"),)))
    assert told == [
        Task("waiting for another virtpass command", 30.0),
        Task("copying what the commands may write"),
        Task("running refresh --all", 600.0, is_long=True),
        Task("checking the result", is_long=True),
    ]


def test_the_output_of_a_command_that_fails_is_shown_line_by_line(host: Host) -> None:
    def fail(_: Host, __: str) -> Outcome:
        return Outcome(2, "first\nsecond \x1b[31mred\n")

    command = Command(("grub-mkconfig", "-o", "x"), "", outputs=("/boot/*",))
    with pytest.raises(TransactionError) as caught:
        execute(host, Plan((change(host),), commands=(command,)), Runner(fail))
    assert caught.value.line == "grub-mkconfig -o x failed with status 2"
    assert caught.value.output == ("first", "second \\x1b[31mred")
    assert text(host) == "old\n"


def test_a_command_that_takes_too_long(host: Host) -> None:
    command = Command(("slow",), "", deadline=7.0, outputs=("/boot/*",))
    with pytest.raises(TransactionError, match="slow did not end within 7 s"):
        execute(host, Plan(commands=(command,)), Runner(lambda *_: Outcome(None, "working")))


def test_commands_are_undone_only_as_far_as_they_came(host: Host) -> None:
    names = ("one", "two", "three")
    commands = tuple(Command((name,), "", revert=(f"un-{name}",)) for name in names)
    run = Runner(lambda _, name: Outcome(1, "") if name == "two" else None)
    with pytest.raises(TransactionError, match="two failed"):
        execute(host, Plan(commands=commands), run)
    assert run.calls == ["one", "two", "un-two", "un-one"]


def test_what_cannot_be_undone_stays_on_record_until_it_can(host: Host) -> None:
    is_broken = True
    run = Runner(lambda *_: Outcome(1, "broken") if is_broken else None)
    with pytest.raises(TransactionError) as caught:
        execute(host, Plan((change(host),), commands=(REFRESH,)), run)
    assert caught.value.reference == "incomplete"
    assert caught.value.output == ("broken", "broken")
    assert text(host) == "old\n"
    with pytest.raises(RefusedError, match="virtpass host recover"):
        execute(host, Plan((change(host),)), run)
    with pytest.raises(TransactionError):
        transaction(host, run).recover()
    is_broken = False
    assert transaction(host, run).recover() == ["refresh run"]
    assert transaction(host, run).recover() == []
    assert os.listdir(host.path("/var/lib")) == []


def test_a_terminal_that_is_gone_cuts_nothing_off(host: Host) -> None:
    def say(_: str) -> None:
        raise BrokenPipeError

    execute(host, Plan((change(host),), commands=(REFRESH,)), say=say)
    assert text(host) == "new\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_goes_wrong_in_the_proof_puts_everything_back(host: Host, error: BaseException) -> None:
    def prove() -> list[str]:
        raise error

    with pytest.raises(type(error)):
        execute(host, Plan((change(host),)), prove=prove)
    assert text(host) == "old\n"
    assert os.listdir(host.path("/var/lib")) == []


def test_a_file_that_a_command_writes_too_is_put_back(host: Host) -> None:
    """Such as kernelstub, which writes its own configuration anew."""

    def run(host: Host, name: str) -> Outcome:
        Path(host.path("/etc/file")).write_text("as the program likes it\n")
        return Outcome(1, "")

    command = Command(("kernelstub",), "", outputs=("/etc/file",))
    with pytest.raises(TransactionError, match="kernelstub failed"):
        execute(host, Plan((change(host),), commands=(command,)), Runner(run))
    assert text(host) == "old\n"


def test_what_a_command_writes_through_a_link_is_put_back(host: Host) -> None:
    """Such as grubenv of RHEL 8 with UEFI, which lies on the boot partition."""
    Path(host.path("/boot/efi")).mkdir()
    Path(host.path("/boot/efi/grubenv")).write_text("old")
    Path(host.path("/boot/grubenv")).symlink_to("efi/grubenv")

    def run(host: Host, name: str) -> Outcome:
        Path(host.path("/boot/grubenv")).write_text("new")
        return Outcome(1, "")

    command = Command(("grub2-editenv",), "", outputs=("/boot/grubenv",))
    with pytest.raises(TransactionError):
        execute(host, Plan(commands=(command,)), Runner(run))
    assert text(host, "/boot/efi/grubenv") == "old"
    assert Path(host.path("/boot/grubenv")).is_symlink()


def test_patterns_do_not_leave_their_directory(host: Host) -> None:
    root = Path(host.root)
    (root / "boot/sub").mkdir()
    (root / "boot/sub/image").write_text("")
    (root / "boot/image.old").write_text("")
    (root / "boot/fifo-image").touch()
    (root / "boot/fifo-image").unlink()
    os.mkfifo(root / "boot/image-fifo")
    (root / "boot/image-link").symlink_to("../etc/file")
    assert outputs.matching(host, ["/boot/image*", "/none/*", "/bo?t/*"]) == [
        "/boot/image", "/boot/image-link", "/boot/image.old",
    ]  # fmt: skip
    assert outputs.is_matching("/boot/image", ["/boot/im*"])
    assert not outputs.is_matching("/boot/sub/image", ["/boot/*"])
    (root / "link").symlink_to("boot")
    with pytest.raises(RefusedError):
        outputs.matching(host, ["/link/*"])


def test_a_boot_partition_without_room_for_two_images(host: Host) -> None:
    point = Path(host.path("/boot"))
    command = ["mount", "-t", "tmpfs", "-o", "mode=0755,size=1m", "virtpass-test", os.fspath(point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    try:
        image = os.urandom(600_000)
        (point / "image").write_bytes(image)

        def rebuild(_: Host, __: str) -> Outcome:
            (point / "image").write_bytes(os.urandom(700_000))
            (point / "image.new").write_bytes(os.urandom(200_000))
            return Outcome(1, "No space left on device")

        with pytest.raises(TransactionError, match=r"mkinitcpio failed with status 1$"):
            execute(
                host, Plan(commands=(Command(("mkinitcpio",), "", outputs=("/boot/*",)),)), Runner(rebuild)
            )
        assert (point / "image").read_bytes() == image
        assert os.listdir(point) == ["image"]
    finally:
        subprocess.run(["umount", os.fspath(point)], check=True)


def test_too_little_room_for_the_copies_is_told_before_anything_is_done(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_SPARE", 1 << 60)
    command = Command(("x",), "", outputs=("/boot/*",))
    run = Runner()
    with pytest.raises(RefusedError, match="MiB are needed"):
        execute(host, Plan((change(host),), commands=(command,)), run)
    assert run.calls == []
    assert text(host) == "old\n"
    assert os.listdir(host.path("/var/lib")) == []


def _cut_off_at_a_command(host: Host, deadline: float) -> Plan:
    """Leave behind what a power cut during a command leaves."""

    class PowerCutError(BaseException):
        pass

    def cut(host: Host, _: str) -> None:
        Path(host.path("/boot/image")).write_text("half")
        raise PowerCutError

    command = Command(("rebuild",), "", deadline=deadline, outputs=("/boot/*",))
    plan = Plan((change(host),), commands=(command,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "_give_up", lambda *_: None)
        with pytest.raises(PowerCutError):
            execute(host, plan, Runner(cut))
    return plan


def test_a_new_kernel_that_came_before_the_recovery_keeps_its_image(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_GRACE", 0.0)
    _cut_off_at_a_command(host, 0.05)
    time.sleep(0.1)
    Path(host.path("/boot/image-new")).write_text("of another kernel")

    def rebuild(host: Host, _: str) -> None:
        Path(host.path("/boot/image")).write_text("rebuilt")

    run = Runner(rebuild)
    assert transaction(host, run).recover() == ["/etc/file put back", "rebuild run"]
    assert text(host, "/boot/image-new") == "of another kernel"
    assert (text(host), text(host, "/boot/image")) == ("old\n", "rebuilt")


def test_a_recovery_long_after_takes_the_copies_when_nobody_else_has_written(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_GRACE", 0.0)
    _cut_off_at_a_command(host, 0.2)
    time.sleep(0.3)
    run = Runner()
    assert transaction(host, run).recover() == ["/etc/file put back", "/boot/image put back"]
    assert run.calls == []
    assert (text(host), text(host, "/boot/image")) == ("old\n", "old image\n")


def test_restored_is_only_what_nobody_else_has_written(host: Host) -> None:
    def rewrite(host: Host, _: str) -> None:
        for path in Path(host.path("/boot")).iterdir():
            path.write_text(f"written anew: {time.monotonic()}\n")

    Path(host.path("/boot/other")).write_text("old other\n")
    command = Command(("x",), "", outputs=("/boot/*",))
    kept = tuple(execute(host, Plan(commands=(command,)), Runner(rewrite)))
    assert {one.path for one in kept} == {"/boot/image", "/boot/other"}
    Path(host.path("/boot/other")).write_text("mine\n")
    execute(host, Plan(commands=(command,)), Runner(rewrite), restore=kept)
    assert text(host, "/boot/image") == "old image\n"
    assert text(host, "/boot/other").startswith("written anew")


def test_what_two_transactions_wrote_goes_back_to_before_the_first() -> None:
    def state(content: bytes) -> FileState:
        return FileState(content)

    def sha(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    first = [
        Kept("/a", state(b"0"), sha(b"1")),
        Kept("/b", state(b"0"), sha(b"1")),
        Kept("/c", None, sha(b"1")),
    ]
    second = [
        Kept("/a", state(b"1"), sha(b"2")),
        Kept("/b", state(b"mine"), sha(b"2")),
        Kept("/d", None, sha(b"2")),
    ]
    assert {one.path: one.before and one.before.content for one in merged(first, second)} == {
        "/a": b"0",
        "/b": b"mine",
        "/c": None,
        "/d": None,
    }


def test_records_of_others_are_not_believed(host: Host) -> None:
    room = Path(host.path(ROOM.directory))
    room.mkdir(parents=True)
    (room / "pending.json").write_bytes(pending_to_json(Pending(1, "0" * 32, (), (), (), (), ())))
    (room / "pending.json").chmod(0o666)
    with pytest.raises(RefusedError, match="others than root"):
        transaction(host).recover()
    (room / "pending.json").unlink()
    (room / "pending.json").symlink_to("/etc/shadow")
    with pytest.raises(RefusedError):
        transaction(host).pending()


@pytest.mark.parametrize(
    "content", ["", "{", '{"version": 7}', "[]", json.dumps({"version": 1, "number": 1})]
)
@pytest.mark.parametrize("name", ["pending.json", "applied.json"])
def test_a_record_that_is_none_changes_nothing(host: Host, name: str, content: str) -> None:
    room = Path(host.path(ROOM.directory))
    room.mkdir(parents=True)
    (room / name).write_text(content)
    with pytest.raises(FailedError):
        execute(host, Plan((change(host),)))
    with pytest.raises(FailedError):
        transaction(host).recover()
    assert text(host) == "old\n"
    assert (room / name).read_text() == content


def test_a_state_directory_that_is_a_link_is_refused(host: Host) -> None:
    Path(host.path("/var/lib/virtpass")).symlink_to("/tmp")
    with pytest.raises(RefusedError):
        execute(host, Plan((change(host),)))
    assert text(host) == "old\n"


def test_a_read_only_root_changes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(PermissionDeniedError):
        execute(host, Plan((change(host),)))
    assert text(host) == "old\n"


def test_only_one_process_at_a_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.transaction.engine._LOCK_DEADLINE", 0.05)
    with locked(host, ROOM), pytest.raises(FailedError) as caught, locked(host, ROOM):
        pass
    assert caught.value.reference == "locked"
    with locked(host, ROOM):
        pass


def test_transactions_work_outside_of_the_main_thread(host: Host) -> None:
    thread = threading.Thread(target=lambda: execute(host, Plan((change(host),))))
    thread.start()
    thread.join()
    assert text(host) == "new\n"


SCRIPT = """
import os, signal, sys, time
from virtpass.system.commands import run_command
from virtpass.system.files import read_state
from virtpass.system.host import Host
from virtpass.transaction.engine import Room, Transaction
from virtpass.transaction.plan import Command, FileChange, Plan

# Whoever runs the tests in the background may ignore them, and what is ignored stays so.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
host = Host(sys.argv[1])
phase = sys.argv[2]
before = read_state(host, "/etc/file")
change = FileChange("/etc/file", before, before.with_content(b"new"), "because")

def say(text):
    print(text, flush=True)
    if (phase, text) in (("files", "writing /etc/file"), ("way back", "putting everything back")):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

def run(_, argv, deadline):
    return run_command(Host(), argv, deadline)

if phase == "way back":
    argv = ("false",)
else:
    image, ready = host.path("/boot/image"), host.path("/ready")
    argv = ("sh", "-c", f"echo half > {image}; echo ready > {ready}; sleep 60")
command = Command(argv, "because", outputs=("/boot/*",))
try:
    Transaction(host, Room("/var/lib/virtpass/host"), run, say).execute(
        Plan((change,), commands=(command,)), record=lambda kept: {}, prove=list
    )
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


def start(host: Host, phase: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, host.root, phase]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 15
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_command_puts_everything_back(host: Host, number: signal.Signals) -> None:
    with start(host, "command") as process:
        wait_for(Path(host.path("/ready")))
        process.send_signal(number)
        said, _ = process.communicate(timeout=30)
    assert said.splitlines()[-2:] == ["putting everything back", "KeyboardInterrupt"]
    assert (text(host), text(host, "/boot/image")) == ("old\n", "old image\n")
    assert os.listdir(host.path("/var/lib")) == []


@pytest.mark.parametrize(
    ("phase", "ends"), [("files", "KeyboardInterrupt"), ("way back", "TransactionError")]
)
def test_signals_wait_while_files_are_written(host: Host, phase: str, ends: str) -> None:
    with start(host, phase) as process:
        said, _ = process.communicate(timeout=30)
    assert said.splitlines()[-1] == ends
    assert process.returncode == 0
    assert (text(host), text(host, "/boot/image")) == ("old\n", "old image\n")
    assert not host.exists("/ready")
    assert os.listdir(host.path("/var/lib")) == []


def test_a_command_that_outlived_its_virtpass_is_ended_before_its_files_are_put_back(host: Host) -> None:
    with start(host, "command") as process:
        wait_for(Path(host.path("/ready")))
        process.kill()
        process.wait()
    assert text(host, "/boot/image") == "half\n"
    done = transaction(host).recover()
    assert done == ["programs that were still running ended", "/etc/file put back", "/boot/image put back"]
    assert (text(host), text(host, "/boot/image")) == ("old\n", "old image\n")
    assert os.listdir(host.path("/var/lib")) == []
