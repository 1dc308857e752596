"""The MRI volumes of a case on their way from files to one grid.

Volume --turn--> Image (along L P S, patient found, bias corrected) --place--> registered, on the model grid, normalised
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from HARM3Logic import volume
from HARM3Logic.batch import Placement, Prepared
from HARM3Logic.case import SEQUENCES, TIMEPOINTS, Case
from HARM3Logic.errors import BadVolume
from HARM3Logic.preprocessing import OnEvent, Preprocessing
from HARM3Logic.volume import Grid, Registration, Volume
from HARM3Logic.volume_quality import quality

Warnings = list[tuple[str, str]]  # code, sentence


@dataclass(frozen=True)
class Image:
    """One volume on the way: as read, turned to L, P, S, and the patient in it."""

    own: Grid
    volume: Volume
    body: Bool[np.ndarray, "D H W"]


def place(
    case: Case,
    found: Mapping[str, Image],
    masks: Mapping[str, Volume],
    settings: Preprocessing,
    pool: ThreadPoolExecutor,
    on_event: OnEvent,
) -> Prepared:
    """The case without its slide: the volumes registered and brought onto the model grid.

    Args:
        pool: threads that work on the volumes side by side.

    Raises:
        BadVolume, BadGeometry: a volume cannot be used.
        Cancelled: raised by `on_event`.
    """
    warnings: Warnings = []
    on_event("stage", {"name": "registering"})
    registrations, matrices = _register(found, settings.registration, pool, warnings, on_event)
    grid = _model_grid(found, matrices, masks, settings, warnings)
    shape = (len(TIMEPOINTS), len(SEQUENCES), *grid.shape)
    mri, shown = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool)
    body = np.zeros(grid.shape, dtype=bool)
    sampling = {name: pool.submit(_sample, image, grid, matrices[name], settings) for name, image in found.items()}
    for name, waiting in sampling.items():
        with _about(name):
            array, inside = waiting.result()
        sequence, timepoint = name.split("_")
        at = TIMEPOINTS.index(timepoint), SEQUENCES.index(sequence)
        mri[at], shown[at] = torch.from_numpy(array), True
        body |= inside
    return Prepared(
        case_id=case.case_id,
        mri=mri,
        mri_mask=shown,
        body=torch.from_numpy(body),
        tumour=_tumour(masks, grid, matrices),
        label=case.label,
        grid=grid,
        placements={name: Placement(found[name].own, matrices[name]) for name in found},
        registrations=registrations,
        sha256={name: volume.sha256(case.inputs[name][0]) for name in found},
        warnings=tuple(warnings),
    )


def _sample(
    image: Image, grid: Grid, matrix: Float[np.ndarray, "4 4"], settings: Preprocessing
) -> tuple[Float32[np.ndarray, "D H W"], Bool[np.ndarray, "D H W"]]:
    """A volume on the model grid, normalised, and the patient in it."""
    body = Volume(image.body.astype(np.float32), image.volume.grid)
    inside = volume.resample(body, grid, matrix, nearest=True, outside=0.0) > 0
    return volume.normalise(volume.resample(image.volume, grid, matrix), inside, settings.percentiles), inside


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors of the block say which input they are about."""
    try:
        yield
    except BadVolume as error:
        raise type(error)(f"{name}: {error.message}", error.advice) from error


def turn(name: str, read: Volume, settings: Preprocessing) -> tuple[Image, Warnings]:
    """The volume with its axes along L, P, S, the patient in it found, and what a reader should know of it.

    Raises:
        BadVolume: it shows no patient, or no bias field can be fitted.
    """
    with _about(name):
        turned = volume.canonical(read)
        body = volume.body_mask(turned)
        warnings = [(code, f"{name}: {sentence}") for code, sentence in quality(turned, body)]
        if settings.bias_correction:
            turned = volume.correct_bias(turned, body)
        return Image(read.grid, turned, body), warnings


