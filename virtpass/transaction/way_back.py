"""The way back from a transaction: from any state that it can be cut off in to the one before it began."""

import os
from collections.abc import Callable
from functools import partial

from virtpass.system.errors import RefusedError, VirtpassError
from virtpass.system.files import (
    DirectoryState,
    FileState,
    explained,
    make_directory,
    read_directory,
    read_state,
    remove_directory,
    remove_file,
    remove_leftover,
    write_state,
)
from virtpass.system.host import Host
from virtpass.transaction import outputs
from virtpass.transaction.journal import Pending, Room
from virtpass.transaction.outputs import Output
from virtpass.transaction.plan import Command, FileChange


class WayBack:
    """Puts everything back as it was; one failure does not stop the rest.

    Args:
        host: where the files are.
        room: where the records lie.
        pending: the transaction.
        run: runs a command and returns what went wrong, nothing if all is well, and what it printed.
        keep: leave files that somebody else has changed as they are; without, they are problems.
        is_later: other programs may have written since, such as the installation of a new kernel.

    Attributes:
        done: what was put back, as sentences without a full stop.
        problems: what was not.
        output: what commands that failed have printed.
    """

    def __init__(
        self,
        host: Host,
        room: Room,
        pending: Pending,
        run: Callable[[Command], tuple[str, list[str]]],
        *,
        keep: bool = False,
        is_later: bool = False,
    ) -> None:
        self._host = host
        self._room = room
        self._pending = pending
        self._run = run
        self._keep = keep
        self._is_later = is_later
        self.done: list[str] = []
        self.problems: list[str] = []
        self.output: list[str] = []

    def take(self) -> None:
        """Do it. What is as it was already is not touched, so that it can be done again."""
        pending = self._pending
        started = self._commands_started()
        # The copies would undo what others have done since, and make a boot menu of kernels that are gone.
        takes_copies = started is not None and not self._others_have_written()
        if takes_copies:
            # First, because it may take up the room for what goes back.
            self._attempt(self._remove_made)
        for state in pending.obsolete:
            self._attempt(partial(self._put_directory, state))
        for change in reversed(pending.changes):
            self._attempt(partial(remove_leftover, self._host, change.path))
            self._attempt(partial(self._put_file, change))
        if takes_copies:
            for output in pending.outputs:
                self._attempt(partial(remove_leftover, self._host, output.path))
                self._attempt(partial(self._put_output, output))
        for command in reversed(pending.commands[: started or 0]):
            if not (takes_copies and command.outputs):
                self._undo(command)
        for path in reversed(pending.directories):
            self._attempt(partial(remove_directory, self._host, path))

    def foresee(self) -> None:
        """Put into `done` and `problems` what `take` would, as far as that can be told without doing it."""
        pending, host = self._pending, self._host
        started = self._commands_started()
        takes_copies = started is not None and not self._others_have_written()
        if takes_copies:
            self.done += [f"{path} removed" for path in self._made()]
        self.done += [
            f"{one.path} put back" for one in pending.obsolete if read_directory(host, one.path) != one
        ]
        for change in reversed(pending.changes):
            self._attempt(partial(self._put_file, change, is_foreseen=True))
        if takes_copies:
            for output in pending.outputs:
                if not outputs.is_back(host, self._room.outputs, output):
                    self.done.append(f"{output.path} put back")
        for command in reversed(pending.commands[: started or 0]):
            if not (takes_copies and command.outputs):
                self.done.append(f"{' '.join(command.undoing.argv)} run")
        # A file of the plan may be one that commands write too.
        self.done = list(dict.fromkeys(self.done))

    def _attempt(self, effect: Callable[[], object]) -> None:
        attempt(self.problems, effect)

    def _commands_started(self) -> int | None:
        """Return how many commands may have begun; None when the files were not yet made."""
        try:
            state = read_state(self._host, self._room.started)
            return None if state is None else int(state.content)
        except (VirtpassError, OSError, ValueError):
            return len(self._pending.commands)

    def _others_have_written(self) -> bool:
        """Tell whether something that commands write was written when none of ours can have run any more."""
        if not self._is_later:
            return False
        pending = self._pending
        try:
            latest = outputs.latest_write(self._host, self._room.started, pending.commands)
            written = outputs.matching(self._host, _patterns(pending))
            known = {output.path: output for output in pending.outputs}
            return any(
                outputs.time_of(self._host, path) > latest
                and not (path in known and outputs.is_back(self._host, self._room.outputs, known[path]))
                for path in written
            )
        except (VirtpassError, OSError) as error:
            self.problems.append(str(error))
            return True

    def _remove_made(self) -> None:
        for path in self._made():
            self._attempt(partial(self._remove, path))

    def _made(self) -> list[str]:
        """Return what commands made that was not there before."""
        # Files of the plan are looked at more closely, with the others.
        known = {output.path for output in self._pending.outputs}
        known |= {change.path for change in self._pending.changes}
        return [path for path in outputs.matching(self._host, _patterns(self._pending)) if path not in known]

    def _remove(self, path: str) -> None:
        remove_file(self._host, path)
        self.done.append(f"{path} removed")

    def _put_directory(self, state: DirectoryState) -> None:
        if read_directory(self._host, state.path) != state:
            make_directory(self._host, state)
            self.done.append(f"{state.path} put back")

    def _put_file(self, change: FileChange, *, is_foreseen: bool = False) -> None:
        path = change.path
        current = read_state(self._host, path)
        if is_same(current, change.before):
            return
        # Content alone: a boot partition (FAT) has permissions of its own.
        is_ours = (current and current.content) == (change.after and change.after.content)
        if not is_ours and not outputs.is_matching(path, _patterns(self._pending)):
            if self._keep:
                self.done.append(f"{path} left as somebody else has changed it")
                return
            raise RefusedError(
                "drift",
                f"{path} was changed by somebody else meanwhile (virtpass host recover --keep leaves it so)",
            )
        if not is_foreseen:
            put(self._host, path, change.before)
        self.done.append(f"{path} put back")

    def _put_output(self, output: Output) -> None:
        if outputs.put_back(self._host, self._room.outputs, output):
            self.done.append(f"{output.path} put back")

    def _undo(self, command: Command) -> None:
        problem, printed = self._run(command.undoing)
        if problem:
            self.problems.append(problem)
            self.output += printed
        else:
            self.done.append(f"{' '.join(command.undoing.argv)} run")


def put(host: Host, path: str, state: FileState | None) -> None:
    """Make a file what ``state`` says, or remove it; errors as `write_state` and `remove_file`."""
    if state is None:
        remove_file(host, path)
    else:
        write_state(host, path, state)


def is_same(current: FileState | None, wanted: FileState | None) -> bool:
    """Tell whether two states look alike, or both are none."""
    return current is wanted or (current is not None and current.looks_like(wanted))


def attempt(problems: list[str], effect: Callable[[], object]) -> None:
    """Do something; why it could not be done is added to the problems."""
    try:
        effect()
    except VirtpassError as error:
        problems.append(str(error))
    except OSError as error:
        problems.append(str(explained(error, os.fspath(error.filename or "a file"))))


def _patterns(pending: Pending) -> list[str]:
    return [pattern for command in pending.commands for pattern in command.outputs]
