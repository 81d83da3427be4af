"""Install what building and testing virtpass needs: Debian packages, and the virtual environment.

    bootstrap.py packages GROUP...    the Debian packages of these groups, where they are missing
    bootstrap.py environment DIR      a virtual environment in DIR with the tools of tests/requirements.txt

Runs before anything else is there, so it needs the standard library only. Where nothing is missing it changes
nothing and needs no network. On a system without dpkg it names the packages and leaves their installation to
you.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent / "requirements.txt"

# Every Debian package that this repository needs, by purpose, each with its reason.
GROUPS: dict[str, dict[str, str]] = {
    "environment": {
        "python3": "runs virtpass as users have it",
        "python3-venv": "makes the virtual environment for the test tools",
        "python3-click": "the command line",
        "python3-libvirt": "talks to libvirt, and has its test driver",
        "python3-lxml": "reads and writes domain XML",
        "python3-pyudev": "asks udev about devices",
    },
    "checks": {
        "busybox": "has the shell of many an initramfs, for which a script of ours is written",
        "fish": "completes commands with the script of ours for it",
        "grub-common": "has grub-mkconfig, whose menus are read; it installs no bootloader",
        "kmod": "has modprobe, which says how it understands our configuration",
        "lintian": "checks the Debian package",
        "python3-yaml": "reads what is written to booster's configuration",
        "shellcheck": "checks shell scripts",
        "zsh": "completes commands with the script of ours for it",
    },
    "bench": {
        "pciutils": "has lspci, which the list of devices is measured against",
    },
    "deb": {
        "debhelper": "builds Debian packages",
        "dh-python": "builds Debian packages of Python software",
        "pybuild-plugin-pyproject": "lets dh-python read pyproject.toml",
        "python3-click": "has the commands, from which the manual pages and completions are made",
        "python3-hatchling": "the build backend named in pyproject.toml",
        "python3-lxml": "is imported by the commands whose manual pages are made",
    },
    "lab": {
        "debian-archive-keyring": "verifies the packages of the machine's image",
        "dosfstools": "makes the file system that UEFI boots from",
        "e2fsprogs": "makes the image's file system without root",
        "fdisk": "has sfdisk, which partitions the disks of machines that boot by themselves",
        "mmdebstrap": "makes the machine's Debian image",
    },
}


def installed(package: str) -> bool:
    """Tell whether dpkg has this package, complete."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.returncode == 0 and answer.stdout == "installed"


def install(groups: Sequence[str]) -> None:
    """Install the packages of these groups that are missing."""
    reasons = {package: reason for group in groups for package, reason in GROUPS[group].items()}
    if shutil.which("dpkg-query") is None:
        print(f"Not a Debian system: make sure that you have what Debian calls {', '.join(sorted(reasons))}.")
        return
    missing = sorted(package for package in reasons if not installed(package))
    if not missing:
        return
    print("Installing", "; ".join(f"{package} ({reasons[package]})" for package in missing), flush=True)
    apt = [*root(), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "Dpkg::Use-Pty=0"]
    run([*apt, "update"])
    run([*apt, "install", "--yes", "--no-install-recommends", *missing])


def root() -> list[str]:
    """Return what to put before a command that needs root."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        raise SystemExit("Installing packages needs root, and there is no sudo. Run make as root once.")
    return ["sudo"]


def environment(directory: Path) -> None:
    """Make the virtual environment anew.

    It sees the system's packages: libvirt's Python module has to match the libvirt of the system, and PyPI
    has it as source only.
    """
    print(f"Making {directory} with the tools of {REQUIREMENTS.name}", flush=True)
    run([sys.executable, "-m", "venv", "--clear", "--system-site-packages", os.fspath(directory)])
    pip = [os.fspath(directory / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", "--no-deps", "--requirement", os.fspath(REQUIREMENTS)])
    (directory / ".complete").touch()


def run(command: Sequence[str]) -> None:
    """Run a command that never asks; show its output and end with its status when it fails."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if result.returncode != 0:
        sys.stderr.write(result.stdout.decode(errors="replace"))
        print(f"This failed with status {result.returncode}: {' '.join(command)}", file=sys.stderr)
        raise SystemExit(result.returncode)


def main(arguments: Sequence[str]) -> None:
    """Do what the command line asks for."""
    match arguments:
        case ["packages", *groups] if groups and GROUPS.keys() >= set(groups):
            install(groups)
        case ["environment", directory]:
            environment(Path(directory))
        case _:
            print(__doc__, file=sys.stderr)
            raise SystemExit(f"The groups are {', '.join(GROUPS)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
