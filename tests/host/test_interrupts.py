"""Interrupts that are not remapped: what VFIO is told at once, and how that is taken back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.host.machine import look, machine
from tests.simulation import SimulatedHost
from virtpass.host.facts import HostFacts
from virtpass.host.interrupts import switch
from virtpass.host.iommu import UNSAFE_INTERRUPTS
from virtpass.host.record import NOTHING, Attribute, HostRecord
from virtpass.system.host import Host

TYPE1, IOMMUFD = UNSAFE_INTERRUPTS
BOOT = "/proc/sys/kernel/random/boot_id"


class Running:
    """What a simulated host says, as the running one that is not below another root."""

    root = ""

    def __init__(self, host: SimulatedHost) -> None:
        self.read = host.read
        self.read_bytes = host.read_bytes
        self.names = host.names


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    found = machine(tmp_path)
    found.put(TYPE1, "N\n")
    return found


def running(host: SimulatedHost, command_line: str = "root=/dev/sda1") -> HostFacts:
    host.put("/proc/cmdline", command_line + "\n")
    return replace(look(host)[0], host=cast(Host, Running(host)), running=tuple(command_line.split()))


def record(host: SimulatedHost, *switched: Attribute) -> HostRecord:
    return replace(NOTHING, unsafe_interrupts=True, boot_id=str(host.read(BOOT)), switched=tuple(switched))


def test_vfio_accepts_them_at_once(host: SimulatedHost) -> None:
    # The module that is not loaded gets it from modprobe.
    writes, before = switch(running(host), True, NOTHING)
    assert writes == (Attribute(TYPE1, "Y"),)
    assert before == (Attribute(TYPE1, "N"), Attribute(IOMMUFD, ""))


def test_what_is_so_already_is_not_ours_to_take_back(host: SimulatedHost) -> None:
    host.put(TYPE1, "Y\n")
    writes, before = switch(running(host), True, NOTHING)
    assert (writes, before[0]) == ((), Attribute(TYPE1, "Y"))
    assert switch(running(host), False, record(host, *before)) == ((), ())


def test_a_module_that_came_with_our_file_is_ours_to_take_back(host: SimulatedHost) -> None:
    os.unlink(host.path(TYPE1))
    writes, before = switch(running(host), True, NOTHING)
    assert writes == ()
    host.put(TYPE1, "Y\n")
    assert switch(running(host), False, record(host, *before)) == ((Attribute(TYPE1, "N"),), ())


def test_what_another_file_for_modprobe_says_stays(host: SimulatedHost) -> None:
    host.put(TYPE1, "Y\n")
    host.put("/etc/modprobe.d/virtpass.conf", "options vfio_iommu_type1 allow_unsafe_interrupts=1\n")
    assert switch(running(host), False, record(host))[0] == (Attribute(TYPE1, "N"),)
    host.put("/etc/modprobe.d/mine.conf", "options vfio-iommu-type1 allow_unsafe_interrupts=Y\n")
    assert switch(running(host), False, record(host))[0] == ()


def test_a_second_apply_remembers_how_it_was_before_the_first(host: SimulatedHost) -> None:
    host.put(TYPE1, "Y\n")
    present = record(host, Attribute(TYPE1, "N"))
    assert switch(running(host), True, present)[0] == ()
    assert Attribute(TYPE1, "N") in switch(running(host), True, present)[1]
    host.put(IOMMUFD, "N\n")
    writes, switched = switch(running(host), True, present)
    assert writes == (Attribute(IOMMUFD, "Y"),)
    assert switched == (Attribute(TYPE1, "N"), Attribute(IOMMUFD, "N"))


def test_in_the_same_boot_it_becomes_as_it_was(host: SimulatedHost) -> None:
    host.put(TYPE1, "Y\n")
    assert switch(running(host), False, record(host, Attribute(TYPE1, "N"))) == ((Attribute(TYPE1, "N"),), ())


def test_after_a_reboot_it_becomes_the_default(host: SimulatedHost) -> None:
    present = record(host, Attribute(TYPE1, "N"))
    host.put(BOOT, "another\n")
    host.put(TYPE1, "Y\n")
    assert switch(running(host), False, present) == ((Attribute(TYPE1, "N"),), ())


def test_after_a_reboot_what_the_user_says_on_the_command_line_stays(host: SimulatedHost) -> None:
    present = record(host)
    host.put(BOOT, "another\n")
    host.put(TYPE1, "Y\n")
    facts = running(host, "vfio-iommu-type1.allow_unsafe_interrupts=1")
    assert switch(facts, False, present) == ((), ())
    facts = running(host, "vfio_iommu_type1.allow_unsafe_interrupts=0")
    assert switch(facts, False, present) == ((Attribute(TYPE1, "N"),), ())


def test_a_module_that_is_gone_is_nothing_to_write_to(host: SimulatedHost) -> None:
    present = record(host, Attribute(TYPE1, "N"))
    os.unlink(host.path(TYPE1))
    assert switch(running(host), False, present) == ((), ())


def test_another_root_has_no_running_kernel(host: SimulatedHost) -> None:
    assert switch(look(host)[0], True, NOTHING) == ((), ())
    assert switch(look(host)[0], False, record(host, Attribute(TYPE1, "N"))) == ((), ())
