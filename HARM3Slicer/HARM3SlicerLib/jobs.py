"""One job at a time: steps in Slicer, a line to the worker, steps in Slicer again; the event loop runs all along."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import qt

from HARM3Logic.errors import HARM3Error
from HARM3SlicerLib.process import Outcome, State, WorkerClient

SLICE_S = 0.02  # steps run this long before the event loop has its turn
TICK_MS = 100
EXPORT, IMPORT = 0.04, 0.96  # shares of the progress bar: export before the first, import after the second

Steps = Iterator[str]  # each item names what was done


@dataclass
class Job:
    """A piece of work.

    Args:
        line: what the worker is told; None for work in Slicer alone.
        before, after: steps in Slicer; `after` gets the worker's outcome and may fill `values`.
        outcome: None until the job has ended.
        onFinished: called once with the outcome, which carries `values`.
        onEvent: each event of the worker.
    """

    kind: str
    line: dict[str, Any] | None
    before: Callable[[], Steps] | None = None
    after: Callable[[Outcome, Job], Steps] | None = None
    onFinished: Callable[[Outcome], None] | None = None
    onEvent: Callable[[dict], None] | None = None
    values: dict[str, Any] = field(default_factory=dict)
    outcome: Outcome | None = None


class Runner:
    """Runs jobs on one warm worker. Its timer is the only one of the module that works."""

    def __init__(self, client: WorkerClient) -> None:
        self.client = client
        self.job: Job | None = None
        self.failure: Outcome | None = None  # of the last job, until the next one starts
        self.message = ""  # of the last job, when it went well
        self._steps: Steps | None = None
        self._next: Callable[[], None] | None = None  # what follows the steps
        self._stage = ""
        self._listeners: list[Callable[[], None]] = []
        client.addListener(self._notify)
        self._timer = qt.QTimer()  # kept here: a timer only a local name holds never fires
        self._timer.connect("timeout()", self._onTimer)

    @property
    def busy(self) -> bool:
        return self.job is not None or self.client.busy

    @property
    def state(self) -> State:
        if self.job is None:
            return self.client.state if self.client.busy else State.FAILED if self.failure else State.IDLE
        return State.CANCELLING if self.client.state is State.CANCELLING else State.RUNNING

    @property
    def stage(self) -> str:
        """What is being done, in words."""
        if self.job is not None and self._steps is not None:
            return self._stage
        return self.client.stage if self.client.busy else self.message

    @property
    def progress(self) -> float | None:
        """Share of the job that is done; None while that is not known."""
        if self.job is None or self._steps is not None:
            return None if self.job is None else (EXPORT / 2 if self._next == self._submit else IMPORT)
        value = self.client.progress
        return None if value is None else EXPORT + (IMPORT - EXPORT) * value

    @property
    def remainingS(self) -> float | None:
        return self.client.remainingS if self.client.busy else None

    def start(self, job: Job) -> None:
        """Begin a job.

        Raises:
            RuntimeError: another one runs.
        """
        if self.busy:
            raise RuntimeError("another job runs; one at a time.")
        self.job, self.failure, self.message = job, None, ""
        self._stage = "preparing"
        self._run(job.before() if job.before is not None else iter(()), self._submit)

    def cancel(self) -> None:
        """Stop the job; it ends with the code "cancelled"."""
        if self.job is None:
            return
        if self._steps is not None:
            self._drop()
            self._end(Outcome(False, self.job.kind, code="cancelled", message="Cancelled."))
        else:
            self.client.cancel()

    def stop(self, reason: str = "") -> None:
        """End job and worker at once. The job ends as cancelled, for `reason`; without one nobody is told."""
        self._drop()
        self.client.stop()
        self._timer.stop()
        job, self.job = self.job, None
        if job is not None:
            job.outcome = Outcome(False, job.kind, code="cancelled", message=reason or "Stopped.")
            self.message = reason
            if reason and job.onFinished is not None:
                job.onFinished(job.outcome)
        self._notify()

    def close(self) -> None:
        """Let go of everything; nothing runs afterwards."""
        self.stop()
        self._listeners.clear()
        self._timer.disconnect("timeout()", self._onTimer)
        self.client.removeListener(self._notify)

    def addListener(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def removeListener(self, listener: Callable[[], None]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def fail(self, outcome: Outcome) -> None:
        """Show a failure that came before any job could start."""
        self.failure, self.message = outcome, ""
        self._note(outcome)
        self._notify()

    def _run(self, steps: Steps, following: Callable[[], None]) -> None:
        self._steps, self._next = steps, following
        self._timer.start(0)
        self._notify()

    def _onTimer(self) -> None:
        if self._steps is not None:
            self._advance()
        elif self.client.busy:
            self.client.tick()
        else:
            self._timer.stop()

    def _advance(self) -> None:
        end = time.monotonic() + SLICE_S
        steps = self._steps
        try:
            while steps is self._steps and time.monotonic() < end:
                stage = next(steps)
                if steps is self._steps:  # a step may pump events, and the user may have pressed Cancel in them
                    self._stage = stage
        except StopIteration:
            if steps is self._steps:
                following, self._steps, self._next = self._next, None, None
                following()
        except Exception as error:  # whatever it is, the panel says it; a traceback belongs into the details
            if steps is self._steps and self.job is not None:
                self._steps = None
                self._end(outcomeOf(error, self.job.kind))
        self._notify()

    def _submit(self) -> None:
        job = self.job
        if job.line is None:
            self._end(Outcome(True, job.kind))
            return
        self._timer.start(TICK_MS)
        self.client.submit(job.line, self._onOutcome, job.onEvent)

    def _onOutcome(self, outcome: Outcome) -> None:
        job = self.job
        if job is None:
            return
        if outcome.ok and job.after is not None:
            self._stage = "showing the result"
            self._run(job.after(outcome, job), lambda: self._end(outcome))
        else:
            self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        job, self.job = self.job, None
        self._steps = None
        self._timer.stop()
        job.outcome = Outcome(True, outcome.kind, {**outcome.values, **job.values}) if outcome.ok else outcome
        self.message = outcome.message if not outcome.ok else "Done."
        if not outcome.ok and outcome.code != "cancelled":
            self.failure = outcome
            self._note(outcome)
        if job.onFinished is not None:
            job.onFinished(job.outcome)
        self._notify()

    def _note(self, outcome: Outcome) -> None:
        """Keep a failure in the log, where the client has not done so itself."""
        log, line = self.client.log, f"{outcome.code}: {outcome.message} {outcome.advice}".rstrip()
        if not log or outcome.message not in log[-1]:
            log.append(line)
        logging.error("HARM3Slicer: %s", line)

    def _drop(self) -> None:
        steps, self._steps = self._steps, None
        if steps is not None and hasattr(steps, "close"):
            try:
                steps.close()  # a generator takes back what it began
            except ValueError:  # it is running: this call comes from events one of its steps pumps
                logging.info("HARM3Slicer: a step is still running and ends by itself.")

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()


def outcomeOf(error: Exception, kind: str) -> Outcome:
    """An exception as a failure the panel can show."""
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    if isinstance(error, HARM3Error):
        return Outcome(False, kind, code=error.code, message=error.message, advice=error.advice, details=details)
    message = f"This is a bug of HARM3Slicer ({type(error).__name__}: {error})."
    return Outcome(False, kind, code="bug", message=message, advice="Please report it with the details.", details=details)
