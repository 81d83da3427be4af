"""Fixtures of the lab: one machine for all tests of a run, with the Debian package of virtpass in it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from . import image
from .channel import AgentError
from .guest import Guest
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
def machine(bare_machine: Machine) -> Machine:
    """The same machine with virtpass installed from dist/*.deb."""
    packages = sorted(DIST.glob("*.deb"), key=lambda path: path.stat().st_mtime)
    if not packages:
        pytest.fail(f"no Debian package in {DIST}; `make deb` builds it")
    bare_machine.install(packages[-1])
    say(f"{packages[-1].name} is installed")
    return bare_machine


@pytest.fixture
def guest(bare_machine: Machine) -> Iterator[Guest]:
    """A nested guest without any host device, gone after the test."""
    guest = Guest(bare_machine)
    guest.define()
    yield guest
    guest.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failed test what the machine has to say about it."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("bare_machine")
    if report.failed and isinstance(machine, Machine):
        report.sections.append(("the machine", diagnosis(machine)))
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
