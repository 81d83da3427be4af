"""The installed kernels and what each of them can do."""

import fnmatch
import re
import zlib
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from virtpass.host.versions import version_key
from virtpass.system.host import Host

_MODULES = ("/usr/lib/modules", "/lib/modules")
_MAX_INDEX = 16 << 20
# The list of a kernel's symbols has ten megabytes and more.
_MAX_SYMBOLS = 64 << 20
_NUMBER = re.compile(r"(\d+)(?:\.(\d+))?")
_SUFFIXES = (".ko", ".ko.gz", ".ko.xz", ".ko.zst")
# A function of the ACS override patch, which never went upstream.
_ACS_SYMBOL = b"pcie_acs_overrides"
_RUNNING_SYMBOLS = "/proc/kallsyms"
_RUNNING_CONFIGURATION = "/proc/config.gz"
# A quarter of a megabyte is usual.
_MAX_CONFIGURATION = 4 << 20
# zlib's word for "expect the header of gzip".
_GZIP = zlib.MAX_WBITS | 16
# What a kernel was built with that has the driver, for kernels without an index of what is built in.
_OPTIONS = {
    "vfio": "CONFIG_VFIO",
    "vfio_iommu_type1": "CONFIG_VFIO_IOMMU_TYPE1",
    "vfio_pci": "CONFIG_VFIO_PCI",
    "vfio_pci_core": "CONFIG_VFIO_PCI_CORE",
    "vfio_virqfd": "CONFIG_VFIO_VIRQFD",
    "pci_stub": "CONFIG_PCI_STUB",
}


class Presence(Enum):
    """How a kernel has a driver."""

    MODULE = "module"
    BUILT_IN = "built in"
    MISSING = "missing"


@dataclass(frozen=True)
class Kernel:
    """One installed kernel.

    Attributes:
        host: its files.
        version: as ``uname -r`` would say, such as "6.12.0-1-amd64".
        modules: its directory of modules.
    """

    host: Host
    version: str
    modules: str

    @property
    def number(self) -> tuple[int, int]:
        """Major and minor version."""
        found = _NUMBER.match(self.version)
        return (int(found[1]), int(found[2] or 0)) if found else (0, 0)

    def presence(self, module: str) -> Presence:
        """Tell how the kernel has a module; dashes and underscores are one."""
        name = module.replace("-", "_")
        if name in self._built_in or _OPTIONS.get(name) in self._configured:
            return Presence.BUILT_IN
        return Presence.MODULE if name in self._loadable else Presence.MISSING

    @cached_property
    def _built_in(self) -> frozenset[str]:
        return self._names("modules.builtin")

    @cached_property
    def _configured(self) -> frozenset[str]:
        """The options that are set to yes; none where an index says the same for all modules."""
        if self.host.exists(f"{self.modules}/modules.builtin"):
            return frozenset()
        return _set_options(configuration(self.host, self.version, is_running=self.is_running))

    @cached_property
    def _loadable(self) -> frozenset[str]:
        return self._names("modules.dep")

    def _names(self, index: str) -> frozenset[str]:
        content = self.host.read_bytes(f"{self.modules}/{index}", _MAX_INDEX) or b""
        names = set()
        for line in content.decode("utf-8", "replace").splitlines():
            name = line.partition(":")[0].strip().rpartition("/")[2]
            for suffix in _SUFFIXES:
                if name.endswith(suffix):
                    names.add(name.removesuffix(suffix).replace("-", "_"))
                    break
        return frozenset(names)

    def takers(self, modalias: str) -> tuple[str, ...]:
        """Return the modules that would take a PCI device, in the order of the index.

        Args:
            modalias: the device's ``modalias``, such as "pci:v000010DEd00001B06sv...".
        """
        # Nearly all lines are about other vendors: to match each as a pattern would take seconds.
        beginnings = ("pci:v*", modalias[: len("pci:v00000000")])
        found = [
            module
            for pattern, module in self._pci_aliases
            if pattern.startswith(beginnings) and fnmatch.fnmatchcase(modalias, pattern)
        ]
        return tuple(dict.fromkeys(found))

    @cached_property
    def _pci_aliases(self) -> tuple[tuple[str, str], ...]:
        content = self.host.read_bytes(f"{self.modules}/modules.alias", _MAX_INDEX) or b""
        found = []
        for line in content.decode("utf-8", "replace").splitlines():
            words = line.split() if line.startswith("alias pci:") else ()
            if len(words) == 3:
                found.append((words[1], words[2].replace("-", "_")))
        return tuple(found)

    @cached_property
    def has_acs_override(self) -> bool:
        """Whether the kernel is known to have the ACS override patch; others ignore ``pcie_acs_override=``.

        Where the list of its symbols is not there or not for this user, only the running one tells.
        """
        if self.is_running and self.host.exists(_RUNNING_SYMBOLS):
            return _ACS_SYMBOL in (self.host.read_bytes(_RUNNING_SYMBOLS, _MAX_SYMBOLS) or b"")
        return any(
            _ACS_SYMBOL in (self.host.read_bytes(path, _MAX_SYMBOLS) or b"")
            for path in (f"/boot/System.map-{self.version}", f"{self.modules}/System.map")
        )

    @property
    def is_running(self) -> bool:
        """Whether this is the kernel that runs."""
        return self.host.read("/proc/sys/kernel/osrelease") == self.version


def installed_kernels(host: Host, running: str = "") -> tuple[Kernel, ...]:
    """Return the kernels that have modules on the host, by version; and the running one if it takes none.

    A directory without an index is what a removed kernel has left behind.

    Args:
        host: its files.
        running: version of the host's running kernel; empty when the host does not run.
    """
    found: list[Kernel] = []
    for folder in _MODULES:
        found = [
            Kernel(host, name, f"{folder}/{name}")
            for name in host.names(folder)
            if host.exists(f"{folder}/{name}/modules.dep") or host.exists(f"{folder}/{name}/modules.builtin")
        ]
        if found:
            break
    if running and running not in [kernel.version for kernel in found]:
        # Without its modules a kernel that takes some was removed since it was booted.
        text = configuration(host, running, is_running=True)
        if text and "CONFIG_MODULES" not in _set_options(text):
            found.append(Kernel(host, running, f"{_MODULES[0]}/{running}"))
    return tuple(sorted(found, key=lambda kernel: version_key(kernel.version)))


def configuration(host: Host, version: str, *, is_running: bool) -> str:
    """Return what a kernel was built with, as lines of its ``.config``; empty when that is not known.

    Args:
        host: its files.
        version: the kernel's.
        is_running: whether the kernel itself can be asked.
    """
    paths = (f"/boot/config-{version}", *(f"{folder}/{version}/config" for folder in _MODULES))
    for path in paths:
        if text := host.read(path):
            return text
    packed = (host.read_bytes(_RUNNING_CONFIGURATION) or b"") if is_running else b""
    unpacking = zlib.decompressobj(_GZIP)
    try:
        text = unpacking.decompress(packed, _MAX_CONFIGURATION).decode("utf-8", "replace")
    except zlib.error:
        return ""
    # Of a part nobody knows what is missing.
    return text if unpacking.eof else ""


def _set_options(text: str) -> frozenset[str]:
    return frozenset(line.removesuffix("=y") for line in text.splitlines() if line.endswith("=y"))
