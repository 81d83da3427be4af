"""Applies a plan as a whole, or not at all; heals what a crash has left half done.

The order: record everything that it takes to go back; make the files; run the commands; prove the result;
replace the record of what is applied, which is the one moment that decides; forget the way back. Whatever
fails or dies before that moment is taken back, by the same run or by the next one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from virtpass.system.commands import Outcome, end_marked, mark
from virtpass.system.errors import FailedError, RefusedError, VirtpassError, one_line
from virtpass.system.files import (
    DirectoryState,
    FileState,
    digest_of,
    directories_above,
    explained,
    make_directory,
    read_directory,
    read_state,
    remove_directory,
    remove_file,
    write_state,
)
from virtpass.system.host import Host
from virtpass.system.own_files import TEMPORARY
from virtpass.system.tasks import under_way
from virtpass.transaction import journal, outputs
from virtpass.transaction.interrupts import Interrupts, held
from virtpass.transaction.journal import Pending, Room
from virtpass.transaction.outputs import Kept, merged
from virtpass.transaction.plan import Command, FileChange, Plan
from virtpass.transaction.way_back import WayBack, attempt, is_same, put

__all__ = ["Kept", "Room", "Runner", "Transaction", "TransactionError", "locked", "merged"]

# Some files, twice, in base64.
_MAX_RECORD = 64 << 20
_LOCK_DEADLINE = 30.0
_UNFINISHED = "mend that, then run virtpass host recover"

Runner = Callable[[Host, tuple[str, ...], float], Outcome]


class TransactionError(FailedError):
    """A transaction did not come to its good end.

    Attributes:
        output: the end of what the commands that failed have printed, as printable lines.
    """

    def __init__(self, reference: str, what: str, remedy: str = "", *, output: Sequence[str] = ()) -> None:
        super().__init__(reference, what, remedy)
        self.output = tuple(output)


@contextmanager
def locked(host: Host, room: Room) -> Iterator[None]:
    """Keep other processes from transactions in a room, for as long as a block of code lasts.

    Planning belongs into the block too: what was planned outside may not be so any more.

    Raises:
        FailedError: somebody else kept the lock for too long.
    """
    name = f"{os.path.basename(room.directory)}.lock"
    with under_way("waiting for another virtpass command", _LOCK_DEADLINE):
        lock = host.lock("/run/virtpass", name, _LOCK_DEADLINE)
    try:
        yield
    finally:
        os.close(lock)


class Transaction:
    """Transactions of one host and one kind; whoever writes holds `locked`.

    Args:
        host: where the files are.
        room: where the records lie.
        run: how a command is run.
        say: told, in one sentence without a full stop, what is done; what takes long is told as a task
            (`virtpass.system.tasks`).
    """

    def __init__(self, host: Host, room: Room, run: Runner, say: Callable[[str], None]) -> None:
        self._host = host
        self._room = room
        self._run = run
        self._listener = say

    # what is on record

    def pending(self) -> Pending | None:
        """Return the transaction that was begun and did not end, None when all is well.

        Raises:
            VirtpassError: its record cannot be read.
        """
        content = self._read(self._room.pending)
        if content is None:
            return None
        found = journal.pending_from_json(content, self._room.pending)
        return None if self._number_applied() == found.number else found

    def applied(self) -> dict[str, Any] | None:
        """Return what the last transaction left on record, None when nothing is applied.

        Raises:
            VirtpassError: the record cannot be read.
        """
        _, record = self._read_applied()
        return record

    def _number_applied(self) -> int:
        number, _ = self._read_applied()
        return number

    def _read_applied(self) -> tuple[int, dict[str, Any] | None]:
        content = self._read(self._room.applied)
        if content is None:
            return 0, None
        return journal.applied_from_json(content, self._room.applied)

    def _read(self, path: str) -> bytes | None:
        state = read_state(self._host, path, _MAX_RECORD)
        if state is not None and not self._host.is_own(path):
            raise RefusedError(
                "unsafe-file", f"others than root may write to {path}", "look at it, and move it away"
            )
        return None if state is None else state.content

    def _write(self, path: str, content: bytes) -> None:
        if len(content) > _MAX_RECORD:
            raise FailedError("record-size", f"{path} would be larger than {_MAX_RECORD >> 20} MiB")
        write_state(self._host, path, FileState(content, 0o600))

    # doing

    def execute(
        self,
        plan: Plan,
        *,
        record: Callable[[list[Kept]], dict[str, Any] | None],
        prove: Callable[[], list[str]],
        restore: Sequence[Kept] = (),
    ) -> None:
        """Make the changes, or none of them.

        Args:
            plan: what to do.
            record: given what the commands wrote, returns what to keep on record; None for nothing.
            prove: looks at the result and returns what is wrong with it.
            restore: files that commands of an earlier transaction wrote, and that are put back after those of
                this one unless somebody else has written them since.

        Raises:
            RefusedError: a file is not as it was when the plan was made, or a transaction is unfinished.
            TransactionError: a command or the proof failed, and everything is as it was; or something could
                not be put back, which the message says.
            VirtpassError: something else did not work, and everything is as it was.
            KeyboardInterrupt: the user, or the end of his session, stopped it; everything is as it was.
        """
        with _explaining(self._room.directory), held() as interrupts:
            if self.pending() is not None:
                raise RefusedError(
                    "unfinished", "an earlier change was cut off half way", "run virtpass host recover first"
                )
            for change in plan.changes:
                self._refuse_moved(change)
            self._clean()
            untouched = [one for one in restore if self._is_untouched(one)]
            pending = self._begin(plan, untouched, interrupts)
            try:
                self._make(plan, pending)
                untouched = [one for one in untouched if self._is_untouched(one)]
                self._command(pending.commands, interrupts)
                for kept in untouched:
                    # A file that a command made may be somebody else's by now, such as the image of a new
                    # kernel that has just been built anew.
                    if kept.before is None and not self._is_untouched(kept):
                        continue
                    put(self._host, kept.path, kept.before)
                for directory in reversed(pending.obsolete):
                    remove_directory(self._host, directory.path)
                self._prove(prove, interrupts)
                patterns = [one for command in pending.commands for one in command.outputs]
                kept_now = outputs.left_behind(self._host, self._room.outputs, pending.outputs, patterns)
                edited = {change.path for change in pending.changes}
                self._commit(pending.number, record([one for one in kept_now if one.path not in edited]))
            except BaseException as error:
                self._give_up(pending, error)
                raise
            interrupts.dismiss()
            # What cannot be removed now is known to be over, and removed by the next transaction.
            attempt([], self._forget)

    def recover(self, *, keep: bool = False) -> list[str]:
        """Take back what was begun and did not end.

        Args:
            keep: leave files that somebody else has changed as they are; without, they are problems.

        Returns:
            what was done, as sentences without a full stop; empty when nothing was unfinished.

        Raises:
            TransactionError: something could not be put back; it stays on record.
            KeyboardInterrupt: at the end, when a signal came meanwhile.
        """
        with _explaining(self._room.directory), held():
            pending = self.pending()
            if pending is None:
                self._clean()
                return []
            way_back = WayBack(self._host, self._room, pending, self._problem_of, keep=keep, is_later=True)
            if end_marked(pending.mark):
                way_back.done.append("programs that were still running ended")
            way_back.take()
            if way_back.problems:
                raise _incomplete(way_back.problems, way_back.output)
            self._forget()
            return way_back.done

    def foreseen(self, *, keep: bool = False) -> list[str]:
        """Return what `recover` would do, as sentences without a full stop; changes nothing.

        Args:
            keep: as for `recover`.

        Raises:
            TransactionError: something could not be put back.
            VirtpassError: the record cannot be read.
        """
        with _explaining(self._room.directory):
            pending = self.pending()
            if pending is None:
                return []
            way_back = WayBack(self._host, self._room, pending, self._problem_of, keep=keep, is_later=True)
            way_back.foresee()
            if way_back.problems:
                raise _incomplete(way_back.problems)
            return way_back.done

    # parts of it

    def _say(self, text: str) -> None:
        try:
            self._listener(text)
        except (OSError, ValueError):
            pass  # the terminal is gone; that must not cut anything off

    def _refuse_moved(self, change: FileChange) -> None:
        if not is_same(read_state(self._host, change.path), change.before):
            raise RefusedError(
                "changed-meanwhile",
                f"{change.path} was changed since the plan was made",
                "look at the plan again",
            )

    def _is_untouched(self, kept: Kept) -> bool:
        try:
            return digest_of(self._host, kept.path) == kept.left
        except RefusedError:
            return False  # a link or directory by now

    def _begin(self, plan: Plan, restore: Sequence[Kept], interrupts: Interrupts) -> Pending:
        """Put on record how everything is. Nothing else has changed when this fails."""
        host, room = self._host, self._room
        try:
            os.close(host.open_directory(os.path.dirname(room.directory), create=0o755))
            os.close(host.open_directory(room.directory, create=0o700))
            patterns = [one for command in plan.commands for one in command.outputs]
            paths = set(outputs.matching(host, patterns))
            paths |= outputs.behind_links(host, paths) | {kept.path for kept in restore}
            outputs.refuse_without_room(host, room.directory, paths)
            copying = under_way("copying what the commands may write")
            with interrupts.heard(), copying:
                if paths:
                    os.close(host.open_directory(room.outputs, create=0o700))
                copies = outputs.keep(host, room.outputs, sorted(paths))
            missing = {*plan.directories, *(above for one in patterns for above in directories_above(one))}
            pending = Pending(
                self._number_applied() + 1,
                mark(),
                plan.changes,
                tuple(sorted(path for path in missing if not host.exists(path))),
                tuple(state for path in plan.obsolete if (state := read_directory(host, path))),
                plan.commands,
                copies,
            )
            self._write(room.pending, journal.pending_to_json(pending))
        except BaseException:
            # Nothing was changed: there are only records to throw away, by the next transaction if not now.
            attempt([], self._clean)
            raise
        return pending

    def _make(self, plan: Plan, pending: Pending) -> None:
        for path in plan.directories:
            if path in pending.directories:
                make_directory(self._host, DirectoryState(path))
        for change in plan.changes:
            self._say(f"{'removing' if change.after is None else 'writing'} {change.path}")
            self._refuse_moved(change)
            put(self._host, change.path, change.after)

    def _command(self, commands: Sequence[Command], interrupts: Interrupts) -> None:
        self._write(self._room.started, b"0")
        for position, command in enumerate(commands):
            self._write(self._room.started, b"%d" % (position + 1))
            with interrupts.heard():
                problem, output = self._problem_of(command)
            if problem:
                raise TransactionError("command", problem, output=output)

    def _problem_of(self, command: Command) -> tuple[str, list[str]]:
        """Run a command; return what went wrong, nothing if all is well, and the lines that it printed."""
        words = " ".join(command.argv)
        with under_way(f"running {words}", command.deadline, is_long=True):
            outcome = self._run(self._host, command.argv, command.deadline)
        output = [one_line(line) for line in outcome.output.splitlines()]
        if outcome.status == 0:
            return "", []
        if outcome.status is None:
            return f"{words} did not end within {command.deadline:.0f} s", output
        return f"{words} failed with status {outcome.status}", output

    def _prove(self, prove: Callable[[], list[str]], interrupts: Interrupts) -> None:
        with interrupts.heard(), under_way("checking the result", is_long=True):
            wrong = prove()
        if wrong:
            raise TransactionError("proof", f"the result is not as planned: {'; '.join(wrong)}")

    def _commit(self, number: int, record: dict[str, Any] | None) -> None:
        self._write(self._room.applied, journal.dump({"number": number, "record": record}))

    def _give_up(self, pending: Pending, error: BaseException) -> None:
        """Take everything back after ``error``; raise another error only when that does not work."""
        try:
            is_applied = self._number_applied() == pending.number
        except VirtpassError as unreadable:
            raise _incomplete([str(error), str(unreadable)]) from error
        if is_applied:
            if not isinstance(error, Exception):
                return
            raise TransactionError(
                "record-unsure",
                f"everything is in place, but the record of it may not survive a power cut: {error}",
                "run sync",
            ) from error
        self._say("putting everything back")
        # What has left the group of a program that was ended would write over it.
        end_marked(pending.mark)
        way_back = WayBack(self._host, self._room, pending, self._problem_of)
        way_back.take()
        if way_back.problems:
            printed = (*getattr(error, "output", ()), *way_back.output)
            raise _incomplete([str(error), *way_back.problems], printed) from error
        # What cannot be removed now is taken back once more by the next recover, to no effect.
        attempt([], self._forget)

    def _forget(self) -> None:
        """Drop the way back, the record of it first."""
        remove_file(self._host, self._room.pending)
        self._clean()

    def _clean(self) -> None:
        """Remove what belongs to no transaction: its record is gone, over, or never came to be."""
        host, room = self._host, self._room
        if not host.exists(room.directory):
            return
        # A record that is there all the same has come to its good end: what is applied says so.
        for path in (room.pending, room.started):
            if host.exists(path):
                remove_file(host, path)
        for name in host.names(room.outputs):
            remove_file(host, f"{room.outputs}/{name}")
        remove_directory(host, room.outputs)
        for name in host.names(room.directory):
            if name.startswith(TEMPORARY):
                remove_file(host, f"{room.directory}/{name}")
        if self.applied() is None:
            remove_file(host, room.applied)
            remove_directory(host, room.directory)
            remove_directory(host, os.path.dirname(room.directory))


@contextmanager
def _explaining(path: str) -> Iterator[None]:
    """Let no error of the system go to the user as it is."""
    try:
        yield
    except OSError as error:
        raise explained(error, error.filename if isinstance(error.filename, str) else path) from error


def _incomplete(problems: Sequence[str], output: Sequence[str] = ()) -> TransactionError:
    return TransactionError(
        "incomplete", f"not everything could be put back: {'; '.join(problems)}", _UNFINISHED, output=output
    )
