"""What the doctor asks for outside of the host's files."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from tests.cli.test_commands import TEST_DRIVER
from tests.simulation import SimulatedHost
from virtpass.operations.doctor import look_outside


def test_behind_sudo_it_looks_at_whoever_called(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = pwd.getpwuid(1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", caller.pw_name)
    outside = look_outside(host, TEST_DRIVER)
    assert (outside.is_root, outside.user) == (True, caller.pw_name)
    assert grp.getgrgid(caller.pw_gid).gr_name in outside.groups
    monkeypatch.setenv("SUDO_USER", "nobody of that name")
    assert look_outside(host, TEST_DRIVER).user == ""
    # Only root was called by sudo.
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("SUDO_USER", caller.pw_name)
    assert look_outside(host, TEST_DRIVER).user == pwd.getpwuid(os.getuid()).pw_name
