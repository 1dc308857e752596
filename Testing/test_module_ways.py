"""Whole ways through the panel: a DICOM folder, packages that do not come in, a bent volume, everything chosen saved and back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
from module_host import Opened, never, opened, write_checkpoint  # noqa: E402

T1 = {"RepetitionTime": 600.0, "EchoTime": 11.0, "ContrastBolusAgent": "Dotarem"}
T2 = {"RepetitionTime": 4200.0, "EchoTime": 98.0}


@pytest.fixture
def it() -> Iterator[Opened]:
    with opened() as it:
        yield it


def series(folder: Path, number: int, date: str, tags: dict[str, Any], patient: str = "HN-1") -> None:
    """Eight slices as a scanner stores them, 3 mm apart, with a voxel of 100 * `number` in the middle one."""
    pydicom = pytest.importorskip("pydicom")
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(8):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{number}.{k + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID = f"1.2.4.{date}", f"1.2.3.{number}"
        data.StudyDate, data.Modality, data.PatientID, data.PatientName = date, "MR", patient, "Müller^Ä"
        data.SpecificCharacterSet, data.SeriesDescription, data.InstanceNumber = "ISO_IR 192", "tra", k + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [-10.0, -20.0, 5.0 + 3 * k], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness, data.Rows, data.Columns = [0.5, 0.5], 3.0, 16, 12
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        for name, value in tags.items():
            setattr(data, name, value)
        pixels = np.zeros((16, 12), np.uint16)
        pixels[7, 5] = 100 * number if k == 4 else 0
        data.PixelData = pixels.tobytes()
        data.save_as(folder / f"IM{number}{(k * 3) % 8:04d}", enforce_file_format=True)  # names in another order than slices


@pytest.mark.parametrize("together", [False, True], ids=["a folder each", "one folder for all"])
def test_a_dicom_folder_becomes_four_volumes(it: Opened, tmp_path: Path, together: bool) -> None:
    root = tmp_path / "Müller 患者"
    for number, (date, tags) in enumerate((("20210110", T1), ("20210110", T2), ("20210402", T1), ("20210402", T2)), start=1):
        series(root if together else root / str(number), number, date, tags)
    it.host.answer("QFileDialog.getExistingDirectory", str(root))
    it.ui.loadCaseButton.click()
    it.host.dialogs.clear()
    it.idle()
    part = it.widget.panel.parts["AssignmentPart"]
    assert list(part.chosen()) == ["t1_pre", "t2_pre", "t1_post", "t2_post"]
    assert "early" in part._boxes["t1_pre"].toolTip
    assert not it.ui.assignmentWarningsLabel.visible or together  # one folder for all is worth a word
    it.ui.loadAssignmentButton.click()
    it.idle()
    p = it.parameters
    for number, node in enumerate((p.t1Pre, p.t2Pre, p.t1Post, p.t2Post), start=1):
        array = slicer.util.arrayFromVolume(node)
        assert (array.max(), np.argwhere(array).tolist()) == (100 * number, [[4, 7, 5]])
        assert node.GetSpacing() == pytest.approx((0.5, 0.5, 3.0))
        assert node.GetOrigin() == pytest.approx((10.0, 20.0, 5.0))  # RAS
    assert it.ui.predictButton.isEnabled()


def test_swapped_dates_and_two_patients_are_told_in_the_panel(it: Opened, tmp_path: Path) -> None:
    series(tmp_path / "before therapy", 1, "20210402", T1)
    series(tmp_path / "after therapy", 2, "20210110", T1, patient="HN-2")
    it.widget.panel.parts["AssignmentPart"].readFolder(str(tmp_path))
    it.idle()
    told = it.ui.assignmentWarningsLabel.text
    assert "are they swapped?" in told
    assert "different patients: HN-1, HN-2" in told


@pytest.mark.parametrize(("code", "details"), [("refused", ""), ("failed", "pip: no such host")])
def test_packages_that_do_not_come_in_are_told_and_nothing_starts(
    it: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, details: str
) -> None:
    from HARM3SlicerLib import install

    seen: list[Any] = []

    def outcome(**options: Any) -> install.InstallOutcome:
        seen.append((it.runner.client.state.value, it.ui.predictButton.text))
        return install.InstallOutcome(False, code, f"The Python packages were {code}.", "Try again.", details)

    monkeypatch.setattr(install, "ready", lambda: False)
    monkeypatch.setattr(install, "install", outcome)
    it.load_sample(tmp_path)
    it.logic.work.checkPackages = True
    it.ui.predictButton.click()
    it.host.process_events(20)
    assert seen == [("installing", "Cancel")] or seen[0][0] == "installing"
    assert f"The Python packages were {code}." in it.ui.stageLabel.text
    assert "Try again." in it.ui.stageLabel.text
    assert details in it.widget.panel.parts["RunPart"].details()
    assert it.ui.predictButton.text == "Predict"
    assert it.ui.predictButton.isEnabled()
    assert it.workers == []
    monkeypatch.setattr(install, "install", lambda **options: install.InstallOutcome(True, "installed", "In."))
    it.predict()
    assert it.ui.probabilityLabel.text == "62 %"


def test_a_bent_volume_is_predicted_and_its_new_grid_is_told(it: Opened, tmp_path: Path) -> None:
    node = it.load_sample(tmp_path)["t1_pre"]
    grid = slicer.vtkOrientedGridTransform()
    import vtk

    moves = vtk.vtkImageData()
    moves.SetDimensions(3, 3, 3)
    moves.SetOrigin(-40, -40, -40)
    moves.SetSpacing(40, 40, 40)
    moves.AllocateScalars(vtk.VTK_DOUBLE, 3)
    for index in range(27):
        moves.GetPointData().GetScalars().SetTuple3(index, 3.0 * (index % 2), 0.0, 0.0)
    grid.SetDisplacementGridData(moves)
    bend = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLGridTransformNode", "bend")
    bend.SetAndObserveTransformToParent(grid)
    node.SetAndObserveTransformNodeID(bend.GetID())
    assert not bend.IsLinear()
    it.predict()
    assert "lies under the non-linear transform" in it.ui.warningsLabel.text
    assert node.GetParentTransformNode() is bend
    assert slicer.util.getNodes("HARM3 export*") == {}


def test_everything_chosen_survives_a_saved_scene(it: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "Müller 患者"
    it.load_sample(folder)
    mask = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "tumour")
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "tumour labels")
    point = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "point")
    checkpoint = write_checkpoint(folder / "größe 1.safetensors", inputs=["t1_pre", "t2_pre", "t1_post", "t2_post", "slide"])
    wanted = {
        "tumourPre": mask, "tumourPost": labels, "tumourPoint": point, "ct": it.parameters.t1Pre,
        "slide": f"{folder / 'a 1.svs'};{folder / 'b 2.svs'}", "slideMpp": 0.25, "clinical": '{"age": "64"}', "caseId": "é 1",
        "checkpoint": str(checkpoint), "device": "cuda:1", "ignoreMasks": True, "opacity": 0.35, "threshold": 0.4,
        "color": "vtkMRMLColorTableNodeFileViridis.txt", "outline": True, "jointScale": False, "heatVisible": False,
        "batchCohort": str(folder / "cohort.csv"), "batchOutput": str(folder / "out"), "batchFolder": str(folder / "out"),
    }  # fmt: skip
    for name, value in wanted.items():
        it.parameters.setValue(name, value)
    chosen = set(it.parameters.allParameters) - set(wanted) - {"t1Pre", "t2Pre", "t1Post", "t2Post", "tumourCt", "result"}
    assert chosen == set()  # a new member is to be tried here too
    it.host.process_events(20)
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    it.host.process_events(20)
    slicer.util.loadScene(path)
    it.idle()
    for name, value in wanted.items():
        now = getattr(it.parameters, name)
        assert (now.GetName() == value.GetName()) if hasattr(value, "GetName") else now == value, name
    assert it.ui.slidePathLineEdit.currentPath == wanted["slide"]
    assert it.ui.deviceComboBox.currentText == "cuda:1"
    assert it.ui.tumourPreSelector.currentNode().GetName() == "tumour"
    assert it.ui.colorComboBox.currentText == "Viridis"
    assert it.ui.modelSection.text == "Model: größe 1.safetensors"


def test_the_chart_shows_the_contributions(it: Opened, tmp_path: Path) -> None:
    it.load_sample(tmp_path)
    it.predict()
    chart = slicer.util.getNode("HARM3 sample chart")
    manager = slicer.app.layoutManager()
    nodes = [manager.plotWidget(i).mrmlPlotViewNode() for i in range(manager.plotViewCount)]
    assert [node.GetPlotChartNodeID() for node in nodes if node.GetSingletonTag() == "harm3Plot"] == [chart.GetID()]
    data = chart.GetNthPlotSeriesNode(0).GetTableNode()
    rows = {data.GetCellText(row, 0): float(data.GetCellText(row, 2)) for row in range(data.GetNumberOfRows())}
    assert rows == pytest.approx({"t1_pre": 2.0, "t2_pre": -3.0, "t1_post": 14.0, "t2_post": 6.0})


def test_a_row_of_the_tiles_jumps_the_slide_and_no_other_view(tmp_path: Path) -> None:
    with opened() as it:
        from prediction_folder import write_prediction

        inputs = write_prediction(tmp_path / "a", "a")
        values = json.loads((tmp_path / "a" / "prediction.json").read_text())
        values.update(uncertain_zone=[0.4, 0.6], threshold=0.5)
        (tmp_path / "a" / "prediction.json").write_text(json.dumps(values))

        def answer(job: dict[str, Any], say: Any) -> None:
            say(event="result", job=job["job"], kind="predict", prediction=str(tmp_path / "a" / "prediction.json"))

        it.answers["predict"] = answer
        for name, member in (("t1_pre", "t1Pre"), ("t2_pre", "t2Pre"), ("t1_post", "t1Post"), ("t2_post", "t2Post")):
            setattr(it.parameters, member, inputs[name])
        it.predict()
        assert it.ui.tilesTable.rowCount == 1
        manager = slicer.app.layoutManager()
        before = [manager.sliceWidget(tag).mrmlSliceNode().GetSliceToRAS().GetElement(0, 3) for tag in ("preT1", "slide")]
        it.ui.tilesTable.selectRow(0)
        it.host.process_events(20)
        after = [manager.sliceWidget(tag).mrmlSliceNode().GetSliceToRAS().GetElement(0, 3) for tag in ("preT1", "slide")]
        assert after[0] == before[0]
        assert after[1] == pytest.approx(-((300 + 50) * 0.1 - 0.5) * 0.1)


def test_copy_details_after_a_crash_has_the_log(it: Opened, tmp_path: Path) -> None:
    it.answers["predict"] = never
    it.load_sample(tmp_path)
    it.ui.predictButton.click()
    it.host.wait(lambda: it.workers and it.workers[0].jobs)
    it.workers[0].client.feedErrors(b"Fatal Python error: Segmentation fault\n")
    it.workers[0].client.finished(11, True)
    it.idle()
    assert "ended by signal 11" in it.ui.stageLabel.text
    assert "Traceback" not in it.ui.stageLabel.text
    it.ui.copyDetailsButton.click()
    assert "Segmentation fault" in slicer.app.clipboard().text()
    assert "Segmentation fault" in it.ui.logTextEdit.toPlainText()
