"""How the heatmaps of a run look: graded overlay, threshold, colours, outlines, scale, on and off. Needs only MRML.

Slicer blends a scalar volume with all or nothing, so the scalar heatmap stays each view's foreground for data probe and legend, but its
threshold lets nothing through; what is seen is an RGBA volume in the layer above, whose alpha grows with the heat.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import slicer

from HARM3SlicerLib import layout
from HARM3SlicerLib.drawn import Drawn
from HARM3SlicerLib.scene import SHOWN, Run
from HARM3SlicerLib.steps import finish
from HARM3SlicerLib.volumes import removeNode

COLORS = {name: f"vtkMRMLColorTableNodeFile{name}.txt" for name in ("Inferno", "Magma", "Plasma", "Viridis", "Cividis")}
BUILT_IN = "vtkMRMLColorTableNodeIron"  # where Slicer's folder of colour files is missing
LEVELS = {0.5: (1.0, 0.84, 0.0), 0.75: (1.0, 0.47, 0.0), 0.9: (0.9, 0.05, 0.05)}  # of the maximum: yellow, orange, red
LAYER = 3  # the first above background, foreground and label
GAMMA = 0.6  # alpha over the threshold: half of the heat should already be seen well
SLIDE = "slide"  # name of the attention among the maps
SLIDE_OPACITY, SLIDE_RGB, SLIDE_COLORS = 0.7, (0, 110, 50), "vtkMRMLColorTableNodeGreen"  # a stain is never green


class HeatmapDisplay:
    """The look of a run's maps. Made again for each run, also after a scene was loaded.

    Args:
        opacity: from 0 to 1, the same for all views: linked views share it.
        threshold: heat below this share of the scale's maximum is not shown.
        color: a name of `COLORS` or the ID of a colour node.
        jointScale: one scale for all volumes (Grad-CAM has no unit), or each volume's own maximum as 1.
        outline: lines at 50, 75 and 90 % of the maximum in place of the coloured overlay.
        visible: what the blink key turns.
    """

    def __init__(
        self,
        run: Run,
        opacity: float = 0.6,
        threshold: float = 0.2,
        color: str = "Inferno",
        jointScale: bool = True,
        outline: bool = False,
        visible: bool = True,
    ) -> None:
        self.run = run
        self.opacity, self.threshold, self.color, self.jointScale = opacity, threshold, color, jointScale
        self.outline, self.visible = outline, visible
        self._drawn: dict[str, Drawn] = {}
        self._forgetOld()

    def applySteps(self) -> Iterator[str]:
        """Bring everything to the screen in small steps, each named by its map."""
        for name, node in self._maps().items():
            if name not in self._drawn or not self._drawn[name].ready:
                drawn = Drawn(node, self.run.table, whole=name == SLIDE)
                for _ in drawn.prepareSteps():
                    yield name
                self._drawn[name] = drawn
            self._paint(name)
            yield name
        self._setLegends()
        if self.outline:
            yield from self._outlineSteps()
        self._setLayers()

    def changeSteps(self, **look: Any) -> Iterator[str]:
        """Change opacity, threshold, color, jointScale, outline or visible in small steps; what is so already is not touched.

        The steps must be gone through to their end, or the views show a mixture.
        """
        changed = {name for name, value in look.items() if getattr(self, name) != value}
        for name in changed:
            setattr(self, name, look[name])
        if changed & {"threshold", "color", "jointScale"}:
            for name in self._maps():
                if name != SLIDE:
                    self._paint(name)
                    yield name
        if "jointScale" in changed:
            self._setLegends()
        if self.outline and changed & {"jointScale", "outline"}:
            yield from self._outlineSteps()
        if changed:
            self._setLayers()

    def apply(self) -> None:
        """`applySteps` in one go."""
        finish(self.applySteps())

    def change(self, **look: Any) -> None:
        """`changeSteps` in one go."""
        finish(self.changeSteps(**look))

    def shareInTumour(self) -> dict[str, float | None]:
        """Map to the share of its heat inside the tumour mask; None where no mask was given."""
        return {name: heat.get("share_in_tumour") for name, heat in self.run.values.get("heat", {}).items()}

    def remove(self) -> None:
        """Take away what only draws; the heatmaps stay."""
        for drawn in self._drawn.values():
            drawn.remove()
        self._drawn.clear()

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
        return 1.0 if self.jointScale or name == SLIDE or name not in self._drawn else self._drawn[name].top or 1.0

    def _colors(self) -> Any:
        scene = slicer.mrmlScene
        return scene.GetNodeByID(COLORS.get(self.color, self.color)) or scene.GetNodeByID(BUILT_IN)

    def _paint(self, name: str) -> None:
        """Colours and alpha of a map, of its scalar volume and its legend too."""
        drawn = self._drawn.get(name)
        if drawn is not None and drawn.ready:
            drawn.paint(self._table(name))
        display, top = self._maps()[name].GetDisplayNode(), self._top(name)
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0, top)
        display.SetAndObserveColorNodeID(SLIDE_COLORS if name == SLIDE else self._colors().GetID())
        low = 0.0 if name == SLIDE else self.threshold * top
        display.SetThreshold(low, low - 1)  # an empty range: the layer above draws it
        composite = layout.compositeNode(self._tags().get(name, ""))
        alone = composite is not None and composite.GetBackgroundVolumeID() == self._maps()[name].GetID()
        display.SetApplyThreshold(not alone)  # without its volume the map itself is the picture

    def _table(self, name: str) -> np.ndarray:
        """RGBA for each of 256 levels between 0 and the map's largest value."""
        table = np.zeros((256, 4), np.uint8)
        table[:, :3] = SLIDE_RGB
        level = np.clip(np.arange(256) / 255 * self._drawn[name].top / self._top(name), 0, 1)  # on the scale that is shown
        if name != SLIDE:
            colors, rgba = self._colors(), [0.0] * 4
            for i in range(256):
                colors.GetColor(round(level[i] * (colors.GetNumberOfColors() - 1)), rgba)
                table[i, :3] = [round(255 * v) for v in rgba[:3]]
        low = 0.0 if name == SLIDE else min(self.threshold, 0.999)
        alpha = np.clip((level - low) / (1 - low), 0, 1) ** GAMMA
        table[:, 3] = np.round(255 * np.where((level < low) | (level == 0), 0, alpha))
        return table

    def _setLayers(self) -> None:
        """Foreground opacity and the graded layer of every view; which outlines are seen."""
        for name, tag in self._tags().items():
            composite, drawn = layout.compositeNode(tag), self._drawn.get(name)
            if drawn is not None:
                drawn.showLines([value for value, _, _ in self._levels(name)] if self.outline and self.visible else ())
            if composite is None or composite.GetForegroundVolumeID() != self._maps()[name].GetID():
                continue  # the user has put something else there
            seen = self.visible and (name == SLIDE or not self.outline)
            opacity = (SLIDE_OPACITY if name == SLIDE else self.opacity) if seen else 0.0
            composite.SetForegroundOpacity(opacity)
            if drawn is not None and drawn.ready:
                composite.SetNthLayerVolumeID(LAYER, drawn.graded.GetID())
                composite.SetNthLayerOpacity(LAYER, opacity)

    def _levels(self, name: str) -> list[tuple[float, str, tuple[float, float, float]]]:
        return [(share * self._top(name), f"{round(100 * share)} %", color) for share, color in LEVELS.items()]

    def _outlineSteps(self) -> Iterator[str]:
        """Make the lines that are not there yet, each in its own view."""
        for name, tag in self._tags().items():
            node, drawn = layout.sliceNode(tag), self._drawn.get(name)
            if name == SLIDE or node is None or drawn is None:
                continue
            for value, label, color in self._levels(name):
                model = drawn.line(value, label, color)
                if model is not None:
                    model.GetDisplayNode().SetViewNodeIDs([node.GetID()])
                yield name

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

    def _forgetOld(self) -> None:
        """Remove what an earlier display of this run drew."""
        table = self.run.table
        for node in [table.GetNthNodeReference(SHOWN, i) for i in range(table.GetNumberOfNodeReferences(SHOWN))]:
            if node is not None:
                removeNode(node)
        table.RemoveNodeReferenceIDs(SHOWN)
