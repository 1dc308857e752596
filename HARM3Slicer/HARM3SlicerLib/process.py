"""The worker process as the module sees it: its protocol and one state machine, free of Qt.

    submit --> RUNNING --result--> IDLE        cancel: RUNNING --> CANCELLING --answer, or 1 to 3 s and killed--> IDLE
                  |---error, crash, no start, silence--> FAILED    (from which submit starts again)

Bytes come in through `feedOutput` and `feedErrors`, time through the clock, the process is behind a `Transport`; so all of
it runs in a plain test. The worker stays alive and warm between jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from itertools import count
from typing import Any

from HARM3SlicerLib.link import Link
from HARM3SlicerLib.protocol import PROTOCOL, Outcome, Transport, absentFile, decode, encode, number

__all__ = ["Outcome", "State", "Transport", "WorkerClient"]

CANCEL_S = 3.0  # a worker that does not answer a cancel by then is killed; earlier where its stage says that it cannot answer
START_S = 90.0  # until hello; a cold disk and a virus scanner have been known to take a minute
SILENT_S = 300.0  # the worker sends a sign of life every 5 s, but a library may hold Python's lock for minutes
LOG_LINES = 2000
LOG_CHARACTERS = 2000  # of one line


class State(Enum):
    IDLE = "idle"
    INSTALLING = "installing"
    RUNNING = "running"
    CANCELLING = "cancelling"
    FAILED = "failed"


@dataclass
class _Job:
    id: str
    kind: str
    line: bytes
    onFinished: Callable[[Outcome], None]
    onEvent: Callable[[dict], None] | None
    sent: bool = False


class WorkerClient:
    """Runs one job at a time in a worker process.

    Args:
        makeTransport: gives a new, not yet started process.
        clock: seconds; only differences count.
    """

    def __init__(self, makeTransport: Callable[[], Transport], clock: Callable[[], float] = time.monotonic) -> None:
        self.state = State.IDLE
        self.stage = ""
        self.progress: float | None = None
        self.remainingS: float | None = None
        self.log: list[str] = []
        self.warnings: list[dict[str, Any]] = []  # of the last job
        self.link = Link(makeTransport)
        self._clock = clock
        self._job: _Job | None = None
        self._numbers = count(1)
        self._startedAt = self._heardAt = self._cancelledAt = 0.0
        self._graceS = CANCEL_S  # of the stage the job is in
        self._listeners: list[Callable[[], None]] = []
        self._changed = False

    @property
    def busy(self) -> bool:
        return self.state in (State.INSTALLING, State.RUNNING, State.CANCELLING)

    @property
    def alive(self) -> bool:
        """A worker process is there, warm or starting."""
        return self.link.alive

    @property
    def hello(self) -> dict[str, Any] | None:
        """What the living worker said of itself; None before it did."""
        return self.link.hello

    def submit(self, job: dict[str, Any], onFinished: Callable[[Outcome], None], onEvent: Callable[[dict], None] | None = None) -> str:
        """Start a job and give its id.

        Args:
            job: `kind` and its values; paths as text.
            onFinished: called once, unless `stop` comes first.
            onEvent: called with each stage, progress, warning and case event.

        Raises:
            RuntimeError: another job runs.
        """
        if self.busy:
            raise RuntimeError(f"the worker is {self.state.value}; one job at a time.")
        identity = f"job-{next(self._numbers)}"
        self._job = _Job(identity, str(job.get("kind", "")), encode({**job, "job": identity}), onFinished, onEvent)
        self.warnings, self._graceS = [], CANCEL_S
        self.progress = self.remainingS = None
        self._heardAt = self._clock()
        self._set(State.RUNNING, "starting" if self.hello is None else "sending the job")
        if not self.alive:
            self._start()
        elif self.hello is not None:
            self._send()
        self._notify()
        return identity

    def cancel(self) -> None:
        """Ask the worker to stop its job; `tick` kills it when it does not. The outcome will be "cancelled"."""
        if self.state is not State.RUNNING or self._job is None:
            return
        self._cancelledAt = self._clock()
        self._set(State.CANCELLING, "cancelling")
        if not self._job.sent:
            self.link.kill()
            self._end(self._cancelled())
        else:
            self.link.write(encode({"cancel": self._job.id}))
        self._notify()

    def tick(self) -> None:
        """Watch the time; to be called about every 100 ms while `busy`."""
        now = self._clock()
        if self.state is State.CANCELLING and now - self._cancelledAt >= self._graceS:
            self.link.kill()
            self._end(self._cancelled("The worker did not answer and was ended."))
        elif self.state is State.RUNNING and self.hello is None and now - self._startedAt >= START_S:
            self.link.kill()
            self._fail("no_start", f"the worker process did not come up within {START_S:.0f} s.", "Try again, and see the log.")
        elif self.state is State.RUNNING and self.hello is not None and now - self._heardAt >= SILENT_S:
            self.link.kill()
            self._fail("silent", f"the worker process gave no sign of life for {SILENT_S:.0f} s and was ended.", "Try again.")
        self._notify()

    def stop(self) -> None:
        """End the worker at once and forget its job: no callback comes after this. For scene close, reload and exit."""
        self._job = None
        self.link.kill()
        self.progress = self.remainingS = None
        self._set(State.IDLE, "")
        self._notify()

    @contextmanager
    def installing(self, stage: str) -> Iterator[None]:
        """The state while packages are installed; afterwards the next job gets a fresh worker, which sees them.

        Raises:
            RuntimeError: a job runs.
        """
        if self.busy:
            raise RuntimeError(f"the worker is {self.state.value}; nothing can be installed now.")
        self.link.kill()
        self._set(State.INSTALLING, stage)
        self._notify()
        ended = State.FAILED
        try:
            yield
            ended = State.IDLE
        finally:
            self._set(ended, "" if ended is State.IDLE else "not installed")
            self._notify()

    def addListener(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of state, stage, progress or log."""
        self._listeners.append(listener)

    def removeListener(self, listener: Callable[[], None]) -> None:
        """Forget a listener; one that is not there is no error."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def feedOutput(self, data: bytes) -> None:
        """Bytes of the worker's stdout, cut anywhere."""
        self._heardAt = self._clock()
        lines = self.link.output
        for line in lines.feed(data):
            if lines is self.link.output:  # else a callback has let go of this process
                self._line(line)
        self._notify()

    def feedErrors(self, data: bytes) -> None:
        """Bytes of the worker's stderr, cut anywhere."""
        self._heardAt = self._clock()
        for line in self.link.errors.feed(data):
            self._note(line.decode("utf-8", "replace"))
        self._notify()

    def finished(self, code: int, crashed: bool) -> None:
        """The process has ended."""
        rests = self.link.output.rest(), self.link.errors.rest()
        self.link.forget()
        for rest in filter(None, rests):
            self._line(rest)
        how = f"was ended by signal {code}" if crashed else f"ended with code {code}"
        self._note(f"the worker process {how}.")
        if self.state is State.CANCELLING:
            self._end(self._cancelled())
        elif self._job is not None:
            advice = "Memory may have run out: close other programs and try again." if crashed else "See the log and try again."
            self._fail("crashed", f"the worker process {how} before the job was done.", advice)
        self._notify()

    def failedToStart(self, reason: str) -> None:
        """The process could not be started; `finished` will not come."""
        self.link.forget()
        if self.state is State.CANCELLING:
            self._end(self._cancelled())
        elif self._job is not None:
            self._fail("no_start", f"the worker process could not be started ({reason}).", "Check the installation of HARM3Slicer.")
        self._notify()

    def _start(self) -> None:
        self._startedAt = self._clock()
        try:
            self.link.start(self)
        except Exception as error:  # whatever it is, the user sees it as the reason
            self.failedToStart(f"{type(error).__name__}: {error}")

    def _send(self) -> None:
        if self._job is not None and not self._job.sent:
            self._job.sent = True
            self.link.write(self._job.line)

    def _line(self, line: bytes) -> None:
        event = decode(line)
        if event is None:
            self._note(line.decode("utf-8", "replace"))
            return
        name = event["event"]
        if name == "hello" and self.alive:
            self._greet(event)
        elif self._job is not None and event.get("job") == self._job.id:
            self._event(name, event)

    def _greet(self, event: dict[str, Any]) -> None:
        self.link.greet(event)
        self._changed = True
        if event.get("protocol") != PROTOCOL:
            self.link.kill()
            self._fail(
                "protocol",
                f"the worker speaks protocol {event.get('protocol')!r}; this module speaks {PROTOCOL}.",
                "Install HARM3Slicer again, so that its parts have one version.",
            )
        else:
            self._send()

    def _event(self, name: str, event: dict[str, Any]) -> None:
        assert self._job is not None
        if name == "result":
            self._result(event)
        elif name == "error":
            texts = {key: str(event.get(key) or "") for key in ("code", "message", "advice", "details")}
            texts["code"] = texts["code"] or "bug"
            self._end(Outcome(False, self._job.kind, **texts))
        elif name in ("stage", "progress", "warning", "case"):
            self._show(name, event)
            if self._job.onEvent is not None:
                self._job.onEvent(event)

    def _show(self, name: str, event: dict[str, Any]) -> None:
        self._changed = True
        if name == "stage":
            given = number(event.get("grace_s"))
            self._graceS = CANCEL_S if given is None else min(max(given, 0.0), CANCEL_S)
        if name == "stage" and self.state is State.RUNNING:
            self.stage = str(event.get("name", ""))
        elif name == "progress":
            value = number(event.get("value"))
            self.progress = self.progress if value is None else min(max(value, 0.0), 1.0)
            self.remainingS = number(event.get("remaining_s"))
        elif name == "warning":
            self.warnings.append({"code": str(event.get("code", "")), "message": str(event.get("message", ""))})

    def _result(self, event: dict[str, Any]) -> None:
        assert self._job is not None
        values = {key: value for key, value in event.items() if key not in ("event", "job", "kind")}
        absent = absentFile(self._job.kind, values)
        if absent:
            self._fail("no_result", f"the worker said it was done, but {absent!r} is not there.", "Try again, in another folder.")
        else:
            self._end(Outcome(True, self._job.kind, values))

    def _cancelled(self, details: str = "") -> Outcome:
        kind = self._job.kind if self._job is not None else ""
        return Outcome(False, kind, code="cancelled", message="Cancelled.", details=details)

    def _fail(self, code: str, message: str, advice: str) -> None:
        kind = self._job.kind if self._job is not None else ""
        self._end(Outcome(False, kind, code=code, message=message, advice=advice, details="\n".join(self.log[-50:])))

    def _end(self, outcome: Outcome) -> None:
        """Give the job its outcome; after a cancel that is "cancelled", whatever came in between."""
        job, self._job = self._job, None
        if job is None:
            return
        if self.state is State.CANCELLING and outcome.code != "cancelled":
            outcome = Outcome(False, job.kind, code="cancelled", message="Cancelled.", details=outcome.details)
        self.progress = 1.0 if outcome.ok else None
        self.remainingS = None
        good = outcome.ok or outcome.code == "cancelled"
        self._set(State.IDLE if good else State.FAILED, "" if outcome.ok else outcome.message)
        if not good:
            self._note(f"{outcome.code}: {outcome.message} {outcome.advice}")
        self._notify()
        job.onFinished(outcome)

    def _set(self, state: State, stage: str) -> None:
        self.state, self.stage, self._changed = state, stage, True

    def _note(self, text: str) -> None:
        text = text.rstrip("\r\n")
        self.log.append(text if len(text) <= LOG_CHARACTERS else f"{text[:LOG_CHARACTERS]} ... ({len(text)} characters)")
        del self.log[:-LOG_LINES]
        self._changed = True

    def _notify(self) -> None:
        if self._changed:
            self._changed = False
            for listener in list(self._listeners):
                listener()
