"""The views of a run, drawn: where a bright voxel is seen, what is linked, what the slide shows, which layout comes back."""

# ruff: noqa: E402  (the path comes first)
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "HARM3Slicer"))

from HARM3SlicerLib import layout, scene
from HARM3SlicerLib.heatmaps import HeatmapDisplay
from HARM3SlicerLib.volumes import addVolume, imageArray, worldMatrix
from prediction_folder import PEAK, grid, oblique_volume, write_nrrd, write_prediction
from slice_views import SliceViews

TAGS = list(layout.TAGS.items())


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Iterator[SliceViews]:
    views = SliceViews()
    views.install(monkeypatch)
    layout.register()
    yield views
    views.close()


@pytest.fixture
def run(views: SliceViews, tmp_path: Path) -> scene.Run:
    return scene.loadRun(tmp_path / "a", write_prediction(tmp_path / "a", "a"))


def bright(picture: np.ndarray) -> np.ndarray:
    """Column and row of the middle of what is not dark, weighted by its brightness."""
    weight = picture.astype(float).sum(axis=2)
    rows, columns = np.indices(weight.shape)
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def peak(volume: Any) -> np.ndarray:
    return (worldMatrix(volume) @ [*PEAK[::-1], 1.0])[:3]


def hide_texts(views: SliceViews, run: scene.Run) -> None:
    for heat in run.heatmaps.values():
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heat)
        if legend is not None:
            legend.SetVisibility(False)


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_a_bright_voxel_is_seen_where_it_lies_in_the_patient(views: SliceViews, run: scene.Run, name: str, tag: str) -> None:
    layout.show(run)
    for orientation in ("Axial", "Sagittal", "Coronal"):
        node = layout.sliceNode(tag)
        node.SetOrientation(orientation)
        layout.fit()
        node.JumpSlice(*peak(run.inputs[name]))
        mm_per_px = node.GetFieldOfView()[0] / node.GetDimensions()[0]
        # half the voxel's extent along the axes of the view
        half = np.abs(np.linalg.inv(slice_axes(node)) @ grid(name)[:3, :3]).sum(axis=1)[:2] / 2 / mm_per_px
        seen = bright(views.grab(tag))
        assert (np.abs(seen - views[tag].pixel(peak(run.inputs[name]))) <= np.maximum(half / 2, 1)).all(), orientation


def slice_axes(node: Any) -> np.ndarray:
    matrix = node.GetSliceToRAS()
    return np.array([[matrix.GetElement(r, c) for c in range(3)] for r in range(3)])


@pytest.mark.parametrize(("name", "tag"), TAGS)
def test_the_heat_lies_on_the_same_pixel_as_its_voxel(views: SliceViews, run: scene.Run, name: str, tag: str) -> None:
    layout.show(run)
    display = HeatmapDisplay(run, opacity=1.0, threshold=0.0, jointScale=False)
    display.apply()
    hide_texts(views, run)
    layout.sliceNode(tag).JumpSlice(*peak(run.inputs[name]))
    imageArray(run.inputs[name].GetImageData())[:] = 0
    run.inputs[name].GetImageData().GetPointData().GetScalars().Modified()
    run.inputs[name].GetImageData().Modified()
    seen = bright(views.grab(tag)[..., :1])
    assert np.abs(seen - views[tag].pixel(peak(run.inputs[name]))).max() < 1.5


