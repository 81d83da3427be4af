"""Masks for what tells who owns a machine, rather than how it is made: the same value gets the same mask."""

import base64
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterable
from typing import Any

from lxml import etree

from virtpass.binding.policy import NAMESPACE
from virtpass.domain.document import parse_document
from virtpass.pci.identity import serial_number
from virtpass.system.errors import VirtpassError

_HEXADECIMAL = "0123456789abcdef"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_LEAST_WORD = 3

# Of EFI variables and of types of partitions: the same everywhere.
_COMMON = frozenset(
    (
        "8be4df61-93ca-11d2-aa0d-00e098032b8c",
        "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    )
)
_HEX = "0-9A-Fa-f"
_PATTERNS = (
    rf"(?P<uuid>(?<![{_HEX}])[{_HEX}]{{8}}(?:-[{_HEX}]{{4}}){{3}}-[{_HEX}]{{12}}(?![{_HEX}]))",
    # Machine ids, and UUIDs that are written without dashes.
    rf"(?P<machine>(?<![{_HEX}])[{_HEX}]{{32}}(?![{_HEX}]))",
    rf"(?P<mac>(?<![{_HEX}:-])(?:[{_HEX}]{{2}}:){{5}}[{_HEX}]{{2}}(?![{_HEX}:]))",
    # What names of interfaces have of it.
    rf"(?<=enx)(?P<wired>[{_HEX}]{{12}})(?![{_HEX}])",
    rf"(?<=wlx)(?P<radio>[{_HEX}]{{12}})(?![{_HEX}])",
    r"(?<=/home/)(?P<home>[^/\s'\",:;<>&\\]+)",
)
_PASSWORD = re.compile(r"(?m)^([ \t]*password(?:_pbkdf2)?[ \t]+)\S+([ \t]+)\S+")
_UNIQUE = re.compile(r"(?m)^((?:U: Uniq|P: Phys)=).*$")
# What a domain's XML has that is nobody's business, and no business of virtpass.
_DROPPED = ("description", "title", "sysinfo", "seclabel")
_MASKED_ATTRIBUTES = frozenset(("passwd", "password", "username", "usage"))
_FOREIGN_WORDS = re.compile(r"[A-Za-z0-9]+")


class Masks:
    """Masks of one snapshot; its key is forgotten with it, so that nobody can try values out.

    Args:
        key: what the masks are made from; by default something new.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = os.urandom(32) if key is None else key
        self._kept: frozenset[str] = frozenset()
        self._words: dict[str, str] = {}
        self._pattern = self._compiled()

    def keep(self, texts: Iterable[str]) -> None:
        """Name words that are never masked: what files mean would change with them."""
        self._kept |= {word.lower() for text in texts for word in _FOREIGN_WORDS.findall(text)}

    def add_names(self, names: Iterable[str]) -> None:
        """Name hosts and users; a name that is a word of the system, or very short, stays as it is."""
        for name in names:
            for one in {name, name.partition(".")[0]}:
                if len(one) < _LEAST_WORD or one.lower() in self._kept:
                    continue
                mask = self._spelled("name", one, _LETTERS)
                self._words[one] = mask
                # As the device mapper writes it.
                self._words[one.replace("-", "--")] = mask
        self._pattern = self._compiled()

    def add_serials(self, serials: Iterable[str]) -> None:
        """Name serial numbers of PCI devices."""
        for serial in filter(None, serials):
            self._words[serial] = self._spelled("serial", serial, _HEXADECIMAL)
        self._pattern = self._compiled()

    # values

    def text(self, text: str) -> str:
        """Return a text with all values in it masked."""
        return self._pattern.sub(self._found, text)

    def value(self, data: Any) -> Any:  # noqa: ANN401 (whatever JSON holds)
        """Return a JSON value with all texts in it masked."""
        if isinstance(data, str):
            return self.text(data)
        if isinstance(data, dict):
            return {self.text(key): self.value(one) for key, one in data.items()}
        return [self.value(one) for one in data] if isinstance(data, list | tuple) else data

    def domain(self, xml: str) -> str:
        """Return a domain's XML with values masked, and without what virtpass does not look at.

        What is not understood is left empty: nobody knows what it has.
        """
        try:
            root = parse_document(xml)
        except VirtpassError:
            return ""
        for element in list(root.iter()):
            # Comments, and what an element of ours has no part of.
            if not isinstance(element.tag, str):
                _remove(element)
                continue
            name = etree.QName(element)
            is_foreign = name.namespace not in (None, NAMESPACE)
            if is_foreign or (name.namespace is None and name.localname in _DROPPED):
                _remove(element)
            elif name.localname == "serial" and element.text and not len(element):
                element.text = self._spelled("serial", element.text, _HEXADECIMAL)
            elif name.localname == "host" and "name" in element.attrib:
                element.set("name", self._spelled("name", element.get("name", ""), _LETTERS))
            for attribute in _MASKED_ATTRIBUTES & set(element.attrib):
                element.set(attribute, "masked")
        etree.cleanup_namespaces(root, keep_ns_prefixes=["virtpass"])
        return self.text(etree.tostring(root, encoding="unicode"))

    # files

    def content(self, path: str, content: bytes) -> bytes:
        """Return the content of a file of the host with values masked, as long as it was."""
        if path.startswith("/sys/firmware/efi/efivars/"):
            # Four bytes of attributes, then text or something else.
            try:
                text = content[4:].decode("utf-16-le")
            except UnicodeDecodeError:
                return content
            return content[:4] + self.text(text).encode("utf-16-le")
        if path.endswith("/config") and path.startswith("/sys/"):
            return self._config(content)
        if path.endswith("/applied.json"):
            return self._record(content)
        # One character for each byte, whatever it is.
        text = content.decode("latin-1")
        if path.startswith(("/boot/", "/etc/grub", "/etc/default/", "/efi/")):
            text = _PASSWORD.sub(r"\1masked\2masked", text)
        if path == "/proc/bus/input/devices":
            text = _UNIQUE.sub(r"\1", text)
        return self.text(text).encode("latin-1")

    def _config(self, content: bytes) -> bytes:
        """Mask the serial number in a configuration space."""
        if not (serial := serial_number(content)):
            return content
        mask = int(self._spelled("serial", serial, _HEXADECIMAL), 16)
        old = int(serial, 16).to_bytes(8, "little")
        at = content.find(old, 0x100)
        return content[:at] + mask.to_bytes(8, "little") + content[at + 8 :]

    def _record(self, content: bytes) -> bytes:
        """Mask a record of host preparation, in which whole files are."""
        try:
            data = json.loads(content)
        except ValueError:
            return b""
        return json.dumps(self._decoded(data)).encode()

    def _decoded(self, data: Any) -> Any:  # noqa: ANN401 (whatever JSON holds)
        if isinstance(data, list):
            return [self._decoded(one) for one in data]
        if not isinstance(data, dict):
            return self.value(data)
        found = {}
        for key, one in data.items():
            if key == "content" and isinstance(one, str):
                try:
                    plain = base64.b64decode(one, validate=True).decode("latin-1")
                except ValueError:
                    plain = ""
                found[key] = base64.b64encode(self.text(plain).encode("latin-1")).decode()
            else:
                found[self.text(key)] = self._decoded(one)
        return found

    # how

    def _compiled(self) -> re.Pattern[str]:
        words = sorted(self._words, key=len, reverse=True)
        known = "|".join(map(re.escape, words)) or r"(?!)"
        word = rf"(?<![A-Za-z0-9_])(?P<word>{known})(?![A-Za-z0-9_])"
        return re.compile("|".join((*_PATTERNS, word)))

    def _found(self, match: re.Match[str]) -> str:
        kind, text = match.lastgroup or "", match[0]
        if kind == "word":
            return self._words[text]
        if kind == "home":
            return self._words.get(text) or self._spelled("name", text, _LETTERS)
        if kind == "uuid" and text.lower() in _COMMON:
            return text
        if kind in ("wired", "radio"):
            kind = "mac"
        if kind == "machine":
            # The same value may be written either way.
            kind = "uuid"
        digits = re.sub(r"[:-]", "", text.lower())
        mask = iter(self._spelled(kind, digits, _HEXADECIMAL))
        masked = "".join(one if one in ":-" else next(mask) for one in text)
        return masked.upper() if text.upper() == text and text.lower() != text else masked

    def _spelled(self, kind: str, value: str, alphabet: str) -> str:
        """Return the mask of a value: as many characters, of an alphabet."""
        found = ""
        while len(found) < len(value):
            said = f"{kind}\0{len(found)}\0{value}".encode("utf-8", "surrogateescape")
            found += "".join(
                alphabet[one % len(alphabet)] for one in hmac.digest(self._key, said, hashlib.sha256)
            )
        return found[: len(value)]


def _remove(element: etree._Element) -> None:
    """Take an element out; the text behind it is white space."""
    parent = element.getparent()
    if parent is not None:
        parent.remove(element)
