"""`virtpass host` as a user sees it: what is printed where, what is asked, how it ends."""

import functools
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_commands import Captured, call
from tests.host import choices, rows_grub
from tests.host.machine import ALIASES, RUNNING, add_kernel, on_row, switch_off
from tests.host.rows import Programs, Row
from tests.simulation import CARD, DISK, SimulatedHost
from virtpass.cli import main
from virtpass.cli.output import agree
from virtpass.host.initramfs.base import Image
from virtpass.host.initramfs.initramfs_tools import InitramfsTools
from virtpass.operations import host_preparation
from virtpass.system.errors import PermissionDeniedError, RefusedError

ROWS = {row.name: row for row in rows_grub.ROWS}
DEBIAN = ROWS["debian-12-grub"]
DROP_IN = "/etc/default/grub.d/zz-virtpass.cfg"
OTHER = "6.12.1-1-cloud-amd64"
FALLBACK = "Without passthrough: "


@pytest.fixture
def host(tmp_path: Path) -> SimulatedHost:
    """A Debian host with GRUB and initramfs-tools, whose IOMMU is on."""
    return debian(tmp_path)


def debian(root: Path) -> SimulatedHost:
    host = on_row(DEBIAN, root)
    (version,) = host.names("/usr/lib/modules")
    host.put("/proc/sys/kernel/osrelease", version + "\n")
    host.put(f"/usr/lib/modules/{version}/modules.alias", ALIASES)
    assert version != RUNNING
    return host


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Programs:
    """The distribution's programs, which do their work on the tree."""
    found = Programs({**DEBIAN.programs, **choices.PROGRAMS})
    monkeypatch.setattr(host_preparation, "apply", functools.partial(host_preparation.apply, run=found))
    monkeypatch.setattr(host_preparation, "recover", functools.partial(host_preparation.recover, run=found))
    return found


def tree(host: SimulatedHost) -> dict[str, bytes]:
    """Return the content of all files that a user has, but those that the kernel makes."""
    root = Path(host.root)
    return {
        name: path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not (name := path.relative_to(root).as_posix()).startswith(("sys", "proc", "run/virtpass"))
    }


class Terminal(io.StringIO):
    """A terminal at which somebody has typed something."""

    def isatty(self) -> bool:
        return True


