"""Whether what is on record about virtual functions is made at boot."""

from virtpass.system.host import Host

UNIT = "virtpass-functions.service"
_WANTED = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"


def is_applied_at_boot(host: Host) -> bool:
    """Tell whether systemd makes at boot what is on record for it."""
    return host.exists(_WANTED)
