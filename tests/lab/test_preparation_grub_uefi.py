"""Host preparation with GRUB and initramfs-tools, started by UEFI."""

from __future__ import annotations

import pytest

from .machine import Machine
from .preparation import as_documented, there_and_back

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_it_boots_as_its_own_bootloader_is_told(grub_uefi: Machine) -> None:
    as_documented(grub_uefi)


def test_applied_booted_and_taken_back(grub_uefi: Machine) -> None:
    there_and_back(grub_uefi)
