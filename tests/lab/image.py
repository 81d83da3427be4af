"""Builds and caches the images: Debian with libvirt for the standard machine, and one for each boot machine.

`python3 -m tests.lab.image` builds what the cache does not hold, two at a time; --rebuild builds all.
The cache lies in $VIRTPASS_LAB_CACHE, else $XDG_CACHE_HOME/virtpass/lab, else ~/.cache/virtpass/lab.
Neither a loop device nor a mount is needed; root is not needed where user name spaces are allowed.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from . import debian, emulator
from .disk import KINDS, STANDARD, Image, Kind
from .machine import Machine
from .progress import say
from .provision import provision
from .recipe import SUITE, TAR, Recipe

# To install a distribution and to boot it keep one core busy each.
AT_A_TIME = 2


def cache() -> Path:
    """Return the folder of the cache."""
    if folder := os.environ.get("VIRTPASS_LAB_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "virtpass", "lab")


def ready(kind: Kind = STANDARD, rebuild: bool = False) -> Image:
    """Return the image of `kind`, building it if the cache does not hold it. Raises BuildError."""
    recipe = Recipe(kind)
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / recipe.key()
    with _lock(folder, "emulator"):
        qemu = emulator.unpack(folder)
    with _lock(folder, kind.name):
        if final.exists() and not rebuild:
            return Image(final, qemu, kind)
        for leftover in folder.glob(f".building-{kind.name}-*"):
            shutil.rmtree(leftover)
        building = folder / f".building-{recipe.key()}"
        building.mkdir()
        say(f"building the image {final.name} in {folder}; two to three minutes, once")
        began = time.monotonic()
        _build(recipe, building, folder / f"{kind.name}.log")
        say(f"booting {final.name} for the first time (usually one minute)")
        with Machine(Image(building, qemu, kind.base), writable=True, own_loader=False) as machine:
            provision(machine)
        for old in folder.glob(f"{kind.name}-*"):
            shutil.rmtree(old)
        building.rename(final)
        say(f"the image {final.name} is ready; it took {time.monotonic() - began:.0f} s")
    return Image(final, qemu, kind)


@contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """Keep a second builder of the same thing waiting until this one has finished."""
    with (folder / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name} is being built already; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, folder: Path, log: Path) -> None:
    """Write disk, kernel and initial RAM file system into `folder`. Raises BuildError."""
    # A normal user's name space cannot enter the cache folder, but it can enter this one.
    with tempfile.TemporaryDirectory(prefix="lab-", dir="/var/tmp") as scratch:
        out = Path(scratch, "out")
        out.mkdir()
        os.chmod(scratch, 0o711)
        out.chmod(0o777)
        Path(scratch, TAR).write_bytes(recipe.files)
        for script in recipe.scripts:
            shutil.copy(script, scratch)
        say(f"installing Debian {SUITE} (usually one minute or two); log: {log}")
        options = ["--variant=minbase", "--format=null", f"--include={','.join(recipe.packages)}"]
        debian.mmdebstrap([*options, *recipe.hooks(Path(scratch), out)], SUITE, "-", log)
        copy = ["cp", "--sparse=always", *map(str, sorted(out.iterdir())), str(folder)]
        subprocess.run(copy, timeout=debian.BUILD_TIMEOUT, check=True)


def main() -> int:
    """Build the images that the cache lacks, print their folders, return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.image", description="Build the lab's images.")
    parser.add_argument("--rebuild", action="store_true", help="build even if the cache holds it")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this one")
    options = parser.parse_args()
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        images = [pool.submit(ready, KINDS[name], options.rebuild) for name in options.kind or KINDS]
        for image in as_completed(images):
            sys.stdout.write(f"{image.result().folder}\n")
            sys.stdout.flush()
    except debian.BuildError as error:
        say(str(error))
        return 1
    finally:
        # Where one has failed, or whoever waits has had enough, no other is begun.
        pool.shutdown(cancel_futures=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
