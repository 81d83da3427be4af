"""The libvirt daemon: the only place that imports its binding.

Each call has a deadline: a daemon that waits for a driver, or for a hook that waits for something else, would
hang its clients as well. libvirt's errors become ours here, and nowhere else.
"""

import errno
import importlib
import queue
import re
import shlex
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeVar

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
from virtpass.system.tasks import under_way

SYSTEM = "qemu:///system"

# Someone may have to type a password for polkit before a connection is open.
_OPEN_DEADLINE = 60.0
_DEADLINE = 30.0
# Drivers take their time to let go of a card.
_BIND_FACTOR = 4

_UUID = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

Result = TypeVar("Result")


class Addressed(Protocol):
    """What has a node device in libvirt: a PCI address."""

    @property
    def node_device(self) -> str:
        """Name of the node device."""


class _Domain(Protocol):
    """What is used of libvirt.virDomain."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...  # noqa: N802 (libvirt's name)
    def isActive(self) -> int: ...  # noqa: N802
    def isPersistent(self) -> int: ...  # noqa: N802
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...  # noqa: N802
    def XMLDesc(self, flags: int = 0) -> str: ...  # noqa: N802


class _NodeDevice(Protocol):
    """What is used of libvirt.virNodeDevice."""

    def detachFlags(self, driverName: str | None, flags: int = 0) -> int: ...  # noqa: N802, N803
    def reAttach(self) -> int: ...  # noqa: N802
    def reset(self) -> int: ...


class _Connect(Protocol):
    """What is used of libvirt.virConnect."""

    def close(self) -> int: ...
    def getLibVersion(self) -> int: ...  # noqa: N802
    def listAllDomains(self, flags: int = 0) -> list[_Domain]: ...  # noqa: N802
    def lookupByName(self, name: str) -> _Domain: ...  # noqa: N802
    def lookupByUUIDString(self, uuid: str) -> _Domain: ...  # noqa: N802
    def defineXMLFlags(self, xml: str, flags: int = 0) -> _Domain: ...  # noqa: N802
    def nodeDeviceLookupByName(self, name: str) -> _NodeDevice: ...  # noqa: N802


def virsh(*words: str, uri: str = SYSTEM) -> str:
    """Return a command for users to type, quoted for their shell.

    It names the connection: without, an ordinary user's virsh asks a daemon of that user's own on many hosts
    (``qemu:///session``), which knows none of these domains.
    """
    return shlex.join(("virsh", "-c", uri, *words))


class Domain:
    """A domain as it was when it was looked up.

    Attributes:
        name: its name.
        uuid: its UUID.
        is_active: whether it runs, or is paused.
        is_persistent: whether it has a definition that outlives a run.
        has_saved_state: whether its next start continues from a managed save.
    """

    def __init__(self, connection: "Connection", handle: _Domain) -> None:
        self._connection = connection
        self._handle = handle
        self.name = handle.name()
        self.uuid = handle.UUIDString()
        self.is_active = bool(handle.isActive())
        self.is_persistent = bool(handle.isPersistent())
        self.has_saved_state = bool(handle.hasManagedSaveImage())

    def inactive_xml(self) -> str:
        """Return the XML that the next start uses, with passwords: without them, defining it would lose them.

        Raises:
            PermissionDeniedError: this user may not see passwords.
            NotFoundError: the domain is gone.
        """
        libvirt = _binding()
        return self._xml(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)

    def shown_xml(self) -> str:
        """Return the XML that the next start uses, without passwords: to be shown, never to be defined."""
        return self._xml(_binding().VIR_DOMAIN_XML_INACTIVE)

    def live_xml(self) -> str:
        """Return the XML of a running domain as it is now, without passwords."""
        return self._xml(0)

    def _xml(self, flags: int) -> str:
        return self._connection.ask(lambda: self._handle.XMLDesc(flags), f"reading domain '{self.name}'")


class Connection:
    """A connection to libvirt; a context manager that closes it.

    Use `Connection.open`. All methods raise the errors of `virtpass.system.errors`:
    UnavailableError when libvirt does not answer, PermissionDeniedError when this user may not, and those
    that they name.
    """

    def __init__(self, handle: _Connect, uri: str, deadline: float = _DEADLINE) -> None:
        self.uri = uri
        self._handle = handle
        self._deadline = deadline
        self._is_lost = False

    @classmethod
    def open(cls, uri: str = SYSTEM, *, deadline: float | None = None) -> "Connection":
        """Connect to libvirt.

        Args:
            uri: which driver and daemon, as in ``virsh --connect``.
            deadline: seconds after which a call counts as unanswered, opening included; by default 30, and
                60 for opening.

        Raises:
            UnavailableError: python3-libvirt is missing, or there is no daemon.
            PermissionDeniedError: this user may not connect.
            UsageError: the URI is none.
        """
        libvirt = _binding()
        # Without a handler of ours libvirt prints each error itself; None does not silence it.
        libvirt.registerErrorHandler(_ignore, None)
        try:
            handle = _answer(lambda: libvirt.open(uri), deadline or _OPEN_DEADLINE, f"connecting to {uri}")
        except ValueError as error:
            raise UsageError(
                "libvirt-uri", f"'{uri}' is not a libvirt URI", "write it like qemu:///system"
            ) from error
        return cls(handle, uri, deadline or _DEADLINE)

    def close(self) -> None:
        """Close the connection; one that does not answer is left alone."""
        if self._is_lost:
            return
        try:
            self.ask(self._handle.close, f"closing {self.uri}")
        except VirtpassError:
            self._is_lost = True

    def __enter__(self) -> "Connection":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, call: Callable[[], Result], task: str, deadline: float | None = None) -> Result:
        """Make a call of libvirt with a deadline.

        Args:
            call: what to call.
            task: what it does, for messages.
            deadline: seconds to wait instead of the connection's own.
        """
        try:
            return _answer(call, deadline or self._deadline, task)
        except _NoAnswer:
            self._is_lost = True
            raise

    @property
    def version(self) -> int:
        """Version of libvirt on the other side; 9.0.0 is 9000000."""
        return self.ask(self._handle.getLibVersion, "asking for libvirt's version")

    def domains(self) -> list[Domain]:
        """Return all domains, by name."""
        handles = self.ask(self._handle.listAllDomains, "listing domains")
        domains = []
        for handle in handles:
            try:
                domains.append(self._domain(handle))
            except NotFoundError:
                continue  # it went away meanwhile
        return sorted(domains, key=lambda domain: domain.name)

    def domain(self, name: str) -> Domain:
        """Return one domain.

        Args:
            name: its exact name, or its UUID; a name counts first.

        Raises:
            NotFoundError: there is none.
        """
        found = self._look_up(self._handle.lookupByName, name)
        if found is None and _UUID.fullmatch(name):
            found = self._look_up(self._handle.lookupByUUIDString, name)
        if found is None:
            raise NotFoundError(
                "no-domain",
                f"there is no domain '{name}' at {self.uri}",
                f"list them with: {virsh('list', '--all', uri=self.uri)}",
            )
        return found

    def _look_up(self, lookup: Callable[[str], _Domain], name: str) -> Domain | None:
        try:
            return self._domain(self.ask(lambda: lookup(name), f"looking up '{name}'"))
        except (NotFoundError, ValueError):
            return None  # ValueError: a NUL or bytes that are not UTF-8, which no domain has in its name

    def active_uuids(self) -> frozenset[str]:
        """Return the UUIDs of the domains that run."""
        flag = _binding().VIR_CONNECT_LIST_DOMAINS_ACTIVE
        handles = self.ask(lambda: self._handle.listAllDomains(flag), "listing domains")
        return frozenset(handle.UUIDString() for handle in handles)

    def define(self, xml: str, *, validate: bool = True) -> Domain:
        """Define a domain, or redefine it.

        Args:
            xml: the whole definition.
            validate: let libvirt hold it against its schema; without, it silently drops what is unknown.

        Raises:
            FailedError: libvirt does not accept the XML.
        """
        flags = _binding().VIR_DOMAIN_DEFINE_VALIDATE if validate else 0
        return self._domain(self.ask(lambda: self._handle.defineXMLFlags(xml, flags), "defining the domain"))

    def detach_node_device(self, address: Addressed) -> None:
        """Let libvirt bind a device to vfio-pci. It checks neither whether the host uses it nor the result.

        Raises:
            NotFoundError: libvirt knows no such device.
            RefusedError: a domain uses it.
        """
        self._move(address, "detaching", lambda device: device.detachFlags(None, 0))

    def reattach_node_device(self, address: Addressed) -> None:
        """Let libvirt offer a device to its host driver. It takes it from whatever driver it is bound to.

        Raises:
            NotFoundError: libvirt knows no such device.
            RefusedError: a domain uses it.
        """
        self._move(address, "reattaching", lambda device: device.reAttach())

    def reset_node_device(self, address: Addressed) -> None:
        """Let libvirt reset a device.

        Raises:
            NotFoundError: libvirt knows no such device.
            FailedError: the device cannot be reset by itself.
        """
        self._move(address, "resetting", lambda device: device.reset())

    def _move(self, address: Addressed, task: str, call: Callable[[_NodeDevice], int]) -> None:
        device = self.ask(
            lambda: self._handle.nodeDeviceLookupByName(address.node_device), f"looking up {address}"
        )
        self.ask(lambda: call(device), f"{task} {address}", _BIND_FACTOR * self._deadline)

    def _domain(self, handle: _Domain) -> Domain:
        return self.ask(lambda: Domain(self, handle), "asking for a domain's state")


class _NoAnswer(UnavailableError):
    """A call is still not back."""


def _binding() -> Any:  # noqa: ANN401 (the module has no types)
    try:
        return importlib.import_module("libvirt")
    except ImportError as error:
        raise UnavailableError(
            "no-python-libvirt",
            f"Python's libvirt binding is missing ({error})",
            "install the distribution's package (python3-libvirt, on Arch libvirt-python); a virtual"
            " environment sees it if the system's own Python made it with --system-site-packages",
        ) from error


def _ignore(context: object, error: object) -> None:
    """Take the place of libvirt's handler, which prints."""


def _answer(call: Callable[[], Result], deadline: float, task: str) -> Result:
    """Make a call in a thread of its own, and wait no longer than ``deadline`` seconds.

    The thread of a call that does not come back is left behind; it does not keep the program from ending.
    """
    answers: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:
            answers.put((None, error))

    threading.Thread(target=ask, name="libvirt", daemon=True).start()
    try:
        with under_way(f"libvirt: {task}", deadline):
            result, error = answers.get(timeout=deadline)
    except queue.Empty:
        raise _NoAnswer(
            "no-answer",
            f"libvirt has not answered within {deadline:.0f} s ({task}); it may still do it",
            "look what the daemon waits for: a hook, or a driver that does not let go of its device",
        ) from None
    if error is None:
        return result  # type: ignore[return-value]
    if isinstance(error, _binding().libvirtError):
        raise _explained(error, task) from error
    raise error


# The last words of a hook: what libvirt reports of a failed script (virCommandWait in src/util/vircommand.c).
_HOOK_OUTPUT = re.compile(
    r"Child process \(.*\) unexpected (?:exit status|fatal signal) \d+(?:: (?P<output>.*))?", re.S
)


def _explained(error: Any, task: str) -> VirtpassError:  # noqa: ANN401 (libvirtError has no types)
    """Translate an error of libvirt; its own text stays in the message."""
    libvirt = _binding()
    code = error.get_error_code()
    text = " ".join((error.get_error_message() or str(error)).split())
    what = f"{task}: {text}"
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return NotFoundError("no-domain", what, f"list them with: {virsh('list', '--all')}")
    if code == libvirt.VIR_ERR_NO_NODE_DEVICE:
        return NotFoundError("no-device", what, "virtpass devices lists them")
    if code in _codes(
        "AUTH_FAILED", "AUTH_CANCELLED", "AUTH_UNAVAILABLE", "OPERATION_DENIED", "ACCESS_DENIED"
    ):
        return _denied(what)
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_error_domain() == libvirt.VIR_FROM_RPC:
        # The number of the system's error is the first integer that comes with libvirt's.
        return _denied(what) if error.get_int1() == errno.EACCES else _no_daemon(what)
    if (
        code in _codes("NO_CONNECT", "INVALID_CONN", "RPC")
        or error.get_error_domain() == libvirt.VIR_FROM_RPC
    ):
        return _no_daemon(what)
    if code == libvirt.VIR_ERR_HOOK_SCRIPT_FAILED:
        match = _HOOK_OUTPUT.search(text)
        output = (match["output"] or "").strip() if match else ""
        return FailedError("hook", f"a hook of libvirt failed: {output or text}")
    if code == libvirt.VIR_ERR_XML_INVALID_SCHEMA:
        return FailedError("libvirt-xml", what, "virt-xml-validate tells whether it was valid before")
    if code in _codes("XML_ERROR", "XML_DETAIL"):
        return FailedError("libvirt-xml", what)
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return RefusedError("libvirt-refused", what)
    if code in _codes("NO_SUPPORT", "OPERATION_UNSUPPORTED", "CONFIG_UNSUPPORTED", "ARGUMENT_UNSUPPORTED"):
        return UnavailableError("libvirt-unsupported", what)
    if error.get_error_domain() == libvirt.VIR_FROM_URI:
        return UsageError("libvirt-uri", what, "write it like qemu:///system")
    return FailedError("libvirt", what)


def _codes(*names: str) -> frozenset[int]:
    libvirt = _binding()
    return frozenset(getattr(libvirt, f"VIR_ERR_{name}") for name in names)


def _denied(what: str) -> PermissionDeniedError:
    return PermissionDeniedError(
        "libvirt-denied", what, "run it as root, or as a member of the group libvirt"
    )


def _no_daemon(what: str) -> UnavailableError:
    return UnavailableError("no-libvirt", what, how_to_start(Host()))
