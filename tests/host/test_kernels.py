"""The installed kernels: found where they are, and what each of them has."""

import gzip
import os
import time
from pathlib import Path

import pytest

from tests.host.rows import Link, build, kernel
from virtpass.host.facts import os_release, read_facts
from virtpass.host.kernels import Kernel, Presence, configuration, installed_kernels
from virtpass.host.mounts import mount_of, mounts
from virtpass.system.host import Host

ONE = "6.12.0-1-amd64"


def only(host: Host) -> Kernel:
    (found,) = installed_kernels(host)
    return found


def indexed(root: Path, dep: bytes = b"", builtin: bytes = b"", alias: bytes = b"") -> Kernel:
    base = f"/usr/lib/modules/{ONE}"
    files: dict[str, str | bytes | Link | None] = {
        f"{base}/modules.dep": dep,
        f"{base}/modules.builtin": builtin,
        f"{base}/modules.alias": alias,
    }
    return only(build(root, files))


@pytest.mark.parametrize("suffix", [".ko", ".ko.gz", ".ko.xz", ".ko.zst"])
def test_a_module_is_found_whatever_its_compression_and_spelling(tmp_path: Path, suffix: str) -> None:
    found = indexed(
        tmp_path,
        f"kernel/drivers/vfio/pci/vfio-pci{suffix}: kernel/drivers/vfio/vfio_virqfd{suffix}\n".encode(),
        b"kernel/drivers/usb/host/xhci-pci.ko\n",
    )
    assert found.presence("vfio_pci") is found.presence("vfio-pci") is Presence.MODULE
    assert found.presence("xhci_pci") is Presence.BUILT_IN
    # It stands in the line of another module only.
    assert found.presence("vfio_virqfd") is Presence.MISSING


def test_usr_is_looked_at_first_and_lib_where_it_is_not_merged(tmp_path: Path) -> None:
    old = {f"/lib/modules/5.10.0/{name}": "" for name in ("modules.dep", "modules.builtin")}
    assert only(build(tmp_path / "split", old)).version == "5.10.0"
    both: dict[str, str | bytes | Link | None] = {**kernel(ONE), "/lib": Link("usr/lib")}
    assert only(build(tmp_path / "merged", both)).version == ONE


def test_what_a_removed_kernel_has_left_behind_is_no_kernel(tmp_path: Path) -> None:
    files = {
        **kernel(ONE),
        "/usr/lib/modules/6.1.0-9-amd64/updates/dkms/nvidia.ko": "",
        "/usr/lib/modules/.keep": "",
    }
    assert only(build(tmp_path, files)).version == ONE


def test_kernels_are_in_the_order_of_their_versions(tmp_path: Path) -> None:
    versions = ["6.12.10-1", "6.12.9-1", "6.2.0-1", "6.12.0-rc1", "6.12-rc3-arch1", "5.4.0", "strange"]
    files = {path: text for one in versions for path, text in kernel(one).items()}
    found = installed_kernels(build(tmp_path, files))
    ordered = ["strange", "5.4.0", "6.2.0-1", "6.12-rc3-arch1", "6.12.0-rc1", "6.12.9-1", "6.12.10-1"]
    assert [one.version for one in found] == ordered
    assert [one.number for one in found] == [(0, 0), (5, 4), (6, 2), *[(6, 12)] * 4]


def test_rubbish_in_an_index_is_no_module(tmp_path: Path) -> None:
    found = indexed(
        tmp_path,
        os.urandom(4096) + b"\nkernel/vfio-pci.ko.xz:\n\xff\xfe.ko\n:\n/.ko\n" + b"x" * 100_000,
        b"\0" * 4096,
        b"alias\nalias pci:v\nalias pci:v* a b\n\xff\xff\xff\nalias pci:v0000[8086d* broken\n",
    )
    assert found.presence("vfio-pci") is Presence.MODULE
    assert found.presence("e1000e") is Presence.MISSING
    assert found.takers("pci:v00008086d000010D3") == ()


def test_an_index_without_end_is_read_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / f"usr/lib/modules/{ONE}"
    path.mkdir(parents=True)
    with (path / "modules.dep").open("wb") as file:
        file.write(b"kernel/vfio-pci.ko:\n")
        file.truncate(1 << 40)
    (path / "modules.builtin").mkdir()
    found = only(Host(os.fspath(tmp_path)))
    assert found.presence("vfio-pci") is Presence.MODULE


