"""Processors that a guest has for itself.

QEMU has no frequencies of processors: a module of the lab's own (`faulty/lab_cpufreq.c`) stands in for them.
All else is real: systemd, control groups, interrupts, the kernel's governors.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from . import topology
from .confinement import assert_confined, assert_nothing_denied
from .guest import Guest, domain_xml
from .killed import NEVER, accesses, killed, telling
from .machine import Machine, Result
from .virtpass import journals, prepare, release, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

NIC = topology.NIC
# What systemd has the host's programs in, and one of them in each.
UNITS = ("user.slice", "system.slice", "init.scope")
# (None of the host's own: libvirt's daemon ends after two idle minutes.)
USER, SYSTEM = "lab-user.service", "lab-system.service"
ALL = dict.fromkeys(UNITS, ("0-1", "0-1"))
FIRST_ONLY = dict.fromkeys(UNITS, ("0", "0"))
# In kHz, of the stand-in.
SLOW, FAST = "1000000", "2000000"


@pytest.fixture(scope="module")
def machine(two_processors: Machine) -> Machine:
    """The machine, with a program in each unit."""
    begin_programs(two_processors)
    return two_processors


def begin_programs(machine: Machine) -> None:
    """Run a program in each unit."""
    for slice_, unit in (("user.slice", USER), ("system.slice", SYSTEM)):
        machine.run(["systemd-run", f"--slice={slice_}", f"--unit={unit}", "sleep", "infinity"]).check()


@pytest.fixture(autouse=True)
def nothing_is_left(machine: Machine) -> Iterator[list[object]]:
    """Whatever a test does, the host is afterwards what it was before: as the one thing in the list tells."""
    set_governor(machine, 0, "schedutil")
    set_governor(machine, 1, "powersave")
    before: list[object] = [traces(machine)]
    yield before
    machine.wait_until(lambda: [traces(machine)] == before, "everything is as before")
    assert journals(machine) == []


def traces(machine: Machine) -> tuple[object, ...]:
    """Return what a hand-over could leave behind."""
    return (
        machine.state(),
        allowed(machine),
        drop_ins(machine),
        interrupts(machine),
        governors(machine),
    )


def shell(machine: Machine, script: str) -> str:
    """Return what a script of the shell prints."""
    return machine.run(["sh", "-c", script]).check().text.strip()


def allowed(machine: Machine) -> dict[str, tuple[str, str]]:
    """Return on which CPUs each unit may run, as its control group and as a program in it has it."""
    # The file is there from the first restriction on.
    lines = shell(
        machine,
        f"cd /sys/fs/cgroup; for pair in user.slice={USER} system.slice={SYSTEM} init.scope=; do\n"
        "unit=${pair%%=*}; service=${pair#*=}; file=$unit/cpuset.cpus.effective\n"
        "[ -e $file ] || file=cpuset.cpus.effective\n"
        'id=1; [ -z "$service" ] || id=$(systemctl show -P MainPID "$service")\n'
        "echo $unit $(cat $file) $(sed -n 's/^Cpus_allowed_list:\\s*//p' /proc/$id/status); done",
    ).splitlines()
    return {unit: (group, program) for unit, group, program in (line.split() for line in lines)}


def drop_ins(machine: Machine) -> list[str]:
    """Return the properties that systemd keeps at run time."""
    found = machine.run(["find", "/run/systemd/system.control", "/run/systemd/transient", "-name", "50-*"])
    return sorted(found.text.split())


def interrupts(machine: Machine) -> dict[str, str]:
    """Return the CPUs of each interrupt that somebody handles: others stay listed once they had a user."""
    script = (
        'cd /proc/irq; for one in */*/; do one=${one%%/*}; echo "$one $(cat "$one/smp_affinity_list")"; done'
    )
    return dict(line.split() for line in shell(machine, script).splitlines())


def governors(machine: Machine) -> list[str]:
    """Return the governor of each CPU."""
    return shell(machine, "cat /sys/devices/system/cpu/cpu[01]/cpufreq/scaling_governor").split()


def frequency(machine: Machine, cpu: int) -> str:
    """Return what the governor of a CPU has asked its driver for."""
    return machine.get(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq").decode().strip()


def set_governor(machine: Machine, cpu: int, governor: str) -> None:
    """Set the governor of a CPU as the administrator does."""
    shell(machine, f"echo {governor} > /sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor")


def tuned(guest: Guest, *policy: str, pinned: str = "1") -> None:
    """Pin a guest to a CPU, unless that is none, and give it a NIC and a policy."""
    xml = domain_xml(guest.machine, guest.name)
    if pinned:
        pins = f"<cputune><vcpupin vcpu='0' cpuset='{pinned}'/></cputune>"
        xml = xml.replace("<os>", f"{pins}<os>", 1)
    guest.machine.run(["virsh", "define", "/dev/stdin"], xml.encode()).check()
    virtpass(guest.machine, "domain", "attach", guest.name, NIC).check()
    virtpass(guest.machine, "domain", "policy", guest.name, *policy).check()


def test_a_guest_has_a_fast_processor_for_itself(machine: Machine, small_guest: Guest) -> None:
    before = interrupts(machine)
    assert allowed(machine) == ALL
    assert frequency(machine, 1) == SLOW
    tuned(small_guest, "isolate-cpus=yes", "governor=performance")
    small_guest.start().check()

    assert allowed(machine) == FIRST_ONLY
    assert machine.run(["nproc"]).text.strip() == "1"
    threads = "/proc/$(cat /run/libvirt/qemu/guest.pid)/task/*"
    vcpu = shell(machine, f"for one in {threads}; do grep -q '^CPU 0/' $one/comm && cat $one/status; done; :")
    assert "\nCpus_allowed_list:\t1\n" in vcpu

    present = interrupts(machine)
    leaving = [number for number, cpus in before.items() if "1" in cpus]
    moved = [number for number in leaving if present[number] == "0"]
    # The timer, and the queues of disks that the kernel spreads itself.
    staying = [number for number in leaving if number not in moved]
    assert len(moved) > len(staying)
    for number in staying:
        assert present[number] == before[number]
        assert machine.run(["sh", "-c", f"echo 0 > /proc/irq/{number}/smp_affinity_list"]).status != 0

    # Those that nobody handles yet count as well.
    assert re.search(
        r"move \d+ interrupts off CPUs 1, \d+ of which cannot be moved", virtpass(machine, "log").text
    )

    assert governors(machine) == ["schedutil", "performance"]
    assert frequency(machine, 1) == FAST
    # What systemd reads anew is what it has in memory.
    machine.run(["systemctl", "daemon-reload"]).check()
    assert allowed(machine) == FIRST_ONLY

    small_guest.destroy()
    assert interrupts(machine) == before
    assert allowed(machine) == ALL
    assert machine.run(["nproc"]).text.strip() == "2"
    assert governors(machine) == ["schedutil", "powersave"]
    assert frequency(machine, 1) == SLOW
    assert drop_ins(machine) == []
    machine.run(["systemctl", "daemon-reload"]).check()
    assert allowed(machine) == ALL


def test_recover_undoes_what_a_hook_did_wherever_it_was_killed(machine: Machine, small_guest: Guest) -> None:
    """Killed before every access; of interrupts, which are many and alike, before the first and the last."""
    tuned(small_guest, "isolate-cpus=yes", "governor=performance")
    before = traces(machine)
    seen: list[tuple[object, ...]] = []

    def run(operation: str, access: int) -> Result:
        return killed(machine, small_guest, operation, access)

    def lend() -> Result:
        return run("prepare", NEVER).check()

    def make_good(operation: str, access: int, accessed: list[str]) -> None:
        ended = run(operation, access)
        assert ended.status == -signal.SIGKILL, str(ended)
        seen.append((allowed(machine), governors(machine)))
        virtpass(machine, "recover").check()
        assert traces(machine) == before, f"{operation} was killed before {accessed[access]}"

    # The first has to load VFIO's modules.
    lend()
    release(machine, small_guest.name).check()
    accessed = accesses(lend())
    release(machine, small_guest.name).check()
    for access in telling(accessed, "/proc/irq/"):
        make_good("prepare", access, accessed)
    lend()
    accessed = accesses(run("release", NEVER).check())
    for access in telling(accessed, "/proc/irq/"):
        lend()
        make_good("release", access, accessed)
    # It was killed when nothing was done yet, when all was, and in between: with one unit of three.
    assert (ALL, ["schedutil", "powersave"]) in seen
    assert (FIRST_ONLY, ["schedutil", "performance"]) in seen
    assert any(one not in (ALL, FIRST_ONLY) for one, _ in seen)


def test_what_the_administrator_allows_comes_back(machine: Machine, small_guest: Guest) -> None:
    machine.run(["systemctl", "set-property", "user.slice", "AllowedCPUs=0"]).check()
    try:
        before = allowed(machine)
        assert before == ALL | {"user.slice": ("0", "0")}
        tuned(small_guest, "isolate-cpus=yes", pinned="0")
        refused = prepare(small_guest.machine, small_guest.name)
        assert refused.status != 0
        assert "CPUs 0 are all that user.slice may run on" in refused.error_text
        assert allowed(machine) == before
        tuned(small_guest, "isolate-cpus=yes")
        prepare(small_guest.machine, small_guest.name).check()
        assert allowed(machine) == FIRST_ONLY
        release(small_guest.machine, small_guest.name).check()
        assert allowed(machine) == before
        machine.run(["systemctl", "daemon-reload"]).check()
        assert allowed(machine) == before
    finally:
        # Without a list the kernel would keep what it has.
        machine.run(["systemctl", "set-property", "user.slice", "AllowedCPUs=0-1"]).check()
        machine.run(["systemctl", "revert", "user.slice"]).check()


def test_governors_come_and_go(machine: Machine, small_guest: Guest) -> None:
    tuned(small_guest, "governor=performance", pinned="")
    prepare(small_guest.machine, small_guest.name).check()
    assert governors(machine) == ["performance", "performance"]
    # The kernel loads what it needs for a governor.
    machine.run(["modprobe", "-r", "cpufreq_powersave"]).check()
    release(small_guest.machine, small_guest.name).check()
    assert governors(machine) == ["schedutil", "powersave"]

    # Somebody else's choice stays.
    prepare(small_guest.machine, small_guest.name).check()
    set_governor(machine, 0, "powersave")
    release(small_guest.machine, small_guest.name).check()
    assert governors(machine) == ["powersave", "powersave"]

    # So does a driver that has gone.
    prepare(small_guest.machine, small_guest.name).check()
    machine.run(["modprobe", "-r", "lab_cpufreq"]).check()
    release(small_guest.machine, small_guest.name).check()
    assert journals(machine) == []
    prepare(small_guest.machine, small_guest.name).check()
    assert "no governor performance on this host: the CPUs keep theirs" in virtpass(machine, "log").text
    release(small_guest.machine, small_guest.name).check()
    machine.run(["modprobe", "lab_cpufreq"]).check()
    set_governor(machine, 0, "schedutil")
    set_governor(machine, 1, "powersave")


def test_the_power_fails_while_a_guest_has_a_processor_for_itself(
    machine: Machine, small_guest: Guest, nothing_is_left: list[object]
) -> None:
    """The last test here: the machine boots again, with all CPUs for everybody."""
    state = machine.state()
    tuned(small_guest, "isolate-cpus=yes", "governor=performance")
    small_guest.start().check()
    assert allowed(machine) == FIRST_ONLY
    assert drop_ins(machine) != []
    machine.run(["sync"]).check()
    # The log goes with the power.
    assert_nothing_denied(machine)
    machine.reset()
    assert_confined(machine)
    begin_programs(machine)
    assert machine.state() == state
    assert allowed(machine) == ALL
    assert drop_ins(machine) == []
    assert journals(machine) == []
    assert machine.run(["nproc"]).text.strip() == "2"
    assert small_guest.state() == "shut off"
    # Nobody loads the stand-in for frequencies at boot; what it begins with is the kernel's choice.
    machine.run(["modprobe", "-a", "lab_cpufreq", "cpufreq_powersave"]).check()
    assert "performance" not in governors(machine)
    set_governor(machine, 0, "schedutil")
    set_governor(machine, 1, "powersave")
    # Interrupts have other numbers than those that were left from earlier guests.
    nothing_is_left[:] = [traces(machine)]
