"""A small client of QEMU's machine protocol (QMP)."""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, closed the connection, or did not answer in time."""


class Qmp:
    """One connection to QEMU; keeps the events that arrive between answers."""

    def __init__(self, connection: socket.socket) -> None:
        """Use `connection` to QEMU, and leave negotiation mode. Raises QmpError."""
        self._socket = connection
        self._pending = b""
        self.events: list[dict[str, Any]] = []
        self._next(time.monotonic() + 30)  # the greeting
        self.command("qmp_capabilities")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def command(self, name: str, arguments: dict[str, object] | None = None, timeout: float = 60) -> object:
        """Execute command `name` and return its result. Raises QmpError."""
        request: dict[str, Any] = {"execute": name}
        if arguments:
            request["arguments"] = arguments
        deadline = time.monotonic() + timeout
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{name}: {error}") from error
        while True:
            message = self._next(deadline)
            if "error" in message:
                raise QmpError(f"{name}: {message['error']['desc']}")
            if "return" in message:
                result: object = message["return"]
                return result

    def wait_event(self, name: str, timeout: float, **data: object) -> dict[str, Any]:
        """Return, and forget, the event `name` whose data holds `data`. Raises QmpError when none comes."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return event
            self._next(deadline)

    def _next(self, deadline: float) -> dict[str, Any]:
        """Return the next message, noting it first if it is an event."""
        while b"\n" not in self._pending:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                block = self._socket.recv(1 << 16)
            except OSError as error:
                raise QmpError(f"no answer from QEMU: {error}") from error
            if not block:
                raise QmpError("QEMU closed the connection")
            self._pending += block
        line, _, self._pending = self._pending.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message
