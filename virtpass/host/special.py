"""Hosts on which virtpass writes nothing, with what to do there instead."""

from virtpass.host.facts import HostFacts
from virtpass.host.mounts import mount_of
from virtpass.system.errors import RefusedError

_X86 = ("x86_64", "i386", "i486", "i586", "i686")
# The dynamic loaders of other architectures, for a host of which nothing but files is there.
_FOREIGN_LOADERS = (
    "ld-linux-aarch64",
    "ld-linux-arm",
    "ld-linux-riscv",
    "ld64.so",
    "ld-musl-aarch64",
    "ld-musl-arm",
)
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")
_LIVE_WORDS = ("boot=live", "boot=casper", "rd.live.image", "archisobasedir", "root=live:", "misobasedir")
_LIVE_MARKS = ("/run/archiso", "/run/live/medium", "/run/initramfs/live", "/run/casper", "/run/miso")
_PASSING_FILE_SYSTEMS = ("tmpfs", "ramfs", "squashfs")


def refuse_special(facts: HostFacts, arguments: tuple[str, ...]) -> None:
    """Refuse a host whose boot is described somewhere else, or that has none of its own.

    Args:
        facts: the host.
        arguments: the kernel arguments that it is to have, for the text to paste.

    Raises:
        RefusedError: virtpass writes nothing on such a host; the message has what to write where.
    """
    _refuse_container(facts)
    _refuse_architecture(facts, arguments)
    _refuse_live(facts)
    line = " ".join(arguments)
    if facts.distribution == "nixos" or facts.has("/etc/NIXOS"):
        quoted = " ".join(f'"{token}"' for token in arguments)
        raise RefusedError(
            "nixos",
            "NixOS makes its boot menu and initramfs from configuration.nix",
            f"write there: boot.kernelParams = [ {quoted} ]; boot.initrd.kernelModules = "
            '[ "vfio_pci" "vfio" "vfio_iommu_type1" ]; then run nixos-rebuild boot',
        )
    if facts.distribution == "guix":
        quoted = " ".join(f'"{token}"' for token in arguments)
        raise RefusedError(
            "guix",
            "Guix makes its boot menu and initramfs from the operating-system declaration",
            f"write there: (kernel-arguments (append '({quoted}) %default-kernel-arguments)) and "
            '(initrd-modules (append \'("vfio-pci" "vfio_iommu_type1") %base-initrd-modules)); '
            "then run guix system reconfigure",
        )
    if facts.distribution == "ubuntu-core" or facts.has("/run/mnt/ubuntu-boot"):
        raise RefusedError(
            "ubuntu-core",
            "the kernel of this host comes as a snap, and its command line is sealed with the disk's key",
            f'run: snap set system system.kernel.dangerous-cmdline-append="{line}"',
        )


def _refuse_container(facts: HostFacts) -> None:
    mark = next((path for path in _CONTAINER_MARKS if facts.has(path)), "")
    if not mark and "microsoft" in facts.running_kernel.lower():
        mark = f"the kernel is {facts.running_kernel}"
    if mark:
        raise RefusedError(
            "container",
            f"this is a container ({mark}), which boots no kernel",
            "run virtpass on the host itself",
        )


def _refuse_architecture(facts: HostFacts, arguments: tuple[str, ...]) -> None:
    machine = facts.host.read("/proc/sys/kernel/arch") or ""
    if not machine:
        names = [name for folder in _LIBRARIES for name in facts.host.names(folder)]
        is_x86 = any(name.startswith(("ld-linux-x86-64", "ld-linux.so", "ld-musl-x86_64")) for name in names)
        foreign = next((name for name in names if name.startswith(_FOREIGN_LOADERS)), "")
        machine = "" if is_x86 else foreign
    if machine and machine not in _X86:
        raise RefusedError(
            "architecture",
            f"virtpass knows how PCs boot, and this host is none ({machine})",
            f"add to the kernel's command line by hand: {' '.join(arguments)}",
        )


def _refuse_live(facts: HostFacts) -> None:
    seen = next((token for token in facts.running if token.startswith(_LIVE_WORDS)), "")
    seen = seen or next((path for path in _LIVE_MARKS if facts.has(path)), "")
    root = mount_of(facts.host, "/")
    if not seen and root is not None and root.kind in _PASSING_FILE_SYSTEMS:
        seen = f"/ is {root.kind}"
    if seen:
        raise RefusedError(
            "live-medium",
            f"this system was started from a live medium ({seen}), and keeps nothing",
            "for an installed system mount it and use --root, without /proc and /run of this one in it",
        )
