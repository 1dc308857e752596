"""A slide as a reader is shown it: a small picture, the attention over it, the tiles that got most of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from HARM3Logic.picture import GREEN, nice_length, palette, picture

ATTENTION_ALPHA = 0.85  # opacity of attention 1
FADE = 0.5  # of the slide towards white under the attention, whose colours would drown in H&E


@dataclass(frozen=True)
class TileView:
    """A tile of the slide.

    Args:
        x_px, y_px: its upper left corner on level 0.
        weight: its share of the slide's attention.
        image: None where the slide itself is not at hand.
    """

    rank: int
    x_px: int
    y_px: int
    weight: float
    image: UInt8[np.ndarray, "S S 3"] | None


@dataclass(frozen=True, eq=False)
class TileAttention:
    """The attention of all tiles of a slide, whether its pixels are at hand or not.

    Args:
        xy_px: upper left corners on level 0.
        weight: share of the attention of all slides of the case.
        tile_px: edge of a tile on level 0.
        by_tile: as in `SlideSource`; likewise `step_px`, `mpp`.
    """

    xy_px: Int64[np.ndarray, "N 2"]
    weight: Float32[np.ndarray, " N"]
    tile_px: float
    by_tile: Float32[np.ndarray, "rows columns"]
    step_px: float
    mpp: float


@dataclass(frozen=True, eq=False)
class SlideSource:
    """What a slide view was made from, for whoever wants to look closer; no page shows the path, which may be a patient's name.

    Args:
        mpp: µm per level-0 pixel.
        by_tile: attention, 0 to 1 relative to the highest; pixel (r, c) is the tile in row r and column c of the slide's one grid, and 0
            where no tile was read.
        step_px: from a tile to its neighbour on level 0; below the tile's edge where tiles overlap.
        tissue: pixel (r, c) covers the level-0 pixels [r, r+1) x [c, c+1) times `tissue_px`.
    """

    path: Path
    mpp: float
    by_tile: Float32[np.ndarray, "rows columns"]
    step_px: float
    tissue: Bool[np.ndarray, "h w"]
    tissue_px: float


@dataclass(frozen=True)
class SlideView:
    """The slide as a picture with what the model attended to; its tiles alone, in grey, where the slide itself is not at hand.

    Args:
        attention: 0 to 1, relative to the highest tile; 0 where there is no tile.
        mm_per_px: of the thumbnail.
        size_px: width and height of level 0.
        tile_px: edge of a tile on level 0.
        source: None where the slide itself is not at hand.
    """

    thumbnail: UInt8[np.ndarray, "h w 3"]
    attention: Float32[np.ndarray, "h w"]
    mm_per_px: float
    tiles: tuple[TileView, ...]
    size_px: tuple[int, int]
    tile_px: float
    source: SlideSource | None = None

    @functools.cached_property
    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """The thumbnail with the attention over it."""
        return overlay(self.thumbnail, self.attention)


def overlay(thumbnail: UInt8[np.ndarray, "h w 3"], attention: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The slide, faded, with its attention in green: the more, the darker; none where there is none."""
    table = attention_table()
    faded = 255 - (1 - FADE) * (255 - thumbnail.astype(np.float32))
    level = levels(attention)
    share = (table[:, 3] / np.float32(255))[level][..., None]
    mixed: UInt8[np.ndarray, "h w 3"] = (faded * (1 - share) + table[level, :3] * share).round().astype(np.uint8)
    return mixed


def levels(attention: Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Attention 0 to 1 as rows of `attention_table`."""
    return np.asarray((np.clip(attention, 0, 1) * 255).astype(np.uint8))


@functools.cache
def attention_table() -> UInt8[np.ndarray, "256 4"]:
    """Colour and opacity of attention 0 to 1."""
    opacity = 255 * ATTENTION_ALPHA * np.sqrt(np.arange(256) / 255)  # the root: most tiles lie far below the highest
    return np.column_stack([palette(GREEN), opacity.round().astype(np.uint8)])


def drawn(view: SlideView) -> dict[str, Any]:
    """What the report's template draws of the slide, lengths in thumbnail pixels."""
    height, width = view.thumbnail.shape[:2]
    scale = width / view.size_px[0]
    bar_mm = nice_length(width * view.mm_per_px / 5)
    return {
        "width": width,
        "height": height,
        "image": picture(view.picture),
        "pixels": all(tile.image is not None for tile in view.tiles),
        "bar_mm": bar_mm,
        "bar": bar_mm / view.mm_per_px,
        "tile": view.tile_px * scale,
        "tile_um": view.tile_px * scale * view.mm_per_px * 1000,
        "tiles": [(tile, tile.x_px * scale, tile.y_px * scale, "" if tile.image is None else picture(tile.image)) for tile in view.tiles],
    }
