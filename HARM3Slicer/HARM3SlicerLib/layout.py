"""The views of a run: 2 x 2 linked slice views, one for each MRI, and beside them the slide, the contributions and the results table.

Works on MRML alone; Slicer's layout manager, where there is one, follows the layout node.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import slicer
import vtk

from HARM3SlicerLib.steps import finish
from HARM3SlicerLib.volumes import imageArray, nodesOf, worldMatrix

LAYOUT_ID = 571
TAGS = {"t1_pre": "preT1", "t2_pre": "preT2", "t1_post": "postT1", "t2_post": "postT2"}
SLIDE_TAG, TABLE_TAG, PLOT_TAG = "slide", "harm3Table", "harm3Plot"
GROUP, POST_GROUP, SLIDE_GROUP = 71, 73, 72  # views of one group scroll and zoom together
LABELS = {
    "preT1": ("pre T1c", "#F34A33"),
    "preT2": ("pre T2", "#EDD54C"),
    "postT1": ("post T1c", "#6EB04B"),
    "postT2": ("post T2", "#4A7DC8"),
}
PREVIOUS = "HARM3.previousLayout"  # attribute of the layout node, so that it outlives a reload of the module and a saved scene
MIN_OVERLAP = 0.3  # of the smaller volume's extent along each axis of the patient: less, and linked views would show nothing


def description() -> str:
    """The layout as Slicer's XML."""

    def view(tag: str, label: str, color: str, group: int) -> str:
        properties = {"orientation": "Axial", "viewlabel": label, "viewcolor": color, "viewgroup": group}
        return _view("vtkMRMLSliceNode", tag, properties)

    four = [view(tag, *LABELS[tag], GROUP) for tag in TAGS.values()]
    square = _split("vertical", _split("horizontal", *four[:2]), _split("horizontal", *four[2:]))
    side = _split(
        "vertical",
        view(SLIDE_TAG, "slide", "#999999", SLIDE_GROUP),
        _view("vtkMRMLPlotViewNode", PLOT_TAG, {"viewlabel": "contributions"}),
        _view("vtkMRMLTableViewNode", TABLE_TAG, {"viewlabel": "results"}),
        sizes=(480, 300, 220),
    )
    return _split("horizontal", square, side, sizes=(680, 320))


def register() -> None:
    """Make the layout known to the scene's layout node; wanted at start-up, so that saved scenes find it."""
    node = layoutNode()
    if node is not None and not node.IsLayoutDescription(LAYOUT_ID):
        node.AddLayoutDescription(LAYOUT_ID, description())


def show(run: Any, inputs: Mapping[str, Any] | None = None) -> str:
    """`showSteps` in one go."""
    return finish(showSteps(run, inputs))


def showSteps(run: Any, inputs: Mapping[str, Any] | None = None) -> Generator[str, None, str]:
    """Show a run in its own layout in small steps; their value is one sentence about how its views are linked, "" without views.

    Args:
        inputs: input to the volume behind its heatmap; None takes those the run remembers.
    """
    node = layoutNode()
    if node is None:
        return ""
    register()
    if node.GetViewArrangement() != LAYOUT_ID:
        node.SetAttribute(PREVIOUS, str(node.GetViewArrangement()))
        _arrange(LAYOUT_ID)
        yield "arranging"
    volumes = {name: v for name, v in (run.inputs if inputs is None else inputs).items() if _isShown(v)}
    places = tags([*run.heatmaps, *(name for name in volumes if name not in run.heatmaps)])
    for tag in TAGS.values():
        names = [name for name, own in places.items() if own == tag]
        _fill(tag, volumes.get(names[0]) if names else None, run.heatmaps.get(names[0]) if names else None)
        yield tag
    _fill(SLIDE_TAG, run.slide, run.attention)
    if run.tiles is not None and sliceNode(SLIDE_TAG) is not None:
        run.tiles.GetDisplayNode().SetViewNodeIDs([sliceNode(SLIDE_TAG).GetID()])
    _showTables(run)
    yield "tables"
    said = _link({name: volumes.get(name) or run.heatmaps.get(name) for name in places}, places)
    fit()
    yield "fitting"
    yield from _jumpSteps(run, places)
    return said


