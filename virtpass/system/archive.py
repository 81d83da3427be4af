"""Snapshot files: a tree of a host's files in a compressed tar archive.

An archive is written by us, and read from anybody: what it says of names, links, sizes and kinds is checked
before anything of it is believed.
"""

import errno
import gzip
import io
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from virtpass.system.errors import (
    FailedError,
    NotFoundError,
    PermissionDeniedError,
    RefusedError,
    UsageError,
)
from virtpass.system.own_files import TEMPORARY

FORMAT = 1
# What is in no file of the host; the first member.
RECORD = "snapshot.json"
_TREE = "root"
# Several times as much as a large host has.
_MAX_ENTRIES = 200_000
_MAX_TOTAL = 256 << 20
_MAX_FILE = 16 << 20
_MAX_PATH = 2048
_MAX_NAME = 255
_MAX_DEPTH = 40
_MAX_LINK = 1024
_CHUNK = 1 << 16
_PERMISSIONS = 0o777
_WRITABLE_BY_OTHERS = 0o002
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What a file system without hard links says, such as that of a memory stick.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
# Stands for every owner but root (and, where an ordinary user took the snapshot, that user).
_NOBODY = 65534
_ELSEWHERE = "choose a directory of yours, or run it as root"
_ANEW = "ask for the file anew, made with: virtpass snapshot FILE"
_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, directory or symbolic link of the tree.

    Attributes:
        path: where the host has it; absolute, without links in it.
        content: of a file; None for all else.
        target: of a link; empty for all else.
        mode: permission bits.
        is_own: whether it belongs to root, or to who took the snapshot.
    """

    path: str
    content: bytes | None = None
    target: str = ""
    mode: int = 0o755
    is_own: bool = True


# writing


def write_archive(path: str, record: Mapping[str, Any], entries: Iterable[Entry]) -> None:
    """Write a snapshot: the whole of it, readable for its owner alone, or nothing.

    Args:
        path: a file that does not exist yet.
        record: what is in no file.
        entries: the tree.

    Raises:
        NotFoundError: its directory does not exist.
        RefusedError: there is something at ``path`` already.
        PermissionDeniedError, FailedError: it cannot be written; nothing is left behind.
    """
    entries = sorted(entries, key=lambda one: one.path)
    record = {"format": FORMAT, **record, "entries": len(entries)}
    directory, name = os.path.split(path)
    if not name or name in (".", ".."):
        raise UsageError("snapshot-name", f"'{path}' names no file")
    try:
        beside = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"there is no directory {directory}"
        raise NotFoundError("no-directory", what, "make it, or choose another place") from error
    except OSError as error:
        raise _explained(error, directory, _ELSEWHERE) from error
    temporary = f"{TEMPORARY}{os.urandom(8).hex()}"
    is_there = False
    try:
        _refuse_present(beside, name, path)
        descriptor = os.open(temporary, _FILE_FLAGS, 0o600, dir_fd=beside)
        is_there = True
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            _write(file, record, entries)
            file.flush()
            os.fsync(descriptor)
        is_there = not _named(beside, temporary, name, path)
        os.fsync(beside)
    except FileExistsError as error:
        raise _present(path) from error
    except OSError as error:
        raise _explained(error, path, _ELSEWHERE) from error
    finally:
        if is_there:
            os.unlink(temporary, dir_fd=beside)
        os.close(beside)


def _named(directory: int, temporary: str, name: str, path: str) -> bool:
    """Give a file its name; tell whether it has lost the temporary one.

    A link, not a rename: that would replace what somebody has put there meanwhile.

    Raises:
        RefusedError: something has the name.
        OSError: it cannot be given.
    """
    try:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _refuse_present(directory, name, path)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return True
    return False


def _refuse_present(directory: int, name: str, path: str) -> None:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    raise _present(path)


def _present(path: str) -> RefusedError:
    return RefusedError("snapshot-exists", f"{path} exists, and is not overwritten", "choose another name")


def _write(file: BinaryIO, record: Mapping[str, Any], entries: Iterable[Entry]) -> None:
    # Neither name nor time in its header: both would tell something of the one who wrote it.
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        text = json.dumps(record, indent=1, sort_keys=True).encode()
        _add(archive, tarfile.TarInfo(RECORD), text)
        for entry in entries:
            member = tarfile.TarInfo(_TREE + entry.path)
            member.mode = entry.mode & _PERMISSIONS
            member.uid = member.gid = 0 if entry.is_own else _NOBODY
            if entry.target:
                member.type, member.linkname = tarfile.SYMTYPE, entry.target
            elif entry.content is None:
                member.type = tarfile.DIRTYPE
            _add(archive, member, entry.content or b"")


def _add(archive: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    if member.isreg():
        member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


# reading


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A snapshot that was unpacked.

    Attributes:
        record: what is in no file, as it was read; nothing in it has been looked at yet.
        targets: the targets of absolute links, by path: on disk these are relative.
    """

    record: Mapping[str, Any]
    targets: Mapping[str, str]


