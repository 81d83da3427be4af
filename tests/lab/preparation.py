"""Scenarios of host preparation on machines that boot by themselves: what was written is what is booted.

The tests of each bootloader are a file of their own, because each file has its machines for itself.
"""

from __future__ import annotations

import json

from . import bootloader, topology
from .disk import ROOT_UUID, SYSTEMD_BOOT
from .machine import Machine, Result

# A run of dracut takes most of a minute where another machine runs beside it.
TIMEOUT = 900.0
WISHES = ("--pt", "--bind", topology.NIC)

# Walks /etc and /boot; prints everything about each file that a user could notice.
TREE = """
import hashlib, json, os, stat
found = {}
for top in ("/etc", "/boot"):
    for folder, directories, names in os.walk(top):
        for path in (os.path.join(folder, name) for name in directories + names):
            state = os.lstat(path)
            entry = [oct(state.st_mode), state.st_uid, state.st_gid]
            if stat.S_ISREG(state.st_mode):
                entry.append(hashlib.sha256(open(path, "rb").read()).hexdigest())
            elif stat.S_ISLNK(state.st_mode):
                entry.append(os.readlink(path))
            found[path] = entry
print(json.dumps(found))
"""
# What the distribution's own tools and boots change, whoever asks them to: systemd-boot writes a new seed at
# each boot, GRUB empties its environment when a choice for one boot was made; an initramfs has the time of
# its making inside (their content is compared as lists instead).
CHANGES_BY_ITSELF = ("/boot/efi/loader/random-seed", "/boot/grub/grubenv")
IMAGES = ("initrd",)


def tree(machine: Machine) -> dict[str, list[object]]:
    """Return what is in /etc and /boot, without what no tool leaves alone."""
    found: dict[str, list[object]] = json.loads(
        machine.run(["python3", "-c", TREE], timeout=120).check().text
    )
    return {
        path: state[:3] if path.rpartition("/")[2].startswith(IMAGES) else state
        for path, state in found.items()
        if path not in CHANGES_BY_ITSELF
    }


def images(machine: Machine) -> dict[str, list[str]]:
    """Return the lists of files in every initramfs that is booted."""
    lister = "lsinitrd" if machine.image.kind == SYSTEMD_BOOT else "lsinitramfs"
    paths = [path for path in tree(machine) if path.rpartition("/")[2].startswith(IMAGES)]
    found = {}
    for path in paths:
        lines = machine.run([lister, path], timeout=120).check().text.splitlines()
        # lsinitrd prints times; the names are at the ends.
        found[path] = sorted({line.rpartition(" ")[2] for line in lines if "/" in line})
    return found


def host(machine: Machine, *arguments: str) -> Result:
    """Run `virtpass host`."""
    return machine.run(["virtpass", "host", *arguments], timeout=TIMEOUT)


def status(machine: Machine) -> tuple[int, dict[str, object]]:
    """Return the exit status of `virtpass host status`, and what it says."""
    # Once for both: to look into an initramfs takes seconds there.
    told = host(machine, "status", "--json")
    found: dict[str, object] = json.loads(told.text)
    return told.status, found


def verdicts(machine: Machine) -> tuple[int, set[str]]:
    """Return the exit status of `virtpass host status`, and which verdicts it has for its checks."""
    code, found = status(machine)
    checks = found["checks"]
    assert isinstance(checks, list)
    return code, {check["verdict"] for check in checks}


def fallback(machine: Machine, loader: bootloader.Bootloader) -> str:
    """Return the identifier of the entry without our arguments, as the distribution's tools know it."""
    (entry, *_) = [one for one in loader.entries() if "virtpass" in one]
    return entry


def recovered_at_boot(machine: Machine) -> str:
    """Return what the log of this boot says of the unit that makes good what was cut off."""
    return machine.run(["journalctl", "-b", "-u", "virtpass-host-recover.service"]).check().text


def has_only_host_drivers(machine: Machine) -> bool:
    return machine.driver(topology.NIC) == machine.driver(topology.SECOND_NIC) == "e1000e"


def assert_bound_early(machine: Machine) -> None:
    """The NIC is on vfio-pci, its twin on the host's driver, which has never seen the first."""
    assert machine.driver(topology.NIC) == "vfio-pci"
    assert machine.driver(topology.SECOND_NIC) == "e1000e"
    log = machine.run(["dmesg"]).check().text
    assert f"e1000e {topology.SECOND_NIC}" in log
    assert f"e1000e {topology.NIC}" not in log


def as_documented(machine: Machine) -> None:
    """A boot machine is what docs/lab.md says, before virtpass has done anything. Raises AssertionError."""
    arguments = bootloader.of(machine).arguments()
    assert f"root=UUID={ROOT_UUID}" in arguments
    assert not any("virtpass" in word for word in arguments)
    state = machine.state()
    assert {address: state[address][0] for address in topology.DRIVERS} == topology.DRIVERS
    for group in topology.GROUPS:
        assert group in machine.groups().values()
    assert machine.run(["systemctl", "is-system-running", "--wait"]).text.strip() == "running"
    assert (machine.run(["test", "-d", "/sys/firmware/efi"]).status == 0) == machine.image.kind.uefi


