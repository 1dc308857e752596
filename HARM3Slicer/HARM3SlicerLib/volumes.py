"""Volume nodes and what is asked of them again and again. Needs only MRML; arrays are k, j, i."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import get_vtk_array_type, numpy_to_vtk, vtk_to_numpy

from HARM3Logic.errors import BadVolume
from HARM3SlicerLib import nrrd, series


def addVolume(name: str, array: np.ndarray, ijkToRas: np.ndarray, kind: str = "ScalarVolume") -> Any:
    """A volume node of an array k, j, i (and component), with a display node that keeps its hands off window and level."""
    count = array.shape[3] if array.ndim == 4 else 1
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[2::-1])
    flat = np.ascontiguousarray(array).reshape((-1, count) if count > 1 else -1)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    return _addImage(name, image, ijkToRas, kind)


def addVolumeSteps(path: Path, name: str) -> Generator[None, None, Any]:
    """A scalar volume node from a NRRD file of ours, read in small steps straight into its place; the generator's value.

    Raises:
        BadVolume: the file cannot be read.
    """
    image = vtk.vtkImageData()

    def allocate(shape: tuple[int, ...], kind: str) -> np.ndarray:
        image.SetDimensions(*shape[::-1])
        image.AllocateScalars(get_vtk_array_type(np.dtype(kind)), 1)
        return imageArray(image)

    _, matrix = yield from nrrd.readSteps(path, allocate)
    return _addImage(name, image, matrix)


def _addImage(name: str, image: vtk.vtkImageData, ijkToRas: np.ndarray, kind: str = "ScalarVolume") -> Any:
    count = image.GetNumberOfScalarComponents()
    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
    node.SetIJKToRASMatrix(toVtk(np.asarray(ijkToRas, dtype=float)))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()  # before the image comes: Slicer would look through all of it
    display.SetWindowLevelMinMax(0, 255 if count > 1 else 1)
    node.SetAndObserveImageData(image)
    return node


def loadVolume(path: Path, name: str, kind: str = "ScalarVolume", files: Sequence[Path] = ()) -> Any:
    """A volume node from an image file, or from a DICOM series; shown nowhere yet.

    Args:
        path: the file, or a folder that holds one series and nothing else.
        files: of the series in the order of its slices, where they are known; Slicer's reader would take them by name.

    Raises:
        BadVolume: it cannot be read.
    """
    if path.is_dir() and not files:
        files = series.inOrder(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    file = files[0] if files else path
    if not file.is_file():
        raise BadVolume(f"the image {str(path)!r} does not exist.", "Check the path.")
    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
    isNrrd = file.suffix.lower() in (".nrrd", ".nhdr")
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLNRRDStorageNode" if isNrrd else "vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(file))
    storage.SetCenterImage(0)
    if not isNrrd:
        storage.SetSingleFile(len(files) < 2)
    for one in files:
        storage.AddFileName(str(one))
    node.SetAndObserveStorageNodeID(storage.GetID())
    if not storage.ReadData(node) or node.GetImageData() is None:
        removeNode(node)
        raise BadVolume(f"the image {str(path)!r} cannot be read.", "Choose NRRD, NIfTI, MHA or a folder of one DICOM series.")
    node.CreateDefaultDisplayNodes()
    return node


def removeNode(node: Any) -> None:
    """Take a node out of its scene together with what only serves it: display nodes, legends, storage nodes."""
    scene = node.GetScene()
    if scene is None:
        return
    serving = [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())] if node.IsA("vtkMRMLDisplayableNode") else []
    if node.IsA("vtkMRMLStorableNode"):
        serving += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
    for other in [node, *serving]:
        if other is not None and other.GetScene() is scene:
            scene.RemoveNode(other)


def nodesOf(className: str = "vtkMRMLNode", scene: Any = None) -> list[Any]:
    """The nodes of a class in a scene (None: Slicer's)."""
    nodes = (scene or slicer.mrmlScene).GetNodesByClass(className)
    nodes.UnRegister(None)  # the collection comes with a reference of its own
    return [nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())]


def imageArray(image: vtk.vtkImageData) -> np.ndarray:
    """The voxels as k, j, i (and component, where there are several); a view, not a copy."""
    count = image.GetNumberOfScalarComponents()
    shape = image.GetDimensions()[::-1]
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape if count == 1 else (*shape, count))


def ijkToRas(volume: Any) -> np.ndarray:
    """Voxel index to the volume's own RAS, without its parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return toArray(matrix)


def worldMatrix(volume: Any) -> np.ndarray:
    """Voxel index to world, linear parent transforms applied."""
    parent, matrix = volume.GetParentTransformNode(), ijkToRas(volume)
    if parent is None or not parent.IsTransformToWorldLinear():
        return matrix
    world = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(world)
    return toArray(world) @ matrix


def toArray(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """A VTK matrix as an array of its own."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def toVtk(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    """An array of 4 x 4 as VTK's own."""
    made = vtk.vtkMatrix4x4()
    made.DeepCopy(matrix.ravel())
    return made
