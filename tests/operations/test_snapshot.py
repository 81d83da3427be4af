"""Snapshots: commands say of one what they say of its host, and nothing in it tells whose that is."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.test_commands import Captured, call
from tests.host.rows import Programs, Row
from tests.host.test_rows import APPLIED, REFUSED, content, ready, wishes
from tests.simulation import (
    AUDIO,
    CARD,
    GUEST,
    NIC,
    OTHER,
    SPARE,
    SimulatedHost,
    add_processors,
    desktop,
    domain_xml,
)
from virtpass.hook.entry import run
from virtpass.hook.install import HOOK, INTERPRETER, hook_status, install
from virtpass.host.initramfs import GENERATORS
from virtpass.operations import host_preparation, snapshot
from virtpass.operations.doctor import look_outside
from virtpass.operations.snapshot_files import collect
from virtpass.operations.snapshot_masks import Masks
from virtpass.system.archive import unpack
from virtpass.system.commands import output_of, run_command
from virtpass.system.errors import (
    EXIT_NOT_FOUND,
    EXIT_REFUSED,
    EXIT_USAGE,
    PermissionDeniedError,
    RefusedError,
    UsageError,
)
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection
from virtpass.system.recorded import RecordedDomainState, RecordedHost, RecordedLibvirt
from virtpass.system.recorded_libvirt import RecordedConnection, connect

KEY = b"the same in every test"
SERIAL = "0011223344556677"
MACHINE = "0123456789abcdef0123456789abcdef"
MAC = "52:54:00:12:34:56"
# Who could tell whose host it is.
SECRETS = (
    GUEST,
    OTHER,
    SERIAL,
    MACHINE,
    MAC,
    "525400123456",
    "bobs-tower",
    "bobs--tower",
    "bob",
    "hunter2",
    "S3RIAL",
)

POLICY = "<v:policy display='hand-over' wait='20'/>"
HAND_OVER = f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'>{POLICY}</v:passthrough>"


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> list[RecordedDomainState]:
    """A libvirt that has the domains of a list."""
    domains: list[RecordedDomainState] = []

    def opened(*_: object, **__: object) -> Connection:
        return RecordedConnection(RecordedLibvirt(9_000_000, tuple(domains), None, False))

    monkeypatch.setattr(Connection, "open", opened)
    return domains


def domain(
    xml: bytes, name: str = "guest", uuid: str = GUEST, *, is_active: bool = False
) -> RecordedDomainState:
    return RecordedDomainState(name, uuid, is_active, True, False, xml.decode())


def inhabited(host: SimulatedHost) -> SimulatedHost:
    """A host on which somebody lives, and everything that virtpass looks at is there."""
    add_processors(host)
    device = f"/sys/bus/pci/devices/{CARD}"
    config = bytearray(4096)
    config[0x100:0x104] = (3).to_bytes(4, "little")
    config[0x104:0x10C] = int(SERIAL, 16).to_bytes(8, "little")
    host.put(f"{device}/config", bytes(config))
    host.put(f"{device}/reset_method", "flr bus\n")
    host.put(f"{device}/boot_vga", "1\n")
    host.put(f"{device}/power/control", "auto\n")
    host.put(f"{device}/resource", "0x00000000fd000000 0x00000000fdffffff 0x0000000000042208\n")
    host.put(f"{device}/drm/card0/dev", "226:0\n")
    host.put(f"{device}/drm/card0/uevent", "DEVNAME=dri/card0\n")
    host.put(f"{device}/drm/card0/card0-HDMI-A-1/status", "connected\n")
    real = host.real_path(device)
    host.link("/sys/class/drm/card0", f"{real}/drm/card0")
    host.put(f"{device}/graphics/fb0/dev", "29:0\n")
    host.link("/sys/class/graphics/fb0", f"{real}/graphics/fb0")
    host.put("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device\n")
    host.put("/sys/class/vtconsole/vtcon1/bind", "1\n")
    host.put(
        f"/run/udev/data/+pci:{CARD}", "E:ID_VENDOR_FROM_DATABASE=Maker\nE:ID_MODEL_FROM_DATABASE=Card\n"
    )
    host.put("/proc/cpuinfo", "vendor_id\t: AuthenticAMD\nflags\t\t: fpu svm\n")
    host.put("/dev/kvm")
    kernel = "6.1.0-18-amd64"
    host.put("/proc/sys/kernel/osrelease", f"{kernel}\n")
    host.put("/proc/sys/kernel/hostname", "bobs-tower\n")
    host.put("/etc/hostname", "bobs-tower\n")
    host.put("/etc/machine-id", f"{MACHINE}\n")
    host.put("/etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n")
    host.put(
        "/proc/cmdline",
        f"root=/dev/mapper/bobs--tower-root quiet BOOTIF={MAC} systemd.machine_id={MACHINE}\n",
    )
    host.put("/proc/swaps", "Filename Type\n/dev/nvme0n1p1 partition\n")
    host.put("/proc/net/route", "Iface Destination\neth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n")
    host.link("/sys/class/net/eth0", f"{host.real_path(f'/sys/bus/pci/devices/{NIC}')}/net/eth0")
    host.put(f"/sys/bus/pci/devices/{NIC}/net/eth0/address", f"{MAC}\n")
    host.put(
        "/proc/bus/input/devices",
        f"I: Bus=0003\nU: Uniq={MAC}\nS: Sysfs={real.removeprefix('/sys')}/input0\n"
        "B: KEY=ffffffffffffffff fffffffffffffffe\n",
    )
    host.put(f"/lib/modules/{kernel}/modules.dep", "kernel/vfio-pci.ko:\nkernel/vfio_iommu_type1.ko:\n")
    host.put(f"/lib/modules/{kernel}/modules.builtin", "")
    host.put("/sys/class/iommu/ivhd0/name")
    host.put("/sys/kernel/security/lockdown", "[none] integrity confidentiality\n")
    host.put(
        "/proc/700/limits", "Max locked memory         unlimited            unlimited            bytes\n"
    )
    host.put("/etc/driverctl.d/0000:02:00.0", "vfio-pci\n")
    host.put("/etc/modprobe.d/x.conf", "options vfio-pci ids=1234:1111\n")
    host.put("/usr/bin/python3")
    host.put(HOOK, "#!/bin/sh\n")
    host.put("/etc/libvirt/hooks/qemu.d/other", f"#!/bin/sh\n# hunter2 {MAC}\n")
    os.chmod(host.path("/etc/libvirt/hooks/qemu.d/other"), 0o755)
    host.put("/etc/virtpass/hooks.d/prepare.d/10-step", "#!/bin/sh\n# hunter2\n")
    os.chmod(host.path("/etc/virtpass/hooks.d/prepare.d/10-step"), 0o755)
    host.put("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    host.put("/etc/grub.d/10_linux", "")
    host.put(
        "/boot/grub/grub.cfg",
        f"set superusers\npassword_pbkdf2 bob hunter2\nlinux /vmlinuz root=UUID={OTHER} quiet\n",
    )
    host.put("/usr/sbin/update-grub", "#!/bin/sh\n")
    host.put("/etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12"\n')
    host.put("/proc/812/comm", "Xorg\n")
    host.put("/proc/812/cgroup", "0::/system.slice/lightdm.service\n")
    host.put("/proc/812/fd/.keep")
    os.symlink("/dev/dri/card0", host.path("/proc/812/fd/11"))
    host.put("/proc/4711/comm", "hunter2\n")
    host.put("/run/systemd/sessions/3", "UID=1000\nUSER=bob\nSEAT=seat0\nVTNR=1\nREMOTE_HOST=bobs-tower\n")
    host.put("/usr/bin/systemctl", "#!/bin/sh\necho Id=lightdm.service\necho ActiveState=active\n")
    os.chmod(host.path("/usr/bin/systemctl"), 0o755)
    return host


def xml_of(bare: bytes) -> bytes:
    more = (
        f"<serial type='pty'/><interface type='network'><mac address='{MAC}'/></interface>"
        "<disk type='file'><source file='/home/bob/x.qcow2'/><serial>S3RIAL</serial></disk>"
        "<graphics type='vnc' passwd='hunter2'/></devices>"
    )
    return bare.replace(b"</devices>", more.encode()).replace(
        b"<memory", b"<description>hunter2</description><memory"
    )


COMMANDS: tuple[tuple[str, ...], ...] = (
    (),
    ("--json",),
    ("devices",),
    ("devices", "--json"),
    *(("device", "show", str(one), "--json") for one in (CARD, AUDIO, NIC)),
    ("device", "show", str(CARD)),
    ("doctor", "--all"),
    ("doctor", "--json"),
    ("host", "status"),
    ("host", "status", "--json"),
    ("host", "plan"),
    ("host", "plan", "--bind", str(CARD), "--pt", "--json"),
    ("hook", "status", "--json"),
    ("hook", "rehearse", "guest"),
    ("hook", "rehearse", "other", "--json"),
    ("domain", "show", "guest"),
    ("domain", "show", "other", "--json"),
)


class Looks:
    """Paths that were looked at on hosts that are no snapshot, and by which methods."""

    def __init__(self) -> None:
        self.at: dict[str, set[str]] = {}
        self.is_on = True


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    found = Looks()
    original = Host._resolved

    def resolved(self: Host, path: str, *, last: bool = True) -> str:
        if found.is_on and not isinstance(self, RecordedHost):
            found.at.setdefault(path, set()).add(sys._getframe(1).f_code.co_name)
        return original(self, path, last=last)

    monkeypatch.setattr(Host, "_resolved", resolved)
    return found


# A machine of which nothing is there.
NOWHERE = SimulatedHost("/nonexistent")
# Of the simulation alone.
SIMULATED = {"native"}


# Of processes, those that hold a device are in it.
UNNEEDED = {"/proc/4711/comm", "/proc/812/fd/.keep"}


def plain(text: str) -> str:
    """Return an output without what is a digest of something that is masked."""
    return re.sub(r"~virtpass-0-[0-9a-f]{8}", "~virtpass-0-DIGEST", text)


def compare(
    host: Host,
    capfd: Captured,
    tmp_path: Path,
    commands: tuple[tuple[str, ...], ...],
    looks: Looks | None = None,
) -> list[str]:
    """Take a snapshot and return what the commands say otherwise of it, or look at that it does not have."""
    looks = looks or Looks()
    looks.is_on = False
    file = os.fspath(tmp_path / "x.snapshot")
    (tmp_path / "x.snapshot").unlink(missing_ok=True)
    snapshot.take_snapshot(host, file, key=KEY)
    masks = snapshot.masks_of(host, collect(host), look_outside(host), KEY)
    wrong = []
    for words in commands:
        looks.is_on = True
        status, out, err = call(host, capfd, *words)  # type: ignore[arg-type]
        looks.is_on = False
        there = call(NOWHERE, capfd, *words, "--snapshot", file)
        expected = (status, plain(masks.text(out)), plain(masks.text(err)))
        if (there[0], plain(there[1]), plain(there[2])) != expected:
            wrong.append(f"{' '.join(words)}:\n--- host\n{expected}\n--- snapshot\n{there}")
    with snapshot.opened(file) as recorded:
        for path, how in looks.at.items():
            is_known = path in UNNEEDED or path.rpartition("/")[2] in SIMULATED
            if not is_known and host.exists(path) and not recorded.exists(masks.text(path)):
                wrong.append(f"{path} is missing ({how})")
    return wrong


@pytest.fixture
def lived(tmp_path: Path) -> SimulatedHost:
    return inhabited(desktop(os.fspath(tmp_path / "host")))


def test_commands_say_of_a_snapshot_what_they_say_of_the_host(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState], looks: Looks
) -> None:
    libvirt += [
        domain(xml_of(domain_xml(CARD, metadata=HAND_OVER))),
        domain(xml_of(domain_xml(NIC, uuid=OTHER, name="other")), "other", OTHER),
    ]
    assert compare(lived, capfd, tmp_path, COMMANDS, looks) == []
    assert len(looks.at) > 100


def test_the_same_with_a_framebuffer_of_the_firmware_that_somebody_has_open(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState], looks: Looks
) -> None:
    libvirt.append(domain(xml_of(domain_xml(CARD))))
    real = "/sys/devices/platform/efi-framebuffer.0"
    lived.link("/sys/bus/platform/devices/efi-framebuffer.0", real)
    lived.link("/sys/bus/platform/drivers/efi-framebuffer/efi-framebuffer.0", real)
    lived.put(f"{real}/graphics/fb0/dev", "29:0\n")
    lived.put(f"{real}/graphics/fb0/uevent", "MAJOR=29\nMINOR=0\nDEVNAME=fb0\n")
    lived.put(f"/sys/bus/pci/devices/{CARD}/boot_vga", "1\n")
    os.unlink(lived.path("/proc/812/fd/11"))
    os.symlink("/dev/fb0", lived.path("/proc/812/fd/11"))
    assert "Xorg (process 812, /dev/fb0)" in call(lived, capfd, "device", "show", str(CARD))[1]
    assert compare(lived, capfd, tmp_path, COMMANDS, looks) == []


def test_the_same_with_a_device_that_is_lent(
    host: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    xml = domain_xml(CARD, AUDIO)
    run(host, "prepare", xml)
    host.busy_groups.add(10)
    libvirt.append(domain(xml, is_active=True))
    wrong = compare(host, capfd, tmp_path.parent, tuple(one for one in COMMANDS if "other" not in one))
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("row", [*APPLIED, *REFUSED], ids=lambda row: row.name)
def test_the_plan_for_each_host_of_the_matrix_is_the_same(
    row: Row, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState], looks: Looks
) -> None:
    host = ready(row, tmp_path / "host")
    loader = ("--bootloader", row.bootloader) if row.bootloader else ()
    commands = (
        ("host", "status"),
        ("host", "plan", "--bind", str(CARD), *loader),
        ("host", "plan", "--kernel-arg", "mitigations=auto", "--no-fallback-entry", *loader),
    )
    assert compare(host, capfd, tmp_path, commands, looks) == []


def test_a_command_on_a_snapshot_does_not_look_at_this_machine(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState], looks: Looks
) -> None:
    libvirt += [domain(xml_of(domain_xml(CARD, metadata=HAND_OVER)))]
    file = tmp_path / "x"
    snapshot.take_snapshot(lived, os.fspath(file))
    looks.at.clear()
    before = sorted(os.listdir(tmp_path))
    for words in COMMANDS:
        call(lived, capfd, *words, "--snapshot", os.fspath(file))
    assert looks.at == {}
    assert sorted(os.listdir(tmp_path)) == before


def test_what_was_unpacked_is_gone_afterwards(
    lived: SimulatedHost,
    capfd: Captured,
    tmp_path: Path,
    libvirt: list[RecordedDomainState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = tmp_path / "tmp"
    room.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(room))
    file = os.fspath(tmp_path / "x")
    snapshot.take_snapshot(lived, file)
    with snapshot.opened(file) as host:
        (name,) = room.iterdir()
        assert stat.S_IMODE(name.stat().st_mode) == 0o700
        assert host.root == os.fspath(name)
    assert list(room.iterdir()) == []
    assert call(lived, capfd, "device", "show", "0b:00.0", "--snapshot", file)[0] == EXIT_NOT_FOUND
    assert list(room.iterdir()) == []


def test_a_hook_that_is_installed_is_so_in_the_snapshot(
    host: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    host.put("/etc/libvirt/qemu.conf")
    host.put(INTERPRETER)
    install(host)
    assert hook_status(host).state == "current"
    assert compare(host, capfd, tmp_path, ((), ("hook", "status"), ("doctor", "--all"))) == []
    os.chmod(host.path("/var/lib/virtpass/hook"), 0o777)
    os.chmod(host.path(HOOK), 0o644)
    assert hook_status(host).state == "not-executable"
    assert compare(host, capfd, tmp_path, (("hook", "status"),)) == []


def test_what_was_applied_to_the_host_is_in_the_snapshot(
    capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = (one for one in APPLIED if one.name == "debian-13-grub")
    for generator in GENERATORS:
        monkeypatch.setattr(type(generator), "content", content, raising=True)
    host = ready(row, tmp_path / "host")
    wanted = host_preparation.plan(host, wishes(row, host))
    host_preparation.apply(host, wanted, run=Programs(row.programs))
    commands = (
        ("host", "status"),
        ("host", "status", "--json"),
        ("host", "plan", "--pt"),
        ("doctor", "--all"),
    )
    assert compare(host, capfd, tmp_path, commands) == []


# masks


def test_nothing_tells_whose_host_it_is(
    lived: SimulatedHost, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    libvirt += [
        domain(xml_of(domain_xml(CARD, metadata=HAND_OVER))),
        domain(xml_of(domain_xml(NIC, uuid=OTHER, name="other")), "other", OTHER),
    ]
    run(lived, "prepare", domain_xml(SPARE, uuid=OTHER, name="other"))
    file = tmp_path / "x"
    snapshot.take_snapshot(lived, os.fspath(file))
    plain = gzip.decompress(file.read_bytes())
    raw = int(SERIAL, 16).to_bytes(8, "little")
    assert [one for one in (*(secret.encode() for secret in SECRETS), raw) if one in plain] == []
    # What has nothing to do with the owner is as it was.
    assert b"root=/dev/mapper/" in plain
    assert b"0000:01:00.0" in plain
    # As docs/snapshot.md says to look at it.
    shown = subprocess.run(["tar", "-xzOf", file], capture_output=True, check=True).stdout
    assert b"root=/dev/mapper/" in shown


def test_relations_stay_within_a_snapshot_and_not_between_two() -> None:
    one, other = Masks(), Masks()
    for text in (GUEST, MAC, MACHINE, "/home/bob"):
        masked = one.text(text)
        assert masked != text
        assert len(masked) == len(text)
        assert one.text(f"<{text}> {text} ") == f"<{masked}> {masked} "
        assert other.text(text) != masked
    # Written with and without dashes, in the name of an interface and as an address.
    assert one.text(GUEST).replace("-", "") == one.text(GUEST.replace("-", ""))
    assert one.text("enx525400123456") == "enx" + one.text(MAC).replace(":", "")


def test_files_within_the_record_of_the_host_are_masked_too() -> None:
    masks = Masks(KEY)
    inner = base64.b64encode(f"root=UUID={OTHER}".encode()).decode()
    record = json.dumps({"record": {"kept": [["/x", {"content": inner}, "left"]]}}).encode()
    found = json.loads(masks.content("/var/lib/virtpass/host/applied.json", record))
    told = base64.b64decode(found["record"]["kept"][0][1]["content"]).decode()
    assert told == f"root=UUID={masks.text(OTHER)}"


def test_words_of_the_system_are_no_names() -> None:
    masks = Masks()
    masks.keep(["ID=debian"])
    masks.add_names(["debian", "pc", "bobs-tower.example.org"])
    text = "debian pc /EFI/debian"
    assert masks.text(text) == text
    masked = masks.text("bobs-tower.example.org bobs-tower /dev/mapper/bobs--tower-root bobs-towers")
    assert "bobs-tower " not in masked
    assert "bobs--tower" not in masked
    assert masked.endswith("-root bobs-towers")


@given(st.uuids(), st.text(), st.text())
def test_every_uuid_is_masked_wherever_it_stands(uuid: UUID, before: str, after: str) -> None:
    masks = Masks(KEY)
    text = f"{before} {uuid} {after}"
    assert str(uuid) not in masks.text(text)
    assert len(masks.text(text)) == len(text)


@given(st.binary(max_size=200))
def test_any_content_keeps_its_length(content: bytes) -> None:
    masks = Masks(KEY)
    for path in ("/proc/cmdline", "/boot/grub2/grubenv", "/sys/firmware/efi/efivars/LoaderInfo-x"):
        assert len(masks.content(path, content)) == len(content)


# taking one


def test_a_snapshot_is_for_its_owner_alone_and_replaces_nothing(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    file = tmp_path / "new"
    status, out, err = call(lived, capfd, "snapshot", os.fspath(file))
    assert (status, out) == (0, "")
    assert f"virtpass doctor --snapshot {shlex.quote(os.fspath(file))}\n" in err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    content = file.read_bytes()
    assert call(lived, capfd, "snapshot", os.fspath(file))[0] == EXIT_REFUSED
    assert file.read_bytes() == content
    os.symlink("/nonexistent", tmp_path / "link")
    assert call(lived, capfd, "snapshot", os.fspath(tmp_path / "link"))[0] == EXIT_REFUSED
    status, _, err = call(lived, capfd, "snapshot", os.fspath(tmp_path / "none" / "x"))
    assert status == EXIT_NOT_FOUND
    assert f"there is no directory {tmp_path / 'none'}; make it, or choose another place" in err
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".virtpass")] == []


@pytest.mark.parametrize(
    "content",
    [b"", b"root:x:0:0\n", gzip.compress(b"no archive", mtime=0), None],
    ids=["empty", "text", "packed", "directory"],
)
def test_what_is_no_snapshot_is_named_with_what_to_do(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "no snapshot"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    status, out, err = call(lived, capfd, "doctor", "--snapshot", os.fspath(file))
    assert (status, out) == (2, "")
    assert err.startswith(f"virtpass: {file} is not a snapshot")
    assert err.endswith("; ask for the file anew, made with: virtpass snapshot FILE\n")


def test_what_is_left_out_is_said(
    lived: SimulatedHost,
    capfd: Captured,
    tmp_path: Path,
    libvirt: list[RecordedDomainState],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secret = "/boot/grub/grub.cfg"
    original = Host.read_bytes

    def read_bytes(self: Host, path: str, limit: int = 1 << 20) -> bytes | None:
        is_refused = path == secret and not isinstance(self, RecordedHost)
        return None if is_refused else original(self, path, limit)

    monkeypatch.setattr(Host, "read_bytes", read_bytes)
    _, out, err = call(lived, capfd, "snapshot", "--list")
    assert "/proc/cmdline\n" in out
    assert f"left out: {secret}: Permission denied" in err
    file = os.fspath(tmp_path / "x")
    assert f"left out: {secret}" in call(lived, capfd, "snapshot", file)[2]
    with snapshot.opened(file) as host:
        assert host.exists(secret)
        assert host.read(secret) is None


def test_a_list_writes_nothing_and_both_at_once_are_refused(
    lived: SimulatedHost, capfd: Captured, libvirt: list[RecordedDomainState]
) -> None:
    libvirt.append(domain(domain_xml(CARD)))
    status, out, _ = call(lived, capfd, "snapshot", "--list", "--json")
    assert status == 0
    assert json.loads(out)["domains"] == ["guest"]
    assert call(lived, capfd, "snapshot")[0] == EXIT_USAGE
    assert call(lived, capfd, "snapshot", "--list", "x")[0] == EXIT_USAGE
    assert call(lived, capfd, "--snapshot", "x", "devices")[0] == EXIT_USAGE


def test_libvirt_that_does_not_answer_is_part_of_the_picture(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> Connection:
        raise PermissionDeniedError("libvirt-denied", "you may not", "become root")

    monkeypatch.setattr(Connection, "open", refused)
    assert compare(lived, capfd, tmp_path, ((), ("doctor", "--all"), ("domain", "show", "guest"))) == []


def test_a_snapshot_is_only_looked_at(
    lived: SimulatedHost, capfd: Captured, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    libvirt.append(domain(domain_xml(CARD)))
    file = os.fspath(tmp_path / "x")
    snapshot.take_snapshot(lived, file)
    with snapshot.opened(file) as host:
        calls: tuple[Callable[[], object], ...] = (
            lambda: host.write_attribute("/sys/bus/pci/drivers_probe", "x", 1.0),
            lambda: host.run(["/usr/bin/true"], 1.0),
            lambda: host.lock("/run/virtpass", "lock", 1.0),
            lambda: host.replace_own("/etc", "x", b"", 0o644),
            lambda: host.append_own("/etc", "x", b""),
            lambda: host.remove_own("/etc", "os-release"),
            lambda: host.open_directory("/etc/x", create=0o755),
            lambda: connect(host).define("<domain/>"),
        )
        for one in calls:
            with pytest.raises(RefusedError, match="only looked at"):
                one()
        with pytest.raises(OSError):
            host.run_program(["/usr/bin/true"], {}, 1.0)
        assert run_command(host, ("true",), 1.0).status == 127
        assert output_of(host, ("true",), 1.0) is None


# snapshots from others


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes], record: object = None) -> Path:
    """Write an archive that virtpass has not made."""
    with tarfile.open(path, "w:gz") as made:
        text = json.dumps({"format": 1, "entries": len(members)} if record is None else record).encode()
        first = tarfile.TarInfo("snapshot.json")
        first.size = len(text)
        made.addfile(first, io.BytesIO(text))
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return path


def made(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode = kind, target, 0o777
    return member, content


LINK = tarfile.SYMTYPE


@pytest.mark.parametrize(
    "members",
    [
        [made("/etc/passwd")],
        [made("root//etc/passwd")],
        [made("etc/passwd")],
        [made("root/../x")],
        [made("root/etc/../../x")],
        [made("root")],
        [made("root/a/" + "x" * 300)],
        [made("root/" + "a/" * 60 + "x")],
        [made("root/x", tarfile.CHRTYPE)],
        [made("root/x", tarfile.BLKTYPE)],
        [made("root/x", tarfile.FIFOTYPE)],
        [made("root/x", tarfile.LNKTYPE, "snapshot.json")],
        [made("root/x", LINK, "../outside")],
        [made("root/a/b/x", LINK, "../../../../etc/passwd")],
        [made("root/x", LINK, "")],
        # A link within, and a file below it.
        [made("root/a", tarfile.DIRTYPE), made("root/l", LINK, "a"), made("root/l/x")],
        [made("root/l", LINK, "/tmp"), made("root/l/x")],
        # Each link alone looks as if it stayed within.
        [
            made("root/z", tarfile.DIRTYPE),
            made("root/a/b/c/d", LINK, "/z"),
            made("root/y", LINK, "a/b/c/d/../../x"),
        ],
        [made("root/x"), made("root/x")],
        [made("root/x"), made("root/x/y")],
    ],
)
def test_what_no_snapshot_has_is_refused(
    tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]
) -> None:
    file = archive(tmp_path / "x", *members)
    room = tmp_path / "deep" / "room"
    room.mkdir(parents=True)
    with pytest.raises(RefusedError, match="not unpacked"):
        unpack(os.fspath(file), os.fspath(room))
    assert {one.name for one in tmp_path.iterdir()} == {"x", "deep"}
    assert {one.name for one in room.parent.iterdir()} == {"room"}


def test_absolute_links_lead_to_the_snapshots_own_root(tmp_path: Path) -> None:
    file = archive(
        tmp_path / "x", made("root/etc/passwd", LINK, "/etc/shadow"), made("root/etc/shadow", content=b"mine")
    )
    room = tmp_path / "room"
    room.mkdir()
    assert unpack(os.fspath(file), os.fspath(room)).targets == {"/etc/passwd": "/etc/shadow"}
    assert (room / "etc/passwd").read_bytes() == b"mine"


def test_more_than_a_host_has_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtpass.system.archive._MAX_FILE", 1000)
    monkeypatch.setattr("virtpass.system.archive._MAX_TOTAL", 1 << 20)
    monkeypatch.setattr("virtpass.system.archive._MAX_ENTRIES", 50)
    for members, words in (
        ([made("root/x", content=b"0" * 1001)], "has more than 0 MiB"),
        ([made(f"root/{number}") for number in range(52)], "more than 50 entries"),
        ([made(f"root/{number}", content=b"0" * 999) for number in range(40)], ""),
    ):
        file = archive(tmp_path / "x", *members)
        if not words:
            monkeypatch.setattr("virtpass.system.archive._MAX_TOTAL", 20_000)
        with (
            tempfile.TemporaryDirectory() as room,
            pytest.raises(RefusedError, match=words or "it has more than"),
        ):
            unpack(os.fspath(file), room)


@pytest.mark.parametrize(
    "record",
    [
        {"format": 1, "entries": 0, "answers": {}, "libvirt": {}, "outside": {}},
        {"format": 1, "entries": 1},
        {"format": 1, "entries": 0, "unreadable": ["\ud800"]},
        [],
        {},
        {"format": "1"},
        {"format": True},
        {"format": 2},
        {"format": 1},
    ],
    ids=str,
)
def test_a_record_that_is_not_understood_is_one_line(
    host: SimulatedHost, capfd: Captured, tmp_path: Path, record: object
) -> None:
    file = archive(tmp_path / "x", record=record)
    status, _, err = call(host, capfd, "devices", "--snapshot", os.fspath(file))
    assert (status, err.count("\n")) == (EXIT_USAGE, 1)


@given(st.binary(max_size=400), st.booleans())
def test_anything_else_is_no_snapshot(content: bytes, is_packed: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "x"
        file.write_bytes(gzip.compress(content) if is_packed else content)
        (Path(directory) / "room").mkdir()
        with pytest.raises(UsageError):
            unpack(os.fspath(file), f"{directory}/room")


def test_a_part_of_a_snapshot_is_none(
    lived: SimulatedHost, tmp_path: Path, libvirt: list[RecordedDomainState]
) -> None:
    file = tmp_path / "x"
    snapshot.take_snapshot(lived, os.fspath(file))
    content = file.read_bytes()
    for size in range(0, len(content), len(content) // 20):
        file.write_bytes(content[:size])
        with pytest.raises(UsageError), snapshot.opened(os.fspath(file)):
            pass


def test_what_is_no_file_is_none(host: SimulatedHost, capfd: Captured, tmp_path: Path) -> None:
    assert call(host, capfd, "devices", "--snapshot", os.fspath(tmp_path / "none"))[0] == EXIT_NOT_FOUND
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        assert call(host, capfd, "devices", "--snapshot", os.fspath(name))[0] == EXIT_USAGE
