"""A host with PCI devices in a directory, whose kernel reacts to writes as the real one does.

What is modelled, each seen on a real kernel (6.1 and 6.12):

* ``driver_override`` reads ``(null)`` when unset; a line break clears it; with an override only that driver
  may bind, and nothing else does.
* ``drivers_probe`` succeeds when nothing was bound, and does nothing for a bound device.
* ``unbind`` of a device that is not bound to that driver is ENODEV.
* unbinding from vfio-pci while a process has the group open never comes back.
* no driver but vfio-pci, pci-stub and pcieport can be bound while the group is owned through VFIO.
* a driver may refuse a device, hang in its remove function, or be a module that is not loaded.
* a pool of huge pages grows as far as memory allows, takes its surplus in first, and never shrinks below what
  is in use: that becomes surplus.
* some interrupts cannot be moved (EIO); a governor that the driver does not know is EINVAL.
* a device gets virtual functions while it has none (EBUSY), as many as it can have (ERANGE), and while its
  own driver is bound (ENOENT); with automatic probing off, only an override lets a driver take one.
* a mediated device is made while its type has one left (ENOSPC); removing one that is open never comes back.
* systemd keeps properties set at run time in drop-ins; the kernel does not empty the CPU list of a group in
  which processes are.

The imports are those of the hook, so that the hook can be measured on it.
"""

from __future__ import annotations

import errno
import os

from virtpass.pci.address import PciAddress
from virtpass.system.host import Host
from virtpass.system.worker import NoAnswer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CARD = PciAddress.parse("01:00.0")
AUDIO = PciAddress.parse("01:00.1")
PORT = PciAddress.parse("00:04.0")
NIC = PciAddress.parse("02:00.0")
TWIN = PciAddress.parse("03:00.0")
DISK = PciAddress.parse("04:00.0")
SPARE = PciAddress.parse("05:00.0")
SHARED = (PciAddress.parse("06:01.0"), PciAddress.parse("06:02.0"))

GUEST = "6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a"
OTHER = "b7a1c9d2-8e5f-4a3b-a6c7-d8e9f0a1b2c3"

GROUP_FRIENDLY = ("vfio-pci", "pci-stub", "pcieport")


