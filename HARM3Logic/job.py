"""One job of the worker: what it wants, how far it is, and the way back to whoever gave it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from HARM3Logic.errors import BadOption, Cancelled

# stages a library does in one go: a cancel would be heard only at their end
ABRUPT = ("loading", "registering", "making", "drawing")
ABRUPT_S = 1.0  # whoever cancels need not wait longer than this for an answer, and may end the process


class Way:
    """How far a job is, judged by what each of its stages took the last time.

    Args:
        expected: stage to seconds; stages may also run side by side.
        known: they were measured, so that the remaining time means something.
    """

    def __init__(self, expected: dict[str, float], known: bool) -> None:
        self.expected, self.known = expected, known
        self.taken: dict[str, float] = {}
        self._stage, self._share, self._shared = "", 0.0, 0.0  # the share that is done, and when it was told
        self._first: dict[str, tuple[float, float]] = {}  # stage to when it was first told, and its share then
        self._started = self._entered = time.monotonic()
        self._value = 0.0

    def enter(self, stage: str, share: float = 0.0) -> None:
        now = time.monotonic()
        if stage != self._stage:
            self.taken[self._stage] = self.taken.get(self._stage, 0.0) + now - self._entered
            self._stage, self._entered = stage, now
            self._first.setdefault(stage, (now, share))
        self._share, self._shared = share, now

    def look(self) -> dict[str, float | None]:
        """The values of a progress event; the seconds only where there is something to judge them by."""
        now = time.monotonic()
        begun, before = self._first.get(self._stage, (self._started, 0.0))
        gained = self._share - before
        if gained > 0:
            own = (self._shared - begun) * (1 - self._share) / gained - (now - self._shared)
        else:
            own = self.expected.get(self._stage, 0.0) * (1 - self._share) - (now - begun)
        left = max(own, 0.0) + sum(s for name, s in self.expected.items() if name != self._stage and name not in self.taken)
        elapsed = now - self._started
        if left:
            self._value = max(self._value, elapsed / (elapsed + left))
        return {"value": self._value, "remaining_s": left if self.known or gained > 0 else None}


class Job:
    """A job and the way back to whoever gave it."""

    def __init__(self, values: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
        self.values = values
        self.id, self.kind = values.get("job"), values.get("kind")
        self.cancelled = threading.Event()
        self.way: Way | None = None
        self._looking = threading.Lock()  # the values go out in the order in which they were seen
        self._send = send

    def tell(self, event: str, values: dict[str, Any]) -> None:
        self._send({"event": event, "job": self.id, **values})

    def on_event(self, event: str, values: dict[str, Any]) -> None:
        """The listener of the libraries: passes on, and stops the work of a cancelled job."""
        if self.cancelled.is_set():
            raise Cancelled("the job was cancelled.")
        if event == "stage":
            verb = str(values.get("name", "")).rpartition(": ")[2].partition(" ")[0]  # a batch puts the case before it
            values = {**values, "grace_s": ABRUPT_S} if verb in ABRUPT else values
        if self.way is None or event == "stage":
            self.tell(event, values)
        if self.way is not None:
            with self._looking:
                self.way.enter(str(values.get("name", values.get("stage", ""))), float(values.get("value", 0.0)))
                self.tell("progress", self.way.look())

    def beat(self) -> None:
        with self._looking:
            if self.way is None:
                self.tell("alive", {})
            else:
                self.tell("progress", self.way.look())

    def text(self, key: str) -> str:
        """A value that must be there.

        Raises:
            BadOption: it is not.
        """
        value = self.values.get(key)
        if not isinstance(value, str) or not value:
            raise BadOption(f"job {self.id!r} of kind {self.kind!r} has {value!r} as {key!r}; a text is wanted.", "Correct the job.")
        return value
