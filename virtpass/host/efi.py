"""EFI variables as the kernel shows them: four bytes of attributes, then the value."""

from virtpass.system.host import Host

_DIRECTORY = "/sys/firmware/efi/efivars"
_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
# Of the boot loader interface, which systemd-boot, its stub and newer versions of GRUB speak.
_LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_ATTRIBUTES = 4
# Where distributions mount the EFI system partition or its extension, in the order of kernel-install.
PARTITIONS = ("/efi", "/boot", "/boot/efi")


def loader_text(host: Host, name: str) -> str | None:
    """Return a text variable of the boot loader interface.

    Empty when it is not there; None when it cannot be read.
    """
    path = f"{_DIRECTORY}/{name}-{_LOADER}"
    content = host.read_bytes(path)
    if content is None:
        return None if host.exists(path) else ""
    return content[_ATTRIBUTES:].decode("utf-16-le", "replace").partition("\0")[0]


def secure_boot(host: Host) -> bool | None:
    """Tell whether the firmware starts nothing that is not signed; None where it says nothing of it."""
    value = (host.read_bytes(f"{_DIRECTORY}/SecureBoot-{_GLOBAL}") or b"")[_ATTRIBUTES:]
    return value == b"\1" if value else None


def is_secure_boot(host: Host) -> bool:
    """Tell whether the firmware says that it starts nothing that is not signed."""
    return secure_boot(host) is True