def there_and_back(machine: Machine) -> None:
    """Apply, boot, revert: nothing is left. Raises AssertionError.

    `lasting_and_taken_back` boots the fallback entry, and what is reverted.
    """
    loader = bootloader.of(machine)
    before, images_before = tree(machine), images(machine)
    plan = json.loads(host(machine, "plan", "--json").check().text)
    assert (plan["iommu"]["state"], plan["files"], plan["commands"]) == ("on", [], [])

    shown = host(machine, "plan", *WISHES).check().text
    assert "+" in shown and tree(machine) == before
    applied = host(machine, "apply", *WISHES, "--yes").check()
    assert "it takes effect at the next boot" in applied.error_text
    assert verdicts(machine)[1] == {"right", "waiting for a reboot"}
    again = host(machine, "apply", *WISHES, "--yes").check()
    assert "it is applied already" in again.text

    machine.reboot()
    assert "iommu=pt" in loader.arguments()
    assert_bound_early(machine)
    assert verdicts(machine) == (0, {"right"})
    revert(machine, before, images_before)


def revert(machine: Machine, before: dict[str, list[object]], images_before: dict[str, list[str]]) -> None:
    """Take back what is applied, to the last file. Raises AssertionError.

    `before` is the `tree` of the machine without it, `images_before` are its `images`.
    """
    host(machine, "revert", "--yes").check()
    assert tree(machine) == before
    for path, names in images(machine).items():
        assert set(names) ^ set(images_before[path]) == set(), path
    assert machine.run(["test", "-e", "/var/lib/virtpass/host"]).status == 1


def left_and_taken_back(
    machine: Machine, before: dict[str, list[object]], images_before: dict[str, list[str]]
) -> None:
    """Boot what is applied without it, by the fallback entry, and what is left of it: nothing.

    See `revert`. Raises AssertionError.
    """
    loader = bootloader.of(machine)
    loader.choose_once(fallback(machine, loader))
    machine.reboot()
    assert "virtpass=off" in loader.arguments()
    assert "iommu=pt" not in loader.arguments()
    assert has_only_host_drivers(machine)

    revert(machine, before, images_before)
    machine.reboot()
    assert not {"iommu=pt", "virtpass=off"} & set(loader.arguments())
    assert has_only_host_drivers(machine)
    assert tree(machine) == before
    # A boot with nothing to make good does nothing.
    assert "unmet condition" in recovered_at_boot(machine)


def trial_taken_back(machine: Machine) -> None:
    """Choose a trial for the next boot, and take it back before. Raises AssertionError."""
    loader = bootloader.of(machine)
    before = tree(machine)
    assert loader.chosen_once() == ""
    host(machine, "apply", "--pt", "--trial", "--yes").check()
    assert "virtpass" in loader.chosen_once()
    assert verdicts(machine)[1] == {"right", "waiting for a reboot"}
    host(machine, "revert", "--yes").check()
    assert loader.chosen_once() == ""
    assert tree(machine) == before


def lasting_and_taken_back(machine: Machine) -> None:
    """Go through a trial as below, then leave by the fallback entry, and revert. Raises AssertionError.

    What is applied at once comes to the same as what was confirmed (tests/host/test_trials.py), and
    `there_and_back` boots it.
    """
    before, images_before = tree(machine), images(machine)
    on_trial(machine)
    left_and_taken_back(machine, before, images_before)


def on_trial(machine: Machine) -> None:
    """Try in one boot that a power cut ends, confirm a second one, and boot that. Raises AssertionError."""
    loader = bootloader.of(machine)
    assert "nothing is on trial" in host(machine, "confirm", "--yes").error_text
    host(machine, "apply", *WISHES, "--trial", "--yes").check()
    assert "this boot is not the trial" in host(machine, "confirm", "--yes").error_text

    machine.reboot()
    assert {"iommu=pt", "virtpass=trial"} <= set(loader.arguments())
    assert_bound_early(machine)
    assert verdicts(machine)[1] == {"right"}

    machine.reset()
    assert not {"iommu=pt", "virtpass=trial"} & set(loader.arguments())
    assert has_only_host_drivers(machine)
    assert host(machine, "status").status == 1

    again = host(machine, "apply", *WISHES, "--trial", "--yes").check()
    assert "the next boot tries it" in again.error_text
    assert "virtpass" in loader.chosen_once()
    assert host(machine, "status").status == 0
    machine.reboot()
    host(machine, "confirm", "--yes").check()
    machine.reboot()
    assert "iommu=pt" in loader.arguments()
    assert "virtpass=trial" not in loader.arguments()
    assert_bound_early(machine)
    assert host(machine, "status").status == 0
    assert loader.chosen_once() == ""
