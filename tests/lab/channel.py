"""The outside end of the line to the agent (`agent.py`) in the machine."""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class ChannelError(Exception):
    """The line to the agent broke, or the agent started anew while an answer was awaited."""


class AgentError(Exception):
    """The agent could not carry out a request; the text is the agent's."""


class ChannelTimeout(Exception):
    """The agent has not answered yet."""


class Channel:
    """Sends requests to the agent and sorts the answers, which arrive in any order."""

    def __init__(self, connection: socket.socket) -> None:
        """Use `connection`, which leads to QEMU's end of the virtio-serial port."""
        self._socket = connection
        self._pending = bytearray()
        self._searched = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self.boot: str | None = None

    def close(self) -> None:
        """Close the line."""
        self._socket.close()

    def forget_boot(self) -> None:
        """Expect a new announcement: the machine is about to be reset."""
        self.boot = None

    def wait_for_boot(self, timeout: float) -> bool:
        """Wait until the agent has announced itself; False when it has not within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while self.boot is None:
            if not self._receive(deadline):
                return False
        return True

    def send(self, do: str, **arguments: object) -> int:
        """Send a request and return its id, with which `wait` finds the answer. Raises ChannelError."""
        self._last_id += 1
        line = json.dumps({"id": self._last_id, "do": do, **arguments}).encode() + b"\n"
        self._socket.settimeout(60)
        try:
            self._socket.sendall(line)
        except OSError as error:
            raise ChannelError(f"cannot send to the agent: {error}") from error
        return self._last_id

    def wait(self, request: int, timeout: float) -> dict[str, Any]:
        """Return the answer to `request`. Raises AgentError, ChannelError, ChannelTimeout."""
        deadline = time.monotonic() + timeout
        while request not in self._answers:
            if not self._receive(deadline):
                raise ChannelTimeout(f"no answer from the agent for {timeout:.0f} s")
        answer = self._answers.pop(request)
        if "error" in answer:
            raise AgentError(answer["error"])
        return answer

    def call(self, do: str, timeout: float = 60, **arguments: object) -> dict[str, Any]:
        """Send a request and wait for its answer; see `send` and `wait`."""
        return self.wait(self.send(do, **arguments), timeout)

    def _receive(self, deadline: float) -> bool:
        """Take in what has arrived; False when nothing came before `deadline`."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        self._socket.settimeout(remaining)
        try:
            block = self._socket.recv(1 << 18)
        except TimeoutError:
            return False
        except OSError as error:
            raise ChannelError(f"the line to the agent broke: {error}") from error
        if not block:
            raise ChannelError("the line to the agent was closed")
        self._pending += block
        while (end := self._pending.find(b"\n", self._searched)) >= 0:
            line = bytes(self._pending[:end])
            del self._pending[: end + 1]
            self._searched = 0
            self._take(line)
        self._searched = len(self._pending)
        return True

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:  # an empty line, or one that a reset has cut
            return
        if "hello" not in message:
            self._answers[message["id"]] = message
            return
        again = self.boot is not None
        self.boot = message["hello"]
        if again:
            raise ChannelError("the agent started anew: the machine has rebooted on its own")
