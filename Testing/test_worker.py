"""The worker: its protocol in this process, and a real one as a child process."""

import io
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from HARM3Logic import card, predict, predict_cohort, viewer, worker
from HARM3Logic import job as job_module
from HARM3Logic.errors import BadSlide, HARM3Error
from HARM3Logic.worker import Worker

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "HARM3Slicer"))

from HARM3SlicerLib.process import Outcome, WorkerClient  # noqa: E402


def events(*jobs: dict[str, Any] | bytes, between: Callable[[Worker], None] | None = None) -> list[dict[str, Any]]:
    """What a worker says to these lines, hello left out."""
    out = io.BytesIO()
    made = Worker(out)
    for job in jobs:
        made.take(job if isinstance(job, bytes) else json.dumps(job).encode() + b"\n")
    if between is not None:
        between(made)
    made._jobs.put(None)
    made.run()
    lines = out.getvalue().splitlines()
    assert all(line.startswith(b"@harm3 ") for line in lines)
    hello, *rest = [json.loads(line[len(worker.PREFIX) :]) for line in lines]
    assert (hello["event"], hello["pid"], hello["protocol"]) == ("hello", os.getpid(), 1)
    return rest


class FakePredictor:
    """Takes the place of model and encoder; goes the way of `prepare` in a moment."""

    made: ClassVar[list["FakePredictor"]] = []
    drawn: ClassVar[list[bool]] = []
    fails: Exception | None = None
    device = "cpu"

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.wanted, self.checkpoint = path, device, SimpleNamespace(path=path)
        self.cases: list[str] = []
        FakePredictor.made.append(self)

    def __call__(self, case: Any, *, ignore_masks: bool, on_event: Callable[[str, dict[str, Any]], None]) -> Any:
        on_event("stage", {"name": "reading t1_pre"})
        if FakePredictor.fails is not None:
            raise FakePredictor.fails
        on_event("progress", {"stage": "encoding tiles", "value": 0.5})
        self.cases.append(case.case_id)
        return self

    values: ClassVar = {"warnings": [{"code": "slide_blurred", "message": "slide: blurred."}]}

    def write(self, out: Path, viewer: Callable[..., bool] | None = None) -> None:
        out.mkdir(parents=True, exist_ok=True)
        FakePredictor.drawn.append(viewer is not None and viewer("the slide", out, "A"))
        (out / "prediction.json").write_text("{}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakePredictor]:
    monkeypatch.setattr(predict, "Predictor", FakePredictor)
    monkeypatch.setattr(viewer, "installed", lambda: False)
    FakePredictor.made, FakePredictor.fails, FakePredictor.drawn = [], None, []
    return FakePredictor


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "case.json").write_text(json.dumps({"case_id": "A", "inputs": {"t1_pre": "x.nrrd", "slide": "s.tif"}}))
    return {"job": "1", "kind": "predict", "case": str(tmp_path / "case.json"), "out": str(tmp_path / "out")}


def test_a_prediction_tells_its_way_and_ends_with_its_file(fake: type[FakePredictor], job: dict[str, Any], tmp_path: Path) -> None:
    found = events({**job, "device": "cpu"})
    assert {event["job"] for event in found} == {"1"}
    stages = ["loading the model", "reading t1_pre", "writing the results"]
    assert [event["name"] for event in found if event["event"] == "stage"] == stages
    values = [event["value"] for event in found if event["event"] == "progress"]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    assert {"event": "warning", "job": "1", "code": "slide_blurred", "message": "slide: blurred."} in found
    result = {"event": "result", "job": "1", "kind": "predict", "prediction": str(tmp_path / "out/prediction.json"), "device": "cpu"}
    assert found[-1] == result
    assert fake.made[0].wanted == "cpu"
    assert fake.made[0].path == card.default()


def test_the_slide_viewer_is_a_stage_of_its_own(fake: type[FakePredictor], job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer, "write_viewer", lambda view, folder, case_id: (view, case_id) == ("the slide", "A"))
    events(job)
    monkeypatch.setattr(viewer, "installed", lambda: True)
    found = events(job)
    events({**job, "viewer": False})
    assert fake.drawn == [False, True, False]
    stages = [(event["name"], event.get("grace_s")) for event in found if event["event"] == "stage"]
    assert stages[-3:] == [("writing the results", None), ("drawing the slide viewer", job_module.ABRUPT_S), ("writing the results", None)]


