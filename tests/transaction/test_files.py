"""Files as states: nothing is half written, and nothing is followed or overwritten unseen."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtpass.system import files
from virtpass.system.errors import FailedError, PermissionDeniedError, RefusedError, VirtpassError
from virtpass.system.files import (
    DirectoryState,
    FileState,
    copy_file,
    digest_of,
    make_directory,
    read_directory,
    read_state,
    remove_directory,
    remove_file,
    remove_leftover,
    write_link,
    write_state,
)
from virtpass.system.host import Host

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "etc").mkdir(mode=0o755)
    return Host(os.fspath(tmp_path))


def etc(host: Host) -> Path:
    return Path(host.path("/etc"))


def refused(call: Callable[[], object], reference: str, kind: type[VirtpassError] = RefusedError) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.reference == reference
    assert "\n" not in str(caught.value)


@pytest.mark.property
@given(
    content=st.binary(max_size=200),
    mode=st.integers(0, 0o777).map(lambda mode: mode | 0o400),
    mtime=st.integers(0, 2 * 10**18),
)
def test_a_state_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, mode: int, mtime: int
) -> None:
    host = Host(os.fspath(tmp_path_factory.getbasetemp()))
    state = FileState(content, mode, (os.geteuid(), os.getegid()), mtime)
    write_state(host, "/file", state)
    assert read_state(host, "/file") == state


@needs_root
def test_owner_special_bits_and_labels_come_back(host: Host) -> None:
    path = etc(host) / "file"
    path.write_bytes(b"content")
    os.chown(path, 12, 34)
    path.chmod(0o4750)
    try:
        os.setxattr(path, "user.note", b"kept")
        os.setxattr(path, "trusted.note", b"\0kept")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")
    state = read_state(host, "/etc/file")
    assert state is not None
    assert state.owner == (12, 34)
    assert {("user.note", b"kept"), ("trusted.note", b"\0kept")} <= set(state.attributes)
    path.write_bytes(b"other")
    write_state(host, "/etc/file", state)
    assert read_state(host, "/etc/file") == state
    copy_file(host, "/etc/file", "/etc/copy")
    assert read_state(host, "/etc/copy") == state


def test_a_default_acl_of_the_directory_does_not_stick_to_the_file(host: Host) -> None:
    path = etc(host) / "file"
    path.write_bytes(b"content")
    state = read_state(host, "/etc/file")
    assert state is not None
    # user::rwx, user 1234:rwx, group::r-x, mask::rwx, other::r-x
    entries = [(1, 7, -1), (2, 7, 1234), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    acl = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + (who & 0xFFFFFFFF).to_bytes(4, "little")
        for tag, bits, who in entries
    )
    try:
        os.setxattr(etc(host), "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("this file system keeps no access control lists")
    write_state(host, "/etc/file", state)
    assert read_state(host, "/etc/file") == state


def test_new_content_gets_a_new_time_and_keeps_the_rest(host: Host) -> None:
    path = etc(host) / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.utime(path, ns=(1, 1))
    before = read_state(host, "/etc/file")
    assert before is not None
    write_state(host, "/etc/file", before.with_content(b"new"))
    after = read_state(host, "/etc/file")
    assert after is not None
    assert after.mode == 0o640
    assert after.mtime_ns != 1


def test_what_is_not_there(host: Host) -> None:
    assert read_state(host, "/etc/none") is None
    assert read_state(host, "/none/none") is None
    assert digest_of(host, "/etc/none") == ""
    remove_file(host, "/etc/none")
    remove_file(host, "/none/none")
    remove_directory(host, "/none/none")
    refused(lambda: write_state(host, "/none/file", FileState(b"")), "no-directory", FailedError)
    with pytest.raises(FileNotFoundError):
        copy_file(host, "/etc/none", "/etc/copy")


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "symbolic link": (lambda path: path.symlink_to("target"), "link-on-path"),
    "dangling link": (lambda path: path.symlink_to("nothing"), "link-on-path"),
    "hard link": (lambda path: path.hardlink_to(path.with_name("target")), "hard-link"),
    "FIFO": (os.mkfifo, "not-a-file"),
    "directory": (Path.mkdir, "not-a-file"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_of_its_own_is_refused(host: Host, odd: str) -> None:
    (etc(host) / "target").write_text("target")
    make, reference = ODD[odd]
    make(etc(host) / "file")
    refused(lambda: read_state(host, "/etc/file"), reference)
    if odd != "hard link":
        refused(lambda: digest_of(host, "/etc/file"), reference)
        refused(lambda: copy_file(host, "/etc/file", "/etc/copy"), reference)
    assert sorted(os.listdir(etc(host))) == ["file", "target"]


def test_a_directory_that_is_a_link_is_not_followed(host: Host) -> None:
    Path(host.path("/elsewhere")).mkdir()
    (etc(host) / "dir").symlink_to("/elsewhere")
    for call in (
        lambda: read_state(host, "/etc/dir/file"),
        lambda: write_state(host, "/etc/dir/file", FileState(b"")),
        lambda: remove_file(host, "/etc/dir/file"),
        lambda: make_directory(host, DirectoryState("/etc/dir/new")),
    ):
        refused(call, "link-on-path")
    refused(lambda: read_state(host, "/etc/dir/../file"), "link-on-path")


def test_a_directory_that_others_may_write_to_is_refused(host: Host) -> None:
    etc(host).chmod(0o775)
    refused(lambda: write_state(host, "/etc/file", FileState(b"")), "unsafe-directory")
    refused(lambda: read_state(host, "/etc/file"), "unsafe-directory")


def test_a_file_that_is_too_large_is_refused(host: Host) -> None:
    os.truncate(os.open(etc(host) / "file", os.O_CREAT | os.O_WRONLY), (8 << 20) + 1)
    refused(lambda: read_state(host, "/etc/file"), "file-size", FailedError)
    assert len(digest_of(host, "/etc/file")) == 64


def _failing(real: Callable[..., Any], number: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("name", ["write", "fsync", "fchmod", "rename", "utime"])
@pytest.mark.parametrize(("number", "reference"), [(errno.ENOSPC, "disk-full"), (errno.EIO, "file")])
def test_a_write_that_fails_leaves_the_file_alone(
    host: Host, monkeypatch: pytest.MonkeyPatch, name: str, number: int, reference: str
) -> None:
    write_state(host, "/etc/file", FileState(b"old", mtime_ns=5))
    before = read_state(host, "/etc/file")
    with monkeypatch.context() as patch:
        patch.setattr(os, name, _failing(getattr(os, name), number))
        refused(lambda: write_state(host, "/etc/file", FileState(b"new", mtime_ns=6)), reference, FailedError)
    assert read_state(host, "/etc/file") == before
    assert os.listdir(etc(host)) == ["file"]


def test_a_copy_that_is_not_as_expected_replaces_nothing(host: Host) -> None:
    write_state(host, "/etc/file", FileState(b"good"))
    write_state(host, "/etc/copy", FileState(b"bad"))
    refused(
        lambda: copy_file(host, "/etc/copy", "/etc/file", digest_of(host, "/etc/file")),
        "copy-damaged",
        FailedError,
    )
    assert (etc(host) / "file").read_bytes() == b"good"
    assert sorted(os.listdir(etc(host))) == ["copy", "file"]


def test_what_a_crash_left_is_written_over_and_can_be_removed(host: Host) -> None:
    name = files._temporary("file")
    (etc(host) / name).write_text("half")
    write_state(host, "/etc/file", FileState(b"whole"))
    assert os.listdir(etc(host)) == ["file"]
    (etc(host) / name).write_text("half")
    remove_leftover(host, "/etc/file")
    remove_leftover(host, "/etc/file")
    assert os.listdir(etc(host)) == ["file"]


def test_names_that_are_no_text(host: Host) -> None:
    path = os.fsdecode(b"/etc/\xff\xfe")
    write_state(host, path, FileState(b"x"))
    assert read_state(host, path) is not None
    remove_leftover(host, path)


def test_links_are_put_back_in_one_step(host: Host) -> None:
    write_state(host, "/etc/link", FileState(b"in its place"))
    write_link(host, "/etc/link", "some/target")
    assert os.readlink(etc(host) / "link") == "some/target"
    assert os.listdir(etc(host)) == ["link"]


def test_directories_whatever_the_umask_is(host: Host) -> None:
    old = os.umask(0o077)
    try:
        make_directory(host, DirectoryState("/etc/new"))
    finally:
        os.umask(old)
    assert read_directory(host, "/etc/new") == DirectoryState("/etc/new", 0o755, (os.geteuid(), os.getegid()))
    make_directory(host, DirectoryState("/etc/new", 0o700))
    assert (etc(host) / "new").stat().st_mode & 0o7777 == 0o700
    (etc(host) / "new/file").write_text("")
    remove_directory(host, "/etc/new")
    assert (etc(host) / "new/file").exists()
    (etc(host) / "new/file").unlink()
    remove_directory(host, "/etc/new")
    assert read_directory(host, "/etc/new") is None


@pytest.fixture
def mounted(host: Host) -> Iterator[Callable[[str], Path]]:
    """Mounts a tiny file system in memory on /mnt."""
    point = Path(host.path("/mnt"))
    point.mkdir()
    done = []

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"mode=0755,{options}", "virtpass-test", os.fspath(point)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("file systems cannot be mounted here")
        done.append(point)
        return point

    yield mount
    for _ in done:
        subprocess.run(["umount", os.fspath(point)], check=True)


def test_a_full_disk_leaves_the_file_alone(host: Host, mounted: Callable[[str], Path]) -> None:
    point = mounted("size=64k")
    (point / "file").write_bytes(b"old")
    refused(lambda: write_state(host, "/mnt/file", FileState(bytes(100_000))), "disk-full", FailedError)
    assert (point / "file").read_bytes() == b"old"
    assert os.listdir(point) == ["file"]


def test_a_read_only_file_system_is_named_as_such(host: Host, mounted: Callable[[str], Path]) -> None:
    point = mounted("size=64k")
    (point / "file").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", os.fspath(point)], check=True)
    for call in (
        lambda: write_state(host, "/mnt/file", FileState(b"")),
        lambda: remove_file(host, "/mnt/file"),
        lambda: make_directory(host, DirectoryState("/mnt/new")),
    ):
        refused(call, "read-only", PermissionDeniedError)


@needs_root
def test_an_immutable_file_is_named_as_such(host: Host) -> None:
    path = etc(host) / "file"
    path.write_bytes(b"old")
    if subprocess.run(["chattr", "+i", os.fspath(path)], capture_output=True, check=False).returncode != 0:
        pytest.skip("this file system knows no immutable files")
    try:
        refused(lambda: write_state(host, "/etc/file", FileState(b"new")), "immutable", PermissionDeniedError)
        refused(lambda: remove_file(host, "/etc/file"), "immutable", PermissionDeniedError)
    finally:
        subprocess.run(["chattr", "-i", os.fspath(path)], check=True)
    assert path.read_bytes() == b"old"
    assert os.listdir(etc(host)) == ["file"]


def test_a_file_system_without_owners_and_permissions(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot partition (FAT) answers EPERM to what it has no place for."""
    for name in ("fchmod", "fchown", "setxattr"):
        monkeypatch.setattr(os, name, _failing(getattr(os, name), errno.EPERM))
    state = FileState(b"x", 0o755, (4321, 4321), 10**18, (("user.note", b"x"),))
    write_state(host, "/etc/file", state)
    found = read_state(host, "/etc/file")
    assert found is not None
    assert (found.content, found.mtime_ns) == (b"x", 10**18)
    assert copy_file(host, "/etc/file", "/etc/copy") == digest_of(host, "/etc/file")
