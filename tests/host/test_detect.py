"""Which bootloader a host has: told by evidence, and refused where that contradicts itself."""

from dataclasses import dataclass

import pytest

from virtpass.host.boot import BootEntry, BootPlan, BootRequest, Evidence
from virtpass.host.detect import choose
from virtpass.host.facts import HostFacts
from virtpass.host.loaders import LOADERS
from virtpass.host.prepare import plan_host
from virtpass.host.wishes import Wishes
from virtpass.system.errors import RefusedError, UsageError
from virtpass.system.host import Host


@dataclass
class Fake:
    """A loader for which something speaks, or nothing."""

    name: str
    seen: Evidence | None = None
    title: str = ""

    def __post_init__(self) -> None:
        self.title = self.name.capitalize()

    def evidence(self, facts: HostFacts) -> Evidence | None:
        return self.seen

    def plan(self, facts: HostFacts, request: BootRequest) -> BootPlan:
        return BootPlan()

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        return []

    def chosen(self, facts: HostFacts) -> str | None:
        return ""


def facts(loader: str = "") -> HostFacts:
    return HostFacts(Host("/nonexistent"), "x", ("x",), "Some Linux 1", True, (), "", loader, "")


GRUB = Fake("grub", Evidence("/boot/grub/grub.cfg exists", "grub"))
SD_BOOT = Fake("systemd-boot", Evidence("/boot/loader/entries exists", "systemd-boot"))
PROXMOX = Fake("proxmox", Evidence("/etc/kernel/proxmox-boot-uuids exists", "", ("grub", "systemd-boot")))
REFIND = Fake("refind", Evidence("/boot/refind_linux.conf exists"))
ABSENT = Fake("limine")


def test_the_only_one_for_which_something_speaks_is_taken() -> None:
    assert choose(facts(), [ABSENT, GRUB]) is GRUB


def test_the_one_that_manages_others_is_taken_whatever_booted() -> None:
    for loader in ("", "GRUB 2.12-9", "systemd-boot 257.5"):
        assert choose(facts(loader), [GRUB, SD_BOOT, PROXMOX]) is PROXMOX


def test_of_two_the_one_that_booted_is_taken() -> None:
    assert choose(facts("systemd-boot 257.5-2"), [GRUB, SD_BOOT]) is SD_BOOT
    assert choose(facts("GRUB 2.12-9"), [GRUB, SD_BOOT]) is GRUB


def test_two_and_nothing_that_tells_them_apart() -> None:
    with pytest.raises(RefusedError) as caught:
        choose(facts(), [GRUB, SD_BOOT, ABSENT])
    assert caught.value.reference == "ambiguous-bootloader"
    assert (
        "Grub (/boot/grub/grub.cfg exists); Systemd-boot (/boot/loader/entries exists)" in caught.value.what
    )
    assert caught.value.remedy == "say which with --bootloader, one of: grub, systemd-boot"


def test_files_of_another_than_the_one_that_booted() -> None:
    with pytest.raises(RefusedError, match="systemd-boot 257 booted this host, but the files are") as caught:
        choose(facts("systemd-boot 257"), [GRUB, ABSENT])
    assert caught.value.reference == "ambiguous-bootloader"
    assert "--bootloader, one of: grub" in caught.value.remedy


def test_one_that_says_nothing_when_it_boots_is_taken_if_no_other_says_it_did() -> None:
    assert choose(facts("Something 1"), [REFIND]) is REFIND
    assert choose(facts("GRUB 2.12"), [REFIND, GRUB]) is GRUB


@pytest.mark.parametrize("loader", ["", "GRUB 2.12"])
def test_none(loader: str) -> None:
    with pytest.raises(RefusedError, match=r"no bootloader that virtpass knows.*Some Linux 1") as caught:
        choose(facts(loader), [ABSENT])
    assert caught.value.reference == "no-bootloader"
    assert caught.value.remedy == "if its menu is on a partition that is not mounted, mount it"
    with pytest.raises(RefusedError) as caught:
        choose(facts(loader), [ABSENT], arguments=("intel_iommu=on", "iommu=pt"))
    assert "add intel_iommu=on iommu=pt to the kernel's command line by hand, and reboot" in caught.value.line


def test_the_user_s_word_counts_against_all_evidence() -> None:
    assert choose(facts("GRUB 2.12"), [GRUB, SD_BOOT, ABSENT], "limine") is ABSENT


def test_a_name_that_is_unknown() -> None:
    with pytest.raises(UsageError, match="no bootloader 'lilo'; it knows grub, limine"):
        choose(facts(), [GRUB, ABSENT], "lilo")


def test_a_name_that_is_unknown_is_refused_where_no_bootloader_is_needed() -> None:
    assert plan_host(facts(), Wishes(), None).is_empty
    assert plan_host(facts(), Wishes(bootloader="grub"), None).is_empty
    with pytest.raises(UsageError, match="no bootloader 'nonsense'") as caught:
        plan_host(facts(), Wishes(bootloader="nonsense"), None)
    assert caught.value.reference == "bootloader"
    assert all(loader.name in caught.value.remedy for loader in LOADERS)
