"""What the Debian package's scripts do to a host, run on a tree of files; and what its units promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "packaging" / "debian"
UNITS = ROOT / "packaging" / "systemd"
# Where the scripts look.
PLACES = re.compile(r"/(?:etc|run|usr/bin|var/lib)/")


@dataclass
class Tree:
    """A host with a virtpass that says of the hook what it is told to, and writes down how it was called."""

    root: Path

    def put(self, path: str, text: str = "", mode: int = 0o644) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def has(self, path: str) -> bool:
        return (self.root / path).exists()

    def virtpass(self, state: str) -> None:
        said = f'{{\n  "state": "{state}",\n  "path": "/x"\n}}'
        script = f"#!/bin/sh\necho virtpass \"$@\" >>{self.root}/calls\n[ $2 != status ] || echo '{said}'\n"
        self.put("usr/bin/virtpass", script, 0o755)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        text = PLACES.sub(rf"{self.root}\g<0>", (SCRIPTS / f"virtpass.{name}").read_text())
        programs = self.root / "programs"
        for program in ("virtpass", "systemctl", "deb-systemd-invoke"):
            self.put(
                f"programs/{program}", f'#!/bin/sh\necho other-{program} "$@" >>{self.root}/calls\n', 0o755
            )
        return subprocess.run(
            ["sh", "-c", text, name, *arguments],
            env={"PATH": f"{programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
        )

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines() if self.has("calls") else []


HOOK = "etc/libvirt/hooks/qemu.d/50-virtpass"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# the hook


def upgraded(tree: Tree, before: str, after: str) -> str:
    """Upgrade the package; return what the administrator is told."""
    tree.put("var/lib/virtpass/hook/1/virtpass/x")
    tree.virtpass(before)
    tree.run("prerm", "upgrade", "2")
    tree.virtpass(after)
    return tree.run("postinst", "configure", "1").stderr


@pytest.mark.parametrize("state", ["outdated", "incomplete"])
def test_an_upgrade_renews_the_hook(state: str, tree: Tree) -> None:
    tree.put(HOOK, mode=0o755)
    assert upgraded(tree, "current", state) == ""
    assert tree.calls[-1] == "virtpass hook install"


@pytest.mark.parametrize(("before", "after"), [("changed", "outdated"), ("current", "changed")])
def test_a_hook_that_somebody_edited_stays_as_it_is(before: str, after: str, tree: Tree) -> None:
    """To the new version an edit looks like another version, so the old one is asked first."""
    tree.put(HOOK, mode=0o755)
    assert "was edited, and is left as it is" in upgraded(tree, before, after)
    assert "virtpass hook install" not in tree.calls
    # That counts for this upgrade alone.
    assert upgraded(tree, "current", "outdated") == ""
    assert tree.calls[-1] == "virtpass hook install"


@pytest.mark.parametrize("state", ["current", "not-executable", "outdated"])
def test_a_hook_that_is_right_or_switched_off_is_left_alone(state: str, tree: Tree) -> None:
    tree.put(HOOK, mode=0o755 if state == "current" else 0o644)
    upgraded(tree, state, state)
    assert "virtpass hook install" not in tree.calls


def test_no_hook_comes_without_being_asked_for(tree: Tree) -> None:
    assert upgraded(tree, "absent", "absent") == ""
    assert tree.calls == []


def test_removing_runs_the_packages_own_program_and_leaves_no_unit_active(tree: Tree) -> None:
    tree.put(HOOK, mode=0o755)
    tree.virtpass("current")
    (tree.root / "run/systemd/system").mkdir(parents=True)
    tree.run("prerm", "remove")
    assert tree.calls == [
        "virtpass hook uninstall",
        "other-deb-systemd-invoke stop virtpass-functions.service virtpass-recover.service",
    ]


# systemd


def test_systemd_looks_at_the_units_that_came_where_it_runs(tree: Tree) -> None:
    tree.run("postinst", "configure")
    assert tree.calls == []
    (tree.root / "run/systemd/system").mkdir(parents=True)
    tree.run("postinst", "configure")
    assert tree.calls == ["other-systemctl --system daemon-reload"]


def unit(name: str) -> set[str]:
    return set((UNITS / name).read_text().splitlines())


def test_to_stop_a_recovery_does_not_break_off_what_builds_an_initramfs() -> None:
    assert "KillMode=mixed" in unit("virtpass-host-recover.service")


def test_to_go_to_another_target_gives_nothing_back_once_more() -> None:
    assert {"Type=oneshot", "RemainAfterExit=yes"} <= unit("virtpass-recover.service")


def test_to_stop_the_unit_of_functions_removes_none() -> None:
    assert not [line for line in unit("virtpass-functions.service") if line.startswith("ExecStop")]


# purge


def test_purge_leaves_nothing(tree: Tree) -> None:
    tree.put("run/virtpass/hook.lock")
    (tree.root / "run/virtpass/lent").mkdir()
    tree.put("var/lib/virtpass/made-directories")
    tree.put("etc/virtpass/functions.d/0000:01:00.0")
    assert tree.run("postrm", "purge").stderr == ""
    assert not [path for path in ("run/virtpass", "var/lib/virtpass", "etc/virtpass") if tree.has(path)]


@pytest.mark.parametrize("sign", [HOOK, "run/virtpass/lent/6b0f2a57-3c4e-4d7e-9a39-0c1f2e3d4b5a"])
def test_purge_takes_nothing_from_another_installation(sign: str, tree: Tree) -> None:
    files = ("run/virtpass/hook.lock", "var/lib/virtpass/hook/1/x", "etc/virtpass/functions.d/0000:01:00.0")
    for path in (sign, *files):
        tree.put(path)
    assert "another installation of virtpass is in use" in tree.run("postrm", "purge").stderr
    assert all(tree.has(path) for path in (sign, *files))


def test_purge_keeps_the_record_of_what_the_host_boots_with(tree: Tree) -> None:
    tree.put("var/lib/virtpass/host/applied.json")
    assert "/var/lib/virtpass/host is kept" in tree.run("postrm", "purge").stderr
    assert tree.has("var/lib/virtpass/host/applied.json")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["postinst", "prerm", "postrm"])
def test_shellcheck_finds_nothing(name: str) -> None:
    done = subprocess.run(
        ["shellcheck", SCRIPTS / f"virtpass.{name}"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
