"""What the host needs is not lent: each use is a real one, and seen by the hook before it writes anything."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from . import topology
from .guest import Guest
from .machine import Machine
from .overlay import REACHED
from .virtpass import journals, prepare, release, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

DISK = "/dev/nvme0n1"
CONTROL = "/dev/snd/controlC0"
# A file system, which is made outside: the machine has no tool for it.
MADE = "/run/made.ext4"


class Use(NamedTuple):
    """How a device is used.

    Attributes:
        device: its address.
        begin: what a shell does then; $NIC is the NIC's interface.
        end: the way back.
        words: what the refusal says.
    """

    device: str
    begin: str
    end: str
    words: str


USES = {
    "file-system": Use(
        topology.NVME,
        f"dd if={MADE} of={DISK} status=none && mount -t ext4 {DISK} /mnt",
        "umount /mnt",
        "holds the file system /mnt",
    ),
    "swap": Use(topology.NVME, f"mkswap {DISK} && swapon {DISK}", f"swapoff {DISK}", "holds swap"),
    "default-route": Use(
        topology.NIC,
        "ip link set $NIC up && ip address add 192.0.2.1/24 dev $NIC && ip route add default via 192.0.2.2",
        "ip address flush dev $NIC && ip link set $NIC down",
        "carries the default route",
    ),
    "route-of-a-bridge": Use(
        topology.NIC,
        "ip link add lab-br type bridge && ip link set $NIC master lab-br && ip link set lab-br up"
        " && ip address add 192.0.2.1/24 dev lab-br && ip route add default via 192.0.2.2",
        "ip link delete lab-br",
        "is a port of lab-br",
    ),
    "bond": Use(
        topology.NIC,
        "ip link add lab-bond type bond && ip link set $NIC down && ip link set $NIC master lab-bond",
        "ip link delete lab-bond && ip link set $NIC down",
        "is a port of lab-bond",
    ),
}
# A program that opens something, and whose way of opening it says that it is its own: volumes of ZFS and md
# are held so.
OPENED = {
    "disk": (topology.NVME, DISK, "os.O_RDONLY | os.O_EXCL", "has a disk in use (nvme0n1)"),
    "sound": (topology.CARD, CONTROL, "os.O_RDONLY", "in use by holder (process "),
}


@pytest.fixture
def before(machine: Machine, tmp_path: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """The drivers before the test, which are those after it."""
    subprocess.run(["mke2fs", "-q", "-t", "ext4", str(tmp_path / "made"), "4M"], check=True)
    machine.put(tmp_path / "made", MADE)
    virtpass(machine, "hook", "install").check()
    state = machine.state()
    yield state
    assert machine.state() == state
    assert journals(machine) == []


def shell(machine: Machine, commands: str) -> None:
    interface = machine.run(["ls", f"/sys/bus/pci/devices/{topology.NIC}/net"]).check().text.strip()
    machine.run(["sh", "-euc", commands], env={"NIC": interface}).check()


def refused(machine: Machine, guest: Guest, words: str) -> None:
    """The start is refused with one line; nothing has been written."""
    state = machine.state()
    done = prepare(machine, guest.name)
    assert (done.status, done.text, done.error_text.count("\n")) == (1, "", 1), str(done)
    assert words in done.error_text
    assert machine.state() == state
    assert journals(machine) == []


def lent_and_back(machine: Machine, guest: Guest, device: str) -> None:
    """Free again, it is lent."""
    prepare(machine, guest.name).check()
    assert machine.driver(device) == "vfio-pci"
    release(machine, guest.name).check()


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_what_the_host_uses_is_not_lent(
    machine: Machine, guest: Guest, before: dict[str, tuple[str, str]], use: Use
) -> None:
    virtpass(machine, "domain", "attach", guest.name, use.device).check()
    shell(machine, use.begin)
    try:
        refused(machine, guest, f"{use.device} {use.words}")
    finally:
        shell(machine, use.end)
    lent_and_back(machine, guest, use.device)


@pytest.mark.parametrize(("device", "node", "flags", "words"), OPENED.values(), ids=OPENED.keys())
def test_what_a_program_has_open_is_not_lent(
    machine: Machine,
    guest: Guest,
    before: dict[str, tuple[str, str]],
    device: str,
    node: str,
    flags: str,
    words: str,
) -> None:
    virtpass(machine, "domain", "attach", guest.name, device).check()
    code = (
        "import os, time; open('/proc/self/comm', 'w').write('holder'); "
        f"os.open({node!r}, {flags}); os.open('/run/opened', os.O_CREAT); time.sleep(600)"
    )
    holder = machine.begin(["python3", "-c", code])
    try:
        machine.wait_until(lambda: machine.run(["test", "-e", "/run/opened"]).status == 0, "it is open")
        refused(machine, guest, words)
    finally:
        holder.signal(9)
        holder.wait()
        machine.run(["rm", "-f", "/run/opened"]).check()
    lent_and_back(machine, guest, device)


def test_the_last_console_is_not_lent_where_nobody_could_log_in_any_more(
    machine: Machine, guest: Guest, before: dict[str, tuple[str, str]]
) -> None:
    virtpass(machine, "domain", "attach", guest.name, topology.CARD).check()
    machine.run(["systemctl", "disable", "--now", REACHED]).check()
    try:
        refused(machine, guest, "the last screen of this host would go, and no SSH server was found")
        detach = virtpass(machine, "device", "detach", topology.CARD)
        assert detach.status != 0
        assert "nobody could log in then" in detach.error_text
        virtpass(machine, "domain", "policy", guest.name, "display=hand-over").check()
        lent_and_back(machine, guest, topology.CARD)
        assert "no screen stays here and no SSH server was found" in virtpass(machine, "log", "-n", "2").text
        virtpass(machine, "domain", "policy", guest.name, "display=refuse").check()
    finally:
        machine.run(["systemctl", "enable", "--now", REACHED]).check()
    lent_and_back(machine, guest, topology.CARD)
