"""From what a model answered to what is told and shown: probability with interval, heatmaps on their own grids, slide, report."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int

from HARM3Logic import __version__, bag, clinical, report, volume
from HARM3Logic.batch import Prepared
from HARM3Logic.case import TIMEPOINTS, Case, holds_features
from HARM3Logic.checkpoint import Card, Checkpoint
from HARM3Logic.explain import Explanation
from HARM3Logic.familiarity import unfamiliar
from HARM3Logic.prediction import Prediction
from HARM3Logic.report import VolumeView
from HARM3Logic.slide import Slide, read_tiles, reader_count
from HARM3Logic.slide_view import SlideSource, SlideView, TileAttention, TileView
from HARM3Logic.tiles import TileGrid, by_place, paint
from HARM3Logic.viewer import source_of
from HARM3Logic.volume import Volume

INTERVAL = (0.025, 0.975)
TOP_TILES = 8
THUMBNAIL_PX = 1024
TILE_GREY = 200  # of tiles without attention where there are no pixels to show


def decide(probability: float, threshold: float, zone: tuple[float, float]) -> str:
    """The decision in a word; inside the zone the model does not know."""
    if zone[0] < probability < zone[1]:
        return "uncertain"
    return "responder" if probability >= threshold else "non-responder"


def assemble(
    case: Case,
    prepared: Prepared,
    explanation: Explanation,
    draws: Float[np.ndarray, " n"],
    made: Checkpoint,
    images: Mapping[str, Volume],
    ignore_masks: bool,
    how: Mapping[str, str],
) -> Prediction:
    """All that is told and shown of a case.

    Args:
        draws: logits under draws of the latents.
        made: the checkpoint whose model answered.
        images: the volumes as they were read.
        how: device and precision of the run.
    """
    card = made.card
    calibrate = card.calibration
    probability = float(calibrate(np.array(explanation.logit)))
    low, high = np.quantile(calibrate.draw(draws), INTERVAL)
    strange = unfamiliar(prepared, made.familiarity)
    raw = {name: s.numpy() for name, s in explanation.saliency.items() if name in prepared.placements}
    with ThreadPoolExecutor(1) as pool:  # the slide is read while the maps are brought onto their grids
        viewing = pool.submit(_slide, case, prepared, explanation)
        heatmaps = _heatmaps(prepared, raw)
        ranked, number, slide, tiles = viewing.result()
    values: dict[str, Any] = {
        "case_id": case.case_id,
        "created": datetime.now().astimezone().isoformat(timespec="minutes"),
        "probability": probability,
        "interval": [min(float(low), probability), max(float(high), probability)],
        "decision": decide(probability, card.threshold, card.uncertain_zone),
        "threshold": card.threshold,
        "uncertain_zone": list(card.uncertain_zone),
        "logit": explanation.logit,
        "contributions": {name: probability - float(calibrate(np.array(z))) for name, z in explanation.without.items()},
        "inputs": {name: _input(name, prepared) for name in card.inputs},
        "clinical": _clinical(case, prepared, explanation, card, probability),
        "heat": {name: _heat(name, heatmaps[name], raw[name], prepared) for name in heatmaps},
        "tiles": ranked,
        "slide": slide and {**_picture(slide), "number": number},
        "stain": card.preprocessing.stain.about() if card.preprocessing.stain is not None and prepared.tile_grids else None,
        "quality": bag.shares([grid for _, grid in prepared.tile_grids]),
        "registration": {name: _registration(r) for name, r in prepared.registrations.items()},
        "warnings": [
            {"code": code, "message": message}
            for code, message in (*prepared.warnings, *_strange(strange), *_dull(raw), *_sure(float(low), float(high)))
        ],
        "out_of_distribution": bool(strange),
        "ignore_masks": ignore_masks,
        "model": _model(made),
        "software": {"harm3slicer": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        **how,
    }
    views = [_volume(name, images[name], heat, prepared, card) for name, heat in heatmaps.items()]
    return Prediction(values, heatmaps, raw, slide, report.render(values, dataclasses.asdict(card), views, slide), tiles)


def _model(made: Checkpoint) -> dict[str, Any]:
    card = made.card
    synthetic = bool(card.training.get("synthetic"))
    return {"name": card.model, "checkpoint_sha256": made.sha256, "version": card.version, "synthetic": synthetic}


def _volume(name: str, image: Volume, heat: Volume, prepared: Prepared, card: Card) -> VolumeView:
    window = card.preprocessing.window_hu if name == "ct" else None
    return VolumeView(name, image, heat, _tumour(name, prepared), prepared.placements[name].matrix, window)


def _heatmaps(prepared: Prepared, raw: Mapping[str, Float[np.ndarray, "D H W"]]) -> dict[str, Volume]:
    """The maps on their own grids, divided by the one maximum over all of them (0 stays 0)."""
    if prepared.grid is None:  # no volume was read
        return {}
    own = {
        name: volume.restore(s, prepared.grid, prepared.placements[name].reference, prepared.placements[name].matrix)
        for name, s in raw.items()
    }
    top = max((float(v.array.max()) for v in own.values()), default=0.0)
    return {name: Volume(v.array / np.float32(top), v.grid) if top > 0 else v for name, v in own.items()}


def _tumour(name: str, prepared: Prepared) -> np.ndarray | None:
    mask = _mask(name, prepared)
    if mask is None or prepared.grid is None:
        return None
    place = prepared.placements[name]
    return volume.restore(mask, prepared.grid, place.reference, place.matrix).array > 0.5


def _mask(name: str, prepared: Prepared) -> Float[np.ndarray, "D H W"] | None:
    """The tumour on the model grid, as far as it is known for a volume."""
    if name == "ct":
        return None if prepared.tumour_ct is None else prepared.tumour_ct.numpy()
    if prepared.tumour is None:
        return None
    mask = prepared.tumour[TIMEPOINTS.index(name.split("_")[1])].numpy()
    return None if np.isnan(mask).any() else mask


def _clinical(case: Case, prepared: Prepared, explanation: Explanation, card: Card, probability: float) -> list[dict[str, Any]]:
    """Each clinical variable: its value, the attention it gets and what knowing it changes."""
    attention, without = explanation.variable_attention, explanation.without_variable
    if prepared.clinical_mask is None or attention is None or without is None:
        return []
    row = clinical.row_of(case)
    changed = probability - card.calibration(without.double().numpy())
    columns = (card.clinical.variables, prepared.clinical_mask.tolist(), attention.tolist(), changed.tolist())
    return [
        {
            "name": variable.name,
            "label": variable.label,
            "value": row[variable.name] if known else None,
            "unit": variable.unit,
            "attention": share,
            "change": change if known else None,
        }
        for variable, known, share, change in zip(*columns, strict=True)
    ]


def _input(name: str, prepared: Prepared) -> dict[str, Any]:
    place = prepared.placements.get(name)
    return {"used": name in prepared.sha256, "sha256": prepared.sha256.get(name), "grid": place.reference.to_dict() if place else None}


def _heat(name: str, heat: Volume, raw: Float[np.ndarray, "D H W"], prepared: Prepared) -> dict[str, float | None]:
    share = None
    mask = _mask(name, prepared)
    if mask is not None and raw.sum() > 0:
        share = float(raw[mask > 0.5].sum() / raw.sum())
    return {"max": float(heat.array.max()), "share_in_tumour": share}


def _picture(slide: SlideView) -> dict[str, Any]:
    """Where the thumbnail and the tiles lie on the slide."""
    height, width = slide.thumbnail.shape[:2]
    return {
        "size_px": list(slide.size_px),
        "tile_px": slide.tile_px,
        "thumbnail_px": [width, height],
        "thumbnail_mm_per_px": slide.mm_per_px,
    }


def _registration(found: volume.Registration) -> dict[str, float | bool]:
    return {key: getattr(found, key) for key in ("mi_before", "mi_after", "moved_mm", "rotated_deg", "poor")}


def _strange(strange: Mapping[str, float]) -> list[tuple[str, str]]:
    return [
        ("out_of_distribution", f"{name} looks unlike the training data ({ratio:.1f} times the largest distance that counts as alike).")
        for name, ratio in strange.items()
    ]


def _dull(raw: Mapping[str, Float[np.ndarray, "D H W"]]) -> list[tuple[str, str]]:
    if not raw or max(float(s.max()) for s in raw.values()) > 0:
        return []
    return [("no_heat", "no region of any volume speaks for response, so the heatmaps are empty.")]


def _sure(low: float, high: float) -> list[tuple[str, str]]:
    """A model that draws nothing, with a calibration of unknown errors, has an interval of one point, which looks like certainty."""
    if low < high:
        return []
    return [("no_interval", "the checkpoint does not know how uncertain it is, so the interval is the probability itself.")]


def _slide(
    case: Case, prepared: Prepared, explanation: Explanation
) -> tuple[list[dict[str, Any]], int, SlideView | None, TileAttention | None]:
    """The highest-ranked tiles of the slide with most attention, its number, the slide as pictures, and the attention of all its tiles.

    Of its tiles alone where a file of features stands in the slide's place.
    """
    attention = explanation.tile_attention
    if attention is None or not prepared.tile_grids:
        return [], 0, None, None
    weights = attention.numpy()
    ends = np.cumsum([len(grid.xy_px) for _, grid in prepared.tile_grids])
    parts = np.split(weights, ends[:-1])
    which = int(np.argmax([part.max() for part in parts]))
    grid, part, path = prepared.tile_grids[which][1], parts[which], case.inputs["slide"][which]
    top = np.argsort(-part, kind="stable")[:TOP_TILES]
    places = zip(grid.xy_px[top].tolist(), part[top].tolist(), strict=True)
    ranked = [{"rank": rank, "x_px": x, "y_px": y, "weight": weight} for rank, ((x, y), weight) in enumerate(places, start=1)]
    if holds_features(path):
        by_tile = by_place(part / part.max(), grid)
        view = _tiles_alone(grid, by_tile, ranked)
    else:
        view, source = _view(path, case.slide_mpp, grid, part, top, ranked)
        by_tile = source.by_tile
    tiles = TileAttention(grid.xy_px, part.astype(np.float32), grid.size0_px, by_tile, grid.step0_px, grid.slide_mpp)
    return ranked, which + 1, view, tiles


def _tiles_alone(grid: TileGrid, by_tile: Float32[np.ndarray, "rows columns"], ranked: Sequence[Mapping[str, Any]]) -> SlideView:
    """A slide that is not at hand: its tiles where they lie, grey on white, up to the last of them."""
    rows, columns = by_tile.shape
    edge = max(1, THUMBNAIL_PX // max(rows, columns))  # of a place in the picture
    grey = np.where(by_place(np.ones(len(grid.xy_px)), grid) > 0, TILE_GREY, 255).astype(np.uint8)
    thumbnail, attention = (each.repeat(edge, 0).repeat(edge, 1) for each in (grey, by_tile))
    size = (round(columns * grid.step0_px), round(rows * grid.step0_px))
    tiles = tuple(TileView(**tile, image=None) for tile in ranked)
    mm_per_px = grid.step0_px * grid.slide_mpp / 1000 / edge
    return SlideView(np.stack([thumbnail] * 3, axis=-1), attention, mm_per_px, tiles, size, grid.size0_px)


def _view(
    path: Path,
    slide_mpp: float | None,
    grid: TileGrid,
    part: Float[np.ndarray, " N"],
    top: Int[np.ndarray, " n"],
    ranked: Sequence[Mapping[str, Any]],
) -> tuple[SlideView, SlideSource]:
    with Slide.open(path, slide_mpp) as slide, ThreadPoolExecutor(reader_count()) as pool:
        whole = pool.submit(slide.thumbnail, THUMBNAIL_PX)
        pictures = pool.map(lambda k: read_tiles(slide, grid, k, k + 1)[0], top.tolist())
        tiles = tuple(TileView(**tile, image=picture) for tile, picture in zip(ranked, pictures, strict=True))
        thumbnail, size = whole.result(), (slide.width_px, slide.height_px)
        mm_per_px = slide.mpp * slide.width_px / thumbnail.shape[1] / 1000
        source = source_of(slide, grid, part / part.max())
    painted = paint(part / part.max(), grid, size, thumbnail.shape[:2])
    return SlideView(thumbnail, painted, mm_per_px, tiles, size, grid.size0_px, source), source
