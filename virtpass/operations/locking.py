"""The lock of those who move devices, for as long as a block of code lasts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from virtpass.binding import engine
from virtpass.hook.entry import release_late
from virtpass.system.host import Host
from virtpass.system.tasks import under_way


@contextmanager
def locked(host: Host) -> Iterator[None]:
    """Keep hooks and other commands from moving devices meanwhile.

    At the end the releases are made for which hooks have waited in vain.

    Raises:
        FailedError: somebody else kept the lock for too long.
    """
    with under_way("waiting for another virtpass command, or a domain's start or stop", engine.LOCK_DEADLINE):
        lock = engine.lock(host)
    try:
        try:
            yield
        finally:
            release_late(host)
    finally:
        os.close(lock)
