"""What a transaction is: files that change, then commands. Values only; nothing here touches a host."""

import difflib
from dataclasses import dataclass

from virtpass.system.files import FileState

# Of a new file; any other is shown.
_USUAL_MODE = 0o644


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that is made, changed or removed.

    Attributes:
        path: where it is on the host.
        before: how it was when the change was planned; None when it did not exist.
        after: how it shall be; None when it shall not exist.
        reason: why, one sentence without a full stop.
    """

    path: str
    before: FileState | None
    after: FileState | None
    reason: str

    @property
    def is_needed(self) -> bool:
        """Whether anything changes at all, times and labels aside."""
        if self.before is None or self.after is None:
            return self.before is not self.after
        return not self.after.looks_like(self.before)

    @property
    def diff(self) -> str:
        """The change as a unified diff; ends with a line break unless it is empty."""
        before = _lines(self.before)
        after = _lines(self.after)
        old = self.path if self.before is not None else "/dev/null"
        new = self.path if self.after is not None else "/dev/null"
        text = "".join(
            line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
            for line in difflib.unified_diff(before, after, old, new)
        )
        if not text and (self.before is None) != (self.after is None):
            text = f"--- {old}\n+++ {new}\n"  # an empty file
        return self._permissions + text

    @property
    def _permissions(self) -> str:
        if self.after is None:
            return ""
        before = _USUAL_MODE if self.before is None else self.before.mode
        if before == self.after.mode:
            return ""
        was = "" if self.before is None else f"{before:04o} -> "
        return f"# {self.path}: permissions {was}{self.after.mode:04o}\n"


def _lines(state: FileState | None) -> list[str]:
    """Return the lines of a file with their ends; only a line feed ends one."""
    if state is None:
        return []
    text = state.content.decode("utf-8", "backslashreplace")
    lines = text.split("\n")
    ended = [line + "\n" for line in lines[:-1]]
    return [*ended, lines[-1]] if lines[-1] else ended


@dataclass(frozen=True, slots=True)
class Command:
    """A program of the distribution that makes changed files take effect.

    Attributes:
        argv: the program and its arguments.
        reason: why it is run, one sentence without a full stop.
        cost: what it costs the user, such as "about a minute for each kernel"; empty for next to nothing.
        deadline: seconds after which it counts as failed.
        outputs: shell patterns (`fnmatch`, of absolute paths whose directory part is literal) of all files
            that it may write. They are kept before, and put back when the transaction does not end well.
            Empty when that is not known; the command is then run again once the files are as they were.
        revert: the program and its arguments that take the effect back when the files are as before; empty
            for ``argv`` itself, which suits whatever rebuilds from files.
    """

    argv: tuple[str, ...]
    reason: str
    cost: str = ""
    deadline: float = 1800.0
    outputs: tuple[str, ...] = ()
    revert: tuple[str, ...] = ()

    @property
    def undoing(self) -> "Command":
        """The command that takes the effect back."""
        return Command(
            self.revert or self.argv, self.reason, self.cost, self.deadline, self.outputs, self.argv
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """Files that change, in this order, and the commands that are run then, in this order.

    Attributes:
        changes: the files, each once.
        directories: directories that are made first where they are missing, parents before children.
        obsolete: directories that are removed at the end if they are empty, parents before children.
        commands: each once; none when nothing changes.
    """

    changes: tuple[FileChange, ...] = ()
    directories: tuple[str, ...] = ()
    obsolete: tuple[str, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.changes and not self.commands

    def then(self, other: "Plan") -> "Plan":
        """Return both as one: the files of both, then the commands of both, each once."""
        commands = tuple(dict.fromkeys((*self.commands, *other.commands)))
        return Plan(
            self.changes + other.changes,
            tuple(dict.fromkeys(self.directories + other.directories)),
            tuple(dict.fromkeys(self.obsolete + other.obsolete)),
            commands,
        )

    @property
    def diff(self) -> str:
        """All changes of files as one unified diff."""
        return "".join(change.diff for change in self.changes)
