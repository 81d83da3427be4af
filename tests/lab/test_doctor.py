"""A host that lacks something: the doctor says what, by which evidence, and what it tells to type mends it.

What this machine cannot have is simulated in `tests/doctor` only: the rules and booleans of SELinux,
driverctl, NVIDIA's driver, containers, a firmware without IOMMU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from . import image, topology
from .guest import DAEMON, Guest
from .machine import Machine, Result
from .virtpass import AS_LIBVIRT, HOOK, virtpass

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARD, NIC = topology.CARD, topology.NIC
# A display controller behind the bridge, which shares its group with a NIC that the host uses.
BRIDGED_CARD = "0000:07:03.0"
PROFILE = "/etc/apparmor.d/usr.sbin.libvirtd"
LOCAL = "/etc/apparmor.d/local/usr.sbin.libvirtd"
OVERRIDE = f"/sys/bus/pci/devices/{NIC}/driver_override"


class Lack(NamedTuple):
    """Something that a host lacks.

    Attributes:
        broken: the commands that break it.
        check: the check that sees it.
        verdict: what that says.
        evidence: what is in its sentence.
        about: what it is about; empty for nothing in particular.
        afterwards: commands that take away what the remedy leaves.
    """

    broken: str
    check: str
    verdict: str
    evidence: str
    about: str = ""
    afterwards: str = "true"


LACKS = {
    "hook-removed": Lack("virtpass hook uninstall", "hook", "fail", "the hook is not installed"),
    "hook-not-executable": Lack(
        f"chmod -x {HOOK}", "hook", "fail", "not executable, so libvirt does not run it"
    ),
    "hook-edited": Lack(f"echo '# mine' >> {HOOK}", "hook", "fail", "was changed since it was installed"),
    "hook-incomplete": Lack(
        "rm /var/lib/virtpass/hook/*/virtpass/hook/entry.py", "hook", "fail", "is missing or changed"
    ),
    # Written while the daemon did not look: it may have found no hook when it started.
    "daemon-not-told": Lack(
        f"sleep 1.1; touch {HOOK}", "hook-known", "warn", "written after libvirtd.service last looked"
    ),
    "backup-in-qemu.d": Lack(
        f"cp -p {HOOK} {HOOK}.bak",
        "hook-others",
        "warn",
        "looks like a backup, and libvirt runs it",
        about=f"{HOOK}.bak",
        afterwards=f"rm {HOOK}.bak",
    ),
    "apparmor-has-no-rule": Lack(
        f"cp -p {PROFILE} /run/profile; cp -p {LOCAL} /run/local; "
        f"sed -i '\\|/etc/libvirt/hooks/|d' {PROFILE}; apparmor_parser -r {PROFILE}",
        "hook-runs",
        "fail",
        f"has no rule to run {HOOK}",
        afterwards=(f"cat /run/local > {LOCAL}; cat /run/profile > {PROFILE}; apparmor_parser -r {PROFILE}"),
    ),
    "foreign-override": Lack(
        f"echo vfio-pci > {OVERRIDE}",
        "driver-override",
        "warn",
        "is vfio-pci, which virtpass has not set",
        about=NIC,
    ),
    "bound-by-somebody-else": Lack(
        f"modprobe vfio-pci; echo vfio-pci > {OVERRIDE}; echo {NIC} > /sys/bus/pci/drivers/e1000e/unbind;"
        f" echo {NIC} > /sys/bus/pci/drivers_probe",
        "driver-override",
        "warn",
        "is vfio-pci, which virtpass has not set",
        about=NIC,
    ),
    "no-daemon": Lack(
        f"systemctl stop {' '.join(DAEMON)}",
        "libvirt",
        "fail",
        "libvirt does not answer",
        afterwards=f"systemctl start {' '.join(DAEMON)}",
    ),
}


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[Machine]:
    """The machine of all tests, with the hook; without again if it had none."""
    had_one = virtpass(machine, "hook", "status").status == 0
    virtpass(machine, "hook", "install").check()
    yield machine
    if not had_one:
        virtpass(machine, "hook", "uninstall").check()


@pytest.fixture(scope="module")
def all_amd(package: Path) -> Iterator[Machine]:
    """A machine with processor and IOMMU of one maker, for this module alone."""
    with Machine(image.ready(), flavour=topology.AMD) as machine:
        machine.install(package)
        yield machine


def outcomes(machine: Machine) -> dict[str, Any]:
    """Return what the doctor says of each thing."""
    found = json.loads(virtpass(machine, "doctor", "--json").text)
    return {one["id"]: one for one in found["checks"]}


def finding(machine: Machine, check: str, about: str = "") -> dict[str, Any]:
    """Return the worst that a check says of one thing."""
    found: list[dict[str, Any]] = outcomes(machine)[check]["findings"]
    return next(one for one in found if not about or one["about"] == about)


def shell(machine: Machine, commands: str) -> Result:
    """Run commands as a user would type them; whoever types here is root already."""
    return machine.run(["sh", "-c", f'sudo() {{ "$@"; }}\n{commands}'], timeout=180)


@pytest.mark.parametrize("lack", LACKS.values(), ids=list(LACKS))
def test_a_lack_is_seen_and_mended_by_what_is_printed(host: Machine, lack: Lack) -> None:
    before = outcomes(host)[lack.check]
    assert before["verdict"] == "pass", before
    shell(host, lack.broken).check()
    try:
        seen = finding(host, lack.check, lack.about)
        assert seen["verdict"] == lack.verdict, seen
        assert lack.evidence in seen["evidence"]
        shell(host, seen["fix"]).check()
        after = outcomes(host)[lack.check]
        assert after["verdict"] == "pass", after
    finally:
        shell(host, lack.afterwards).check()
    assert outcomes(host)["hook"]["verdict"] == "pass"


def test_a_rule_of_apparmor_that_forbids_the_hook(host: Machine) -> None:
    """The administrator's own rule beats that of libvirt's profile; the kernel refuses the hook by it."""
    as_libvirt = [*AS_LIBVIRT, HOOK, "guest", "started", "begin", "-"]
    host.run(as_libvirt).check()
    rule = "deny /etc/libvirt/hooks/** x,"
    shell(host, f"cp -p {LOCAL} /run/local; echo '{rule}' >> {LOCAL}; apparmor_parser -r {PROFILE}").check()
    try:
        assert host.run(as_libvirt).status != 0
        seen = finding(host, "hook-runs")
        assert seen["verdict"] == "fail"
        assert f"{rule} in {LOCAL}" in seen["evidence"]
        what, _, command = seen["fix"].partition(", then: ")
        assert what == f"take that rule out of {LOCAL}"
        shell(host, f"cat /run/local > {LOCAL}\n{command}").check()
        host.run(as_libvirt).check()
        assert outcomes(host)["hook-runs"]["verdict"] == "pass"
    finally:
        shell(host, f"cat /run/local > {LOCAL}; apparmor_parser -r {PROFILE}").check()


# What virt-host-validate looks at, by the end of its line: the check here that has to say the same.
COMPARED = {
    "for hardware virtualization": "cpu-virtualization",
    "if device '/dev/kvm' exists": "cpu-virtualization",
    "if device '/dev/kvm' is accessible": "cpu-virtualization",
    "for device assignment IOMMU support": "iommu",
    "if IOMMU is enabled by kernel": "iommu",
}
# What it looks at that no domain needs for having a device: networks, limits for groups of processes, and
# memory that is encrypted.
NOT_FOR_DEVICES = (
    "if device '/dev/vhost-net' exists",
    "if device '/dev/net/tun' exists",
    "for secure guest support",
    *(
        f"for cgroup '{name}' controller support"
        for name in ("cpu", "cpuacct", "cpuset", "memory", "devices", "blkio")
    ),
)


def agree(machine: Machine, lacking: set[str]) -> None:
    """Show that the doctor and virt-host-validate say the same, and which checks fail."""
    text = machine.run(["virt-host-validate", "qemu"]).text
    found = outcomes(machine)
    lines = [line.partition("Checking ")[2] for line in text.splitlines()]
    named = {what.strip(): verdict.strip() for what, _, verdict in (line.rpartition(" : ") for line in lines)}
    # Nothing that it may learn to look at goes unnoticed here.
    assert set(named) <= {*COMPARED, *NOT_FOR_DEVICES}, named
    for check in ("cpu-virtualization", "iommu"):
        said = [verdict for what, verdict in named.items() if COMPARED.get(what) == check]
        assert said, named
        assert (found[check]["verdict"] == "pass") == all(one == "PASS" for one in said), (check, named)
        assert (found[check]["verdict"] == "fail") == (check in lacking), found[check]


# It looks for the IOMMU of the processor's maker, hence machines all of one maker.


def test_the_doctor_agrees_with_libvirt_s_own(all_amd: Machine) -> None:
    agree(all_amd, set())


def agree_on_its_absence(machine: Machine, argument: str, lacking: set[str]) -> None:
    """Show that they `agree` where a kernel argument has switched the IOMMU off."""
    agree(machine, lacking)
    (seen,) = outcomes(machine)["iommu"]["findings"]
    assert f"the kernel runs with {argument}" in seen["evidence"]
    # Mended it is the machine of the test before.
    assert seen["fix"] == "take that argument out of the bootloader's configuration, then reboot"
    assert outcomes(machine)["group-isolation"]["verdict"] == "cannot tell"
    assert virtpass(machine, "doctor").status == 1


def test_they_agree_on_an_iommu_that_is_off(package: Path) -> None:
    argument = "amd_iommu=off"
    with Machine(image.ready(), flavour=topology.AMD, kernel_arguments=[argument]) as machine:
        machine.install(package)
        agree_on_its_absence(machine, argument, {"iommu"})


@pytest.fixture(scope="module")
def other(package: Path) -> Iterator[Machine]:
    """A machine whose processor cannot virtualize, without IOMMU, and with SELinux for AppArmor."""
    arguments = ["intel_iommu=off", "lsm=lockdown,yama,selinux"]
    with Machine(image.ready(), flavour=topology.INTEL, kernel_arguments=arguments) as machine:
        machine.install(package)
        yield machine


def test_they_agree_on_what_is_not_there(other: Machine) -> None:
    agree_on_its_absence(other, "intel_iommu=off", {"iommu", "cpu-virtualization"})


def test_a_hook_with_a_wrong_label(other: Machine) -> None:
    """A kernel with SELinux that enforces, and labels on the disk; nobody has given it rules, though."""
    virtpass(other, "hook", "install").check()
    assert outcomes(other)["hook-runs"]["verdict"] == "pass"
    shell(other, "mount -t selinuxfs none /sys/fs/selinux && echo 1 >/sys/fs/selinux/enforce").check()
    restorecon = "sudo restorecon -Rv /etc/libvirt/hooks"
    for label, verdict, fix in (
        ("", "cannot tell", restorecon),
        ("unconfined_u:object_r:etc_t:s0", "fail", restorecon),
        ("system_u:object_r:virt_hook_t:s0", "pass", None),
    ):
        if label:
            set_label = f"import os; os.setxattr({HOOK!r}, 'security.selinux', b'{label}\\0')"
            other.run(["python3", "-c", set_label]).check()
        seen = finding(other, "hook-runs")
        assert (seen["verdict"], seen["fix"]) == (verdict, fix), seen


# The last one: the card behind the bridge stays.


def test_a_card_that_shares_its_group(all_amd: Machine) -> None:
    """It is plugged in while the machine runs, so the firmware has made no room for its memory either."""
    owner = Guest(all_amd, "owner")
    owner.define()
    all_amd.plug("bochs-display", "second", "bridge", addr="03.0")
    all_amd.wait_until(lambda: BRIDGED_CARD in all_amd.pci(), "the card is there")
    all_amd.run(["udevadm", "settle"], timeout=60).check()
    seen = finding(all_amd, "group-isolation", BRIDGED_CARD)
    # The other card can be given away, so nothing is lost yet.
    assert seen["verdict"] == "warn", seen
    assert f"{topology.BRIDGED_NIC} in its group must go with it (bound to e1000)" in seen["evidence"]
    assert finding(all_amd, "group-isolation", CARD)["verdict"] == "pass"
    assert seen["fix"].startswith(f"virtpass domain attach DOMAIN {BRIDGED_CARD} {topology.BRIDGED_NIC} # ")
    shell(all_amd, seen["fix"].replace("DOMAIN", owner.name)).check()
    seen = finding(all_amd, "group-isolation", BRIDGED_CARD)
    assert seen["verdict"] == "pass", seen
    assert "goes to the same domain" in seen["evidence"]

    seen = finding(all_amd, "card-memory", BRIDGED_CARD)
    assert seen["verdict"] == "fail"
    assert "memory region 0 got no address" in seen["evidence"]
