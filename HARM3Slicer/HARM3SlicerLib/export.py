"""Nodes of the scene to the files of a case, and a case to nodes. Needs only MRML."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

from HARM3Logic.case import MASKS, Case
from HARM3Logic.errors import BadGeometry, BadOption, BadVolume, MissingInput
from HARM3SlicerLib import nrrd
from HARM3SlicerLib.steps import finish
from HARM3SlicerLib.volumes import ijkToRas, imageArray, loadVolume, nodesOf, removeNode, toArray

TIMEPOINT_VOLUMES = {"tumour_pre": ("t1_pre", "t2_pre"), "tumour_post": ("t1_post", "t2_post"), "tumour_ct": ("ct",)}


def exportSteps(
    inputs: Mapping[str, Any],
    folder: Path,
    caseId: str,
    onWarning: Callable[[str], None] | None = None,
    **fields: Any,
) -> Iterator[str]:
    """Write the chosen nodes and `case.json` into a folder; gives an input's name after each small step.

    Parent transforms are applied. A volume under a non-linear transform can only be written on a new grid: with `onWarning` that is done
    and told, without it refused. A segmentation becomes a mask of its visible segments on the grid of the volume it belongs to.

    Args:
        inputs: input name to a volume, segmentation or path (or list of paths, for `slide`); None is left out. Files stay where they are.
        fields: further fields of the case: patient_id, centre, slide_mpp, tumour_point_mm, clinical.

    Raises:
        MissingInput: a node is empty or was removed meanwhile.
        BadGeometry: a transform does not keep right angles, or is non-linear and nobody listens.
        BadOption: the folder cannot be written.
    """
    given = {name: node for name, node in inputs.items() if node is not None and node != []}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"the folder {str(folder)!r} cannot be made ({error.strerror}).", "Choose another folder.") from error
    files: dict[str, tuple[Path, ...]] = {}
    for name, node in given.items():
        if not isinstance(node, vtk.vtkObject):
            paths = node if isinstance(node, (list, tuple)) else [node]
            files[name] = tuple(Path(p) for p in paths)
            continue
        yield name  # nothing is read before the caller had a chance to stop
        array, matrix = voxels(name, node, given, onWarning)
        path = folder / f"{name}.nrrd"
        for _ in nrrd.writeSteps(path, array, matrix):
            yield name
        files[name] = (path,)
    Case(case_id=caseId, inputs=files, **fields).write(folder / "case.json")


def voxels(
    name: str, node: Any, inputs: Mapping[str, Any], onWarning: Callable[[str], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Array (k, j, i) and voxel to world matrix of a volume or segmentation, all parent transforms applied."""
    if node.GetScene() is None:
        raise MissingInput(f"the node {node.GetName()!r} chosen as {name} was removed from the scene.", "Choose another node.")
    if node.IsA("vtkMRMLSegmentationNode"):
        wanted = TIMEPOINT_VOLUMES.get(name, ())
        reference = next((inputs[n] for n in wanted if isinstance(inputs.get(n), vtk.vtkObject)), None)
        return _segments(name, node, reference, inputs, onWarning)
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        raise MissingInput(f"the volume {node.GetName()!r} chosen as {name} holds no image.", "Load it again.")
    if image.GetNumberOfScalarComponents() != 1:
        raise BadVolume(
            f"the volume {node.GetName()!r} chosen as {name} has {image.GetNumberOfScalarComponents()} values a voxel; one is wanted.",
            "Choose a volume of grey values.",
        )
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        return _hardened(name, node, onWarning)
    matrix = ijkToRas(node)
    if parent is not None:
        world = vtk.vtkMatrix4x4()
        parent.GetMatrixTransformToWorld(world)
        matrix = toArray(world) @ matrix
    return imageArray(image), _atRightAngles(matrix, name, node)


