"""Completion: what is offered, and what arrives on the command line in the shells themselves."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_commands import NOWHERE, ROOT, TEST_DRIVER, Captured
from tests.simulation import AUDIO, CARD, DISK, PORT, SimulatedHost
from virtpass.binding.policy import KNOWN_POLICY
from virtpass.cli import cli, main
from virtpass.doctor.catalogue import CHECKS
from virtpass.host.loaders import LOADERS
from virtpass.system import domain_names as names

Offer = Callable[..., list[tuple[str, ...]]]

# What bash has in COMP_WORDBREAKS unless told otherwise.
BREAKS = " \t\n\"'><=;|&(:"
# libvirt allows such a name; no shell may obey it.
NASTY = "my $(touch obeyed); it's *"


@pytest.fixture
def offer(host: SimulatedHost, capfd: Captured, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Return a function: what is offered at the end of a line, as kind, value and help of each."""

    def ask(line: str, shell: str = "zsh", breaks: str = BREAKS) -> list[tuple[str, ...]]:
        monkeypatch.setenv("_VIRTPASS_COMPLETE", f"{shell}_complete")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_WORDBREAKS", breaks)
        before = files(host)
        capfd.readouterr()
        assert main([], host) == 0
        out, err = capfd.readouterr()
        assert err == ""
        assert files(host) == before
        return [tuple(one.split("\t")) for one in out.splitlines() if one]

    return ask


def files(host: SimulatedHost) -> list[tuple[str, int]]:
    return sorted((os.fspath(one), one.lstat().st_mtime_ns) for one in Path(host.root).rglob("*"))


def values(offered: list[tuple[str, ...]]) -> list[str]:
    return [value for _, value, *_ in offered]


