"""What commands write: copied before they run, and put back when they shall not have run."""

import fnmatch
import hashlib
import os
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from virtpass.system.errors import FailedError, RefusedError
from virtpass.system.files import (
    FileState,
    copy_file,
    digest_of,
    read_state,
    regular_files_and_links,
    remove_file,
    write_link,
)
from virtpass.system.host import Host
from virtpass.system.own_files import TEMPORARY
from virtpass.transaction.plan import Command

# What a command has written is kept for an exact undo later on, unless it is larger (an initramfs) ...
_KEPT_SIZE = 1 << 20
# ... or there is more of it than this.
_KEPT_TOTAL = 8 << 20
# What a command that is ended at its deadline may take to end.
_GRACE = 60.0
# Left free on the file system of the copies.
_SPARE = 64 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """What was at a path that commands may write.

    Attributes:
        path: where it is on the host.
        copy: the name of a regular file's copy; empty for whatever else.
        digest: SHA-256 of that file, in hexadecimal.
        link: the target of a symbolic link. Without a copy and a link there was nothing.
    """

    path: str
    copy: str = ""
    digest: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file that a command wrote, small unless the command made it.

    Attributes:
        path: where it is on the host.
        before: how it was; None when the command made it.
        left: SHA-256 of what the command left, in hexadecimal; empty when it removed the file.
    """

    path: str
    before: FileState | None
    left: str


def merged(earlier: Iterable[Kept], later: Iterable[Kept]) -> list[Kept]:
    """Return what two transactions together have to put back.

    Args:
        earlier: what is on record of the first.
        later: what the second has found and left; where nobody else wrote a file in between, it goes back to
            how it was before the first.
    """
    found = {one.path: one for one in earlier}
    for one in later:
        old = found.get(one.path)
        between = "" if one.before is None else hashlib.sha256(one.before.content).hexdigest()
        found[one.path] = Kept(one.path, old.before, one.left) if old and old.left == between else one
    return list(found.values())


def matching(host: Host, patterns: Iterable[str]) -> list[str]:
    """Return the regular files and links that match patterns, sorted; no link is followed.

    Raises:
        VirtpassError: a directory cannot be looked into.
    """
    found = set()
    for pattern in patterns:
        directory, glob = os.path.split(pattern)
        files, links = regular_files_and_links(host, directory)
        found |= {
            f"{directory.rstrip('/')}/{name}"
            for name in (*files, *links)
            if fnmatch.fnmatchcase(name, glob) and not name.startswith(TEMPORARY)
        }
    return sorted(found)


def is_matching(path: str, patterns: Iterable[str]) -> bool:
    """Tell whether a path matches one of the patterns."""
    directory, name = os.path.split(path)
    return any(
        os.path.dirname(pattern) == directory and fnmatch.fnmatchcase(name, os.path.basename(pattern))
        for pattern in patterns
    )


def behind_links(host: Host, paths: Iterable[str]) -> set[str]:
    """Return the files to which links among the paths lead: a command may write through them."""
    real = {host.real_path(path) for path in paths if host.link_target(path) is not None}
    return {path for path in real if os.path.isfile(host.path(path))}


def refuse_without_room(host: Host, directory: str, paths: Iterable[str]) -> None:
    """Refuse when the copies would not leave enough room.

    Raises:
        RefusedError: they would not.
    """
    need = 0
    for path in paths:
        try:
            need += os.lstat(host.path(path)).st_size
        except FileNotFoundError:
            continue
    space = os.statvfs(host.path(directory))
    free = space.f_bavail * space.f_frsize
    if need and free < need + _SPARE:
        raise RefusedError(
            "disk-full",
            f"{directory} has {free >> 20} MiB free, and {(need + _SPARE) >> 20} MiB are needed to keep what"
            " will be written anew",
            "make room on that file system",
        )


def keep(host: Host, directory: str, paths: Iterable[str]) -> tuple[Output, ...]:
    """Copy what is at the paths.

    Raises:
        VirtpassError: that could not be done; copies of some may lie in the directory.
    """
    outputs: list[Output] = []
    for path in paths:
        if (link := host.link_target(path)) is not None:
            outputs.append(Output(path, link=link))
            continue
        copy = str(len(outputs))
        try:
            outputs.append(Output(path, copy, copy_file(host, path, f"{directory}/{copy}")))
        except FileNotFoundError:
            outputs.append(Output(path))
    return tuple(outputs)


def put_back(host: Host, directory: str, output: Output) -> bool:
    """Make a path what it was; tell whether it was anything else.

    Raises:
        VirtpassError: that could not be done.
    """
    path = output.path
    if is_back(host, directory, output):
        return False
    if output.link:
        write_link(host, path, output.link)
    elif not output.copy:
        remove_file(host, path)
    else:
        # The command may have removed the directory.
        os.close(host.open_directory(os.path.dirname(path), create=0o755))
        _copy_back(host, f"{directory}/{output.copy}", path, output.digest)
    return True


def is_back(host: Host, directory: str, output: Output) -> bool:
    """Tell whether a path is what it was."""
    if output.link:
        return host.link_target(output.path) == output.link
    if not output.copy:
        return not host.exists(output.path)
    return _is_as_copied(host, output.path, f"{directory}/{output.copy}", output.digest)


def time_of(host: Host, path: str) -> float:
    """Return when a file was last written, made or renamed, in seconds of the clock."""
    found = os.lstat(host.path(path))
    return max(found.st_mtime, found.st_ctime)


def latest_write(host: Host, started: str, commands: Sequence[Command]) -> float:
    """Return until when the last of the commands that began may have written, in seconds of the clock.

    Args:
        host: where they ran.
        started: the file that was written when the last one began.
        commands: all of them.
    """
    begun = time_of(host, started)
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    # No program of an earlier boot runs any more.
    end = begun + max((command.deadline for command in commands), default=0) + _GRACE
    return min(end, booted) if begun < booted else end


def _is_as_copied(host: Host, path: str, copy: str, digest: str) -> bool:
    try:
        now, then = (os.lstat(host.path(one)) for one in (path, copy))
    except FileNotFoundError:
        return False
    same = [
        (found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_mtime_ns) for found in (now, then)
    ]
    return same[0] == same[1] and digest_of(host, path) == digest


def _copy_back(host: Host, copy: str, path: str, digest: str) -> None:
    try:
        copy_file(host, copy, path, digest)
    except FailedError as error:
        # A boot partition may have no room for the old and the new image at a time. The copy is whole and
        # stays until the end: a crash in between is healed like any other.
        if error.reference != "disk-full" or not _fits_instead(host, copy, path, digest):
            raise
        remove_file(host, path)
        copy_file(host, copy, path, digest)


def _fits_instead(host: Host, copy: str, path: str, digest: str) -> bool:
    """Tell whether there is room for a copy once the file in its place is gone."""
    try:
        found = os.lstat(host.path(path))
    except FileNotFoundError:
        return False
    space = os.statvfs(os.path.dirname(host.path(path)))
    gained = found.st_blocks * 512 if found.st_nlink == 1 else 0
    need = os.lstat(host.path(copy)).st_size + space.f_frsize
    return space.f_bavail * space.f_frsize + gained >= need and digest_of(host, copy) == digest


def left_behind(
    host: Host, directory: str, outputs: Sequence[Output], patterns: Collection[str]
) -> list[Kept]:
    """Return the files that commands wrote, removed or made, as they were before.

    Raises:
        VirtpassError: one cannot be read.
    """
    kept: list[Kept] = []
    total = 0
    for output in outputs:
        if not output.copy or host.link_target(output.path) is not None:
            continue
        left = digest_of(host, output.path)
        size = os.lstat(host.path(f"{directory}/{output.copy}")).st_size
        if left == output.digest or size > _KEPT_SIZE or total + size > _KEPT_TOTAL:
            continue
        total += size
        kept.append(Kept(output.path, read_state(host, f"{directory}/{output.copy}"), left))
    known = {output.path for output in outputs}
    for path in matching(host, patterns):
        if path not in known and host.link_target(path) is None:
            kept.append(Kept(path, None, digest_of(host, path)))
    return kept
