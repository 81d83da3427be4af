"""What a host is: distribution, firmware, kernels, the loader that booted it; from files below a root."""

import os
from dataclasses import dataclass
from functools import cached_property

from virtpass.host import efi, tokens
from virtpass.host.kernels import Kernel, installed_kernels
from virtpass.system.host import Host

_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")


@dataclass(frozen=True)
class HostFacts:
    """One host at one moment.

    Attributes:
        host: its files.
        distribution: ``ID`` of os-release, such as "debian"; empty when there is none.
        family: ``ID`` and ``ID_LIKE``.
        distribution_name: ``PRETTY_NAME``, for people.
        is_uefi: whether the running system was started by UEFI firmware.
        running: the tokens of the running kernel's command line; empty for another root.
        running_kernel: version of the running kernel; empty for another root.
        loader: what the loader that booted says of itself (``LoaderInfo``), such as "systemd-boot 257"; empty
            when it says nothing, and for another root.
        stub: the same of the stub of a unified kernel image; empty when none was booted.
    """

    host: Host
    distribution: str
    family: tuple[str, ...]
    distribution_name: str
    is_uefi: bool
    running: tuple[str, ...]
    running_kernel: str
    loader: str
    stub: str

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """The installed kernels, by version."""
        return installed_kernels(self.host, self.running_kernel)

    @property
    def boot_id(self) -> str:
        """What tells this boot of the kernel from all others; empty below another root."""
        return self.text("/proc/sys/kernel/random/boot_id")

    @cached_property
    def root_words(self) -> tuple[str, ...]:
        """Kernel arguments that name the host's root: those that run, else what its own files say."""
        for words in (self.running, tokens.split(self.text("/etc/kernel/cmdline")), self._root_in_fstab()):
            if any(tokens.key(word) == "root" for word in words):
                return words
        return ()

    def _root_in_fstab(self) -> tuple[str, ...]:
        for line in self.text("/etc/fstab").splitlines():
            fields = line.split()
            if len(fields) >= 4 and fields[1] == "/" and not fields[0].startswith("#"):
                flags = [one for one in fields[3].split(",") if one.startswith(("subvol=", "subvolid="))]
                return (f"root={fields[0]}", *(f"rootflags={one}" for one in flags))
        return ()

    def has(self, path: str) -> bool:
        """Tell whether the host has a file or directory."""
        return self.host.exists(path)

    def has_program(self, name: str) -> bool:
        """Tell whether the host has a program, in one of the system's own directories."""
        return any(
            self.host.exists(f"{folder}/{name}") for folder in ("/usr/bin", "/usr/sbin", "/bin", "/sbin")
        )

    def text(self, path: str) -> str:
        """Return the content of a text file; empty when it cannot be read."""
        return self.host.read(path) or ""

    def is_like(self, *names: str) -> bool:
        """Tell whether the distribution is one of these, or says that it is like one."""
        return any(name in self.family for name in names)


def read_facts(host: Host) -> HostFacts:
    """Read the facts of a host; needs no permission, and takes missing files for answers."""
    release = os_release(host)
    is_running = not _is_elsewhere(host)
    return HostFacts(
        host=host,
        distribution=release.get("ID", ""),
        family=(release.get("ID", ""), *release.get("ID_LIKE", "").split()),
        distribution_name=release.get("PRETTY_NAME", release.get("ID", "an unknown distribution")),
        is_uefi=host.exists("/sys/firmware/efi"),
        running=tokens.split((host.read("/proc/cmdline") or "") if is_running else ""),
        running_kernel=(host.read("/proc/sys/kernel/osrelease") or "") if is_running else "",
        loader=(efi.loader_text(host, "LoaderInfo") or "") if is_running else "",
        stub=(efi.loader_text(host, "StubInfo") or "") if is_running else "",
    )


def _is_elsewhere(host: Host) -> bool:
    """Tell whether the kernel that runs is not the host's: its root is mounted on a rescue system.

    There /proc, as its programs want it, is that of the rescue system, command line included.
    """
    return bool(host.root) and host.link_target("/proc/self") == str(os.getpid())


def os_release(host: Host) -> dict[str, str]:
    """Return the assignments in os-release, quotes taken off."""
    text = next((text for path in _OS_RELEASE if (text := host.read(path))), "")
    values = {}
    for line in text.splitlines():
        name, found, value = line.partition("=")
        if found and name.isidentifier():
            values[name] = value.strip().strip("\"'")
    return values
