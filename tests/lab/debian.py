"""Debian's packages as the lab gets them: mmdebstrap, with the archive that this system installs from."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

BUILD_TIMEOUT = 1800
# The programs that build the images, each with its package; the last three are called by image_hook.sh.
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "mkfs.vfat": "dosfstools", "sfdisk": "fdisk"}


class BuildError(Exception):
    """Something of the lab cannot be built; the text says why and names the log."""


def mmdebstrap(options: Sequence[str], suite: str, target: Path | str, log: Path) -> None:
    """Run mmdebstrap with `options`, its output in the file `log`. Raises BuildError."""
    # A normal user's path has no sbin.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None]:
        raise BuildError(f"programs are missing: apt-get install {' '.join(missing)}")
    mode = "root" if os.geteuid() == 0 else "unshare"
    argv = ["mmdebstrap", f"--mode={mode}", *options, suite, str(target), _mirror()]
    environment = {**os.environ, "TMPDIR": "/var/tmp", "LC_ALL": "C.UTF-8"}
    with log.open("w") as file:
        try:
            subprocess.run(argv, stdout=file, stderr=file, env=environment, timeout=BUILD_TIMEOUT, check=True)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            tail = "\n".join(log.read_text().splitlines()[-20:])
            raise BuildError(f"mmdebstrap failed, see {log}\n{tail}") from error


def _mirror() -> str:
    """Return the address of the Debian archive that this system installs from.

    $VIRTPASS_LAB_MIRROR names one where the system is not a Debian. Raises BuildError.
    """
    if mirror := os.environ.get("VIRTPASS_LAB_MIRROR"):
        return mirror
    argv = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"]
    lines = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout.splitlines()
    mirrors = [line.split()[1] for line in lines if line.startswith("Debian ")]
    if not mirrors:
        raise BuildError("apt knows no Debian archive (run apt-get update, or set VIRTPASS_LAB_MIRROR)")
    return mirrors[0]