def restore() -> int | None:
    """Bring back the layout that was there before `show`, unless the user has chosen another one since; None then, else its number."""
    node = layoutNode()
    previous = node.GetAttribute(PREVIOUS) if node is not None else None
    if previous is None:
        return None
    node.RemoveAttribute(PREVIOUS)
    if node.GetViewArrangement() != LAYOUT_ID:
        return None
    _arrange(int(previous))
    return int(previous)


def comeBack(previous: int) -> None:
    """Undo a `restore` that gave this number, unless the user has chosen another layout since."""
    node = layoutNode()
    if node is not None and node.GetViewArrangement() == previous:
        node.SetAttribute(PREVIOUS, str(previous))
        _arrange(LAYOUT_ID)


def tags(names: Any) -> dict[str, str]:
    """Input to the view it is shown in: its own, or for others than the four MRI the first free one."""
    places = {name: TAGS[name] for name in names if name in TAGS}
    free = [tag for tag in TAGS.values() if tag not in places.values()]
    places.update(zip((name for name in names if name not in TAGS), free))  # noqa: B905  more inputs than views: the rest is not shown
    return places


def fit() -> None:
    """Show everything: the MRI views at one scale, the slide at its own."""
    for group in ([*TAGS.values()], [SLIDE_TAG]):
        views = [(sliceLogic(tag), compositeNode(tag)) for tag in group if sliceLogic(tag) is not None]
        filled = [logic for logic, composite in views if composite.GetBackgroundVolumeID() or composite.GetForegroundVolumeID()]
        for logic in filled:
            logic.FitSliceToBackground()
        widths = [logic.GetSliceNode().GetFieldOfView()[0] for logic in filled]
        for logic, width in zip(filled, widths):  # noqa: B905
            field = logic.GetSliceNode().GetFieldOfView()
            logic.GetSliceNode().SetFieldOfView(max(widths), field[1] * max(widths) / width, field[2])


def jumpTo(ras: Any, group: int = GROUP) -> None:
    """Centre the views of a group on a point (RAS mm)."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *(float(v) for v in ras), 0, group)


def jumpToTile(run: Any, index: int) -> None:
    """Centre the slide's view on the tile of a row of the ranking (0 the highest) and go near."""
    node = sliceNode(SLIDE_TAG)
    if run.tiles is None or node is None:
        return
    point = run.tiles.GetNthControlPointPositionVector(index)
    slide = run.values["slide"]
    width = 4 * slide["tile_px"] * slide["thumbnail_px"][0] / slide["size_px"][0] * slide["thumbnail_mm_per_px"]
    field = node.GetFieldOfView()
    node.SetFieldOfView(width, width * field[1] / field[0], field[2])
    jumpTo((point[0], point[1], point[2]), SLIDE_GROUP)


def layoutNode() -> Any:
    """The scene's layout node; None in a Slicer without windows."""
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")


def sliceNode(tag: str) -> Any:
    """The slice node of a view; None before the layout was shown."""
    return next((n for n in nodesOf("vtkMRMLSliceNode") if n.GetLayoutName() == tag), None)


def compositeNode(tag: str) -> Any:
    """What a view shows; found by the view's name, for its own name is any."""
    return next((n for n in nodesOf("vtkMRMLSliceCompositeNode") if n.GetLayoutName() == tag), None)


def sliceLogic(tag: str) -> Any:
    """The logic of a view; None before the layout was shown."""
    node = sliceNode(tag)
    return None if node is None else slicer.app.applicationLogic().GetSliceLogic(node)


def _view(className: str, tag: str, properties: Mapping[str, Any]) -> str:
    inner = "".join(f'<property name="{name}" action="default">{value}</property>' for name, value in properties.items())
    return f'<view class="{className}" singletontag="{tag}">{inner}</view>'


def _split(kind: str, *parts: str, sizes: tuple[int, ...] = ()) -> str:
    sizes = sizes or (500,) * len(parts)
    items = "".join(f'<item splitSize="{size}">{part}</item>' for size, part in zip(sizes, parts))  # noqa: B905
    return f'<layout type="{kind}" split="true">{items}</layout>'