def test_each_view_shows_its_own_volume_and_heatmap(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    for name, tag in TAGS:
        composite = layout.compositeNode(tag)
        assert composite.GetBackgroundVolumeID() == run.inputs[name].GetID()
        assert composite.GetForegroundVolumeID() == run.heatmaps[name].GetID()
    slide = layout.compositeNode(layout.SLIDE_TAG)
    assert slide.GetBackgroundVolumeID() == run.slide.GetID()
    assert slide.GetForegroundVolumeID() == run.attention.GetID()
    assert layout.compositeNode("Red").GetBackgroundVolumeID() is None  # Slicer's own views stay as they are


def test_the_first_sight_holds_the_hottest_voxel(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    hottest = peak(run.heatmaps["t1_pre"])
    for _, tag in TAGS:
        assert views[tag].logic.GetSliceOffset() == pytest.approx(hottest[2], abs=0.01)
    widths = [layout.sliceNode(tag).GetFieldOfView()[0] for _, tag in TAGS]
    assert widths == pytest.approx([widths[0]] * 4)


def test_scrolling_one_view_moves_the_four_and_not_the_slide(views: SliceViews, run: scene.Run) -> None:
    assert "linked by patient coordinates" in layout.show(run)
    logic = views["postT1"].logic
    logic.StartSliceOffsetInteraction()
    logic.SetSliceOffset(12.5)
    logic.EndSliceOffsetInteraction()
    assert [views[tag].logic.GetSliceOffset() for _, tag in TAGS] == pytest.approx([12.5] * 4)
    assert views["slide"].logic.GetSliceOffset() == pytest.approx(0)


def test_days_far_apart_in_space_are_not_linked_to_each_other(views: SliceViews, run: scene.Run) -> None:
    for name in ("t1_post", "t2_post"):  # another table position
        for node in (run.inputs[name], run.heatmaps[name]):
            matrix = slicer.vtkMRMLSliceNode().GetXYToRAS().__class__()
            node.GetIJKToRASMatrix(matrix)
            matrix.SetElement(2, 3, matrix.GetElement(2, 3) + 500)
            node.SetIJKToRASMatrix(matrix)
    assert "only views of one day are linked" in layout.show(run)
    assert views["preT2"].logic.GetSliceOffset() == pytest.approx(peak(run.heatmaps["t1_pre"])[2], abs=0.01)
    assert views["postT2"].logic.GetSliceOffset() == pytest.approx(peak(run.heatmaps["t1_post"])[2], abs=0.01)
    assert views.grab("postT1").max() > 100


def test_the_slide_is_upright_and_its_tile_lies_on_its_pixels(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    run.tiles.GetDisplayNode().SetVisibility(False)
    picture = views.grab("slide")
    rows, columns = np.nonzero((picture[..., 0] > 200) & (picture[..., 1] < 60))  # the red bar
    assert rows.mean() < picture.shape[0] / 2
    assert columns.mean() < picture.shape[1] / 2
    # tile 1 covers thumbnail pixels 30-40, 20-30; the attention is painted there
    assert scene.tilePoint(run.values, run.values["tiles"][0]) == pytest.approx((-3.45, -2.45, 0))
    HeatmapDisplay(run).apply()
    changed = np.abs(views.grab("slide").astype(int) - picture).sum(axis=2) > 30
    rows, columns = np.nonzero(changed)
    x, y = views["slide"].pixel(scene.tilePoint(run.values, run.values["tiles"][0]))
    assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=1.5)


def test_the_attention_is_drawn_tile_by_tile(views: SliceViews, tmp_path: Path) -> None:
    nodes = write_prediction(tmp_path, "tiles")
    tiles = np.zeros((3, 4), np.float32)
    tiles[2, 3] = 1
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0])
    matrix[:2, 3] = -0.45  # the middle of the first tile of 1 mm; 0 is the middle of the first thumbnail pixel
    write_nrrd(tmp_path / "slide_attention_tiles.nrrd", tiles[None], matrix)
    run = scene.loadRun(tmp_path, nodes)
    assert run.attention.GetImageData().GetDimensions() == (4, 3, 1)
    assert run.slide.GetImageData().GetDimensions() == (40, 30, 1)
    middle = (worldMatrix(run.attention) @ [3, 2, 0, 1])[:3]
    assert middle == pytest.approx(scene.tilePoint(run.values, run.values["tiles"][0]))
    layout.show(run)
    run.tiles.GetDisplayNode().SetVisibility(False)
    picture = views.grab("slide")
    HeatmapDisplay(run).apply()
    rows, columns = np.nonzero(np.abs(views.grab("slide").astype(int) - picture).sum(axis=2) > 30)
    x, y = views["slide"].pixel(middle)
    assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=1.5)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=2)


