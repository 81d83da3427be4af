"""Runs inside a machine of the lab: gives a card away and takes it back, in each of several ways in turns.

Reads a JSON object on standard input, and writes one to standard output: for each way and round the seconds
there and back. The times are taken here, so that the way into the machine does not count. Needs the standard
library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

VFIO = "vfio-pci"
DEVICES = Path("/sys/bus/pci/devices")
PROBE = Path("/sys/bus/pci/drivers_probe")
REMOVE_ID = Path("/sys/bus/pci/drivers/vfio-pci/remove_id")
# The sound driver looks for its codecs after its probe has returned, and nobody tells when it has ended.
PAUSE = 0.5
STARTS = {
    "start": ["/usr/bin/python3", "-IS", "-c", "pass"],
    "libraries": ["/usr/bin/python3", "-I", "-c", "import click, libvirt"],
}
# Seconds for one command; the slowest takes one or two.
DEADLINE = 60

Move = Callable[[], None]


def write(path: Path, value: str) -> None:
    """Write an attribute of sysfs, in one write."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def run(argv: Sequence[str], stdin: str = "") -> None:
    """Run a command. Raises RuntimeError, with what it said, unless it succeeds."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: status {done.returncode}\n{done.stdout}{done.stderr}")


def driver(address: str) -> str:
    """Return the driver of a function; empty when it has none."""
    link = DEVICES / address / "driver"
    return link.readlink().name if link.is_symlink() else ""


def bare(functions: Sequence[str], override: str) -> None:
    """Bind functions to the driver that the override names, or without one to that of the host."""
    for address in functions:
        write(DEVICES / address / "driver_override", f"{override}\n")
    for address in functions:
        write(DEVICES / address / "driver" / "unbind", address)
        write(PROBE, address)


def each(functions: Sequence[str], argv: Sequence[str], *last: str) -> Move:
    """Return what runs a command for each function, which becomes its argument before the last."""

    def move() -> None:
        for function in functions:
            run([*argv, function, *last])

    return move


def after(argv: Sequence[str], move: Move) -> Move:
    """Return what runs a command and then moves the card."""

    def both() -> None:
        run(argv)
        move()

    return both


def ways(functions: Sequence[str], hook: str, domain: str, xml: str) -> dict[str, tuple[Move, Move]]:
    """Return how a card is given away and taken back, by name.

    Args:
        functions: its functions in the order in which they leave; they come back in the opposite one.
        hook: the installed hook.
        domain: the domain that the hook is told of.
        xml: the domain as libvirt describes it.
    """
    back = functions[::-1]
    names, names_back = (
        [f"pci_{one.replace(':', '_').replace('.', '_')}" for one in order] for order in (functions, back)
    )
    return {
        "bare": (lambda: bare(functions, VFIO), lambda: bare(back, "")),
        # What a hook, and a command, would take that do nothing else.
        **{
            name: (after(argv, lambda: bare(functions, VFIO)), after(argv, lambda: bare(back, "")))
            for name, argv in STARTS.items()
        },
        "virsh": (
            each(names, ["virsh", "nodedev-detach"]),
            each(names_back, ["virsh", "nodedev-reattach"]),
        ),
        "driverctl": (
            each(functions, ["driverctl", "set-override"], VFIO),
            each(back, ["driverctl", "unset-override"]),
        ),
        "hook": (
            lambda: run([hook, domain, "prepare", "begin", "-"], xml),
            lambda: run([hook, domain, "release", "end", "-"], xml),
        ),
        "device": (
            lambda: run(["virtpass", "device", "detach", *functions]),
            lambda: run(["virtpass", "device", "reattach", *back]),
        ),
    }


def measured(move: Move, expected: dict[str, str]) -> float:
    """Move the card and return the seconds. Raises RuntimeError unless it is where it should be."""
    began = time.monotonic()
    move()
    took = time.monotonic() - began
    if (seen := {address: driver(address) for address in expected}) != expected:
        raise RuntimeError(f"the card is not where it should be: {seen} instead of {expected}")
    return took


def settle(functions: Sequence[str]) -> None:
    """Wait for what the kernel and udev still do, and take away what a way leaves behind."""
    run(["udevadm", "settle", "--timeout=50"])
    # driverctl makes the card's ids known to vfio-pci for good.
    for address in functions:
        ids = [(DEVICES / address / name).read_text().strip() for name in ("vendor", "device")]
        try:
            write(REMOVE_ID, " ".join(ids))
        except OSError:
            pass  # they were not
    time.sleep(PAUSE)


def main() -> int:
    """Measure as told on standard input; print the seconds."""
    told = json.load(sys.stdin)
    functions, rounds = told["functions"], told["rounds"]
    home = {address: driver(address) for address in functions}
    lent = dict.fromkeys(functions, VFIO)
    if not all(home.values()) or VFIO in home.values():
        raise RuntimeError(f"the card is not on the host's drivers: {home}")
    # Bare writes load no module, and none of the others should be the one that does.
    run(["modprobe", VFIO])
    moves = ways(functions, told["hook"], told["domain"], told["xml"])
    order = list(moves)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in moves}
    # One round more, to warm up. Each begins with another way, for each finds what the one before has left.
    for number in range(rounds + 1):
        for name in order:
            there, back = moves[name]
            settle(functions)
            away = measured(there, lent)
            settle(functions)
            returned = measured(back, home)
            if number:
                seconds[name].append((away, returned))
        order.append(order.pop(0))
    json.dump(seconds, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
