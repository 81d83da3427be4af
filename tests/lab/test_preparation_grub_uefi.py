"""Host preparation with GRUB and initramfs-tools, started by UEFI."""

from __future__ import annotations

import pytest

from .machine import Machine
from .preparation import there_and_back

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_applied_booted_left_by_the_fallback_and_taken_back(grub_uefi: Machine) -> None:
    there_and_back(grub_uefi)
