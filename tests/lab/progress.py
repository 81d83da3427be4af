"""What the lab tells whoever waits for it."""

from __future__ import annotations

import sys
import time

_BEGIN = time.monotonic()


def say(text: str) -> None:
    """Print `text` on standard error, with the seconds since the lab was first used in this process."""
    sys.stderr.write(f"lab [{time.monotonic() - _BEGIN:4.0f} s] {text}\n")
    sys.stderr.flush()
