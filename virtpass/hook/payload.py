"""Which modules of virtpass the hook runs: a copy of them, owned by root, is what libvirt calls."""

import hashlib
from pathlib import Path

import virtpass

# Paths below the package. They import each other and an allow-list of the standard library, nothing else:
# the start of a domain waits for them, and they must run without anything that can be installed or removed.
MODULES = (
    "__init__.py",
    "binding/__init__.py",
    "binding/attributes.py",
    "binding/audio.py",
    "binding/display.py",
    "binding/cpu_lists.py",
    "binding/demand.py",
    "binding/effects.py",
    "binding/engine.py",
    "binding/framebuffers.py",
    "binding/function_marks.py",
    "binding/function_records.py",
    "binding/functions.py",
    "binding/governors.py",
    "binding/holders.py",
    "binding/huge_pages.py",
    "binding/interrupts.py",
    "binding/isolation.py",
    "binding/journal.py",
    "binding/nvidia.py",
    "binding/owners.py",
    "binding/others.py",
    "binding/policy.py",
    "binding/pools.py",
    "binding/processors.py",
    "binding/power.py",
    "binding/reach.py",
    "binding/reservations.py",
    "binding/safety.py",
    "binding/services.py",
    "binding/steps.py",
    "binding/tuning.py",
    "hook/__init__.py",
    "hook/checks.py",
    "hook/entry.py",
    "hook/late_releases.py",
    "hook/report.py",
    "hook/request.py",
    "pci/__init__.py",
    "pci/address.py",
    "pci/functions.py",
    "pci/identity.py",
    "pci/sysfs.py",
    "pci/usage.py",
    "system/__init__.py",
    "system/child.py",
    "system/device_users.py",
    "system/errors.py",
    "system/host.py",
    "system/own_files.py",
    "system/processes.py",
    "system/program.py",
    "system/waiting.py",
    "system/worker.py",
)


def sources() -> dict[str, bytes]:
    """Return the modules' content by their path below the package."""
    package = Path(virtpass.__file__).parent
    return {module: (package / module).read_bytes() for module in MODULES}


def stamp(modules: dict[str, bytes]) -> str:
    """Return a name for one version of the payload: ``0.1.0-`` and 12 hexadecimal digits of its digest."""
    digest = hashlib.sha256()
    for path in sorted(modules):
        digest.update(path.encode() + b"\0" + modules[path] + b"\0")
    return f"{virtpass.__version__}-{digest.hexdigest()[:12]}"
