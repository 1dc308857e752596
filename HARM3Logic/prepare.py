"""A case's files to the tensors of a model: read, register, crop, resample, normalise, encode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from HARM3Logic import volume
from HARM3Logic.batch import Placement, Prepared
from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS, Case
from HARM3Logic.errors import BadVolume, MissingInput
from HARM3Logic.slide import Slide, tile_grid
from HARM3Logic.tile_encoder import TileEncoder, slide_features
from HARM3Logic.tiles import TileGrid, TileSettings
from HARM3Logic.tissue import TissueSettings
from HARM3Logic.volume import Grid, Registration, Volume

OnEvent = Callable[[str, dict[str, Any]], None]  # event name and its values; raises Cancelled to stop the work


def silent(event: str, values: dict[str, Any]) -> None:
    """The default listener."""


@dataclass(frozen=True)
class Preprocessing:
    """How files become tensors; part of the checkpoint, so that a model always sees what it was trained on.

    Args:
        shape, spacing_mm: the model grid, D H W.
        crop: its centre: the pre-treatment tumour where a mask is given (else the body), or always the body.
        bias_correction: N4 on every volume.
        registration: nothing, T2 to T1 of the same day, or that and post to pre.
        percentiles: intensities are clipped to these within the body, then z-scored within it.
    """

    shape: tuple[int, int, int] = (32, 128, 128)
    spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)
    crop: Literal["tumour", "body"] = "tumour"
    bias_correction: bool = True
    registration: Literal["none", "within_timepoint", "full"] = "full"
    percentiles: tuple[float, float] = (0.5, 99.5)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    tiles: TileSettings = field(default_factory=TileSettings)


@dataclass(frozen=True)
class _Image:
    """One volume on the way: as read, turned to L, P, S, and the patient in it."""

    own: Grid
    volume: Volume
    body: Bool[np.ndarray, "D H W"]


def prepare(
    case: Case,
    settings: Preprocessing,
    encoder: TileEncoder | None = None,
    *,
    images: dict[str, Volume] | None = None,
    cache: Path | None = None,
    ignore_masks: bool = False,
    on_event: OnEvent = silent,
) -> Prepared:
    """The tensors of a case, with the way back to each file's own grid.

    Args:
        encoder: None leaves the slide unread.
        images: filled with the volumes as they were read, for whoever wants to show them.
        cache: folder in which tile features are kept between runs.
        ignore_masks: neither crop round the tumour nor carry its masks.

    Raises:
        MissingInput: the case has no MRI volume.
        BadVolume, BadGeometry, BadSlide: a file cannot be used.
        Cancelled: raised by `on_event`.
    """
    names = [name for name in MRI if name in case.inputs]
    if not names:
        raise MissingInput(f"case {case.case_id!r} has no MRI volume; at least one of {', '.join(MRI)} is wanted.", "Add one.")
    warnings: list[tuple[str, str]] = []
    found: dict[str, _Image] = {}
    for name in names:
        on_event("stage", {"name": f"reading {name}"})
        read = volume.read(case.inputs[name][0])
        if images is not None:
            images[name] = read
        with _about(name):
            found[name] = _turn(read, name, settings, warnings)
    masks = {} if ignore_masks else _masks(case)
    on_event("stage", {"name": "registering"})
    registrations, matrices = _register(found, settings.registration, warnings)
    grid = _model_grid(found, matrices, masks, settings, warnings)
    shape = (len(TIMEPOINTS), len(SEQUENCES), *grid.shape)
    mri, shown = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool)
    body = np.zeros(grid.shape, dtype=bool)
    for name, image in found.items():
        t, s = _place(name)
        own = Volume(image.body.astype(np.float32), image.volume.grid)
        with _about(name):
            inside = volume.resample(own, grid, matrices[name], nearest=True, outside=0.0) > 0
            array = volume.resample(image.volume, grid, matrices[name])
            mri[t, s] = torch.from_numpy(volume.normalise(array, inside, settings.percentiles))
        body |= inside
        shown[t, s] = True
    on_event("stage", {"name": "reading the slide"})
    tiles, places, tile_grids = _slides(case, settings, encoder, cache, warnings, on_event)
    return Prepared(
        case_id=case.case_id,
        mri=mri,
        mri_mask=shown,
        body=torch.from_numpy(body),
        tumour=_tumour(masks, grid, matrices),
        tiles=tiles,
        tile_xy_um=places,
        label=case.label,
        grid=grid,
        placements={name: Placement(found[name].own, matrices[name]) for name in found},
        registrations=registrations,
        tile_grids=tile_grids,
        sha256={name: volume.sha256(case.inputs[name][0]) for name in names} | _slide_hash(tile_grids),
        warnings=tuple(warnings),
    )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors of the block say which input they are about."""
    try:
        yield
    except BadVolume as error:
        raise type(error)(f"{name}: {error.message}", error.advice) from error


def _place(name: str) -> tuple[int, int]:
    sequence, timepoint = name.split("_")
    return TIMEPOINTS.index(timepoint), SEQUENCES.index(sequence)