def test_takers_of_a_device_are_found_in_an_index_of_real_size_in_no_time(tmp_path: Path) -> None:
    lines = [
        f"alias pci:v0000{vendor:04X}d0000{device:04X}sv*sd*bc*sc*i* driver_{vendor}\n"
        for vendor in range(0x1000, 0x1000 + 200)
        for device in range(100)
    ]
    lines += [
        "alias pci:v*d*sv*sd*bc0Csc03i30* xhci-pci\n",
        "alias pci:v000010DEd*sv*sd*bc03sc00i00* nouveau\n",
        "alias pci:v000010DEd*sv*sd*bc03sc00i00* nvidia\n",
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n",
    ]
    found = indexed(tmp_path, alias="".join(lines).encode())
    begin = time.process_time()
    card = found.takers("pci:v000010DEd00001B06sv00001043sd000085EAbc03sc00i00")
    usb = [found.takers(f"pci:v0000FFFFd0000{one:04X}sv0sd0bc0Csc03i30") for one in range(50)]
    assert time.process_time() - begin < 1
    assert card == ("nouveau", "nvidia")
    assert usb == [("xhci_pci",)] * 50


@pytest.mark.parametrize("path", [f"/boot/System.map-{ONE}", f"/usr/lib/modules/{ONE}/System.map"])
def test_the_acs_override_patch_shows_in_the_symbols(tmp_path: Path, path: str) -> None:
    plain = b"ffffffff81000000 T _text\n" * 1000
    assert not only(build(tmp_path / "stock", {**kernel(ONE), path: plain})).has_acs_override
    patched = plain + b"ffffffff8171f2a0 t pcie_acs_overrides\n"
    assert only(build(tmp_path / "patched", {**kernel(ONE), path: patched})).has_acs_override


def test_the_running_kernel_tells_its_symbols_itself(tmp_path: Path) -> None:
    files = {
        **kernel(ONE),
        "/proc/sys/kernel/osrelease": f"{ONE}\n",
        # Any user may read the names; the addresses are zeros then. Debian's other list is a single line.
        "/proc/kallsyms": "0000000000000000 t pcie_acs_overrides\n",
        f"/boot/System.map-{ONE}": "ffffffffffffffff B The real System.map is elsewhere\n",
    }
    assert only(build(tmp_path, files)).has_acs_override
    other = Kernel(Host(os.fspath(tmp_path)), "6.12.1-1-amd64", "/usr/lib/modules/6.12.1-1-amd64")
    assert not other.has_acs_override


MONOLITHIC = "# CONFIG_MODULES is not set\nCONFIG_VFIO=y\nCONFIG_VFIO_PCI=y\nCONFIG_VFIO_IOMMU_TYPE1=y\n"
RUNNING: dict[str, str | bytes | Link | None] = {"/proc/sys/kernel/osrelease": f"{ONE}\n"}


def kernels(host: Host) -> tuple[Kernel, ...]:
    return read_facts(host).kernels


@pytest.mark.parametrize("path", ["/proc/config.gz", f"/boot/config-{ONE}", f"/usr/lib/modules/{ONE}/config"])
def test_a_kernel_that_takes_no_modules_says_in_its_configuration_what_it_has(
    tmp_path: Path, path: str
) -> None:
    text = MONOLITHIC.encode()
    content = gzip.compress(text) if path.endswith(".gz") else text
    (found,) = kernels(build(tmp_path, {**RUNNING, path: content}))
    assert (found.version, found.is_running) == (ONE, True)
    assert found.presence("vfio-pci") is found.presence("vfio_iommu_type1") is Presence.BUILT_IN
    assert found.presence("pci-stub") is found.presence("nouveau") is Presence.MISSING


def test_such_a_kernel_stands_beside_those_that_take_modules(tmp_path: Path) -> None:
    other = "5.15.0-9-generic"
    host = build(
        tmp_path, {**RUNNING, **kernel(other), "/proc/config.gz": gzip.compress(MONOLITHIC.encode())}
    )
    assert [one.version for one in kernels(host)] == [other, ONE]


def test_a_kernel_whose_modules_are_gone_is_not_installed(tmp_path: Path) -> None:
    """So it is on Arch after an update, until the reboot."""
    text = MONOLITHIC.replace("# CONFIG_MODULES is not set", "CONFIG_MODULES=y")
    assert kernels(build(tmp_path, {**RUNNING, "/proc/config.gz": gzip.compress(text.encode())})) == ()


