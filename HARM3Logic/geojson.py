"""Tissue outlines and tiles as GeoJSON, which QuPath 0.4 and later opens as annotations and tiles.

    mask h w --outlines--> rings of pixel edges --> Polygons with holes
    tiles --> squares with their attention as a measurement

Coordinates are level-0 pixels. Source of the properties: qupath-core, QuPathTypeAdapters.java (objectType, measurements,
isLocked) and GsonTools.java (a classification needs a name and a colour). Form: RFC 7946, outer rings counterclockwise as numbers run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64
from scipy import ndimage

from HARM3Logic.writing import write_text

Ring = list[tuple[int, int]]
PINK = (231, 84, 128)


def write_tissue(path: Path, mask: Bool[np.ndarray, "h w"], downsample: float, size_px: tuple[int, int]) -> None:
    """Write the tissue of a slide as locked annotations, one for each piece.

    Args:
        downsample: level-0 pixels per mask pixel.
        size_px: width and height of level 0; the last mask pixels may reach beyond them.
    """
    features = []
    for rings in outlines(mask):
        scaled = [
            [[min(round(v * downsample, 2), most) for v, most in zip(point, size_px, strict=True)] for point in ring] for ring in rings
        ]
        properties = {"objectType": "annotation", "classification": {"name": "Tissue", "color": PINK}, "isLocked": True}
        features.append(_feature(scaled, properties))
    _write(path, features)


def write_tiles(
    path: Path,
    ranked: Iterable[Mapping[str, Any]],
    tile_px: float,
    xy_px: Int64[np.ndarray, "N 2"] | None = None,
    weight: Float32[np.ndarray, " N"] | None = None,
) -> None:
    """Write the tiles of a prediction with their attention, which QuPath shows as a measurement map.

    Args:
        ranked: the tiles with most attention, the first with the highest: `x_px`, `y_px` (upper left corner), `rank` and `weight`, as in
            `prediction.json`.
        tile_px: edge of a tile.
        xy_px: upper left corners of all tiles; with their attention as `weight`.
    """
    tiles = {(tile["x_px"], tile["y_px"]): {"attention": tile["weight"], "rank": tile["rank"]} for tile in ranked}
    if xy_px is not None and weight is not None:
        for (x, y), share in zip(xy_px.tolist(), weight.tolist(), strict=True):
            tiles.setdefault((x, y), {"attention": share})
    features = []
    for (left, top), measurements in tiles.items():
        right, bottom = round(left + tile_px, 2), round(top + tile_px, 2)
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(_feature([ring], {"objectType": "tile", "measurements": measurements}))
    _write(path, features)


def outlines(mask: Bool[np.ndarray, "h w"]) -> list[list[Ring]]:
    """The pieces of a mask as closed rings of pixel corners: the outer one first, then its holes.

    The rings run along the edges of the pixels, so a piece's area is its number of pixels. Pixels that touch at a corner alone are two
    pieces; no ring touches itself.
    """
    pieces, _ = ndimage.label(mask)
    starts, ends, pixels = _edges(mask)
    after = _successors(starts, ends, pixels).tolist()
    width = mask.shape[1] + 1
    found: dict[int, list[Ring]] = {}
    seen = np.zeros(len(starts), bool)
    for first in range(len(starts)):
        if seen[first]:
            continue
        corners: list[int] = []
        edge = first
        while not seen[edge]:
            seen[edge] = True
            corners.append(int(starts[edge]))
            edge = after[edge]
        piece = int(pieces.flat[pixels[first]])
        for ring in _simple(_straight(corners), width):
            rings = found.setdefault(piece, [])
            rings.insert(0 if _area(ring) > 0 else len(rings), ring)
    return list(found.values())


def _edges(mask: Bool[np.ndarray, "h w"]) -> tuple[Int64[np.ndarray, " E"], Int64[np.ndarray, " E"], Int64[np.ndarray, " E"]]:
    """The pixel edges between mask and not, clockwise round each pixel: numbers of their first and last corner, and of the pixel."""
    width = mask.shape[1]
    wide = np.pad(mask, 1)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    # neighbour above, right, below, left; the corner of the pixel where the edge begins and where it ends (down, across)
    for beside, (a, b), (c, d) in (
        (wide[:-2, 1:-1], (0, 0), (0, 1)),
        (wide[1:-1, 2:], (0, 1), (1, 1)),
        (wide[2:, 1:-1], (1, 1), (1, 0)),
        (wide[1:-1, :-2], (1, 0), (0, 0)),
    ):
        rows, columns = np.nonzero(mask & ~beside)
        parts.append(((rows + a) * (width + 1) + columns + b, (rows + c) * (width + 1) + columns + d, rows * width + columns))
    starts, ends, pixels = (np.concatenate(each).astype(np.int64) for each in zip(*parts, strict=True))
    return starts, ends, pixels


def _successors(starts: Int64[np.ndarray, " E"], ends: Int64[np.ndarray, " E"], pixels: Int64[np.ndarray, " E"]) -> Int64[np.ndarray, " E"]:
    """Which edge goes on from each; where two do, at a corner two pixels share, the one round the same pixel."""
    order = np.argsort(starts, kind="stable")
    place = np.searchsorted(starts[order], ends)
    one, other = order[place], order[np.minimum(place + 1, len(order) - 1)]
    return np.asarray(np.where((starts[other] == ends) & (pixels[one] != pixels), other, one))


def _straight(corners: Sequence[int]) -> list[int]:
    """The corners of a ring where it turns."""
    steps = np.diff(np.array([corners[-1], *corners, corners[0]]))
    return [corner for corner, before, behind in zip(corners, steps[:-1], steps[1:], strict=True) if before != behind]


def _simple(corners: Sequence[int], width: int) -> list[Ring]:
    """A ring cut where it meets itself, each part closed, as x, y."""
    rings: list[Ring] = []
    path: list[int] = []
    place: dict[int, int] = {}
    for corner in (*corners, corners[0]):
        if corner in place:
            part = path[place[corner] :]
            rings.append([(number % width, number // width) for number in (*part, corner)])
            for gone in part:
                del place[gone]
            del path[len(path) - len(part) :]
        place[corner] = len(path)
        path.append(corner)
    return rings


def _area(ring: Ring) -> float:
    """Above 0 for outer rings, below for holes."""
    return sum(x * v - u * y for (x, y), (u, v) in pairwise(ring)) / 2


def _feature(rings: Sequence[Any], properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}


def _write(path: Path, features: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}) + "\n")
