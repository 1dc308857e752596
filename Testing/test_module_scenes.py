"""The panel of the Slicer module over the life of scenes: saved and closed, nodes deleted, results shown and removed, reload."""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
from module_host import Opened, never, node_ids, opened  # noqa: E402


@pytest.fixture
def it() -> Iterator[Opened]:
    with opened() as it:
        yield it


@pytest.mark.parametrize("ending", ["mrml", "mrb"])
def test_a_saved_scene_brings_choices_and_result_back(it: Opened, tmp_path: Path, ending: str) -> None:
    it.load_sample(tmp_path / "Müller 患者")
    it.ui.slidePathLineEdit.currentPath = str(tmp_path / "Müller 患者" / "slide 1.svs")
    it.ui.opacitySlider.value = 0.35
    it.ui.outlineCheckBox.click()
    it.ui.deviceComboBox.currentText = "cpu"
    it.ui.batchCohortPathLineEdit.currentPath = str(tmp_path / "cohort.csv")
    it.parameters.slide = ""
    it.predict()
    path = tmp_path / f"scene.{ending}"
    assert slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    it.host.process_events(20)
    assert it.ui.probabilityLabel.text == ""
    assert it.ui.t1PreSelector.currentNode() is None
    slicer.util.loadScene(str(path))
    it.idle()
    assert it.ui.probabilityLabel.text == "62 %"
    assert it.ui.t1PreSelector.currentNode().GetName() == "sample t1_pre"
    assert it.ui.opacitySlider.value == pytest.approx(0.35)
    assert it.ui.outlineCheckBox.checked
    assert it.ui.deviceComboBox.currentText == "cpu"
    assert it.ui.batchCohortPathLineEdit.currentPath == str(tmp_path / "cohort.csv")
    assert it.logic.work.run.caseId == "sample"
    it.ui.removeResultsButton.click()
    it.host.process_events(20)
    assert slicer.util.getNodes("HARM3 sample*") == {}


def test_closing_the_scene_stops_the_run(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = never
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.host.wait(lambda: it.workers and it.workers[0].jobs)
    slicer.mrmlScene.Clear(0)
    assert not it.runner.busy
    assert it.workers[0].killed
    it.host.process_events(50)
    assert it.ui.predictButton.text == "Predict"
    assert "scene was closed" in it.ui.stageLabel.text


def test_a_volume_deleted_during_the_run_does_no_harm(it: Opened, tmp_path: Path) -> None:
    from HARM3SlicerLib import selftest

    waiting: list[Any] = []
    it.answers["predict"] = lambda job, say: waiting.append((job, say))
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.host.wait(lambda: bool(waiting))
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("sample t1_pre"))
    selftest.makePrediction(*waiting[0])
    it.idle()
    assert it.runner.failure is None
    assert slicer.util.getNode("HARM3 sample heatmap t1_pre") is not None


