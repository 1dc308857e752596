"""What a checkpoint asks of the user, read from its card. No model is known here by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from HARM3Logic.case import MRI
from HARM3SlicerLib.clinical import Variable, variablesOf

POINT = "tumour_point"
LABELS = {
    "t1_pre": "T1c before",
    "t2_pre": "T2 before",
    "t1_post": "T1c after",
    "t2_post": "T2 after",
    "slide": "slide",
    "ct": "CT",
    "clinical": "clinical values",
    "tumour_pre": "tumour before",
    "tumour_post": "tumour after",
    "tumour_ct": "tumour on CT",
    POINT: "a point in the tumour",
}


@dataclass(frozen=True)
class Wanted:
    """Inputs of a checkpoint.

    Args:
        inputs: what it can use, in the card's order.
        needs: what may not be missing.
        variables: of the clinical form.
        masks: tumour masks that may be given.
        point: a point in the tumour is asked for, to be used where no mask is given.
    """

    inputs: tuple[str, ...] = (*MRI, "slide")
    needs: tuple[str, ...] = ()
    variables: tuple[Variable, ...] = ()
    masks: tuple[str, ...] = ()
    point: bool = False
    card: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def fromCard(cls, card: Mapping[str, Any]) -> Wanted:
        """From the plain values of `HARM3Logic.card.read_header`."""
        inputs = tuple(str(name) for name in card.get("inputs", ()))
        inputs, named = tuple(name for name in inputs if name != POINT), POINT in inputs or bool(card.get(POINT))
        config, preprocessing = card.get("config", {}), card.get("preprocessing", {})
        needs = tuple(str(name) for name in config.get("needs", ()))
        masks = [f"tumour_{time}" for time in ("pre", "post") if any(name in MRI and name.endswith(f"_{time}") for name in inputs)]
        if "ct" in inputs:
            masks.append("tumour_ct")
        point = named or ("ct" in inputs and preprocessing.get("crop", "tumour") != "body")
        variables = variablesOf(card["clinical"]) if "clinical" in inputs and card.get("clinical") else ()
        return cls(inputs, needs, variables, tuple(masks), point, dict(card))

    def asksFor(self, name: str) -> bool:
        return name in self.inputs or name in self.masks

    def missing(self, given: Iterable[str]) -> str:
        """What keeps a prediction from starting, in one sentence; empty when nothing does."""
        given = set(given)
        absent = [LABELS.get(name, name) for name in self.needs if name not in given]
        if absent:
            return f"Still wanted: {', '.join(absent)}."
        images = [name for name in self.inputs if name in MRI or name == "ct"]
        if images and not given.intersection(images):
            return f"Choose at least one of: {', '.join(LABELS[name] for name in images)}."
        return ""

    def left(self, given: Iterable[str]) -> str:
        """What the prediction goes without, in one sentence; empty when it has all."""
        given = set(given)
        absent = [LABELS.get(name, name) for name in self.inputs if name not in given and name != "clinical"]
        return f"Not given: {', '.join(absent)}. The answer will be less certain." if absent else ""
