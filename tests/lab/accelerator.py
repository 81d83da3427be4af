"""The choice between KVM and TCG for the machine: KVM only where a distribution's kernel really starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from .disk import Image
from .progress import say
from .topology import MIXED, Flavour

PROBE_SECONDS = 15.0
NESTED = (Path("/sys/module/kvm_amd/parameters/nested"), Path("/sys/module/kvm_intel/parameters/nested"))
_DECISION: list[bool] = []
_DECIDING = threading.Lock()


@dataclass(frozen=True)
class Accelerator:
    """How QEMU executes a machine's processor, and what its libvirt domains can be."""

    name: str
    arguments: tuple[str, ...]
    # The type of a domain that starts quickly in the machine.
    domain_type: str


def choose(image: Image, flavour: Flavour) -> Accelerator:
    """Return what runs a machine of `flavour` with `image` fastest here.

    VIRTPASS_LAB_ACCELERATOR=kvm or =tcg decides without a look. Raises ValueError for another value.
    """
    # The other flavours are about the processor's vendor, which KVM would take from the host.
    if flavour is MIXED and _kvm_wanted(image):
        nested = any(file.exists() and file.read_text().strip() in ("1", "Y") for file in NESTED)
        return Accelerator("kvm", ("-accel", "kvm", "-cpu", "host"), "kvm" if nested else "qemu")
    return Accelerator("tcg", ("-accel", "tcg,thread=multi", "-cpu", flavour.cpu), flavour.domain_type)


def _kvm_wanted(image: Image) -> bool:
    """Decide once for the whole run: the images have the same kernel."""
    with _DECIDING:
        if not _DECISION:
            _DECISION.append(_decide(image))
    return _DECISION[0]


def _decide(image: Image) -> bool:
    """Look whether KVM can run `image`, unless the environment decides, and say what came of it."""
    wish = os.environ.get("VIRTPASS_LAB_ACCELERATOR")
    if wish not in (None, "kvm", "tcg"):
        raise ValueError(f"VIRTPASS_LAB_ACCELERATOR is {wish!r}, not kvm or tcg")
    if wish is not None:
        say(f"machines run under {wish.upper()}, as asked")
        return wish == "kvm"
    if not os.access("/dev/kvm", os.W_OK):
        say("machines run under TCG: there is no KVM for this user")
        return False
    if not _kvm_works(image):
        say("machines run under TCG: a distribution's kernel does not start under this KVM")
        return False
    say("machines run under KVM")
    return True


def _kvm_works(image: Image) -> bool:
    """Boot the kernel of `image` under KVM without a disk; return whether it says its first word.

    The presence of /dev/kvm says little: under some hypervisors the kernel dies while it unpacks itself.
    """
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        log = Path(folder, "console")
        argv = [
            *image.emulator.qemu,
            "-M",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "512",
            "-nodefaults",
        ]
        argv += ["-display", "none", "-serial", f"file:{log}"]
        argv += ["-kernel", str(image.kernel), "-append", "console=ttyS0"]
        quiet = subprocess.DEVNULL
        environment = image.emulator.environment
        process = subprocess.Popen(argv, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
        try:
            deadline = time.monotonic() + PROBE_SECONDS
            while time.monotonic() < deadline and process.poll() is None:
                if log.exists() and b"Linux version" in log.read_bytes():
                    return True
                time.sleep(0.2)
            return False
        finally:
            process.kill()
            process.wait()
