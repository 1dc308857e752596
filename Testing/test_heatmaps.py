"""How heat looks: graded alpha, threshold, scale, outlines, on and off, as the pixels say it."""

# ruff: noqa: E402  (the path comes first)
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "HARM3Slicer"))

from HARM3SlicerLib import drawn, layout, scene
from HARM3SlicerLib.heatmaps import GAMMA, HeatmapDisplay
from HARM3SlicerLib.volumes import imageArray, nodesOf, toArray, worldMatrix
from prediction_folder import NAMES, blob, write_prediction
from scipy.ndimage import map_coordinates
from slice_views import SliceViews


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Iterator[SliceViews]:
    views = SliceViews()
    views.install(monkeypatch)
    yield views
    views.close()


@pytest.fixture
def display(views: SliceViews, tmp_path: Path) -> HeatmapDisplay:
    inputs = write_prediction(tmp_path / "a", "a")
    for node in inputs.values():
        imageArray(node.GetImageData())[:] = 100  # white, so that only the overlay gives colour
        node.GetImageData().GetPointData().GetScalars().Modified()
    run = scene.loadRun(tmp_path / "a", inputs)
    layout.show(run)
    display = HeatmapDisplay(run)
    display.apply()
    for heat in run.heatmaps.values():
        legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(heat)
        if legend is not None:
            legend.SetPosition(5, 5)  # out of the picture
    return display


def graded(display: HeatmapDisplay, name: str) -> np.ndarray:
    return imageArray(display._drawn[name].graded.GetImageData())


def coloured(picture: np.ndarray) -> np.ndarray:
    """Pixels that are neither black, white nor grey."""
    return picture.max(axis=2).astype(int) - picture.min(axis=2) > 20


def test_alpha_grows_with_the_heat_from_the_threshold(display: HeatmapDisplay) -> None:
    heat, alpha = blob("t1_pre"), graded(display, "t1_pre")[..., 3] / 255
    assert (alpha[heat < 0.19] == 0).all()
    inside = heat > 0.21
    np.testing.assert_allclose(alpha[inside], ((heat[inside] - 0.2) / 0.8) ** GAMMA, atol=0.05)


def test_the_view_blends_by_alpha(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(opacity=1.0)
    picture = views.grab("preT1").astype(int)
    heat = display.run.heatmaps["t1_pre"]
    rgba = graded(display, "t1_pre")
    _, j, i = np.unravel_index(imageArray(heat.GetImageData()).argmax(), blob("t1_pre").shape)
    shares = []
    for step in (0, 2, 4, 6):
        # the slice cuts the oblique volume: take the voxel nearest to the plane in the column of the peak
        offset = views["preT1"].logic.GetSliceOffset()
        ras = np.array([worldMatrix(heat) @ [i, j + step, kk, 1.0] for kk in range(rgba.shape[0])])
        kk = int(np.abs(ras[:, 2] - offset).argmin())
        x, y = (round(v) for v in views["preT1"].pixel(ras[kk, :3]))
        color, alpha = rgba[kk, j + step, i, :3].astype(int), rgba[kk, j + step, i, 3] / 255
        np.testing.assert_allclose(picture[y, x], 255 * (1 - alpha) + alpha * color, atol=40)
        shares.append(alpha)
    assert shares[0] > shares[1] > shares[2] > shares[3]


def test_opacity_scales_the_blend_and_reaches_every_view(views: SliceViews, display: HeatmapDisplay) -> None:
    def blue(tag: str) -> int:
        return int(views.grab(tag)[..., 2][coloured(views.grab(tag))].min(initial=255))

    display.change(opacity=1.0)
    strong = [blue(tag) for tag in ("preT1", "postT1")]
    display.change(opacity=0.3)
    weak = [blue(tag) for tag in ("preT1", "postT1")]
    assert all(w > s + 40 for s, w in zip(strong, weak, strict=True))
    assert [layout.compositeNode(tag).GetForegroundOpacity() for tag in layout.TAGS.values()] == pytest.approx([0.3] * 4)


def test_raising_the_threshold_shrinks_the_colour(views: SliceViews, display: HeatmapDisplay) -> None:
    sizes = []
    for threshold in (0.1, 0.4, 0.8):
        display.change(threshold=threshold)
        sizes.append(int(coloured(views.grab("preT1")).sum()))
        assert display.run.heatmaps["t1_pre"].GetDisplayNode().GetLowerThreshold() == pytest.approx(threshold)
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2] > 0
    display.change(threshold=1.0)
    assert coloured(views.grab("preT1")).sum() <= sizes[2]


