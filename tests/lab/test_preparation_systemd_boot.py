"""Host preparation with systemd-boot and dracut."""

from __future__ import annotations

import pytest

from .machine import Machine
from .preparation import as_documented, lasting_and_taken_back, trial_taken_back

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_it_boots_as_its_own_bootloader_is_told(systemd_boot: Machine) -> None:
    as_documented(systemd_boot)


def test_a_trial_that_is_taken_back_is_not_booted(systemd_boot: Machine) -> None:
    trial_taken_back(systemd_boot)


def test_a_trial_is_over_after_a_power_cut_lasts_when_confirmed_and_is_taken_back(
    systemd_boot: Machine,
) -> None:
    lasting_and_taken_back(systemd_boot)