class Hangs(NoAnswer):
    """What a write that never comes back looks like to the one who waits for it with a deadline."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ETIMEDOUT, "no answer", path)


class SimulatedHost(Host):
    """A host whose files lie in a directory.

    Attributes:
        refusing: (driver, address) pairs whose probe fails.
        hanging: addresses whose host driver never comes back from its remove function.
        modules: drivers that modprobe would load, by device alias or by name.
        busy_groups: IOMMU groups that a running domain has open.
        claimed: device nodes of disks that are in use.
        numbers: device numbers of nodes, as major:minor.
        silent: attributes whose reading never comes back.
        calls: attribute writes in order, as (path below /sys, value).
        memory: pages that each pool of huge pages can have; None for any number.
        compacted: the same once memory has been compacted.
        fixed_interrupts: those that cannot be moved.
        most_functions: how many virtual functions drivers can set up before they fail; None for any number.
        has_systemd_failing: whether systemctl fails.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.refusing: set[tuple[str, PciAddress]] = set()
        self.hanging: set[PciAddress] = set()
        self.modules: dict[str, str] = {}
        self.busy_groups: set[int] = set()
        self.claimed: set[str] = set()
        self.numbers: dict[str, str] = {}
        self.silent: set[str] = set()
        self.calls: list[tuple[str, str]] = []
        self.memory: int | None = None
        self.compacted: int | None = None
        self.fixed_interrupts = {"0"}
        self.has_systemd_failing = False
        self.most_functions: int | None = None

    # building

    def put(self, path: str, content: str | bytes = "") -> None:
        """Write a file."""
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link to a path of this host, relative as those in sysfs."""
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        if os.path.lexists(self.path(path)):
            os.unlink(self.path(path))
        os.symlink(os.path.relpath(self.path(target), os.path.dirname(self.path(path))), self.path(path))

    def add_driver(self, name: str) -> None:
        """Register a driver."""
        for attribute in ("bind", "unbind"):
            self.put(f"/sys/bus/pci/drivers/{name}/{attribute}")

    def add_device(
        self,
        address: PciAddress,
        *,
        class_code: int = 0x020000,
        ids: tuple[int, int, int, int] = (0x8086, 0x10D3, 0x8086, 0),
        group: int | None = None,
        native: str | None = None,
        parent: str = "/sys/devices/pci0000:00",
        header_type: int = 0,
        is_bound: bool = True,
    ) -> str:
        """Add a device and, unless told otherwise, bind it to its native driver.

        Returns:
            its real directory.
        """
        real = f"{parent}/{address}"
        config = bytearray(64)
        config[0x0E] = header_type
        self.put(f"{real}/config", bytes(config))
        for name, value in zip(
            ("vendor", "device", "subsystem_vendor", "subsystem_device"), ids, strict=True
        ):
            self.put(f"{real}/{name}", f"0x{value:04x}\n")
        self.put(f"{real}/class", f"0x{class_code:06x}\n")
        self.put(
            f"{real}/modalias",
            f"pci:v{ids[0]:08X}d{ids[1]:08X}sv{ids[2]:08X}sd{ids[3]:08X}"
            f"bc{class_code >> 16:02X}sc{class_code >> 8 & 0xFF:02X}i{class_code & 0xFF:02X}\n",
        )
        self.put(f"{real}/driver_override", "(null)\n")
        self.put(f"{real}/native", native or "")
        self.link(f"/sys/bus/pci/devices/{address}", real)
        if group is not None:
            self.link(f"{real}/iommu_group", f"/sys/kernel/iommu_groups/{group}")
            self.link(f"/sys/kernel/iommu_groups/{group}/devices/{address}", real)
            self.put(f"/sys/kernel/iommu_groups/{group}/reserved_regions", "0xfee00000 0xfeefffff msi\n")
        if native is not None:
            if not self.exists(f"/sys/bus/pci/drivers/{native}"):
                self.add_driver(native)
            if is_bound:
                self._bind(address, native)
        self._write_uevent(address)
        return real

    def add_functions(self, address: PciAddress, total: int, driver: str, group: int) -> None:
        """Let a device have virtual functions, as an 82576 numbers them.

        Args:
            address: the device.
            total: how many it can have.
            driver: what would take them.
            group: IOMMU group of the first one.
        """
        path = f"/sys/bus/pci/devices/{address}"
        self.add_driver(driver)
        self.put(f"{path}/sriov_totalvfs", f"{total}\n")
        self.put(f"{path}/sriov_numvfs", "0\n")
        self.put(f"{path}/sriov_drivers_autoprobe", "1\n")
        self.put(f"{path}/sriov_offset", "128\n")
        self.put(f"{path}/sriov_stride", "2\n")
        self.put(f"{path}/native_of_functions", f"{driver} {group}\n")

    def add_mediated_type(self, parent: PciAddress, name: str, available: int, label: str = "") -> None:
        """Let a device offer mediated devices of a type."""
        path = f"/sys/bus/pci/devices/{parent}/mdev_supported_types/{name}"
        self.link(f"/sys/class/mdev_bus/{parent}", self.real_path(f"/sys/bus/pci/devices/{parent}"))
        self.put(f"{path}/create")
        self.put(f"{path}/available_instances", f"{available}\n")
        self.put(f"{path}/device_api", "vfio-pci\n")
        if label:
            self.put(f"{path}/name", f"{label}\n")

    def switch_iommu_off(self) -> None:
        """Take all IOMMU groups away, as a boot without IOMMU does."""
        for address in self.state():
            path = self.path(f"/sys/bus/pci/devices/{address}/iommu_group")
            if os.path.lexists(path):
                os.unlink(path)
        os.rename(self.path("/sys/kernel/iommu_groups"), self.path("/sys/kernel/none"))

    # the kernel

    def state(self) -> dict[PciAddress, tuple[str | None, str]]:
        """Return driver and override of every device."""
        found = {}
        for name in self.names("/sys/bus/pci/devices"):
            path = f"/sys/bus/pci/devices/{name}"
            found[PciAddress.parse(name)] = (
                self.link_name(path + "/driver"),
                self.read(path + "/driver_override") or "",
            )
        return found

    def read_attribute(self, path: str, deadline: float) -> str:
        if path in self.silent:
            raise Hangs(path)
        content = self.read(path)
        if content is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return content

    def read_device(self, path: str, limit: int, deadline: float) -> bytes:
        if path in self.silent:
            raise Hangs(path)
        content = self.read_bytes(path, limit)
        if content is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return content

    def using(self, processes: list[str], nodes: dict[str, str], deadline: float) -> dict[str, str]:
        found = {}
        for process in processes:
            links = [
                self.link_target(f"/proc/{process}/fd/{one}") for one in self.names(f"/proc/{process}/fd")
            ]
            lines = (self.read(f"/proc/{process}/maps") or "").splitlines()
            if used := [
                one for one in nodes if one in links or any(line.endswith(f" {one}") for line in lines)
            ]:
                found[process] = used[0]
        return found

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        self.calls.append((path, value))
        parts = path.split("/")
        if path == "/sys/bus/pci/drivers_probe":
            self._probe(PciAddress.parse(value))
        elif parts[-1] == "driver_override":
            if not self.exists(path):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.put(path, "(null)\n" if value == "\n" else value.rstrip("\n") + "\n")
        elif parts[-1] == "unbind" and parts[-3] == "drivers":
            self._unbind(PciAddress.parse(value), parts[-2])
        elif parts[-1] == "sriov_numvfs":
            self._set_functions(path.removesuffix("/sriov_numvfs"), int(value))
        elif parts[-1] == "create" and "mdev_supported_types" in parts:
            self._make_mediated(path.removesuffix("/create"), value)
        elif parts[-1] == "remove" and path.startswith("/sys/bus/mdev/devices/"):
            self._remove_mediated(path.removesuffix("/remove"))
        elif not self._write_tuning(path, parts, value):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def is_claimed(self, path: str) -> bool:
        return path in self.claimed

    def device_number(self, path: str) -> str | None:
        return self.numbers.get(path)

    def device_node_is_busy(self, path: str) -> bool:
        return path.rpartition("/")[2] in self._busy()

    def run(self, argv: list[str], deadline: float) -> int | None:
        if argv[:3] == ["/usr/bin/systemctl", "set-property", "--runtime"]:
            return 1 if self.has_systemd_failing else self._set_property(argv[3], argv[4])
        driver = self.modules.get(argv[-1])
        if driver is None:
            return 1
        self.add_driver(driver)
        for address in self.state():
            self._probe(address)
        return 0

    # processors and memory

    def use_pages(self, count: int, size: int = 2048) -> None:
        """Let a process take pages that are free, or (a negative number) give them back."""
        pool = self._pools(size)[0]
        free, surplus = self.count(pool, "free") - count, self.count(pool, "surplus")
        # Surplus goes back to the kernel when it goes out of use.
        freed = min(surplus, free) if count < 0 else 0
        assert free >= 0
        self._put_counts(pool, nr=self.count(pool, "nr") - freed, free=free - freed, surplus=surplus - freed)

    def count(self, pool: str, name: str) -> int:
        """Return a counter of a pool of huge pages."""
        return int(self.read(f"{pool}/{name}_hugepages") or 0)

    def _pools(self, size: int) -> list[str]:
        name = f"hugepages-{size}kB"
        nodes = [f"/sys/devices/system/node/{node}/hugepages/{name}" for node in ("node0", "node1")]
        return [f"/sys/kernel/mm/hugepages/{name}", *(node for node in nodes if self.exists(node))]

    def _put_counts(self, pool: str, **counts: int) -> None:
        for name, count in counts.items():
            self.put(f"{pool}/{name}_hugepages", f"{count}\n")

    def _write_tuning(self, path: str, parts: list[str], value: str) -> bool:
        if not self.exists(path):
            return False
        if parts[-1] == "nr_hugepages":
            self._resize(path.removesuffix("/nr_hugepages"), int(value))
        elif parts[-1] == "sriov_drivers_autoprobe":
            self.put(path, value + "\n")
        elif parts[-1] == "compact_memory":
            self.memory = self.compacted
        elif parts[-1] == "smp_affinity_list":
            if parts[-2] in self.fixed_interrupts:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            self.put(path, value + "\n")
        elif parts[-1] == "scaling_governor":
            known = self.read(path.replace("scaling_governor", "scaling_available_governors")) or ""
            if value not in known.split():
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            self.put(path, value + "\n")
        else:
            return False
        return True

    def _resize(self, pool: str, wanted: int) -> None:
        """Set the number of persistent pages of a pool; a node's pages are the host's too."""
        everywhere, *nodes = self._pools(int(pool.rpartition("-")[2].removesuffix("kB")))
        if pool in nodes or not nodes:
            changes = [(pool, wanted - self._persistent(pool))]
        else:
            change = wanted - self._persistent(everywhere)
            half = change // 2
            room = [self.count(node, "free") for node in nodes]
            if change < 0:
                half = max(-room[0], min(half, change + room[1]))
            changes = [(nodes[0], half), (nodes[1], change - half)]
        for one, change in changes:
            for counted in {one, everywhere}:
                self._grow(counted, change)

    def _persistent(self, pool: str) -> int:
        return self.count(pool, "nr") - self.count(pool, "surplus")

    def _grow(self, pool: str, change: int) -> None:
        nr, free, surplus = (self.count(pool, name) for name in ("nr", "free", "surplus"))
        if change > 0:
            taken_in = min(surplus, change)
            added = change - taken_in
            if self.memory is not None:
                added = max(min(added, self.memory - nr), 0)
            self._put_counts(pool, nr=nr + added, free=free + added, surplus=surplus - taken_in)
        else:
            freed = min(free, -change)
            self._put_counts(pool, nr=nr - freed, free=free - freed, surplus=surplus - change - freed)

    def _set_property(self, unit: str, assignment: str) -> int:
        _, _, value = assignment.partition("=")
        control = "transient" if unit == "init.scope" else "system.control"
        kind = unit.rpartition(".")[2].capitalize()
        self.put(f"/run/systemd/{control}/{unit}.d/50-AllowedCPUs.conf", f"[{kind}]\nAllowedCPUs={value}\n")
        # The control group exists while something runs in it, and then cannot be left without a CPU.
        if value and self.exists(f"/sys/fs/cgroup/{unit}"):
            self.put(f"/sys/fs/cgroup/{unit}/cpuset.cpus", f"{value}\n")
        return 0

    # virtual functions and mediated devices

    def _set_functions(self, path: str, count: int) -> None:
        present = int(self.read(f"{path}/sriov_numvfs") or 0)
        if count == present:
            return
        for is_wrong, number in (
            (count > int(self.read(f"{path}/sriov_totalvfs") or 0), errno.ERANGE),
            (not self.exists(f"{path}/driver"), errno.ENOENT),
            (bool(count and present), errno.EBUSY),
            (self.most_functions is not None and count > self.most_functions, errno.ENOMEM),
        ):
            if is_wrong:
                raise OSError(number, os.strerror(number), path)
        physical = self.real_path(path)
        owner = PciAddress.parse(physical.rpartition("/")[2])
        driver, _, group = (self.read(f"{path}/native_of_functions") or "").partition(" ")
        for number in range(present):
            self._remove_function(f"{path}/virtfn{number}")
        for number in range(count):
            address = PciAddress(owner.domain, owner.bus, 0x10 + number // 4, 2 * (number % 4))
            is_probed = self.read(f"{path}/sriov_drivers_autoprobe") == "1"
            above = physical.rpartition("/")[0]
            ids = (0x8086, 0x10CA, 0x8086, 0)
            real = self.add_device(
                address, ids=ids, group=int(group) + number, native=driver, parent=above, is_bound=is_probed
            )
            self.link(f"{real}/physfn", physical)
            self.link(f"{physical}/virtfn{number}", real)
        self.put(f"{path}/sriov_numvfs", f"{count}\n")

    def _remove_function(self, link: str) -> None:
        real = self.real_path(link)
        address = real.rpartition("/")[2]
        group = self.link_name(f"{real}/iommu_group")
        if PciAddress.parse(address) in self.hanging or group in self._busy():
            raise Hangs(link)
        for one in (
            link,
            f"/sys/bus/pci/devices/{address}",
            f"/sys/kernel/iommu_groups/{group}/devices/{address}",
        ):
            os.unlink(self.path(one))
        self._remove_tree(real)

    def _remove_tree(self, path: str) -> None:
        import shutil  # not at the top: the hook does without

        shutil.rmtree(self.path(path))

    def _make_mediated(self, path: str, uuid: str) -> None:
        left = int(self.read(f"{path}/available_instances") or 0)
        if self.exists(f"/sys/bus/mdev/devices/{uuid}") or not left:
            number = errno.ENOSPC if not left else errno.EEXIST
            raise OSError(number, os.strerror(number), path)
        parent = self.real_path(path).partition("/mdev_supported_types")[0]
        group = 100 + len(self.names("/sys/bus/mdev/devices"))
        self.put(f"{parent}/{uuid}/remove")
        self.link(f"{parent}/{uuid}/mdev_type", self.real_path(path))
        self.link(f"{parent}/{uuid}/iommu_group", f"/sys/kernel/iommu_groups/{group}")
        self.link(f"/sys/bus/mdev/devices/{uuid}", f"{parent}/{uuid}")
        self.put(f"{path}/available_instances", f"{left - 1}\n")

    def _remove_mediated(self, link: str) -> None:
        if self.link_name(f"{link}/iommu_group") in self._busy():
            raise Hangs(link)
        path = self.real_path(f"{link}/mdev_type")
        left = int(self.read(f"{path}/available_instances") or 0)
        self._remove_tree(self.real_path(link))
        os.unlink(self.path(link))
        self.put(f"{path}/available_instances", f"{left + 1}\n")

    def _busy(self) -> list[str | None]:
        return [str(group) for group in self.busy_groups]

    def _device(self, address: PciAddress) -> str:
        path = f"/sys/bus/pci/devices/{address}"
        if not self.exists(path):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
        return path

    def _probe(self, address: PciAddress) -> None:
        path = self._device(address)
        if self.exists(path + "/driver"):
            return
        override = self.read(path + "/driver_override")
        is_manual = self.read(path + "/physfn/sriov_drivers_autoprobe") == "0"
        if is_manual and override in (None, "(null)"):
            return
        driver = override if override not in (None, "(null)") else self.read(path + "/native")
        if (
            not driver
            or not self.exists(f"/sys/bus/pci/drivers/{driver}")
            or (driver, address) in self.refusing
        ):
            return
        group = self.link_name(path + "/iommu_group")
        if driver not in GROUP_FRIENDLY and group in self._busy():
            return
        self._bind(address, driver)

    def _bind(self, address: PciAddress, driver: str) -> None:
        path = f"/sys/bus/pci/devices/{address}"
        os.symlink(f"../../../bus/pci/drivers/{driver}", self.path(path + "/driver"))
        if driver == "vfio-pci" and (group := self.link_name(path + "/iommu_group")):
            self.put(f"/dev/vfio/{group}")
        self._write_uevent(address)

    def _unbind(self, address: PciAddress, driver: str) -> None:
        path = self._device(address)
        if self.link_name(path + "/driver") != driver:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), path)
        if driver == "vfio-pci":
            if self.link_name(path + "/iommu_group") in self._busy():
                raise Hangs(path)
        elif address in self.hanging:
            raise Hangs(path)
        os.unlink(self.path(path + "/driver"))
        self._write_uevent(address)

    def _write_uevent(self, address: PciAddress) -> None:
        path = f"/sys/bus/pci/devices/{address}"
        values = [
            self.read(f"{path}/{name}") or "0x0"
            for name in ("vendor", "device", "subsystem_vendor", "subsystem_device")
        ]
        ids = [value[2:].upper() for value in values]
        driver = self.link_name(f"{path}/driver")
        lines = [f"DRIVER={driver}"] if driver else []
        lines += [f"PCI_CLASS={int(self.read(path + '/class') or '0', 16):X}", f"PCI_ID={ids[0]}:{ids[1]}"]
        lines += [f"PCI_SUBSYS_ID={ids[2]}:{ids[3]}", f"PCI_SLOT_NAME={address}", ""]
        self.put(f"{path}/uevent", "\n".join(lines))


def desktop(root: str) -> SimulatedHost:
    """Build a host with a card and its audio function, twin NICs, the boot disk, and a group of two."""
    host = SimulatedHost(root)
    for driver in ("vfio-pci", "pcieport"):
        host.add_driver(driver)
    host.put("/sys/module/vfio_iommu_type1/initstate", "live\n")
    os.makedirs(host.path("/proc"), exist_ok=True)
    behind = host.add_device(
        PORT, class_code=0x060400, header_type=1, group=4, native="pcieport", ids=(0x1B36, 0xC, 0, 0)
    )
    host.add_device(
        CARD,
        class_code=0x030000,
        ids=(0x1234, 0x1111, 0x1AF4, 0x1100),
        group=10,
        native="bochs-drm",
        parent=behind,
    )
    host.add_device(
        AUDIO,
        class_code=0x040300,
        ids=(0x8086, 0x2668, 0x1AF4, 0x1100),
        group=10,
        native="snd_hda_intel",
        parent=behind,
    )
    host.add_device(NIC, group=11, native="e1000e")
    host.add_device(TWIN, group=12, native="e1000e")
    disk = host.add_device(
        DISK, class_code=0x010802, ids=(0x1B36, 0x10, 0x1AF4, 0x1100), group=13, native="nvme"
    )
    block = f"{disk}/nvme/nvme0/nvme0n1/nvme0n1p1"
    host.put(f"{block}/dev", "259:1\n")
    host.link("/sys/dev/block/259:1", block)
    host.link("/sys/class/block/nvme0n1p1", block)
    host.put("/proc/self/mountinfo", "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n")
    host.add_device(SPARE, class_code=0x00FF00, ids=(0x1234, 0x11E8, 0x1AF4, 0x1100), group=14)
    for address in SHARED:
        host.add_device(address, group=15, native="e1000")
    return host


def add_processors(host: SimulatedHost, *, nodes: int = 1) -> None:
    """Give a host eight processors, frequency policies, interrupts, huge pages and systemd."""
    for which in ("online", "possible"):
        host.put(f"/sys/devices/system/cpu/{which}", "0-7\n")
    for cpu in range(8):
        # Two processors share a policy.
        policy = f"/sys/devices/system/cpu/cpufreq/policy{cpu & ~1}"
        host.put(f"{policy}/scaling_governor", "powersave\n")
        host.put(f"{policy}/scaling_available_governors", "performance powersave\n")
        host.link(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq", policy)
    for number, cpus in (("0", "0-7"), ("9", "0-1"), ("30", "0-7"), ("31", "2-3"), ("32", "2-5")):
        host.put(f"/proc/irq/{number}/smp_affinity_list", f"{cpus}\n")
    host.put("/proc/irq/default_smp_affinity", "ff\n")
    host.put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    for unit in ("user.slice", "system.slice", "init.scope", "machine.slice"):
        host.put(f"/sys/fs/cgroup/{unit}/cgroup.procs", "1\n")
    os.makedirs(host.path("/run/systemd/system"), exist_ok=True)
    host.put("/usr/bin/systemctl")
    host.put("/proc/meminfo", "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\nHugepagesize: 2048 kB\n")
    host.put("/proc/sys/vm/compact_memory")
    for size in (2048, 1048576):
        name = f"hugepages-{size}kB"
        above = (
            [f"/sys/devices/system/node/node{node}/hugepages" for node in range(nodes)] if nodes > 1 else []
        )
        for directory in ("/sys/kernel/mm/hugepages", *above):
            for counter in ("nr", "free", "surplus", "resv"):
                host.put(f"{directory}/{name}/{counter}_hugepages", "0\n")


def cutting(
    call: Callable[..., None], left: list[int], end: type[BaseException], *, is_done: bool
) -> Callable[..., None]:
    """Let a number of calls of several methods through, and end the next one before it happens or after."""

    def wrapped(*arguments: object) -> None:
        left[0] -= 1
        if left[0] == -1 and not is_done:
            raise end(errno.EIO, os.strerror(errno.EIO))
        call(*arguments)
        if left[0] == -1:
            raise end(errno.EIO, os.strerror(errno.EIO))

    return wrapped


def domain_xml(
    *addresses: PciAddress,
    uuid: str = GUEST,
    name: str = "guest",
    metadata: str | None = None,
    managed: str = "yes",
    tuning: str = "",
) -> bytes:
    """Return a domain as libvirt formats it for the hook, with our metadata unless it is given.

    Args:
        addresses: its devices.
        uuid: its UUID.
        name: its name.
        metadata: what its metadata element has.
        managed: how libvirt is to treat the devices.
        tuning: elements about memory and processors.
    """
    if metadata is None:
        metadata = (
            "<virtpass:passthrough xmlns:virtpass='urn:virtpass:passthrough:1'>"
            "<virtpass:policy display='refuse'/></virtpass:passthrough>"
        )
    hostdevs = "\n".join(
        f"    <hostdev mode='subsystem' type='pci' managed='{managed}'>\n      <source>\n        <address "
        f"domain='0x{a.domain:04x}' bus='0x{a.bus:02x}' slot='0x{a.slot:02x}' function='0x{a.function:x}'/>\n"
        "      </source>\n    </hostdev>"
        for a in addresses
    )
    return (
        f"<domain type='kvm' id='3'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n"
        f"  <metadata>\n    {metadata}\n  </metadata>\n  <memory unit='KiB'>262144</memory>\n{tuning}"
        f"  <devices>\n{hostdevs}\n  </devices>\n</domain>\n"
    ).encode()
