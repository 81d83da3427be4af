"""The connection: errors in our words, and no call that waits for ever."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.domain.documents import OTHER_UUID, UUID, domain, pci
from virtpass.system.daemon_start import how_to_start
from virtpass.system.errors import (
    FailedError,
    NotFoundError,
    PermissionDeniedError,
    RefusedError,
    UnavailableError,
    UsageError,
    VirtpassError,
)
from virtpass.system.host import Host
from virtpass.system.libvirt import Connection

libvirt = pytest.importorskip("libvirt")

ROOT = Path(__file__).parents[2]

NAMES = [
    "guest",
    "two words",
    "--dashes",
    "'quotes\"",
    "ünïcode 日本",
    " ",
    "a\\b",
    "$(x);`y`",
    "%s",
    "1",
    UUID.upper(),
]


def plain(name: str = "guest", uuid: str = UUID) -> str:
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    return domain(root=None, kind="test", name=escaped, uuid=uuid)


def start(connection: Connection, name: str) -> None:
    cast(Any, connection)._handle.lookupByName(name).create()


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_is_found_by_its_exact_name(connection: Connection, name: str) -> None:
    connection.define(plain(name), validate=False)
    connection.define(plain("another", OTHER_UUID))
    found = connection.domain(name)
    assert (found.name, found.uuid) == (name, UUID)
    assert (found.is_active, found.is_persistent, found.has_saved_state) == (False, True, False)


@pytest.mark.parametrize("spelling", [UUID, UUID.upper(), UUID.replace("-", "")])
def test_a_domain_is_found_by_its_uuid(connection: Connection, spelling: str) -> None:
    connection.define(plain())
    assert connection.domain(spelling).name == "guest"


def test_a_name_that_looks_like_a_uuid_counts_first(connection: Connection) -> None:
    connection.define(plain())
    connection.define(plain(UUID, OTHER_UUID))
    assert connection.domain(UUID).uuid == OTHER_UUID


@pytest.mark.parametrize(
    "name", ["", "gues", "guest ", "GUEST", "a\0b", "\udcff", "x/y", "a\nb", OTHER_UUID, "1"]
)
def test_a_domain_that_is_not_there(connection: Connection, name: str) -> None:
    connection.define(plain())
    with pytest.raises(NotFoundError) as caught:
        connection.domain(name)
    assert caught.value.reference == "no-domain"
    assert caught.value.line.isprintable()
    assert caught.value.remedy == f"list them with: virsh -c {connection.uri} list --all"


def test_domains_are_listed_by_name(connection: Connection) -> None:
    connection.define(plain("b"))
    connection.define(plain("a", OTHER_UUID))
    assert [found.name for found in connection.domains()] == ["a", "b"]


def test_what_runs_is_known(connection: Connection) -> None:
    connection.define(plain())
    connection.define(plain("other", OTHER_UUID))
    start(connection, "guest")
    assert connection.active_uuids() == {UUID}
    assert connection.domain("guest").is_active


def test_passwords_are_in_the_xml_that_is_defined_again_only(connection: Connection) -> None:
    graphics = "    <graphics type='vnc' port='-1' passwd='secret'/>"
    connection.define(domain(root=None, kind="test", devices=graphics))
    found = connection.domain("guest")
    assert "secret" in found.inactive_xml()
    assert "secret" not in found.shown_xml()


def test_the_version_is_that_of_libvirt(connection: Connection) -> None:
    assert connection.version == libvirt.getVersion()


def test_xml_that_libvirt_does_not_know_is_refused(connection: Connection) -> None:
    with pytest.raises(FailedError) as caught:
        connection.define(plain().replace("<memory ", "<memory bogus='1' "))
    assert caught.value.reference == "libvirt-xml"
    assert caught.value.line.isprintable()
    assert connection.domains() == []


def test_node_devices_are_looked_up_by_address(connection: Connection) -> None:
    with pytest.raises(NotFoundError) as caught:
        connection.detach_node_device(pci("02:00.0"))
    assert "0000:02:00.0" in caught.value.what
    with pytest.raises(UnavailableError) as unsupported:  # by the test driver
        connection.detach_node_device(pci("01:00.0"))
    assert unsupported.value.reference == "libvirt-unsupported"


def test_nothing_is_printed(connection: Connection, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotFoundError):
        connection.domain("nobody")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("qemu+unix:///system?socket=/nonexistent/libvirt-sock", UnavailableError),
        ("qemu+tcp://127.0.0.1:1/system", UnavailableError),
        ("test:///default?x=\x01", UsageError),
        ("test:///default\0", UsageError),
        ("test:///\udcff", UsageError),
    ],
)
def test_no_connection(uri: str, kind: type[VirtpassError]) -> None:
    with pytest.raises(kind) as caught:
        Connection.open(uri)
    assert caught.value.remedy
    assert caught.value.line.isprintable()


def test_a_missing_binding_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libvirt", None)
    with pytest.raises(UnavailableError) as caught:
        Connection.open("test:///default")
    assert "python3-libvirt" in caught.value.remedy
    assert "--system-site-packages" in caught.value.remedy


HOOK = (
    "Hook script execution failed: internal error: Child process (LC_ALL=C PATH=/usr/bin /etc/libvirt/hooks/"
    "qemu.d/50-virtpass guest prepare begin -) unexpected exit status 4: virtpass: 0000:01:00.0 is in use\n"
)


@pytest.mark.parametrize(
    ("code", "domain_code", "text", "number", "kind", "line"),
    [
        ("HOOK_SCRIPT_FAILED", 0, HOOK, -1, FailedError, "virtpass: 0000:01:00.0 is in use"),
        (
            "HOOK_SCRIPT_FAILED",
            0,
            HOOK.partition(": virtpass")[0],
            -1,
            FailedError,
            "unexpected exit status 4",
        ),
        ("HOOK_SCRIPT_FAILED", 0, "Hakenskript schlug fehl", -1, FailedError, "Hakenskript"),
        ("ACCESS_DENIED", 0, "access denied: 'node-device'", -1, PermissionDeniedError, "group libvirt"),
        ("AUTH_UNAVAILABLE", 7, "no polkit agent", -1, PermissionDeniedError, "no polkit agent"),
        (
            "SYSTEM_ERROR",
            7,
            "Failed to connect socket: Permission denied",
            13,
            PermissionDeniedError,
            "socket",
        ),
        ("SYSTEM_ERROR", 7, "Failed to connect socket: No such file", 2, UnavailableError, "No such file"),
        ("INTERNAL_ERROR", 7, "client socket is closed", -1, UnavailableError, "socket is closed"),
        ("SYSTEM_ERROR", 0, "cannot write\n 'x' to y", 5, FailedError, "cannot write 'x' to y"),
        ("OPERATION_INVALID", 10, "in use by driver QEMU", -1, RefusedError, "in use by driver QEMU"),
        ("NO_NODE_DEVICE", 0, "no such device", -1, NotFoundError, "no such device"),
    ],
)
def test_errors_of_libvirt_in_our_words(
    code: str, domain_code: int, text: str, number: int, kind: type[VirtpassError], line: str
) -> None:
    error = libvirt.libvirtError("")
    error.err = (getattr(libvirt, f"VIR_ERR_{code}"), domain_code, text, 2, text, None, None, number, -1)

    class Daemon:
        def listAllDomains(self, flags: int = 0) -> None:  # noqa: N802
            raise error

    with pytest.raises(kind) as caught:
        Connection(cast(Any, Daemon()), "qemu:///system").domains()
    assert line in caught.value.line
    assert caught.value.line.isprintable()
    if caught.value.reference == "no-libvirt":
        # What starts it, or installs it where there is none, as the doctor says.
        assert caught.value.remedy == how_to_start(Host())


class Wedged:
    """A daemon that answers nothing any more."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.released = threading.Event()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            self.calls.append(name)
            self.released.wait(60)

        return call


def test_a_daemon_that_does_not_answer_is_left_alone() -> None:
    daemon = Wedged()
    start = time.monotonic()
    with Connection(cast(Any, daemon), "qemu:///system", deadline=0.1) as connection:
        with pytest.raises(UnavailableError) as caught:
            connection.domains()
        assert caught.value.reference == "no-answer"
    assert time.monotonic() - start < 5
    assert daemon.calls == ["listAllDomains"]
    daemon.released.set()


def test_a_call_that_hangs_does_not_keep_the_program_from_ending() -> None:
    program = """
import time
from virtpass.system.libvirt import Connection
from virtpass.system.errors import UnavailableError
class Daemon:
    def getLibVersion(self):
        time.sleep(60)
try:
    Connection(Daemon(), "x", deadline=0.1).version
except UnavailableError as error:
    print(error.exit_status)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert (result.stdout, result.stderr) == ("6\n", "")
