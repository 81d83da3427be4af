"""Boot loader entries of type #1 (the boot loader specification, UAPI.1): one small file for each entry.

Shared by all loaders that read them. `virtpass.host.forms.EntryOptions` edits such a file; here it is read.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from virtpass.host.forms import OwnFile, entry_options
from virtpass.host.versions import version_key
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

SUFFIX = ".conf"
_MAX_SIZE = 1 << 20
# Tries left and tries done, which boot counting keeps in the name of the file.
_COUNTER = re.compile(r"\+\d+(?:-\d+)?$")
_LINE = re.compile(r"[ \t]*(?P<key>[^\s#][^ \t]*)[ \t]+(?P<value>.*?)[ \t\r]*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BlsEntry:
    """One file of a boot loader entry.

    Attributes:
        path: where it is.
        content: all of it.
    """

    path: str
    content: bytes

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The keys with their values, in the order of the file; comments are not among them."""
        lines = self.content.decode("utf-8", "surrogateescape").split("\n")
        return tuple((found["key"], found["value"]) for line in lines if (found := _LINE.fullmatch(line)))

    def value(self, key: str) -> str:
        """Return the value of a key, that of its last line; empty when it has none."""
        return next((value for name, value in reversed(self.fields) if name == key), "")

    def values(self, key: str) -> tuple[str, ...]:
        """Return the values of a key that may stand on several lines, such as ``initrd``."""
        return tuple(value for name, value in self.fields if name == key)

    @property
    def initrds(self) -> tuple[str, ...]:
        """The files of all ``initrd`` lines."""
        return tuple(word for value in self.values("initrd") for word in value.split())

    @property
    def name(self) -> str:
        """The name of the file without its ending: what GRUB calls the entry."""
        return self.path.rpartition("/")[2].removesuffix(SUFFIX)

    @property
    def identifier(self) -> str:
        """The name of the file without the counter of boots: what systemd-boot calls the entry."""
        return _COUNTER.sub("", self.name) + SUFFIX

    @property
    def title(self) -> str:
        """What the menu shows; a loader makes something up of the version when there is no title."""
        return self.value("title") or self.value("version") or self.name

    @property
    def is_linux(self) -> bool:
        """Whether it starts a Linux kernel; others start an EFI program."""
        return bool(self.value("linux"))

    @property
    def options(self) -> tuple[str, ...]:
        """The kernel arguments of all ``options`` lines as tokens, variables not replaced."""
        return entry_options(self.content)


def parse_entry(content: bytes, path: str) -> BlsEntry:
    """Return the entry in a file; every content is an entry, though perhaps one that starts nothing."""
    return BlsEntry(path, content)


def list_entries(host: Host, directory: str) -> list[BlsEntry]:
    """Return the entries in a directory such as /boot/loader/entries, by the name of their files."""
    found = []
    for name in host.names(directory):
        path = f"{directory}/{name}"
        if name.endswith(SUFFIX) and (content := host.read_bytes(path, _MAX_SIZE)) is not None:
            found.append(BlsEntry(path, content))
    return found


def with_values(entry: BlsEntry, values: Mapping[str, str | None]) -> OwnFile:
    """Return the file of another entry that is like this one but for some keys.

    Args:
        entry: the entry to begin with; its comments are left out.
        values: the new value of each key, which takes the place of its first line; None drops the key.

    Raises:
        RefusedError: the entry holds something that is not UTF-8.
    """
    left = dict(values)
    fields: list[tuple[str, str]] = []
    for key, old in entry.fields:
        if key not in values:
            fields.append((key, old))
        elif (new := left.pop(key, None)) is not None:
            fields.append((key, new))
    fields += [(key, value) for key, value in left.items() if value is not None]
    text = text_of(fields)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedError(
            "entry-encoding",
            f"{entry.path} is not in UTF-8, so no other entry can be made of it",
            "write it in UTF-8",
        ) from error
    return OwnFile(text)


def text_of(fields: Iterable[tuple[str, str]], indented: str = "") -> str:
    """Return the text of an entry, one key on each line; one of the keys may stand after blanks."""
    return "".join(f"{'  ' if key == indented else ''}{key} {value}\n" for key, value in fields)


def sibling_name(entry: BlsEntry, word: str, others: Iterable[BlsEntry], machine: str = "") -> str:
    """Return the name, without ending, of an entry that GRUB and systemd-boot list after all others.

    GRUB sorts by file name, as RPM does by name, version and release: version 0 is what the rescue entries
    of Fedora have, too. systemd-boot sorts by name where there are no sort keys.

    Args:
        entry: the entry that it is made after.
        word: what tells it from others, such as "virtpass".
        others: the entries that shall stay before it.
        machine: the id with which the name must not begin; empty for none.

    Raises:
        RefusedError: no such name was found, so the new entry could become the default.
    """
    # The kernel stands at the end of the version that openSUSE writes, after the number of a snapshot.
    kernel = entry.value("version").rpartition("@")[2]
    name = _COUNTER.sub("", entry.name)
    head, found, _ = name.partition(kernel) if kernel else ("", "", "")
    if machine:
        candidates = [apart(word, machine)]
    else:
        candidates = [*([f"{head}0-{word}"] if found else []), f"{name}~{word}"]
    lowest = min((_rpm_key(other.name) for other in others), default=None)
    for candidate in candidates:
        if lowest is None or _rpm_key(candidate) < lowest:
            return candidate
    raise RefusedError(
        "entry-order", f"an entry made after {entry.path} could come before the others and become the default"
    )


def apart(word: str, machine: str) -> str:
    """Return a name that does not begin with the id of the machine, whose entries grub2-mkconfig writes anew.

    A tilde is older than anything else, to GRUB 2.14 and to those before it. Several machines may share a
    directory.
    """
    return f"~{word}-0-{machine[:8]}"


def in_menu_order(entries: Iterable[BlsEntry]) -> list[BlsEntry]:
    """Return entries as GRUB lists them: the newest first, by the names of their files."""
    return sorted(entries, key=lambda entry: _rpm_key(entry.name), reverse=True)


def _rpm_key(name: str) -> tuple[Any, Any, Any]:
    """Return what GRUB compares of a name: NAME-VERSION-RELEASE, where missing parts are empty."""
    parts = name.rsplit("-", 2)
    package, version, release = [*parts, "", ""][:3]
    return version_key(package), version_key(version), version_key(release)


def newest(entries: Iterable[BlsEntry]) -> BlsEntry | None:
    """Return the entry of the newest kernel, by its version, then by its file; None without entries."""
    return max(
        entries,
        key=lambda entry: (version_key(entry.value("version")), version_key(entry.name)),
        default=None,
    )
