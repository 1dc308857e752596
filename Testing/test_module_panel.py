"""The panel of the Slicer module, driven through its widgets as a user does."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
from module_host import ROOT, Opened, never, opened, write_checkpoint  # noqa: E402

NAMES = [
    "t1PreSelector",
    "t2PreSelector",
    "t1PostSelector",
    "t2PostSelector",
    "ctSelector",
    "tumourPreSelector",
    "tumourPostSelector",
    "slidePathLineEdit",
    "loadCaseButton",
    "sampleCaseButton",
    "checkpointPathLineEdit",
    "deviceComboBox",
    "checkComputerButton",
    "predictButton",
    "progressBar",
    "stageLabel",
    "logTextEdit",
    "copyDetailsButton",
    "probabilityLabel",
    "probabilityBar",
    "decisionLabel",
    "warningsLabel",
    "opacitySlider",
    "thresholdSlider",
    "colorComboBox",
    "outlineCheckBox",
    "jointScaleCheckBox",
    "blinkButton",
    "tilesTable",
    "saveReportButton",
    "removeResultsButton",
    "batchCohortPathLineEdit",
    "batchOutputPathLineEdit",
    "batchRunButton",
    "batchTable",
    "clinicalForm",
    "tumourPointSelector",
]  # the widgets that can be driven from outside
MRI = ("t1_pre", "t2_pre", "t1_post", "t2_post")
WITH_CT = {
    "inputs": ["ct", "clinical"],
    "config": {"needs": ["ct"]},
    "tumour_point": True,
    "clinical": {
        "variables": [
            {"name": "age", "kind": "numeric", "unit": "years", "allowed": [], "range": [0, 120], "description": "At the CT."},
            {"name": "sex", "kind": "binary", "unit": "", "allowed": ["f", "m"], "range": None, "description": ""},
        ]
    },
}


@pytest.fixture
def it() -> Iterator[Opened]:
    with opened() as it:
        yield it


def shown(widget: Any) -> bool:
    """Whether the user sees a widget once its section is open."""
    return not widget.isHidden() and not widget.parent().isHidden()


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.path[:0] = ['Testing', 'HARM3Slicer', '.']; import slicer_host; host = slicer_host.install(main_window=False); "
        "host.load_module('HARM3Slicer/HARM3Slicer.py'); print(*({'torch', 'SimpleITK', 'openslide', 'pip', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [], done.stderr


def test_the_panel_builds_without_a_main_window(tmp_path: Path) -> None:
    with opened(main_window=False) as it:
        assert slicer.app.layoutManager() is None
        it.load_sample(tmp_path)
        it.predict()
        assert it.ui.probabilityLabel.text == "62 %"


def test_every_widget_has_its_name(it: Opened) -> None:
    assert [name for name in NAMES if not hasattr(it.ui, name)] == []


def test_predict_waits_for_a_volume(it: Opened, tmp_path: Path) -> None:
    assert it.ui.predictButton.text == "Predict"
    assert not it.ui.predictButton.isEnabled()
    assert "at least one" in it.ui.inputsHintLabel.text
    it.load_sample(tmp_path)
    assert it.ui.predictButton.isEnabled()
    assert "Not given: slide." in it.ui.inputsHintLabel.text


def test_sample_case_then_predict_shows_the_result(it: Opened) -> None:
    it.ui.sampleCaseButton.click()
    it.idle()
    assert it.parameters.t2Post.GetName() == "sample t2_post"
    it.predict()
    assert it.ui.probabilityLabel.text == "62 %"
    assert it.ui.decisionLabel.text == "Response likely"
    assert "41 to 80 %" in it.ui.intervalLabel.text
    assert "made up" in it.ui.warningsLabel.text
    assert "synthetic" in it.ui.warningsLabel.text
    assert it.ui.probabilityBar.value == 620
    assert slicer.util.getNode("HARM3 sample results").GetNumberOfRows() > 5
    for name, tag in zip(MRI, ("preT1", "preT2", "postT1", "postT2"), strict=True):
        foreground = slicer.app.layoutManager().sliceWidget(tag).mrmlSliceCompositeNode().GetForegroundVolumeID()
        assert slicer.mrmlScene.GetNodeByID(foreground).GetName() == f"HARM3 sample heatmap {name}"


def test_the_uncertain_zone_is_said_in_words(it: Opened, tmp_path: Path) -> None:
    from HARM3SlicerLib import selftest

    def answer(job: dict[str, Any], say: Any) -> None:
        selftest.makePrediction(job, lambda **event: None)
        file = Path(job["out"]) / "prediction.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "probability": 0.5, "decision": "uncertain"}))
        say(event="result", job=job["job"], kind="predict", prediction=str(file))

    it.answers["predict"] = answer
    it.load_sample(tmp_path)
    it.predict()
    assert it.ui.decisionLabel.text == "I do not know"


def test_a_second_prediction_uses_the_warm_worker(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.predict()
    it.predict()
    assert len(it.workers) == 1
    assert [job["kind"] for job in it.workers[0].jobs] == ["predict", "predict"]


def test_cancel_goes_back_to_idle(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = never
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    assert it.ui.predictButton.text == "Cancel"
    assert shown(it.ui.progressBar)
    it.host.wait(lambda: it.workers and it.workers[0].jobs)
    it.ui.predictButton.click()
    it.idle(seconds=4)
    assert it.ui.predictButton.text == "Predict"
    assert it.ui.stageLabel.text == "Cancelled."
    assert not shown(it.ui.progressBar)


def test_cancel_while_the_volumes_are_written(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.ui.predictButton.click()
    it.idle(seconds=1)
    assert it.workers == []
    assert it.ui.stageLabel.text == "Cancelled."


def test_a_failure_is_a_sentence_and_advice(it: Opened, tmp_path: Path) -> None:
    def answer(job: dict[str, Any], say: Any) -> None:
        say(
            event="error", job=job["job"], code="bad_slide", message="the slide is <broken>.", advice="Take another.", details="Traceback X"
        )

    it.answers["predict"] = answer
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.idle()
    assert "The slide is &lt;broken&gt;." in it.ui.stageLabel.text
    assert "Take another." in it.ui.stageLabel.text
    assert "Traceback" not in it.ui.stageLabel.text
    it.ui.copyDetailsButton.click()
    copied = slicer.app.clipboard().text()
    assert "the slide is <broken>." in copied
    assert "Traceback X" in copied
    assert it.ui.predictButton.isEnabled()


def test_a_worker_that_does_not_start_is_told(it: Opened, tmp_path: Path) -> None:
    class Dead:
        def start(self, client: Any) -> None:
            client.failedToStart("no such file")

        def write(self, data: bytes) -> None: ...
        def closeInput(self) -> None: ...
        def killTree(self, pid: int | None) -> None: ...

    it.runner.client.link.makeTransport = Dead
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.idle()
    assert "no such file" in it.ui.stageLabel.text


def test_an_emptied_path_is_an_emptied_choice(it: Opened) -> None:
    it.ui.slidePathLineEdit.currentPath = "/data/a slide.svs"
    assert it.parameters.slide == "/data/a slide.svs"
    it.ui.slidePathLineEdit.currentPath = ""
    assert it.parameters.slide == ""


def test_the_panel_follows_the_checkpoint(it: Opened, tmp_path: Path) -> None:
    assert shown(it.ui.t1PreSelector)
    assert not shown(it.ui.ctSelector)
    assert not shown(it.ui.clinicalForm)
    it.ui.checkpointPathLineEdit.currentPath = str(write_checkpoint(tmp_path / "ct.safetensors", **WITH_CT))
    assert not shown(it.ui.t1PreSelector)
    assert not shown(it.ui.slidePathLineEdit)
    assert shown(it.ui.ctSelector)
    assert shown(it.ui.tumourPointSelector)
    assert shown(it.ui.clinicalForm)
    assert it.ui.clinicalForm.layout().rowCount() == 2
    assert "Still wanted: CT" in it.ui.inputsHintLabel.text
    it.ui.checkpointPathLineEdit.currentPath = ""
    assert shown(it.ui.t1PreSelector)
    assert not shown(it.ui.ctSelector)


def test_ct_clinical_values_and_point_reach_the_worker(it: Opened, tmp_path: Path) -> None:
    import qt
    from HARM3SlicerLib import selftest

    cases: list[dict[str, Any]] = []

    def answer(job: dict[str, Any], say: Any) -> None:
        cases.append(json.loads(Path(job["case"]).read_text()))
        selftest.makePrediction(job, say)

    it.answers["predict"] = answer
    loaded = it.load_sample(tmp_path)
    checkpoint = str(write_checkpoint(tmp_path / "ct.safetensors", **WITH_CT))
    it.ui.checkpointPathLineEdit.currentPath = checkpoint
    it.ui.ctSelector.setCurrentNode(loaded["t1_pre"])
    point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    point.AddControlPoint(1.0, 2.0, 3.0)
    it.ui.tumourPointSelector.setCurrentNode(point)
    age, sex = (it.ui.clinicalForm.layout().itemAt(row, qt.QFormLayout.FieldRole).widget() for row in range(2))
    age.text = "64"
    sex.currentIndex = 2
    it.predict()
    assert list(cases[0]["inputs"]) == ["ct"]
    assert cases[0]["clinical"] == {"age": "64", "sex": "m"}
    assert cases[0]["tumour_point_mm"] == [-1.0, -2.0, 3.0]
    assert it.workers[0].jobs[0]["checkpoint"] == checkpoint


def test_a_bad_checkpoint_is_told_and_predicts_nothing(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    it.ui.checkpointPathLineEdit.currentPath = str(tmp_path / "bad.safetensors")
    assert not it.ui.predictButton.isEnabled()
    assert "bad.safetensors" in it.ui.inputsHintLabel.text
    assert not it.ui.modelSection.collapsed


def test_the_card_tells_what_the_model_is(it: Opened) -> None:
    from HARM3Logic import card

    it.ui.modelSection.collapsed = False
    it.host.wait(lambda: "SHA-256</td><td>..." not in it.ui.cardLabel.text)
    cases = card.read_header(card.default())["training"]["cohort_size"]
    for text in ("AUC", f"{cases} cases", "Not for clinical use", "T1c before"):
        assert text in it.ui.cardLabel.text


def test_check_this_computer(it: Opened) -> None:
    it.ui.checkComputerButton.click()
    it.idle()
    assert "PyTorch 2.9" in it.ui.computerLabel.text
    assert "OpenSlide is missing" in it.ui.computerLabel.text


def test_load_case_folder_proposes_and_takes_corrections(it: Opened, tmp_path: Path) -> None:
    from HARM3SlicerLib import selftest

    folder = tmp_path / "patient"
    selftest.makeCase({"job": "", "out": str(folder)}, lambda **event: None)
    (folder / "case.json").unlink()
    (folder / "t1_pre.nrrd").rename(folder / "T1c_pretreatment.nrrd")
    it.host.answer("QFileDialog.getExistingDirectory", str(folder))
    it.ui.loadCaseButton.click()
    it.host.dialogs.clear()
    it.idle()
    assert shown(it.ui.assignmentFrame)
    part = it.widget.panel.parts["AssignmentPart"]
    assert part.chosen()["t1_pre"].path.name == "T1c_pretreatment.nrrd"
    part._boxes["t2_post"].currentIndex = 0
    it.ui.loadAssignmentButton.click()
    it.idle()
    assert it.parameters.t1Pre.GetName() == "T1c_pretreatment"
    assert it.parameters.t2Post is None
    assert not shown(it.ui.assignmentFrame)


def test_long_names_are_told_in_full(it: Opened, tmp_path: Path) -> None:
    node = it.load_sample(tmp_path)["t1_pre"]
    own = it.ui.t1PreSelector.toolTip
    node.SetName("t1_<before>_" + 40 * "x")
    it.widget.panel.updateGUI()
    assert f"t1_&lt;before&gt;_{40 * 'x'}" in it.ui.t1PreSelector.toolTip
    path = str(tmp_path / (60 * "y" + ".svs"))
    it.ui.slidePathLineEdit.currentPath = path
    assert path in it.ui.slidePathLineEdit.toolTip
    it.ui.t1PreSelector.setCurrentNode(None)
    assert "<b>" in own
    assert "<b>" not in it.ui.t1PreSelector.toolTip
    it.ui.checkpointPathLineEdit.currentPath = str(write_checkpoint(tmp_path / f"begin_{60 * 'z'}_end.safetensors", inputs=["t1_pre"]))
    assert "begin_" in it.ui.modelSection.text
    assert it.ui.modelSection.text.endswith("_end.safetensors"[-16:])
    assert len(it.ui.modelSection.text) < 50
