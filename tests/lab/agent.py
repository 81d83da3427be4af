"""The lab's hand inside the machine: runs what the outside asks for, over a virtio-serial port.

This file is copied into the image and started by systemd as `python3 -IS agent.py PORT`; it imports nothing
of the project. It reads one JSON object per line and answers each with one line, in the order of completion:

    {"id": 1, "do": "run", "argv": [...], "input": BASE64, "timeout": SECONDS, "env": {...}}
        -> {"id": 1, "status": 0, "stdout": BASE64, "stderr": BASE64, "timed_out": false}
    {"id": 2, "do": "signal", "job": 1, "signal": 15}         -> {"id": 2}
    {"id": 3, "do": "put", "path": ..., "data": BASE64, "mode": 420}  -> {"id": 3}
    {"id": 4, "do": "get", "path": ...}                       -> {"id": 4, "data": BASE64}
    {"id": 5, "do": "pci"}                                    -> {"id": 5, "devices": [...]}

A request that cannot be carried out is answered with {"id": N, "error": TEXT}. Each start of the agent is
announced with {"hello": BOOT_ID}, so that the outside notices a reboot.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

PCI_DEVICES = Path("/sys/bus/pci/devices")
# A killed child that hangs in the kernel is not waited for any longer than this.
GRACE_AFTER_KILL = 5.0


class Port:
    """The virtio-serial port: whole lines in, whole lines out."""

    def __init__(self, path: str) -> None:
        """Open the port at `path`, waiting for udev to make it."""
        while not os.path.exists(path):
            time.sleep(0.1)
        self._descriptor = os.open(path, os.O_RDWR)
        self._sending = threading.Lock()

    def lines(self) -> Iterator[bytes]:
        """Yield each line that arrives, for ever."""
        pending = bytearray()
        searched = 0
        while True:
            block = os.read(self._descriptor, 1 << 18)
            if not block:  # nobody is connected outside
                time.sleep(0.1)
                continue
            pending += block
            while (end := pending.find(b"\n", searched)) >= 0:
                yield bytes(pending[:end])
                del pending[: end + 1]
                searched = 0
            searched = len(pending)

    def send(self, message: dict[str, Any]) -> None:
        """Write `message` as one line."""
        # The line feed in front ends whatever half a line a power cut has left in the pipe.
        data = memoryview(b"\n" + json.dumps(message).encode() + b"\n")
        with self._sending:
            while data:
                data = data[os.write(self._descriptor, data) :]


class Agent:
    """Carries out requests, each in a thread of its own."""

    def __init__(self, port: Port) -> None:
        """Answer on `port`."""
        self._port = port
        self._jobs: dict[int, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Announce this boot, then answer for ever."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._port.send({"hello": boot})
        for line in self._port.lines():
            try:
                request = json.loads(line)
            except ValueError:  # the rest of a line that was cut by a reset
                continue
            threading.Thread(target=self._answer, args=(request,), daemon=True).start()

    def _answer(self, request: dict[str, Any]) -> None:
        actions = {
            "run": self._run,
            "signal": self._signal,
            "put": _put,
            "get": _get,
            "pci": _pci,
        }
        try:
            answer = actions[request["do"]](request)
        except Exception as error:  # whatever it is, the outside must hear of it
            answer = {"error": f"{type(error).__name__}: {error}"}
        self._port.send({"id": request["id"], **answer})

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        # Files, not pipes: a daemon started by the command may keep its output open for ever.
        with (
            tempfile.TemporaryFile() as stdin,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            stdin.write(base64.b64decode(request["input"]))
            stdin.seek(0)
            child = subprocess.Popen(
                request["argv"],
                stdin=stdin,
                stdout=out,
                stderr=err,
                env={**os.environ, **request["env"]},
                cwd="/root",
                start_new_session=True,
            )
            self._jobs[request["id"]] = child
            timed_out = False
            try:
                status: int | None = child.wait(request["timeout"])
            except subprocess.TimeoutExpired:
                timed_out = True
                status = _kill(child)
            finally:
                del self._jobs[request["id"]]
            return {
                "status": status,
                "stdout": _content(out),
                "stderr": _content(err),
                "timed_out": timed_out,
            }

    def _signal(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._jobs.get(request["job"])
        if job is not None:
            os.killpg(job.pid, request["signal"])
        return {}


def _kill(child: subprocess.Popen[bytes]) -> int | None:
    """Kill the process group of `child`; return its status, or None when it hangs in the kernel."""
    os.killpg(child.pid, signal.SIGKILL)
    try:
        return child.wait(GRACE_AFTER_KILL)
    except subprocess.TimeoutExpired:
        return None


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return base64.b64encode(file.read()).decode()


def _put(request: dict[str, Any]) -> dict[str, Any]:
    path = Path(request["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(base64.b64decode(request["data"]))
        os.fchmod(file.fileno(), request["mode"])
    os.replace(file.name, path)
    return {}


def _get(request: dict[str, Any]) -> dict[str, Any]:
    return {"data": base64.b64encode(Path(request["path"]).read_bytes()).decode()}


def _pci(_request: dict[str, Any]) -> dict[str, Any]:
    return {"devices": [_device(path) for path in sorted(PCI_DEVICES.iterdir())]}


def _device(path: Path) -> dict[str, str]:
    override = (path / "driver_override").read_text().strip()
    return {
        "address": path.name,
        "vendor": (path / "vendor").read_text().strip().removeprefix("0x"),
        "device": (path / "device").read_text().strip().removeprefix("0x"),
        "class": (path / "class").read_text().strip().removeprefix("0x"),
        "driver": _link(path / "driver"),
        "override": "" if override == "(null)" else override,
        "group": _link(path / "iommu_group"),
    }


def _link(path: Path) -> str:
    try:
        return os.path.basename(os.readlink(path))
    except FileNotFoundError:
        return ""


if __name__ == "__main__":
    Agent(Port(sys.argv[1])).serve()