def test_the_joint_scale_shows_a_weak_map_weakly(views: SliceViews, display: HeatmapDisplay) -> None:
    assert not coloured(views.grab("postT2")).any()  # its maximum is 0.1, the threshold 0.2
    display.change(jointScale=False)
    assert coloured(views.grab("postT2")).sum() > 50
    assert graded(display, "t2_post")[..., 3].max() == 255
    legends = [slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(display.run.heatmaps[name]) for name in NAMES]
    assert {legend.GetTitleText() for legend in legends} == {"Grad-CAM\n(own scale)"}
    assert all(legend.GetVisibility() for legend in legends)
    display.change(jointScale=True)
    assert not coloured(views.grab("postT2")).any()
    assert [legend.GetVisibility() for legend in legends] == [1, 0, 0, 0]


def test_outlines_replace_the_overlay_and_lie_at_their_levels(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(outline=True)
    assert lines(views) == [
        *(f"HARM3 a heatmap t1_pre {share} %" for share in (50, 75, 90)),
        "HARM3 a heatmap t2_pre 50 %",
        *(f"HARM3 a heatmap t1_post {share} %" for share in (50, 75)),
    ]
    picture = views.grab("preT1").astype(int)
    rows, columns = np.nonzero((picture[..., 0] > 200) & (abs(picture[..., 1] - 214) < 15) & (picture[..., 2] < 60))  # yellow
    assert len(rows) > 20
    values = heat_at(views, display, "t1_pre", "preT1", columns, rows)
    assert np.median(values) == pytest.approx(0.5, abs=0.08)
    assert not coloured(views.grab("postT2")).any()  # below all levels, and outlines of other views stay there
    display.change(outline=False)
    assert lines(views) == []
    assert not ((views.grab("preT1")[..., 2] < 60) & (abs(views.grab("preT1")[..., 1].astype(int) - 214) < 5)).any()


def lines(views: SliceViews) -> list[str]:
    """Names of the models that are seen."""
    models = nodesOf("vtkMRMLModelNode", views.scene)
    return [model.GetName() for model in models if model.GetDisplayNode() is not None and model.GetDisplayNode().GetVisibility()]


def test_outlines_are_made_once_and_follow_the_scale(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(outline=True)
    joint, count = lines(views), views.scene.GetNumberOfNodes()
    display.change(jointScale=False)
    assert len(lines(views)) == 12  # on its own scale every map has its three lines
    assert "HARM3 a heatmap t2_post 90 %" in lines(views)
    most = views.scene.GetNumberOfNodes()
    display.change(jointScale=True)
    assert lines(views) == joint
    assert most > count
    for value in (False, True):
        display.change(outline=value)
    assert views.scene.GetNumberOfNodes() == most


@pytest.mark.parametrize(("shape", "spacing", "expected"), [
    ((12, 32, 32), (4.0, 2.0, 2.0), (1, 1, 1)),
    ((60, 512, 512), (3.0, 0.5, 0.5), (1, 4, 4)),
    ((512, 512, 512), (0.5, 0.5, 0.5), (6, 5, 5)),
])  # fmt: skip
def test_a_large_map_is_drawn_on_a_coarser_grid(shape: tuple[int, ...], spacing: tuple[float, ...], expected: tuple[int, ...]) -> None:
    assert drawn.strides(shape, spacing) == expected


def test_what_is_drawn_coarsely_lies_where_the_map_lies(
    views: SliceViews, display: HeatmapDisplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine, heat = views.grab("preT2").astype(int), display.run.heatmaps["t2_pre"]
    monkeypatch.setattr(drawn, "MOST_VOXELS", heat.GetImageData().GetNumberOfPoints() // 3)
    again = HeatmapDisplay(display.run)
    again.apply()
    made = again._drawn["t2_pre"].graded
    assert made.GetImageData().GetNumberOfPoints() * 3 <= heat.GetImageData().GetNumberOfPoints()
    np.testing.assert_allclose(worldMatrix(made) @ [2, 1, 3, 1], worldMatrix(heat) @ [2 * again._drawn["t2_pre"]._steps[2],
                               again._drawn["t2_pre"]._steps[1], 3 * again._drawn["t2_pre"]._steps[0], 1])  # fmt: skip
    centres = [np.argwhere(coloured(picture.astype(np.uint8))).mean(axis=0) for picture in (fine, views.grab("preT2"))]
    np.testing.assert_allclose(centres[0], centres[1], atol=4)  # px


def heat_at(views: SliceViews, display: HeatmapDisplay, name: str, tag: str, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The heat under pixels of a view."""
    to_ras, height = toArray(views[tag].node.GetXYToRAS()), views[tag].node.GetDimensions()[1]
    points = np.stack([columns, height - 1 - rows, np.zeros(len(rows)), np.ones(len(rows))])
    ijk = np.linalg.inv(worldMatrix(display.run.heatmaps[name])) @ to_ras @ points
    values: np.ndarray = map_coordinates(blob(name), ijk[2::-1], order=1)
    return values


def test_the_blink_key_hides_and_shows_everything(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(outline=True)
    tags = ("preT1", "postT1", "slide")
    display.run.tiles.GetDisplayNode().SetVisibility(False)
    shown = [views.grab(tag) for tag in tags]
    display.change(visible=False)
    hidden = [views.grab(tag) for tag in tags]
    assert all((a != b).any() for a, b in zip(shown, hidden, strict=True))
    assert not any(coloured(picture).any() for picture in hidden[:2])
    display.change(visible=True)
    assert all((views.grab(tag) == picture).all() for tag, picture in zip(tags, shown, strict=True))


def test_colours_change_and_the_legend_follows(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(opacity=1.0)
    before = views.grab("preT1")
    display.change(color="vtkMRMLColorTableNodeBlue")
    after = views.grab("preT1").astype(int)
    assert (after != before).any()
    inside = coloured(after.astype(np.uint8))
    assert (after[inside][:, 2] > after[inside][:, 0]).all()
    assert display.run.heatmaps["t1_pre"].GetDisplayNode().GetColorNodeID() == "vtkMRMLColorTableNodeBlue"


def test_a_view_the_user_changed_is_left_alone(views: SliceViews, display: HeatmapDisplay) -> None:
    composite = layout.compositeNode("preT2")
    other = display.run.inputs["t1_pre"].GetID()
    composite.SetLinkedControl(False)
    composite.SetForegroundVolumeID(other)
    composite.SetForegroundOpacity(0.11)
    display.change(threshold=0.5)
    display.change(visible=False)
    assert composite.GetForegroundVolumeID() == other


def test_a_second_display_of_a_run_replaces_the_first(views: SliceViews, display: HeatmapDisplay) -> None:
    display.change(outline=True)
    before = views.scene.GetNumberOfNodes()
    again = HeatmapDisplay(display.run)
    again.apply()
    again.change(outline=True)
    assert views.scene.GetNumberOfNodes() == before


def test_a_deleted_heatmap_is_no_error(views: SliceViews, display: HeatmapDisplay) -> None:
    views.scene.RemoveNode(display.run.heatmaps["t1_pre"])
    display.change(threshold=0.3)
    display.change(outline=True)
    display.change(jointScale=False)
    display.change(visible=False)
    scene.removeRun(display.run)
    display.change(opacity=0.5)  # the slider still moves after the results were removed


def test_the_share_in_the_tumour_is_told(display: HeatmapDisplay) -> None:
    assert display.shareInTumour() == {"t1_pre": 0.4, "t2_pre": None, "t1_post": None, "t2_post": None}
