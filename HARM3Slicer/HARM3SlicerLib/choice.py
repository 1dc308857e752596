"""What was chosen as input, in the words of a case; and what the callers of Python get back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import slicer

from HARM3Logic import errors
from HARM3Logic.case import INPUTS, MASKS
from HARM3Logic.errors import BadCase, HARM3Error, MissingInput
from HARM3SlicerLib.parameters import NODES, POINT, jsonObject
from HARM3SlicerLib.process import Outcome

FIELDS = {"clinical": "clinical", "tumour_point": "tumour_point_mm"}  # inputs that are no files, and their field of a case
CLASSES = {cls.code: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, HARM3Error)}


def sortedInputs(inputs: Mapping[str, Any], fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs that are nodes or files, and the other fields of the case.

    Raises:
        BadCase: an input has an unknown name or is neither node nor path.
    """
    given, fields = {}, dict(fields)
    for name, value in inputs.items():
        if value is None or value == "" or value == []:
            continue
        if name == "clinical" and isinstance(value, Mapping):
            fields["clinical"] = {str(key): str(text) for key, text in value.items() if text not in (None, "")}
        elif name == "tumour_point":
            fields["tumour_point_mm"] = pointLps(value)
        elif name not in (*INPUTS, *MASKS):
            known = ", ".join((*INPUTS, *MASKS, "tumour_point"))
            raise BadCase(f"{name!r} is no input; known are {known}.", "Correct its name.")
        elif name == "slide":
            paths = value if isinstance(value, (list, tuple)) else str(value).split(";")
            given[name] = [Path(path).absolute() for path in paths]
        elif isinstance(value, (str, Path)):
            given[name] = Path(value).absolute()
        elif hasattr(value, "GetID"):
            given[name] = value
        else:
            raise BadCase(f"input {name!r} is a {type(value).__name__}; a volume node or a path is wanted.", "Give one.")
    return given, fields


def pointLps(value: Any) -> tuple[float, float, float]:
    """A point in the patient (LPS, mm) from the first point of a markups node (RAS) or from three LPS numbers.

    Raises:
        MissingInput: the node has no point.
    """
    if not hasattr(value, "GetNumberOfControlPoints"):
        x, y, z = (float(v) for v in value)
        return x, y, z
    if value.GetNumberOfControlPoints() == 0:
        raise MissingInput(f"the markups node {value.GetName()!r} chosen as tumour point has no point.", "Place a point in the tumour.")
    position = [0.0, 0.0, 0.0]
    value.GetNthControlPointPositionWorld(0, position)
    return -position[0], -position[1], position[2]


def inputsOf(parameters: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is chosen in a parameter node: inputs, and the other fields of the case."""
    inputs = {name: getattr(parameters, member) for name, member in NODES.items()}
    inputs["slide"] = parameters.slide
    inputs["tumour_point"] = getattr(parameters, POINT)
    inputs["clinical"] = {name: text for name, text in jsonObject(parameters.clinical).items() if text != ""}
    fields = {"slide_mpp": parameters.slideMpp} if parameters.slideMpp > 0 else {}
    return {name: value for name, value in inputs.items() if value not in (None, "", {})}, fields


def model(checkpoint: str | Path | None, device: str, ignoreMasks: bool) -> dict[str, Any]:
    """The part of a worker's line that every prediction has."""
    path = None if checkpoint in (None, "") else str(Path(checkpoint).absolute())
    return {"checkpoint": path, "device": device, "ignore_masks": ignoreMasks}


def errorOf(outcome: Outcome) -> Exception:
    """A failed outcome as the exception a caller of Python sees."""
    if outcome.code in CLASSES:
        return CLASSES[outcome.code](outcome.message, outcome.advice)
    return RuntimeError(f"{outcome.message} {outcome.advice}\n{outcome.details}".strip())


def temporaryFolder() -> Path:
    """A new folder for one job; short and ASCII where the system has such a place, for libraries that stumble over others."""
    base: str | None = slicer.app.temporaryPath
    if not (base and base.isascii()):
        base = None
    if base is not None:
        Path(base).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"harm3-{datetime.now():%H%M%S}-", dir=base))
