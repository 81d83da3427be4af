"""The gate in sh: whom it lets through, and that everything arrives."""

import subprocess
from pathlib import Path

import pytest

from tests.simulation import AUDIO, CARD, domain_xml

SOURCE = Path(__file__).parents[2] / "hooks" / "50-virtpass"

# Stands in for the payload: writes down what it was given.
ENTRY = """
import os, sys
def read(fd):
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    return b"".join(chunks)
def main(arguments):
    with open(os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + "/seen", "wb") as file:
        file.write(repr(arguments).encode() + b"\\n" + read(3) + read(0))
    return 7
"""


class Gate:
    """An installed gate with a payload that only listens."""

    def __init__(self, directory: Path, shell: str) -> None:
        self.shell = shell
        package = directory / "virtpass"
        (package / "hook").mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "hook" / "__init__.py").write_text("")
        (package / "hook" / "entry.py").write_text(ENTRY)
        self.seen = directory / "seen"
        self.path = directory / "50-virtpass"
        self.path.write_text(SOURCE.read_text().replace("@PAYLOAD@", str(directory)))
        self.path.chmod(0o755)

    def run(self, *arguments: str, xml: bytes = b"") -> tuple[int, bytes, bytes]:
        done = subprocess.run(
            [self.path, *arguments], input=xml, capture_output=True, timeout=30, check=False
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(params=["dash", "bash"])
def gate(tmp_path: Path, request: pytest.FixtureRequest) -> Gate:
    """What /bin/sh is differs between distributions."""
    return Gate(tmp_path, str(request.param))


def as_seen(xml: bytes) -> bytes:
    """Return what arrives: a line break more after the line with our element is all that differs."""
    head, mark, rest = xml.partition(b"urn:virtpass:passthrough:1")
    line, end, tail = rest.partition(b"\n")
    return head + mark + line + end + b"\n" + tail


@pytest.mark.parametrize("operation", [("prepare", "begin"), ("release", "end")])
def test_a_domain_of_ours_goes_through_whole(gate: Gate, operation: tuple[str, str]) -> None:
    xml = domain_xml(CARD, AUDIO, name="&quot;$(reboot) `id` \\ ü")
    status, out, _ = gate.run('"$(reboot)', *operation, "-", xml=xml)
    assert (status, out) == (7, b"")
    arguments, _, seen = gate.seen.read_bytes().partition(b"\n")
    assert arguments.decode() == repr(['"$(reboot)', *operation, "-"])
    assert as_seen(xml) == seen


def test_a_large_beginning_goes_through_whole(gate: Gate) -> None:
    filler = "".join(f"<o:line xmlns:o='urn:other'>{number}</o:line>\n" for number in range(4000))
    xml = domain_xml(CARD, metadata=f"{filler}<v:passthrough xmlns:v='urn:virtpass:passthrough:1'/>")
    assert gate.run("guest", "prepare", "begin", "-", xml=xml)[0] == 7
    # Here the gate did not find the element itself: it stopped reading before.
    seen = gate.seen.read_bytes().partition(b"\n")[2]
    lines = xml.split(b"\n")
    assert seen == b"\n".join([*lines[:500], b"", *lines[500:]])


def test_what_another_program_notes_about_memory_does_not_hide_our_element(gate: Gate) -> None:
    other = "<o:x xmlns:o='urn:other'>\n  <memory unit='KiB'>1</memory>\n</o:x>"
    xml = domain_xml(CARD, metadata=f"{other}<v:passthrough xmlns:v='urn:virtpass:passthrough:1'/>")
    assert gate.run("guest", "prepare", "begin", "-", xml=xml)[0] == 7


def test_a_foreign_domain_is_sent_home(gate: Gate) -> None:
    xml = domain_xml(CARD, metadata="<o:x xmlns:o='urn:other'/>")
    for operation in (("prepare", "begin"), ("release", "end")):
        assert gate.run("guest", *operation, "-", xml=xml) == (0, b"", b"")
    assert not gate.seen.exists()


@pytest.mark.parametrize(
    "operation", ["start", "started", "stopped", "reconnect", "restore", "migrate", "attach", "x y"]
)
def test_other_operations_never_reach_python(gate: Gate, operation: str) -> None:
    assert gate.run("guest", operation, "begin", "-", xml=domain_xml(CARD)) == (0, b"", b"")
    assert not gate.seen.exists()


@pytest.mark.parametrize("arguments", [(), ("guest",), ("guest", "prepare"), ("", "", "", "")])
def test_too_few_arguments_are_no_failure(gate: Gate, arguments: tuple[str, ...]) -> None:
    assert gate.run(*arguments) == (0, b"", b"")


@pytest.mark.parametrize("xml", [b"", b"\n\n", b"<domain/>", b"no xml", b"\0\0", b"x" * 100000])
def test_rubbish_is_not_ours(gate: Gate, xml: bytes) -> None:
    assert gate.run("guest", "prepare", "begin", "-", xml=xml)[:2] == (0, b"")
    assert not gate.seen.exists()


def test_xml_on_one_line_is_understood_too(gate: Gate) -> None:
    assert gate.run("guest", "prepare", "begin", "-", xml=domain_xml(CARD).replace(b"\n", b""))[0] == 7


def test_a_missing_payload_is_explained_in_one_line(gate: Gate) -> None:
    gate.path.write_text(SOURCE.read_text().replace("@PAYLOAD@", "/nonexistent"))
    status, out, err = gate.run("guest", "prepare", "begin", "-", xml=domain_xml(CARD))
    assert (status, out) == (1, b"")
    assert err == b"virtpass: the hook is incomplete, /nonexistent is missing; run virtpass hook install\n"