class _NotOursError(Exception):
    """An archive is not one of ours."""


class _Measured:
    """A compressed stream that ends in an error when more comes out of it than a snapshot may have."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left = _MAX_TOTAL

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise _hostile(f"it has more than {_MAX_TOTAL >> 20} MiB")
        return content


def unpack(path: str, directory: str) -> Unpacked:
    """Unpack a snapshot that may come from anybody.

    Args:
        path: the snapshot.
        directory: an empty directory that nobody else may enter.

    Raises:
        NotFoundError, PermissionDeniedError: it cannot be opened.
        RefusedError: it has what no snapshot has: absolute names, links out of its tree, devices, too much.
        UsageError: it is no snapshot, or one of a later version.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError("no-snapshot", f"there is no file {path}") from error
    except OSError as error:
        raise _explained(error, path, "run it as the file's owner, or as root") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError("no-snapshot", f"{path} is not a snapshot, but a directory or a device", _ANEW)
    with open(descriptor, "rb") as file:
        is_packed = file.read(len(_MAGIC)) == _MAGIC
        file.seek(0)
        if not is_packed:
            raise UsageError("no-snapshot", f"{path} is not a snapshot", _ANEW)
        return _unpacked(file, path, directory)


def _unpacked(file: BinaryIO, path: str, directory: str) -> Unpacked:
    with gzip.GzipFile(fileobj=file, mode="rb") as packed:
        stream = _Measured(packed)
        try:
            # Only `read` of the stream is used.
            with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
                unpacked = _unpack(archive, directory)
            # What compressed it has written a check sum at the very end.
            while stream.read(_CHUNK):
                pass
        except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, UnicodeError, ValueError) as error:
            raise UsageError(
                "no-snapshot", f"{path} is not a snapshot, or only a part of one", _ANEW
            ) from error
        except (_NotOursError, RecursionError) as error:
            raise UsageError("no-snapshot", f"{path} is not a snapshot", _ANEW) from error
        except OSError as error:
            raise FailedError("snapshot", f"{path} cannot be unpacked: {error.strerror or error}") from error
    return unpacked


def _unpack(archive: tarfile.TarFile, directory: str) -> Unpacked:
    record: Mapping[str, Any] | None = None
    targets: dict[str, str] = {}
    links: list[str] = []
    count = 0
    modes: dict[str, int] = {}
    top = os.open(directory, _DIRECTORY_FLAGS)
    try:
        for count, member in enumerate(archive):
            # It would keep each of them.
            archive.members = []  # type: ignore[attr-defined]
            if count > _MAX_ENTRIES:
                raise _hostile(f"it has more than {_MAX_ENTRIES} entries")
            if record is None:
                record = _record(archive, member)
                continue
            parts = _parts(member)
            path = "/" + "/".join(parts)
            mode = member.mode & _PERMISSIONS
            if member.uid:
                # So that it is as little trusted here as it was there.
                mode |= _WRITABLE_BY_OTHERS
            if member.isdir():
                os.close(_entered(top, parts))
                modes[path] = mode
                continue
            if not parts:
                raise _hostile("its tree is no directory")
            parent = _entered(top, parts[:-1])
            try:
                if member.issym():
                    target = _relative(path, member.linkname)
                    os.symlink(target, parts[-1], dir_fd=parent)
                    links.append(path)
                    if member.linkname.startswith("/"):
                        targets[path] = member.linkname
                else:
                    _put(archive, member, parts[-1], parent, mode)
            except FileExistsError as error:
                raise _hostile(f"it has {path} twice") from error
            finally:
                os.close(parent)
    finally:
        os.close(top)
    if record is None:
        raise _NotOursError
    # tarfile takes a damaged header for the end.
    if record.get("entries") != count:
        raise EOFError
    for path in links:
        _refuse_leaving(directory, path)
    # Last: a directory may be one in which nothing may be made.
    for path, mode in modes.items():
        os.chmod(directory + path, mode | 0o700, follow_symlinks=True)
    return Unpacked(record, targets)