def test_a_row_of_the_ranking_moves_only_the_slide(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    before = [layout.sliceNode(tag).GetFieldOfView() for _, tag in TAGS]
    layout.jumpToTile(run, 0)
    x, y = views["slide"].pixel(scene.tilePoint(run.values, run.values["tiles"][0]))
    assert (x, y) == pytest.approx((180, 150), abs=1.5)  # the middle of the view
    assert layout.sliceNode("slide").GetFieldOfView()[0] == pytest.approx(4.0)
    assert [layout.sliceNode(tag).GetFieldOfView() for _, tag in TAGS] == before


def test_tiles_are_seen_in_the_slide_alone(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    assert run.tiles.GetDisplayNode().GetViewNodeIDs() == ("vtkMRMLSliceNodeslide",)


@pytest.mark.parametrize("previous", [0, 3])
def test_the_previous_layout_comes_back(views: SliceViews, run: scene.Run, previous: int) -> None:
    node = layout.layoutNode()
    node.SetViewArrangement(previous)
    layout.show(run)
    layout.show(run)  # a second time does not take its own layout for the user's
    assert node.GetViewArrangement() == layout.LAYOUT_ID
    layout.restore()
    assert node.GetViewArrangement() == previous


def test_a_layout_the_user_chose_since_stays(views: SliceViews, run: scene.Run) -> None:
    layout.show(run)
    layout.layoutNode().SetViewArrangement(6)
    layout.restore()
    assert layout.layoutNode().GetViewArrangement() == 6
    layout.restore()  # nothing to restore


def test_after_the_scene_was_closed_a_new_run_is_linked_again(views: SliceViews, run: scene.Run, tmp_path: Path) -> None:
    layout.show(run)
    views.scene.Clear(0)
    again = scene.loadRun(tmp_path / "b", write_prediction(tmp_path / "b", "b"))
    layout.show(again)
    composite = layout.compositeNode("preT2")
    assert composite.GetLinkedControl()
    assert composite.GetBackgroundVolumeID() == again.inputs["t2_pre"].GetID()


def test_one_ct_takes_the_first_view(views: SliceViews, tmp_path: Path) -> None:
    assert layout.tags(["ct"]) == {"ct": "preT1"}
    assert layout.tags(["t1_pre", "ct"]) == {"t1_pre": "preT1", "ct": "preT2"}


def test_a_missing_volume_leaves_the_heatmap_alone_in_its_view(views: SliceViews, run: scene.Run) -> None:
    views.scene.RemoveNode(run.inputs["t2_pre"])
    layout.show(run)
    HeatmapDisplay(run).apply()
    assert layout.compositeNode("preT2").GetForegroundVolumeID() == run.heatmaps["t2_pre"].GetID()
    assert views.grab("preT2").max() > 50  # the heat is seen over black


def test_without_windows_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = slicer.vtkMRMLScene()
    monkeypatch.setattr(slicer, "mrmlScene", bare, raising=False)
    monkeypatch.setattr(slicer, "app", SimpleNamespace(layoutManager=lambda: None), raising=False)
    run = SimpleNamespace(heatmaps={}, inputs={}, table=None, chart=None, contributions=None, slide=None, attention=None, tiles=None)
    layout.register()
    assert layout.show(run) == ""
    layout.fit()
    layout.jumpToTile(run, 0)
    layout.restore()
    assert bare.GetNumberOfNodes() == 0


def test_the_description_is_whole(views: SliceViews) -> None:
    views_of = {view.get("singletontag"): view for view in ET.fromstring(layout.description()).iter("view")}
    assert set(views_of) == {*layout.TAGS.values(), layout.SLIDE_TAG, layout.TABLE_TAG, layout.PLOT_TAG}
    groups = {tag: p.text for tag, view in views_of.items() for p in view if p.get("name") == "viewgroup"}
    assert len({groups[tag] for tag in layout.TAGS.values()}) == 1
    assert groups[layout.SLIDE_TAG] != groups["preT1"]


def test_a_volume_under_a_transform_and_its_heatmap_coincide(views: SliceViews, tmp_path: Path) -> None:
    inputs = write_prediction(tmp_path / "a", "a")
    volume = addVolume("moved", 100 * oblique_volume(), grid("t1_pre"))
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    shift = views.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "bed")
    matrix = np.eye(4)
    matrix[:3, 3] = (-5, 8, 6)
    values = layout.vtk.vtkMatrix4x4()
    values.DeepCopy(matrix.ravel())
    shift.SetMatrixTransformToParent(values)
    volume.SetAndObserveTransformNodeID(shift.GetID())
    run = scene.loadRun(tmp_path / "a", {**inputs, "t1_pre": volume})
    layout.show(run)
    expected = (matrix @ grid("t1_pre") @ [*PEAK[::-1], 1.0])[:3]
    np.testing.assert_allclose(worldMatrix(volume), matrix @ grid("t1_pre"))
    layout.sliceNode("preT1").JumpSlice(*expected)
    assert np.abs(bright(views.grab("preT1")) - views["preT1"].pixel(expected)).max() < 3
