"""Whether anybody can still reach a host when its screens have gone to a domain.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.host import Host

_SERVICES = "/sys/fs/cgroup/system.slice"
_SSH_SERVICES = ("ssh.service", "sshd.service")
# As /proc/net/tcp prints them: a socket that listens, the port of SSH, and addresses of the host itself.
_LISTENS, _SSH_PORT = "0A", "0016"
_OWN = ("0100007F", "00000000000000000000000001000000")
_SERIAL_LOGINS = f"{_SERVICES}/system-serial\\x2dgetty.slice"


def warning(host: Host, addresses: list[PciAddress]) -> str:
    """Return what to tell when devices take the last way to the host along; empty when they do not."""
    screens = [*_screens(host, "/sys/class/drm", "card"), *_screens(host, "/sys/class/graphics", "fb")]
    if not set(screens) & set(addresses) or set(screens) - set(addresses):
        return ""
    if _ssh_listens(host) or host.subdirectories(_SERIAL_LOGINS):
        return ""
    return "no screen stays here and no SSH server listens: until the domain stops, nobody can log in"


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
