"""Giving a card away and taking it back on a real kernel with the real libvirt, in a machine of the lab."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from tests.lab import driverctl, image, topology
from tests.lab.guest import Guest
from tests.lab.machine import Machine
from tests.lab.progress import say
from tests.lab.virtpass import HOOK, live_xml, virtpass

from .figure import Figure, figure

ROUNDS = 9
# Seconds. One takes some 15 under TCG.
ROUND_DEADLINE = 120
SCRIPT = Path(__file__).parent / "rounds.py"
SCRIPT_INSIDE = "/root/rounds.py"

# The ways of rounds.py, in words.
WAYS = {
    "bare": "writes to sysfs alone, no process",
    "start": "the same after a start of Python's interpreter",
    "libraries": "the same after importing click and libvirt",
    "virsh": "virsh nodedev-detach, nodedev-reattach",
    "driverctl": "driverctl set-override, unset-override",
    "hook": "the hook: prepare, release",
    "device": "virtpass device detach, reattach",
}

# There and back, for each round.
Seconds = dict[str, list[tuple[float, float]]]


def measure(package: Path) -> Seconds:
    """Measure in a fresh machine.

    Args:
        package: the Debian package of virtpass.

    Raises:
        BuildError: the machine's image, or driverctl, cannot be had.
        MachineLost, CommandFailed: it went wrong inside.
    """
    with Machine(image.ready()) as machine:
        machine.install(package)
        machine.put(driverctl.program(image.cache()), driverctl.INSIDE, 0o755)
        machine.put(SCRIPT, SCRIPT_INSIDE)
        guest = Guest(machine)
        guest.define()
        virtpass(machine, "hook", "install").check()
        virtpass(machine, "domain", "attach", guest.name, topology.CARD).check()
        told = {
            # In the order in which virtpass lends them.
            "functions": [topology.CARD_AUDIO, topology.CARD],
            "hook": HOOK,
            "domain": guest.name,
            "xml": live_xml(machine, guest.name).decode(),
            "rounds": ROUNDS,
        }
        say(f"the machine is ready; {ROUNDS} rounds of {len(WAYS)} ways, some minutes")
        argv = ["python3", SCRIPT_INSIDE]
        done = machine.run(argv, json.dumps(told).encode(), timeout=(ROUNDS + 1) * ROUND_DEADLINE).check()
    return {name: [(there, back) for there, back in rounds] for name, rounds in json.loads(done.text).items()}


def figures(seconds: Seconds) -> list[Figure]:
    """Return what the ways are to each other, round by round."""
    whole = {name: [there + back for there, back in rounds] for name, rounds in seconds.items()}
    others = [min(pair) for pair in zip(whole["virsh"], whole["driverctl"], strict=True)]
    return [
        figure(name, list(zip(whole[ours], theirs, strict=True)), aim)
        for name, ours, theirs, aim in (
            ("lab: hook, against bare writes to sysfs", "hook", whole["bare"], 2.0),
            ("lab: hook, against the faster of virsh and driverctl", "hook", others, 0.6),
            ("lab: virtpass device, against virsh", "device", whole["virsh"], 1.3),
        )
    ]


def print_ways(seconds: Seconds) -> None:
    """Print the medians of the ways as a table."""
    print(f"{'a card with its audio function':<52} {'there':>8} {'back':>8} {'both':>8}")
    for name, words in WAYS.items():
        rounds = seconds[name]
        medians = (
            statistics.median(there for there, _ in rounds),
            statistics.median(back for _, back in rounds),
            statistics.median(there + back for there, back in rounds),
        )
        print(f"{words:<52} {' '.join(f'{median:>6.2f} s' for median in medians)}")