@pytest.fixture
def test_driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of a libvirt with a domain whose name no shell may obey, and one that no terminal may."""
    file = tmp_path_factory.mktemp("libvirt") / "node.xml"
    domains = "".join(
        f"<domain type='test'><name>{name}</name><memory>8192</memory><os><type>hvm</type></os></domain>"
        for name in (NASTY.replace("'", "&apos;"), "win11", "red&#x9b;31m")
    )
    file.write_text(f"<node>{domains}</node>")
    return f"test://{file}"


# what is offered


def test_commands_with_what_they_do(offer: Offer) -> None:
    offered = offer("virtpass ")
    assert [(kind, value) for kind, value, _ in offered] == [
        ("plain", name)
        for name in cli.list_commands(None)  # type: ignore[arg-type]
    ]
    assert values(offer("virtpass device fu")) == ["functions"]


def test_hidden_commands_are_not_offered(offer: Offer) -> None:
    assert "functions-at-boot" not in values(offer("virtpass device "))


def test_addresses_with_the_names_of_devices(offer: Offer, host: SimulatedHost) -> None:
    host.put(
        f"/run/udev/data/+pci:{CARD}",
        "E:ID_VENDOR_FROM_DATABASE=Acme, Inc\nE:ID_MODEL_FROM_DATABASE=Pixel: 2\n",
    )
    offered = {value: text for _, value, text in offer("virtpass device show ")}
    assert offered[str(CARD)] == "Acme, Inc Pixel: 2"
    assert {str(CARD), str(AUDIO), str(DISK)} <= offered.keys()
    # No bridge is ever given away.
    assert str(PORT) not in offered


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("0000:01:00", ["0000:01:00.0", "0000:01:00.1"]),
        ("01:0", ["01:00.0", "01:00.1"]),
        ("0000:01:00.1", ["0000:01:00.1"]),
        ("ffff", []),
    ],
)
def test_an_address_goes_on_as_it_was_begun(offer: Offer, typed: str, expected: list[str]) -> None:
    assert values(offer(f"virtpass device show {typed}")) == expected
    assert values(offer(f"virtpass host plan --bind {typed}")) == expected
    assert values(offer(f"virtpass host plan --bind={typed}")) == [f"--bind={one}" for one in expected]


@pytest.mark.parametrize(
    "command",
    ["domain attach", "domain detach", "domain adopt", "domain show", "domain policy", "hook rehearse"],
)
def test_domains(offer: Offer, test_driver: str, command: str) -> None:
    assert values(offer(f"virtpass {command} -c {test_driver} ")) == [NASTY, "win11"]
    assert values(offer(f"virtpass {command} --connect={test_driver} w")) == ["win11"]


def test_what_follows_another_argument(offer: Offer, test_driver: str) -> None:
    assert values(offer(f"virtpass setup -c {test_driver} 01:00.0 w")) == ["win11"]
    assert str(CARD) in values(offer(f"virtpass domain attach -c {TEST_DRIVER} win11 "))
    assert values(offer(f"virtpass domain attach -c {TEST_DRIVER} win11 nonsense 01:00.0 01:00.1")) == [
        "01:00.1"
    ]


@pytest.mark.parametrize(
    "uri", [NOWHERE, "nonsense", "qemu+ssh://root@host/system", "qemu+ext:///system?command=x", "::", "[x"]
)
def test_no_libvirt_is_no_domain(offer: Offer, uri: str) -> None:
    assert offer(f"virtpass domain show -c {uri} ") == []


def test_no_other_machine_is_asked(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> None:
        raise AssertionError("ssh would ask for a password")

    monkeypatch.setattr(names, "_answer", ask)
    assert offer("virtpass domain show -c qemu+ssh://root@host/system ") == []
    assert offer("virtpass domain show -c qemu://host/system ") == []


def test_a_daemon_that_hangs_is_not_waited_for(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging:
        libvirtError = OSError  # noqa: N815 (libvirt's name)

        @staticmethod
        def registerErrorHandler(*_: object) -> None:  # noqa: N802
            pass

        @staticmethod
        def openReadOnly(_: str) -> None:  # noqa: N802
            time.sleep(20)

    monkeypatch.setattr(names, "_binding", lambda: Hanging)
    began = time.monotonic()
    assert offer("virtpass domain show ") == []
    assert time.monotonic() - began < 5


def test_nothing_of_this_host_for_a_command_on_another(offer: Offer, tmp_path: Path) -> None:
    assert offer("virtpass device show --snapshot other.tar.gz ") == []
    assert offer(f"virtpass domain show -c {TEST_DRIVER} --snapshot other.tar.gz ") == []
    assert offer(f"virtpass host plan --root {tmp_path} --bind ") == []


def test_files_are_left_to_the_shell(offer: Offer) -> None:
    assert [kind for kind, *_ in offer("virtpass devices --snapshot x")] == ["file"]
    assert [kind for kind, *_ in offer("virtpass host plan --root x")] == ["dir"]


def test_ids_of_checks_with_their_titles(offer: Offer) -> None:
    assert offer("virtpass doctor --explain ") == [("plain", one.reference, one.title) for one in CHECKS]
    assert values(offer("virtpass doctor --explain=interr")) == ["--explain=interrupt-remapping"]


@pytest.mark.parametrize("command", ["domain policy win11 ", "setup --policy ", "domain attach --policy "])
def test_settings_of_a_policy_with_what_they_mean(offer: Offer, command: str) -> None:
    offered = {value: text for _, value, text in offer(f"virtpass {command}")}
    assert {f"{key}={value}" for key, choices in KNOWN_POLICY.items() for value in choices} < offered.keys()
    assert "unsaved work is lost" in offered["display=hand-over"]
    assert values(offer(f"virtpass {command}display=h")) == ["display=hand-over"]


@pytest.mark.parametrize(
    "line", ["", "virtpass", "virtpass frobnicate ", "virtpass device show 'x", 'x "\\', "'\"'"]
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_makes_no_sense_is_no_error(offer: Offer, line: str, shell: str) -> None:
    offer(line, shell)


@pytest.mark.parametrize("command", ["setup", "host plan", "host apply"])
def test_bootloaders_with_their_titles(offer: Offer, command: str) -> None:
    offered = offer(f"virtpass {command} --bootloader ")
    assert [(value, text) for _, value, text in offered] == [(one.name, one.title) for one in LOADERS]
    assert values(offer(f"virtpass {command} --bootloader=lim")) == ["--bootloader=limine"]


# bash takes words apart


@pytest.mark.parametrize(
    ("typed", "breaks", "expected"),
    [
        ("device show 0000:01:00.", BREAKS, ["00.0", "00.1"]),
        ("device show 0000:01:00.", " \t\n", ["0000:01:00.0", "0000:01:00.1"]),
        ("device show 0000:", BREAKS, None),
        ("device show '0000:01:00.", BREAKS, ["0000:01:00.0", "0000:01:00.1"]),
        ("doctor --explain=interr", BREAKS, ["interrupt-remapping"]),
        ("doctor --explain=interr", " ", ["--explain=interrupt-remapping"]),
        ("doctor --explain='interr", BREAKS, []),
        ("domain policy win11 display=h", BREAKS, ["hand-over"]),
        ("domain policy win11 disp", BREAKS, ["display=refuse", "display=hand-over"]),
        ("setup --policy=display=h", BREAKS, ["hand-over"]),
    ],
)
def test_bash_gets_the_part_that_it_replaces(
    offer: Offer, typed: str, breaks: str, expected: list[str] | None
) -> None:
    found = values(offer(f"virtpass {typed}", "bash", breaks))
    if expected is None:
        assert found
        assert not any(one.startswith("0000:") for one in found)
    else:
        assert found == expected


def test_bash_gets_names_quoted_or_not_at_all(offer: Offer, test_driver: str) -> None:
    command = f"virtpass domain show -c {test_driver} "
    quoted, plain = values(offer(command, "bash"))
    assert plain == "win11"
    echoed = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert echoed.stdout == NASTY
    assert values(offer(f"{command}'", "bash")) == ["win11"]
    assert values(offer(f'{command}"my ', "bash")) == []


# the shells themselves


@pytest.fixture
def bench(host: SimulatedHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `virtpass` that completes on the simulated host, and else says what it was given."""
    directory = tmp_path_factory.mktemp("bench")
    program = directory / "virtpass"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        f"sys.path.insert(0, {os.fspath(ROOT)!r})\n"
        "from virtpass.cli import main\n"
        "from virtpass.system.host import Host\n"
        "if '_VIRTPASS_COMPLETE' in os.environ:\n"
        f"    sys.exit(main([], Host({host.root!r})))\n"
        "with open('given', 'w') as file:\n"
        "    json.dump(sys.argv[1:], file)\n"
    )
    program.chmod(0o755)
    (directory / "other.tar.gz").touch()
    for shell, name in (("bash", "virtpass.bash"), ("zsh", "_virtpass"), ("fish", "virtpass.fish")):
        script = subprocess.run(
            [program],
            env={**os.environ, "_VIRTPASS_COMPLETE": f"{shell}_source"},
            capture_output=True,
            check=True,
        )
        (directory / name).write_bytes(script.stdout)
    return directory


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ["source ./virtpass.bash"]),
    "zsh": (["zsh", "-f", "-i"], ["fpath=($PWD $fpath)", "autoload -U compinit", "compinit -u -D"]),
    "fish": (["fish", "--no-config", "-i"], ["source ./virtpass.fish"]),
}


