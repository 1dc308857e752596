"""Prints how long each action of the Slicer module holds the event loop at most; the goal is below 100 ms.

python Testing/benchmarks/panel.py [--size 512 512 60]

Volumes and heatmaps have the given size. The host's window draws nothing: what counts here is the module's own work. "CPU" is this
thread's time between two turns of the event loop, "wall" the clock's, which other programs lengthen. Actions that end in one turn show
how long their slot took.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "HARM3Slicer"), str(ROOT)]

import slicer  # noqa: E402
from module_host import Opened, opened  # noqa: E402
from prediction_folder import write_nrrd  # noqa: E402

MRI = ("t1_pre", "t2_pre", "t1_post", "t2_post")
MEMBERS = ("t1Pre", "t2Pre", "t1Post", "t2Post")
GOAL_MS = 100


class Gaps:
    """The turns of the event loop as a timer of 1 ms sees them."""

    def __init__(self, it: Opened) -> None:
        import qt

        self.it, self.ticks = it, [(0.0, 0.0)]
        self.timer = qt.QTimer()
        self.timer.connect("timeout()", self.tick)
        self.worst: list[float] = []

    def tick(self) -> None:
        self.ticks.append((time.thread_time(), time.perf_counter()))

    def measure(self, name: str, action: Callable[[], Any], until: Callable[[], bool] = lambda: True) -> None:
        """Do something and print the longest gap until it has settled."""
        self.it.host.process_events(30)
        self.timer.start(1)
        self.it.host.process_events(5)
        self.ticks = []
        self.tick()
        start = time.perf_counter()
        action()
        self.tick()
        self.it.host.wait(until, 120)
        self.it.idle(120)
        self.it.host.process_events(30)
        took = time.perf_counter() - start
        self.timer.stop()
        cpu, wall = (1000 * max(b[i] - a[i] for a, b in pairwise(self.ticks)) for i in (0, 1))
        self.worst.append(cpu)
        print(
            f"{name:28} {cpu:7.0f} ms CPU {wall:7.0f} ms wall, done after {took:5.2f} s{'  <-- too long' if cpu > GOAL_MS else ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 60), metavar=("I", "J", "K"))
    size = tuple(parser.parse_args().size)
    with tempfile.TemporaryDirectory() as folder, loaded(Path(folder), size) as it:
        gaps, ui, panel = Gaps(it), it.ui, it.widget.panel
        display = lambda: panel.views.display  # noqa: E731
        gaps.measure("first layout (Slicer's part)", lambda: slicer.app.layoutManager().setLayout(571))
        gaps.worst.clear()  # Slicer makes the views of a layout once, in one go
        case = write_case(Path(folder), size)
        gaps.measure("load a case (Slicer's part)", lambda: it.logic.work.loadCase(case, wait=False))
        gaps.worst.clear()
        for member, node in zip(MEMBERS, it.large, strict=True):
            setattr(it.parameters, member, node)
        gaps.measure("first Predict", ui.predictButton.click, lambda: display() is not None)
        gaps.measure("second Predict", ui.predictButton.click)
        gaps.measure("opacity", lambda: setattr(ui.opacitySlider, "value", 0.35))
        gaps.measure("threshold", lambda: setattr(ui.thresholdSlider, "value", 0.5))
        gaps.measure("threshold, 20 slider events", lambda: [setattr(ui.thresholdSlider, "value", v / 20) for v in range(20)])
        gaps.measure("colours", lambda: setattr(ui.colorComboBox, "currentIndex", 3))
        gaps.measure("own scale", ui.jointScaleCheckBox.click)
        gaps.measure("outlines on", ui.outlineCheckBox.click)
        gaps.measure("joint scale with outlines", ui.jointScaleCheckBox.click)
        gaps.measure("outlines off", ui.outlineCheckBox.click)
        gaps.measure("outlines on again", ui.outlineCheckBox.click)
        gaps.measure("blink", ui.blinkButton.click)
        gaps.measure("previous layout", ui.previousLayoutButton.click)
        gaps.measure("show the views", ui.layoutButton.click)
        gaps.measure("leave the module", it.leave)
        gaps.measure("enter the module", lambda: it.host.enter("HARM3Slicer"))
        gaps.measure("remove results", ui.removeResultsButton.click, lambda: it.logic.work.run is None)
        print(f"longest: {max(gaps.worst):.0f} ms; goal: {GOAL_MS} ms")


@contextmanager
def loaded(folder: Path, size: tuple[int, ...]) -> Iterator[Opened]:
    """The module with four volumes chosen, and a worker that answers at once with a prediction that lies ready."""
    with opened() as it:
        from HARM3SlicerLib.selftest import PREDICTION
        from HARM3SlicerLib.volumes import addVolume

        matrix = np.diag([0.5, 0.5, 3.0, 1.0])
        k, j, i = np.ogrid[: size[2], : size[1], : size[0]]
        distance = sum((s * (axis - n / 2)) ** 2 for axis, n, s in zip((k, j, i), size[::-1], (3.0, 0.5, 0.5), strict=True))
        heat = np.clip(np.exp(-distance / (2 * 30.0**2)) - 0.05, 0, None).astype(np.float32) / np.float32(0.95)
        write_nrrd(folder / "heat.nrrd", heat, matrix)
        values = {**PREDICTION, "case_id": "large", "heat": {name: {"max": 1.0, "share_in_tumour": 0.7} for name in MRI}}
        it.large = [addVolume(f"large {name}", (1000 * heat + n).astype(np.int16), matrix) for n, name in enumerate(MRI)]

        def answer(job: dict[str, Any], say: Any) -> None:
            out = Path(job["out"])
            out.mkdir(parents=True, exist_ok=True)
            for name in MRI:
                os.link(folder / "heat.nrrd", out / f"heatmap_{name}.nrrd")
            (out / "prediction.json").write_text(json.dumps(values), encoding="utf-8")
            say(event="result", job=job["job"], kind="predict", prediction=str(out / "prediction.json"))

        it.answers["predict"] = answer
        yield it


def write_case(folder: Path, size: tuple[int, ...]) -> Path:
    """A case of one NIfTI volume, compressed as hospitals' are."""
    import SimpleITK as sitk

    from HARM3Logic.case import Case

    noise = np.random.default_rng(0).integers(0, 200, size[::-1], dtype=np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(folder / "t1.nii.gz"), useCompression=True)
    Case("nifti", {"t1_pre": (folder / "t1.nii.gz",)}).write(folder / "case.json")
    return folder / "case.json"


if __name__ == "__main__":
    main()
