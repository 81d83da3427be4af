"""``make bench``: prints tables and writes ``build/bench.json``.

First what needs no virtual machine, then what a machine of the lab has to say. Every figure is a ratio
between two things that were measured in turns, so that a machine which changes its speed changes both. The
median of the pairs' ratios is what counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.bench import lab
from tests.bench.figure import Figure, figure, print_figures
from tests.lab.debian import BuildError
from tests.lab.machine import CommandFailed, CommandTimeout, MachineLost
from tests.lab.progress import say
from tests.simulation import AUDIO, CARD, SimulatedHost, desktop, domain_xml
from virtpass.hook import payload
from virtpass.operations.devices import list_devices
from virtpass.pci.address import PciAddress

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "bench.json"
PYTHON = "/usr/bin/python3"

# A domain as virt-install makes it has about this much XML after its memory's size.
REST = b"  <!-- " + b"x" * 6000 + b" -->\n"


# The hook as libvirt runs it, on a simulated kernel. Its writes go through the real child first, to a file
# that does nothing; what the simulated kernel does then is the kernel's own time, and is told on standard
# output.
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.simulation import SimulatedHost
from virtpass.hook.entry import run
from virtpass.system.host import Host
import os, time

class Measured(SimulatedHost):
    kernel = 0.0
    def write_attribute(self, path, value, deadline):
        Host.write_attribute(self, "/scratch", value, deadline)
        began = time.perf_counter()
        SimulatedHost.write_attribute(self, path, value, deadline)
        self.kernel += time.perf_counter() - began
    def read_attribute(self, path, deadline):
        return Host.read_attribute(self, path, deadline)
    def read_device(self, path, limit, deadline):
        return Host.read_device(self, path, limit, deadline)

host = Measured(sys.argv[2])
status = run(host, sys.argv[3], open(sys.argv[4], "rb").read())
os.write(1, str(host.kernel).encode())
os._exit(status)
"""


def spawn(
    argv: list[str],
    stdin: bytes = b"",
    environment: dict[str, str] | None = None,
    *,
    excluding: bool = False,
) -> Callable[[], float]:
    """Return a function that runs a program once and returns the seconds from start to end.

    Args:
        argv: the program.
        stdin: what it reads.
        environment: its environment, by default the search path only.
        excluding: take off the seconds that the program prints.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the function)

    def run() -> float:
        said.seek(0)
        said.truncate()
        reading, writing = os.pipe()
        if stdin:
            os.write(writing, stdin)
        os.close(writing)
        actions = [
            (os.POSIX_SPAWN_DUP2, reading, 0),
            (os.POSIX_SPAWN_DUP2, said.fileno(), 1),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        began = time.perf_counter()
        child = os.posix_spawn(
            argv[0], argv, environment or {"PATH": os.environ["PATH"]}, file_actions=actions
        )
        _, status = os.waitpid(child, 0)
        took = time.perf_counter() - began
        os.close(reading)
        if status:
            raise RuntimeError(f"{argv} ended with status {os.waitstatus_to_exitcode(status)}")
        if not excluding:
            return took
        said.seek(0)
        return took - float(said.read())

    return run


def compare(
    name: str,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    aim: float,
    runs: int,
    after: Callable[[], object] = int,
) -> Figure:
    """Measure two things in turns.

    Args:
        name: what is measured.
        ours: does our thing and returns its seconds.
        theirs: does the other thing.
        aim: the wanted ratio.
        runs: pairs to count; two more warm up.
        after: puts things back after each run of ours; not measured.
    """
    pairs = []
    for number in range(runs + 2):
        pair = (ours(), theirs())
        after()
        if number >= 2:
            pairs.append(pair)
    return figure(name, pairs, aim)


def gate(directory: Path) -> list[Figure]:
    """The gate for a foreign domain, against starting the smallest program."""
    path = directory / "50-virtpass"
    path.write_bytes((ROOT / "hooks" / "50-virtpass").read_bytes())
    path.chmod(0o755)
    xml = domain_xml(CARD, metadata="<o:info xmlns:o='urn:other'><o:os id='12'/></o:info>") + REST
    true = spawn(["/bin/true"])
    return [
        compare(
            f"hook, foreign domain, {operation}",
            spawn([str(path), "guest", *operation.split(), "-"], xml),
            true,
            2.0,
            200,
        )
        for operation in ("prepare begin", "release end", "started begin")
    ]


def hook(directory: Path) -> list[Figure]:
    """Prepare and release of two functions on a simulated kernel, against an empty Python."""
    copy = directory / "payload"
    for module, content in payload.sources().items():
        target = copy / "virtpass" / module
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (copy / "tests").mkdir()
    (copy / "tests" / "__init__.py").write_text("")
    (copy / "tests" / "simulation.py").write_bytes((ROOT / "tests" / "simulation.py").read_bytes())
    subprocess.run([PYTHON, "-IS", "-m", "compileall", "-q", str(copy)], check=True)
    root = directory / "host"
    desktop(str(root)).put("/scratch")
    xml = directory / "domain.xml"
    xml.write_bytes(domain_xml(CARD, AUDIO))

    def program(operation: str) -> list[str]:
        return [PYTHON, "-ISc", PROGRAM, str(copy), str(root), operation, str(xml)]

    prepare, release = (spawn(program(operation), excluding=True) for operation in ("prepare", "release"))
    empty = spawn([PYTHON, "-IS", "-c", "pass"])

    def prepared() -> float:
        prepare()
        return release()

    return [
        compare("hook, prepare of two functions", prepare, empty, 2.0, 60, after=release),
        compare("hook, release of two functions", prepared, empty, 2.0, 60),
    ]


def alone() -> list[Figure]:
    """The command alone, against Python's start and a fifth of a second."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    empty = spawn([PYTHON, "-c", "pass"])
    overview = spawn([PYTHON, "-m", "virtpass"], environment=environment)
    name = "virtpass alone, against python's start and 0.2 s"
    return [compare(name, overview, lambda: empty() + 0.2, 1.0, 30)]


