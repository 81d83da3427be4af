"""The main job, for people to see: a card goes from the host to a virtual machine and comes back.

Boots a machine of the lab, installs the Debian package in it, runs the real commands and prints them with
their real output. Pictures of the card's monitor and a transcript as one HTML page go to ``build/demo``.
The exit status is 0 only if every state was read back from the machine and was right.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

from . import image, topology
from .debian import BuildError
from .guest import Guest, draws
from .machine import Machine, MachineLost, Result
from .picture import Picture
from .progress import say
from .transcript import Transcript

ROOT = Path(__file__).parents[2]
OUTPUT = ROOT / "build" / "demo"

# The blinking cursor is less than this share of the picture.
CURSOR = 0.01

HOST_DRIVERS = {topology.CARD: "bochs-drm", topology.CARD_AUDIO: "snd_hda_intel"}
LENT_DRIVERS = dict.fromkeys(HOST_DRIVERS, "vfio-pci")


class Demo:
    """One run: what is done, shown and checked."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.guest = Guest(machine)
        self.transcript = Transcript()
        self.failures: list[str] = []

    def title(self, text: str) -> None:
        """Begin a part."""
        print(f"\n== {text}", flush=True)
        self.transcript.title(text)

    def run(self, *argv: str) -> Result:
        """Run a command inside and show it as it would look there."""
        command = shlex.join(argv)
        print(f"\nroot@lab:~# {command}", flush=True)
        result = self.machine.run(argv, timeout=300)
        output = (result.text + result.error_text).rstrip("\n")
        print(output, flush=True)
        self.transcript.command(command, output, result.status)
        self.expect(result.status == 0, f"{command} succeeds")
        return result

    def expect(self, holds: bool, what: str) -> None:
        """Check something that was read back from the machine, and show what came of it."""
        print(f"   {'ok ' if holds else 'NOT'}  {what}", flush=True)
        self.transcript.check(holds, what)
        if not holds:
            self.failures.append(what)

    def drivers(self, expected: dict[str, str]) -> None:
        """Check the drivers of the card as the kernel reports them."""
        for address, driver in expected.items():
            seen = self.machine.driver(address) or "no driver"
            self.expect(seen == driver, f"the kernel says: {address} is bound to {seen}")

    def picture(self, name: str, caption: str) -> Picture:
        """Save what the card's monitor shows."""
        path = OUTPUT / f"{name}.png"
        taken = self.machine.screendump(path)
        print(f"   picture  {path.relative_to(ROOT)}: {caption}", flush=True)
        self.transcript.picture(path, caption)
        return taken


def main() -> int:
    """Run the demo; return its exit status."""
    packages = sorted((ROOT / "dist").glob("virtpass_*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        say("no Debian package in dist/: make deb builds it")
        return 1
    OUTPUT.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        with Machine(image.ready()) as machine:
            say("the machine is ready")
            machine.install(packages[-1])
            say(f"{packages[-1].name} is installed in it")
            demo = Demo(machine)
            try:
                play(demo)
            except AssertionError as error:
                demo.expect(False, str(error))
    except (BuildError, MachineLost) as error:
        say(str(error))
        return 1
    page = OUTPUT / "index.html"
    page.write_text(demo.transcript.page(), encoding="utf-8")
    print(f"\ntranscript  {page.relative_to(ROOT)}")
    for failure in demo.failures:
        print(f"NOT as it should be: {failure}")
    print(f"{'FAILED' if demo.failures else 'All states were right'}, {time.monotonic() - began:.0f} s")
    return 1 if demo.failures else 0


def play(demo: Demo) -> None:
    """Do the main job once with `virsh shutdown` and once with `virsh destroy`."""
    machine, guest = demo.machine, demo.guest
    guest.define()

    demo.title("The host has one card, and its console is on it")
    demo.run("virtpass")
    demo.run("virtpass", "devices")
    demo.drivers(HOST_DRIVERS)
    console = demo.picture("1-before", "The host's console, on the only card of the host")
    demo.expect(not console.is_blank() and not draws(console), "the monitor shows the host's console")

    demo.title("Once: the hook, and the card for the domain")
    demo.run("virtpass", "hook", "install")
    demo.run("virtpass", "domain", "attach", "guest", "01:00.0")
    demo.drivers(HOST_DRIVERS)

    demo.title("The domain starts: the card goes to it")
    start(demo)
    seen = guest.wait_ready()
    for address, driver in (("0000:01:00.0", "bochs-drm"), ("0000:01:00.1", "snd_hda_intel")):
        found = seen[address].driver if address in seen else "nothing"
        demo.expect(found == driver, f"the guest says: its {address} is bound to {found}")
    machine.wait_until(lambda: draws(machine.picture()), "the guest draws on the monitor")
    during = demo.picture("2-during", "The same monitor, drawn by the guest's own driver")
    demo.expect(draws(during), "the monitor shows what the guest draws")
    demo.run("virtpass")

    demo.title("The domain shuts down: the card comes back")
    demo.run("virsh", "shutdown", "guest")
    machine.wait_until(lambda: guest.state() == "shut off", "the guest is off", timeout=120)
    returned(demo, console)
    demo.picture("3-after", "The host's console again")

    demo.title("And once more, with the domain destroyed")
    start(demo)
    demo.run("virsh", "destroy", "guest")
    returned(demo, console)
    demo.run("virtpass")


def start(demo: Demo) -> None:
    """Start the domain and see that it has the card."""
    demo.run("virsh", "start", "guest")
    demo.drivers(LENT_DRIVERS)


def returned(demo: Demo, console: Picture) -> None:
    """See that the card and its picture are the host's again."""
    demo.drivers(HOST_DRIVERS)
    machine = demo.machine
    machine.wait_until(
        lambda: console.difference(machine.picture()) < CURSOR, "the monitor shows the host's console again"
    )
    demo.expect(True, "the monitor shows the host's console again")


if __name__ == "__main__":
    sys.exit(main())
