"""The client of the worker process: everything that can go wrong with a process, played with a clock and a transport of our own."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "HARM3Slicer"))

from HARM3SlicerLib import process, protocol  # noqa: E402
from HARM3SlicerLib.process import Outcome, State, WorkerClient  # noqa: E402

PID = 4711


def line(event: str, **values: object) -> bytes:
    return b"@harm3 " + json.dumps({"event": event, **values}, ensure_ascii=False).encode() + b"\n"


HELLO = line("hello", pid=PID, version="1", protocol=1, device="auto")


class FakeTransport:
    """Remembers what it was asked."""

    def __init__(self, start: Callable[[object], None] | None = None) -> None:
        self.lines: list[dict] = []
        self.killed: list[int | None] = []
        self.closed = False
        self.client: object = None
        self._start = start

    def start(self, client: object) -> None:
        self.client = client
        if self._start is not None:
            self._start(client)

    def write(self, data: bytes) -> None:
        assert data.endswith(b"\n")
        self.lines += [json.loads(part) for part in data.splitlines()]

    def closeInput(self) -> None:
        self.closed = True

    def killTree(self, pid: int | None) -> None:
        self.killed.append(pid)


class Play:
    """A client, its clock, and what it told."""

    def __init__(self, start: Callable[[object], None] | None = None) -> None:
        self.now = 100.0
        self.made: list[FakeTransport] = []
        self.outcomes: list[Outcome] = []
        self.events: list[dict] = []

        def make() -> FakeTransport:
            self.made.append(FakeTransport(start))
            return self.made[-1]

        self.client = WorkerClient(make, lambda: self.now)

    @property
    def transport(self) -> FakeTransport:
        return self.made[-1]

    def submit(self, **job: object) -> str:
        return self.client.submit({"kind": "check", **job}, self.outcomes.append, self.events.append)

    def begin(self, **job: object) -> str:
        """A job that has reached a worker."""
        identity = self.submit(**job)
        self.say(HELLO)
        return identity

    def say(self, *lines: bytes) -> None:
        for data in lines:
            self.transport.client.feedOutput(data)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.client.tick()

    @property
    def outcome(self) -> Outcome:
        assert len(self.outcomes) == 1, self.outcomes
        return self.outcomes[0]


@pytest.fixture
def play() -> Play:
    return Play()


def test_a_job_goes_out_after_hello_and_its_result_comes_back(play: Play, tmp_path: Path) -> None:
    made = tmp_path / "Müller 患者"
    made.mkdir()
    (made / "prediction.json").write_text("{}")
    job = play.submit(kind="predict", case=made / "case.json")
    assert (play.client.state, play.client.busy, play.client.hello) == (State.RUNNING, True, None)
    assert play.transport.lines == []
    play.say(HELLO)
    assert play.transport.lines == [{"kind": "predict", "case": str(made / "case.json"), "job": job}]
    play.say(line("result", job=job, kind="predict", prediction=str(made / "prediction.json")))
    assert play.outcome == Outcome(True, "predict", {"prediction": str(made / "prediction.json")})
    assert (play.client.state, play.client.busy, play.client.progress) == (State.IDLE, False, 1.0)
    assert play.client.hello is not None
    assert play.client.hello["pid"] == PID


def test_progress_is_shown(play: Play) -> None:
    job = play.begin()
    play.say(line("stage", job=job, name="registering"), line("progress", job=job, value=0.25, remaining_s=12.5))
    assert (play.client.stage, play.client.progress, play.client.remainingS) == ("registering", 0.25, 12.5)
    play.say(line("progress", job=job, value=7, remaining_s=None))
    assert (play.client.progress, play.client.remainingS) == (1.0, None)
    for value in ("much", float("nan"), float("-inf"), True, None, []):
        play.say(line("progress", job=job, value=value, remaining_s=value))
        assert (play.client.progress, play.client.remainingS) == (1.0, None)
    play.say(line("warning", job=job, code="slide", message="slide: blurred."), line("case", job=job, case_id="A", row={"p": 1}))
    assert play.client.warnings == [{"code": "slide", "message": "slide: blurred."}]
    assert [event["event"] for event in play.events] == ["stage", *["progress"] * 8, "warning", "case"]
    assert play.outcomes == []


def test_a_character_cut_in_two_is_whole_again(play: Play) -> None:
    job = play.begin()
    data = line("stage", job=job, name="reading 患者") + "Grüße\r\n".encode()
    for k in range(len(data)):
        play.say(data[k : k + 1])
    assert play.client.stage == "reading 患者"
    assert play.client.log == ["Grüße"]
    for byte in "ein Fehler: ü\n".encode():
        play.transport.client.feedErrors(bytes([byte]))
    assert play.client.log[-1] == "ein Fehler: ü"


@pytest.mark.parametrize(
    "garbage",
    [b"Downloading 5 %", b"@harm3 {", b"@harm3 [1]", b"@harm3 {}", b'@harm3 {"event": 3}', b"\xff\xfe\x00", b"@harm3 " + b"[" * 5000],
    ids=["text", "cut", "list", "empty", "no name", "no UTF-8", "deep"],
)
def test_garbage_is_log_text(play: Play, garbage: bytes) -> None:
    job = play.begin()
    play.say(garbage + b"\n" + line("stage", job=job, name="on"))
    assert (play.client.state, play.client.stage) == (State.RUNNING, "on")
    assert len(play.client.log) == 1
    play.say(line("weather", job=job, value=3), line("stage", name="of no job"))  # unknown: neither shown nor an error
    assert (play.client.stage, len(play.events)) == ("on", 1)


def test_huge_lines(play: Play) -> None:
    job = play.begin()
    huge = line("result", job=job, kind="check", text="x" * 3_000_000)
    began = time.perf_counter()
    play.say(*(huge[k : k + 65536] for k in range(0, len(huge), 65536)))
    assert len(play.outcome.values["text"]) == 3_000_000
    play.submit()
    play.say(b"y" * 3_000_000 + b"\n")
    assert len(play.client.log[-1]) < 2 * process.LOG_CHARACTERS
    assert "3000000 characters" in play.client.log[-1]
    play.say(*[b"z" * (1 << 20)] * 40)  # never a newline: memory stays bounded
    assert len(play.client.link.output._buffer) <= protocol.LONGEST_LINE + (1 << 20)
    play.say(b"\n".join(b"%d" % k for k in range(10_000)) + b"\n")
    assert len(play.client.log) == process.LOG_LINES
    assert play.client.log[-1] == "9999"
    assert time.perf_counter() - began < 5  # quadratic work would take minutes


def test_a_crash_in_mid_job(play: Play) -> None:
    job = play.begin(kind="predict")
    play.transport.client.feedErrors(b"Fatal: boom\nlast wor")
    play.transport.client.finished(9, True)
    assert (play.outcome.ok, play.outcome.code, play.outcome.kind) == (False, "crashed", "predict")
    assert "signal 9" in play.outcome.message
    assert play.outcome.advice
    assert "Fatal: boom" in play.outcome.details
    assert "last wor" in play.outcome.details
    assert (play.client.state, play.client.busy, play.client.hello, play.client.alive) == (State.FAILED, False, None, False)
    play.client.tick()
    second = play.begin()
    assert len(play.made) == 2
    assert second != job
    assert play.transport.lines == [{"kind": "check", "job": second}]


def test_an_event_without_newline_before_the_end_counts(play: Play) -> None:
    job = play.begin()
    play.say(line("result", job=job, kind="check").rstrip())
    play.transport.client.finished(0, False)
    assert play.outcome.ok
    assert not play.client.alive


def test_a_process_that_cannot_start(play: Play) -> None:
    play.submit()
    play.transport.client.failedToStart("no such file")  # finished never comes
    assert play.outcome.code == "no_start"
    assert "no such file" in play.outcome.message
    assert play.client.state is State.FAILED


def test_a_transport_that_raises_or_fails_at_once() -> None:
    def broken(client: object) -> None:
        raise RuntimeError("QProcess has no signal x")

    for play in (Play(broken), Play(lambda client: client.failedToStart("gone"))):
        play.submit()
        assert play.outcome.code == "no_start"
        assert (play.client.state, play.client.alive) == (State.FAILED, False)


def test_a_hang_at_the_start(play: Play) -> None:
    play.submit()
    play.wait(process.START_S - 1)
    assert play.client.state is State.RUNNING
    play.wait(2)
    assert play.outcome.code == "no_start"
    assert play.transport.killed == [None]
    play.say(HELLO)  # too late
    assert (play.client.hello, play.client.state) == (None, State.FAILED)


def test_a_silent_death(play: Play) -> None:
    job = play.begin()
    for _ in range(10):
        play.wait(process.SILENT_S - 1)
        play.say(line("alive", job=job))
    assert play.client.state is State.RUNNING
    play.wait(process.SILENT_S + 1)
    assert (play.outcome.code, play.client.state) == ("silent", State.FAILED)
    assert play.transport.killed == [PID]
    assert play.transport.closed


def test_a_pause_between_jobs_is_no_silence(play: Play) -> None:
    job = play.begin()
    play.say(line("result", job=job, kind="check"))
    play.wait(10 * process.SILENT_S)
    play.submit()
    play.client.tick()
    assert play.client.state is State.RUNNING


def test_cancel_answered(play: Play) -> None:
    job = play.begin()
    play.client.cancel()
    assert play.client.state is State.CANCELLING
    assert play.transport.lines[-1] == {"cancel": job}
    play.say(line("stage", job=job, name="registering"))
    assert play.client.stage == "cancelling"
    with pytest.raises(RuntimeError):
        play.submit()
    play.client.cancel()  # twice is once
    assert len(play.transport.lines) == 2
    play.wait(1)
    play.say(line("error", job=job, code="cancelled", message="the job was cancelled.", advice="", details=""))
    assert play.outcome.code == "cancelled"
    assert (play.client.state, play.transport.killed) == (State.IDLE, [])
    play.submit()
    assert len(play.made) == 1  # the worker stayed warm


def test_cancel_ignored(play: Play) -> None:
    play.begin()
    play.client.cancel()
    play.wait(2.9)
    assert (play.client.state, play.transport.killed) == (State.CANCELLING, [])
    play.wait(0.2)
    assert (play.outcome.code, play.client.state, play.transport.killed) == ("cancelled", State.IDLE, [PID])
    play.submit()
    assert len(play.made) == 2


@pytest.mark.parametrize(("grace", "waits"), [(1.0, 1.0), (60, process.CANCEL_S), (None, process.CANCEL_S), ("x", process.CANCEL_S)])
def test_a_stage_that_cannot_answer_is_not_waited_for(play: Play, grace: object, waits: float) -> None:
    job = play.begin()
    play.say(line("stage", job=job, name="registering t1_pre", grace_s=grace))
    play.client.cancel()
    play.wait(waits - 0.1)
    assert play.client.state is State.CANCELLING
    play.wait(0.2)
    assert (play.client.state, play.transport.killed) == (State.IDLE, [PID])


def test_the_short_wait_ends_with_its_stage_and_its_job(play: Play) -> None:
    job = play.begin()
    play.say(line("stage", job=job, name="registering t1_pre", grace_s=1.0))
    play.say(line("stage", job=job, name="predicting"))
    play.client.cancel()
    play.wait(process.CANCEL_S - 0.1)
    assert play.client.state is State.CANCELLING


@pytest.mark.parametrize("answer", ["result", "error", "crash"])
def test_after_a_cancel_the_outcome_is_always_cancelled(play: Play, answer: str) -> None:
    job = play.begin()
    play.client.cancel()
    if answer == "crash":
        play.transport.client.finished(1, False)
    else:
        play.say(line(answer, job=job, kind="check", code="bug", message="m"))
    assert (play.outcome.code, play.client.state) == ("cancelled", State.IDLE)


def test_cancel_before_hello_ends_the_worker_at_once(play: Play) -> None:
    play.submit()
    play.client.cancel()
    assert (play.outcome.code, play.client.state, play.transport.killed) == ("cancelled", State.IDLE, [None])


def test_stop_during_a_job(play: Play) -> None:
    job = play.begin()
    client, ear = play.client, play.transport.client
    client.stop()
    assert (client.state, client.busy, client.alive, play.transport.killed) == (State.IDLE, False, False, [PID])
    ear.feedOutput(line("result", job=job, kind="check"))
    ear.feedErrors(b"late\n")
    ear.finished(9, True)
    client.tick()
    assert play.outcomes == []
    assert "late" not in client.log
    assert client.state is State.IDLE
    client.stop()  # twice is once
    assert play.transport.killed == [PID]


def test_stop_ends_a_warm_worker_too(play: Play) -> None:
    job = play.begin()
    play.say(line("result", job=job, kind="check"))
    play.client.stop()
    assert play.transport.killed == [PID]


def test_a_second_job_takes_the_warm_worker(play: Play) -> None:
    first = play.begin()
    play.say(line("warning", job=first, code="a", message="b"), line("result", job=first, kind="check"))
    second = play.submit()
    assert len(play.made) == 1
    assert play.transport.lines[-1]["job"] == second != first
    assert (play.client.warnings, play.client.progress) == ([], None)
    play.say(line("stage", job=first, name="late"), line("result", job=first, kind="check"))  # of the old job
    assert (play.client.stage != "late", play.client.state, len(play.outcomes)) == (True, State.RUNNING, 1)
    play.say(line("result", job=second, kind="check"))
    assert len(play.outcomes) == 2


def test_a_worker_that_ended_between_jobs_is_replaced(play: Play) -> None:
    job = play.begin()
    play.say(line("result", job=job, kind="check"))
    play.transport.client.finished(0, False)
    assert (play.client.state, len(play.outcomes)) == (State.IDLE, 1)
    play.begin()
    assert len(play.made) == 2


@pytest.mark.parametrize("named", ["nowhere/prediction.json", None])
def test_a_result_without_its_file_is_a_failure(play: Play, named: str | None) -> None:
    job = play.begin(kind="predict")
    play.say(line("result", job=job, kind="predict", prediction=named))
    assert (play.outcome.ok, play.outcome.code, play.client.state) == (False, "no_result", State.FAILED)
    assert "prediction.json" in play.outcome.message


def test_an_error_of_the_worker_is_handed_on(play: Play) -> None:
    job = play.begin(kind="predict")
    play.say(line("error", job=job, code="bad_slide", message="slide 's' is white.", advice="Choose another.", details="x"))
    assert play.outcome == Outcome(False, "predict", {}, "bad_slide", "slide 's' is white.", "Choose another.", "x")
    assert play.client.state is State.FAILED
    assert play.client.alive


def test_another_protocol_is_refused(play: Play) -> None:
    play.submit()
    play.say(line("hello", pid=PID, version="9", protocol=2))
    assert (play.outcome.code, play.transport.lines, play.transport.killed) == ("protocol", [], [PID])


def test_a_job_submitted_and_stopped_within_a_callback(play: Play) -> None:
    """Everything after a stop in the same bytes is deaf; a job submitted in a callback runs."""
    seen: list[Outcome] = []

    def again(outcome: Outcome) -> None:
        seen.append(outcome)
        play.client.submit({"kind": "check"}, lambda _: play.client.stop())

    play.client.submit({"kind": "check"}, again)
    play.say(HELLO + line("result", job="job-1", kind="check") + line("result", job="job-2", kind="check") + HELLO + b"late\n")
    assert len(seen) == 1
    assert (play.client.state, play.client.hello, play.client.log) == (State.IDLE, None, [])
    assert play.transport.killed == [PID]


def test_listeners_hear_changes_once_per_piece_of_output(play: Play) -> None:
    heard: list[State] = []

    def listener() -> None:
        heard.append(play.client.state)

    play.client.addListener(listener)
    job = play.begin()
    assert heard == [State.RUNNING, State.RUNNING]
    play.say(b"".join(b"line %d\n" % k for k in range(1000)))
    assert len(heard) == 3  # a flood of output is one redraw
    play.client.tick()
    assert len(heard) == 3
    play.say(line("result", job=job, kind="check"))
    assert heard[-1] is State.IDLE
    play.client.removeListener(listener)
    play.client.removeListener(listener)
    play.submit()
    assert len(heard) == 4


def test_installing_is_a_state_and_renews_the_worker(play: Play) -> None:
    job = play.begin()
    with pytest.raises(RuntimeError), play.client.installing("torch"):
        pass
    play.say(line("result", job=job, kind="check"))
    with play.client.installing("torch"):
        assert (play.client.state, play.client.busy, play.client.stage) == (State.INSTALLING, True, "torch")
        assert play.transport.killed == [PID]  # it would not see what is new
        with pytest.raises(RuntimeError):
            play.submit()
    assert play.client.state is State.IDLE
    with pytest.raises(OSError), play.client.installing("torch"):
        raise OSError("refused")
    assert (play.client.state, play.client.busy) == (State.FAILED, False)
