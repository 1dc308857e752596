"""What the parameter node holds: every choice of the panel and the last result, so that a saved scene brings all of it back."""

from __future__ import annotations

import json
from typing import Annotated, Any, Union

from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
)
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper

from HARM3Logic.case import MRI

# Input name of a case to the member of the parameter node that holds its node. The slide is a path.
NODES = {
    **{name: "".join((name[:2], name[3:].capitalize())) for name in MRI},  # t1_pre: t1Pre
    "ct": "ct",
    "tumour_pre": "tumourPre",
    "tumour_post": "tumourPost",
    "tumour_ct": "tumourCt",
}
POINT = "tumourPoint"


# Paths are plain text here: an unset pathlib.Path member reads Path('.') and its edit shows ".", and an edit that was
# emptied does not tell the parameter node.
@parameterNodeWrapper
class HARM3SlicerParameterNode:
    """Choices of the user, and the last result.

    clinical - JSON object of variable to its text.
    slideMpp - µm per pixel of the slide; 0 takes what its file says.
    heatVisible - what the blink key turns.
    result - JSON of the last prediction.json, with the key "folder"; "" for none.
    batchFolder - output folder whose table is shown.
    """

    t1Pre: vtkMRMLScalarVolumeNode
    t2Pre: vtkMRMLScalarVolumeNode
    t1Post: vtkMRMLScalarVolumeNode
    t2Post: vtkMRMLScalarVolumeNode
    ct: vtkMRMLScalarVolumeNode
    tumourPre: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None] = None  # noqa: UP007
    tumourPost: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None] = None  # noqa: UP007
    tumourCt: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None] = None  # noqa: UP007
    tumourPoint: vtkMRMLMarkupsFiducialNode
    slide: str = ""
    slideMpp: Annotated[float, WithinRange(0, 20)] = 0.0
    clinical: str = ""
    caseId: str = ""
    checkpoint: str = ""
    device: str = "auto"
    ignoreMasks: bool = False
    opacity: Annotated[float, WithinRange(0, 1)] = 0.6
    threshold: Annotated[float, WithinRange(0, 1)] = 0.2
    color: str = "vtkMRMLColorTableNodeFileInferno.txt"
    outline: bool = False
    jointScale: bool = True
    heatVisible: bool = True
    result: str = ""
    batchCohort: str = ""
    batchOutput: str = ""
    batchFolder: str = ""


def jsonObject(text: str) -> dict[str, Any]:
    """The object a member holds as JSON; empty where it holds nothing of use (a scene may come from elsewhere)."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}


def setIfChanged(parameters: HARM3SlicerParameterNode, name: str, value: Any) -> None:
    """Set a member, without an event when it holds that value already."""
    if getattr(parameters, name) != value:
        parameters.setValue(name, value)  # a misspelt name is an error here; as an attribute it would be stored in silence