def _register(
    images: Mapping[str, Image], mode: str, pool: ThreadPoolExecutor, warnings: Warnings, on_event: OnEvent
) -> tuple[dict[str, Registration], dict[str, Float[np.ndarray, "4 4"]]]:
    """Each volume's registration, and its matrix from the space of the first volume to its own.

    The first present volume is the space of the model grid; T2 follows the T1 of its day, post follows pre.
    """
    first, anchors = next(iter(images)), dict[str, str]()  # timepoint to the volume its other sequence follows
    fixed = {name: anchor if (anchor := anchors.setdefault(name.split("_")[1], name)) != name else first for name in images}
    wanted = [
        name for name in images
        if name != first and (mode == "full" or (mode == "within_timepoint" and fixed[name].split("_")[1] == name.split("_")[1]))
    ]  # fmt: skip
    running = {name: pool.submit(volume.register, *_pair(images[fixed[name]], images[name])) for name in wanted}
    registrations: dict[str, Registration] = {}
    matrices: dict[str, Float[np.ndarray, "4 4"]] = {first: np.eye(4)}
    for name in images:
        if name in running:
            on_event("stage", {"name": f"registering {name}"})
            with _about(f"{name} to {fixed[name]}"):
                found = registrations[name] = running[name].result()
            if found.poor:
                warnings.append(("registration", f"{name} may not be aligned with {fixed[name]} (moved {found.moved_mm:.1f} mm, "
                                 f"mutual information {found.mi_before:.2f} to {found.mi_after:.2f}); look at both."))  # fmt: skip
        if name != first:
            matrices[name] = (registrations[name].matrix if name in running else np.eye(4)) @ matrices[fixed[name]]
    return registrations, matrices


def _pair(fixed: Image, moving: Image) -> tuple[Volume, Volume, Bool[np.ndarray, "D H W"], Bool[np.ndarray, "d h w"]]:
    return fixed.volume, moving.volume, fixed.body, moving.body


def read_masks(case: Case) -> dict[str, Volume]:
    """The tumour masks of a case, with their axes along L, P, S.

    Raises:
        BadVolume: a file cannot be used.
    """
    names = [f"tumour_{t}" for t in TIMEPOINTS]
    return {name: volume.canonical(volume.read_mask(case.inputs[name][0])) for name in names if name in case.inputs}


def _mask_matrix(name: str, matrices: Mapping[str, Float[np.ndarray, "4 4"]]) -> Float[np.ndarray, "4 4"] | None:
    """A mask lies in the space of its day's T1, or T2 where there is none; None without either."""
    timepoint = name.split("_")[1]
    return next((matrices[f"{s}_{timepoint}"] for s in SEQUENCES if f"{s}_{timepoint}" in matrices), None)


def _model_grid(
    images: Mapping[str, Image],
    matrices: Mapping[str, Float[np.ndarray, "4 4"]],
    masks: Mapping[str, Volume],
    settings: Preprocessing,
    warnings: Warnings,
) -> Grid:
    for name in ("tumour_pre", "tumour_post") if settings.crop == "tumour" else ():
        matrix = _mask_matrix(name, matrices)
        if name in masks and matrix is not None:
            low, high = _box(masks[name].array > 0, masks[name].grid)
            room = np.array(settings.shape[::-1]) * np.array(settings.spacing_mm[::-1])
            if np.any(high - low > room):
                warnings.append(
                    ("tumour_cropped", f"the tumour measures {np.max(high - low):.0f} mm and is cut by the model's field of view.")
                )
            centre = np.linalg.inv(matrix) @ np.append((low + high) / 2, 1)
            return Grid.axis_aligned(tuple(centre[:3].tolist()), settings.shape, settings.spacing_mm)
    first = next(iter(images.values()))
    low, high = _box(first.body, first.volume.grid)
    return Grid.axis_aligned(tuple(((low + high) / 2).tolist()), settings.shape, settings.spacing_mm)


def _box(mask: Bool[np.ndarray, "D H W"], grid: Grid) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Smallest and largest LPS mm of a mask."""
    ranges = [np.flatnonzero(mask.any(axis=axes))[[0, -1]] for axes in ((0, 1), (0, 2), (1, 2))]  # x, y, z
    corners = np.array([[x, y, z, 1] for x in ranges[0] for y in ranges[1] for z in ranges[2]])
    points = (corners @ grid.matrix.T)[:, :3]
    return points.min(axis=0), points.max(axis=0)


def _tumour(masks: Mapping[str, Volume], grid: Grid, matrices: Mapping[str, Float[np.ndarray, "4 4"]]) -> Float[Tensor, "T D H W"] | None:
    if not masks:
        return None
    tumour = torch.full((len(TIMEPOINTS), *grid.shape), torch.nan)
    for name, mask in masks.items():
        matrix = _mask_matrix(name, matrices)
        if matrix is not None:
            tumour[TIMEPOINTS.index(name.split("_")[1])] = torch.from_numpy(volume.resample(mask, grid, matrix, nearest=True, outside=0.0))
    return tumour