def test_the_configuration_of_another_kernel_says_nothing(tmp_path: Path) -> None:
    """Below the root of a host that does not run, /proc is that of the rescue system."""
    rescue = {
        **RUNNING,
        "/proc/config.gz": gzip.compress(MONOLITHIC.encode()),
        "/proc/self": Link(str(os.getpid())),
    }
    assert kernels(build(tmp_path, rescue)) == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(MONOLITHIC.encode())[:-9],
        gzip.compress(MONOLITHIC.encode() + b"#" * (64 << 20)),
    ],
    ids=["empty", "other", "cut off", "endless"],
)
def test_a_configuration_that_cannot_be_read_says_nothing(tmp_path: Path, content: bytes) -> None:
    host = build(tmp_path, {**RUNNING, "/proc/config.gz": content})
    begin = time.process_time()
    assert configuration(host, ONE, is_running=True) == ""
    assert time.process_time() - begin < 1
    assert kernels(host) == ()


def test_an_index_of_what_is_built_in_is_believed(tmp_path: Path) -> None:
    host = build(tmp_path, {**RUNNING, **kernel(ONE), "/proc/config.gz": gzip.compress(MONOLITHIC.encode())})
    assert only(host).presence("vfio-pci") is Presence.MODULE
    os.unlink(host.path(f"/usr/lib/modules/{ONE}/modules.dep"))
    assert only(host).presence("vfio-pci") is Presence.MISSING
    (tmp_path / f"usr/lib/modules/{ONE}/modules.dep").touch()
    os.unlink(host.path(f"/usr/lib/modules/{ONE}/modules.builtin"))
    assert only(host).presence("vfio-pci") is Presence.BUILT_IN


def test_facts_of_a_host_that_says_nothing(tmp_path: Path) -> None:
    facts = read_facts(Host(os.fspath(tmp_path)))
    assert facts.distribution_name == "an unknown distribution"
    assert (facts.loader, facts.running, facts.kernels, facts.is_uefi) == ("", (), (), False)


def test_os_release_with_quotes_comments_and_rubbish(tmp_path: Path) -> None:
    text = '# comment\nID=\'arch\'\nID_LIKE="a b"\nBAD-NAME=1\nNOTHING\nPRETTY_NAME="My \\"OS\\""\r\n'
    values = os_release(build(tmp_path, {"/usr/lib/os-release": text}))
    assert values["ID"] == "arch"
    assert values["ID_LIKE"] == "a b"
    assert "BAD-NAME" not in values
    assert "\r" not in values["PRETTY_NAME"]


MOUNTINFO = (
    "22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n"
    "23 22 259:2 / /boot ro,relatime shared:2 - vfat /dev/nvme0n1p2 rw\n"
    "24 22 0:40 / /mnt/with\\040blank rw - tmpfs tmpfs rw\n"
    "nonsense\n"
    "25 22 254:0 / /home rw - ext4 /dev/mapper/vg-home rw\n"
)


def test_a_path_lies_on_the_innermost_mount(tmp_path: Path) -> None:
    host = build(tmp_path, {"/proc/self/mountinfo": MOUNTINFO})
    found = {
        path: mount_of(host, path) for path in ("/etc", "/boot/grub", "/bootx", "/home", "/mnt/with blank")
    }
    assert {path: one and one.point for path, one in found.items()} == {
        "/etc": "/",
        "/boot/grub": "/boot",
        "/bootx": "/",
        "/home": "/home",
        "/mnt/with blank": "/mnt/with blank",
    }
    assert [one.point for one in mounts(host) if one.is_read_only] == ["/boot"]
    assert [one.point for one in mounts(host) if one.is_stacked] == ["/home"]


def test_below_a_rescue_system_mounts_are_those_below_its_directory(tmp_path: Path) -> None:
    root = os.fspath(tmp_path)
    lines = [
        "22 1 0:1 / / rw - overlay overlay rw",
        "23 22 0:2 / /boot rw - vfat /dev/usb rw",
        f"30 22 259:1 / {root} rw - ext4 /dev/nvme0n1p1 rw",
        f"31 30 259:2 / {root}/boot rw - ext4 /dev/nvme0n1p2 rw",
        f"32 22 259:3 / {root}2 rw - ext4 /dev/other rw",
    ]
    host = build(tmp_path, {"/proc/self/mountinfo": "\n".join(lines) + "\n"})
    assert [(one.point, one.source) for one in mounts(host)] == [
        ("/", "/dev/nvme0n1p1"),
        ("/boot", "/dev/nvme0n1p2"),
    ]


def test_no_mounts_are_known_without_proc(tmp_path: Path) -> None:
    assert mount_of(Host(os.fspath(tmp_path)), "/boot") is None
