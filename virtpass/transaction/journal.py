"""The record of a transaction on disk: all that it takes to put everything back, before the first change.

One directory per transaction room: ``pending.json`` while a transaction runs, ``outputs/`` with copies of
what its commands write, ``applied.json`` with what the last one left behind. Only root can write there; what
is read is checked all the same, since it decides which files are written.
"""

import base64
import json
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from virtpass.system.errors import FailedError
from virtpass.system.files import DirectoryState, FileState
from virtpass.transaction.outputs import Output
from virtpass.transaction.plan import Command, FileChange

VERSION = 1
# The largest number stands for "as it is" in chown.
_MAX_ID = 0xFFFFFFFE
_MAX_TIME = (1 << 63) - 1
_MAX_COUNT = 1 << 53
_HEXADECIMAL = re.compile(r"[0-9a-f]*")


@dataclass(frozen=True, slots=True)
class Room:
    """Where the records of one kind of transaction lie, below the host's root."""

    directory: str

    @property
    def pending(self) -> str:
        """The record of a transaction that has begun."""
        return f"{self.directory}/pending.json"

    @property
    def started(self) -> str:
        """How many commands of that transaction may have begun; there once its files are made."""
        return f"{self.directory}/started"

    @property
    def applied(self) -> str:
        """The record of what is applied."""
        return f"{self.directory}/applied.json"

    @property
    def outputs(self) -> str:
        """The directory of the copies of what commands write."""
        return f"{self.directory}/outputs"


@dataclass(frozen=True, slots=True)
class Pending:
    """A transaction that has begun.

    Attributes:
        number: counts the transactions of this host.
        mark: tells the programs that it has started, for `virtpass.system.commands.end_marked`.
        changes: as planned.
        directories: those that did not exist before, and that it makes or its commands may make.
        obsolete: those that existed and are removed.
        commands: as planned.
        outputs: what was where the commands may write.
    """

    number: int
    mark: str
    changes: tuple[FileChange, ...]
    directories: tuple[str, ...]
    obsolete: tuple[DirectoryState, ...]
    commands: tuple[Command, ...]
    outputs: tuple[Output, ...]


def pending_to_json(pending: Pending) -> bytes:
    """Render a record."""
    return _dump(
        {
            "version": VERSION,
            "number": pending.number,
            "mark": pending.mark,
            "changes": [
                {
                    "path": change.path,
                    "before": state_to_json(change.before),
                    "after": state_to_json(change.after),
                    "reason": change.reason,
                }
                for change in pending.changes
            ],
            "directories": list(pending.directories),
            "obsolete": [[one.path, one.mode, _owner_to_json(one.owner)] for one in pending.obsolete],
            "commands": [command_to_json(command) for command in pending.commands],
            "outputs": [[one.path, one.copy, one.digest, one.link] for one in pending.outputs],
        }
    )


def pending_from_json(content: bytes, path: str) -> Pending:
    """Parse a record.

    Raises:
        FailedError: it is none, or of a later version.
    """
    data = load(content, path)
    try:
        return Pending(
            number(data["number"], _MAX_COUNT),
            _hexadecimal(data["mark"], 32),
            tuple(
                FileChange(
                    absolute(one["path"]),
                    state_from_json(one["before"]),
                    state_from_json(one["after"]),
                    _text(one["reason"]),
                )
                for one in _list(data["changes"])
            ),
            tuple(absolute(one) for one in _list(data["directories"])),
            tuple(
                DirectoryState(absolute(one), number(mode, 0o7777), _owner_from_json(owner))
                for one, mode, owner in _list(data["obsolete"])
            ),
            tuple(command_from_json(one) for one in _list(data["commands"])),
            tuple(
                Output(absolute(one), _copy_name(copy), sha256(digest), _text(link))
                for one, copy, digest, link in _list(data["outputs"])
            ),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise unreadable(path) from error


def applied_from_json(content: bytes, path: str) -> tuple[int, dict[str, Any] | None]:
    """Parse the record of what is applied: the number of the transaction, and what it left on record.

    Raises:
        FailedError: it is none, or of a later version.
    """
    data = load(content, path)
    try:
        record = data["record"]
        if record is not None and not isinstance(record, dict):
            raise TypeError(record)
        return number(data["number"], _MAX_COUNT), record
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(path) from error


def load(content: bytes, path: str) -> dict[str, Any]:
    """Parse the JSON of a record and check its version.

    Raises:
        FailedError: it is none, or of a later version.
    """
    try:
        data = json.loads(content)
        version = number(data["version"], _MAX_COUNT)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise unreadable(path) from error
    if version != VERSION:
        raise FailedError(
            "record-version",
            f"{path} was written by another version of virtpass",
            "undo it with that version",
        )
    return dict(data)


def unreadable(path: str) -> FailedError:
    """Return the error for a record that is none."""
    return FailedError("record", f"{path} is not a record of virtpass", "look at it, and move it away")


def _dump(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=True) + "\n").encode()


