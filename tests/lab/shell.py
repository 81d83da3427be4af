"""Boots a machine by hand.

`python3 -m tests.lab.shell -- virsh nodedev-list` runs one command in it; without a command, each line of
standard input is run by the machine's /bin/sh, until its end. `screen FILE.png` as a line saves a picture
of the card's monitor, `console` prints the serial console, `reset` cuts the power.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import image, topology
from .debian import BuildError
from .disk import KINDS, STANDARD
from .machine import CommandTimeout, Machine, MachineLost
from .progress import say

COMMAND_TIMEOUT = 600.0


def main() -> int:
    """Boot a machine, do as told, return the status of the last command."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab.shell", description="Boot a machine of the lab."
    )
    parser.add_argument("--flavour", choices=topology.FLAVOURS, default="mixed", help="processor and IOMMU")
    parser.add_argument("--kind", choices=KINDS, default=STANDARD.name, help="the image, and how it boots")
    parser.add_argument(
        "--append", action="append", default=[], metavar="WORD", help="one more kernel argument"
    )
    parser.add_argument("--deb", type=Path, help="a package to install first")
    parser.add_argument("command", nargs="*", help="a command and its arguments")
    options = parser.parse_args()
    flavour, kind = topology.FLAVOURS[options.flavour], KINDS[options.kind]
    if kind.own_loader and options.append:
        parser.error(
            f"--append is not for {kind.name}, which has its kernel arguments from its own bootloader"
        )
    try:
        with Machine(image.ready(kind), flavour=flavour, kernel_arguments=options.append) as machine:
            say("the machine is ready")
            if options.deb:
                machine.install(options.deb)
            if options.command:
                return execute(machine, options.command)
            return interact(machine)
    except (BuildError, MachineLost) as error:
        say(str(error))
        return 1


def interact(machine: Machine) -> int:
    """Run each line of standard input in `machine`; return the status of the last."""
    status = 0
    prompt = "lab# " if sys.stdin.isatty() else ""
    while True:
        sys.stderr.write(prompt)
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            return status
        match line.split():
            case ["screen", file]:
                machine.screendump(Path(file))
            case ["console"]:
                sys.stdout.write(machine.console())
            case ["reset"]:
                machine.reset()
            case _:
                status = execute(machine, ["/bin/sh", "-c", line])


def execute(machine: Machine, argv: list[str]) -> int:
    """Run `argv` in `machine`, pass on what it prints, and return its status."""
    try:
        result = machine.run(argv, timeout=COMMAND_TIMEOUT)
    except CommandTimeout as error:
        say(str(error))
        return 124
    sys.stdout.write(result.text)
    sys.stderr.write(result.error_text)
    sys.stdout.flush()
    return result.status


if __name__ == "__main__":
    sys.exit(main())
