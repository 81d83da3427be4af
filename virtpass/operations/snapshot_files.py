"""Which files of a host go into a snapshot: one table of patterns, and how they are collected."""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from virtpass.binding import framebuffers
from virtpass.binding.holders import device_nodes, nvidia_nodes
from virtpass.binding.journal import journals, read_journal
from virtpass.pci.address import PciAddress
from virtpass.pci.sysfs import parsed
from virtpass.system.archive import Entry
from virtpass.system.errors import VirtpassError
from virtpass.system.host import Host

_MAX_FILE = 16 << 20
_MAX_ATTRIBUTE = 64 << 10
# What is read of programs for UEFI: their headers, and the command line of a unified image.
_MAX_PROGRAM = 1 << 20
_CONFIG_SIZE = 4096
_DEADLINE = 5.0
_MAX_LINKS = 40
_SYMBOL = b"pcie_acs_overrides"
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "9p", "fuse.sshfs", "glusterfs", "fuse.rclone")
_OWN_ADDRESSES = ("0100007F", "00000000000000000000000001000000")

# Given the content of a file, returns what goes into the snapshot.
Keep = Callable[[bytes], bytes]


def _whole(content: bytes) -> bytes:
    return content


def _present(_content: bytes) -> bytes:
    """Keep nothing but that it is there; it is not even opened."""
    return b""


def _attribute(content: bytes) -> bytes:
    """Keep all of an attribute that may wait for a driver, and is read with a deadline."""
    return content


def _device(content: bytes) -> bytes:
    """Keep the beginning of a binary attribute that may wait for a driver."""
    return content


def _lines(wanted: Callable[[bytes], bool]) -> Keep:
    """Keep some lines."""
    return lambda content: b"".join(line for line in content.splitlines(keepends=True) if wanted(line))


def _symbols(content: bytes) -> bytes:
    """Keep of a list of symbols the one that is looked for."""
    return _SYMBOL + b"\n" if _SYMBOL in content else b""


def _sockets(content: bytes) -> bytes:
    """Keep sockets on which SSH listens, and of their addresses only whether these are the host's own."""
    kept = content.splitlines(keepends=True)[:1]
    for line in content.decode("latin-1").splitlines()[1:]:
        fields = line.split()
        address, _, port = fields[1].partition(":") if len(fields) > 3 else ("", "", "")
        if port == "0016" and fields[3] == "0A":
            shown = address if address in _OWN_ADDRESSES else "0" * len(address)
            kept.append(f"   0: {shown}:{port} {'0' * len(address)}:0000 0A\n".encode())
    return b"".join(kept)


def _routes(content: bytes) -> bytes:
    """Keep default routes, without the addresses of their gateways."""
    kept = content.splitlines(keepends=True)[:1]
    for line in content.decode("latin-1").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            kept.append("\t".join((*fields[:2], "00000000", *fields[3:])).encode() + b"\n")
    return b"".join(kept)


def _routes6(content: bytes) -> bytes:
    """Keep default routes, without the addresses of their gateways."""
    kept = []
    for line in content.decode("latin-1").splitlines():
        fields = line.split()
        if len(fields) == 10 and fields[0] == "0" * 32 and fields[1] == "00":
            kept.append(" ".join((*fields[:4], "0" * 32, *fields[5:])).encode() + b"\n")
    return b"".join(kept)


def _is_local_mount(line: bytes) -> bool:
    kind = line.partition(b" - ")[2].split(b" ")[0].decode("latin-1")
    return kind not in _NETWORK


def _is_local_table(line: bytes) -> bool:
    """Tell whether a line of fstab names a disk; others may have passwords."""
    return line.startswith((b"/dev/", b"UUID=", b"PARTUUID=", b"LABEL=", b"PARTLABEL="))


