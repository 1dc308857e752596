"""A CT on its way from file to a crop round the tumour, and the clinical row beside it.

Volume --turned to L P S--> centre (mask or point) --resampled round it--> HU --window--> -1 to 1
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32

from HARM3Logic import clinical, volume
from HARM3Logic.batch import Placement, Prepared
from HARM3Logic.case import Case
from HARM3Logic.clinical import Schema
from HARM3Logic.errors import BadGeometry, MissingInput
from HARM3Logic.preprocessing import OnEvent, Preprocessing, silent
from HARM3Logic.volume import Grid, Volume

AIR_HU = -1000.0  # beyond the image
USUAL_HU = (-200.0, 300.0)  # of a tumour's median; beyond, the values are hardly Hounsfield units


def prepare(
    case: Case,
    settings: Preprocessing,
    schema: Schema,
    wanted: Sequence[str],
    *,
    images: dict[str, Volume] | None = None,
    ignore_masks: bool = False,
    on_event: OnEvent = silent,
) -> Prepared:
    """The tensors of a case for a model that reads CT, clinical values or both.

    Args:
        schema: of the clinical values.
        wanted: what the model reads.
        images: filled with the CT as it was read.
        ignore_masks: find the tumour by its point and carry no mask.

    Raises:
        MissingInput: the case has nothing of what is wanted, or a CT and no place of the tumour.
        BadVolume, BadGeometry, BadClinical: a file or value cannot be used.
        Cancelled: raised by `on_event`.
    """
    row = clinical.row_of(case) if "clinical" in wanted else {}
    seen = "ct" in wanted and "ct" in case.inputs
    if not seen and not row:
        raise MissingInput(f"case {case.case_id!r} has no {' and no '.join(wanted)}.", "Give one of them.")
    values, known = schema.read(row)
    own: dict[str, object] = {}
    digests: dict[str, str] = {}
    warnings = [("clinical_unused", sentence) for sentence in schema.strangers(row)]
    if "clinical" in wanted:
        own |= {"clinical": torch.from_numpy(values).float(), "clinical_mask": torch.from_numpy(known)}
    if known.any():
        text = json.dumps({name: row.get(name, "") for name in schema.names})
        digests["clinical"] = hashlib.sha256(text.encode()).hexdigest()
    if seen:
        on_event("stage", {"name": "reading ct"})
        image = volume.read(case.inputs["ct"][0])
        if images is not None:
            images["ct"] = image
        turned, mask = volume.canonical(image), None if ignore_masks else read_mask(case)
        grid, told = model_grid(case, turned, mask, settings)
        array = volume.resample(turned, grid, outside=AIR_HU)
        warnings += told + _units(array, None if mask is None else volume.resample(mask, grid, nearest=True, outside=0.0))
        digests["ct"] = volume.sha256(case.inputs["ct"][0])
        own |= {
            "ct": torch.from_numpy(window(array, settings.window_hu)),
            "grid": grid,
            "placements": {"ct": Placement(image.grid, np.eye(4))},
        }
        if mask is not None:
            own["tumour_ct"] = torch.from_numpy(volume.resample(mask, grid, nearest=True, outside=0.0))
    return Prepared(case_id=case.case_id, label=case.label, sha256=digests, warnings=tuple(warnings), **own)  # type: ignore[arg-type]


def read_mask(case: Case) -> Volume | None:
    """The tumour's mask, turned to L, P, S; None where there is none.

    Raises:
        BadVolume: the file cannot be used.
    """
    return volume.canonical(volume.read_mask(case.inputs["tumour_ct"][0])) if "tumour_ct" in case.inputs else None


def model_grid(case: Case, image: Volume, mask: Volume | None, settings: Preprocessing) -> tuple[Grid, list[tuple[str, str]]]:
    """The grid round the tumour, and what a reader should know of it.

    Raises:
        MissingInput: neither mask nor point says where the tumour is.
        BadGeometry: the tumour lies outside the image.
    """
    told = []
    centre: Float[np.ndarray, " 3"]
    if settings.crop == "body":
        centre = np.array(image.grid.centre_mm)
    elif mask is not None:
        index = np.argwhere(mask.array > 0)[:, ::-1]
        points = (np.c_[index, np.ones(len(index))] @ mask.grid.matrix.T)[:, :3]
        low, high = points.min(axis=0), points.max(axis=0)
        centre, room = (low + high) / 2, np.array(settings.shape[::-1]) * np.array(settings.spacing_mm[::-1])
        if np.any(high - low > room):
            told.append(("tumour_cropped", f"the tumour measures {np.max(high - low):.0f} mm and is cut by the model's field of view."))
    elif case.tumour_point_mm is not None:
        centre = np.array(case.tumour_point_mm)
    else:
        raise MissingInput(
            f"case {case.case_id!r} does not say where the tumour is; tumour_ct (a mask) or tumour_point_mm is wanted.",
            "Give one of them.",
        )
    place = (np.linalg.inv(image.grid.matrix) @ [*centre, 1])[:3]
    if np.any(place < -0.5) or np.any(place > np.array(image.grid.size) - 0.5):
        where = ", ".join(f"{v:.0f}" for v in centre)
        raise BadGeometry(f"the tumour at {where} mm (LPS) lies outside the CT.", "Check mask or point; RAS has x and y of the other sign.")
    x, y, z = (float(v) for v in centre)
    return Grid.axis_aligned((x, y, z), settings.shape, settings.spacing_mm), told


def window(array: Float32[np.ndarray, "D H W"], limits: tuple[float, float]) -> Float32[np.ndarray, "D H W"]:
    """Hounsfield units, clipped to the limits, which become -1 and 1."""
    low, high = limits
    scaled: Float32[np.ndarray, "D H W"] = ((np.clip(array, low, high) - low) * np.float32(2 / (high - low)) - 1).astype(np.float32)
    return scaled


def _units(array: Float32[np.ndarray, "D H W"], tumour: Float32[np.ndarray, "D H W"] | None) -> list[tuple[str, str]]:
    middle = tuple(slice((n - 1) // 2 - 1, (n - 1) // 2 + 2) for n in array.shape)
    inside = array[middle] if tumour is None or not tumour.any() else array[tumour > 0]
    median = float(np.median(inside))
    if USUAL_HU[0] <= median <= USUAL_HU[1]:
        return []
    usual = f"{USUAL_HU[0]:.0f} to {USUAL_HU[1]:.0f}"
    return [("not_hounsfield", f"the tumour's median is {median:.0f}; {usual} is usual: the CT may not be in Hounsfield units.")]
