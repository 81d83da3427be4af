"""The firmware's framebuffer over a card: refused, taken off and put back, and what cannot come back."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.binding.test_display import CONTAINER, Desktop
from tests.simulation import AUDIO, CARD, GUEST, NIC, Hangs, desktop, domain_xml
from virtpass.binding import effects, engine, framebuffers, holders
from virtpass.binding.journal import Journal, journals, read_journal
from virtpass.hook.entry import run
from virtpass.operations.rehearsal import rehearse
from virtpass.pci.address import PciAddress
from virtpass.system.errors import FailedError, RefusedError, VirtpassError

Captured = pytest.CaptureFixture[str]

POLICY = "<v:policy display='hand-over' wait='1'/>"
HAND_OVER = f"<v:passthrough xmlns:v='urn:virtpass:passthrough:1'>{POLICY}</v:passthrough>"
KEPT = domain_xml(CARD, AUDIO)
LENT = domain_xml(CARD, AUDIO, metadata=HAND_OVER)
EFI, VESA, SIMPLE = "efi-framebuffer", "vesa-framebuffer", "simple-framebuffer"
RESERVED = {EFI: "efifb", VESA: "vesafb", SIMPLE: "simpledrm"}
DRIVERS, DEVICES = "/sys/bus/platform/drivers", "/sys/bus/platform/devices"
# As Linux shows them: start, end and flags of each BAR, of the ROM and of the windows of bridges.
BARS = (
    "0x00000000f8000000 0x00000000f8ffffff 0x0000000000042208\n"
    "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    "0x00000000fcc00000 0x00000000fcc00fff 0x0000000000040200\n"
    "0x000000000000e000 0x000000000000e07f 0x0000000000040101\n"
)


class Firmware(Desktop):
    """A host whose kernel draws on a framebuffer of the firmware.

    Attributes:
        kind: its platform driver.
        where: the range that is drawn on.
        opened: whether somebody has it open, so that its memory stays reserved.
        refusal: the number of the error with which binding and unbinding fail; 0 for none.
        has_hanging_driver: whether they never come back.
        evicts: whether vfio-pci unregisters it when it takes the card.
    """

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.kind = ""
        self.where = ""
        self.opened = False
        self.refusal = 0
        self.has_hanging_driver = False
        self.evicts = False

    @property
    def device(self) -> str:
        return f"{self.kind}.0"

    @property
    def is_drawing(self) -> bool:
        return self.exists(f"{DEVICES}/{self.device}/driver")

    def begin_drawing(
        self, kind: str, *, where: str = "f8000000-f87fffff", parent: PciAddress | None = None
    ) -> None:
        self.kind, self.where = kind, where
        above = self.real_path(f"/sys/bus/pci/devices/{parent}") if parent else "/sys/devices/platform"
        self.put(f"{above}/{self.device}/modalias", f"platform:{kind}\n")
        self.link(f"{DEVICES}/{self.device}", f"{above}/{self.device}")
        for name in RESERVED:
            for attribute in ("bind", "unbind", "uevent"):
                self.put(f"{DRIVERS}/{name}/{attribute}")
        self._draw()

    def _draw(self) -> None:
        self.link(f"{DEVICES}/{self.device}/driver", f"{DRIVERS}/{self.kind}")
        self.link(f"{DRIVERS}/{self.kind}/{self.device}", self.real_path(f"{DEVICES}/{self.device}"))
        self._write_iomem()

    def _write_iomem(self) -> None:
        lines = ["00000000-00000fff : Reserved", "f8000000-f8ffffff : 0000:01:00.0"]
        if self.kind == SIMPLE and self.exists(f"{DEVICES}/{self.device}"):
            lines.append(f"  {self.where} : BOOTFB")
        if self.is_drawing or self.opened:
            lines.append(f"    {self.where} : {RESERVED[self.kind]}")
        self.put("/proc/iomem", "\n".join(lines) + "\n")

    def write_attribute(self, path: str, value: str, deadline: float) -> None:
        if not path.startswith(f"{DRIVERS}/"):
            super().write_attribute(path, value, deadline)
            return
        self.calls.append((path, value))
        if self.has_hanging_driver:
            raise Hangs(path)
        if self.refusal or not self.exists(f"{DEVICES}/{value}"):
            number = self.refusal or errno.ENODEV
            raise OSError(number, os.strerror(number), path)
        if path.endswith("/unbind"):
            os.unlink(self.path(f"{DEVICES}/{value}/driver"))
            os.unlink(self.path(f"{DRIVERS}/{self.kind}/{value}"))
            self._write_iomem()
        else:
            self._draw()

    def _bind(self, address: PciAddress, driver: str) -> None:
        super()._bind(address, driver)
        link = f"{DEVICES}/{self.device}"
        if self.evicts and (address, driver) == (CARD, "vfio-pci") and self.exists(link):
            shutil.rmtree(self.path(self.real_path(link)))
            os.unlink(self.path(link))
            self._write_iomem()


@pytest.fixture
def host(tmp_path: Path) -> Firmware:
    """A host whose card has no driver, as where the driver is blocked, and a kernel that evicts nothing."""
    host = Firmware(desktop(os.fspath(tmp_path)).root)
    path = f"/sys/bus/pci/devices/{CARD}"
    os.unlink(host.path(f"{path}/driver"))
    host.put(f"{path}/resource", BARS)
    host.put(f"{path}/boot_vga", "1\n")
    host.put("/proc/sys/kernel/osrelease", "5.15.0-105-generic\n")
    return host


def on_new_kernel(host: Firmware) -> None:
    host.put("/proc/sys/kernel/osrelease", "6.12.107+deb13-amd64\n")
    host.evicts = True


def start(host: Firmware) -> Journal:
    assert run(host, "prepare", LENT) == 0
    journal = read_journal(host, GUEST)
    assert journal is not None
    return journal


def refused(host: Firmware, capfd: Captured, xml: bytes = LENT) -> str:
    before = host.state()
    assert run(host, "prepare", xml) == 1
    assert (host.state(), journals(host)) == (before, [])
    return capfd.readouterr().err


# finding


@pytest.mark.parametrize("kind", [EFI, VESA, SIMPLE])
def test_it_is_found_by_the_memory_that_it_lies_in(host: Firmware, kind: str) -> None:
    host.begin_drawing(kind)
    assert framebuffers.over(host, [AUDIO, CARD]) == [(kind, f"{kind}.0", CARD)]
    assert framebuffers.over(host, [AUDIO, NIC]) == []


@pytest.mark.parametrize("where", ["f7000000-f7ffffff", "f9000000-f97fffff", "0000e000-0000e01f"])
def test_one_in_the_memory_of_another_card_is_no_matter(host: Firmware, where: str) -> None:
    host.begin_drawing(EFI, where=where)
    assert framebuffers.over(host, [CARD, AUDIO]) == []
    assert run(host, "prepare", KEPT) == 0


def test_it_is_found_by_its_place_in_sysfs(host: Firmware) -> None:
    host.begin_drawing(EFI, where="00000000-00000000", parent=CARD)
    host.put(f"/sys/bus/pci/devices/{CARD}/boot_vga", "0\n")
    assert len(framebuffers.over(host, [CARD])) == 1
    host.put(f"/sys/bus/pci/devices/{NIC}/boot_vga", "1\n")
    assert framebuffers.over(host, [NIC]) == []


def test_where_the_memory_is_not_shown_it_is_that_of_the_boot_display(host: Firmware) -> None:
    host.begin_drawing(EFI, where="00000000-00000000")
    assert len(framebuffers.over(host, [CARD])) == 1
    host.put(f"/sys/bus/pci/devices/{CARD}/boot_vga", "0\n")
    assert framebuffers.over(host, [CARD]) == []


def test_names_of_other_things_are_none(host: Firmware) -> None:
    host.begin_drawing(EFI)
    for name in ("efi-framebuffer.x", "simple-framebuffer.0", "9d400000.framebuffer", "module"):
        host.put(f"{DRIVERS}/{EFI}/{name}")
    assert len(framebuffers.over(host, [CARD])) == 1


lines = st.lists(
    st.text(alphabet="0123456789abcdefx- :\t", max_size=60)
    | st.builds("  {} : efifb".format, st.text(alphabet="0123456789abcdef-", max_size=40)),
    max_size=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(memory=lines, bars=lines)
def test_whatever_the_kernel_says_is_understood(host: Firmware, memory: list[str], bars: list[str]) -> None:
    host.begin_drawing(EFI)
    host.put("/proc/iomem", "\n".join(memory))
    host.put(f"/sys/bus/pci/devices/{CARD}/resource", "\n".join(bars))
    assert len(framebuffers.over(host, [CARD])) <= 1


@given(
    first=st.integers(min_value=0, max_value=40),
    size=st.integers(min_value=1, max_value=20),
    bar=st.integers(min_value=10, max_value=30),
    bar_size=st.integers(min_value=1, max_value=9),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_belongs_to_the_card_exactly_where_both_have_a_byte(
    host: Firmware, first: int, size: int, bar: int, bar_size: int
) -> None:
    host.begin_drawing(EFI, where=f"{first:08x}-{first + size - 1:08x}")
    host.put(f"/sys/bus/pci/devices/{CARD}/boot_vga", "0\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/resource", f"{bar:#x} {bar + bar_size - 1:#x} 0x200\n")
    is_over = bool(set(range(first, first + size)) & set(range(bar, bar + bar_size)))
    assert bool(framebuffers.over(host, [CARD])) == is_over


# its nodes


@pytest.mark.parametrize("parent", [None, CARD])
@pytest.mark.parametrize(("kind", "node"), [(EFI, "fb0"), (SIMPLE, "dri/card0")])
def test_who_has_it_open_holds_the_card(
    host: Firmware, capfd: Captured, kind: str, node: str, parent: PciAddress | None
) -> None:
    host.begin_drawing(kind, parent=parent)
    below = f"{DEVICES}/{kind}.0/graphics/{node.rpartition('/')[2]}"
    number = "29:0" if node == "fb0" else "226:0"
    host.put(f"{below}/dev", f"{number}\n")
    host.put(f"{below}/uevent", f"DEVNAME={node}\n")
    assert holders.device_nodes(host, CARD) == {f"/dev/{node}": f"c{number}"}
    assert holders.device_nodes(host, NIC) == {}
    host.begin(CONTAINER, "plymouthd", "/machine.slice/docker-1.scope", f"/dev/{node}")
    assert f"plymouthd (process {CONTAINER}, /dev/{node})" in refused(host, capfd, KEPT)
    # Nobody can ask it to let go.
    on_new_kernel(host)
    assert f"plymouthd (process {CONTAINER}, /dev/{node})" in refused(host, capfd)
    assert host.is_drawing


# refusing


def test_a_card_that_shows_the_console_is_refused_without_a_hand_over(
    host: Firmware, capfd: Captured
) -> None:
    host.begin_drawing(EFI)
    line = refused(host, capfd, KEPT)
    assert f"{CARD} shows the console of this host, on the framebuffer of the firmware ({EFI}.0)" in line
    assert "display=hand-over" in line
    assert host.is_drawing
    assert host.calls == []


def test_without_one_there_is_nothing_to_do(host: Firmware) -> None:
    assert "framebuffer" not in [effect[0] for effect in start(host).effects]
    assert run(host, "release", LENT) == 0


def test_memory_that_nobody_can_free_is_refused_before_anything_is_done(
    host: Firmware, capfd: Captured
) -> None:
    host.begin_drawing(SIMPLE)
    assert "keeps memory of 0000:01:00.0 for the framebuffer of the firmware" in refused(host, capfd)
    # vfio-pci leaves the framebuffers of cards alone that are no VGA controllers.
    host.put("/proc/sys/kernel/osrelease", "6.18.48\n")
    host.put(f"/sys/bus/pci/devices/{CARD}/class", "0x038000\n")
    assert "virtpass host plan --framebuffer-off" in refused(host, capfd)
    assert host.is_drawing
    host.put(f"/sys/bus/pci/devices/{CARD}/class", "0x030000\n")
    host.evicts = True
    start(host)
    assert not host.is_drawing


# taking off and putting back


@pytest.mark.parametrize("kind", [EFI, VESA])
def test_it_lets_go_and_is_back_afterwards(host: Firmware, kind: str) -> None:
    host.begin_drawing(kind)
    before = host.state()
    journal = start(host)
    assert not host.is_drawing
    assert [effect[:4] for effect in journal.effects] == [("framebuffer", kind, f"{kind}.0", str(CARD))]
    # Before the card goes to vfio-pci, and back after the card.
    order = [path for path, _ in host.calls]
    assert order.index(f"{DRIVERS}/{kind}/unbind") < order.index("/sys/bus/pci/drivers_probe")
    assert run(host, "release", LENT) == 0
    assert (host.is_drawing, host.state(), journals(host)) == (True, before, [])
    assert host.calls[-1] == (f"{DRIVERS}/{kind}/bind", f"{kind}.0")
    # A second round is as the first.
    start(host)
    assert run(host, "release", LENT) == 0
    assert host.is_drawing


def test_a_start_that_fails_later_puts_it_back(host: Firmware, capfd: Captured) -> None:
    on_new_kernel(host)
    host.begin_drawing(EFI)
    host.refusing.add(("vfio-pci", AUDIO))
    assert f"{AUDIO} could not be bound" in refused(host, capfd)
    assert host.is_drawing


@pytest.mark.parametrize("has_happened", [False, True])
def test_a_hook_that_was_killed_is_made_good(host: Firmware, has_happened: bool) -> None:
    host.begin_drawing(EFI)
    start(host)
    if not has_happened:
        host.write_attribute(f"{DRIVERS}/{EFI}/bind", f"{EFI}.0", 1)
    fresh = Firmware(host.root)
    fresh.kind, fresh.where = host.kind, host.where
    assert run(fresh, "release", LENT) == 0
    assert host.is_drawing


def test_what_the_kernel_has_removed_is_told_once_and_forgotten(host: Firmware) -> None:
    on_new_kernel(host)
    host.begin_drawing(EFI)
    journal = start(host)
    assert not host.exists(f"{DEVICES}/{EFI}.0")
    problems = engine.give_back(host, journal)
    assert [(one.reference, one.what) for one in problems] == [
        (
            effects.GONE,
            f"the framebuffer of the firmware on {CARD} ({EFI}.0) does not come back before the next boot:"
            " the kernel has removed it",
        )
    ]
    assert journals(host) == []
    start(host)


def test_where_a_driver_shows_a_display_nothing_is_missed(host: Firmware) -> None:
    on_new_kernel(host)
    host.begin_drawing(EFI)
    journal = start(host)
    host.put(f"/sys/bus/pci/devices/{CARD}/drm/card0/dev", "226:0\n")
    assert engine.give_back(host, journal) == []


def test_it_is_not_bound_to_a_card_that_was_found_anew(host: Firmware) -> None:
    """The driver would use what it remembers of the card before."""
    host.begin_drawing(EFI)
    journal = start(host)
    now, _ = engine.present_state(host, journal)
    for step in engine.steps_to_give_back(journal.homes, now):
        engine.apply(host, step)
    link = f"/sys/bus/pci/devices/{CARD}"
    real = host.real_path(link)
    os.rename(host.path(link), host.path(f"{link}.old"))
    host.link(link, real)
    (problem,) = effects.undo(host, journal)
    assert (problem.reference, "found anew" in problem.what) == (effects.GONE, True)
    assert not host.is_drawing


def test_it_is_not_bound_to_memory_that_has_moved(host: Firmware) -> None:
    host.begin_drawing(EFI)
    start(host)
    host.put(f"/sys/bus/pci/devices/{CARD}/resource", BARS.replace("f8", "e8"))
    assert run(host, "release", LENT) == 0
    assert (host.is_drawing, journals(host)) == (False, [])


def test_one_that_does_not_come_back_does_not_keep_the_domain_from_starting(host: Firmware) -> None:
    host.begin_drawing(EFI)
    start(host)
    host.refusal = errno.EBUSY
    assert run(host, "release", LENT) == 0
    assert journals(host) == []


def test_it_waits_for_a_card_that_is_not_back(host: Firmware) -> None:
    host.begin_drawing(EFI)
    journal = start(host)
    (problem,) = effects.undo(host, journal)
    assert "has to wait: the card is not back" in problem.what
    assert (host.is_drawing, len(journal.effects)) == (False, 1)
    assert engine.give_back(host, journal) == []
    assert host.is_drawing


def test_over_a_card_that_is_kept_for_domains_it_stays_off(host: Firmware) -> None:
    host.begin_drawing(EFI)
    host._bind(CARD, "vfio-pci")
    host.put(f"/sys/bus/pci/devices/{CARD}/driver_override", "vfio-pci\n")
    assert start(host).effects == []
    assert not host.is_drawing
    assert run(host, "release", LENT) == 0


def test_one_that_is_open_still_is_told_and_put_back(host: Firmware, capfd: Captured) -> None:
    host.begin_drawing(EFI)
    host.opened = True
    assert f"on {CARD} ({EFI}.0) is still in use; end what uses it" in refused(host, capfd)
    assert host.is_drawing


def test_one_that_the_kernel_does_not_let_go_makes_the_start_fail(host: Firmware, capfd: Captured) -> None:
    host.begin_drawing(EFI)
    host.refusal = errno.EPERM
    assert f"({EFI}.0) cannot be taken off {CARD}: Operation not permitted" in refused(host, capfd)


def test_a_driver_that_hangs_with_it_is_stuck(host: Firmware, capfd: Captured) -> None:
    host.begin_drawing(EFI)
    host.has_hanging_driver = True
    assert run(host, "prepare", LENT) == 1
    assert "its driver does not come back" in capfd.readouterr().err
    with pytest.raises(FailedError, match=f"a driver hangs with {CARD}"):
        engine.refuse_stuck(host, CARD)
    # It is touched once, and never again.
    assert run(host, "release", LENT) == 1
    assert [path for path, _ in host.calls if path.startswith(DRIVERS)] == [f"{DRIVERS}/{EFI}/unbind"]


@pytest.mark.parametrize(
    "fields",
    [
        ("efi-framebuffer", "../../x", str(CARD), "0"),
        ("e1000e", "e1000e.0", str(CARD), "0"),
        ("efi-framebuffer", "simple-framebuffer.0", str(CARD), "0"),
        ("efi-framebuffer", "efi-framebuffer.0", "../..", "0"),
        ("efi-framebuffer", "efi-framebuffer.0"),
    ],
)
def test_a_record_names_a_framebuffer_and_nothing_else(host: Firmware, fields: tuple[str, ...]) -> None:
    host.begin_drawing(EFI)
    with pytest.raises((ValueError, VirtpassError)):
        framebuffers.bind_again(host, fields)
    assert host.calls == []


# rehearsing


def test_a_rehearsal_tells_whether_it_comes_back(host: Firmware) -> None:
    host.begin_drawing(EFI)
    found = rehearse(host, LENT.decode())
    text = f"take the framebuffer of the firmware off {CARD} ({EFI}.0)"
    assert [(one.text, one.is_undone) for one in found.steps if "framebuffer" in one.text] == [(text, True)]
    assert "stays dark" not in found.warning
    on_new_kernel(host)
    found = rehearse(host, LENT.decode())
    assert [(one.text, one.is_undone) for one in found.steps if "framebuffer" in one.text] == [
        (f"{text}: it does not come back before the next boot", False)
    ]
    assert "without a graphics driver that screen stays dark" in found.warning
    found = rehearse(host, KEPT.decode())
    assert isinstance(found.problem, RefusedError)
    assert host.calls == []
