"""What is drawn of one map: an RGBA volume whose alpha grows with the heat, and lines of equal heat. Needs only MRML.

Both are made on a grid no finer than the map deserves: Grad-CAM has far fewer cells than the volume it is laid over, and what is drawn must
follow a slider. Threshold, colours and scale are a table of 256 colours over voxels that were sorted into 256 levels once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from HARM3SlicerLib.scene import SHOWN
from HARM3SlicerLib.volumes import addVolume, imageArray, removeNode, toVtk, worldMatrix

MOST_VOXELS = 1 << 20  # of a drawn map: coloured anew in 3 ms
CHUNK = 16384  # voxels that stay in the processor's cache: four times as fast as the whole at once
PART = 1 << 21  # voxels looked at in one step


class Drawn:
    """One map on its way to the screen.

    Args:
        heat: the map's volume node.
        table: results table of the run, which remembers what only draws.
        whole: draw every voxel, as the squares of a slide's tiles ask for.
    """

    def __init__(self, heat: Any, table: Any, whole: bool = False) -> None:
        self.heat, self._table = heat, table
        shape = heat.GetImageData().GetDimensions()[::-1]
        self._steps = (1, 1, 1) if whole else strides(shape, heat.GetSpacing()[::-1])
        self.top = 0.0  # largest value of the map
        self.graded: Any = None  # the RGBA volume
        self._levels: np.ndarray | None = None  # 0 to 255 of the largest value
        self._coarse: Any = None  # the same values as numbers, for the lines
        self._lines: dict[float, Any] = {}  # value to its model, None where the map stays below

    @property
    def ready(self) -> bool:
        return self._levels is not None and self.graded is not None and self.graded.GetScene() is not None

    def prepareSteps(self) -> Iterator[None]:
        """Look through the map once and make the RGBA volume, still without colours."""
        values = imageArray(self.heat.GetImageData())
        flat = values.reshape(-1)
        for start in range(0, flat.size, PART):
            self.top = max(self.top, float(flat[start : start + PART].max()))
            yield
        k, j, i = self._steps
        coarse = np.ascontiguousarray(values[::k, ::j, ::i], np.float32)
        yield
        scale, numbers = np.float32(255 / (self.top or 1.0)), coarse.reshape(-1)
        levels = np.empty(numbers.size, np.uint8)
        for part in _chunks(numbers.size):
            levels[part] = np.clip(numbers[part] * scale, 0, 255)
        yield
        self._coarse = vtk.vtkImageData()
        self._coarse.SetDimensions(*coarse.shape[::-1])
        self._coarse.GetPointData().SetScalars(numpy_to_vtk(numbers, deep=True))
        self._levels = levels
        self._makeGraded(coarse.shape)
        yield

    def paint(self, colors: np.ndarray) -> None:
        """Colour the RGBA volume.

        Args:
            colors: 256 times RGBA (uint8), for the levels of the map from 0 to its largest value.
        """
        image, table = self.graded.GetImageData(), np.ascontiguousarray(colors).view(np.uint32)[:, 0]
        flat = imageArray(image).reshape(-1, 4).view(np.uint32)[:, 0]
        for part in _chunks(flat.size):
            np.take(table, self._levels[part], out=flat[part], mode="clip")
        image.GetPointData().GetScalars().Modified()
        image.Modified()
        self.graded.Modified()

    def line(self, value: float, label: str, color: tuple[float, float, float]) -> Any:
        """A surface of one value, cut by its view into lines; made once. None where the map stays below."""
        if value not in self._lines or (self._lines[value] is not None and self._lines[value].GetScene() is None):
            surface = self._surface(value)
            self._lines[value] = None if surface is None else self._model(surface, label, color)
        return self._lines[value]

    def showLines(self, values: Iterable[float]) -> None:
        """Show the lines of these values and no others, those of another scale included."""
        wanted = set(values)
        for value, model in self._lines.items():
            if model is not None and model.GetDisplayNode() is not None:
                model.GetDisplayNode().SetVisibility(value in wanted)

    def remove(self) -> None:
        """Take away what only draws."""
        for node in (*self._lines.values(), self.graded):
            if node is not None:
                removeNode(node)
        self._lines.clear()
        self.graded = None

    def _matrix(self) -> np.ndarray:
        """Index of the drawn grid to the world."""
        return worldMatrix(self.heat) @ np.diag([*self._steps[::-1], 1.0])

    def _makeGraded(self, shape: tuple[int, ...]) -> None:
        node = addVolume(f"{self.heat.GetName()} (colours)", np.zeros((*shape, 4), np.uint8), self._matrix(), "VectorVolume")
        node.SetVoxelVectorType(slicer.vtkMRMLVolumeNode.VoxelVectorTypeColorRGBA)
        _onlyDraws(node)
        node.GetDisplayNode().SetInterpolate(self.heat.GetDisplayNode().GetInterpolate())
        self._table.AddNodeReferenceID(SHOWN, node.GetID())
        self.graded = node

    def _surface(self, value: float) -> Any:
        edges = vtk.vtkFlyingEdges3D()
        edges.SetInputData(self._coarse)
        edges.SetValue(0, value)
        edges.ComputeScalarsOff()  # else the lines take the colours of the scalars
        edges.ComputeNormalsOff()
        transform = vtk.vtkTransform()
        transform.SetMatrix(toVtk(self._matrix()))
        place = vtk.vtkTransformPolyDataFilter()
        place.SetTransform(transform)
        place.SetInputConnection(edges.GetOutputPort())
        place.Update()
        return place.GetOutput() if place.GetOutput().GetNumberOfPoints() else None

    def _model(self, surface: Any, label: str, color: tuple[float, float, float]) -> Any:
        model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", f"{self.heat.GetName()} {label}")
        model.SetAndObserveMesh(surface)
        model.CreateDefaultDisplayNodes()
        _onlyDraws(model)
        display = model.GetDisplayNode()
        display.SetColor(*color)
        display.SetVisibility(False)  # until all lines are made and the colours go
        display.SetVisibility2D(True)
        display.SetVisibility3D(False)
        display.SetSliceIntersectionThickness(2)
        self._table.AddNodeReferenceID(SHOWN, model.GetID())
        return model


def strides(shape: tuple[int, ...], spacing: tuple[float, ...]) -> tuple[int, ...]:
    """How many voxels of each axis go into one that is drawn: the finest axis is thinned first."""
    steps = [1] * len(shape)
    while np.prod([-(-n // step) for n, step in zip(shape, steps)]) > MOST_VOXELS:  # noqa: B905
        steps[min((s * step, axis) for axis, (s, step) in enumerate(zip(spacing, steps)))[1]] += 1  # noqa: B905
    return tuple(steps)


def _onlyDraws(node: Any) -> None:
    """Hidden from the user's lists and from saved scenes."""
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.GetDisplayNode().SetSaveWithScene(False)


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, size, CHUNK))