def test_a_deleted_volume_is_chosen_no_more_and_no_other_in_its_place(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    slicer.mrmlScene.RemoveNode(slicer.util.getNode("sample t1_pre"))
    it.host.process_events(20)
    assert it.ui.t1PreSelector.currentNode() is None
    assert it.parameters.t1Pre is None
    assert it.ui.t2PreSelector.currentNode().GetName() == "sample t2_pre"


def test_a_second_volume_of_the_same_name_is_told_apart(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    first = it.parameters.t1Pre
    second = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
    second.SetName(first.GetName())
    it.ui.t1PreSelector.setCurrentNode(second)
    assert it.parameters.t1Pre is second
    it.ui.predictButton.click()
    it.idle()
    assert "holds no image" in it.ui.stageLabel.text


def test_the_look_of_the_heatmaps_follows_the_widgets(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.predict()
    display = it.widget.panel.views.display
    it.ui.opacitySlider.value = 0.25
    it.ui.thresholdSlider.value = 0.5
    it.ui.jointScaleCheckBox.click()
    it.ui.colorComboBox.currentIndex = 3
    it.ui.blinkButton.click()
    it.host.wait(lambda: not display.visible)
    assert (display.opacity, display.threshold, display.jointScale, display.visible) == (0.25, 0.5, False, False)
    assert "Viridis" in display.color
    assert it.ui.blinkButton.text == "Show (B)"
    models = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLModelNode")
    it.ui.outlineCheckBox.click()
    it.host.wait(lambda: slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLModelNode") == models + 12)


def test_remove_results_leaves_what_was_there(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.predict()
    views = {i for i in node_ids() if "View" in i or "Slice" in i}
    it.ui.removeResultsButton.click()
    it.host.process_events(20)
    assert slicer.util.getNodes("HARM3*") in ({}, {"HARM3Slicer": it.parameters.parameterNode})
    assert views <= node_ids()
    assert it.ui.decisionLabel.text == "No prediction yet."
    assert slicer.util.getNode("sample t1_pre") is not None


def test_save_report_writes_what_its_ending_says(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.predict()
    it.host.answer("QFileDialog.getSaveFileName", str(tmp_path / "Müller.html"), str(tmp_path / "values.json"))
    it.ui.saveReportButton.click()
    it.ui.saveReportButton.click()
    it.host.dialogs.clear()
    assert (tmp_path / "Müller.html").read_text() == "<p>made up</p>"
    assert json.loads((tmp_path / "values.json").read_text())["probability"] == 0.62


def test_a_saved_report_has_no_links_to_what_stays_behind(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path / "in")
    it.predict()
    folder = Path(it.widget.panel.result["folder"])
    page = '<p>Tiles. <a href="slide.html">Walk about in the slide</a>.</p>'
    page += '<a href="slide.html#tile=1"><img src="data:x"></a><a href="#top">up</a>'
    (folder / "report.html").write_text(page, encoding="utf-8")
    saved = it.widget.panel.parts["ReportPart"].save(tmp_path / "kept.html")
    assert saved.read_text(encoding="utf-8") == '<p>Tiles.</p><img src="data:x"><a href="#top">up</a>'


def test_the_slide_viewer_opens_where_there_is_one(it: Opened, tmp_path: Path) -> None:
    assert it.ui.openSlideViewerButton._raw.isHidden()
    it.load_sample(tmp_path / "in")
    it.predict()
    assert it.ui.openSlideViewerButton._raw.isHidden()
    page = Path(it.widget.panel.result["folder"]) / "slide.html"
    page.touch()
    it.widget.panel.updateGUI()
    assert not it.ui.openSlideViewerButton._raw.isHidden()
    it.ui.openSlideViewerButton.click()
    assert it.host.opened_urls == [page.as_uri()]


def test_other_modules_get_the_layout_from_before(it: Opened, tmp_path: Path) -> None:
    node = slicer.app.layoutManager().layoutLogic().GetLayoutNode()
    node.SetViewArrangement(3)
    it.load_sample(tmp_path / "in")
    it.predict()
    assert node.GetViewArrangement() == 571
    it.host.enter("")
    assert node.GetViewArrangement() == 3
    it.host.enter("HARM3Slicer")
    assert node.GetViewArrangement() == 571
    it.host.enter("")
    node.SetViewArrangement(4)  # the user's own choice stays
    it.host.enter("HARM3Slicer")
    assert node.GetViewArrangement() == 4


def test_the_name_of_a_case_may_have_several_words(it: Opened) -> None:
    for text in ("HN", "HN ", "HN 1"):
        it.ui.caseIdLineEdit.text = text
        it.host.process_events(5)
        assert it.ui.caseIdLineEdit.text == text
    assert it.parameters.caseId == "HN 1"


def test_a_prediction_never_holds_the_event_loop(it: Opened, tmp_path: Path) -> None:
    """100 ms of work at most between two turns of the event loop; the rest of what is allowed here are the host's own slow selectors."""
    import qt

    it.load_sample(tmp_path)
    it.predict()  # Slicer makes the views of a layout once, in one go
    ticks: list[float] = []
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(time.thread_time()))
    timer.start(5)
    it.predict()
    timer.stop()
    assert len(ticks) > 10
    assert max(b - a for a, b in pairwise(ticks)) < 0.3


def test_leaving_and_reloading_leaves_nothing_alive(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = never
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.host.wait(lambda: it.workers and it.workers[0].jobs)
    it.leave()
    assert it.runner.busy  # work goes on while the user looks elsewhere
    it.host.enter("HARM3Slicer")
    assert it.ui.predictButton.text == "Cancel"
    it.widget.cleanup()
    assert it.workers[0].killed
    assert it.runner._listeners == []
