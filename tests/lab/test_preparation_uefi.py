"""Host preparation with UEFI: GRUB with initramfs-tools, and systemd-boot with dracut."""

from __future__ import annotations

import pytest

from .disk import GRUB_UEFI, SYSTEMD_BOOT, Kind
from .machine import Machine
from .preparation import on_trial, there_and_back

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def on(*kinds: Kind) -> pytest.MarkDecorator:
    """Run a test on machines of these kinds."""
    return pytest.mark.parametrize("boot_machine", kinds, indirect=True, ids=[kind.name for kind in kinds])


@on(GRUB_UEFI, SYSTEMD_BOOT)
def test_applied_booted_left_by_the_fallback_and_taken_back(boot_machine: Machine) -> None:
    there_and_back(boot_machine)


@on(SYSTEMD_BOOT)
def test_a_trial_is_over_after_a_power_cut_and_lasts_when_confirmed(boot_machine: Machine) -> None:
    on_trial(boot_machine)