def test_stages_that_hear_no_cancel_say_so() -> None:
    stream = io.BytesIO()
    made = job_module.Job({"job": "1", "kind": "batch"}, Worker(stream)._send)
    names = ("registering t1_pre", "HN-1: x (2 of 4): registering t1_pre", "loading the model", "making the sample case", "predicting", "")
    for name in names:
        made.on_event("stage", {"name": name})
    told = [json.loads(line[len(worker.PREFIX) :]) for line in stream.getvalue().splitlines()]
    assert [event.get("grace_s") for event in told] == [job_module.ABRUPT_S] * 4 + [None] * 2


def test_the_model_stays_warm_until_something_else_is_wanted(fake: type[FakePredictor], job: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(card.default(), other)
    found = events(job, {**job, "job": "2"}, {**job, "job": "3", "checkpoint": str(other)}, {**job, "job": "4", "checkpoint": str(other)})
    assert [event["job"] for event in found if event["event"] == "result"] == ["1", "2", "3", "4"]
    assert [(made.path.name, len(made.cases)) for made in fake.made] == [(card.default().name, 2), (other.name, 2)]
    again = [event for event in found if event["job"] == "2" and event["event"] == "progress"]
    assert all(event["remaining_s"] is not None for event in again)  # the first job measured how long stages take


def test_a_changed_checkpoint_is_loaded_again(fake: type[FakePredictor], job: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    shutil.copy(card.default(), own)
    made = Worker(io.BytesIO())
    for number in range(2):
        os.utime(own, (1_000_000_000 + number,) * 2)
        made.take(json.dumps({**job, "job": str(number), "checkpoint": str(own)}).encode())
        made._jobs.put(None)
        made.run()
    assert len(fake.made) == 2


@pytest.mark.parametrize(
    ("fails", "code", "details"),
    [
        (BadSlide("slide 's' is white.", "Choose another."), "bad_slide", ""),
        (ValueError("shapes (2,) and (3,)"), "bug", "Traceback"),
        (MemoryError(), "out_of_memory", "Traceback"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"), "out_of_memory", "Traceback"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "out_of_memory",
            "Traceback",
        ),
    ],
    ids=["ours", "bug", "memory", "cuda", "allocator"],
)
def test_every_failure_is_one_error_event(
    fake: type[FakePredictor], job: dict[str, Any], fails: Exception, code: str, details: str
) -> None:
    fake.fails = fails
    error = events(job)[-1]
    assert (error["event"], error["code"]) == ("error", code)
    assert error["message"].endswith(".")
    assert error["advice"]
    assert error["details"].startswith(details)
    assert bool(error["details"]) == bool(details)
    if isinstance(fails, HARM3Error):
        assert error["message"] == fails.message


def test_a_worker_goes_on_after_a_failure(fake: type[FakePredictor], job: dict[str, Any]) -> None:
    found = events({**job, "case": "none.json"}, {**job, "job": "2"})
    assert [(event["event"], event.get("code")) for event in found if event["event"] in ("error", "result")] == [
        ("error", "bad_case"),
        ("result", None),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "dance"}, "'dance'"),
        ({"out": None}, "'out'"),
        ({"case": 3}, "'case'"),
        ({"checkpoint": "none.safetensors"}, "none.safetensors"),
        ({"kind": "batch", "cohort": "none.csv"}, "none.csv"),
        ({"kind": "phantom", "seed": "x"}, "seed"),
        ({"kind": "info", "checkpoint": "none.safetensors"}, "none.safetensors"),
    ],
    ids=str,
)
def test_a_job_that_cannot_be_done_says_why(fake: type[FakePredictor], job: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    error = events({**job, **changes})[-1]
    assert error["event"] == "error"
    assert error["code"] != "bug"
    assert words in error["message"]
    assert fake.made == []


def test_lines_that_are_no_jobs_are_log_text(capsys: pytest.CaptureFixture[str], fake: type[FakePredictor], job: dict[str, Any]) -> None:
    found = events(b"hello?\n", b"[1]\n", b"{}\n", b'{"job": 3}\n', b"\xff\n", b"\n", b'{"cancel": "unknown"}\n', job)
    assert found[-1]["event"] == "result"
    assert capsys.readouterr().err.count("neither a job nor a cancel") == 5


@pytest.mark.parametrize("whole", [True, False])
def test_a_batch_takes_the_warm_model_and_names_its_table(
    fake: type[FakePredictor], job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    (tmp_path / "cohort.csv").write_text("case_id,t1_pre\nA,a.nrrd\nB,b.nrrd\n")

    def work(cases: Any, out: Path, path: Path, **given: Any) -> list[str]:
        assert [case.case_id for case in cases] == ["A", "B"]
        assert (path, given["predictor"], given["ignore_masks"]) == (card.default(), fake.made[0], True)
        given["on_event"]("case", {"case_id": "A", "row": {"probability": 0.5}})
        given["on_event"]("progress", {"value": 0.5, "remaining_s": 3.0})
        if whole:
            out.mkdir()
            (out / "predictions.csv").write_text("")
        return ["B: is not there."]

    monkeypatch.setattr(predict_cohort, "predict_cohort", work)
    batch = {"job": "2", "kind": "batch", "cohort": str(tmp_path / "cohort.csv"), "out": str(tmp_path / "batch"), "ignore_masks": True}
    found = [event for event in events(job, batch) if event["job"] == "2"]
    assert len(fake.made) == 1
    assert {"event": "case", "job": "2", "case_id": "A", "row": {"probability": 0.5}} in found
    assert {"event": "progress", "job": "2", "value": 0.5, "remaining_s": 3.0} in found
    table = str(tmp_path / "batch/predictions.csv") if whole else None  # there is none when no case could be predicted
    assert (found[-1]["predictions"], found[-1]["failures"]) == (table, ["B: is not there."])


def test_the_way_goes_on_by_the_measured_share(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(worker.time, "monotonic", lambda: now[0])
    way = job_module.Way({"reading": 2.0, "encoding tiles": 2.0, "predicting": 4.0}, known=False)
    way.enter("reading")
    assert way.look() == {"value": 0.0, "remaining_s": None}
    now[0] = 2.0
    assert way.look() == {"value": pytest.approx(2 / 8), "remaining_s": None}
    way.enter("encoding tiles", 0.1)  # the first word of this stage: how long it takes is not yet known
    assert way.look() == {"value": pytest.approx(2 / 7.8), "remaining_s": None}
    now[0] = 12.0
    way.enter("encoding tiles", 0.3)  # 0.2 took 10 s: 35 s to go, and 4 s of predicting
    assert way.look() == {"value": pytest.approx(2 / 7.8), "remaining_s": pytest.approx(39)}  # the bar never goes back
    now[0] = 22.0
    assert way.look()["remaining_s"] == pytest.approx(29)
    way.enter("encoding tiles", 1.0)
    assert way.look() == {"value": pytest.approx(22 / 26), "remaining_s": pytest.approx(4)}
    way.enter("predicting")
    now[0] = 30.0  # longer than expected
    assert way.look() == {"value": pytest.approx(22 / 26), "remaining_s": None}
    assert way.taken["encoding tiles"] == 20


def test_a_waiting_job_is_cancelled_and_the_next_is_not(fake: type[FakePredictor], job: dict[str, Any]) -> None:
    found = events(job, {**job, "job": "2"}, b'{"cancel": "1"}', {**job, "job": "3"})
    ended = [(event["job"], event["event"], event.get("code")) for event in found if event["event"] in ("error", "result")]
    assert ended == [("1", "error", "cancelled"), ("2", "result", None), ("3", "result", None)]


def test_closing_cancels_everything(fake: type[FakePredictor], job: dict[str, Any]) -> None:
    found = events(job, {**job, "job": "2"}, between=Worker.close)
    assert [event["code"] for event in found if event["event"] == "error"] == ["cancelled"] * 2
    assert fake.made == []


def test_a_listener_that_is_gone_ends_the_work(fake: type[FakePredictor], job: dict[str, Any]) -> None:
    class Gone(io.BytesIO):
        def write(self, data: Any) -> int:
            raise BrokenPipeError

    made = Worker(Gone())
    made.take(json.dumps(job).encode())
    made.run()  # comes back, though nobody said so
    assert fake.made == []


def test_a_running_job_gives_signs_of_life(fake: type[FakePredictor], job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "BEAT_S", 0.01)

    def slowly(self: FakePredictor, path: Path, device: str) -> None:
        time.sleep(0.3)

    monkeypatch.setattr(fake, "__init__", slowly)
    monkeypatch.setattr(fake, "cases", [], raising=False)
    made: list[Worker] = []

    def start(worker: Worker) -> None:
        made.append(worker)
        threading.Thread(target=worker.beat, daemon=True).start()

    found = events(job, between=start)
    made[0]._closed.set()
    start_of_reading = next(k for k, event in enumerate(found) if event.get("name") == "reading t1_pre")
    loading = [event["value"] for event in found[:start_of_reading] if event["event"] == "progress"]
    assert len(loading) > 5
    assert loading[-1] > loading[0]


def test_info_gives_the_card_and_the_hash(tiny_checkpoint: Path) -> None:
    result = events({"job": "1", "kind": "info", "checkpoint": str(tiny_checkpoint)})[-1]
    assert result["card"] == card.read_header(tiny_checkpoint)
    assert len(result["sha256"]) == 64


def test_check_tells_what_is_there_and_what_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)  # as a library that is installed and does not load
    result = events({"job": "1", "kind": "check"})[-1]
    assert result["event"] == "result"
    assert result["devices"][0] == "cpu"
    assert result["torch"].split("+")[0].count(".") == 2
    assert result["memory_gb"] > 0.1
    assert result["openslide"] is None
    assert len(result["problems"]) == 1
    assert "openslide" in result["problems"][0]


class RealTransport:
    """A worker as a child process; its output waits in a queue for the main thread."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def start(self, client: object) -> None:
        self.client = client
        env = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
        code = f"import sys,runpy; sys.path.insert(0, {str(ROOT)!a}); sys.argv=['HARM3Logic','worker']; "
        command = [sys.executable, "-u", "-c", code + "runpy.run_module('HARM3Logic', run_name='__main__')"]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        for pipe, feed in ((self.child.stdout, client.feedOutput), (self.child.stderr, client.feedErrors)):
            threading.Thread(target=self._read, args=(pipe, feed), daemon=True).start()

    def _read(self, pipe: object, feed: Callable[[bytes], None]) -> None:
        while data := pipe.read1(4096):
            self.waiting.put(lambda data=data: feed(data))
        if pipe is self.child.stdout:
            self.waiting.put(lambda: self.client.finished(self.child.wait(), False))

    def write(self, data: bytes) -> None:
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def closeInput(self) -> None:
        self.child.stdin.close()

    def killTree(self, pid: int | None) -> None:
        if self.child.poll() is None:
            self.child.kill() if pid is None else os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def real() -> Iterator[tuple[WorkerClient, list[RealTransport]]]:
    made: list[RealTransport] = []

    def make() -> RealTransport:
        made.append(RealTransport())
        return made[-1]

    client = WorkerClient(make)
    yield client, made
    client.stop()
    for transport in made:
        transport.child.wait(10)


def run_until(client: WorkerClient, made: list[RealTransport], done: Callable[[], bool], limit_s: float = 120) -> None:
    """What Slicer's event loop does."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, (client.stage, client.log)
        client.tick()
        try:
            made[-1].waiting.get(timeout=0.05)()
        except queue.Empty:
            continue


def members(group: int) -> list[int]:
    """Processes of a process group that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has just ended
            continue
        if int(own) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_real_worker_predicts_is_cancelled_and_leaves_nothing(
    real: tuple[WorkerClient, list[RealTransport]], phantom: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    client, made = real
    outcomes: list[Outcome] = []
    stages: list[str] = []
    job = {
        "kind": "predict",
        "case": phantom.parent / "PH-11-0000/case.json",
        "out": tmp_path / "Müller 患者",
        "checkpoint": tiny_checkpoint,
        "device": "cpu",
    }

    def listen(event: dict) -> None:
        if event["event"] == "stage":
            stages.append(event["name"])

    client.submit(job, outcomes.append, listen)
    run_until(client, made, lambda: bool(outcomes))
    assert outcomes[0].ok, outcomes[0]
    values = json.loads(Path(outcomes[0].values["prediction"]).read_text(encoding="utf-8"))
    assert values["case_id"] == "PH-11-0000"
    assert next(stage for stage in stages if stage.startswith("reading")) == "reading the slide"
    assert client.hello["pid"] == made[0].child.pid
    group = made[0].child.pid
    assert members(group) == [group]  # a session of its own

    stages.clear()
    client.submit({**job, "out": tmp_path / "second"}, outcomes.append, listen)
    run_until(client, made, lambda: "reading t2_pre" in stages)
    client.cancel()
    asked = time.monotonic()
    run_until(client, made, lambda: len(outcomes) == 2)
    assert time.monotonic() - asked < 4
    assert outcomes[1].code == "cancelled"
    assert not (tmp_path / "second/prediction.json").exists()
    assert "loading the model" not in stages  # the warm model was taken

    if client.alive:  # it answered and was not killed
        client.submit({**job, "out": tmp_path / "third"}, outcomes.append, listen)
        run_until(client, made, lambda: stages.count("reading t1_pre") == 2)
        made[-1].closeInput()  # as when Slicer dies in mid-job
        made[-1].child.wait(5)
    assert members(group) == []