def _hardened(name: str, node: Any, onWarning: Callable[[str], None] | None) -> tuple[np.ndarray, np.ndarray]:
    """A clone under the same non-linear transform, resampled by Slicer; the user's volume stays as it is."""
    said = f"the volume {node.GetName()!r} chosen as {name} lies under the non-linear transform {node.GetParentTransformNode().GetName()!r}"
    if onWarning is None:
        raise BadGeometry(f"{said}; its voxels have no grid in the patient.", "Harden the transform on the volume and choose the result.")
    clone = slicer.mrmlScene.AddNewNodeByClass(node.GetClassName(), "HARM3 export")
    try:
        clone.SetHideFromEditors(True)
        clone.CopyContent(node)
        clone.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        if not clone.HardenTransform():
            raise BadGeometry(f"{said}; it cannot be applied.", "Harden the transform on the volume and choose the result.")
        array, matrix = imageArray(clone.GetImageData()).copy(), ijkToRas(clone)
    finally:
        slicer.mrmlScene.RemoveNode(clone)
    onWarning(f"{said}; it was resampled, so its heatmap lies on a new grid.")
    return array, matrix


def _segments(
    name: str, node: Any, reference: Any, inputs: Mapping[str, Any], onWarning: Callable[[str], None] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The visible segments as one mask, on the voxels of the reference volume where there is one."""
    ids, display = node.GetSegmentation().GetSegmentIDs(), node.GetDisplayNode()
    shown = [i for i in ids if display is None or display.GetSegmentVisibility(i)]
    if not shown:
        raise MissingInput(
            f"the segmentation {node.GetName()!r} chosen as {name} shows none of its {len(ids)} segments.", "Draw or show the tumour."
        )
    before = {node.GetID() for node in nodesOf()}
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "HARM3 export")
    try:
        labels.SetHideFromEditors(True)
        done = slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
            node, shown, labels, reference, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
        )
        if not done or labels.GetImageData() is None:
            raise BadVolume(f"the segmentation {node.GetName()!r} chosen as {name} cannot be made a mask.", "Draw the tumour again.")
        array, matrix = voxels(name, labels, inputs, onWarning)
        array = (array > 0).astype(np.uint8)
    finally:
        for made in [node for node in nodesOf() if node.GetID() not in before and not node.GetSingletonTag()]:
            slicer.mrmlScene.RemoveNode(made)  # Slicer's export leaves a display node and a colour table beside the labels
    if not array.any():
        raise MissingInput(f"the segmentation {node.GetName()!r} chosen as {name} is empty there.", "Draw the tumour on its volume.")
    return array, matrix


def _atRightAngles(matrix: np.ndarray, name: str, node: Any) -> np.ndarray:
    axes = matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        raise BadGeometry(
            f"the axes of the volume {node.GetName()!r} chosen as {name} are not at right angles; a scanner's grid is wanted.",
            "Resample it with Slicer's module Resample Scalar Volume, or remove the shearing transform.",
        )
    return matrix


def loadCaseSteps(path: Path) -> Generator[str, None, dict[str, Any]]:
    """A `case.json` (or its folder) as nodes, one input each step; slides stay paths. Its return value is input to node or path.

    Raises:
        BadCase, BadVolume: the case or one of its files cannot be used; nothing is left in the scene.
    """
    case = Case.read(path / "case.json" if path.is_dir() else path)
    loaded: dict[str, Any] = {}
    try:
        for name, files in case.inputs.items():
            if name in ("slide", "clinical"):
                loaded[name] = files[0] if len(files) == 1 else list(files)
                continue
            loaded[name] = loadVolume(files[0], f"{case.case_id} {name}", "LabelMapVolume" if name in MASKS else "ScalarVolume")
            yield name
    except BaseException:
        for node in loaded.values():
            if isinstance(node, vtk.vtkObject):
                removeNode(node)
        raise
    return loaded


def loadCase(path: Path) -> dict[str, Any]:
    """`loadCaseSteps` in one go."""
    return finish(loadCaseSteps(path))
