"""Pictures of the card's monitor: read from QEMU's PPM, compared, written as PNG."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """An RGB picture: three bytes for each pixel, row by row."""

    width: int
    height: int
    pixels: bytes = field(repr=False)

    @classmethod
    def from_ppm(cls, data: bytes) -> Picture:
        """Parse a binary PPM (P6) as QEMU writes it. Raises ValueError."""
        magic, size, depth, pixels = data.split(b"\n", 3)
        if magic != b"P6" or depth != b"255":
            raise ValueError(f"not a binary PPM of 8 bits: {data[:20]!r}")
        width, height = (int(number) for number in size.split())
        if len(pixels) != width * height * 3:
            raise ValueError(f"{len(pixels)} bytes for {width} x {height} pixels")
        return cls(width, height, pixels)

    def save_png(self, path: Path) -> None:
        """Write the picture to `path` as PNG."""
        stride = self.width * 3
        rows = (self.pixels[start : start + stride] for start in range(0, len(self.pixels), stride))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        body = zlib.compress(b"".join(b"\0" + row for row in rows))
        chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks))

    def shares(self) -> dict[Colour, float]:
        """Return how much of the picture each colour covers, from 0 to 1, the most frequent first."""
        counted = Counter(_pixels(self))
        total = self.width * self.height
        return {colour: count / total for colour, count in counted.most_common()}

    def share(self, colour: Colour) -> float:
        """Return how much of the picture `colour` covers, from 0 to 1."""
        return self.shares().get(colour, 0.0)

    def difference(self, other: Picture) -> float:
        """Return the share of pixels that differ, from 0 to 1; 1 when the sizes differ."""
        if (self.width, self.height) != (other.width, other.height):
            return 1.0
        different = sum(mine != theirs for mine, theirs in zip(_pixels(self), _pixels(other), strict=True))
        return different / (self.width * self.height)

    def shows(self, other: Picture) -> float:
        """Return how much of what `other` draws on its background is here too, in its place, from 0 to 1.

        Unlike `difference` this tells a console from a black screen, and does not mind a line more.
        """
        if (self.width, self.height) != (other.width, other.height) or other.is_blank():
            return 0.0
        background = next(iter(other.shares()))
        pairs = zip(_pixels(self), _pixels(other), strict=True)
        kept = Counter(mine == theirs for mine, theirs in pairs if theirs != background)
        return kept[True] / kept.total()

    def is_blank(self) -> bool:
        """Return whether the whole picture has one colour: a monitor that shows nothing."""
        return len(set(_pixels(self))) == 1


def _pixels(picture: Picture) -> Iterator[Colour]:
    return zip(picture.pixels[0::3], picture.pixels[1::3], picture.pixels[2::3], strict=True)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
