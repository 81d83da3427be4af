"""Binding at boot: what modprobe is told, and the script, run by the shells that an initramfs may have."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from virtpass.host import early
from virtpass.host.early import EarlyDevice, EarlyPlan
from virtpass.pci.address import PciAddress
from virtpass.pci.identity import Identity
from virtpass.system.errors import UsageError

GPU = EarlyDevice(PciAddress.parse("0000:01:00.0"), Identity(0x10DE, 0x1B80, 0x1043, 0x85AA), ("nouveau",))
AUDIO = EarlyDevice(
    PciAddress.parse("0000:01:00.1"), Identity(0x10DE, 0x10F0, 0x1043, 0x85AA), ("snd_hda_intel",)
)
PLAN = EarlyPlan((GPU, AUDIO), ("nouveau", "snd_hda_intel"), ("nvidiafb",), True, ("vfio_pci",))
ROOTFS = "rootfs / rootfs rw 0 0\nproc /proc proc rw 0 0\n"
INSTALLED = ROOTFS + "/dev/vda2 / ext4 rw 0 0\n"

SHELLS = [("sh",), ("dash",), ("bash", "--posix"), ("busybox", "sh")]


@pytest.fixture(params=SHELLS, ids=" ".join)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    argv: tuple[str, ...] = request.param
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    return argv


class Tree:
    """What the script sees of a kernel."""

    def __init__(self, root: Path, *, cmdline: str = "root=x quiet\n", mounts: str = ROOTFS) -> None:
        self.root = root
        self.put("proc/cmdline", cmdline)
        self.put("proc/mounts", mounts)
        self.put("dev/kmsg", "")
        for device in (GPU, AUDIO):
            names = ("vendor", "device", "subsystem_vendor", "subsystem_device")
            for name, number in zip(names, device.identity[:4], strict=True):
                self.put(f"sys/bus/pci/devices/{device.address}/{name}", f"0x{number:04x}\n")
            self.put(f"sys/bus/pci/devices/{device.address}/driver_override", "(null)\n")

    def put(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def bind(self, device: EarlyDevice, driver: str) -> None:
        self.put(f"sys/bus/pci/drivers/{driver}/unbind", "")
        at = self.root / "sys/bus/pci"
        (at / f"devices/{device.address}/driver").symlink_to(at / "drivers" / driver)
        (at / "drivers" / driver / str(device.address)).symlink_to(at / f"devices/{device.address}")

    def run(self, shell: tuple[str, ...], *, is_trial: bool = False) -> subprocess.CompletedProcess[str]:
        text = early.script_text((GPU, AUDIO), is_trial=is_trial, root=os.fspath(self.root))
        # Nothing but builtins: there is no PATH.
        program = shutil.which(shell[0])
        assert program is not None
        return subprocess.run(
            [program, *shell[1:], "-c", text],
            env={"PATH": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )

    def override(self, device: EarlyDevice) -> str:
        return (self.root / f"sys/bus/pci/devices/{device.address}/driver_override").read_text().strip()

    def unbound(self, driver: str) -> str:
        return (self.root / f"sys/bus/pci/drivers/{driver}/unbind").read_text().strip()


def test_free_devices_are_given_to_vfio_pci(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path, mounts=INSTALLED)
    done = tree.run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert tree.override(GPU) == tree.override(AUDIO) == "vfio-pci"


def test_another_device_at_the_address_is_left_to_the_host(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    tree.put(f"sys/bus/pci/devices/{GPU.address}/subsystem_device", "0x85ab\n")
    assert tree.run(shell).returncode == 0
    assert (tree.override(GPU), tree.override(AUDIO)) == ("(null)", "vfio-pci")
    assert f"{GPU.address} is another device now" in (tmp_path / "dev/kmsg").read_text()


def test_a_device_that_is_gone_is_passed_over(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    shutil.rmtree(tmp_path / f"sys/bus/pci/devices/{GPU.address}")
    done = tree.run(shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree.override(AUDIO) == "vfio-pci"


@pytest.mark.parametrize("cmdline", ["virtpass=off\n", "a virtpass=off b\n", "quiet virtpass=off"])
def test_off_on_the_command_line_is_obeyed(tmp_path: Path, shell: tuple[str, ...], cmdline: str) -> None:
    tree = Tree(tmp_path, cmdline=cmdline)
    assert tree.run(shell).returncode == 0
    assert tree.override(GPU) == "(null)"


@pytest.mark.parametrize(
    ("cmdline", "override"),
    [("quiet\n", "(null)"), ("x=virtpass=trial\n", "(null)"), ("quiet virtpass=trial\n", "vfio-pci")],
)
def test_a_trial_acts_in_its_own_boot_alone(
    tmp_path: Path, shell: tuple[str, ...], cmdline: str, override: str
) -> None:
    tree = Tree(tmp_path, cmdline=cmdline)
    assert tree.run(shell, is_trial=True).returncode == 0
    assert tree.override(GPU) == override


def test_in_the_initramfs_a_device_is_taken_from_its_driver(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    tree.bind(GPU, "nouveau")
    assert tree.run(shell).returncode == 0
    assert tree.override(GPU) == "vfio-pci"
    assert tree.unbound("nouveau") == str(GPU.address)


@pytest.mark.parametrize("mounts", [INSTALLED, "overlay / overlay rw 0 0\n", ""])
def test_later_a_device_that_has_a_driver_keeps_it(
    tmp_path: Path, shell: tuple[str, ...], mounts: str
) -> None:
    tree = Tree(tmp_path, mounts=mounts)
    tree.bind(GPU, "nouveau")
    assert tree.run(shell).returncode == 0
    assert (tree.override(GPU), tree.unbound("nouveau")) == ("(null)", "")
    assert tree.override(AUDIO) == "vfio-pci"


def test_a_device_on_vfio_pci_already_is_left_there(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    tree.bind(GPU, "vfio-pci")
    assert tree.run(shell).returncode == 0
    assert tree.unbound("vfio-pci") == ""


def test_without_proc_and_sys_it_does_nothing_and_does_not_fail(
    tmp_path: Path, shell: tuple[str, ...]
) -> None:
    tree = Tree(tmp_path)
    for name in ("proc", "sys", "dev"):
        shutil.rmtree(tmp_path / name)
    done = tree.run(shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_the_kernel_refuses_does_not_end_the_script(tmp_path: Path, shell: tuple[str, ...]) -> None:
    tree = Tree(tmp_path)
    override = tmp_path / f"sys/bus/pci/devices/{GPU.address}/driver_override"
    override.unlink()
    override.mkdir()
    done = tree.run(shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree.override(AUDIO) == "vfio-pci"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("is_trial", [False, True])
def test_shellcheck_finds_nothing(*, is_trial: bool) -> None:
    text = early.script_text((GPU, AUDIO), is_trial=is_trial)
    done = subprocess.run(
        ["shellcheck", "--shell=sh", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_the_file_for_modprobe() -> None:
    assert early.modprobe_text(PLAN).splitlines()[1:] == [
        "install vfio-pci /etc/virtpass/early-bind; modprobe --ignore-install vfio-pci $CMDLINE_OPTS",
        "softdep nouveau pre: vfio-pci",
        "softdep snd_hda_intel pre: vfio-pci",
        "blacklist nvidiafb",
        "options vfio_iommu_type1 allow_unsafe_interrupts=1",
        "options iommufd allow_unsafe_interrupts=1",
    ]


@pytest.mark.skipif(shutil.which("modprobe") is None, reason="kmod is not installed")
def test_kmod_reads_the_file_as_it_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "virtpass.conf"
    file.write_text(early.modprobe_text(PLAN))
    done = subprocess.run(
        ["modprobe", "--showconfig", "--config", os.fspath(file)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert (
        "install vfio_pci /etc/virtpass/early-bind; modprobe --ignore-install vfio-pci $CMDLINE_OPTS" in lines
    )
    assert "softdep snd_hda_intel pre: vfio-pci" in lines
    assert "blacklist nvidiafb" in lines
    assert "options vfio_iommu_type1 allow_unsafe_interrupts=1" in lines


@pytest.mark.parametrize("name", ["", "a b", "a\nblacklist b", "-a", "a;b", "é"])
def test_a_name_that_is_no_module_is_refused(name: str) -> None:
    for plan in (EarlyPlan(softdeps=(name,)), EarlyPlan(blacklist=(name,))):
        with pytest.raises(UsageError) as caught:
            early.modprobe_text(plan)
        assert caught.value.reference == "module-name"


def test_nothing_wanted_writes_nothing() -> None:
    assert early.edits(EarlyPlan()) == []
    assert [edit.path for edit in early.edits(PLAN)] == [early.MODPROBE, early.SCRIPT]
