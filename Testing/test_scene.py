"""Nodes to files and back: geometry, types, transforms, masks, runs that are found, replaced and removed as a whole."""

# ruff: noqa: E402  (the path comes first)
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "HARM3Slicer"))

import SimpleITK as sitk
import vtk
from HARM3SlicerLib import scene
from HARM3SlicerLib.volumes import addVolume, ijkToRas, imageArray, worldMatrix
from prediction_folder import OBLIQUE, oblique_volume, write_prediction
from slice_views import SliceViews

from HARM3Logic.case import Case
from HARM3Logic.errors import BadGeometry, BadOption, BadVolume, HARM3Error, MissingInput

NAME = "Müller 患者"


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Iterator[SliceViews]:
    views = SliceViews()
    views.install(monkeypatch)
    slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(views.scene)  # Slicer has it from the start
    yield views
    views.close()


def transform(views: SliceViews, matrix: np.ndarray) -> Any:
    node = views.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "bed")
    values = vtk.vtkMatrix4x4()
    values.DeepCopy(matrix.ravel())
    node.SetMatrixTransformToParent(values)
    return node


def bend(views: SliceViews) -> Any:
    """A non-linear transform."""
    node = views.scene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
    spline = vtk.vtkThinPlateSplineTransform()
    points = [vtk.vtkPoints(), vtk.vtkPoints()]
    for x in (-50, 50):
        for y in (-50, 50):
            for z in (-50, 50):
                points[0].InsertNextPoint(x, y, z)
                points[1].InsertNextPoint(x + 0.001 * y * z, y, z)
    spline.SetSourceLandmarks(points[0])
    spline.SetTargetLandmarks(points[1])
    spline.SetBasisToR()
    node.SetAndObserveTransformToParent(spline)
    return node


def export(inputs: dict[str, Any], folder: Path, **options: Any) -> dict[str, Path]:
    for _ in scene.exportSteps(inputs, folder, NAME, **options):
        pass
    return {name: paths[0] for name, paths in Case.read(folder / "case.json").inputs.items()}