def typed(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Let a user at a terminal type an answer."""
    monkeypatch.setattr(sys, "stdin", Terminal(answer))


# plan


def test_a_host_that_is_ready_needs_nothing(host: SimulatedHost, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "host", "plan")
    assert status == 0
    assert out == "IOMMU       on (intel), 1 unit and 7 groups in sysfs\nnothing needs to be changed\n"
    assert err == ""


def in_the_firmware(host: SimulatedHost) -> None:
    switch_off(host)
    os.remove(host.path("/sys/firmware/acpi/tables/DMAR"))


def without_remapping(host: SimulatedHost) -> None:
    for interrupt in host.names("/sys/kernel/irq"):
        os.unlink(host.path(f"/sys/kernel/irq/{interrupt}/chip_name"))
    host.put("/sys/kernel/irq/1/chip_name", "IO-APIC\n")


@pytest.mark.parametrize("lacks", [in_the_firmware, without_remapping])
def test_a_host_that_virtpass_cannot_make_ready_is_not_called_so(
    host: SimulatedHost, capfd: Captured, lacks: Callable[[SimulatedHost], None]
) -> None:
    lacks(host)
    status, out, err = call(host, capfd, "host", "plan")
    assert status == 0
    # Whoever keeps standard output alone is not reassured.
    assert out.endswith(
        "\nnothing is left that virtpass could change; but this host is not ready: virtpass doctor\n"
    )
    assert "nothing needs to be changed" not in out
    assert err.startswith("warning: ")


def test_interrupts_that_were_accepted_are_no_lack_before_the_first_start(
    host: SimulatedHost, capfd: Captured
) -> None:
    """VFIO tells of it only when its module is there."""
    without_remapping(host)
    assert call(host, capfd, "host", "status")[2].endswith("next: virtpass doctor\n")
    assert call(host, capfd, "host", "apply", "--unsafe-interrupts", "--yes")[0] == 0
    out = call(host, capfd, "host", "plan", "--unsafe-interrupts")[1]
    assert out.endswith("\nnothing needs to be changed: it is applied already\n")
    assert "next:" not in call(host, capfd, "host", "status")[2]


def test_a_plan_shows_what_it_comes_to_then_diffs_then_commands(host: SimulatedHost, capfd: Captured) -> None:
    switch_off(host)
    status, out, err = call(host, capfd, "host", "plan", "--pt", "--kernel-arg", "amd_iommu=on")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("IOMMU       off (intel), kernel argument missing: the firmware offers one")
    assert lines[1] == "Arguments   intel_iommu=on iommu=pt"
    assert lines[2].split() == ["Bootloader", "GRUB"]
    assert lines[3].startswith(f"Fallback    '{FALLBACK}")
    assert lines[4:6] == ["--- /dev/null", f"+++ {DROP_IN}"]
    assert lines[-3:] == [
        "1. update-grub",
        "   writes the boot menu anew (some seconds)",
        "it takes effect at the next boot",
    ]
    assert err.splitlines() == [
        "note: intel_iommu=on switches on the IOMMU of Intel",
        "note: iommu=pt spares the host's own devices translation, and their memory protection",
        "note: not written: amd_iommu=on has a value that no kernel knows: AMD's IOMMU is on by itself",
    ]


def test_an_acs_override_that_no_kernel_knows_is_warned_of(host: SimulatedHost, capfd: Captured) -> None:
    status, _, err = call(host, capfd, "host", "plan", "--acs-override")
    assert status == 0
    assert err.startswith("warning: not written: pcie_acs_override=")


def test_a_plan_to_bind_warns_of_what_goes_dark(host: SimulatedHost, capfd: Captured) -> None:
    before = tree(host)
    status, out, err = call(host, capfd, "host", "plan", "--bind", "01:00.0")
    assert status == 0
    assert "At boot     0000:01:00.0 on vfio-pci, 0000:01:00.1 on vfio-pci\n" in out
    assert "Initramfs   initramfs-tools\n" in out
    assert "+softdep snd_hda_intel pre: vfio-pci\n" in out
    assert "update-initramfs -u -k all" in out
    assert f"warning: {CARD} is the host's only display: from the next boot on it stays dark\n" in err
    # The IOMMU is on, so no argument is needed; but there has to be a way back on the boot menu.
    assert "Arguments   virtpass=on\n" in out
    assert f"Fallback    '{FALLBACK}" in out
    assert tree(host) == before


def test_a_plan_as_json(host: SimulatedHost, capfd: Captured) -> None:
    switch_off(host)
    status, out, err = call(host, capfd, "host", "plan", "--bind", "01:00.0", "--json")
    assert (status, err) == (0, "")
    plan = json.loads(out)
    assert list(plan) == [
        "iommu",
        "bootloader",
        "initramfs",
        "arguments",
        "devices",
        "files",
        "commands",
        "kernel_parameters",
        "restored",
        "notes",
        "fallback_entry",
        "trial_entry",
        "needs_reboot",
    ]
    assert plan["iommu"]["state"] == "kernel argument missing"
    assert (plan["bootloader"], plan["initramfs"]) == ("grub", "initramfs-tools")
    assert plan["arguments"] == ["intel_iommu=on"]
    assert plan["devices"] == ["0000:01:00.0", "0000:01:00.1"]
    assert {"/etc/modprobe.d/virtpass.conf", DROP_IN} <= {one["path"] for one in plan["files"]}
    assert all(one["diff"] and one["reason"] for one in plan["files"])
    assert [one["argv"] for one in plan["commands"]] == [
        ["update-initramfs", "-u", "-k", "all"],
        ["update-grub"],
    ]
    assert {one["severity"] for one in plan["notes"]} <= {"note", "warning"}
    assert plan["fallback_entry"].startswith(FALLBACK)
    assert plan["trial_entry"] is None
    assert plan["needs_reboot"] is True


def test_another_root(host: SimulatedHost, capfd: Captured, tmp_path_factory: pytest.TempPathFactory) -> None:
    switch_off(host)
    elsewhere = debian(tmp_path_factory.mktemp("elsewhere"))
    here = call(host, capfd, "host", "plan", "--json")
    there = call(elsewhere, capfd, "host", "plan", "--root", host.root, "--json")
    assert here == there
    assert (
        call(host, capfd, "host", "status", "--root", elsewhere.root)[1]
        .splitlines()[1]
        .startswith("IOMMU       on (intel)")
    )


def test_a_narrow_terminal_gets_whole_words(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch_off(host)
    monkeypatch.setattr("virtpass.cli.output._columns", lambda _: 60)
    _, out, _ = call(host, capfd, "host", "status")
    lines = out.splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[1:4] == [
        "IOMMU       off (intel), kernel argument missing: the",
        "            firmware offers one (ACPI table DMAR), and the",
        "            kernel waits for intel_iommu=on",
    ]


# bad input


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--kernel-arg", "x=$(reboot)"), 2, "'x=$(reboot)' cannot be written as a kernel argument safely"),
        (("--kernel-arg", "a\nb"), 2, "'a\\nb' cannot be written as a kernel argument safely"),
        (("--kernel-arg", "quiet splash"), 2, "one argument at a time"),
        (("--softdep", "a b"), 2, "'a b' is not the name of a kernel module"),
        (("--blacklist", "vfio-pci"), 2, "'vfio-pci' is part of VFIO"),
        (("--acs-override=everything",), 2, "'everything' is no value for the ACS override"),
        (("--bind", "nonsense"), 2, "'nonsense' is not a PCI address"),
        (("--bootloader", "lilo", "--pt"), 2, "virtpass knows no bootloader 'lilo'"),
        (("--root", "/nonexistent"), 3, "there is no directory /nonexistent; name the top of the system"),
        (("--frobnicate",), 2, "No such option"),
        (("--bind", "0b:00.0"), 3, "there is no PCI device 0000:0b:00.0 on this host"),
        (("--bind", str(DISK)), 4, "it holds the file system /"),
        (("--bind", "00:04.0"), 4, "bridges stay with the host"),
        (("--kernel-arg", "vfio-pci.ids=1b36:0010"), 4, f"takes {DISK}, which holds the file system /"),
        (("--kernel-arg", "root=/dev/sdb"), 4, "decides how the host itself boots"),
        (("--kernel-arg", "intremap=off"), 4, "makes VFIO refuse every device; --accept-risk"),
        (("--blacklist", "nvme"), 4, f"nvme is the driver of {DISK}"),
    ],
)
@pytest.mark.parametrize("command", [("plan",), ("apply", "--yes")])
def test_bad_input_is_one_line_and_a_status(
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    command: tuple[str, ...],
    arguments: tuple[str, ...],
    status: int,
    words: str,
) -> None:
    before = tree(host)
    seen, out, err = call(host, capfd, "host", *command, *arguments)
    assert (seen, out) == (status, "")
    assert err.startswith("virtpass: ")
    assert err.count("\n") == 1
    assert words in err
    assert programs.calls == []
    assert tree(host) == before


@pytest.mark.parametrize("row", [row for row in rows_grub.ROWS if row.refused], ids=lambda row: row.name)
def test_a_host_that_is_refused_gets_one_line(
    row: Row, tmp_path: Path, programs: Programs, capfd: Captured
) -> None:
    host = on_row(row, tmp_path)
    before = tree(host)
    options = ("--bootloader", row.bootloader) if row.bootloader else ()
    status, out, err = call(host, capfd, "host", "apply", "--pt", "--yes", *options)
    assert (status, out) == (4, "")
    assert err.count("\n") == 1
    assert programs.calls == []
    assert tree(host) == before


# apply, status, confirm, revert, recover


def test_without_a_terminal_nothing_is_asked_and_nothing_done(
    host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    before = tree(host)
    status, out, err = call(host, capfd, "host", "apply", "--pt")
    assert status == 2
    assert f"+++ {DROP_IN}" in out
    assert err.endswith("virtpass: there is no terminal to ask on; look at the plan, then add --yes\n")
    status, out, err = call(host, capfd, "host", "apply", "--pt", "--json")
    assert (status, out) == (2, "")
    assert "with --json nothing is asked" in err
    assert programs.calls == []
    assert tree(host) == before


@pytest.mark.parametrize(("answer", "expected"), [("n\n", 4), ("\n", 4), ("", 130)])
def test_whoever_does_not_say_yes_changes_nothing(
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    expected: int,
) -> None:
    before = tree(host)
    typed(monkeypatch, answer)
    status, out, err = call(host, capfd, "host", "apply", "--pt")
    assert status == expected
    assert "Do this? [y/N]" in err
    assert "Do this?" not in out
    assert programs.calls == []
    assert tree(host) == before


def test_whoever_says_yes_gets_it(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "y\n")
    status, _, err = call(host, capfd, "host", "apply", "--pt")
    assert status == 0
    assert "running update-grub" in err
    assert "done, and proven by reading back what will be booted\nit takes effect at the next boot\n" in err
    assert err.count("it takes effect at the next boot") == 1
    assert f"the way back on the boot menu: '{FALLBACK}" in err
    assert "iommu=pt" in (host.read(DROP_IN) or "")


def test_dry_runs_show_what_would_be_done(host: SimulatedHost, programs: Programs, capfd: Captured) -> None:
    before = tree(host)
    assert call(host, capfd, "host", "apply", "--pt", "--dry-run") == call(
        host, capfd, "host", "plan", "--pt"
    )
    as_json = call(host, capfd, "host", "apply", "--pt", "--dry-run", "--json")
    assert as_json == call(host, capfd, "host", "plan", "--pt", "--json")
    assert tree(host) == before
    call(host, capfd, "host", "apply", "--pt", "--yes")
    applied = tree(host)
    status, out, _ = call(host, capfd, "host", "revert", "--dry-run")
    assert status == 0
    assert f"--- {DROP_IN}\n+++ /dev/null" in out
    assert "1. update-grub" in out
    assert tree(host) == applied


def test_from_nothing_to_applied_and_back(host: SimulatedHost, programs: Programs, capfd: Captured) -> None:
    before = tree(host)
    status, out, _ = call(host, capfd, "host", "status")
    assert status == 0
    assert (
        out.splitlines()[0] == f"System      {host.read('/etc/os-release') and 'Debian GNU/Linux 12'}, BIOS"
    )
    assert out.splitlines()[-1] == "Applied     nothing"
    assert call(host, capfd, "host", "apply", "--pt", "--yes")[0] == 0

    status, out, _ = call(host, capfd, "host", "status")
    assert status == 0
    assert "Applied     iommu=pt\n" in out
    assert f"  right                 {DROP_IN} is as virtpass wrote it\n" in out
    assert "  waiting for a reboot  the running kernel lacks iommu=pt\n" in out

    programs.calls.clear()
    status, out, err = call(host, capfd, "host", "apply", "--pt", "--yes")
    assert (status, programs.calls) == (0, [])
    assert out.endswith("nothing needs to be changed: it is applied already\n")

    status, out, err = call(host, capfd, "host", "revert", "--yes")
    assert status == 0
    assert tree(host) == before
    status, out, err = call(host, capfd, "host", "revert", "--yes")
    assert (status, out, err) == (0, "virtpass has changed nothing on this host\n", "")
    assert call(host, capfd, "host", "revert", "--yes", "--json")[1] == "null\n"


def test_status_after_a_reboot_that_did_not_take_is_1(
    host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    call(host, capfd, "host", "apply", "--pt", "--yes")
    host.put("/proc/sys/kernel/random/boot_id", "another\n")
    status, out, _ = call(host, capfd, "host", "status", "--json")
    assert status == 1
    found = json.loads(out)
    assert list(found) == [
        "system",
        "uefi",
        "loader",
        "iommu",
        "kernels",
        "unfinished",
        "applied",
        "checks",
    ]
    assert found["applied"]["arguments"] == ["iommu=pt"]
    assert found["kernels"][0]["modules"]["vfio-pci"] == "module"
    (check,) = [one for one in found["checks"] if one["reference"] == "command-line"]
    assert check["verdict"] == "wrong"
    host.put("/proc/cmdline", "root=/dev/vda1 ro iommu=pt\n")
    assert call(host, capfd, "host", "status")[0] == 0


def test_a_trial_is_confirmed_only_from_the_trial(
    host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    status, _, err = call(host, capfd, "host", "confirm", "--yes")
    assert (status, err) == (4, "virtpass: nothing is on trial; virtpass host apply --trial begins one\n")
    status, _, err = call(host, capfd, "host", "apply", "--pt", "--trial", "--yes")
    assert status == 0, err
    assert "the next boot tries it ('Trial of passthrough: " in err
    assert "any other boot, after a power cut too, goes without\n" in err
    assert "grub-reboot" in [call[0] for call in programs.calls]
    status, _, err = call(host, capfd, "host", "confirm", "--yes")
    assert status == 4
    assert "this boot is not the trial" in err
    host.put("/proc/cmdline", f"{host.read('/proc/cmdline')} iommu=pt virtpass=trial\n")
    assert "this boot is the trial" in call(host, capfd, "host", "status")[1]
    status, _, err = call(host, capfd, "host", "confirm", "--yes")
    assert status == 0, err
    assert "iommu=pt" in (host.read(DROP_IN) or "")
    assert "virtpass=trial" not in (host.read("/boot/grub/grub.cfg") or "")


def test_what_needs_no_argument_is_tried_too(
    host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    _, out, _ = call(host, capfd, "host", "plan", "--bind", "01:00.0", "--trial")
    assert "Trial       'Trial of passthrough: " in out
    assert "virtpass=on virtpass=trial" in out


def test_a_command_that_fails_shows_what_it_said_and_leaves_nothing(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host)
    broken = Programs({"update-grub": lambda _host, _arguments: 3})
    monkeypatch.setattr(
        host_preparation,
        "apply",
        functools.partial(host_preparation.apply.func, run=broken),  # type: ignore[attr-defined]
    )
    status, _, err = call(host, capfd, "host", "apply", "--pt", "--yes")
    assert status == 1
    assert "  | update-grub says no\n" in err
    assert err.splitlines()[-1].startswith("virtpass: update-grub failed with status 3")
    assert tree(host) == before


def test_a_proof_that_fails_leaves_nothing(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host)
    idle = Programs({"update-grub": lambda _host, _arguments: 0})
    monkeypatch.setattr(
        host_preparation,
        "apply",
        functools.partial(host_preparation.apply.func, run=idle),  # type: ignore[attr-defined]
    )
    status, _, err = call(host, capfd, "host", "apply", "--pt", "--yes")
    assert status == 1
    assert "virtpass: the result is not as planned: the boot entry '" in err
    assert tree(host) == before


def test_nothing_to_recover(host: SimulatedHost, programs: Programs, capfd: Captured) -> None:
    status, out, err = call(host, capfd, "host", "recover")
    assert (status, out, err) == (0, "no change was cut off: there is nothing to recover\n", "")
    assert call(host, capfd, "host", "recover", "--dry-run") == (status, out, err)
    assert call(host, capfd, "host", "recover", "--json") == (0, "[]\n", "")
    assert call(host, capfd, "host", "recover", "--dry-run", "--json") == (0, "[]\n", "")


def test_who_may_not_lock_the_host_has_nothing_to_recover_either(
    host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionDeniedError("permission", "/run/virtpass: Permission denied", "run it as root")

    monkeypatch.setattr(host_preparation, "recover", refuse)
    nothing = "no change was cut off: there is nothing to recover\n"
    assert call(host, capfd, "host", "recover") == (0, nothing, "")
    monkeypatch.setattr(host_preparation, "is_unfinished", lambda _: True)
    assert call(host, capfd, "host", "recover")[0] == 5


def test_without_an_iommu_the_status_says_where_to_look(host: SimulatedHost, capfd: Captured) -> None:
    assert call(host, capfd, "host", "status")[2] == ""
    switch_off(host)
    assert call(host, capfd, "host", "status")[2] == "next: virtpass doctor\n"


def test_without_remapping_the_status_says_where_to_look(host: SimulatedHost, capfd: Captured) -> None:
    without_remapping(host)
    assert call(host, capfd, "host", "status")[2] == "next: virtpass doctor\n"


def test_what_comes_next_stands_below_all_facts(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(host, capfd, "host", "apply", "--pt", "--yes")[0] == 0
    switch_off(host)
    # Both outputs go to one place, as on a terminal.
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    lines = call(host, capfd, "host", "status")[1].splitlines()
    assert "Applied     iommu=pt" in lines
    assert lines[-1] == "next: virtpass doctor"


@pytest.mark.parametrize("answer", ["", "n\n", "maybe\nNO\n"])
def test_a_question_takes_yes_and_no_alone(
    capfd: Captured, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    typed(monkeypatch, answer or "\n")
    with pytest.raises(RefusedError, match="nothing was changed"):
        agree("Do this?")
    assert ("answer y or n\n" in capfd.readouterr().err) is ("maybe" in answer)
    typed(monkeypatch, "Yes\n")
    agree("Do this?")


def cut_off(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process die while the boot menu is being written."""

    def dies(*_: object) -> int:
        os._exit(9)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(
            host_preparation,
            "apply",
            functools.partial(host_preparation.apply.func, run=Programs({"update-grub": dies})),  # type: ignore[attr-defined]
        )
        main(["host", "apply", "--pt", "--yes"], host)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_change_that_was_cut_off_is_put_back(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(host)
    cut_off(host, monkeypatch)

    status, out, err = call(host, capfd, "host", "status")
    assert status == 1
    assert "Unfinished  a change was cut off half way\n" in out
    assert "next: sudo virtpass host recover\n" in err
    half = tree(host)
    for words in (("plan", "--pt"), ("apply", "--pt", "--dry-run"), ("revert", "--dry-run")):
        status, _, err = call(host, capfd, "host", *words)
        assert status == 4
        assert "run virtpass host recover first" in err
    status, out, _ = call(host, capfd, "host", "recover", "--dry-run")
    assert status == 0
    assert f"to do: {DROP_IN} put back\n" in out
    assert tree(host) == half != before
    status, out, _ = call(host, capfd, "host", "recover")
    assert status == 0
    assert f"{DROP_IN} put back\n" in out
    assert tree(host) == before


@pytest.mark.parametrize("words", [("apply", "--pt", "--yes"), ("revert", "--yes")])
def test_a_change_that_was_cut_off_is_put_back_before_the_next(
    host: SimulatedHost,
    programs: Programs,
    capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    before = tree(host)
    cut_off(host, monkeypatch)
    status, _, err = call(host, capfd, "host", *words)
    assert status == 0, err
    assert err.startswith("an earlier change was cut off half way, and is put back first\n")
    assert f"{DROP_IN} put back\n" in err
    assert ("iommu=pt" in (host.read(DROP_IN) or "")) == (words[0] == "apply")
    call(host, capfd, "host", "revert", "--yes")
    assert tree(host) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_status_tells_others_than_root_what_it_can(
    host: SimulatedHost, programs: Programs, capfd: Captured
) -> None:
    call(host, capfd, "host", "apply", "--pt", "--yes")
    os.chmod(host.path("/var/lib/virtpass/host"), 0o700)
    for path in (Path(host.root), *Path(host.root).parents):
        if path.stat().st_uid == 0 and path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    if (child := os.fork()) == 0:
        os.setgid(65534)
        os.setuid(65534)
        os._exit(main(["host", "status"], host) and 9)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out = capfd.readouterr().out
    assert ended == 0, out
    assert "IOMMU       on (intel)" in out
    assert "cannot tell" in out
    assert "/var/lib/virtpass/host" in out


def test_a_device_is_bound_at_boot_and_given_back(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = frozenset({"etc/modprobe.d/virtpass.conf", "etc/virtpass/early-bind", "lib/vfio-pci.ko.xz"})

    def content(*_: object) -> frozenset[str]:
        return names if host.exists("/etc/modprobe.d/virtpass.conf") else frozenset()

    monkeypatch.setattr(InitramfsTools, "content", content)
    before = tree(host)
    status, _, err = call(host, capfd, "host", "apply", "--bind", "01:00.0", "--yes")
    assert status == 0, err
    assert os.access(host.path("/etc/virtpass/early-bind"), os.X_OK)
    found = json.loads(call(host, capfd, "host", "status", "--json")[1])
    assert found["applied"]["devices"] == ["0000:01:00.0", "0000:01:00.1"]
    assert [one["verdict"] for one in found["checks"] if one["reference"] == "early-binding"] == [
        "waiting for a reboot",
        "waiting for a reboot",
    ]
    assert call(host, capfd, "host", "apply", "--bind", "01:00.0", "--dry-run")[1].endswith(
        "nothing needs to be changed: it is applied already\n"
    )
    assert call(host, capfd, "host", "revert", "--yes")[0] == 0
    assert tree(host) == before


def test_a_kernel_without_vfio_pci_is_no_reason_to_fail(
    host: SimulatedHost, programs: Programs, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_kernel(host, OTHER, without=("vfio",))
    host.put(f"/boot/initrd.img-{OTHER}", "")
    names = frozenset({"etc/modprobe.d/virtpass.conf", "etc/virtpass/early-bind"})

    def content(_self: object, _facts: object, image: Image) -> frozenset[str]:
        return names if image.kernel == OTHER else names | {"lib/vfio-pci.ko.xz"}

    monkeypatch.setattr(InitramfsTools, "content", content)
    status, _, err = call(host, capfd, "host", "apply", "--bind", "01:00.0", "--yes")
    assert status == 0, err
    assert f"warning: no vfio-pci in {OTHER}: with this kernel no device can be given to a domain\n" in err


# help


@pytest.mark.parametrize("command", ["plan", "apply", "status", "confirm", "revert", "recover"])
def test_every_command_explains_itself(host: SimulatedHost, capfd: Captured, command: str) -> None:
    status, out, err = call(host, capfd, "host", command, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: virtpass host {command} [OPTIONS]\n")
    for option in ("--json", "--root"):
        assert option in out
    assert ("--dry-run" in out) is (command not in ("plan", "status"))
    assert ("--yes" in out) is (command in ("apply", "confirm", "revert"))
    assert all(len(line) <= 80 for line in out.splitlines())


def test_an_argument_that_runs_already_needs_no_bootloader_that_virtpass_knows(
    tmp_path: Path, capfd: Captured
) -> None:
    host = on_row(ROWS["unknown-distribution"], tmp_path)
    host.put("/proc/cmdline", "root=/dev/vda1 intel_iommu=on\n")
    status, out, err = call(host, capfd, "host", "plan")
    assert status == 0
    assert "intel_iommu=on comes from a bootloader that virtpass does not know" in err
    assert "nothing needs to be changed" in out
    # Whoever asks for it by name is told that it cannot be written.
    status, _, err = call(host, capfd, "host", "plan", "--pt")
    assert status == 4
    assert "no bootloader that virtpass knows" in err
    assert "--bootloader" not in err, "whichever is named, nothing of it is there"
    assert "add iommu=pt to the kernel's command line by hand" in err
