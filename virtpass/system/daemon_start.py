"""What starts the libvirt daemon that runs QEMU domains: told from files, nothing is run."""

from virtpass.system.host import Host

# Of two that are to run the first one answers: the other's socket is for clients of old.
_SOCKETS = ("virtqemud.socket", "libvirtd.socket")
_UNITS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
_TARGETS = ("sockets", "multi-user")
_DAEMONS = ("virtqemud", "libvirtd")
_PROGRAMS = ("/usr/sbin", "/usr/bin")


def how_to_start(host: Host) -> str:
    """Return what starts the daemon: the one that is to run from the boot on, else the one that is installed.

    Returns:
        the command; a sentence without a full stop where there is no systemd, or no daemon at all.
    """
    wanted = [
        socket
        for socket in _SOCKETS
        for target in _TARGETS
        if host.exists(f"/etc/systemd/system/{target}.target.wants/{socket}")
    ]
    installed = [socket for socket in _SOCKETS for base in _UNITS if host.exists(f"{base}/{socket}")]
    if found := wanted or installed:
        return f"sudo systemctl start {found[0]}"
    for daemon in _DAEMONS:
        if any(host.exists(f"{base}/{daemon}") for base in _PROGRAMS):
            return f"start the service {daemon}"
    return "install libvirt (Debian, Ubuntu: sudo apt install libvirt-daemon-system)"
