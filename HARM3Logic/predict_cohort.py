"""Every case of a cohort to its own folder and one table; a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from HARM3Logic import bag, checkpoint, volume
from HARM3Logic.case import MRI, Case
from HARM3Logic.cohort import write_cohort
from HARM3Logic.device import choose
from HARM3Logic.errors import BadOption, Cancelled, HARM3Error, OutOfMemory
from HARM3Logic.predict import Predictor, keeping_mask, writable
from HARM3Logic.prepare import OnEvent, Preprocessing, silent
from HARM3Logic.progress import progress
from HARM3Logic.viewer import write_viewer
from HARM3Logic.viewer_later import add_viewer

MOST_WORKERS = 8  # ours: each holds a model and an encoder, about 1 GB
_predictor: Predictor | None = None  # one per worker process


def predict_cohort(
    cases: Sequence[Case],
    out: Path,
    checkpoint_path: Path | None = None,
    *,
    device: str = "auto",
    ignore_masks: bool = False,
    workers: int | None = None,
    viewer: bool = False,
    predictor: Predictor | None = None,
    on_event: OnEvent = silent,
) -> list[str]:
    """Predict all cases; `predictions.csv` holds one row for each that could be predicted, `failures.csv` the others.

    A case whose folder holds a whole prediction of the same checkpoint and options is not predicted again.

    Args:
        workers: processes; None takes one per core on a CPU (at most 8) and one on a GPU.
        viewer: write `slide.html` too; for finished cases it is made from what is there.
        predictor: a warm one of this checkpoint, which then does all the work in this process.
        on_event: told each `case` (`case_id` with its `row`, or the `reason` it has none), the overall `progress`, and the
            stages within a case where `predictor` is given; and each `warning` (`code`, `message`) of a viewer that could not be made.

    Returns:
        The reasons of the failures.

    Raises:
        BadOption: the folder or the device cannot be used.
        BadCheckpoint: the checkpoint cannot be used.
        Cancelled: raised by `on_event`; what was finished is kept.
    """
    writable(out / "cases")
    path = checkpoint_path or checkpoint.default()
    card = checkpoint.read_card(path)  # a bad checkpoint is told once, before any process starts
    digest = checkpoint.file_sha256(path)
    one = choose(device).type != "cpu"
    book = _Book(cases, out, on_event)
    on_event("stage", {"name": "looking for finished cases"})
    todo = []
    for case in cases:
        done = finished(case, out / "cases" / case.case_id, digest, ignore_masks)
        if done is None:
            todo.append(case)
        else:
            book.enter(case, done)
            if viewer and done.get("slide"):
                _view_later(case, out, card.preprocessing, on_event)
            book.tell(case)
    book.write()
    results: Iterator[dict[str, Any] | str]
    if predictor is not None:
        predict = partial(_predict_one, out=out, ignore_masks=ignore_masks, viewer=viewer, predictor=predictor)
        results = (predict(case, on_event=partial(book.inside, case)) for case in todo)
    else:
        count = workers or (1 if one else min(os.cpu_count() or 1, MOST_WORKERS))
        work = partial(_predict_one, out=out, ignore_masks=ignore_masks, viewer=viewer)
        results = _each(work, todo, min(count, len(todo)), (path, device, any(map(bag.encodes, todo))))
    book.begin()
    known = len(cases) - len(todo)
    for case, result in progress(zip(todo, results, strict=True), "predicting", len(cases), initial=known, unit="case"):
        book.enter(case, result)
        book.write()
        book.tell(case)  # after writing: the listener may stop the work
    return [f"{name}: {failure['reason']}" for name, failure in book.failures.items()]


@dataclass
class _Book:
    """What has become of each case, on disk and told to the listener."""

    cases: Sequence[Case]
    out: Path
    on_event: OnEvent
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    started: float = 0.0
    before: int = 0

    def begin(self) -> None:
        """From here on cases take time."""
        self.started, self.before = time.monotonic(), len(self.rows)

    def enter(self, case: Case, result: dict[str, Any] | str) -> None:
        if isinstance(result, str):
            self.failures[case.case_id] = {"case_id": case.case_id, "reason": result}
        else:
            self.rows[case.case_id] = _row(case, result)

    def tell(self, case: Case) -> None:
        failure = self.failures.get(case.case_id, {"case_id": case.case_id})
        self.on_event("case", {**failure, "row": self.rows.get(case.case_id)})
        self.progress()

    def inside(self, case: Case, event: str, values: dict[str, Any]) -> None:
        """Pass on what goes on within a case."""
        if event == "stage":
            number = len(self.rows) + len(self.failures) + 1
            self.on_event("stage", {"name": f"{case.case_id} ({number} of {len(self.cases)}): {values['name']}"})
        elif event == "progress":
            self.progress()  # of one case it would run back and forth

    def progress(self) -> None:
        known = len(self.rows) + len(self.failures)
        new, left = known - self.before, len(self.cases) - known
        seconds = (time.monotonic() - self.started) / new * left if self.started and new else None
        self.on_event("progress", {"value": known / len(self.cases), "remaining_s": seconds})

    def write(self) -> None:
        ordered = [self.rows[case.case_id] for case in self.cases if case.case_id in self.rows]
        for name, table in (("predictions.csv", ordered), ("failures.csv", list(self.failures.values()))):
            if table:
                write_cohort(self.out / name, table)
            else:
                (self.out / name).unlink(missing_ok=True)


def finished(case: Case, folder: Path, checkpoint_sha256: str, ignore_masks: bool) -> dict[str, Any] | None:
    """The prediction in a folder, if it is whole and was made by this checkpoint with these options from these volumes."""
    path = folder / "prediction.json"  # written last and renamed: it is whole or absent
    if not path.is_file():
        return None
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if values.get("ignore_masks") != ignore_masks or values.get("model", {}).get("checkpoint_sha256") != checkpoint_sha256:
        return None
    used = {name: given["sha256"] for name, given in values["inputs"].items() if given["used"]}
    read = [name for name in (*MRI, "ct") if name in case.inputs and name in values["inputs"]]
    return values if all(used.get(name) == volume.sha256(case.inputs[name][0]) for name in read) else None


def _each(work: Any, todo: Sequence[Case], count: int, setup: tuple[Path, str, bool]) -> Iterator[dict[str, Any] | str]:
    if count <= 1:
        if todo:
            _start(*setup, threads=None)
        yield from map(work, todo)
        return
    # spawn: a forked copy of torch's or ITK's threads can hang
    with ProcessPoolExecutor(count, get_context("spawn"), _start, (*setup, max(1, (os.cpu_count() or 1) // count))) as pool:
        try:
            yield from pool.map(work, todo)
        except BrokenProcessPool as error:
            raise OutOfMemory(
                f"one of {count} processes that predict was ended by the system, most likely for want of memory.",
                "Start again with fewer --workers; finished cases are kept.",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: finish the cases at work, start no other
            raise


def _view_later(case: Case, out: Path, settings: Preprocessing, on_event: OnEvent) -> None:
    try:
        on_event("stage", {"name": f"{case.case_id}: the slide viewer"})
        add_viewer(case, out / "cases" / case.case_id, settings.tissue, settings.tiles)
    except (BadOption, Cancelled):  # no library or no room: so it is for all
        raise
    except HARM3Error as error:
        on_event("warning", {"code": "viewer", "message": f"{case.case_id}: no slide.html: {error}"})


def _start(path: Path, device: str, encoding: bool, threads: int | None) -> None:
    global _predictor
    if threads:
        torch.set_num_threads(threads)
    _predictor = Predictor(path, device, encoding=encoding)


def _predict_one(
    case: Case, *, out: Path, ignore_masks: bool, viewer: bool = False, predictor: Predictor | None = None, on_event: OnEvent = silent
) -> dict[str, Any] | str:
    predictor = predictor or _predictor
    assert predictor is not None
    try:
        with keeping_mask(writable(out / "cases" / case.case_id)):
            prediction = predictor(case, ignore_masks=ignore_masks, on_event=on_event)
        prediction.write(out / "cases" / case.case_id, write_viewer if viewer else None)
    except Cancelled:
        raise
    except HARM3Error as error:
        return str(error)
    return dict(prediction.values)


def _row(case: Case, values: dict[str, Any]) -> dict[str, Any]:
    low, high = values["interval"]
    return {
        "case_id": case.case_id,
        "centre": case.centre,
        "fold": "" if case.fold is None else case.fold,
        "label": "" if case.label is None else case.label,
        "probability": values["probability"],
        "low": low,
        "high": high,
        "decision": values["decision"],
    }
