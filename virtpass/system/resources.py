"""Where the files that travel with virtpass lie: XML templates and hook sources."""

from pathlib import Path

import virtpass
from virtpass.system.errors import FailedError


def directory(name: str) -> Path:
    """Return the directory ``name`` (``xml_templates`` or ``hooks``) of this installation.

    An installed package carries it inside; in a checkout (and an editable installation of one) it lies
    beside the package. The latter is believed only next to ``pyproject.toml``: what lies beside an installed
    package belongs to others.

    Raises:
        FailedError: neither is there.
    """
    package = Path(virtpass.__file__).resolve().parent
    if (package / name).is_dir():
        return package / name
    if (package.parent / "pyproject.toml").is_file() and (package.parent / name).is_dir():
        return package.parent / name
    raise FailedError(
        "incomplete-installation", f"virtpass is installed without its {name}", "install it again"
    )
