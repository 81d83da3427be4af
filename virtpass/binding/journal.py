"""The record of what a domain has borrowed: on disk before anything is written to a device.

One file for each domain, ``/run/virtpass/lent/UUID``. It lies in /run because drivers do not survive a reboot
either. It says where the devices were, which is all that is needed to bring them back from any state in
between. Each record is a line of fields separated by tabs; a last line without its line break was cut off by
a crash before the first write to a device. The records:

    virtpass 1                       format
    domain UUID NAME
    starter PROCESS TIME             the libvirt daemon that starts the domain, and its start time
    home ADDRESS DRIVER OVERRIDE     where a device was; "-" for none
    did KIND FIELD...                what else is about to be changed (`virtpass.binding.effects`)
    undone KIND FIELD...             that is as it was again, though the rest is not
    ended                            libvirt has said that the domain has ended

A version that meets a kind of record, or a format, that it does not know refuses the whole file and leaves it
as it is: after a downgrade only the version that wrote it can tell what it means. So a new kind of record
needs no new number; the number changes when a known kind gets another meaning or other fields. A new kind of
*effect* does not keep devices from coming home: it alone stays on record.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError, VirtpassError
from virtpass.system.host import Host

DIRECTORY = "/run/virtpass/lent"

# What is undone needs as much again, and all of it has to be read.
_LIMIT = 4 << 20

_FORMAT = ("virtpass", "1")
_KINDS = frozenset(("domain", "starter", "home", "did", "undone", "ended"))
_LONGEST_KIND = 32
# Reference of the error for what another version has written.
NEWER = "journal-newer"
_NONE = "-"
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:+-")
_UUID_LENGTHS = [8, 4, 4, 4, 12]


class Home(tuple[PciAddress, str | None, str | None]):
    """Where a device was before it was lent: address, driver and override (None for none)."""

    __slots__ = ()

    def __new__(cls, address: PciAddress, driver: str | None, override: str | None) -> "Home":
        """Hold the three together; the names are checked when they are used."""
        return super().__new__(cls, (address, driver, override))

    @property
    def address(self) -> PciAddress:
        """The device."""
        return self[0]

    @property
    def driver(self) -> str | None:
        """Its driver."""
        return self[1]

    @property
    def override(self) -> str | None:
        """Its ``driver_override``."""
        return self[2]


class Journal:
    """What one domain has borrowed, as far as it is on disk.

    Attributes:
        uuid: the domain's UUID.
        name: the domain's name when the journal was begun.
        homes: where its devices were, in the order in which they were recorded.
        effects: what else was changed, in this order: a kind, and the fields that it takes to undo it.
        starter: process and start time of the daemon that starts the domain; None where that is not known.
        has_ended: whether libvirt has said that the domain has ended.
    """

    def __init__(self, host: Host, uuid: str, name: str) -> None:
        self._host = host
        self.uuid = uuid
        self.name = name
        self.homes: list[Home] = []
        self.effects: list[tuple[str, ...]] = []
        self.starter: tuple[int, int] | None = None
        self.has_ended = False

    def begin(self, homes: list[Home]) -> None:
        """Record where the devices are.

        Raises:
            RefusedError: one has an override that no driver can have; somebody should look at it first.
        """
        records = [_FORMAT, ("domain", self.uuid, self.name)]
        if self.starter is not None:
            records.append(("starter", *map(str, self.starter)))
        for home in homes:
            for name in (home.driver, home.override):
                if name is not None and not is_driver_name(name):
                    raise RefusedError(
                        "driver-name", f"{home.address}: '{name}' cannot be the name of a driver"
                    )
            records.append(("home", str(home.address), home.driver or _NONE, home.override or _NONE))
        text = "".join("\t".join(map(_quoted, record)) + "\n" for record in records)
        try:
            self._host.append_own(DIRECTORY, self.uuid, text.encode())
        except VirtpassError:
            # Nothing was moved; what is left of the file would keep the devices from all other domains.
            self._forget()
            raise
        self.homes = list(homes)

    def add(self, *effects: tuple[str, ...]) -> None:
        """Record what is about to be changed; it may be undone whether it then happens or not.

        Args:
            effects: kind and fields of each; they are on disk together, or none is.

        Raises:
            FailedError: they could not be recorded, and must not happen.
        """
        text = "".join("\t".join(map(_quoted, ("did", *effect))) + "\n" for effect in effects)
        self._append(text, _LIMIT)
        self.effects += effects

    def mark_undone(self, effects: list[tuple[str, ...]]) -> None:
        """Record that effects are undone, where the record of the rest stays.

        Raises:
            FailedError: that could not be recorded.
        """
        text = "".join("\t".join(map(_quoted, ("undone", *effect))) + "\n" for effect in effects)
        self._append(text)
        for effect in effects:
            _take_back(self.effects, effect)

    def mark_ended(self) -> None:
        """Record that the domain has ended; without room for that it is given back all the same."""
        self.has_ended = True
        try:
            self._append("ended\n")
        except VirtpassError:
            pass

    def _append(self, text: str, limit: int = 2 * _LIMIT) -> None:
        """Append records.

        Raises:
            FailedError: they could not be recorded, or the journal would be larger than ``limit`` bytes.
        """
        content = self._host.read_own(DIRECTORY, self.uuid) or b""
        if len(content) + len(text) > limit:
            raise FailedError("journal-size", f"{DIRECTORY}/{self.uuid} would exceed {limit >> 20} MiB")
        if content and not content.endswith(b"\n"):
            # A record that was cut off announced nothing; what comes after it must not become part of it.
            self._host.replace_own(DIRECTORY, self.uuid, content[: content.rfind(b"\n") + 1], 0o644)
        self._host.append_own(DIRECTORY, self.uuid, text.encode())

    def _forget(self) -> None:
        try:
            self.remove()
        except VirtpassError:
            pass

    def remove(self) -> None:
        """Forget it all: everything is back."""
        self._host.remove_own(DIRECTORY, self.uuid)


def read_journal(host: Host, uuid: str) -> Journal | None:
    """Return the journal of a domain; None when it has borrowed nothing.

    Raises:
        FailedError: the file cannot be understood; it is left as it is.
    """
    if not is_uuid(uuid):
        raise FailedError("journal-name", f"{DIRECTORY}/{uuid} is not named after a domain's UUID")
    content = host.read_own(DIRECTORY, uuid)
    if content is None:
        return None
    journal = Journal(host, uuid, "")
    lines = content.split(b"\n")[:-1]
    try:
        for position, line in enumerate(lines):
            fields = [_unquoted(field) for field in line.decode("ascii").split("\t")]
            if unknown := _unknown(fields, position):
                what = (
                    f"line {position + 1} of {DIRECTORY}/{uuid} is not a record of virtpass that this version"
                )
                raise FailedError(
                    NEWER,
                    f"{what} knows ({unknown})",
                    "keep the file; if a newer virtpass wrote it, install that and run virtpass recover",
                )
            _take(journal, fields, position)
    except FailedError:
        raise
    except (ValueError, IndexError, VirtpassError) as error:
        raise FailedError(
            "journal-unreadable",
            f"line {position + 1} of {DIRECTORY}/{uuid} is not a record of virtpass",
            "look at the drivers with virtpass devices, then remove the file",
        ) from error
    return journal


def journals(host: Host) -> list[str]:
    """Return the UUIDs of the domains that have a journal."""
    return [name for name in host.names(DIRECTORY) if is_uuid(name)]


def _unknown(fields: list[str], position: int) -> str:
    """Return what of a record that looks like one only a newer version can know; empty for nothing."""
    kind = fields[0]
    if position == 0:
        is_format = len(fields) == len(_FORMAT) and kind == _FORMAT[0] and fields[1].isdecimal()
        return f"format {fields[1]}" if is_format and tuple(fields) != _FORMAT else ""
    is_word = (
        kind.isascii() and kind.replace("-", "a").isalpha() and kind.islower() and len(kind) <= _LONGEST_KIND
    )
    return f"'{kind}'" if is_word and kind not in _KINDS else ""


def _take(journal: Journal, fields: list[str], position: int) -> None:
    """Apply one record.

    Raises:
        ValueError: there is no such record.
    """
    if position == 0:
        if tuple(fields) != _FORMAT:
            raise ValueError(fields)
        return
    kind = fields[0]
    if kind == "domain" and len(fields) == 3 and fields[1] == journal.uuid:
        journal.name = fields[2]
    elif kind == "home" and len(fields) == 4:
        driver, override = (None if field == _NONE else field for field in fields[2:])
        if not all(name is None or is_driver_name(name) for name in (driver, override)):
            raise ValueError(fields)
        journal.homes.append(Home(PciAddress.parse(fields[1]), driver, override))
    elif kind == "did" and len(fields) >= 2:
        journal.effects.append(tuple(fields[1:]))
    elif kind == "undone" and len(fields) >= 2:
        _take_back(journal.effects, tuple(fields[1:]))
    elif kind == "starter" and len(fields) == 3:
        journal.starter = (int(fields[1]), int(fields[2]))
    elif kind == "ended" and len(fields) == 1:
        journal.has_ended = True
    else:
        raise ValueError(fields)


def _take_back(effects: list[tuple[str, ...]], effect: tuple[str, ...]) -> None:
    """Take the last of equal effects out of a list, if there is one."""
    for position in reversed(range(len(effects))):
        if effects[position] == effect:
            del effects[position]
            return


def is_driver_name(name: str) -> bool:
    """Tell whether a name can be that of a driver: it becomes part of a path."""
    return name not in ("", ".", "..", _NONE) and "/" not in name and len(name) <= 128 and name.isprintable()


def is_uuid(text: str) -> bool:
    """Tell whether ``text`` is a UUID as libvirt writes it: lower-case, with dashes."""
    parts = text.split("-")
    return [len(part) for part in parts] == _UUID_LENGTHS and set("".join(parts)) <= set("0123456789abcdef")


def _quoted(field: str) -> str:
    """Write anything but plain ASCII as %XX, so that tabs and line breaks only separate."""
    return "".join(
        character
        if character in _PLAIN
        else "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in field
    )


def _unquoted(field: str) -> str:
    head, *escaped = field.split("%")
    content = head.encode("ascii")
    for part in escaped:
        content += bytes([int(part[:2], 16)]) + part[2:].encode("ascii")
    return content.decode("utf-8", "surrogateescape")
