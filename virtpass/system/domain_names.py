"""The names of libvirt's domains, for those who cannot wait and must not be asked anything."""

from urllib.parse import urlsplit

from virtpass.system.libvirt import SYSTEM, _answer, _binding, _ignore


def domain_names(uri: str = SYSTEM, *, deadline: float) -> list[str]:
    """Return the names of all domains, in order.

    The connection is read-only: for that, polkit asks nobody for a password (org.libvirt.unix.monitor in
    libvirt's src/remote/libvirtd.policy.in). For the same reason no other machine is asked: ssh might want a
    password at the terminal.

    Args:
        uri: which driver and daemon; nothing is asked of one on another machine.
        deadline: seconds after which the answer is given up, all of it.

    Raises:
        UnavailableError: libvirt does not answer in time, or is not there.
        PermissionDeniedError: this user may not even read.
    """
    if not _is_here(uri):
        return []
    libvirt = _binding()
    # Without a handler of ours libvirt prints each error itself.
    libvirt.registerErrorHandler(_ignore, None)
    return _answer(
        lambda: sorted(one.name() for one in libvirt.openReadOnly(uri).listAllDomains()),
        deadline,
        "listing domains",
    )


def _is_here(uri: str) -> bool:
    """Tell whether a URI names a driver on this machine, reached without a program in between."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return False
    _, _, transport = parts.scheme.partition("+")
    return bool(parts.scheme) and not parts.netloc and transport in ("", "unix")
