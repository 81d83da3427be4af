"""The machine of the lab: a QEMU process, the agent in it, and the monitor of its card."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from . import accelerator, qemu, topology
from .channel import Channel, ChannelError, ChannelTimeout
from .disk import Image
from .picture import Picture
from .qmp import Qmp, QmpError

START_TIMEOUT = 420.0
# What the agent's answer may take beyond the time that the command itself is given.
ANSWER_MARGIN = 60.0
# The last drivers may still be loading when libvirt answers.
SETTLE = ["udevadm", "settle", "--timeout=120"]
LIBVIRT = ["virsh", "-c", "qemu:///system", "list", "--all"]


class MachineLost(Exception):
    """The machine died, hangs, or rebooted on its own; the text ends with its console's last words."""


class CommandTimeout(Exception):
    """A command inside was killed because it took too long; the text has its output."""


class CommandFailed(Exception):
    """A command inside ended with another status than 0; the text has its output."""


@dataclass(frozen=True)
class Result:
    """How a command inside ended."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    @property
    def error_text(self) -> str:
        """Standard error as text."""
        return self.stderr.decode(errors="replace")

    def check(self) -> Result:
        """Return the result itself if the status is 0. Raises CommandFailed."""
        if self.status != 0:
            raise CommandFailed(str(self))
        return self

    def __str__(self) -> str:
        """Show command, status and output, for the message of a failed test."""
        return f"{' '.join(self.argv)}: status {self.status}\n{self.text}{self.error_text}"


@dataclass(frozen=True)
class PciFunction:
    """One PCI function as the host sees it; what it lacks is an empty string."""

    address: str
    vendor: str
    device: str
    pci_class: str
    driver: str
    override: str
    group: str


class Job:
    """A command that runs inside while the test goes on."""

    def __init__(self, machine: Machine, request: int, argv: tuple[str, ...], timeout: float) -> None:
        """Used by `Machine.begin`."""
        self._machine = machine
        self._request = request
        self._argv = argv
        self._deadline = time.monotonic() + timeout + ANSWER_MARGIN

    def wait(self) -> Result:
        """Wait until the command ends, at most for the time given. Raises CommandTimeout, MachineLost."""
        answer = self._machine.answer(self._request, self._deadline - time.monotonic())
        stdout, stderr = (base64.b64decode(answer[stream]) for stream in ("stdout", "stderr"))
        status = answer["status"]
        result = Result(self._argv, -1 if status is None else status, stdout, stderr)
        if answer["timed_out"]:
            raise CommandTimeout(str(result))
        return result

    def signal(self, number: int) -> None:
        """Send signal `number` to the command and its children."""
        self._machine.request("signal", job=self._request, signal=number)


class Machine:
    """A machine, started by `start` or by entering it as a context, ended by `stop` or by leaving."""

    def __init__(
        self,
        image: Image,
        *,
        flavour: topology.Flavour = topology.MIXED,
        card: str = topology.VGA,
        kernel_arguments: Sequence[str] = (),
        memory: int = 4096,
        processors: int | None = None,
        writable: bool = False,
        own_loader: bool = True,
    ) -> None:
        """Describe a machine that boots `image`, with more `kernel_arguments`.

        `card` is one of those in `topology`, `memory` is in MiB. What the machine writes is lost when it
        stops, except with `writable`. Without `own_loader`, QEMU gives it kernel and arguments even if it has
        a bootloader. Raises ValueError for kernel arguments of a machine that gets them from its own.
        """
        self.image = image
        self._own_loader = own_loader and image.kind.own_loader
        if self._own_loader and kernel_arguments:
            raise ValueError(f"{image.kind.name} has its kernel arguments from its own bootloader")
        self.flavour = flavour
        self._card = card
        self._accelerator = accelerator.choose(image, flavour)
        self._kernel_arguments = tuple(kernel_arguments)
        self._memory = memory
        self._processors = processors or int(os.environ.get("VIRTPASS_LAB_PROCESSORS", "1"))
        self._writable = writable
        # Short, because the path of a UNIX socket is limited to 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._qmp: Qmp | None = None
        self._console_before = 0

    def __enter__(self) -> Machine:
        """Start the machine and wait until it can be used."""
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the machine."""
        self.stop()

    @property
    def domain_type(self) -> str:
        """The type of a libvirt domain that starts quickly in this machine: "kvm" or "qemu"."""
        return self._accelerator.domain_type

    # Life and death

    def start(self) -> None:
        """Start QEMU and wait until the machine is ready. Raises MachineLost."""
        with (self._folder / "qemu.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.image.emulator.environment,
            )
        self._qmp = Qmp(self._connect("qmp"))
        self._channel = Channel(self._connect("agent"))
        self.wait_ready()

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the agent has announced itself and libvirt, if it is there, answers.

        Raises MachineLost.
        """
        channel = self._alive()
        deadline = time.monotonic() + timeout
        try:
            # In small steps, to notice early that QEMU is gone or the kernel has panicked.
            while not channel.wait_for_boot(2):
                self._alive()
                if time.monotonic() > deadline or self._panicked():
                    raise self._lost("it does not come up")
        except ChannelError as error:
            raise self._lost(str(error)) from error
        self.run(SETTLE, timeout=150).check()
        while self.image.kind.libvirt and (result := self.run(LIBVIRT)).status != 0:
            if time.monotonic() > deadline:
                raise self._lost(f"libvirt does not come up: {result}")
            time.sleep(1)

    def reset(self) -> None:
        """Cut the power and boot again; what was not yet on the disk is lost. Raises MachineLost."""
        self._begin_boot()
        self.qmp("system_reset")
        self.wait_ready()

    def reboot(self) -> None:
        """Reboot in an orderly way. Raises MachineLost."""
        self.run(["systemctl", "reboot", "--no-block"]).check()
        self._begin_boot()
        self.wait_ready()

    def soft_reboot(self) -> None:
        """Start all programs anew, with the same kernel. Raises MachineLost."""
        self.run(["systemctl", "soft-reboot", "--no-block"]).check()
        self._begin_boot()
        self.wait_ready()

    def power_off(self, timeout: float = 120) -> None:
        """Power off in an orderly way, and wait for the end of QEMU. Raises MachineLost."""
        # Nobody waits for the answer, which the end may overtake.
        self.begin(["systemctl", "poweroff", "--no-block"])
        assert self._process is not None
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise self._lost("it does not power off") from None

    def stop(self) -> None:
        """End QEMU at once and remove what belongs to this machine; nothing happens when it has ended."""
        for line in (self._qmp, self._channel):
            if line is not None:
                line.close()
        self._qmp = self._channel = None
        if self._process is not None:
            # QEMU ends in order at SIGTERM, which writes what is still in its memory to a writable disk.
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    # Commands and files inside

    def run(
        self,
        argv: Sequence[str],
        input: bytes = b"",
        *,
        timeout: float = 60,
        env: dict[str, str] | None = None,
    ) -> Result:
        """Run a command inside as root and return how it ended.

        `env` is added to the environment. Raises CommandTimeout, MachineLost, and AgentError if the command
        cannot be started.
        """
        return self.begin(argv, input, timeout=timeout, env=env).wait()

    def begin(
        self,
        argv: Sequence[str],
        input: bytes = b"",
        *,
        timeout: float = 600,
        env: dict[str, str] | None = None,
    ) -> Job:
        """Start a command inside and return at once; see `run`."""
        arguments = {
            "argv": list(argv),
            "input": base64.b64encode(input).decode(),
            "timeout": timeout,
            "env": env or {},
        }
        try:
            return Job(self, self._alive().send("run", **arguments), tuple(argv), timeout)
        except ChannelError as error:
            raise self._lost(str(error)) from error

    def put(self, source: bytes | str | Path, remote: str, mode: int = 0o644) -> None:
        """Write the bytes, the text, or the content of the file `source` to the file `remote` inside."""
        data = source.encode() if isinstance(source, str) else source
        data = data.read_bytes() if isinstance(data, Path) else data
        self.request("put", path=remote, data=base64.b64encode(data).decode(), mode=mode)

    def get(self, remote: str) -> bytes:
        """Return the content of the file `remote` inside. Raises AgentError, MachineLost."""
        return base64.b64decode(self.request("get", path=remote)["data"])

    def install(self, package: Path) -> None:
        """Install the Debian package in file `package` with dpkg. Raises CommandFailed, MachineLost."""
        self.put(package, f"/root/{package.name}")
        self.run(["dpkg", "-i", f"/root/{package.name}"], timeout=300).check()

    def request(self, do: str, **arguments: object) -> dict[str, Any]:
        """Let the agent do something else than run a command. Raises AgentError, MachineLost."""
        try:
            identifier = self._alive().send(do, **arguments)
        except ChannelError as error:
            raise self._lost(str(error)) from error
        return self.answer(identifier, ANSWER_MARGIN)

    def answer(self, identifier: int, timeout: float) -> dict[str, Any]:
        """Return the agent's answer to a request. Raises AgentError, MachineLost."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                # In small steps, to notice early that the kernel has panicked.
                return self._alive().wait(identifier, min(5.0, deadline - time.monotonic()))
            except ChannelTimeout:
                if time.monotonic() > deadline or self._panicked():
                    raise self._lost("the agent does not answer") from None
            except ChannelError as error:
                raise self._lost(str(error)) from error

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float = 60) -> None:
        """Look at `condition` until it holds. Raises AssertionError, with `what`, when it never does."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout:.0f} s: {what}")
            time.sleep(0.3)

    def daemon(self) -> str:
        """Return the process number of libvirt's daemon, which may have a child that is called as it is."""
        self.run(LIBVIRT).check()
        return self.run(["systemctl", "show", "-P", "MainPID", "libvirtd.service"]).check().text.strip()

    def confinement(self) -> str:
        """Return how AppArmor confines libvirt's daemon, which starts the hook."""
        return self.get(f"/proc/{self.daemon()}/attr/current").decode().strip()

    # PCI

    def pci(self) -> dict[str, PciFunction]:
        """Return every PCI function of the host by its address."""
        devices = self.request("pci")["devices"]
        functions = [PciFunction(pci_class=device.pop("class"), **device) for device in devices]
        return {function.address: function for function in functions}

    def state(self) -> dict[str, tuple[str, str]]:
        """Return driver and driver_override of every PCI function: what a round trip must bring back."""
        return {address: (function.driver, function.override) for address, function in self.pci().items()}

    def driver(self, address: str) -> str:
        """Return the driver of the function at `address`, "" when it has none."""
        return self.pci()[address].driver

    def groups(self) -> dict[str, set[str]]:
        """Return the addresses of the functions of each IOMMU group."""
        groups: dict[str, set[str]] = {}
        for function in self.pci().values():
            groups.setdefault(function.group, set()).add(function.address)
        return groups

    # The hardware from outside

    def qmp(self, command: str, **arguments: object) -> object:
        """Execute a QMP command; a `_` in an argument's name stands for `-`. Raises QmpError, MachineLost."""
        self._alive()
        assert self._qmp is not None
        return self._qmp.command(
            command, {name.replace("_", "-"): value for name, value in arguments.items()}
        )

    def plug(self, driver: str, identifier: str, bus: str, **properties: object) -> None:
        """Plug a device in, as QEMU's -device does. Raises QmpError."""
        self.qmp("device_add", driver=driver, id=identifier, bus=bus, **properties)

    def unplug(self, identifier: str, timeout: float = 60) -> None:
        """Ask the host to let a device go, and wait until it is gone. Raises QmpError."""
        self.qmp("device_del", id=identifier)
        assert self._qmp is not None
        self._qmp.wait_event("DEVICE_DELETED", timeout, device=identifier)

    def picture(self) -> Picture:
        """Return what the monitor of the card shows."""
        file = self._folder / "screen.ppm"
        self.qmp("screendump", filename=str(file), device=topology.CARD_ID)
        return Picture.from_ppm(file.read_bytes())

    def screendump(self, path: Path) -> Picture:
        """Return what the monitor of the card shows, and write it as PNG to `path`."""
        picture = self.picture()
        picture.save_png(path)
        return picture

    def console(self) -> str:
        """Return all that the host has said on its serial console."""
        try:
            return (self._folder / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    # Inner matters

    def _argv(self) -> list[str]:
        """Make what QEMU needs and return its command."""
        argv = qemu.command(
            self.image, self._folder, self._accelerator.arguments, self._memory, self._processors
        )
        if not self._own_loader:
            argv += qemu.kernel(self.image, (*self.flavour.kernel_arguments, *self._kernel_arguments))
        files = qemu.files(self.image, self._folder, self._writable)
        return [*argv, *topology.arguments(self.flavour, files, self._card)]

    def _connect(self, name: str) -> socket.socket:
        """Connect to QEMU's socket `name` as soon as it is there. Raises MachineLost."""
        deadline = time.monotonic() + 30
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._folder / name))
                return connection
            except OSError as error:
                connection.close()
                assert self._process is not None
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._lost(f"QEMU's socket {name}: {error}") from error
                time.sleep(0.1)

    def _alive(self) -> Channel:
        """Return the line to the agent if the machine runs. Raises MachineLost."""
        if self._process is None or self._channel is None:
            raise MachineLost("the machine was not started, or has been stopped")
        if self._process.poll() is not None:
            raise self._lost(f"QEMU has ended with status {self._process.returncode}")
        return self._channel

    def _begin_boot(self) -> None:
        """Expect another boot: forget the agent's announcement and what the console said."""
        self._alive().forget_boot()
        self._console_before = len(self.console())

    def _console_of_this_boot(self) -> str:
        return self.console()[self._console_before :]

    def _panicked(self) -> bool:
        return "Kernel panic" in self._console_of_this_boot()

    def _lost(self, reason: str) -> MachineLost:
        """Return an exception that says why the machine is of no more use."""
        parts = [f"the machine is lost: {reason}"]
        for name in ("qemu.log", "console.log"):
            file = self._folder / name
            if file.exists():
                tail = file.read_text(errors="replace").splitlines()[-80:]
                parts += [f"--- the end of {name}:", *tail]
        return MachineLost("\n".join([*parts, *self._seen_from_outside()]))

    def _seen_from_outside(self) -> list[str]:
        """Return what QEMU says of the machine and its processor, twice: whether it moves shows."""
        found = []
        for command in ("info status", "info lapic", "info registers", "info registers"):
            try:
                said = (
                    self._qmp.command("human-monitor-command", {"command-line": command}) if self._qmp else ""
                )
            except (QmpError, OSError) as error:
                said = str(error)
            found += [f"--- {command}:", *str(said).splitlines()[:16]]
        return found
