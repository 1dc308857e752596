"""The module's test inside Slicer: the sample case through a fake worker, and a real prediction where torch is installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer

from HARM3Logic.case import MRI, Case
from HARM3SlicerLib import nrrd
from HARM3SlicerLib.protocol import PREFIX, PROTOCOL
from HARM3SlicerLib.steps import finish

SHAPE, SPACING = (12, 32, 32), (4.0, 2.0, 2.0)  # k, j, i
PEAK = (6, 12, 20)  # voxel with the largest heat
PREDICTION: dict[str, Any] = {
    "probability": 0.62,
    "interval": [0.41, 0.8],
    "decision": "responder",
    "threshold": 0.44,
    "uncertain_zone": [0.34, 0.54],
    "logit": 0.7,
    "contributions": {"t1_pre": 0.02, "t2_pre": -0.03, "t1_post": 0.14, "t2_post": 0.06},
    "tiles": [],
    "registration": {},
    "warnings": [{"code": "fake", "message": "these numbers are made up for a test."}],
    "out_of_distribution": False,
    "ignore_masks": False,
    "created": "2026-01-01T12:00+00:00",
    "model": {"name": "fake", "checkpoint_sha256": "0" * 64, "version": "0", "synthetic": True},
    "device": "cpu",
    "precision": "float32",
}


class FakeWorker:
    """A transport that answers as a worker does, within this process.

    Args:
        answers: job kind to what to do instead of the usual answer; gets the job and `say`, which sends an event. The kind "cancel"
            answers a cancel line.
    """

    def __init__(self, answers: dict[str, Callable[[dict[str, Any], Callable[..., None]], None]] | None = None) -> None:
        self.answers = {"phantom": makeCase, "predict": makePrediction, "check": checkComputer, "cancel": cancelled, **(answers or {})}
        self.client: Any = None
        self.jobs: list[dict[str, Any]] = []
        self.killed = False

    def start(self, client: Any) -> None:
        self.client = client
        qt.QTimer.singleShot(0, self.hello)

    def hello(self) -> None:
        self.say(event="hello", pid=os.getpid() + 1, version="0", protocol=PROTOCOL, device="cpu")

    def write(self, data: bytes) -> None:
        for line in data.splitlines():
            job = json.loads(line)
            if "cancel" not in job:
                self.jobs.append(job)
            kind = "cancel" if "cancel" in job else job["kind"]
            qt.QTimer.singleShot(0, lambda kind=kind, job=job: self.answers[kind](job, self.say))

    def say(self, **event: Any) -> None:
        if self.client is not None:
            self.client.feedOutput(PREFIX + json.dumps(event).encode("ascii") + b"\n")

    def closeInput(self) -> None:
        self.client = None

    def killTree(self, pid: int | None) -> None:
        self.killed, self.client = True, None


def cancelled(line: dict[str, Any], say: Callable[..., None]) -> None:
    say(event="error", job=line["cancel"], code="cancelled", message="Cancelled.", advice="")


def checkComputer(job: dict[str, Any], say: Callable[..., None]) -> None:
    found = {"python": "3.12", "torch": "2.9", "cuda": None, "devices": ["cpu"], "memory_gb": 16, "openslide": None}
    say(event="result", job=job["job"], kind="check", **found)


def makeCase(job: dict[str, Any], say: Callable[..., None]) -> None:
    """Four small volumes with a sphere, and their case.json."""
    folder = Path(job["out"])
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(MRI):
        _write(folder / f"{name}.nrrd", (100 * _ball(9.0 - number) + 20).astype(np.int16))
    Case("sample", {name: (folder / f"{name}.nrrd",) for name in MRI}).write(folder / "case.json")
    say(event="result", job=job["job"], kind="phantom", case=str(folder / "case.json"))


def makePrediction(job: dict[str, Any], say: Callable[..., None]) -> None:
    """A folder as a prediction leaves it: one heatmap on the grid of each volume of the case, and made up numbers."""
    case, out = Case.read(job["case"]), Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    say(event="stage", job=job["job"], name="predicting")
    say(event="progress", job=job["job"], value=0.5, remaining_s=2.0)
    names = [name for name in (*MRI, "ct") if name in case.inputs]
    for number, name in enumerate(names):
        array, matrix = finish(nrrd.readSteps(case.inputs[name][0]))
        heat = _ball(7.0, array.shape) * (1 - 0.2 * number)
        for _ in nrrd.writeSteps(out / f"heatmap_{name}.nrrd", heat.astype(np.float32), matrix):
            pass
    values = {**PREDICTION, "case_id": case.case_id, "heat": {name: {"max": 1.0, "share_in_tumour": 0.7} for name in names}}
    values["inputs"] = {name: {"used": True, "sha256": "", "grid": None} for name in names}
    (out / "report.html").write_text("<p>made up</p>", encoding="utf-8")
    (out / "prediction.json").write_text(json.dumps(values), encoding="utf-8")
    say(event="result", job=job["job"], kind="predict", prediction=str(out / "prediction.json"))


def fakePrediction(test: Any, makeLogic: Callable[..., Any]) -> None:
    """Sample case, prediction and removal through the whole module, without torch."""
    test.delayDisplay("Sample case through a fake worker")
    workers: list[FakeWorker] = []

    def makeTransport() -> FakeWorker:
        workers.append(FakeWorker())
        return workers[-1]

    logic = makeLogic(makeTransport)
    logic.work.checkPackages = False
    try:
        inputs = _sample(logic)
        before = _nodes()
        values = logic.predict(inputs, caseId="self test")
        test.assertEqual(values["probability"], PREDICTION["probability"])
        for name in MRI:
            heat = slicer.util.getNode(f"HARM3 self test heatmap {name}")
            array = slicer.util.arrayFromVolume(heat)
            test.assertEqual(tuple(int(i) for i in np.unravel_index(array.argmax(), array.shape)), PEAK)
        test.assertGreater(slicer.util.getNode("HARM3 self test results").GetNumberOfRows(), 5)
        logic.predict(inputs, caseId="self test")
        test.assertEqual(len(workers), 1)  # warm: one process for all jobs
        logic.work.removeRun()
        test.assertEqual(_nodes() - before, set())
    finally:
        logic.close()


def realPrediction(test: Any, makeLogic: Callable[..., Any]) -> None:
    """The sample case through the real worker; nothing where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        test.delayDisplay("torch is not installed: no real prediction")
        return
    test.delayDisplay("A real prediction")
    logic = makeLogic()
    try:
        values = logic.predict(logic.loadSample(), caseId="real test", device="cpu")
        test.assertTrue(0 <= values["interval"][0] <= values["probability"] <= values["interval"][1] <= 1)
        test.assertIsNotNone(slicer.util.getNode("HARM3 real test heatmap t1_pre"))
    finally:
        logic.close()


def _sample(logic: Any) -> dict[str, Any]:
    """The fake sample, in a folder of its own, so that no real one is taken for it."""
    from HARM3SlicerLib.choice import temporaryFolder

    folder, told = temporaryFolder(), []
    makeCase({"job": "", "out": str(folder)}, lambda **event: told.append(event))
    return dict(logic.work.loadCase(folder / "case.json", wait=True))


def _nodes() -> set[str]:
    """IDs of all nodes but the subject hierarchy, which is made when it is first asked for."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    return {node.GetID() for node in nodes if not node.IsA("vtkMRMLSubjectHierarchyNode")}


def _ball(radius: float, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    square = sum((s * (axis - c)) ** 2 for s, axis, c in zip(SPACING, (k, j, i), PEAK))  # noqa: B905
    return np.exp(-square / (2 * radius**2))


def _write(path: Path, array: np.ndarray) -> None:
    matrix = np.diag([*SPACING[::-1], 1.0])
    matrix[:3, 3] = -30, -30, -20
    for _ in nrrd.writeSteps(path, array, matrix):
        pass