def _record(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Mapping[str, Any]:
    """Return what is in no file.

    Raises:
        UsageError: a later version has made it.
        _NotOursError: this is no snapshot.
        ValueError: it is no JSON.
    """
    if member.name != RECORD or not member.isreg():
        raise _NotOursError
    found = json.loads(_content(archive, member), parse_constant=_no_number)
    version = found.get("format") if isinstance(found, dict) else None
    if not isinstance(found, dict) or type(version) is not int:
        raise _NotOursError
    if version != FORMAT:
        raise UsageError(
            "snapshot-format",
            f"the snapshot has format {version}, and this version of virtpass reads {FORMAT}",
            "use the version that has made it, or a later one",
        )
    return found


def _no_number(text: str) -> float:
    raise ValueError(text)


def _parts(member: tarfile.TarInfo) -> list[str]:
    """Return the names on the way to a member, without that of the tree.

    Raises:
        RefusedError: its name or its kind has no place in a snapshot.
    """
    # tarfile takes the slashes off the end.
    name = member.name
    if not (member.isdir() or member.issym() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        raise _hostile(f"{name} is neither a file nor a directory nor a symbolic link")
    if member.issparse():
        raise _hostile(f"{name} is a file with holes")
    if len(name) > _MAX_PATH:
        raise _hostile("a name in it is too long")
    tree, *parts = name.split("/")
    if tree != _TREE or "\0" in name:
        raise _hostile(f"{name} is outside its tree")
    is_odd = any(one in ("", ".", "..") or len(os.fsencode(one)) > _MAX_NAME for one in parts)
    if is_odd or len(parts) > _MAX_DEPTH:
        raise _hostile(f"{name} is no plain path")
    return parts


def _relative(path: str, target: str) -> str:
    """Return the target of a link so that it stays below the tree's own root."""
    if not target or len(target) > _MAX_LINK or "\0" in target:
        raise _hostile(f"{path} is a link to nowhere")
    return os.path.relpath(target, os.path.dirname(path)) if target.startswith("/") else target


def _refuse_leaving(directory: str, path: str) -> None:
    """Refuse a link that leads out of the tree, perhaps by way of others.

    All links are there, and nothing changes any more: what the kernel would follow now it follows later.
    """
    top = os.path.realpath(directory)
    if not f"{os.path.realpath(top + path)}/".startswith(f"{top}/"):
        raise _hostile(f"the link {path} leads out of its tree")


def _entered(top: int, parts: list[str]) -> int:
    """Open a directory of the tree, made where it is missing; no link is followed."""
    descriptor = os.dup(top)
    for name in parts:
        above = descriptor
        try:
            try:
                os.mkdir(name, 0o700, dir_fd=above)
            except FileExistsError:
                pass
            try:
                descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=above)
            except OSError as error:
                raise _hostile(f"{name} is no directory in it, and has something below") from error
        finally:
            os.close(above)
    return descriptor


def _put(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, parent: int, mode: int) -> None:
    content = _content(archive, member)
    descriptor = os.open(name, _FILE_FLAGS, 0o600, dir_fd=parent)
    with open(descriptor, "wb") as file:
        file.write(content)
        os.fchmod(descriptor, mode | 0o600)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_FILE:
        raise _hostile(f"{member.name} has more than {_MAX_FILE >> 20} MiB")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) != member.size:
        raise EOFError
    return content


def _hostile(what: str) -> RefusedError:
    return RefusedError(
        "unsafe-snapshot",
        f"the snapshot is not unpacked: {what}",
        "virtpass has not made it so; do not trust it",
    )


def _explained(error: OSError, path: str, remedy: str) -> Exception:
    text = f"{path}: {error.strerror}"
    if isinstance(error, PermissionError):
        return PermissionDeniedError("permission", text, remedy)
    return FailedError("file", text)