def itk_matrix(image: sitk.Image) -> np.ndarray:
    """Voxel index to RAS, as an independent reader sees the file."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return np.diag([-1, -1, 1, 1]) @ matrix


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_a_volume_keeps_its_numbers_type_and_place(views: SliceViews, tmp_path: Path, dtype: str) -> None:
    array = np.arange(5 * 4 * 3).reshape(3, 4, 5).astype(dtype)
    node = addVolume(NAME, array, OBLIQUE)
    read = sitk.ReadImage(str(export({"t1_pre": node}, tmp_path / NAME)["t1_pre"]))
    written = sitk.GetArrayFromImage(read)
    assert written.dtype == array.dtype
    assert (written == array).all()
    np.testing.assert_allclose(itk_matrix(read), OBLIQUE, atol=1e-9)


def test_a_left_handed_volume_stays_left_handed(views: SliceViews, tmp_path: Path) -> None:
    mirrored = OBLIQUE @ np.diag([1, 1, -1, 1])
    node = addVolume("a", np.arange(60, dtype=np.float32).reshape(3, 4, 5), mirrored)
    read = sitk.ReadImage(str(export({"t1_pre": node}, tmp_path)["t1_pre"]))
    np.testing.assert_allclose(itk_matrix(read), mirrored, atol=1e-9)


def test_parent_transforms_are_applied_and_the_node_stays(views: SliceViews, tmp_path: Path) -> None:
    turn = np.array([[0, -1, 0, 10], [1, 0, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1.0]])
    inner, outer = transform(views, turn), transform(views, np.diag([1, 1, 1, 1.0]) + np.eye(4, k=3) * 7)
    inner.SetAndObserveTransformNodeID(outer.GetID())
    node = addVolume("a", np.ones((3, 4, 5), np.int16), OBLIQUE)
    node.SetAndObserveTransformNodeID(inner.GetID())
    before = views.scene.GetNumberOfNodes()
    read = sitk.ReadImage(str(export({"t1_pre": node}, tmp_path)["t1_pre"]))
    np.testing.assert_allclose(itk_matrix(read), (np.eye(4) + np.eye(4, k=3) * 7) @ turn @ OBLIQUE, atol=1e-9)
    assert node.GetParentTransformNode() is inner
    np.testing.assert_allclose(ijkToRas(node), OBLIQUE)
    assert views.scene.GetNumberOfNodes() == before


def test_a_non_linear_transform_is_refused_or_applied_and_told(views: SliceViews, tmp_path: Path) -> None:
    node = addVolume("bent one", oblique_volume(), OBLIQUE)
    node.SetAndObserveTransformNodeID(bend(views).GetID())
    with pytest.raises(BadGeometry, match=r"'bent one' chosen as t1_pre lies under the non-linear transform 'bend'"):
        export({"t1_pre": node}, tmp_path)
    before, told = views.scene.GetNumberOfNodes(), list[str]()
    read = sitk.ReadImage(str(export({"t1_pre": node}, tmp_path, onWarning=told.append)["t1_pre"]))
    assert "resampled" in told[0]
    assert views.scene.GetNumberOfNodes() == before
    # the bright voxel lies where the transform takes it
    k, j, i = np.unravel_index(oblique_volume().argmax(), oblique_volume().shape)
    moved = [0.0] * 3
    node.GetParentTransformNode().GetTransformToParent().TransformPoint((OBLIQUE @ [i, j, k, 1])[:3], moved)
    array = sitk.GetArrayFromImage(read)
    k, j, i = np.unravel_index(array.argmax(), array.shape)
    spacing = np.linalg.norm(OBLIQUE[:3, :3], axis=0)
    assert np.abs((itk_matrix(read) @ [i, j, k, 1])[:3] - moved).max() <= spacing.max()


def test_a_shear_is_refused(views: SliceViews, tmp_path: Path) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.3
    node = addVolume("a", np.ones((3, 4, 5), np.int16), OBLIQUE)
    node.SetAndObserveTransformNodeID(transform(views, shear).GetID())
    with pytest.raises(BadGeometry, match="right angles"):
        export({"t1_pre": node}, tmp_path)


def test_volumes_that_cannot_be_used_are_named(views: SliceViews, tmp_path: Path) -> None:
    empty = views.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    colors = addVolume("colours", np.zeros((1, 4, 5, 3), np.uint8), np.eye(4), "VectorVolume")
    gone = addVolume("gone", np.ones((3, 4, 5), np.int16), OBLIQUE)
    steps = scene.exportSteps({"t1_pre": gone}, tmp_path, "c")
    next(steps)
    views.scene.RemoveNode(gone)  # the user deletes it between two steps
    for node, error, match in (
        (empty, MissingInput, "'empty'.*no image"),
        (colors, BadVolume, "3 values"),
        (steps, MissingInput, "removed"),
    ):
        with pytest.raises(error, match=match):
            list(node) if node is steps else export({"t2_pre": node}, tmp_path)
    assert not (tmp_path / "case.json").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_a_segmentation_becomes_a_mask_on_its_volume(views: SliceViews, tmp_path: Path, moved: bool) -> None:
    volume = addVolume("a", oblique_volume(), OBLIQUE)
    labels = np.zeros(oblique_volume().shape, np.uint8)
    labels[5:9, 10:20, 12:18] = 1
    node = segmentation(views, labels, OBLIQUE)
    if moved:  # both lie under one transform, as after a registration
        shift = transform(views, np.eye(4) + np.eye(4, k=3) * 11)
        volume.SetAndObserveTransformNodeID(shift.GetID())
        node.SetAndObserveTransformNodeID(shift.GetID())
    before = views.scene.GetNumberOfNodes()
    files = export({"t1_pre": volume, "tumour_pre": node}, tmp_path)
    assert views.scene.GetNumberOfNodes() == before
    image, mask = sitk.ReadImage(str(files["t1_pre"])), sitk.ReadImage(str(files["tumour_pre"]))
    np.testing.assert_allclose(itk_matrix(mask), itk_matrix(image), atol=1e-6)
    assert (sitk.GetArrayFromImage(mask) == labels).all()


def test_only_visible_segments_count_and_an_empty_one_is_an_error(views: SliceViews, tmp_path: Path) -> None:
    labels = np.zeros(oblique_volume().shape, np.uint8)
    labels[5, 10, 12:18], labels[6, 10, 12:18] = 1, 2
    node = segmentation(views, labels, OBLIQUE)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetSegmentVisibility(node.GetSegmentation().GetNthSegmentID(1), False)
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(export({"tumour_pre": node}, tmp_path)["tumour_pre"])))
    assert mask.sum() == 6
    node.GetDisplayNode().SetAllSegmentsVisibility(False)
    with pytest.raises(MissingInput, match="none of its 2 segments"):
        export({"tumour_pre": node}, tmp_path)


def segmentation(views: SliceViews, labels: np.ndarray, matrix: np.ndarray) -> Any:
    node = views.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "tumour")
    values = vtk.vtkMatrix4x4()
    values.DeepCopy(matrix.ravel())
    for label in range(1, int(labels.max()) + 1):
        image = slicer.vtkOrientedImageData()
        image.DeepCopy(addVolumeImage(labels == label))
        image.SetGeometryFromImageToWorldMatrix(values)
        segment = slicer.vtkSegment()
        segment.SetName(f"tumour {label}")
        segment.AddRepresentation(slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName(), image)
        node.GetSegmentation().AddSegment(segment)
    return node


def addVolumeImage(mask: np.ndarray) -> vtk.vtkImageData:
    node = addVolume("seg", mask.astype(np.uint8), np.eye(4))
    image = vtk.vtkImageData()
    image.DeepCopy(node.GetImageData())
    node.GetScene().RemoveNode(node.GetDisplayNode())
    node.GetScene().RemoveNode(node)
    return image


def test_files_stay_where_they_are_and_the_case_is_whole(views: SliceViews, tmp_path: Path) -> None:
    slide = tmp_path / "slide.svs"
    slide.touch()
    node = addVolume("a", np.ones((3, 4, 5), np.int16), OBLIQUE)
    export({"t1_pre": node, "slide": slide, "t2_pre": None}, tmp_path / "out", patient_id="P", clinical={"age": "61"})
    case = Case.read(tmp_path / "out/case.json")
    assert (case.case_id, case.patient_id, case.clinical) == (NAME, "P", {"age": "61"})
    assert case.inputs["slide"][0].samefile(slide)
    assert set(case.inputs) == {"t1_pre", "slide"}


def test_an_exported_case_comes_back_as_nodes(views: SliceViews, tmp_path: Path) -> None:
    array = oblique_volume()
    export({"t1_pre": addVolume("a", array, OBLIQUE), "tumour_pre": addVolume("m", (array > 0).astype(np.uint8), OBLIQUE)}, tmp_path / NAME)
    loaded = scene.loadCase(tmp_path / NAME / "case.json")
    assert loaded["tumour_pre"].GetClassName() == "vtkMRMLLabelMapVolumeNode"
    assert (imageArray(loaded["t1_pre"].GetImageData()) == array).all()
    np.testing.assert_allclose(ijkToRas(loaded["t1_pre"]), OBLIQUE, atol=1e-9)


def test_a_case_with_a_missing_file_leaves_nothing(views: SliceViews, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    export({"t1_pre": addVolume("a", oblique_volume(), OBLIQUE), "t2_pre": addVolume("b", oblique_volume(), OBLIQUE)}, folder)
    (folder / "t2_pre.nrrd").unlink()
    before = views.scene.GetNumberOfNodes()
    with pytest.raises(BadVolume, match=r"t2_pre\.nrrd"):
        scene.loadCase(folder)
    assert views.scene.GetNumberOfNodes() == before


# runs


def test_a_heatmap_lies_on_its_volume(views: SliceViews, tmp_path: Path) -> None:
    inputs = write_prediction(tmp_path / NAME, NAME)
    run = scene.loadRun(tmp_path / NAME, inputs)
    assert list(run.heatmaps) == ["t1_pre", "t2_pre", "t1_post", "t2_post"]
    for name, heat in run.heatmaps.items():
        assert heat.GetName() == f"HARM3 {NAME} heatmap {name}"
        np.testing.assert_allclose(ijkToRas(heat), worldMatrix(inputs[name]), atol=1e-6)
        assert imageArray(heat.GetImageData()).dtype == np.float32
        assert run.inputs[name] is inputs[name]
    assert run.table.GetName() == f"HARM3 {NAME} results"
    cells = {run.table.GetCellText(row, 0): run.table.GetCellText(row, 1) for row in range(run.table.GetNumberOfRows())}
    assert cells["probability"] == "73.0 %"
    assert cells["decision"] == "responder"


def test_remove_takes_exactly_what_the_run_made(views: SliceViews, tmp_path: Path) -> None:
    from HARM3SlicerLib import layout
    from HARM3SlicerLib.heatmaps import HeatmapDisplay

    inputs = write_prediction(tmp_path / "a", "a")
    layout.show(scene.loadRun(tmp_path / "a", inputs))  # views, and Slicer's own singletons, are there from now on
    scene.removeRun(scene.findRun())
    before = {node.GetID() for node in nodes(views)}
    run = scene.loadRun(tmp_path / "a", inputs)
    layout.show(run)
    display = HeatmapDisplay(run)
    display.apply()
    display.change(outline=True)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(views.scene)
    mine = views.scene.AddNewNodeByClass("vtkMRMLTextNode", "my notes")
    item = hierarchy.CreateItem(run.folderItem, mine)
    scene.removeRun(run)
    assert {node.GetID() for node in nodes(views)} == before | {mine.GetID()}
    assert hierarchy.GetItemParent(item) == hierarchy.GetSceneItemID()
    assert hierarchy.GetNumberOfItems() == 1
    assert scene.findRun() is None


def nodes(views: SliceViews) -> list[Any]:
    return [views.scene.GetNthNode(i) for i in range(views.scene.GetNumberOfNodes())]


def test_a_second_run_of_a_case_replaces_the_first_and_another_case_stays(views: SliceViews, tmp_path: Path) -> None:
    inputs = write_prediction(tmp_path / "a", "a")
    scene.loadRun(tmp_path / "a", inputs)
    scene.loadRun(tmp_path / "a", inputs)
    other = write_prediction(tmp_path / "b", "b")
    scene.loadRun(tmp_path / "b", other)
    assert [run.caseId for run in scene.findRuns()] == ["a", "b"]
    names = [node.GetName() for node in nodes(views)]
    assert names.count("HARM3 a heatmap t1_pre") == 1


def test_the_folder_holds_the_nodes_of_the_run(views: SliceViews, tmp_path: Path) -> None:
    run = scene.loadRun(tmp_path / "a", write_prediction(tmp_path / "a", "a"))
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(views.scene)
    assert hierarchy.GetItemName(run.folderItem) == "HARM3 a"
    for node in (run.table, run.slide, run.tiles, run.chart, *run.heatmaps.values()):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == run.folderItem
    assert not hierarchy.GetItemByDataNode(run.inputs["t1_pre"])


@pytest.mark.parametrize("suffix", ["mrml", "mrb"])
def test_a_saved_scene_knows_its_run(views: SliceViews, tmp_path: Path, suffix: str) -> None:
    from HARM3SlicerLib import layout
    from HARM3SlicerLib.heatmaps import HeatmapDisplay

    inputs = write_prediction(tmp_path / "a", NAME)
    inputs["t1_post"].SetName(inputs["t1_pre"].GetName())  # two volumes of one name
    run = scene.loadRun(tmp_path / "a", inputs)
    layout.show(run)
    HeatmapDisplay(run).apply()
    ids = {name: node.GetID() for name, node in run.inputs.items()}
    values = dict(run.values)
    path = tmp_path / f"{NAME}.{suffix}"
    if suffix == "mrml":
        views.scene.SetURL(str(path))
        assert views.scene.Commit()
    else:
        messages = slicer.vtkMRMLMessageCollection()
        assert views.scene.WriteToMRB(str(path), None, messages), messages.GetAllMessagesAsString()
    views.scene.Clear(0)
    assert scene.findRun() is None
    if suffix == "mrml":
        views.scene.SetURL(str(path))
        views.scene.Connect()
    else:
        messages = slicer.vtkMRMLMessageCollection()
        views.keep_cache(tmp_path)
        assert views.scene.ReadFromMRB(str(path), True, messages), messages.GetAllMessagesAsString()
    found = scene.findRun(views.scene)
    assert found is not None
    assert dict(found.values) == values
    assert {name: node.GetID() for name, node in found.inputs.items()} == ids
    assert list(found.heatmaps) == list(run.heatmaps)
    assert not [node for node in nodes(views) if "(colours)" in (node.GetName() or "")]
    if suffix == "mrb":
        heat = found.heatmaps["t2_post"]
        np.testing.assert_allclose(ijkToRas(heat), worldMatrix(found.inputs["t2_post"]), atol=1e-6)
        layout.show(found)
        HeatmapDisplay(found).apply()
    before = views.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    scene.removeRun(found)
    assert views.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") < before
    assert found.inputs["t1_pre"].GetScene() is views.scene


def test_what_the_user_deleted_is_missing_and_the_rest_goes_on(views: SliceViews, tmp_path: Path) -> None:
    run = scene.loadRun(tmp_path / "a", write_prediction(tmp_path / "a", "a"))
    views.scene.RemoveNode(run.heatmaps["t2_pre"])
    views.scene.RemoveNode(run.inputs["t1_post"])
    found = scene.findRun()
    assert found is not None
    assert list(found.heatmaps) == ["t1_pre", "t1_post", "t2_post"]
    assert "t1_post" not in found.inputs
    scene.removeRun(found)


def damaged(folder: Path, how: str) -> None:
    if how == "no prediction":
        (folder / "prediction.json").unlink()
    elif how == "no heatmap":
        (folder / "heatmap_t2_post.nrrd").unlink()
    elif how == "cut heatmap":
        path = folder / "heatmap_t2_post.nrrd"
        path.write_bytes(path.read_bytes()[:-400])
    elif how == "no thumbnail":
        (folder / "slide_thumbnail.png").unlink()
    else:
        (folder / "prediction.json").write_text(json.dumps({"case_id": 3}))


@pytest.mark.parametrize("how", ["no prediction", "no heatmap", "cut heatmap", "no thumbnail", "other json"])
def test_a_folder_that_is_not_whole_leaves_nothing(views: SliceViews, tmp_path: Path, how: str) -> None:
    inputs = write_prediction(tmp_path / "a", "a")
    scene.loadRun(tmp_path / "a", inputs)
    damaged(tmp_path / "a", how)
    before = {node.GetID() for node in nodes(views)}
    with pytest.raises(HARM3Error) as caught:
        scene.loadRun(tmp_path / "a", inputs)
    assert caught.value.advice
    assert {node.GetID() for node in nodes(views)} == before  # the old run too


def test_closing_the_generator_leaves_nothing(views: SliceViews, tmp_path: Path) -> None:
    inputs = write_prediction(tmp_path / "a", "a")
    before = {node.GetID() for node in nodes(views)}
    steps = scene.loadRunSteps(tmp_path / "a", inputs)
    for _ in range(4):
        next(steps)
    steps.close()
    assert {node.GetID() for node in nodes(views)} == before


def test_a_scene_closed_between_two_steps_is_survived(views: SliceViews, tmp_path: Path) -> None:
    steps = scene.loadRunSteps(tmp_path / "a", write_prediction(tmp_path / "a", "a"))
    next(steps)
    views.scene.Clear(0)
    steps.close()
    assert scene.findRun() is None


def test_readers_refuse_a_folder_in_the_way(views: SliceViews, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(BadOption, match="taken"):
        export({"t1_pre": addVolume("a", oblique_volume(), OBLIQUE)}, tmp_path / "taken")
