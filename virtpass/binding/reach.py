"""Whether anybody can still reach a host when its screens have gone to a domain.

Imported by the hook: the imports here are on its allow-list.
"""

from virtpass.binding import framebuffers
from virtpass.pci import sysfs
from virtpass.pci.address import PciAddress
from virtpass.pci.usage import controller
from virtpass.system.errors import RefusedError
from virtpass.system.host import Host

_SERVICES = "/sys/fs/cgroup/system.slice"
_SERIAL_LOGINS = f"{_SERVICES}/system-serial\\x2dgetty.slice"
_SERIAL_LOGIN = "serial-getty@"
# Units through which one logs in from elsewhere.
_SERVERS = ("ssh", "sshd", "dropbear", "cockpit")
# What systemd starts at each boot: a domain that starts by itself may be earlier.
_WANTED = tuple(f"/etc/systemd/system/{name}.target.wants" for name in ("multi-user", "sockets", "getty"))
_GENERATED = "/run/systemd/generator/getty.target.wants"
# As /proc/net/tcp prints them: a socket that listens, the port of SSH, and addresses of the host itself.
_LISTENS, _SSH_PORT = "0A", "0016"
_OWN = ("0100007F", "00000000000000000000000001000000")
# Platform devices of the firmware's framebuffers: before Linux 6.9 what draws there is below them.
_OF_FIRMWARE = "-framebuffer."
_DISPLAY_CLASS = 3


def refuse_last(host: Host, addresses: list[PciAddress]) -> str:
    """Refuse devices that take the last way to the host along.

    Args:
        host: the host.
        addresses: all devices that go together.

    Returns:
        what to tell where it is not known who else can log in, as without systemd; else empty.

    Raises:
        RefusedError: the last screen of the host is one of them, and nobody can log in elsewhere.
    """
    lost = warning(host, addresses)
    if lost and host.exists(_SERVICES):
        raise RefusedError(
            "last-console",
            "the last screen of this host would go, and no SSH server was found: nobody could log in then",
            f"start an SSH server, or {framebuffers.GIVE_DISPLAY}",
        )
    return lost


def warning(host: Host, addresses: list[PciAddress]) -> str:
    """Return what to tell when devices take the last way to the host along; empty when they do not."""
    if not _are_last_screens(host, addresses) or has_other_login(host):
        return ""
    return "no screen stays here and no SSH server was found: until the domain stops, nobody can log in"


def _are_last_screens(host: Host, addresses: list[PciAddress]) -> bool:
    """Tell whether devices have the last screens of a host; False when they have none."""
    of_firmware = framebuffers.over(host, addresses)
    screens = {card for _, _, card in of_firmware}
    for directory, kind in (("/sys/class/drm", "card"), ("/sys/class/graphics", "fb")):
        for name in host.names(directory):
            if not name.removeprefix(kind).isdigit():
                continue
            path = host.real_path(f"{directory}/{name}")
            address = controller(path)
            if address is not None and sysfs.is_present(host, address):
                screens.add(address)
            elif _OF_FIRMWARE in path and not of_firmware:
                return False
    if not screens & set(addresses) or screens - set(addresses):
        return False
    # Not all drivers have a node: NVIDIA's has none without modesetting.
    others = [one for one in sysfs.addresses(host) if one not in addresses and _is_display(host, one)]
    return all(sysfs.driver(host, one) is None or sysfs.is_on_vfio(host, one) for one in others)


def _is_display(host: Host, address: PciAddress) -> bool:
    return (sysfs.number(host, address, "class") or 0) >> 16 == _DISPLAY_CLASS


def has_other_login(host: Host) -> bool:
    """Tell whether somebody can log in elsewhere than at a screen, or can as soon as the host is up."""
    if _ssh_listens(host) or host.subdirectories(_SERIAL_LOGINS):
        return True
    if any(host.exists(f"{_SERVICES}/{name}.service") for name in _SERVERS):
        return True
    units = [name for directory in (*_WANTED, _GENERATED) for name in host.names(directory)]
    return any(
        name.startswith(_SERIAL_LOGIN) or name.removesuffix(".socket").removesuffix(".service") in _SERVERS
        for name in units
    )


def _ssh_listens(host: Host) -> bool:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (host.read(table) or "").splitlines()[1:]:
            _, local, _, state, *_ = [*line.split(), "", "", "", ""]
            address, _, port = local.partition(":")
            if state == _LISTENS and port == _SSH_PORT and address not in _OWN:
                return True
    return False