def dump(data: dict[str, Any]) -> bytes:
    """Render the JSON of a record, with the version."""
    return _dump({"version": VERSION, **data})


def state_to_json(state: FileState | None) -> dict[str, Any] | None:
    """Render the state of a file."""
    if state is None:
        return None
    return {
        "content": base64.b64encode(state.content).decode(),
        "mode": state.mode,
        "owner": _owner_to_json(state.owner),
        "mtime_ns": state.mtime_ns,
        "attributes": [[name, base64.b64encode(value).decode()] for name, value in state.attributes],
    }


def state_from_json(data: Any) -> FileState | None:  # noqa: ANN401 (whatever JSON holds)
    """Parse the state of a file. Raises ValueError, KeyError or TypeError for anything else."""
    if data is None:
        return None
    mtime = data["mtime_ns"]
    return FileState(
        base64.b64decode(data["content"], validate=True),
        number(data["mode"], 0o7777),
        _owner_from_json(data["owner"]),
        None if mtime is None else number(mtime, _MAX_TIME, -_MAX_TIME),
        tuple(
            (_text(name), base64.b64decode(value, validate=True)) for name, value in _list(data["attributes"])
        ),
    )


def _owner_to_json(owner: tuple[int, int] | None) -> list[int] | None:
    return None if owner is None else list(owner)


def _owner_from_json(data: Any) -> tuple[int, int] | None:  # noqa: ANN401 (whatever JSON holds)
    if data is None:
        return None
    user, group = _list(data)
    return number(user, _MAX_ID), number(group, _MAX_ID)


def command_to_json(command: Command) -> dict[str, Any]:
    """Render a command."""
    return {
        "argv": list(command.argv),
        "reason": command.reason,
        "cost": command.cost,
        "deadline": command.deadline,
        "outputs": list(command.outputs),
        "revert": list(command.revert),
    }


def command_from_json(data: Any) -> Command:  # noqa: ANN401 (whatever JSON holds)
    """Parse a command. Raises ValueError, KeyError or TypeError for anything else."""
    argv = tuple(_text(word) for word in _list(data["argv"]))
    if not argv:
        raise ValueError("a command without a program")
    return Command(
        argv,
        _text(data["reason"]),
        _text(data["cost"]),
        _seconds(data["deadline"]),
        tuple(absolute(one) for one in _list(data["outputs"])),
        tuple(_text(word) for word in _list(data["revert"])),
    )


def absolute(path: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    """Return a path that names one place below the root. Raises ValueError or TypeError for anything else."""
    text = _text(path)
    if not text.startswith("/") or any(part in ("", ".", "..") for part in text[1:].split("/")):
        raise ValueError(text)
    return text


def sha256(data: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    """Return a digest in hexadecimal, or nothing. Raises ValueError or TypeError for anything else."""
    return "" if data == "" else _hexadecimal(data, 64)


def number(value: Any, largest: int, smallest: int = 0) -> int:  # noqa: ANN401 (whatever JSON holds)
    """Return a whole number within bounds. Raises ValueError or TypeError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(value)
    if not smallest <= value <= largest:
        raise ValueError(value)
    return value


def _hexadecimal(value: Any, length: int) -> str:  # noqa: ANN401 (whatever JSON holds)
    text = _text(value)
    if len(text) != length or not _HEXADECIMAL.fullmatch(text):
        raise ValueError(text)
    return text


def _copy_name(name: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    text = _text(name)
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return text


def _seconds(value: Any) -> float:  # noqa: ANN401 (whatever JSON holds)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(value)
    return float(value)


def _text(value: Any) -> str:  # noqa: ANN401 (whatever JSON holds)
    if not isinstance(value, str):
        raise TypeError(value)
    # Not every text can be the name of a file or an argument: lone surrogates cannot.
    if b"\0" in os.fsencode(value):
        raise ValueError(value)
    return value


def _list(value: Any) -> list[Any]:  # noqa: ANN401 (whatever JSON holds)
    if not isinstance(value, list):
        raise TypeError(value)
    return value
