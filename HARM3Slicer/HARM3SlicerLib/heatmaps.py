"""How the heatmaps of a run look: graded overlay, threshold, colours, outlines, scale, on and off. Needs only MRML.

Slicer blends a scalar volume with all or nothing, so the scalar heatmap stays each view's foreground for data probe and legend, but its
threshold lets nothing through; what is seen is an RGBA volume of the same voxels in the layer above, whose alpha grows with the heat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import slicer
import vtk

from HARM3SlicerLib import layout
from HARM3SlicerLib.scene import SHOWN, Run
from HARM3SlicerLib.volumes import addVolume, imageArray, removeNode, worldMatrix

COLORS = {name: f"vtkMRMLColorTableNodeFile{name}.txt" for name in ("Inferno", "Magma", "Plasma", "Viridis", "Cividis")}
BUILT_IN = "vtkMRMLColorTableNodeIron"  # where Slicer's folder of colour files is missing
LEVELS = {0.5: (1.0, 0.84, 0.0), 0.75: (1.0, 0.47, 0.0), 0.9: (0.9, 0.05, 0.05)}  # of the maximum: yellow, orange, red
LAYER = 3  # the first above background, foreground and label
GAMMA = 0.6  # alpha over the threshold: half of the heat should already be seen well
SLIDE = "slide"  # name of the attention among the maps
SLIDE_OPACITY, SLIDE_RGB, SLIDE_COLORS = 0.7, (0, 110, 50), "vtkMRMLColorTableNodeGreen"  # a stain is never green


class HeatmapDisplay:
    """The look of a run's maps; every setter shows at once. Made again for each run, also after a scene was loaded."""

    def __init__(self, run: Run, opacity: float = 0.6, threshold: float = 0.2, color: str = "Inferno", jointScale: bool = True) -> None:
        self.run = run
        self.opacity, self.threshold, self.color, self.jointScale = opacity, threshold, color, jointScale
        self.outline, self.visible = False, True
        self._graded: dict[str, Any] = {}  # map to its RGBA volume
        self._levels: dict[str, np.ndarray] = {}  # map to its voxels as 0 to 255 of the scale
        self._outlines: list[Any] = []
        self._forgetOld()

    def applySteps(self) -> Iterator[str]:
        """Bring everything to the screen, one map each step."""
        for name in self._maps():
            self._prepare(name)
            yield name
            self._quantise(name)
            yield name
            self._paint(name)
            self._setScalar(name)
            yield name
        self._setLegends()
        self._setLayers()
        if self.outline:
            self._makeOutlines()
            yield "outlines"

    def apply(self) -> None:
        """`applySteps` in one go."""
        for _ in self.applySteps():
            pass

    def setOpacity(self, opacity: float) -> None:
        """From 0 to 1, the same for all views: linked views share it."""
        self.opacity = opacity
        self._setLayers()

    def setThreshold(self, threshold: float) -> None:
        """Hide heat below this share of the scale's maximum."""
        self.threshold = threshold
        for name in self._maps():
            self._paint(name)
            self._setScalar(name)

    def setColor(self, name: str) -> None:
        """A name of `COLORS` or the ID of a colour node."""
        self.color = name
        for key in self._maps():
            self._paint(key)
            self._setScalar(key)

    def setJointScale(self, joint: bool) -> None:
        """One scale for all volumes (Grad-CAM has no unit), or each volume's own maximum as 1."""
        self.jointScale = joint
        self.apply()

    def setOutline(self, outline: bool) -> None:
        """Lines at 50, 75 and 90 % of the maximum in place of the coloured overlay."""
        self.outline = outline
        if outline:
            self._makeOutlines()
        else:
            self._removeOutlines()
        self._setLayers()

    def setVisible(self, visible: bool) -> None:
        """Show or hide overlay and outlines, for the blink key."""
        self.visible = visible
        self._setLayers()
        for model in self._outlines:
            model.GetDisplayNode().SetVisibility(visible)

    def shareInTumour(self) -> dict[str, float | None]:
        """Map to the share of its heat inside the tumour mask; None where no mask was given."""
        return {name: heat.get("share_in_tumour") for name, heat in self.run.values.get("heat", {}).items()}

    def remove(self) -> None:
        """Take away what only draws; the heatmaps stay."""
        self._removeOutlines()
        for node in self._graded.values():
            removeNode(node)
        self._graded.clear()

    def _maps(self) -> dict[str, Any]:
        maps = dict(self.run.heatmaps)
        if self.run.attention is not None:
            maps[SLIDE] = self.run.attention
        return {name: node for name, node in maps.items() if node.GetScene() is not None and node.GetImageData() is not None}

    def _tags(self) -> dict[str, str]:
        maps = self._maps()
        return {**layout.tags([name for name in maps if name != SLIDE]), **({SLIDE: layout.SLIDE_TAG} if SLIDE in maps else {})}

    def _top(self, name: str) -> float:
        """The value that counts as the maximum."""
        if self.jointScale or name == SLIDE:
            return 1.0
        return float(imageArray(self.run.heatmaps[name].GetImageData()).max()) or 1.0

    def _colors(self) -> Any:
        scene = slicer.mrmlScene
        return scene.GetNodeByID(COLORS.get(self.color, self.color)) or scene.GetNodeByID(BUILT_IN)

    def _quantise(self, name: str) -> None:
        values = imageArray(self._maps()[name].GetImageData())
        flat, scale = values.reshape(-1), np.float32(255 / self._top(name))
        levels = np.empty(flat.size, np.uint8)
        for part in _chunks(flat.size):
            levels[part] = np.clip(flat[part] * scale, 0, 255)
        self._levels[name] = levels

    def _prepare(self, name: str) -> None:
        """The RGBA volume of a map, still empty, on the map's grid."""
        node = self._graded.get(name)
        if node is not None and node.GetScene() is not None:
            return
        heat = self._maps()[name]
        shape = heat.GetImageData().GetDimensions()[::-1]
        node = addVolume(f"{heat.GetName()} (colours)", np.zeros((*shape, 4), np.uint8), np.eye(4), "VectorVolume")
        node.SetVoxelVectorType(slicer.vtkMRMLVolumeNode.VoxelVectorTypeColorRGBA)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node.GetDisplayNode().SetSaveWithScene(False)
        node.CopyOrientation(heat)
        node.GetDisplayNode().SetInterpolate(heat.GetDisplayNode().GetInterpolate())
        self.run.table.AddNodeReferenceID(SHOWN, node.GetID())
        self._graded[name] = node

    def _paint(self, name: str) -> None:
        """Fill the RGBA volume of a map from a table of 256 colours."""
        self._prepare(name)
        node = self._graded[name]
        scalars = node.GetImageData().GetPointData().GetScalars()
        flat = imageArray(node.GetImageData()).reshape(-1, 4).view(np.uint32)[:, 0]
        table, levels = self._table(name), self._levels[name]
        for part in _chunks(flat.size):
            np.take(table, levels[part], out=flat[part], mode="clip")
        scalars.Modified()
        node.GetImageData().Modified()
        node.Modified()

    def _table(self, name: str) -> np.ndarray:
        table = np.zeros((256, 4), np.uint8)
        table[:, :3] = SLIDE_RGB
        if name != SLIDE:
            colors, rgba = self._colors(), [0.0] * 4
            for i in range(256):
                colors.GetColor(i * (colors.GetNumberOfColors() - 1) // 255, rgba)
                table[i, :3] = [round(255 * v) for v in rgba[:3]]
        level = np.arange(256) / 255
        low = 0.0 if name == SLIDE else min(self.threshold, 0.999)
        alpha = np.clip((level - low) / (1 - low), 0, 1) ** GAMMA
        table[:, 3] = np.round(255 * np.where((level < low) | (level == 0), 0, alpha))
        return table.view(np.uint32)[:, 0]

    def _setScalar(self, name: str) -> None:
        display, top = self._maps()[name].GetDisplayNode(), self._top(name)
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0, top)
        display.SetAndObserveColorNodeID(SLIDE_COLORS if name == SLIDE else self._colors().GetID())
        low = 0.0 if name == SLIDE else self.threshold * top
        display.SetThreshold(low, low - 1)  # an empty range: the layer above draws it
        composite = layout.compositeNode(self._tags().get(name, ""))
        alone = composite is not None and composite.GetBackgroundVolumeID() == self._maps()[name].GetID()
        display.SetApplyThreshold(not alone)  # without its volume the map itself is the picture

    def _setLayers(self) -> None:
        """Foreground opacity and the graded layer of every view."""
        for name, tag in self._tags().items():
            composite, graded = layout.compositeNode(tag), self._graded.get(name)
            if composite is None or composite.GetForegroundVolumeID() != self._maps()[name].GetID():
                continue  # the user has put something else there
            drawn = self.visible and (name == SLIDE or not self.outline)
            opacity = (SLIDE_OPACITY if name == SLIDE else self.opacity) if drawn else 0.0
            composite.SetForegroundOpacity(opacity)
            if graded is not None and graded.GetScene() is not None:
                composite.SetNthLayerVolumeID(LAYER, graded.GetID())
                composite.SetNthLayerOpacity(LAYER, opacity)

    def _setLegends(self) -> None:
        """A legend in the first view; on each volume's own scale in every view."""
        logic = slicer.vtkSlicerColorLogic
        for i, (name, tag) in enumerate(layout.tags(list(self.run.heatmaps)).items()):
            heat, node = self.run.heatmaps[name], layout.sliceNode(tag)
            legend = logic.GetColorLegendDisplayNode(heat)
            if legend is None and node is not None and (i == 0 or not self.jointScale):
                legend = logic.AddDefaultColorLegendDisplayNode(heat)
            if legend is None:
                continue
            legend.SetTitleText("Grad-CAM\n(joint scale)" if self.jointScale else "Grad-CAM\n(own scale)")
            legend.SetLabelFormat("%.2f" if self.jointScale else "%.2g")
            legend.SetNumberOfLabels(5)
            legend.SetSize(0.12, 0.42)
            legend.SetPosition(0.97, 0.6)
            legend.SetVisibility(i == 0 or not self.jointScale)
            if node is not None:
                legend.SetViewNodeIDs([node.GetID()])

    def _makeOutlines(self) -> None:
        self._removeOutlines()
        for name, tag in self._tags().items():
            node = layout.sliceNode(tag)
            if name == SLIDE or node is None:
                continue
            for share, color in LEVELS.items():
                model = self._outline(self.run.heatmaps[name], share * self._top(name), f"{round(100 * share)} %", color)
                if model is not None:
                    model.GetDisplayNode().AddViewNodeID(node.GetID())
                    self._outlines.append(model)

    def _outline(self, heat: Any, value: float, label: str, color: tuple[float, float, float]) -> Any:
        """A surface of one value, cut by its view into lines; None where the map stays below."""
        edges = vtk.vtkFlyingEdges3D()
        edges.SetInputData(heat.GetImageData())
        edges.SetValue(0, value)
        edges.ComputeScalarsOff()  # else the lines take the colours of the scalars
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(worldMatrix(heat).ravel())
        transform = vtk.vtkTransform()
        transform.SetMatrix(matrix)
        place = vtk.vtkTransformPolyDataFilter()
        place.SetTransform(transform)
        place.SetInputConnection(edges.GetOutputPort())
        place.Update()
        if place.GetOutput().GetNumberOfPoints() == 0:
            return None
        model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", f"{heat.GetName()} {label}")
        model.SetAndObserveMesh(place.GetOutput())
        model.CreateDefaultDisplayNodes()
        model.SetHideFromEditors(True)
        model.SetSaveWithScene(False)
        display = model.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetColor(*color)
        display.SetVisibility(self.visible)
        display.SetVisibility2D(True)
        display.SetVisibility3D(False)
        display.SetSliceIntersectionThickness(2)
        self.run.table.AddNodeReferenceID(SHOWN, model.GetID())
        return model

    def _removeOutlines(self) -> None:
        for model in self._outlines:
            removeNode(model)
        self._outlines.clear()

    def _forgetOld(self) -> None:
        """Remove what an earlier display of this run drew."""
        table = self.run.table
        for node in [table.GetNthNodeReference(SHOWN, i) for i in range(table.GetNumberOfNodeReferences(SHOWN))]:
            if node is not None:
                removeNode(node)
        table.RemoveNodeReferenceIDs(SHOWN)


def _chunks(size: int) -> Iterator[slice]:
    """Parts small enough for the processor's cache: four times as fast as the whole at once."""
    return (slice(start, start + 16384) for start in range(0, size, 16384))
