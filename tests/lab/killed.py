"""The installed hook, killed before one of its accesses to the host, so that it leaves things half done."""

from __future__ import annotations

from .guest import Guest
from .machine import Machine, Result
from .virtpass import live_xml

PAYLOADS = "/var/lib/virtpass/hook"
# More than any hand-over has: the hook comes to its end.
NEVER = 1 << 20
# As libvirt calls the hook.
SUBOPERATIONS = {"prepare": "begin", "release": "end"}
_MARK = "access: "

# Runs the hook, and kills it before the access number `sys.argv[2]` to its records, to a device or to a
# program, or before the first one with that text in it. Each access is named on standard error, at last the
# one that does not happen.
_KILLED = f"""
import os, sys
sys.path.insert(0, sys.argv[1])
from virtpass.system.host import Host
text, left = ("", int(sys.argv[2])) if sys.argv[2].isdigit() else (sys.argv[2], {NEVER})
def counted(name, access):
    def call(host, *arguments, **options):
        global left
        left -= 1
        words = arguments[0] if isinstance(arguments[0], list) else [name, *map(str, arguments[:2])]
        line = " ".join(words).replace("\\n", " ")
        os.write(2, ({_MARK!r} + line + "\\n").encode())
        if left < 0 or (text and text in line):
            os.kill(os.getpid(), 9)
        return access(host, *arguments, **options)
    return call
for name in ("replace_own", "append_own", "remove_own", "write_attribute", "run", "run_program"):
    setattr(Host, name, counted(name, getattr(Host, name)))
from virtpass.hook.entry import main
os._exit(main(sys.argv[3:]))
"""


def killed(machine: Machine, guest: Guest, operation: str, access: int | str) -> Result:
    """Run the hook for one operation of libvirt, and kill it before one of its accesses.

    `access` counts them from 0, or is a part of what `accesses` says of it.
    """
    (payload,) = machine.run(["sh", "-c", f"echo {PAYLOADS}/*/"]).text.split()
    # Descriptor 3 is what the shell around the hook has read already.
    call = ["sh", "-c", 'exec python3 -ISc "$0" "$@" 3< /dev/null', _KILLED, payload, str(access)]
    xml = live_xml(machine, guest.name)
    return machine.run([*call, guest.name, operation, SUBOPERATIONS[operation], "-"], xml, timeout=120)


def accesses(result: Result) -> list[str]:
    """Return what a hook has accessed, in order; at last what it was killed before."""
    lines = result.error_text.splitlines()
    return [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