def typed(shell: str, bench: Path, line: str) -> list[str]:
    """Type a line into an interactive shell and press the tabulator, then enter; return what arrives."""
    command, preparations = SHELLS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    environment = {
        "PATH": f"{bench}:{os.environ['PATH']}",
        "HOME": os.fspath(bench),
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "PS1": "ready> ",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(bench)
        os.execvpe(command[0], command, environment)
    seen = b""

    def watch(until: Callable[[], bool], seconds: float) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise AssertionError(f"nothing arrives: {seen.decode(errors='replace')}")
            if select.select([terminal], [], [], 0.05)[0]:
                seen += os.read(terminal, 4096)

    def done(name: str) -> Callable[[], bool]:
        return lambda: (bench / name).exists() and bool((bench / name).read_bytes())

    try:
        for number, preparation in enumerate(preparations):
            os.write(terminal, f"{preparation}; echo x >step{number}\r".encode())
            watch(done(f"step{number}"), 20)
        os.write(terminal, f"{line}\t".encode())
        # What is typed while the shell completes may be taken for an answer to a question of its own.
        quiet = time.monotonic() + 2.5
        watch(lambda: time.monotonic() > quiet, 20)
        os.write(terminal, b"\r")
        watch(done("given"), 20)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)
    found: list[str] = json.loads((bench / "given").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("virtpass device show 0000:04", ["device", "show", "0000:04:00.0"]),
        ("virtpass device show 04:", ["device", "show", "04:00.0"]),
        ("virtpass doctor --explain interr", ["doctor", "--explain", "interrupt-remapping"]),
        ("virtpass doctor --explain=interr", ["doctor", "--explain=interrupt-remapping"]),
        ("virtpass domain policy win11 display=h", ["domain", "policy", "win11", "display=hand-over"]),
        ("virtpass devices --snapshot oth", ["devices", "--snapshot", "other.tar.gz"]),
        ("true; virtpass unin", ["uninstall"]),
        ("./virtpass unin", ["uninstall"]),
    ],
)
def test_what_arrives(bench: Path, shell: str, line: str, expected: list[str]) -> None:
    assert typed(shell, bench, line) == expected


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_no_shell_obeys_a_name(bench: Path, shell: str, test_driver: str) -> None:
    given = typed(shell, bench, f"virtpass domain show -c {test_driver} my")
    assert given[-1] == NASTY
    assert not (bench / "obeyed").exists()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_for_bash_is_clean(bench: Path) -> None:
    done = subprocess.run(
        ["shellcheck", "--shell=bash", bench / "virtpass.bash"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_no_script_names_a_place_of_where_it_was_made(bench: Path) -> None:
    for name in ("virtpass.bash", "_virtpass", "virtpass.fish"):
        text = (bench / name).read_text()
        assert not re.search(r"/(home|tmp|work|root)/", text), name
        assert "%(" not in text


def test_another_question_is_refused(host: SimulatedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_VIRTPASS_COMPLETE", "tcsh_source")
    assert main([], host) == 1
