"""Whether anybody can still reach a host when its screens have gone to a domain.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

_SERVICES = "/sys/fs/cgroup/system.slice"
_SSH_SERVICES = ("ssh.service", "sshd.service")
# As /proc/net/tcp prints them: a socket that listens, the port of SSH, and addresses of the host itself.
_LISTENS, _SSH_PORT = "0A", "0016"
_OWN = ("0100007F", "00000000000000000000000001000000")
_SERIAL_LOGINS = f"{_SERVICES}/system-serial\\x2dgetty.slice"


def refuse_last(host: Host, addresses: list[PciAddress], *, hands_over: bool) -> str:
    """Refuse devices that take the last way to the host along, unless the host may lose its picture.

    Args:
        host: the host.
        addresses: all devices that go together.
        hands_over: whether it may.

    Returns:
        what to tell of it when it may; empty when there is another way.

    Raises:
        RefusedError: the last screen of the host is one of them, and it has no other login.
    """
    if not _are_last(host, addresses):
        return ""
    if not hands_over:
        raise RefusedError(
            "last-console",
            "the last screen of this host would go, and no SSH server listens: nobody could log in any more",
            "start an SSH server, or let the screen go for this domain (virtpass domain policy DOMAIN"
            " display=hand-over)",
        )
    return "no screen stays here and no SSH server listens: until the domain stops, nobody can log in"


def _are_last(host: Host, addresses: list[PciAddress]) -> bool:
    screens = [*_screens(host, "/sys/class/drm", "card"), *_screens(host, "/sys/class/graphics", "fb")]
    if not set(screens) & set(addresses) or set(screens) - set(addresses):
        return False
    return not (_ssh_listens(host) or host.subdirectories(_SERIAL_LOGINS))


def _screens(host: Host, directory: str, kind: str) -> list[PciAddress]:
    """Return the devices of the entries ``cardN`` or ``fbN``, without those that are on no PCI device."""
    names = [name for name in host.names(directory) if name.removeprefix(kind).isdigit()]
    found = [controller(host.real_path(f"{directory}/{name}")) for name in names]
    return [address for address in found if address is not None and sysfs.is_present(host, address)]


def _ssh_listens(host: Host) -> bool:
    if any(host.exists(f"{_SERVICES}/{name}") for name in _SSH_SERVICES):
        return True
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.read(table) or "").splitlines()[1:]:
            _, local, _, state, *_ = [*line.split(), "", "", "", ""]
            address, _, port = local.partition(":")
            if state == _LISTENS and port == _SSH_PORT and address not in _OWN:
                return True
    return False
