"""Fixtures of the lab: machines with the Debian package of virtpass in them.

The standard machine serves all tests of a run, a machine that boots by itself those of one module.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from . import image
from .channel import AgentError
from .confinement import assert_confined, assert_nothing_denied, denied
from .disk import DESKTOP, GRUB_BIOS, GRUB_UEFI, SYSTEMD_BOOT, Kind
from .guest import Guest, nested
from .machine import CommandTimeout, Machine, MachineLost
from .progress import say

DIST = Path(__file__).parents[2] / "dist"


@pytest.fixture(scope="session")
def bare_machine() -> Iterator[Machine]:
    """A machine that has never heard of virtpass."""
    with Machine(image.ready()) as machine:
        say("the machine is ready")
        yield machine


@pytest.fixture(scope="session")
def package() -> Path:
    """The newest Debian package of virtpass."""
    packages = sorted(DIST.glob("*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        pytest.fail(f"no Debian package in {DIST}; `make deb` builds it")
    return packages[-1]


@pytest.fixture(scope="session")
def machine(bare_machine: Machine, package: Path) -> Machine:
    """The same machine with virtpass installed from dist/*.deb."""
    bare_machine.install(package)
    say(f"{package.name} is installed")
    assert_confined(bare_machine)
    return bare_machine


@pytest.fixture(scope="module", autouse=True)
def denials(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """What AppArmor has denied in the machine of the whole run, but to domains; a module adds nothing to it.

    Other machines are looked at by the fixtures that end them.
    """
    if not any(
        item.path == request.path and "bare_machine" in item.fixturenames
        for item in request.session.items
        if isinstance(item, pytest.Function)
    ):
        yield []
        return
    machine: Machine = request.getfixturevalue("bare_machine")
    known = denied(machine)
    yield known
    assert [line for line in denied(machine) if line not in known] == []


# Machines that boot by themselves, with virtpass, one for the tests of a module. What such a test changes it
# changes back, or it comes last.


@pytest.fixture(scope="module")
def grub_bios(package: Path) -> Iterator[Machine]:
    """A machine with GRUB and initramfs-tools that boots from the BIOS."""
    with installed(GRUB_BIOS, package) as machine:
        yield machine


@pytest.fixture(scope="module")
def grub_uefi(package: Path) -> Iterator[Machine]:
    """A machine with GRUB and initramfs-tools that boots from UEFI."""
    with installed(GRUB_UEFI, package) as machine:
        yield machine


@pytest.fixture(scope="module")
def systemd_boot(package: Path) -> Iterator[Machine]:
    """A machine with systemd-boot and dracut."""
    with installed(SYSTEMD_BOOT, package) as machine:
        yield machine


@pytest.fixture(scope="module")
def desktop(package: Path) -> Iterator[Machine]:
    """A machine with a user, lightdm and weston, none of which runs before a test starts it, and the hook."""
    with installed(DESKTOP, package) as machine:
        assert_confined(machine)
        machine.run(["virtpass", "hook", "install"]).check()
        yield machine
        assert_nothing_denied(machine)


@pytest.fixture(scope="module")
def two_processors(package: Path) -> Iterator[Machine]:
    """The same with two processors, and frequencies for them that change nothing."""
    with installed(DESKTOP, package, processors=2) as machine:
        assert_confined(machine)
        machine.run(["virtpass", "hook", "install"]).check()
        machine.run(["modprobe", "-a", "lab_cpufreq", "cpufreq_powersave"]).check()
        yield machine
        assert_nothing_denied(machine)


@contextmanager
def installed(kind: Kind, package: Path, processors: int | None = None) -> Iterator[Machine]:
    """Run a machine of `kind` with `package` installed."""
    with Machine(image.ready(kind), processors=processors) as machine:
        machine.install(package)
        say(f"the machine {kind.name} is ready, with {package.name}")
        yield machine


@pytest.fixture
def guest(bare_machine: Machine) -> Iterator[Guest]:
    """A nested guest without any host device, gone after the test."""
    yield from nested(bare_machine)


@pytest.fixture
def desktop_guest(desktop: Machine) -> Iterator[Guest]:
    """The same in the machine with a desktop."""
    yield from nested(desktop)


@pytest.fixture
def small_guest(two_processors: Machine) -> Iterator[Guest]:
    """The same in the machine with two processors."""
    yield from nested(two_processors)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failed test what its machines have to say about it."""
    report = yield
    values = getattr(item, "funcargs", {}).values()
    # `machine` and `bare_machine` are the same.
    machines = {id(value): value for value in values if isinstance(value, Machine)}
    if report.failed:
        for machine in machines.values():
            report.sections.append((f"the machine {machine.image.kind.name}", diagnosis(machine)))
    return report


def diagnosis(machine: Machine) -> str:
    """Return what hangs in a machine, and what was logged there last."""
    parts = []
    for argv in (
        ["ps", "axo", "pid,ppid,stat,wchan:32,args"],
        ["sh", "-c", "for d in /proc/[0-9]*; do grep -q '^State:.D' $d/status && cat $d/comm $d/stack; done"],
        ["journalctl", "--no-pager", "-n", "60"],
    ):
        try:
            parts.append(str(machine.run(argv, timeout=30)))
        except (CommandTimeout, MachineLost, AgentError) as error:
            parts.append(f"{argv}: {error}")
    return "\n".join(parts)
