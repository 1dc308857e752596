"""Volume nodes and what is asked of them again and again. Needs only MRML; arrays are k, j, i."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from HARM3Logic.errors import BadVolume


def addVolume(name: str, array: np.ndarray, ijkToRas: np.ndarray, kind: str = "ScalarVolume") -> Any:
    """A volume node of an array k, j, i (and component), with a display node that keeps its hands off window and level."""
    count = array.shape[3] if array.ndim == 4 else 1
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[2::-1])
    flat = np.ascontiguousarray(array).reshape((-1, count) if count > 1 else -1)
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True))
    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(ijkToRas, dtype=float).ravel())
    node.SetIJKToRASMatrix(matrix)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()  # before the image comes: Slicer would look through all of it
    display.SetWindowLevelMinMax(0, 255 if count > 1 else 1)
    node.SetAndObserveImageData(image)
    return node


def loadVolume(path: Path, name: str, kind: str = "ScalarVolume") -> Any:
    """A volume node from an image file, or from a folder of one DICOM series; shown nowhere yet.

    Raises:
        BadVolume: it cannot be read.
    """
    file = next((f for f in sorted(path.iterdir()) if f.is_file()), path) if path.is_dir() else path
    if not file.is_file():
        raise BadVolume(f"the image {str(path)!r} does not exist.", "Check the path.")
    node = slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{kind}Node", name)
    isNrrd = file.suffix.lower() in (".nrrd", ".nhdr")
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLNRRDStorageNode" if isNrrd else "vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(file))
    storage.SetCenterImage(0)
    if not isNrrd:
        storage.SetSingleFile(not path.is_dir())
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
