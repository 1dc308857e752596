"""What goes over the pipes of the worker process: jobs as lines in, events as lines out, bytes cut anywhere.

    {"job": "job-1", "kind": "predict", ...}  -->  worker  -->  @harm3 {"event": "stage", "job": "job-1", "name": "registering"}

A line without the prefix is log text.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

PREFIX = b"@harm3 "
PROTOCOL = 1
FILES = ("prediction", "predictions", "case")  # values of a result that name a file
LONGEST_LINE = 16 << 20  # bytes; what is longer is cut, so that a broken worker cannot fill the memory


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        kind: of the job.
        values: of its result event, without `event`, `job` and `kind`.
        code: empty when all went well; "cancelled" when the user stopped it.
        message, advice: one sentence each, for the user.
        details: for whoever mends it.
    """

    ok: bool
    kind: str
    values: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    advice: str = ""
    details: str = ""


class Transport(Protocol):
    """One process. None of its methods may wait."""

    def start(self, client: Any) -> None:
        """Start it; from then on it tells `client` feedOutput, feedErrors, and finished or failedToStart."""

    def write(self, data: bytes) -> None: ...

    def closeInput(self) -> None: ...

    def killTree(self, pid: int | None) -> None:
        """End it and all its children at once; `pid` is what the worker said of itself."""


class Ear:
    """What one transport talks to; deaf once the client has let go of that transport."""

    def __init__(self, client: Any) -> None:
        self.client: Any = client  # a WorkerClient, or None

    def feedOutput(self, data: bytes) -> None:
        if self.client is not None:
            self.client.feedOutput(data)

    def feedErrors(self, data: bytes) -> None:
        if self.client is not None:
            self.client.feedErrors(data)

    def finished(self, code: int, crashed: bool) -> None:
        if self.client is not None:
            self.client.finished(code, crashed)

    def failedToStart(self, reason: str) -> None:
        if self.client is not None:
            self.client.failedToStart(reason)


def encode(message: dict[str, Any]) -> bytes:
    """One line for the worker's stdin; paths may be text or `Path`."""
    return json.dumps(message, default=os.fspath).encode("ascii") + b"\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The event of a line of the worker's stdout; None for log text."""
    if not line.startswith(PREFIX):
        return None
    try:
        event = json.loads(line[len(PREFIX) :])
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def absentFile(kind: str, values: dict[str, Any]) -> str:
    """The first file a result names, or must name, that is not there; empty when all are."""
    if kind == "predict" and not isinstance(values.get("prediction"), str):
        return "prediction.json"
    wanted = [values[key] for key in FILES if isinstance(values.get(key), str)]
    return next((path for path in wanted if not os.path.isfile(path)), "")


def number(value: Any) -> float | None:
    """A finite number of an event, or None."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) else None


class Lines:
    """Whole lines of bytes that come cut anywhere."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # no newline before it

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._searched = 0
            yield line
        self._searched = len(self._buffer)
        if len(self._buffer) > LONGEST_LINE:
            yield self.rest()

    def rest(self) -> bytes:
        line = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return line