def _turn(read: Volume, name: str, settings: Preprocessing, warnings: list[tuple[str, str]]) -> _Image:
    turned = volume.canonical(read)
    body = volume.body_mask(turned)
    warnings += [(code, f"{name}: {sentence}") for code, sentence in volume.quality(turned, body)]
    if settings.bias_correction:
        turned = volume.correct_bias(turned, body)
    return _Image(read.grid, turned, body)


def _register(
    images: Mapping[str, _Image], mode: str, warnings: list[tuple[str, str]]
) -> tuple[dict[str, Registration], dict[str, Float[np.ndarray, "4 4"]]]:
    """Each volume's registration, and its matrix from the space of the first volume to its own.

    The first present volume is the space of the model grid; T2 follows the T1 of its day, post follows pre.
    """
    registrations: dict[str, Registration] = {}
    matrices: dict[str, Float[np.ndarray, "4 4"]] = {}
    anchors: dict[str, str] = {}  # timepoint to the volume its other sequence follows
    first = next(iter(images))
    for name in images:
        timepoint = name.split("_")[1]
        fixed = anchors.setdefault(timepoint, name)
        if fixed == name:
            fixed = first
        wanted = mode == "full" or (mode == "within_timepoint" and fixed.split("_")[1] == timepoint)
        step = np.eye(4)
        if name != first and wanted:
            with _about(f"{name} to {fixed}"):
                found = volume.register(images[fixed].volume, images[name].volume, images[fixed].body)
            registrations[name], step = found, found.matrix
            if found.poor:
                warnings.append(("registration", f"{name} may not be aligned with {fixed} (moved {found.moved_mm:.1f} mm, "
                                 f"mutual information {found.mi_before:.2f} to {found.mi_after:.2f}); look at both."))  # fmt: skip
        matrices[name] = step @ matrices[fixed] if name != first else step
    return registrations, matrices


def _masks(case: Case) -> dict[str, Volume]:
    names = [f"tumour_{t}" for t in TIMEPOINTS]
    return {name: volume.canonical(volume.read_mask(case.inputs[name][0])) for name in names if name in case.inputs}


def _mask_matrix(name: str, matrices: Mapping[str, Float[np.ndarray, "4 4"]]) -> Float[np.ndarray, "4 4"] | None:
    """A mask lies in the space of its day's T1, or T2 where there is none; None without either."""
    timepoint = name.split("_")[1]
    return next((matrices[f"{s}_{timepoint}"] for s in SEQUENCES if f"{s}_{timepoint}" in matrices), None)


def _model_grid(
    images: Mapping[str, _Image],
    matrices: Mapping[str, Float[np.ndarray, "4 4"]],
    masks: Mapping[str, Volume],
    settings: Preprocessing,
    warnings: list[tuple[str, str]],
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


def _slides(
    case: Case,
    settings: Preprocessing,
    encoder: TileEncoder | None,
    cache: Path | None,
    warnings: list[tuple[str, str]],
    on_event: OnEvent,
) -> tuple[Float[Tensor, "N F"] | None, Float[Tensor, "N 2"] | None, tuple[tuple[str, TileGrid], ...]]:
    """All slides of a case as one bag."""
    paths = case.inputs.get("slide", ())
    if encoder is None or not paths:
        return None, None, ()
    bags, places, grids = [], [], []
    for number, path in enumerate(paths):
        with Slide.open(path, case.slide_mpp) as slide:
            grid = tile_grid(slide, settings.tissue, settings.tiles)
            warnings += [("slide_file", f"slide: {sentence}") for sentence in slide.warnings] + _slide_warnings(grid)

            def progress(share: float, number: int = number) -> None:
                on_event("progress", {"stage": "encoding tiles", "value": (number + share) / len(paths)})

            bags.append(torch.from_numpy(slide_features(slide, grid, encoder, cache, on_progress=progress)))
            places.append(torch.from_numpy(grid.xy_px.astype(np.float32) * np.float32(slide.mpp)))
            grids.append((slide.sha256, grid))
    return torch.cat(bags), torch.cat(places), tuple(grids)


def _slide_hash(tile_grids: tuple[tuple[str, TileGrid], ...]) -> dict[str, str]:
    return {"slide": ",".join(digest for digest, _ in tile_grids)} if tile_grids else {}


def _slide_warnings(grid: TileGrid) -> list[tuple[str, str]]:
    """What a reader should know of a slide's quality."""
    shares = grid.tissue.fractions
    limits = {"pen": (0.005, "pen ink covers"), "dark": (0.02, "folds or dark areas cover"), "blurred": (0.3, "out-of-focus tiles are")}
    found = [
        (f"slide_{name}", f"slide: {words} {shares[name]:.1%} of it; ink and dark areas are left out." if name != "blurred" else
         f"slide: {words} {shares[name]:.0%} of those looked at.")
        for name, (limit, words) in limits.items() if shares.get(name, 0.0) > limit
    ]  # fmt: skip
    if len(grid.xy_px) < grid.found:
        found.append(("slide_sampled", f"slide: {len(grid.xy_px)} of {grid.found} tiles are read, evenly over the tissue."))
    return found
