"""Debian's driverctl, for a comparison with it: the program alone, of the release that the machine runs.

It is not in the image, where only the benchmark would need it, and its udev rules stay out of the machine,
where they would concern whatever else is measured.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path

from . import debian
from .debian import BuildError
from .progress import say
from .recipe import SUITE

PACKAGE = "driverctl"
INSIDE = "/usr/local/sbin/driverctl"
_MEMBER = "./usr/sbin/driverctl"


def program(cache: Path) -> Path:
    """Return the program in the folder `cache`; fetch it if it is not there. Raises BuildError."""
    final = cache / f"{PACKAGE}-{SUITE}"
    if final.exists():
        return final
    say(f"fetching {PACKAGE} of Debian {SUITE} into {cache} (a few seconds, once)")
    with tempfile.TemporaryDirectory(prefix=f".{PACKAGE}-", dir=cache) as scratch:
        archive, taken = Path(scratch, "packages.tar"), Path(scratch, PACKAGE)
        options = ["--variant=extract", "--format=tar", f"--include={PACKAGE}"]
        debian.mmdebstrap(options, SUITE, archive, cache / f"{PACKAGE}.log")
        with tarfile.open(archive) as packages:
            try:
                file = packages.extractfile(_MEMBER)
            except KeyError:
                file = None
            if file is None:
                raise BuildError(f"the package {PACKAGE} of {SUITE} has no {_MEMBER}")
            taken.write_bytes(file.read())
        taken.rename(final)
    return final
