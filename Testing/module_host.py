"""The module opened in the stand-in host, with fake workers, for the tests of its panel and its logic."""

import json
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer
import slicer_host

ROOT = Path(__file__).resolve().parents[1]
MODULE = ROOT / "HARM3Slicer" / "HARM3Slicer.py"


class Opened:
    """The module in its host.

    `workers` are the fake workers that were started; `answers` is what the next ones do instead of the usual.
    """

    def __init__(self, host: Any, loaded: Any) -> None:
        self.host = host
        self.module, self.widget, self.logic = loaded
        self.workers: list[Any] = []
        self.answers: dict[str, Callable[..., None]] = {}
        self.use_fake_workers(self.logic)

    @property
    def ui(self) -> Any:
        return self.widget.ui

    @property
    def parameters(self) -> Any:
        return self.logic.getParameterNode()

    @property
    def runner(self) -> Any:
        return self.logic.work.runner

    def use_fake_workers(self, logic: Any) -> None:
        logic.work.runner.client.link.makeTransport = self.make_worker
        logic.work.checkPackages = False

    def make_worker(self) -> Any:
        from HARM3SlicerLib.selftest import FakeWorker

        self.workers.append(FakeWorker(self.answers))
        return self.workers[-1]

    def idle(self, seconds: float = 10) -> None:
        """Wait until nothing runs any more."""
        self.host.wait(lambda: not self.runner.busy, seconds)
        self.host.process_events(20)

    def load_sample(self, folder: Path, names: tuple[str, ...] = ()) -> dict[str, Any]:
        """Small volumes as input of the panel."""
        from HARM3SlicerLib.selftest import makeCase

        makeCase({"job": "", "out": str(folder)}, lambda **event: None)
        return self.logic.work.loadCase(folder / "case.json", wait=True)

    def leave(self) -> None:
        """The user opens another module."""
        slicer.app.moduleManager().module("HARM3Slicer").widgetRepresentation().exit()

    def predict(self) -> None:
        """Press Predict and wait for the result."""
        self.ui.predictButton.click()
        self.idle()
        assert self.runner.failure is None, self.runner.failure


@contextmanager
def opened(**options: Any) -> Iterator[Opened]:
    """The module, entered by the user; at the end nothing may have failed in a slot.

    Args:
        options: of `slicer_host.install`.
    """
    host = slicer_host.install(**options)
    try:
        it = Opened(host, host.load_module(MODULE))
        slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)  # Slicer has it from the start
        host.enter("HARM3Slicer")
        host.process_events(20)
        yield it
        host.process_events(20)
        assert host.slot_errors == [], host.report()
        assert host.qt_messages == []
        assert host.dialogs == []
    finally:
        host.close()


def write_checkpoint(path: Path, **card: Any) -> Path:
    """The head of a checkpoint file, without weights."""
    values = {"model": "any", "config": {}, "preprocessing": {}, "inputs": [], "intended_use": "Tests.", "training": {}, **card}
    metadata = {"harm3": json.dumps({"format": 1, "card": values, "familiarity": {}})}
    head = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    return path


def node_ids() -> set[str]:
    scene = slicer.mrmlScene
    return {scene.GetNthNode(i).GetID() for i in range(scene.GetNumberOfNodes())}


def never(job: dict[str, Any], say: Any) -> None:
    """A worker that does not answer."""
