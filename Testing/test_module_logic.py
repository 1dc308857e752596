"""The module's logic from Python, without any widget: inputs as nodes and paths, waiting, batches, errors."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
from module_host import Opened, opened, write_checkpoint  # noqa: E402

from HARM3Logic.errors import BadCase, BadOption, BadSlide, Cancelled, MissingInput  # noqa: E402


@pytest.fixture
def it() -> Iterator[Opened]:
    with opened(main_window=False) as it:
        it.leave()
        yield it


def batch(job: dict[str, Any], say: Any) -> None:
    """A worker that predicts every row but the last."""
    with open(job["cohort"], newline="") as file:
        rows = list(csv.DictReader(file))
    done = [
        {"case_id": row["case_id"], "probability": 0.3, "low": 0.2, "high": 0.5, "decision": "uncertain", "label": 1} for row in rows[:-1]
    ]
    for row in done:
        say(event="case", job=job["job"], case_id=row["case_id"], row=row)
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(done[0]))
        writer.writeheader()
        writer.writerows(done)
    say(
        event="result",
        job=job["job"],
        kind="batch",
        predictions=str(out / "predictions.csv"),
        failures=[f"{rows[-1]['case_id']}: no slide"],
    )


def cohort(folder: Path, count: int = 4) -> Path:
    from HARM3SlicerLib import selftest

    lines = ["case_id,patient_id,centre,t1_pre,t2_pre,t1_post,t2_post,label"]
    for i in range(count):
        selftest.makeCase({"job": "", "out": str(folder / f"c{i}")}, lambda **event: None)
        lines.append(f"c{i},p{i},x," + ",".join(f"c{i}/{name}.nrrd" for name in ("t1_pre", "t2_pre", "t1_post", "t2_post")) + ",1")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    return folder / "cohort.csv"


def test_predict_from_nodes_and_paths(it: Opened, tmp_path: Path) -> None:
    loaded = it.load_sample(tmp_path / "Müller 患者")
    inputs = {"t1_pre": loaded["t1_pre"], "t2_post": tmp_path / "Müller 患者" / "t2_post.nrrd"}
    values = it.logic.predict(inputs, output=tmp_path / "out put", caseId="é 1", device="cpu")
    assert values["case_id"] == "é 1"
    assert values["folder"] == str(tmp_path / "out put")
    assert set(values["heat"]) == {"t1_pre", "t2_post"}
    assert (tmp_path / "out put" / "prediction.json").is_file()
    assert it.workers[0].jobs[0]["device"] == "cpu"
    assert slicer.util.getNode("HARM3 é 1 heatmap t2_post") is not None


def test_the_exported_volumes_are_deleted_afterwards(it: Opened, tmp_path: Path) -> None:
    it.logic.predict(it.load_sample(tmp_path))
    assert not Path(it.workers[0].jobs[0]["case"]).parent.exists()


def test_not_waiting_returns_at_once(it: Opened, tmp_path: Path) -> None:
    loaded = it.load_sample(tmp_path)
    assert it.logic.predict(loaded, wait=False) == {}
    assert it.runner.busy
    with pytest.raises(BadOption, match="one at a time"):
        it.logic.predict(loaded)
    it.idle()
    assert json.loads(it.parameters.result)["probability"] == 0.62


@pytest.mark.parametrize(("inputs", "error"), [
    ({"t1_prae": "x.nrrd"}, BadCase),
    ({"t1_pre": 5}, BadCase),
    ({}, MissingInput),
    ({"tumour_pre": "x.nrrd"}, MissingInput),
])  # fmt: skip
def test_wrong_inputs_are_told_before_anything_starts(it: Opened, inputs: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        it.logic.predict(inputs)
    assert not it.runner.busy
    assert it.workers == []


def test_a_bad_case_name_is_told(it: Opened, tmp_path: Path) -> None:
    with pytest.raises(BadCase, match="names a folder"):
        it.logic.predict(it.load_sample(tmp_path), caseId="a/b")


def test_what_the_checkpoint_needs_is_asked_for(it: Opened, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", inputs=["t1_pre", "slide"], config={"needs": ["slide"]})
    loaded = it.load_sample(tmp_path)
    with pytest.raises(MissingInput, match="slide"):
        it.logic.predict({"t1_pre": loaded["t1_pre"]}, checkpoint=path)


def test_an_error_of_the_worker_is_raised_as_its_own(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = lambda job, say: say(
        event="error", job=job["job"], code="bad_slide", message="the slide is torn.", advice="Mend it."
    )
    with pytest.raises(BadSlide) as caught:
        it.logic.predict(it.load_sample(tmp_path))
    assert (caught.value.message, caught.value.advice) == ("the slide is torn.", "Mend it.")


def test_a_bug_of_the_worker_is_raised_with_its_details(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = lambda job, say: say(event="error", job=job["job"], code="bug", message="a bug.", advice="", details="line 7")
    with pytest.raises(RuntimeError, match="line 7"):
        it.logic.predict(it.load_sample(tmp_path))


def test_cancelling_a_waiting_call_raises_cancelled(it: Opened, tmp_path: Path) -> None:
    import qt

    it.answers["predict"] = lambda job, say: qt.QTimer.singleShot(0, it.logic.cancel)
    with pytest.raises(Cancelled):
        it.logic.predict(it.load_sample(tmp_path))
    assert not it.runner.busy


def test_control_c_cancels_and_goes_on_up(it: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = it.load_sample(tmp_path)
    it.answers["predict"] = lambda job, say: None
    asleep = iter([None] * 20)

    def interrupt(seconds: float) -> None:
        if next(asleep, "over") == "over":
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        it.logic.predict(loaded)
    assert not it.runner.busy


def test_the_scene_closed_while_waiting_ends_the_call(it: Opened, tmp_path: Path) -> None:
    import qt

    it.answers["predict"] = lambda job, say: qt.QTimer.singleShot(0, lambda: slicer.mrmlScene.Clear(0))
    with pytest.raises(Cancelled, match="scene was closed"):
        it.logic.predict(it.load_sample(tmp_path))
    assert it.workers[0].killed


def test_a_volume_under_a_nonlinear_transform_is_predicted_and_told(it: Opened, tmp_path: Path) -> None:
    loaded = it.load_sample(tmp_path)
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode")
    loaded["t1_pre"].SetAndObserveTransformNodeID(grid.GetID())
    values = it.logic.predict(loaded)
    told = [warning["message"] for warning in values["warnings"] if warning["code"] == "export"]
    assert len(told) in (0, 1)  # an empty B-spline is linear to some versions of Slicer


def test_predict_batch_waits_and_gives_the_table(it: Opened, tmp_path: Path) -> None:
    it.answers["batch"] = batch
    table = it.logic.predictBatch(cohort(tmp_path), tmp_path / "out")
    assert table == tmp_path / "out" / "predictions.csv"
    assert [row["case_id"] for row in it.logic.work.batchRows] == ["c0", "c1", "c2"]
    assert it.logic.work.batchFailures == ["c3: no slide"]


def test_a_batch_without_a_table_is_told(it: Opened, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="not there"):
        it.logic.predictBatch(tmp_path / "none.csv", tmp_path)


def test_the_batch_table_fills_and_a_row_opens_as_a_case(tmp_path: Path) -> None:
    from HARM3Logic.case import Case

    with opened() as it:
        from HARM3SlicerLib import selftest

        it.answers["batch"] = batch
        it.ui.batchCohortPathLineEdit.currentPath = str(cohort(tmp_path))
        it.ui.batchOutputPathLineEdit.currentPath = str(tmp_path / "out")
        it.ui.batchRunButton.click()
        it.idle()
        assert it.ui.batchTable.rowCount == 3
        assert it.ui.batchTable.item(1, 0).text() == "c1"
        assert it.ui.batchTable.item(1, 3).text() == "I do not know"
        assert "1 failed: c3: no slide" in it.ui.batchLabel.text
        case = Case.read(tmp_path / "c1" / "case.json")
        Case("c1", case.inputs).write(tmp_path / "c1" / "case.json")
        job = {"job": "", "case": str(tmp_path / "c1" / "case.json"), "out": str(tmp_path / "out" / "cases" / "c1")}
        selftest.makePrediction(job, lambda **event: None)
        it.ui.batchTable.selectRow(1)
        it.ui.batchOpenButton.click()
        it.idle()
        assert it.runner.failure is None
        assert it.parameters.t1Pre.GetName() == "c1 t1_pre"
        assert it.ui.probabilityLabel.text == "62 %"
        assert slicer.util.getNode("HARM3 c1 heatmap t1_pre") is not None


def test_the_self_test_passes(it: Opened) -> None:
    from HARM3SlicerLib import selftest

    test = it.module.HARM3SlicerTest()
    test.messageDelay = 0
    test.setUp()
    selftest.fakePrediction(test, it.module.HARM3SlicerLogic)


@pytest.mark.slow
def test_the_whole_self_test_passes_with_a_real_worker(it: Opened) -> None:
    test = it.module.HARM3SlicerTest()
    test.messageDelay = 0
    test.runTest()
