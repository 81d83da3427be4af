"""Installing the hook: one executable, beside the user's own, and gone without a trace."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.simulation import AUDIO, CARD, SimulatedHost, domain_xml
from virtpass.hook.entry import run
from virtpass.hook.install import HOOK, HOOK_DIRECTORY, PAYLOADS, hook_status, install, uninstall
from virtpass.system.errors import RefusedError, UnavailableError
from virtpass.system.host import Host


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of everything below a directory."""
    return {
        str(path.relative_to(root)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


@pytest.fixture
def machine(tmp_path: Path) -> Host:
    (tmp_path / "etc/libvirt").mkdir(parents=True)
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3").symlink_to("/usr/bin/python3")
    return Host(str(tmp_path))


def test_one_executable_beside_what_is_there(machine: Host) -> None:
    directory = Path(machine.path(HOOK_DIRECTORY))
    directory.mkdir(parents=True)
    own = directory / "10-mine"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    old = directory.parent / "qemu"
    old.write_text("#!/bin/sh\n")
    old.chmod(0o755)
    assert install(machine)
    executable = [path.name for path in directory.iterdir() if os.access(path, os.X_OK)]
    assert sorted(executable) == ["10-mine", "50-virtpass"]
    assert len(list(directory.iterdir())) == 2
    status = hook_status(machine)
    assert status.works
    assert status.others == ("/etc/libvirt/hooks/qemu", f"{HOOK_DIRECTORY}/10-mine")


def test_it_leaves_nothing_behind(machine: Host) -> None:
    root = Path(machine.root)
    before = tree(root)
    install(machine)
    assert tree(root) != before
    assert uninstall(machine)
    assert tree(root) == before
    assert not uninstall(machine)


def test_directories_that_were_there_stay(machine: Host) -> None:
    Path(machine.path(HOOK_DIRECTORY)).mkdir(parents=True)
    before = tree(Path(machine.root))
    install(machine)
    uninstall(machine)
    assert tree(Path(machine.root)) == before


def test_installing_again_changes_nothing(machine: Host) -> None:
    assert install(machine)
    before = tree(Path(machine.root))
    assert not install(machine)
    assert tree(Path(machine.root)) == before


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("edit", "changed"),
        ("stamp", "outdated"),
        ("mode", "not-executable"),
        ("payload", "incomplete"),
        ("world", "changed"),
        ("payload for all", "incomplete"),
        ("compiled for all", "incomplete"),
    ],
)
def test_damage_is_seen_and_mended(machine: Host, damage: str, state: str) -> None:
    install(machine)
    hook = Path(machine.path(HOOK))
    if damage == "edit":
        hook.write_text(hook.read_text().replace("exit 0", "exit 1"))
    elif damage == "stamp":
        hook.write_text(hook.read_text().replace("virtpass hook 0", "virtpass hook 9"))
    elif damage == "mode":
        hook.chmod(0o644)
    elif damage == "world":
        hook.chmod(0o777)
    elif damage.endswith("for all"):
        suffix = "*.pyc" if damage.startswith("compiled") else "engine.py"
        next(Path(machine.path(PAYLOADS)).rglob(suffix)).chmod(0o666)
    else:
        module = next(Path(machine.path(PAYLOADS)).rglob("engine.py"))
        module.write_text(module.read_text() + "\n")
    assert hook_status(machine).state == state
    assert install(machine)
    assert hook_status(machine).works


def test_an_older_payload_goes_when_the_new_hook_stands(machine: Host) -> None:
    old = Path(machine.path(f"{PAYLOADS}/0.0.9-000000000000/virtpass"))
    old.mkdir(parents=True)
    (old / "__init__.py").write_text("")
    install(machine)
    assert len(list(Path(machine.path(PAYLOADS)).iterdir())) == 1


def test_what_the_hook_ran_until_now_stays_for_those_that_run(machine: Host) -> None:
    install(machine)
    hook = Path(machine.path(HOOK))
    (payload,) = Path(machine.path(PAYLOADS)).iterdir()
    older = payload.with_name("0.0.9-000000000000")
    payload.rename(older)
    hook.write_text(hook.read_text().replace(payload.name, older.name))
    install(machine)
    assert sorted(path.name for path in payload.parent.iterdir()) == sorted([older.name, payload.name])


def test_temporary_files_of_a_crash_are_swept(machine: Host) -> None:
    before = tree(Path(machine.root))
    install(machine)
    Path(machine.path("/etc/libvirt/hooks/.virtpass-0123456789abcdef")).write_text("")
    uninstall(machine)
    assert tree(Path(machine.root)) == before


def test_a_link_in_place_of_the_hook_directory_is_not_followed(machine: Host, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Path(machine.path("/etc/libvirt/hooks")).mkdir()
    Path(machine.path(HOOK_DIRECTORY)).symlink_to(elsewhere)
    with pytest.raises(RefusedError):
        install(machine)
    assert list(elsewhere.iterdir()) == []


def test_a_link_in_place_of_the_hook_is_replaced_not_followed(machine: Host, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    Path(machine.path(HOOK_DIRECTORY)).mkdir(parents=True)
    Path(machine.path(HOOK)).symlink_to(victim)
    install(machine)
    assert victim.read_text() == "precious\n"
    assert hook_status(machine).works


def test_without_libvirt(machine: Host) -> None:
    os.rmdir(machine.path("/etc/libvirt"))
    with pytest.raises(UnavailableError, match="libvirt is not installed"):
        install(machine)


def test_it_is_not_removed_while_something_is_lent(machine: Host, host: SimulatedHost) -> None:
    install(machine)
    run(host, "prepare", domain_xml(CARD, AUDIO, name="guest one"))
    with pytest.raises(RefusedError, match="lent to the domain guest one"):
        uninstall(machine)
    assert hook_status(machine).works


def test_what_was_installed_runs_under_the_system_s_python(machine: Host) -> None:
    install(machine)
    hook = Path(machine.path(HOOK))
    payload = next(Path(machine.path(PAYLOADS)).iterdir())
    program = (
        f"import sys; sys.path.insert(0, {str(payload)!r}); "
        "from virtpass.hook.entry import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-ISc", program, "x", "prepare", "begin", "-"],
        input=domain_xml(CARD, metadata=""),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert str(payload)[len(machine.root) :] in hook.read_text()


def test_who_may_not_look_is_not_told_that_it_is_absent(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ordinary user where /etc/libvirt is root's alone; root may look everywhere."""
    lstat = os.lstat

    def refuse(path: str) -> os.stat_result:
        if path == host.path(HOOK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return lstat(path)

    assert hook_status(host).state == "absent"
    monkeypatch.setattr(os, "lstat", refuse)
    assert hook_status(host).state == "unknown"
    assert not hook_status(host).works
