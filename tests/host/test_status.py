"""Did it take? Every verdict that matters, before the reboot and after it, in a trial and outside."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.host.machine import look, machine
from tests.host.test_detect import Fake
from tests.simulation import AUDIO, CARD, SimulatedHost
from virtpass.host.boot import BootEntry, Choice, Evidence, Role
from virtpass.host.early import EarlyPlan
from virtpass.host.edits import Written, digest
from virtpass.host.facts import HostFacts
from virtpass.host.forms import OwnFile
from virtpass.host.initramfs.base import Image, InitramfsPlan
from virtpass.host.record import HostRecord, Part
from virtpass.host.status import Check, Verdict, checks, is_rebooted
from virtpass.host.wishes import Wishes
from virtpass.system.errors import FailedError
from virtpass.transaction.plan import Command

ARGUMENTS = ("intel_iommu=on", "iommu=pt")
BOOT = "1d6f0f3e-0000-4000-8000-000000000001"
NEXT = "1d6f0f3e-0000-4000-8000-000000000002"
BASE = "root=/dev/nvme0n1p1 ro quiet"
WITH = f"{BASE} {' '.join(ARGUMENTS)}"
TRIED = "Trial of passthrough: Some Linux"
FALLBACK = "Without passthrough: Some Linux"
FILE = "/etc/modprobe.d/virtpass.conf"
CONTENT = b"softdep i915 pre: vfio-pci\n"
CHOICE = Choice("virtpass-trial", Command(("grub-reboot", "virtpass-trial"), ""))
FOUND = Evidence("/boot/grub/grub.cfg exists")
RIGHT, WAITING, WRONG, UNKNOWN = Verdict.RIGHT, Verdict.WAITING, Verdict.WRONG, Verdict.UNKNOWN


@dataclass
class Menu(Fake):
    """A loader with entries, or one whose configuration is not understood."""

    menu: Sequence[BootEntry] | None = ()
    chosen_entry: str | None = ""

    def entries(self, facts: HostFacts) -> list[BootEntry]:
        if self.menu is None:
            raise FailedError("menu", "/boot/grub/grub.cfg is not understood: line 7")
        return list(self.menu)

    def chosen(self, facts: HostFacts) -> str | None:
        return self.chosen_entry


@dataclass
class Maker:
    """A generator of an initramfs whose images have certain files."""

    found: dict[str, frozenset[str] | None] = field(default_factory=dict)
    name: str = "maker"
    title: str = "maker"
    runs_scripts: bool = True
    loads_first: bool = False

    def evidence(self, facts: HostFacts) -> str:
        return ""

    def plan(self, facts: HostFacts, early: EarlyPlan) -> InitramfsPlan:
        return InitramfsPlan()

    def files(self, early: EarlyPlan) -> tuple[str, ...]:
        return early.files

    def images(self, facts: HostFacts) -> list[Image]:
        return [Image(path, "") for path in self.found]

    def content(self, facts: HostFacts, image: Image) -> frozenset[str] | None:
        return self.found[image.path]


RECORD = HostRecord(
    wishes=Wishes(),
    loader="grub",
    generator="",
    arguments=(),
    devices=(),
    image_files=(),
    images=Part(),
    boot=Part(),
    kept=(),
    unsafe_interrupts=False,
    fallback="",
    tried="",
    boot_id=BOOT,
)


def entry(title: str, line: str, role: Role = Role.NORMAL) -> BootEntry:
    return BootEntry(title, "", "/boot/grub/grub.cfg", tuple(line.split()), role)


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    return machine(tmp_path, cmdline=BASE)


def reboot(host: SimulatedHost, line: str) -> None:
    host.put("/proc/sys/kernel/random/boot_id", NEXT + "\n")
    host.put("/proc/cmdline", line + "\n")


def seen(
    host: SimulatedHost,
    record: HostRecord,
    *,
    menu: Sequence[BootEntry] | None = None,
    images: dict[str, frozenset[str] | None] | None = None,
    is_understood: bool = True,
    chosen: str | None = None,
    evidence: Evidence | None = FOUND,
) -> list[Check]:
    is_known = menu is not None or chosen is not None or not is_understood
    loader = Menu("grub", seen=evidence, menu=menu, chosen_entry=chosen) if is_known else None
    generator = Maker(images) if images is not None else None
    return checks(look(host)[0], record, loader, generator)


def only(found: list[Check]) -> tuple[str, Verdict, str]:
    (one,) = found
    return one.reference, one.verdict, one.text


def test_nothing_on_record_is_nothing_to_look_at(host: SimulatedHost) -> None:
    assert seen(host, RECORD) == []


# files


def written(host: SimulatedHost) -> HostRecord:
    host.put(FILE, CONTENT)
    return replace(RECORD, images=Part((Written(FILE, OwnFile(CONTENT.decode()), None, digest(CONTENT)),)))


def test_a_file_as_it_was_written(host: SimulatedHost) -> None:
    assert only(seen(host, written(host))) == ("file", RIGHT, f"{FILE} is as virtpass wrote it")


@pytest.mark.parametrize(
    ("change", "verdict", "words"),
    [
        (lambda host: host.put(FILE, CONTENT + b"# mine\n"), WRONG, "was edited since virtpass wrote it"),
        (lambda host: os.unlink(host.path(FILE)), WRONG, "is gone"),
        (lambda host: host.link(FILE, "/etc/passwd"), UNKNOWN, FILE),
    ],
)
def test_a_file_that_somebody_touched(
    host: SimulatedHost, change: Callable[[SimulatedHost], None], verdict: Verdict, words: str
) -> None:
    record = written(host)
    change(host)
    reference, found, text = only(seen(host, record))
    assert (reference, found) == ("file", verdict)
    assert words in text


# boot entries


def applied(**values: object) -> HostRecord:
    return replace(RECORD, arguments=ARGUMENTS, **values)  # type: ignore[arg-type]


def about(found: list[Check], reference: str) -> list[tuple[Verdict, str]]:
    return [(one.verdict, one.text) for one in found if one.reference == reference]


def test_each_normal_entry_is_looked_at(host: SimulatedHost) -> None:
    menu = [
        entry("Some Linux", WITH),
        entry("Some Linux, other kernel", f"{BASE} iommu=pt"),
        entry("Some Linux (recovery)", BASE, Role.RECOVERY),
        entry(FALLBACK, f"{BASE} virtpass=off", Role.FALLBACK),
        entry("By hand", BASE, Role.OTHER),
    ]
    found = seen(host, applied(fallback=FALLBACK), menu=menu)
    assert about(found, "boot-entry") == [
        (RIGHT, "'Some Linux' has the arguments"),
        (WRONG, "'Some Linux, other kernel' lacks intel_iommu=on"),
    ]
    assert about(found, "fallback-entry") == [(RIGHT, f"the boot entry '{FALLBACK}' exists")]


def test_a_way_back_that_is_gone(host: SimulatedHost) -> None:
    found = seen(host, applied(fallback=FALLBACK), menu=[entry("Some Linux", WITH)])
    assert about(found, "fallback-entry") == [(WRONG, f"the boot entry '{FALLBACK}' is gone")]


def test_entries_that_cannot_be_seen_or_understood(host: SimulatedHost) -> None:
    found = seen(host, applied(), menu=[])
    assert about(found, "boot-entry") == [(UNKNOWN, "the entries of Grub cannot be seen from here")]
    found = seen(host, applied(), is_understood=False)
    assert about(found, "boot-entry") == [(UNKNOWN, "/boot/grub/grub.cfg is not understood: line 7")]


def test_during_a_trial_normal_entries_stay_without_the_arguments(host: SimulatedHost) -> None:
    menu = [
        entry("Some Linux", BASE),
        entry("Some Linux, other kernel", WITH),
        entry(TRIED, f"{WITH} virtpass=trial", Role.TRIAL),
    ]
    found = seen(host, applied(tried=TRIED), menu=menu)
    assert about(found, "boot-entry") == [
        (RIGHT, "'Some Linux' is without the arguments on trial"),
        (WRONG, "'Some Linux, other kernel' has intel_iommu=on iommu=pt during a trial"),
    ]
    assert about(found, "trial-entry") == [(RIGHT, f"the boot entry '{TRIED}' exists")]
    assert about(seen(host, applied(tried=TRIED), menu=menu[:1]), "trial-entry")[0][0] is WRONG


# initramfs


def test_every_image_is_looked_into(host: SimulatedHost) -> None:
    record = replace(RECORD, image_files=("etc/modprobe.d/virtpass.conf", "etc/virtpass/early-bind"))
    images: dict[str, frozenset[str] | None] = {
        "/boot/a": frozenset({*record.image_files, "init"}),
        "/boot/b": frozenset({"etc/modprobe.d/virtpass.conf"}),
        "/boot/c": None,
    }
    assert about(seen(host, record, images=images), "initramfs") == [
        (RIGHT, "/boot/a has what it needs"),
        (WRONG, "/boot/b lacks etc/virtpass/early-bind"),
        (UNKNOWN, "/boot/c cannot be listed (it takes root)"),
    ]
    assert seen(host, RECORD, images=images) == []


# the running kernel


def test_before_the_reboot_it_waits(host: SimulatedHost) -> None:
    assert only(seen(host, applied())) == (
        "command-line",
        WAITING,
        "the running kernel lacks intel_iommu=on iommu=pt",
    )


def test_after_the_reboot_it_took(host: SimulatedHost) -> None:
    reboot(host, WITH)
    assert only(seen(host, applied()))[:2] == ("command-line", RIGHT)


def test_after_the_reboot_it_did_not_take(host: SimulatedHost) -> None:
    reboot(host, f"{BASE} iommu=pt")
    reference, verdict, text = only(seen(host, applied()))
    assert (reference, verdict) == ("command-line", WRONG)
    assert (
        text == "the running kernel lacks intel_iommu=on though the host was rebooted: from which boot entry?"
    )


def test_the_fallback_entry_is_without_by_intent(host: SimulatedHost) -> None:
    reboot(host, f"{BASE} virtpass=off")
    found = seen(host, applied(devices=(CARD,)))
    assert {one.reference: one.verdict for one in found} == {
        "command-line": WAITING,
        "early-binding": WAITING,
    }
    assert "as virtpass=off says" in found[0].text


def test_arguments_behind_the_dashes_did_not_take(host: SimulatedHost) -> None:
    reboot(host, f"{BASE} -- {' '.join(ARGUMENTS)}")
    assert only(seen(host, applied()))[1] is WRONG


def test_another_root_has_no_running_kernel(host: SimulatedHost) -> None:
    os.unlink(host.path("/proc/cmdline"))
    assert seen(host, applied(boot_id="")) == []


@pytest.mark.parametrize(
    ("now", "recorded", "expected"), [(BOOT, BOOT, False), (NEXT, BOOT, True), (None, BOOT, False)]
)
def test_a_reboot_shows_in_the_boot_id(
    host: SimulatedHost, now: str | None, recorded: str, expected: bool
) -> None:
    os.unlink(host.path("/proc/sys/kernel/random/boot_id"))
    if now is not None:
        host.put("/proc/sys/kernel/random/boot_id", now + "\n")
    assert is_rebooted(look(host)[0], replace(RECORD, boot_id=recorded)) is expected


# trials


def test_a_trial_from_its_announcement_to_its_end(host: SimulatedHost) -> None:
    assert only(seen(host, applied(tried=TRIED)))[2] == f"the trial is '{TRIED}' on the boot menu"
    record = applied(tried=TRIED, choice=CHOICE)
    assert only(seen(host, record)) == ("trial", WAITING, f"the next boot is the trial ('{TRIED}')")
    reboot(host, f"{WITH} virtpass=trial")
    assert only(seen(host, record)) == (
        "trial",
        RIGHT,
        "this boot is the trial: virtpass host confirm makes it last",
    )
    reboot(host, f"{BASE} iommu=pt virtpass=trial")
    assert only(seen(host, record)) == ("trial", WRONG, "this is the trial, and it lacks intel_iommu=on")
    reboot(host, BASE)
    reference, verdict, text = only(seen(host, record))
    assert (reference, verdict) == ("trial", WRONG)
    assert "was not confirmed" in text
    assert "virtpass host apply --trial" in text


@pytest.mark.parametrize(
    ("chosen", "verdict", "words"),
    [
        ("virtpass-trial", WAITING, "the next boot is the trial"),
        ("", WRONG, "the next boot is not the trial but the usual entry"),
        ("windows", WRONG, "the next boot is not the trial but windows"),
        (None, WAITING, "the next boot is the trial"),
    ],
)
def test_what_the_next_boot_takes_is_looked_at(
    host: SimulatedHost, chosen: str | None, verdict: Verdict, words: str
) -> None:
    menu = [entry(TRIED, f"{WITH} virtpass=trial", Role.TRIAL)]
    ((found, text),) = about(
        seen(host, applied(tried=TRIED, choice=CHOICE), menu=menu, chosen=chosen), "trial"
    )
    assert found is verdict
    assert words in text


def test_a_trial_that_was_chosen_once_more_waits_for_its_boot(host: SimulatedHost) -> None:
    record = applied(tried=TRIED, choice=CHOICE)
    reboot(host, BASE)
    assert about(seen(host, record, chosen="virtpass-trial"), "trial")[0][0] is WAITING
    assert about(seen(host, record, chosen=""), "trial")[0][0] is WRONG


def test_a_bootloader_that_is_gone(host: SimulatedHost) -> None:
    found = seen(host, applied(), menu=[], evidence=None)
    assert about(found, "bootloader") == [
        (WRONG, "Grub, for which it was written, is not on this host any more")
    ]


# drivers


def on_vfio(host: SimulatedHost, *addresses: object) -> None:
    for address in addresses:
        path = f"/sys/bus/pci/devices/{address}"
        os.unlink(host.path(f"{path}/driver"))
        host.write_attribute(f"{path}/driver_override", "vfio-pci", 1)
        host.write_attribute("/sys/bus/pci/drivers_probe", str(address), 1)


def test_devices_before_and_after_the_reboot(host: SimulatedHost) -> None:
    record = replace(RECORD, devices=(CARD, AUDIO))
    assert [one.verdict for one in seen(host, record)] == [WAITING, WAITING]
    reboot(host, BASE)
    on_vfio(host, CARD)
    assert about(seen(host, record), "early-binding") == [
        (RIGHT, f"{CARD} is on vfio-pci"),
        (WRONG, f"{AUDIO} is on snd_hda_intel, and should be on vfio-pci since the boot"),
    ]


def test_a_device_without_driver_and_one_that_is_gone(host: SimulatedHost) -> None:
    os.unlink(host.path(f"/sys/bus/pci/devices/{CARD}/driver"))
    os.unlink(host.path(f"/sys/bus/pci/devices/{AUDIO}"))
    assert about(seen(host, replace(RECORD, devices=(CARD, AUDIO))), "early-binding") == [
        (WAITING, f"{CARD} is on no driver"),
        (WRONG, f"{AUDIO} is not there any more"),
    ]


def test_outside_the_trial_a_device_is_the_host_s(host: SimulatedHost) -> None:
    record = applied(devices=(CARD,), tried=TRIED)
    assert about(seen(host, record), "early-binding") == [
        (RIGHT, f"{CARD} is on bochs-drm, as outside the trial")
    ]
    reboot(host, f"{WITH} virtpass=trial")
    assert about(seen(host, record), "early-binding")[0][0] is WRONG


# unsafe interrupts


@pytest.mark.parametrize(
    ("values", "verdict"), [({}, RIGHT), ({"iommufd": "Y"}, RIGHT), ({"vfio_iommu_type1": "N"}, WRONG)]
)
def test_interrupts_that_are_not_remapped(
    host: SimulatedHost, values: dict[str, str], verdict: Verdict
) -> None:
    for module, value in values.items():
        host.put(f"/sys/module/{module}/parameters/allow_unsafe_interrupts", value + "\n")
    assert only(seen(host, replace(RECORD, unsafe_interrupts=True)))[:2] == ("unsafe-interrupts", verdict)
    assert seen(host, RECORD) == []
