"""From what each module wants in files, and what is on record, to the changes of a transaction."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from virtpass.host.forms import Form, LineTokens, form_from_json, form_to_json
from virtpass.host.mounts import mount_of
from virtpass.system.errors import RefusedError
from virtpass.system.files import FileState, directories_above, read_state
from virtpass.system.host import Host
from virtpass.system.own_files import WITHOUT_PERMISSIONS
from virtpass.transaction.journal import absolute, sha256, state_from_json, state_to_json
from virtpass.transaction.plan import FileChange


@dataclass(frozen=True, slots=True)
class Edit:
    """What virtpass wants in one file.

    Attributes:
        path: the file, as the host sees it.
        form: what our part looks like.
        reason: why, one sentence without a full stop.
        mode: permissions of the file if it is made.
    """

    path: str
    form: Form
    reason: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Written:
    """What virtpass has written to one file, as it is on record.

    Attributes:
        path: the file.
        form: our part of it.
        original: the file before virtpass came; None when it did not exist.
        left: SHA-256 of what virtpass left, in hexadecimal.
    """

    path: str
    form: Form
    original: FileState | None
    left: str

    def is_untouched(self, current: FileState) -> bool:
        """Tell whether nobody has written to the file since; permissions are not ours alone to judge."""
        return digest(current.content) == self.left


@dataclass(frozen=True, slots=True)
class Composed:
    """The changes of files that lead from how they are to how they shall be.

    Attributes:
        changes: the changes; files that are right already are not among them.
        written: what is on record when the changes are made; files in which nothing is ours are not.
        drifted: files that were edited by others since virtpass wrote them.
        directories: directories that the changes need and that do not exist, parents first.
        obsolete: directories that virtpass made and in which it wants nothing any more, parents first.
        made: directories that are on record as made by virtpass when all is done, parents first.
    """

    changes: tuple[FileChange, ...]
    written: tuple[Written, ...]
    drifted: tuple[str, ...]
    directories: tuple[str, ...]
    obsolete: tuple[str, ...]
    made: tuple[str, ...]


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def compose(
    host: Host,
    edits: Iterable[Edit],
    recorded: Mapping[str, Written],
    made: Iterable[str] = (),
    running: tuple[str, ...] = (),
) -> Composed:
    """Plan the changes.

    Args:
        host: where the files are.
        edits: what is wanted, at most one for each path; what is on record and not wanted any more is undone.
        recorded: what virtpass has written before, by path.
        made: the directories that virtpass has made before.
        running: the tokens of the running kernel's command line.

    Raises:
        RefusedError: a file cannot be edited; nothing has changed.
    """
    wanted = {edit.path: edit for edit in edits}
    changes, written, drifted = [], [], []
    for path in [*(path for path in recorded if path not in wanted), *wanted]:
        current = read_state(host, path)
        record = recorded.get(path)
        if record is not None and current is not None and not record.is_untouched(current):
            drifted.append(path)
        base = _base(current, record)
        edit = wanted.get(path)
        after, reason = base, "no longer needed"
        if edit is None and base is None and current and record and isinstance(record.form, LineTokens):
            lasting = record.form.lasting(running)
            after = current.with_content(lasting) if lasting is not None else None
        if edit is not None:
            form, content = _edited(_as_begun(edit, record), base)
            reason = edit.reason
            if base is None or content != base.content:
                after = _after(host, edit, current, base, content)
                written.append(Written(path, form, base, digest(content)))
        change = FileChange(path, current, after, reason)
        if change.is_needed:
            changes.append(change)
    needed = {directory for path in wanted for directory in directories_above(path)}
    missing = sorted(one for one in needed if not host.exists(one))
    existing = sorted(one for one in made if host.exists(one))
    return Composed(
        tuple(changes),
        tuple(written),
        tuple(drifted),
        tuple(missing),
        tuple(one for one in existing if one not in needed),
        tuple(sorted({*missing, *(one for one in existing if one in needed)})),
    )


def _base(current: FileState | None, record: Written | None) -> FileState | None:
    """Return how the file would be without virtpass."""
    if record is None:
        return current
    if current is None:
        # Somebody has removed it. What was his before is his to put back.
        return None
    original = record.original
    if record.is_untouched(current):
        # Permissions and labels that were changed since are not taken back with our part.
        return original and replace(current, content=original.content, mtime_ns=original.mtime_ns)
    content = _without_ours(record, current.content)
    # A file that was not there before, and of which nothing but our part is there now, is ours as a whole.
    if content is None or (not content and original is None):
        return None
    return current.with_content(content)


def _without_ours(record: Written, content: bytes) -> bytes | None:
    """Return a file that somebody edited without our part.

    Raises:
        RefusedError: nobody can tell any more what is ours.
    """
    try:
        return record.form.remove(content)
    except RefusedError as error:
        raise RefusedError(
            error.reference, f"{record.path} is left alone: {error.what}", error.remedy
        ) from error


def _as_begun(edit: Edit, record: Written | None) -> Edit:
    """Return the edit of a file that we made beginning with what it began with then."""
    old, new = record and record.form, edit.form
    if isinstance(old, LineTokens) and isinstance(new, LineTokens) and old.line:
        return replace(edit, form=replace(new, line=old.line))
    return edit


def _edited(edit: Edit, base: FileState | None) -> tuple[Form, bytes]:
    """Return our part and the content with it."""
    content = base.content if base is not None else None
    try:
        form = edit.form.for_base(content)
        return form, form.add(content)
    except RefusedError as error:
        raise RefusedError(
            error.reference, f"{edit.path} is left alone: {error.what}", error.remedy
        ) from error


def _after(
    host: Host, edit: Edit, current: FileState | None, base: FileState | None, content: bytes
) -> FileState:
    """Return how a file shall be that has something of ours."""
    if base is not None:
        return base.with_content(content)
    if current is not None and not _keeps_permissions(host, edit.path):
        return current.with_content(content)
    return FileState(content, edit.mode)


def _keeps_permissions(host: Host, path: str) -> bool:
    """Tell whether files have permissions of their own there: on a boot partition (FAT) they do not."""
    mount = mount_of(host, path)
    return mount is None or mount.kind not in WITHOUT_PERMISSIONS


def written_to_json(written: Written) -> dict[str, Any]:
    """Render what was written to one file."""
    return {
        "path": written.path,
        "form": form_to_json(written.form),
        "original": state_to_json(written.original),
        "left": written.left,
    }


def written_from_json(data: Any) -> Written:  # noqa: ANN401 (whatever JSON holds)
    """Parse what was written to one file. Raises ValueError, KeyError or TypeError for anything else."""
    return Written(
        absolute(data["path"]),
        form_from_json(data["form"]),
        state_from_json(data["original"]),
        sha256(data["left"]),
    )
