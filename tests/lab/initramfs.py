"""Builds an initial RAM file system of busybox, a script, and modules of the system it runs in.

Copied into the image and run there, while the image is built, as
`python3 initramfs.py INIT TARGET MODULE...`: INIT is the script that becomes /init. What the modules need is
found in modules.dep, because it changes from kernel to kernel. Imports nothing of the project.
"""

from __future__ import annotations

import lzma
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

DIRECTORY, LINK, EXECUTABLE, REGULAR, CONSOLE = 0o040755, 0o120777, 0o100755, 0o100644, 0o020600


def main(init: Path, target: Path, names: Sequence[str]) -> None:
    """Write the file system to `target`. Raises OSError, KeyError for an unknown module."""
    (modules,) = Path("/lib/modules").iterdir()
    files = {
        "init": (EXECUTABLE, init.read_bytes()),
        "bin/busybox": (EXECUTABLE, Path("/usr/bin/busybox").read_bytes()),
        "bin/sh": (LINK, b"busybox"),
    }
    for name, data in module_files(modules, names):
        files[f"lib/modules/{modules.name}/{name}"] = (REGULAR, data)
    # Not compressed: unpacking costs an emulated processor more than reading.
    target.write_bytes(b"".join(archive(files)))


def module_files(modules: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the modules `names` and all they need, decompressed, and of their indexes."""
    dependencies: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needs = line.partition(":")
        dependencies[path] = needs.split()
    by_name = {module_name(path): path for path in dependencies}
    chosen: dict[str, list[str]] = {}
    for name in names:
        path = by_name[name.replace("-", "_")]
        for needed in (path, *dependencies[path]):
            chosen[needed] = dependencies[needed]
    for path in chosen:
        data = (modules / path).read_bytes()
        yield plain(path), lzma.decompress(data) if path.endswith(".xz") else data
    index = [f"{plain(path)}: {' '.join(map(plain, needs))}" for path, needs in chosen.items()]
    yield "modules.dep", ("\n".join(index) + "\n").encode()
    loadable = {module_name(path) for path in chosen}
    aliases = (modules / "modules.alias").read_text().splitlines()
    kept = [line for line in aliases if line.rpartition(" ")[2].replace("-", "_") in loadable]
    yield "modules.alias", ("\n".join(kept) + "\n").encode()


def module_name(path: str) -> str:
    """Return the name of the module in file `path`, as modules.alias spells it."""
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def plain(path: str) -> str:
    """Return `path` of a module file without the suffix of its compression."""
    return path.removesuffix(".xz")


def archive(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield a cpio archive (format newc) of `files`, with the folders they need and a console."""
    folders = sorted({parent.as_posix() for name in files for parent in Path(name).parents if parent.name})
    entries = [(name, DIRECTORY, b"", (0, 0)) for name in [*folders, "dev"]]
    # The kernel opens /dev/console for /init before anything is mounted.
    entries.append(("dev/console", CONSOLE, b"", (5, 1)))
    entries += [(name, mode, data, (0, 0)) for name, (mode, data) in files.items()]
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    for number, (name, mode, data, (major, minor)) in enumerate(entries, start=1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(encoded), 0)
        yield padded(b"070701" + b"".join(b"%08x" % value for value in fields) + encoded)
        yield padded(data)


def padded(data: bytes) -> bytes:
    """Return `data` filled up to a multiple of four bytes."""
    return data + b"\0" * (-len(data) % 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
