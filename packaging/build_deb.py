"""Build dist/virtpass_VERSION_all.deb with Debian's own tools.

The repository's top level has no debian/ directory. So this copies the sources to build/deb/, puts
packaging/debian beside them with a changelog made from the version, and runs dpkg-buildpackage there. The
time of the last commit is the time in the package: the same sources give the same bytes. Nothing happens when
no source has changed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "deb"
DIST = ROOT / "dist"
DIGEST = BUILD / "sources.sha256"

# What the package is made from. README.md and docs/ are its documentation.
SOURCES = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "README.zh-CN.md",
    "docs",
    "hooks",
    "packaging",
    "pyproject.toml",
    "virtpass",
    "xml_templates",
)
IGNORED = ("__pycache__", "*.pyc", "*~", "*.swp")


def main() -> None:
    """Build the package, unless it is there and its sources have not changed."""
    package = DIST / f"virtpass_{version()}_all.deb"
    time = source_date()
    digest = sources_digest(time)
    if package.exists() and DIGEST.exists() and DIGEST.read_text() == digest:
        return
    tree = BUILD / f"virtpass-{version()}"
    stage(tree, time)
    build(tree, time)
    DIST.mkdir(exist_ok=True)
    for older in DIST.glob("virtpass_*_all.deb"):
        older.unlink()
    shutil.move(BUILD / package.name, package)
    DIGEST.write_text(digest)
    print(package.relative_to(ROOT))


def version() -> str:
    """Return the version that the package `virtpass` states."""
    text = (ROOT / "virtpass" / "__init__.py").read_text()
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit('virtpass/__init__.py has no line __version__ = "..."')
    return match[1]


def source_date() -> int:
    """Return SOURCE_DATE_EPOCH, else the time of the last commit of the sources, else a fixed time."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    log = ["git", "-C", os.fspath(ROOT), "log", "-1", "--format=%ct", "--", *SOURCES]
    answer = subprocess.run(log, capture_output=True, text=True, check=False)
    return int(answer.stdout.strip() or 1_735_689_600)


def sources_digest(time: int) -> str:
    """Return one hash over names, modes and contents of all sources."""
    total = hashlib.sha256(str(time).encode())
    for path in source_files():
        entry = f"{path.relative_to(ROOT)}\0{path.stat().st_mode:o}\0"
        total.update(entry.encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def source_files() -> Iterator[Path]:
    """Yield every file of the sources, in a fixed order."""
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            relative = path.relative_to(ROOT)
            if path.is_file() and not any(part.match(glob) for part in parts(relative) for glob in IGNORED):
                yield path


def parts(path: Path) -> list[Path]:
    """Return the components of a path, each as a path of its own."""
    return [Path(part) for part in path.parts]


def stage(tree: Path, time: int) -> None:
    """Lay out a Debian source package in the directory `tree`."""
    shutil.rmtree(BUILD, ignore_errors=True)
    for source in source_files():
        relative = source.relative_to(ROOT)
        if relative.is_relative_to("packaging/debian"):
            relative = relative.relative_to("packaging")
        target = tree / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
    maintainer = re.search(r"^Maintainer: (.+)$", (tree / "debian" / "control").read_text(), re.MULTILINE)
    if maintainer is None:
        raise SystemExit("packaging/debian/control has no Maintainer")
    (tree / "debian" / "changelog").write_text(
        f"virtpass ({version()}) unstable; urgency=medium\n\n"
        f"  * Built from the sources of virtpass; see CHANGELOG.md.\n\n"
        f" -- {maintainer[1]}  {formatdate(time)}\n"
    )


def build(tree: Path, time: int) -> None:
    """Run dpkg-buildpackage in `tree`; show its output only when it fails.

    The environment is a fixed one: Debian's Python has to come first on PATH, and a setting of the caller
    should not change the result. Build dependencies are not checked by dpkg (-d): its check also asks for a C
    compiler.
    """
    environment = {
        "DEB_BUILD_OPTIONS": "nocheck",
        "HOME": os.fspath(BUILD),
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "SOURCE_DATE_EPOCH": str(time),
    }
    command = ["dpkg-buildpackage", "-b", "-d", "-us", "-uc"]
    log = BUILD / "build.log"
    with log.open("wb") as output:
        status = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status != 0:
        sys.stderr.write(log.read_text(errors="replace"))
        raise SystemExit(f"dpkg-buildpackage failed with status {status}; its output is above and in {log}")


if __name__ == "__main__":
    main()
