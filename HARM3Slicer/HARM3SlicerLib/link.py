"""The line to one worker process: started, written to, cut into lines, ended. Free of Qt; knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from HARM3SlicerLib.protocol import Ear, Lines, Transport


class Link:
    """The worker process that lives now, if there is one.

    Args:
        makeTransport: gives a new, not yet started process.
    """

    def __init__(self, makeTransport: Callable[[], Transport]) -> None:
        self.makeTransport = makeTransport
        self.hello: dict[str, Any] | None = None  # what it said of itself
        self.output, self.errors = Lines(), Lines()
        self._transport: Transport | None = None
        self._ear: Ear | None = None

    @property
    def alive(self) -> bool:
        """A process is there, warm or starting."""
        return self._transport is not None

    def start(self, client: Any) -> None:
        """Start a process, which from then on talks to `client`; raises whatever its transport does."""
        self.output, self.errors = Lines(), Lines()
        self._transport, self._ear = self.makeTransport(), Ear(client)
        self._transport.start(self._ear)

    def greet(self, event: dict[str, Any]) -> None:
        """Keep its hello; a pid that no process of ours can have is not believed."""
        pid = event.get("pid")
        self.hello = {**event, "pid": pid if isinstance(pid, int) and pid > 1 else None}

    def write(self, line: bytes) -> None:
        if self._transport is not None:
            self._transport.write(line)

    def kill(self) -> None:
        """End the process and all it has started; nothing more is heard of it."""
        transport, pid = self._transport, (self.hello or {}).get("pid")
        self.forget()
        if transport is not None:
            transport.closeInput()
            transport.killTree(pid)

    def forget(self) -> None:
        """Let go of a process that has ended."""
        if self._ear is not None:
            self._ear.client = None
        self._transport = self._ear = self.hello = None
        self.output, self.errors = Lines(), Lines()