def _arrange(layout: int) -> None:
    manager = slicer.app.layoutManager()
    if manager is None:
        layoutNode().SetViewArrangement(layout)
    else:
        manager.setLayout(layout)


def _isShown(node: Any) -> bool:
    return isinstance(node, vtk.vtkObject) and node.IsA("vtkMRMLVolumeNode") and node.GetScene() is not None


def _fill(tag: str, background: Any, foreground: Any) -> None:
    composite = compositeNode(tag)
    if composite is None:
        return
    background = background if background is not None else foreground  # Slicer draws no layer over an empty background
    composite.SetBackgroundVolumeID(background.GetID() if background is not None else None)
    composite.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)
    composite.SetLabelVolumeID(None)


def _showTables(run: Any) -> None:
    for className, tag, select in (
        ("vtkMRMLTableViewNode", TABLE_TAG, "SetTableNodeID"),
        ("vtkMRMLPlotViewNode", PLOT_TAG, "SetPlotChartNodeID"),
    ):
        node = next((n for n in nodesOf(className) if n.GetSingletonTag() == tag), None)
        shown = run.table if tag == TABLE_TAG else run.chart
        if node is not None:
            getattr(node, select)(shown.GetID() if shown is not None else None)
    manager = slicer.app.layoutManager()
    if manager is None or run.contributions is None:
        return
    for i in range(manager.plotViewCount):
        widget = manager.plotWidget(i)
        if widget.mrmlPlotViewNode().GetSingletonTag() == PLOT_TAG:
            _nameBars(widget.plotView().chart(), run.contributions)


def _nameBars(chart: Any, table: Any) -> None:
    """Put the inputs' names under their bars; a plot node has no way to say it."""
    positions, names = vtk.vtkDoubleArray(), vtk.vtkStringArray()
    for row in range(table.GetNumberOfRows()):
        positions.InsertNextValue(row)
        names.InsertNextValue(table.GetCellText(row, 0))
    chart.GetAxis(1).SetCustomTickPositions(positions, names)


def _link(volumes: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Link the views, all four where the volumes share a place in the patient, else those of one day."""
    boxes = {name: _bounds(volume) for name, volume in volumes.items() if volume is not None}
    first = next(iter(boxes.values()), None)
    together = all(_overlap(first, box) >= MIN_OVERLAP for box in boxes.values())
    for name, tag in places.items():
        if sliceNode(tag) is not None:
            sliceNode(tag).SetViewGroup(GROUP if together or not name.endswith("_post") else POST_GROUP)
    for tag in (*TAGS.values(), SLIDE_TAG):
        composite = compositeNode(tag)
        if composite is not None:
            composite.SetLinkedControl(tag != SLIDE_TAG)
            composite.SetHotLinkedControl(tag != SLIDE_TAG)
    if together:
        return "The views are linked by patient coordinates."
    return "The volumes hardly overlap in space, so only views of one day are linked."


def _bounds(volume: Any) -> np.ndarray:
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    return np.reshape(bounds, (3, 2))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Shared part of the smaller box, the worst of the three axes."""
    shared = np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0])
    return float((shared / np.minimum(a[:, 1] - a[:, 0], b[:, 1] - b[:, 0])).min())


def _jumpSteps(run: Any, places: Mapping[str, str]) -> Iterator[str]:
    """Bring the hottest voxel into the plane of every view of its group."""
    done: set[int] = set()
    peaks: dict[str, tuple[float, tuple[int, ...]]] = {}  # map to its largest value, and where (k, j, i)
    for name, heat in run.heatmaps.items():
        if name in places and heat.GetImageData():
            values = imageArray(heat.GetImageData())
            index = np.unravel_index(int(values.argmax()), values.shape)
            peaks[name] = float(values[index]), tuple(int(n) for n in index)
            yield name
    for name, (top, (k, j, i)) in sorted(peaks.items(), key=lambda item: -item[1][0]):
        node = sliceNode(places[name])
        if node is None or node.GetViewGroup() in done or top <= 0:
            continue
        done.add(node.GetViewGroup())
        ras = worldMatrix(run.heatmaps[name]) @ [i, j, k, 1.0]
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *ras[:3], 1, node.GetViewGroup())
