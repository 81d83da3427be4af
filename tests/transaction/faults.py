"""Cuts a transaction off: the n-th effect on files or commands fails, or the process dies at it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from virtpass.system.commands import Outcome
from virtpass.system.host import Host

_NAMES = (
    "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "fchmod", "fchown", "utime", "symlink",
    "setxattr", "removexattr", "open",
)  # fmt: skip
_TAKES_ROOM = ("write", "mkdir", "symlink", "open")


class Killed(BaseException):
    """The process ends here: nothing of it has an effect any more."""


@dataclass
class Faults:
    """Counts effects and cuts off at one of them.

    Attributes:
        at: the effect, counted from one; 0 for none.
        kind: "EIO" or "ENOSPC": it fails; "full": it fails, and whatever else takes room from then on;
            "before", "within", "after": the process dies then.
        count: the effects so far.
    """

    at: int = 0
    kind: str = ""
    count: int = 0
    is_armed: bool = False
    is_dead: bool = False
    names: list[str] = field(default_factory=list)

    @contextmanager
    def armed(self, at: int = 0, kind: str = "") -> Iterator[None]:
        """Cut off in the block; without an argument only count."""
        self.at, self.kind, self.count, self.is_dead, self.names = at, kind, 0, False, []
        self.is_armed = True
        try:
            yield
        finally:
            self.is_armed = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do things that are not the transaction's own."""
        before, self.is_armed = self.is_armed, False
        try:
            yield
        finally:
            self.is_armed = before

    @property
    def is_reached(self) -> bool:
        """Whether the effect came."""
        return self.count >= self.at > 0

    def do(self, name: str, effect: Callable[[], Any], half: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Have an effect, or not."""
        if self.is_dead:
            raise Killed
        self.count += 1
        self.names.append(name)
        if self.kind == "full" and self.is_reached and name in _TAKES_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.count != self.at or self.kind == "full":
            return effect()
        if self.kind in ("EIO", "ENOSPC"):
            number = getattr(errno, self.kind)
            raise OSError(number, os.strerror(number))
        try:
            {"before": lambda: None, "within": half, "after": effect}[self.kind]()
        except OSError:
            pass  # such as the removal of what is not there: it dies all the same
        self.is_dead = True
        raise Killed


def install(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Let the system calls that change files pass through a `Faults`."""
    faults = Faults()
    for name in _NAMES:
        monkeypatch.setattr(os, name, _wrapped(faults, name, getattr(os, name)))
    return faults


def _wrapped(faults: Faults, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def effect(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        if not faults.is_armed or (name == "open" and not arguments[1] & os.O_CREAT):
            return None if name == "fsync" else real(*arguments, **options)

        def whole() -> Any:  # noqa: ANN401
            return None if name == "fsync" else real(*arguments, **options)

        def half() -> None:
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])

        return faults.do(name, whole, half)

    return effect


class Programs:
    """Stand-ins for the programs of a distribution: each is a list of steps on a tree of files."""

    def __init__(self, faults: Faults, programs: Mapping[str, list[Callable[[Path], object]]]) -> None:
        self._faults = faults
        self._programs = programs
        self.calls: list[str] = []

    def __call__(self, host: Host, argv: tuple[str, ...], deadline: float) -> Outcome:
        """Run one; a fault that is no death is a program that fails."""
        self.calls.append(" ".join(argv))
        steps = self._programs[argv[0]]

        def run(steps: list[Callable[[Path], object]]) -> Outcome:
            with self._faults.paused():
                for step in steps:
                    step(Path(host.root))
            return Outcome(0, "")

        if not self._faults.is_armed:
            return run(steps)
        try:
            return self._faults.do(
                "command", lambda: run(steps), lambda: run(steps[: len(steps) // 2])
            ) or run([])
        except OSError:
            run(steps[: (len(steps) + 1) // 2])
            return Outcome(1, "no\nnot at all \x1b[31m")


def snapshot(root: Path, *, times: bool = False) -> dict[str, tuple[object, ...]]:
    """Return all that is in a tree, but for the records of transactions and the lock."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, directories, names in os.walk(root):
        for name in (*directories, *names):
            path = Path(folder, name)
            key = f"/{path.relative_to(root)}"
            if key.startswith(("/var/lib/virtpass", "/run")):
                continue
            state = path.lstat()
            owned = (oct(stat.S_IMODE(state.st_mode)), state.st_uid, state.st_gid)
            if path.is_symlink():
                found[key] = ("link", os.readlink(path))
            elif path.is_dir():
                found[key] = ("directory", *owned)
            else:
                found[key] = ("file", path.read_bytes(), *owned, *((state.st_mtime_ns,) if times else ()))
    return found