def devices(directory: Path) -> list[Figure]:
    """The list of devices, against lspci; and its growth with the number of devices."""
    listing = [PYTHON, "-m", "virtpass", "devices", "--json"]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    figures = [
        compare(
            "virtpass devices --json",
            spawn(listing, environment=environment),
            spawn(["/usr/bin/lspci", "-nnk"]),
            3.0,
            30,
        )
    ]
    trees = {count: generated(directory / str(count), count) for count in (10, 1000, 10000)}

    def each(count: int) -> Callable[[], float]:
        def run() -> float:
            began = time.perf_counter()
            assert len(list_devices(trees[count])) == count
            return (time.perf_counter() - began) / count

        return run

    figures.append(compare("each of 1,000 devices, against each of 10", each(1000), each(10), 1.5, 5))
    figures.append(compare("each of 10,000 devices, against each of 1,000", each(10000), each(1000), 1.5, 3))
    return figures


def generated(root: Path, count: int) -> SimulatedHost:
    """Build a host with many devices, each in its own group."""
    host = SimulatedHost(str(root))
    for number in range(count):
        address = PciAddress(number >> 16, number >> 8 & 0xFF, number >> 3 & 0x1F, number & 7)
        host.add_device(address, group=number, native="e1000e")
    return host


def main() -> int:
    """Run all benchmarks; return the exit status, which says nothing of the figures."""
    packages = sorted((ROOT / "dist").glob("virtpass_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        say("no Debian package in dist/: make deb builds it")
        return 1
    # In memory, as /run is where the hook writes.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        figures = [*gate(directory), *hook(directory), *alone(), *devices(directory)]
    print_figures(figures)
    write(figures)
    try:
        seconds = lab.measure(packages[-1])
    except (BuildError, CommandFailed, CommandTimeout, MachineLost) as error:
        say(str(error))
        return 1
    compared = lab.figures(seconds)
    lab.print_ways(seconds)
    print_figures(compared)
    write([*figures, *compared])
    print(f"written to {OUTPUT.relative_to(ROOT)}")
    return 0


def write(figures: list[Figure]) -> None:
    """Write comparisons to the file."""
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps([asdict(one) for one in figures], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