def _braced(pattern: str) -> Iterator[str]:
    """Yield the patterns that a pattern with alternatives in braces stands for."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        yield pattern
        return
    inner, _, tail = rest.partition("}")
    for one in inner.split(","):
        yield from _braced(head + one + tail)


_PCI = "/sys/bus/pci/devices/*"
_PROGRAMS = (
    "booster,bootctl,bootupctl,dracut,grub-mkconfig,grub2-mkconfig,grub-editenv,grub2-editenv,grub-reboot,"
    "grub2-reboot,grub-set-default,grubby,journalctl,kernel-install,kernelstub,limine-mkinitcpio,limine-update,"
    "mdevctl,mkinitcpio,mkinitfs,mkinitramfs,proxmox-boot-tool,python3,reinstall-kernels,rpm-ostree,sdboot-manage,"
    "sdbootutil,systemctl,transactional-update,update-bootloader,update-extlinux,update-grub,update-grub2,"
    "update-initramfs,zypper,zipl"
)
# Scripts of the distribution in which virtpass looks for what they can do.
_SCRIPTS = "grub-mkconfig,grub2-mkconfig,sdbootutil,update-initramfs"
_BOOT = "{/boot,/boot/efi,/efi}"

# In this order: of two rows for one file the first one counts. Braces hold alternatives.
TABLE: tuple[tuple[str, Keep], ...] = (
    # PCI devices
    (
        f"{_PCI}/{{vendor,device,subsystem_vendor,subsystem_device,class,modalias,boot_vga,reset_method}}",
        _whole,
    ),
    (f"{_PCI}/{{resource,resource*_resize,numa_node,power_state,d3cold_allowed,power/control}}", _attribute),
    (f"{_PCI}/{{sriov_totalvfs,sriov_numvfs,sriov_drivers_autoprobe,sriov_offset,sriov_stride}}", _attribute),
    (f"{_PCI}/{{driver_override,uevent}}", _attribute),
    (f"{_PCI}/config", _device),
    (f"{_PCI}/{{reset,vfio-dev,driver,driver/module,iommu_group,physfn,virtfn*,subsystem}}", _present),
    (f"{_PCI}/{{drm,graphics}}/*", _present),
    (f"{_PCI}/drm/card*/card*-*/status", _attribute),
    (f"{_PCI}/mdev_supported_types/*/{{available_instances,device_api,name,description}}", _attribute),
    (f"{_PCI}/mdev_supported_types/*/create", _present),
    ("/sys/devices/pci*/{power/control,d3cold_allowed}", _attribute),
    ("/sys/bus/pci/drivers/*", _present),
    ("/sys/bus/pci/drivers/nvidia/*", _present),
    ("/sys/bus/mdev/devices/*", _present),
    ("/sys/bus/mdev/devices/*/{iommu_group,mdev_type}", _present),
    ("/sys/class/mdev_bus/*", _present),
    ("/run/udev/data/+pci:*", _lines(lambda line: b"_FROM_DATABASE=" in line)),
    # IOMMU
    ("/sys/kernel/iommu_groups/*/devices/*", _present),
    ("/sys/kernel/iommu_groups/*/{reserved_regions,type}", _attribute),
    ("/sys/class/iommu/*", _present),
    ("/sys/firmware/acpi/tables/{DMAR,IVRS,IORT,VIOT}", _present),
    ("/sys/kernel/irq/*/chip_name", _attribute),
    ("/sys/module/{vfio*,iommufd,kvm*}/parameters/*", _attribute),
    ("/sys/module/{vfio*,nvidia*,nouveau,amdgpu,i915,xe,snd_hda_intel}/{initstate,refcnt}", _attribute),
    ("/sys/module/{vfio*,nvidia*,iommufd}", _present),
    ("/sys/module/apparmor/parameters/enabled", _attribute),
    # displays
    ("/sys/class/{drm,graphics}/*", _present),
    ("/sys/class/vtconsole/*/{name,bind}", _attribute),
    ("/sys/bus/platform/drivers/{*framebuffer*,*drm*,efifb,vesafb}/*", _present),
    ("/sys/bus/platform/devices/{*framebuffer*,efi*,vesa*}", _present),
    ("/sys/bus/platform/devices/{*framebuffer*,efi*,vesa*}/{driver,drm/*,graphics/*}", _present),
    ("/sys/bus/platform/devices/*framebuffer*/{uevent,modalias}", _attribute),
    # what the host uses
    ("/sys/class/block/*", _present),
    ("/sys/class/block/*/{holders,slaves}/*", _present),
    ("/sys/class/block/*/dev", _attribute),
    ("/sys/dev/block/*", _present),
    ("/sys/class/nvme-subsystem/*/nvme*", _present),
    ("/sys/devices/virtual/nvme-subsystem/*/nvme*", _present),
    ("/sys/class/net/*", _present),
    ("/sys/class/net/*/{master,lower_*,upper_*}", _present),
    ("/proc/self/mountinfo", _lines(_is_local_mount)),
    ("/proc/swaps", _whole),
    ("/proc/net/route", _routes),
    ("/proc/net/ipv6_route", _routes6),
    ("/proc/net/{tcp,tcp6}", _sockets),
    ("/proc/bus/input/devices", _whole),
    ("/dev/kvm", _present),
    ("/dev/nvidia*", _present),
    ("/dev/vfio/*", _present),
    # processor, memory, kernel
    ("/proc/{cmdline,cpuinfo,meminfo,modules,uptime}", _whole),
    ("/proc/iomem", _lines(lambda line: b": Kernel " not in line)),
    ("/proc/sys/kernel/{osrelease,arch}", _whole),
    ("/proc/sys/kernel/random/boot_id", _whole),
    ("/proc/sys/vm/compact_memory", _present),
    ("/proc/irq/default_smp_affinity", _attribute),
    ("/proc/irq/*/smp_affinity_list", _attribute),
    ("/proc/config.gz", _whole),
    ("/proc/kallsyms", _symbols),
    ("/sys/devices/system/cpu/{online,possible,isolated}", _attribute),
    ("/sys/devices/system/cpu/cpu*/cpufreq", _present),
    ("/sys/devices/system/cpu/cpufreq/policy*/{scaling_governor,scaling_available_governors}", _attribute),
    ("/sys/kernel/mm/hugepages/*/*_hugepages", _attribute),
    ("/sys/devices/system/node/node*/hugepages/*/*_hugepages", _attribute),
    ("/sys/devices/system/node/node*/{cpulist,meminfo}", _attribute),
    ("/sys/kernel/security/lockdown", _attribute),
    ("/sys/fs/selinux/enforce", _attribute),
    ("/sys/fs/selinux/booleans/virt_hooks_unconfined", _attribute),
    ("/sys/firmware/efi/efivars/{SecureBoot,LoaderInfo,StubInfo,LoaderEntry*}-*", _whole),
    ("/sys/firmware/efi", _present),
    # kernels that are installed
    ("{/usr/lib,/lib}/modules/*/{modules.dep,modules.builtin,modules.alias,pkgbase,config}", _whole),
    ("{/usr/lib,/lib}/modules/*/System.map", _symbols),
    ("{/usr/lib,/lib}/modules/*/{vmlinuz,initrd,initramfs.img}", _present),
    ("/boot/System.map-*", _symbols),
    ("/boot/config-*", _whole),
    ("{/lib,/lib64,/usr/lib,/usr/lib64}/ld-*", _present),
    ("{/lib,/lib64,/usr/lib,/usr/lib64}/ld64.so*", _present),
    # the system
    ("{/etc,/usr/lib}/os-release", _whole),
    ("/etc/machine-id", _whole),
    ("/etc/fstab", _lines(_is_local_table)),
    ("/etc/crypttab", _lines(lambda line: b"tpm2-device=" in line)),
    ("/etc/NIXOS", _present),
    ("{/.dockerenv,/run/.containerenv,/run/systemd/container,/run/systemd/system}", _present),
    ("/run/{archiso,live/medium,initramfs/live,casper,miso,mnt/ubuntu-boot,ostree-booted}", _present),
    (f"{{/usr/bin,/usr/sbin,/bin,/sbin}}/{{{_SCRIPTS}}}", _whole),
    (f"{{/usr/bin,/usr/sbin,/bin,/sbin}}/{{{_PROGRAMS}}}", _present),
    ("{/etc,/run,/usr/local/lib,/usr/lib}/modprobe.d/*.conf", _whole),
    ("/etc/driverctl.d/*", _whole),
    ("{/etc,/usr/lib,/lib}/udev/rules.d/*nvidia*", _whole),
    ("{/etc/systemd,/usr/lib/systemd,/lib/systemd}/system/nvidia-*.service", _present),
    ("/etc/systemd/system/display-manager.service", _present),
    ("/etc/systemd/system/multi-user.target.wants/virtpass*", _present),
    ("/etc/systemd/system/{sockets,multi-user}.target.wants/{virtqemud,libvirtd}.socket", _present),
    ("{/etc/systemd,/usr/lib/systemd,/lib/systemd}/system/{virtqemud,libvirtd}.socket", _present),
    ("{/usr/bin,/usr/sbin}/{virtqemud,libvirtd}", _present),
    ("/etc/apparmor.d/usr.sbin.{libvirtd,virtqemud}", _whole),
    ("/etc/apparmor.d/local/usr.sbin.{libvirtd,virtqemud}", _whole),
    ("/etc/mdevctl.d/*/*", _present),
    ("/run/systemd/sessions/*", _lines(lambda line: line.startswith((b"UID=", b"SEAT=", b"VTNR=")))),
    ("/run/systemd/{system.control,transient}/*/50-AllowedCPUs.conf", _whole),
    ("/run/user/*/systemd/private", _present),
    ("/sys/fs/cgroup/cgroup.controllers", _attribute),
    ("/sys/fs/cgroup/{user.slice,system.slice,machine.slice,init.scope}/cpuset.cpus", _attribute),
    ("/sys/fs/cgroup/{user.slice,system.slice,machine.slice,init.scope}", _present),
    (
        "/sys/fs/cgroup/system.slice/{ssh,sshd,dropbear,cockpit,*dm,greetd,nvidia-*}.service",
        _present,
    ),
    (
        "/etc/systemd/system/{multi-user,sockets}.target.wants/{ssh,sshd,dropbear,cockpit}.{service,socket}",
        _present,
    ),
    ("{/etc/systemd/system,/run/systemd/generator}/getty.target.wants/serial-getty@*", _present),
    ("/sys/fs/cgroup/system.slice/system-getty.slice/getty@*", _present),
    ("/sys/fs/cgroup/system.slice/system-serial\\x2dgetty.slice/*", _present),
    # bootloader
    ("/etc/default/{grub,limine,zipl,grub-btrfs/config,u-boot,raspi-firmware}", _whole),
    ("/etc/default/grub.d/*", _whole),
    ("/etc/grub.d/99_virtpass", _whole),
    ("/etc/grub.d/{10_linux,10_linux_zfs}", _present),
    ("/etc/sysconfig/{bootloader,grub,kernel}", _whole),
    ("/etc/{kernel,kernelstub}/*", _whole),
    ("{/etc,/usr/lib,/usr}/kernel/cmdline", _whole),
    ("{/etc,/run,/usr/local/lib,/usr/lib}/kernel/install.conf", _whole),
    ("{/etc,/run,/usr/local/lib,/usr/lib}/kernel/install.conf.d/*", _whole),
    ("{/etc,/usr/lib,/usr}/kernel/cmdline.d/*", _whole),
    ("/etc/kernel/{install.d,entry-token,postinst.d,postrm.d}/*", _present),
    ("/usr/lib/kernel/install.d/*", _present),
    ("/etc/cmdline.d/*", _whole),
    ("{/etc,/usr/share}/limine-entry-tool.d/*", _whole),
    ("/etc/{limine-entry-tool.conf,sdboot-manage.conf,update-extlinux.conf,zipl.conf,booster.yaml}", _whole),
    ("/etc/update-extlinux.d/*", _whole),
    ("/boot/{grub,grub2}/{grub.cfg,grubenv,custom.cfg}", _whole),
    ("/boot/efi/EFI/*/{grub.cfg,grubenv}", _whole),
    (f"{_BOOT}/loader/{{loader.conf,entries.srel}}", _whole),
    (f"{_BOOT}/loader/entries/*", _whole),
    (f"{_BOOT}/loader", _present),
    ("/boot/refind_linux.conf", _whole),
    (f"{_BOOT}{{,/limine,/EFI/limine,/EFI/BOOT}}/limine.conf", _whole),
    (f"{_BOOT}/EFI/{{refind,BOOT}}/refind*.conf", _whole),
    (f"{_BOOT}{{,/limine,/EFI/limine,/EFI/BOOT,/EFI/systemd,/EFI/Linux}}/*.{{efi,EFI}}", _whole),
    ("/boot/{extlinux.conf,syslinux.cfg,extlinux/extlinux.conf,syslinux/syslinux.cfg}", _whole),
    (f"{_BOOT}/{{vmlinuz,vmlinux,initrd,initramfs,Image,booster}}*", _present),
    ("/boot/*/*/{linux,initrd,vmlinuz}*", _present),
    ("{/boot/efi,/efi}/*/*/{linux,initrd,vmlinuz}*", _present),
    ("{/boot,/efi,/boot/efi,/boot/efi/EFI}/*", _present),
    ("/boot/efi/EFI/*/*", _present),
    ("/run/ostree/staged-deployment", _whole),
    ("/var/lib/{systemd/pcrlock.json,pcrlock.d}", _present),
    ("/etc/systemd/tpm2-pcr-private-key.pem", _present),
    # initramfs
    ("/etc/mkinitcpio.conf", _whole),
    ("/etc/mkinitcpio.conf.d/*", _whole),
    ("/etc/mkinitcpio.d/*", _whole),
    ("{/usr/lib,/etc}/initcpio/post/*", _present),
    ("/etc/dracut.conf.d/50-virtpass.conf", _whole),
    ("/etc/initramfs-tools/hooks/virtpass", _whole),
    ("/etc/initramfs-tools/hooks", _present),
    ("/usr/lib/booster/regenerate_images", _present),
    ("/etc/mkinitfs/mkinitfs.conf", _present),
    ("/etc/dracut.conf.d/*", _present),
    # libvirt, and virtpass itself
    ("/etc/libvirt/hooks/qemu.d/50-virtpass", _whole),
    ("/etc/libvirt/hooks/qemu", _present),
    ("/etc/libvirt/hooks/qemu.d/*", _present),
    ("/etc/libvirt", _present),
    ("/run/libvirt/qemu/*.pid", _whole),
    ("/etc/virtpass/functions.d/*", _whole),
    ("/etc/virtpass/early-bind", _whole),
    ("/etc/virtpass/fallback-cmdline", _whole),
    ("/etc/virtpass/hooks.d/*/*", _present),
    ("/etc/virtpass/hooks.d", _present),
    ("/var/lib/virtpass/host/applied.json", _whole),
    ("/var/lib/virtpass/setup", _present),
    ("/run/virtpass/{lent,functions}/*", _whole),
    ("/run/virtpass/{stuck,released}/*", _present),
)
# The hook's copy of virtpass; compared to the byte, and without anything of the host in it.
PAYLOADS = "/var/lib/virtpass/hook"
HOOK = "/etc/libvirt/hooks/qemu.d/50-virtpass"


@dataclass(frozen=True, slots=True)
class Collected:
    """What was found.

    Attributes:
        entries: the tree, not masked yet.
        unreadable: files that are there, and that this user may not read; they are in the tree, empty.
        left_out: the same, and what did not answer, for people.
        nodes: numbers of device nodes of PCI devices, by their paths.
    """

    entries: tuple[Entry, ...]
    unreadable: tuple[str, ...]
    left_out: tuple[str, ...]
    nodes: Mapping[str, str]


def collect(host: Host) -> Collected:
    """Collect the files of a host; needs no permission, and finds less without."""
    return _Collector(host).collect()


class _Collector:
    def __init__(self, host: Host) -> None:
        self._host = host
        self._entries: dict[str, Entry] = {}
        self._unreadable: list[str] = []
        self._left_out: list[str] = []
        self._nodes: dict[str, str] = {}

    def collect(self) -> Collected:
        for row, keep in TABLE:
            for pattern in _braced(row):
                for path in self._matching("", pattern.strip("/").split("/")):
                    self._add(path, keep)
        self._add_tree(PAYLOADS)
        self._add_nodes()
        self._add_processes()
        return Collected(
            tuple(self._entries.values()),
            tuple(self._unreadable),
            tuple(dict.fromkeys(self._left_out)),
            dict(sorted(self._nodes.items())),
        )

    def _matching(self, directory: str, parts: list[str]) -> Iterator[str]:
        """Yield what matches below a directory, as paths without links, and add the links on the way."""
        first, *rest = parts
        is_literal = not any(one in first for one in "*?[")
        names = [first] if is_literal else [n for n in self._host.names(directory) if fnmatchcase(n, first)]
        if not (is_literal or rest):
            # That it is empty is an answer, too.
            self._add(directory, _present)
        for name in names:
            path = f"{directory}/{name}"
            if not self._host.exists(path):
                continue
            real = self._followed(path, _MAX_LINKS)
            if real is None:
                continue
            if rest:
                yield from self._matching(real, rest)
            else:
                yield real

    def _followed(self, path: str, left: int) -> str | None:
        """Add the links that a path leads through; return where it leads, None for nowhere."""
        target = self._host.link_target(path)
        if target is None:
            return path if self._host.exists(path) else None
        if not left:
            return None
        self._entries.setdefault(path, Entry(path, target=_clamped(path, target)))
        here = "" if target.startswith("/") else path.rpartition("/")[0]
        for name in target.split("/"):
            if name in ("", "."):
                continue
            if name == "..":
                here = here.rpartition("/")[0]
                continue
            found = self._followed(f"{here}/{name}", left - 1)
            if found is None:
                return None
            here = found
        return here or "/"

    def _add(self, path: str, keep: Keep) -> None:
        """Add a file as a row says, or a directory."""
        if path == "/" or path in self._entries:
            return
        try:
            found = os.lstat(self._host.path(path))
        except OSError as error:
            self._leave_out(path, error)
            return
        mode = stat.S_IMODE(found.st_mode)
        is_own = found.st_uid in (0, os.geteuid())
        self._add_directories(path)
        if stat.S_ISDIR(found.st_mode):
            self._entries[path] = Entry(path, mode=mode, is_own=is_own)
            return
        content = b""
        if keep is not _present and stat.S_ISREG(found.st_mode):
            try:
                content = keep(self._read(path, keep))
            except OSError as error:
                self._leave_out(path, error)
                self._unreadable.append(path)
        self._entries[path] = Entry(path, content, mode=mode, is_own=is_own)

    def _add_directories(self, path: str) -> None:
        """Add the directories above a file, for their permissions."""
        above = os.path.dirname(path)
        if above not in ("", "/") and above not in self._entries:
            self._add(above, _present)

    def _read(self, path: str, keep: Keep) -> bytes:
        """Read a file.

        Raises:
            OSError: it cannot be read.
        """
        if keep is _device:
            return self._host.read_device(path, _CONFIG_SIZE, _DEADLINE)
        if keep is _attribute:
            return self._host.read_attribute(path, _DEADLINE).encode("utf-8", "surrogateescape") + b"\n"
        limit = _MAX_PROGRAM if path.lower().endswith(".efi") else _MAX_FILE
        content = self._host.read_bytes(path, limit if keep is not _symbols else 4 * limit)
        if content is None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return content

    def _leave_out(self, path: str, error: OSError) -> None:
        # Attributes come and go with drivers, and some are there that no driver answers for.
        if error.errno in (errno.EACCES, errno.EPERM, errno.ETIMEDOUT):
            self._left_out.append(f"{path}: {error.strerror}")

    def _add_tree(self, path: str) -> None:
        if not self._host.exists(path):
            return
        for name in self._host.names(path):
            below = f"{path}/{name}"
            if self._host.link_target(below) is None:
                self._add(below, _whole)
                self._add_tree(below)

    def _add_nodes(self) -> None:
        """Add what tells which device nodes a PCI device has."""
        host = self._host
        for name in host.names("/sys/bus/pci/devices"):
            for address in parsed([name]):
                self._add_nodes_below(host.real_path(f"/sys/bus/pci/devices/{name}"))
                for one in framebuffers.over(host, [address]):
                    self._add_nodes_below(host.real_path(framebuffers.path(one)))
                self._nodes |= self._nodes_of(address)
        self._nodes |= nvidia_nodes(host)

    def _nodes_of(self, address: PciAddress) -> dict[str, str]:
        try:
            return device_nodes(self._host, address)
        except VirtpassError as error:
            self._left_out.append(error.what)
            return {}

    def _add_nodes_below(self, path: str) -> None:
        for name in self._host.subdirectories(path):
            below = f"{path}/{name}"
            if name.count(":") == 2 and parsed([name]):
                continue
            if self._host.exists(f"{below}/dev"):
                self._add(f"{below}/dev", _attribute)
                if self._host.exists(f"{below}/uevent"):
                    self._add_device_event(f"{below}/uevent")
            self._add_nodes_below(below)

    def _add_device_event(self, path: str) -> None:
        self._add(path, _attribute)
        if (entry := self._entries.get(path)) is not None:
            only = _lines(lambda line: line.startswith((b"DEVNAME=", b"MAJOR=", b"MINOR=")))
            self._entries[path] = Entry(
                path, only(entry.content or b""), mode=entry.mode, is_own=entry.is_own
            )

    def _add_processes(self) -> None:
        """Add those that hold a device, that the records name, and that run a domain."""
        host = self._host
        numbers = [name for name in host.names("/proc") if name.isdigit()]
        known = set(host.using(numbers, self._nodes, _DEADLINE)) if self._nodes else set()
        for number in sorted(known):
            self._add_descriptors(number)
        known |= {host.read(f"/run/libvirt/qemu/{name}") or "" for name in host.names("/run/libvirt/qemu")}
        known |= set(self._starters())
        for number in known & set(numbers):
            for name in ("comm", "cgroup", "stat"):
                if host.exists(f"/proc/{number}/{name}"):
                    self._add(f"/proc/{number}/{name}", _whole)

    def _add_descriptors(self, number: str) -> None:
        """Add the descriptors of a process that have the path of a node of a PCI device."""
        directory = f"/proc/{number}/fd"
        for name in self._host.names(directory):
            target = self._host.link_target(f"{directory}/{name}")
            if target in self._nodes:
                path = f"{directory}/{name}"
                self._entries[path] = Entry(path, target=target)

    def _starters(self) -> Iterable[str]:
        for uuid in journals(self._host):
            try:
                journal = read_journal(self._host, uuid)
            except VirtpassError:
                continue
            if journal is not None and journal.starter is not None:
                yield str(journal.starter[0])


def daemon_entries(host: Host, process: int | None) -> tuple[Entry, ...]:
    """Return what is looked at of the libvirt daemon."""
    if process is None:
        return ()
    found = []
    for name, wanted in (("limits", b"Max locked memory"), ("status", b"CapEff:")):
        path = f"/proc/{process}/{name}"
        if (content := host.read_bytes(path)) is not None:
            only = _lines(lambda line, wanted=wanted: line.startswith(wanted))  # type: ignore[misc]
            found.append(Entry(path, only(content), mode=0o444))
    return tuple(found)


def words() -> Iterator[str]:
    """Yield the words of the table: no name of a host or a user that is one of them is masked."""
    for row, _ in TABLE:
        yield row


def _clamped(path: str, target: str) -> str:
    """Return a link's target so that it does not lead above the root, where the root is again."""
    if target.startswith("/"):
        return os.path.normpath(target).replace("//", "/") if ".." in target.split("/") else target
    depth = path.count("/") - 1
    for name in target.split("/"):
        if name not in ("", "."):
            depth += -1 if name == ".." else 1
        if depth < 0:
            return os.path.normpath(os.path.join(os.path.dirname(path), target))
    return target
