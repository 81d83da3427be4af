"""Which kernel command lines start the Linux of a host, for entries as files and for menus kept by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host.rows import build
from virtpass.host.facts import HostFacts, read_facts
from virtpass.host.loaders.roots import refuse_mixed, root_token, starts_this_root
from virtpass.system.errors import RefusedError


def booted_with(line: str, root: Path) -> HostFacts:
    return read_facts(build(root, {"/proc/cmdline": f"{line}\n"}))


@pytest.mark.parametrize(
    ("line", "is_ours"),
    [
        ("root=UUID=x rootflags=subvol=a", True),
        ("rootflags=noatime,subvol=/a quiet root=UUID=x", True),
        ("root=UUID=x rootflags=subvol=b", False),
        ("root=UUID=x", False),
        ("root=UUID=y rootflags=subvol=a", False),
        ("root=UUID=x rootflags=subvol=a root=UUID=y", False),
        ("quiet", False),
    ],
)
def test_root_and_subvolume_tell_one_system_from_another(line: str, is_ours: bool, tmp_path: Path) -> None:
    facts = booted_with("root=UUID=x ro rootflags=compress,subvol=a", tmp_path)
    assert starts_this_root(line.split(), facts) is is_ours


def test_with_no_root_known_every_line_counts(tmp_path: Path) -> None:
    facts = booted_with("quiet", tmp_path)
    assert root_token(facts) == ""
    assert starts_this_root(("root=UUID=y",), facts)
    assert starts_this_root((), facts)


def test_two_roots_of_one_name_lie_on_different_disks(tmp_path: Path) -> None:
    here = "root=/dev/mapper/root cryptdevice=UUID=1:root"
    facts = booted_with(here, tmp_path)
    assert starts_this_root((*here.split(), "quiet"), facts)
    other = ("root=/dev/mapper/root", "cryptdevice=UUID=2:root")
    assert not starts_this_root(other, facts)
    with pytest.raises(RefusedError) as caught:
        refuse_mixed(facts, "/menu", [tuple(here.split()), other])
    assert caught.value.reference == "shared-root"


def test_a_root_in_fstab_says_nothing_of_disks(tmp_path: Path) -> None:
    facts = read_facts(build(tmp_path, {"/etc/fstab": "/dev/mapper/root / btrfs rw,subvol=/@ 0 0\n"}))
    assert starts_this_root(("root=/dev/mapper/root", "rootflags=subvol=@", "cryptdevice=UUID=1:root"), facts)
