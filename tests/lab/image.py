"""Builds and caches the host-under-test image: Debian with libvirt, and the lab's own files.

`python3 -m tests.lab.image` builds it if the cache does not hold it; --rebuild does so in any case.
The cache lies in $VIRTPASS_LAB_CACHE, else $XDG_CACHE_HOME/virtpass/lab, else ~/.cache/virtpass/lab.
Neither a loop device nor a mount is needed; root is not needed where user name spaces are allowed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from . import debian, emulator, overlay
from .disk import Image
from .machine import Machine
from .progress import say

TAR = "files.tar"
HOOK = Path(__file__).parent / "image_hook.sh"
PACKAGES = (
    "apparmor",
    "busybox-static",
    "dbus",
    "hwdata",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "libvirt-clients",
    "libvirt-daemon-system",
    "linux-image-amd64",
    "login",
    "pciutils",
    "procps",
    "psmisc",
    "python3-click",
    "python3-libvirt",
    "python3-lxml",
    "python3-pyudev",
    "python3-rich",
    "qemu-system-x86",
    "qemu-utils",
    "systemd",
    "systemd-sysv",
    "udev",
    "zstd",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an image becomes."""

    name: str = "trixie"
    suite: str = "trixie"
    packages: tuple[str, ...] = PACKAGES
    files: bytes = field(default_factory=overlay.tar, repr=False)
    size: str = "6G"

    def hooks(self, scratch: Path, out: Path) -> Iterator[str]:
        """Yield mmdebstrap's hooks, shell text by its own definition, with the new root as $1.

        They find the files they need in `scratch`, and leave the image in `out`.
        """
        tar, script, target = (shlex.quote(str(path)) for path in (scratch / TAR, scratch / HOOK.name, out))
        # Twice: the initial RAM file system is made while packages are installed, and these write files too.
        for stage in ("essential", "customize"):
            yield f"--{stage}-hook=tar-in {tar} /"
        for name, modules in (("host", overlay.HOST_MODULES), ("guest", overlay.GUEST_MODULES)):
            words = f"initramfs.py {name}_init.sh {name}.initramfs {' '.join(modules)}"
            yield f'--customize-hook=chroot "$1" sh -c "cd {overlay.INSIDE} && python3 {words}"'
        yield f'--customize-hook=sh {script} "$1" {target} {self.size} {overlay.INSIDE}'

    def key(self) -> str:
        """Return the name of the image in the cache: another recipe, another name."""
        parts = [self.suite, *self.packages, self.size, *self.hooks(Path("scratch"), Path("out"))]
        digest = hashlib.sha256("\0".join(parts).encode() + HOOK.read_bytes() + self.files)
        return f"{self.name}-{digest.hexdigest()[:16]}"


def cache() -> Path:
    """Return the folder of the cache."""
    if folder := os.environ.get("VIRTPASS_LAB_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "virtpass", "lab")


def ready(recipe: Recipe | None = None, rebuild: bool = False) -> Image:
    """Return the image of `recipe`, building it if the cache does not hold it. Raises BuildError."""
    recipe = recipe or Recipe()
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / recipe.key()
    with _lock(folder):
        qemu = emulator.unpack(folder)
        if final.exists() and not rebuild:
            return Image(final, qemu)
        for leftover in folder.glob(".building-*"):
            shutil.rmtree(leftover)
        building = folder / f".building-{recipe.key()}"
        building.mkdir()
        say(f"building the image {final.name} in {folder}; two to three minutes, once")
        _build(recipe, building, folder / f"{recipe.name}.log")
        _settle(Image(building, qemu))
        for old in folder.glob(f"{recipe.name}-*"):
            shutil.rmtree(old)
        building.rename(final)
        say("the image is ready")
    return Image(final, qemu)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second builder waiting until this one has finished."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds the image; waiting for it")
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
        shutil.copy(HOOK, scratch)
        say(f"installing Debian {recipe.suite} (usually one minute); log: {log}")
        options = ["--variant=minbase", "--format=null", f"--include={','.join(recipe.packages)}"]
        debian.mmdebstrap([*options, *recipe.hooks(Path(scratch), out)], recipe.suite, "-", log)
        say("copying it into the cache")
        copy = ["cp", "--sparse=always", *map(str, sorted(out.iterdir())), str(folder)]
        subprocess.run(copy, timeout=debian.BUILD_TIMEOUT, check=True)


def _settle(image: Image) -> None:
    """Boot the image once for good, so that what a first boot computes is there at every later one.

    That is the compiled AppArmor profiles, libvirt's knowledge of QEMU, the machine id, caches of systemd.
    """
    say("booting it for the first time (usually one minute)")
    with Machine(image, writable=True) as machine:
        machine.run(["virsh", "domcapabilities", "--virttype", machine.domain_type], timeout=120).check()
        machine.run(["sync"]).check()
        machine.power_off()


def main() -> int:
    """Build the image if need be, print its folder, return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab.image", description="Build the lab's image.")
    parser.add_argument("--rebuild", action="store_true", help="build even if the cache holds it")
    try:
        image = ready(rebuild=parser.parse_args().rebuild)
    except debian.BuildError as error:
        say(str(error))
        return 1
    sys.stdout.write(f"{image.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
