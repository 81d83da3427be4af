"""What a machine's QEMU is started with: the files of its disks, and its command but for the devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import topology
from .disk import Image

KERNEL_ARGUMENTS = (
    "rw",
    # The monitor of the card shows the console; the serial port keeps a log for whoever seeks a fault.
    "console=tty0",
    "console=ttyS0",
    "consoleblank=0",
    # Messages on the screen would make pictures differ; KVM complains of what every guest does.
    "loglevel=4",
    "kvm.ignore_msrs=1",
    "kvm.report_ignored_msrs=0",
    # Boot in half the time: what is left out here protects nobody in this machine.
    "mitigations=off",
    "init_on_alloc=0",
    # Without the modules that let systemd load BPF programs, which takes it a second.
    "lsm=lockdown,yama,apparmor",
    # A machine that is starved of the processor fails the kernel's test of its timer, and panics.
    "no_timer_check",
)
NVME_SIZE = 64 << 20


def files(image: Image, folder: Path, writable: bool) -> topology.Files:
    """Make the files of a machine in its own `folder`, and return them.

    What is written to its disk stays in the folder as well, except with `writable`.
    """
    disk, disk_format = image.disk, "raw"
    if not writable:
        disk, disk_format = folder / "disk.qcow2", "qcow2"
        create = [*image.emulator.qemu_img, "create", "-q", "-f", "qcow2", "-F", "raw"]
        create += ["-b", str(image.disk), str(disk)]
        subprocess.run(create, check=True, timeout=60, env=image.emulator.environment)
    nvme = folder / "nvme.raw"
    nvme.touch()
    os.truncate(nvme, NVME_SIZE)
    return topology.Files(
        disk=str(disk),
        disk_format=disk_format,
        nvme=str(nvme),
        agent_socket=str(folder / "agent"),
        console_log=str(folder / "console.log"),
    )


def command(
    image: Image, folder: Path, accelerator: Sequence[str], memory: int, processors: int
) -> list[str]:
    """Return the beginning of the command: all but the kernel and the devices; `memory` is in MiB."""
    # The kernel ends QEMU when this process dies without a word, so that no machine is left behind.
    argv = ["setpriv", "--pdeathsig", "KILL", "--", *image.emulator.qemu]
    argv += ["-M", "q35,kernel-irqchip=split", *accelerator]
    argv += ["-m", str(memory), "-smp", str(processors)]
    argv += ["-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    if image.kind.uefi:
        # The variables survive a reset, and end with the folder.
        variables = folder / "variables.fd"
        shutil.copyfile(image.emulator.ovmf_variables, variables)
        argv += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={image.emulator.ovmf_code}"]
        argv += ["-drive", f"if=pflash,unit=1,format=raw,file={variables}"]
    return argv


def kernel(image: Image, more: Sequence[str]) -> Iterator[str]:
    """Yield the arguments that boot the kernel of `image` directly, with `more` on its command line."""
    yield from ("-kernel", str(image.kernel), "-initrd", str(image.initrd))
    yield from ("-append", " ".join((f"root={image.kind.root}", *KERNEL_ARGUMENTS, *more)))
