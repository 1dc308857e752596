"""What a prediction says as nodes: results table, contributions chart, slide with attention and ranked tiles. Needs only MRML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from HARM3Logic.errors import BadOption
from HARM3SlicerLib.steps import named
from HARM3SlicerLib.volumes import addVolume, addVolumeSteps

ATTENTION = ("slide_attention_tiles.nrrd", "slide_attention.nrrd")  # the finest first: edges of tiles fall between thumbnail pixels
ROLE = "HARM3."  # begins the names of node references and attributes


def addResultsTable(values: Mapping[str, Any], folder: Path) -> Any:
    """Two columns of text: what a reader of the scene wants to see, or to export as CSV."""
    low, high = values.get("interval", (None, None))
    percent = lambda v: "" if v is None else f"{100 * v:.1f} %"  # noqa: E731
    rows = [
        ("case", values["case_id"]),
        ("probability", percent(values["probability"])),
        ("95 % interval", f"{percent(low)} to {percent(high)}"),
        ("decision", values.get("decision", "")),
        ("threshold", percent(values.get("threshold"))),
        *((f"left out {name}", f"{100 * change:+.2f} points") for name, change in values.get("contributions", {}).items()),
        *(
            (f"heat in tumour, {name}", percent(heat.get("share_in_tumour")))
            for name, heat in values.get("heat", {}).items()
            if heat.get("share_in_tumour") is not None
        ),
        *((f"warning {w['code']}", w["message"]) for w in values.get("warnings", [])),
        ("model", values.get("model", {}).get("name", "")),
        ("checkpoint SHA-256", values.get("model", {}).get("checkpoint_sha256", "")),
        ("made", values.get("created", "")),
        ("use", "Research only, not for clinical use"),
    ]
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", f"HARM3 {values['case_id']} results")
    for column, texts in zip(("quantity", "value"), zip(*rows)):  # noqa: B905  rows are pairs
        table.AddColumn(_column(column, texts))
    table.SetUseColumnTitleAsColumnHeader(True)
    table.SetLocked(True)
    table.SetAttribute(f"{ROLE}prediction", json.dumps(values, ensure_ascii=False))
    table.SetAttribute(f"{ROLE}folder", str(folder))
    return table


def addChart(values: Mapping[str, Any], table: Any) -> None:
    """What each input contributed as bars; their names under the bars are set by the layout, which alone knows the plot widget."""
    shares = values.get("contributions", {})
    if not shares:
        return
    add = slicer.mrmlScene.AddNewNodeByClass
    data = add("vtkMRMLTableNode", f"HARM3 {values['case_id']} contributions")
    data.AddColumn(_column("input", list(shares)))
    for name, numbers in (("position", range(len(shares))), ("contribution", [100 * v for v in shares.values()])):
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        for number in numbers:
            column.InsertNextValue(number)
        data.AddColumn(column)
    data.SetLocked(True)
    series = add("vtkMRMLPlotSeriesNode", "contribution")
    series.SetAndObserveTableNodeID(data.GetID())
    series.SetXColumnName("position")
    series.SetYColumnName("contribution")
    series.SetLabelColumnName("input")
    series.SetPlotType(series.PlotTypeScatterBar)
    series.SetColor(0.27, 0.51, 0.71)
    chart = add("vtkMRMLPlotChartNode", f"HARM3 {values['case_id']} chart")
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle("What each input contributed")
    chart.SetYAxisTitle("percentage points")
    chart.SetXAxisTitle("")
    chart.SetLegendVisibility(False)
    heights = [0.0, *(100 * v for v in shares.values())]
    margin = 0.1 * (max(heights) - min(heights)) or 1.0
    chart.SetYAxisRangeAuto(False)  # Slicer's own range cuts the highest bar
    chart.SetYAxisRange(min(heights) - margin, max(heights) + margin)
    for role, node in (("contributions", data), ("series", series), ("chart", chart)):
        table.SetNodeReferenceID(ROLE + role, node.GetID())


def addSlide(folder: Path, values: Mapping[str, Any], table: Any) -> Iterator[str]:
    """Thumbnail, attention and ranked tiles in one flat frame with true mm per pixel, the thumbnail's upper left pixel at 0.

    The attention has a pixel for each tile where the prediction has written it so; else it lies on the thumbnail's pixels.
    """
    file = next(path for name in ATTENTION if (path := folder / name).is_file())
    steps = addVolumeSteps(file, f"HARM3 {values['case_id']} slide attention")
    attention = yield from named("slide", steps)
    table.SetNodeReferenceID(f"{ROLE}attention", attention.GetID())
    attention.GetDisplayNode().SetInterpolate(0)
    path = folder / "slide_thumbnail.png"
    if not path.is_file():
        raise BadOption(f"the results folder {str(folder)!r} lacks slide_thumbnail.png.", "Run the prediction again.")
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    columns, rows, _ = image.GetDimensions()
    colors = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3]  # VTK counts rows from below
    case = values["case_id"]
    mm = values["slide"]["thumbnail_mm_per_px"]
    slide = addVolume(f"HARM3 {case} slide (not in patient space)", colors[None], np.diag([-mm, -mm, 1.0, 1.0]), "VectorVolume")
    slide.SetVoxelVectorType(slicer.vtkMRMLVolumeNode.VoxelVectorTypeColorRGB)
    table.SetNodeReferenceID(f"{ROLE}slide", slide.GetID())
    yield "slide"
    tiles = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", f"HARM3 {case} tiles")
    table.SetNodeReferenceID(f"{ROLE}tiles", tiles.GetID())
    tiles.CreateDefaultDisplayNodes()
    for tile in values.get("tiles", []):
        index = tiles.AddControlPoint(vtk.vtkVector3d(*tilePoint(values, tile)), str(tile["rank"]))
        tiles.SetNthControlPointDescription(index, f"attention {100 * tile['weight']:.1f} %")
    tiles.SetLocked(True)
    yield "slide"


def tilePoint(values: Mapping[str, Any], tile: Mapping[str, Any]) -> tuple[float, float, float]:
    """Centre of a ranked tile where the thumbnail lies in the scene (RAS)."""
    slide = values["slide"]
    x, y = (
        ((tile[key] + slide["tile_px"] / 2) * small / whole - 0.5) * slide["thumbnail_mm_per_px"]
        for key, small, whole in zip(("x_px", "y_px"), slide["thumbnail_px"], slide["size_px"])  # noqa: B905
    )
    return -x, -y, 0.0


def _column(name: str, texts: Any) -> vtk.vtkStringArray:
    column = vtk.vtkStringArray()
    column.SetName(name)
    for text in texts:
        column.InsertNextValue(str(text))
    return column
