"""The installed hook, killed or stopped before one of its accesses to the host.

Killed it leaves things half done. Stopped it goes on when it is told to, in a host that has changed since.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from .guest import Guest
from .machine import Machine, Result
from .virtpass import AS_LIBVIRT, HOOK, covered, live_xml

PAYLOADS = "/var/lib/virtpass/hook"
# More than any hand-over has: the hook comes to its end.
NEVER = 1 << 20
# As libvirt calls the hook.
SUBOPERATIONS = {"prepare": "begin", "release": "end"}
_MARK = "access: "
# Lies over the installed hook where libvirt is to call one that stops.
_STAND_IN = "/run/hook-that-stops"

# Runs the hook, and sends it the signal `sys.argv[3]` before the access number `sys.argv[2]` to its records,
# to a device or to a program, or before the first one with that text in it. Each access is named on standard
# error; at last the one that does not happen, if the signal kills.
_SIGNALLED = f"""
import os, sys
sys.path.insert(0, sys.argv[1])
from virtpass.system.host import Host
text, left = ("", int(sys.argv[2])) if sys.argv[2].isdigit() else (sys.argv[2], {NEVER})
def counted(name, access):
    def call(host, *arguments, **options):
        global left, text
        left -= 1
        words = arguments[0] if isinstance(arguments[0], list) else [name, *map(str, arguments[:2])]
        line = " ".join(words).replace("\\n", " ")
        os.write(2, ({_MARK!r} + line + "\\n").encode())
        if left < 0 or (text and text in line):
            left, text = {NEVER}, ""
            os.kill(os.getpid(), int(sys.argv[3]))
        return access(host, *arguments, **options)
    return call
for name in ("replace_own", "append_own", "remove_own", "write_attribute", "run", "run_program"):
    setattr(Host, name, counted(name, getattr(Host, name)))
from virtpass.hook.entry import main
os._exit(main(sys.argv[4:]))
"""


def killed(machine: Machine, guest: Guest, operation: str, access: int | str) -> Result:
    """Run the hook for one operation of libvirt, confined as by libvirt, and kill it before an access.

    `access` counts them from 0, or is a part of what `accesses` says of it.
    """
    hook = ["sh", "-c", f'{_command(machine, access, signal.SIGKILL)} "$@"', "sh"]
    call = [guest.name, operation, SUBOPERATIONS[operation], "-"]
    return machine.run([*AS_LIBVIRT, *hook, *call], live_xml(machine, guest.name), timeout=120)


class Stopped:
    """The hook that stops before one of its accesses."""

    def __init__(self, machine: Machine) -> None:
        """Used by `stopping`."""
        self._machine = machine

    def wait(self) -> None:
        """Wait until it has stopped."""
        self._machine.wait_until(lambda: self._processes() != [], "the hook has stopped")

    def go_on(self) -> None:
        """Let it go on, if it has stopped."""
        for process in self._processes():
            self._machine.run(["kill", "-CONT", process]).check()

    def _processes(self) -> list[str]:
        argv = ["pgrep", "--runstates", "T", "-f", "virtpass.hook.entry"]
        return self._machine.run(argv).text.split()


@contextmanager
def stopping(machine: Machine, access: str) -> Iterator[Stopped]:
    """Have the installed hook, whoever calls it, stop before its first access with that text in it."""
    stand_in = f'#!/bin/sh\n{_command(machine, access, signal.SIGSTOP)} "$@"\n'
    machine.put(stand_in, _STAND_IN, mode=0o755)
    hook = Stopped(machine)
    try:
        with covered(machine, HOOK, _STAND_IN):
            try:
                yield hook
            finally:
                # Whatever has failed meanwhile.
                hook.go_on()
    finally:
        machine.run(["rm", _STAND_IN]).check()


def _command(machine: Machine, access: int | str, number: signal.Signals) -> str:
    """Return the command of a shell that runs the hook, and sends it a signal; its arguments follow."""
    (payload,) = machine.run(["sh", "-c", f"echo {PAYLOADS}/*/"]).text.split()
    words = ["python3", "-ISc", _SIGNALLED, payload, str(access), str(int(number))]
    # Descriptor 3 is what the gate would have read already.
    return f"exec 3< /dev/null {shlex.join(words)}"


def accesses(result: Result) -> list[str]:
    """Return what a hook has accessed, in order; at last what it was killed before."""
    lines = result.error_text.splitlines()
    return [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]


def telling(accessed: list[str], alike: str) -> list[int]:
    """Return before which accesses to kill: of those with the text `alike` only the first and the last."""
    many = [number for number, one in enumerate(accessed) if alike in one]
    assert len(many) > 2
    return [number for number in range(len(accessed)) if number not in many[1:-1]]
