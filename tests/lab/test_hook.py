"""The hook as it is installed on a real system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import topology
from .guest import Guest
from .machine import Machine
from .virtpass import HOOK, call_hook, journals, live_xml, read_json, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

OLD = "/etc/libvirt/hooks/qemu"
LOG = "/run/old-hook.log"

# Written for any shell, and careless as such scripts are.
OLD_HOOK = f"""#!/bin/sh
echo "$@" >> {LOG}
cat > /dev/null
"""


@pytest.fixture
def hooked(machine: Machine) -> Iterator[None]:
    virtpass(machine, "hook", "install").check()
    yield
    virtpass(machine, "hook", "install").check()


def listing(machine: Machine) -> str:
    """Return everything below the directories that installing the hook touches."""
    found = machine.run(["find", "/etc/libvirt/hooks", "/var/lib/virtpass", "-printf", "%p %m %u\\n"])
    return "\n".join(sorted(found.text.splitlines()))


def test_it_is_installed_once_and_gone_without_a_trace(machine: Machine) -> None:
    virtpass(machine, "hook", "uninstall").check()
    before = listing(machine)
    # It ends when nobody has asked it anything for a while.
    assert machine.daemon()
    installed = virtpass(machine, "hook", "install").check()
    assert "libvirtd.service reloaded" in installed.error_text
    executables = machine.run(["find", "/etc/libvirt/hooks", "-type", "f", "-perm", "/111"]).text.split()
    assert executables == [HOOK]
    assert machine.run(["stat", "-c", "%U %a", HOOK]).text.split() == ["root", "755"]
    after = listing(machine)
    assert "already" in virtpass(machine, "hook", "install").check().error_text
    assert listing(machine) == after
    virtpass(machine, "hook", "uninstall").check()
    assert listing(machine) == before
    assert virtpass(machine, "hook", "status").status == 1


@pytest.mark.usefixtures("hooked")
def test_an_old_hook_of_the_user_runs_beside_it(machine: Machine, guest: Guest) -> None:
    machine.put(OLD_HOOK, OLD, mode=0o755)
    try:
        assert read_json(machine, "hook", "status")["others"] == [OLD]
        virtpass(machine, "domain", "attach", "guest", topology.NIC).check()
        guest.start().check()
        assert machine.driver(topology.NIC) == "vfio-pci"
        guest.destroy()
        assert machine.driver(topology.NIC) == "e1000e"
        operations = [line.split()[1] for line in machine.get(LOG).decode().splitlines()]
        assert operations == ["prepare", "start", "started", "stopped", "release"]
    finally:
        machine.run(["rm", "-f", OLD, LOG]).check()


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize(
    ("xml", "status"),
    [
        (b"", 0),
        (b"no xml at all", 0),
        (b"x" * (4 << 20), 0),
        (b"<!DOCTYPE d [<!ENTITY a 'b'>]>\n<domain>urn:virtpass:passthrough:1 &a;</domain>", 1),
        (b"<domain>urn:virtpass:passthrough:1", 1),
    ],
)
def test_rubbish_on_its_input_changes_nothing(machine: Machine, xml: bytes, status: int) -> None:
    before = machine.state()
    for operation, suboperation in (("prepare", "begin"), ("release", "end")):
        done = call_hook(machine, "guest", operation, suboperation, xml)
        assert (done.status, done.text) == (status, "")
        assert done.error_text.count("\n") == status
    assert machine.state() == before
    assert journals(machine) == []


@pytest.mark.usefixtures("hooked")
def test_operations_of_others_say_nothing(machine: Machine, guest: Guest) -> None:
    virtpass(machine, "domain", "attach", "guest", topology.NIC).check()
    xml = live_xml(machine, "guest")
    before = machine.state()
    for operation in ("start", "started", "stopped", "reconnect", "restore", "migrate", "attach", "tomorrow"):
        done = call_hook(machine, "guest", operation, "begin", xml)
        assert (done.status, done.text, done.error_text) == (0, "", "")
    assert machine.state() == before


@pytest.mark.usefixtures("hooked")
def test_an_ordinary_user_s_daemon_runs_it_to_no_effect(machine: Machine, guest: Guest) -> None:
    virtpass(machine, "domain", "attach", "guest", topology.NIC).check()
    done = machine.run(
        ["setpriv", "--reuid", "nobody", "--clear-groups", HOOK, "guest", "prepare", "begin", "-"],
        live_xml(machine, "guest"),
    )
    assert (done.status, done.text, done.error_text) == (0, "", "")
    assert machine.driver(topology.NIC) == "e1000e"


def test_it_is_not_removed_while_a_card_is_lent(machine: Machine, guest: Guest, hooked: None) -> None:
    virtpass(machine, "domain", "attach", "guest", topology.NIC).check()
    guest.start().check()
    refused = virtpass(machine, "hook", "uninstall")
    assert refused.status == 4
    assert "lent to the domain guest" in refused.error_text
    guest.destroy()
    assert machine.driver(topology.NIC) == "e1000e"


@pytest.mark.usefixtures("hooked")
def test_without_the_hook_libvirt_itself_does_the_job(machine: Machine, guest: Guest) -> None:
    """What managed='yes' is for: whoever removes virtpass keeps domains that start."""
    virtpass(machine, "domain", "attach", "guest", topology.NIC).check()
    virtpass(machine, "hook", "uninstall").check()
    guest.start().check()
    assert machine.driver(topology.NIC) == "vfio-pci"
    guest.destroy()
    assert machine.driver(topology.NIC) == "e1000e"
