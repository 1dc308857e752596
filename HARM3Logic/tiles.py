"""Which tiles of a slide are taken, and their values painted back.

    mask h w --corners | clam_four_pt | min_coverage--> tiles kept, rows columns
    weights N --paint--> picture h w

Plain array operations; reading the slide is the work of `slide`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from HARM3Logic.tissue import Tissue, TissueSettings, check

RULES = ("corners", "clam_four_pt", "min_coverage")


@dataclass(frozen=True)
class TileSettings:
    """Which tiles are taken from a slide.

    Args:
        size_px: edge of a tile as the encoder sees it.
        mpp: true µm per pixel of the tiles; None means level-0 pixels as they are.
        rule: a tile is kept if one of its corners is tissue (`corners`, the paper's rule), if one of the points a quarter of its edge
            off its centre is (`clam_four_pt`), or if `min_coverage` of its area is.
        overlap_px: pixels shared by neighbours.
        max_tiles: of more, an even subset in row-major order is taken, always the same.

    Raises:
        BadOption: a value is out of range.
    """

    size_px: int = 224
    mpp: float | None = 0.5
    rule: str = "corners"
    min_coverage: float = 0.25
    overlap_px: int = 0
    max_tiles: int | None = None

    def __post_init__(self) -> None:
        check(
            self,
            {
                "size_px": (self.size_px >= 1, "1 or more"),
                "mpp": (self.mpp is None or self.mpp > 0, "above 0 or None"),
                "rule": (self.rule in RULES, f"one of {', '.join(RULES)}"),
                "min_coverage": (0 < self.min_coverage <= 1, "above 0 and at most 1"),
                "overlap_px": (0 <= self.overlap_px < self.size_px, "0 or more and below size_px"),
                "max_tiles": (self.max_tiles is None or self.max_tiles >= 1, "1 or more, or None"),
            },
        )


@dataclass(frozen=True, eq=False)
class TileGrid:
    """The tiles of a slide that hold tissue.

    Args:
        xy_px: upper left corners in level-0 pixels, row by row.
        size0_px: edge of a tile in level-0 pixels; not whole when the slide's µm per pixel is not a multiple.
        mpp: µm per pixel of the tiles read.
        found: number of tiles before `TileSettings.max_tiles`.
    """

    xy_px: Int64[np.ndarray, "N 2"]
    size0_px: float
    mpp: float
    tissue: Tissue
    found: int
    tissue_settings: TissueSettings
    tile_settings: TileSettings

    @property
    def step0_px(self) -> float:
        """From a tile to its neighbour in level-0 pixels; below the tile's edge where tiles overlap."""
        return self.size0_px * (self.tile_settings.size_px - self.tile_settings.overlap_px) / self.tile_settings.size_px

    @property
    def slide_mpp(self) -> float:
        """µm per level-0 pixel."""
        return self.mpp * self.tile_settings.size_px / self.size0_px


def grid_origins(length_px: int, size0_px: float, step0_px: float) -> Int64[np.ndarray, " n"]:
    """Where the complete tiles of one axis begin; each is the nearest pixel to a true multiple, so nothing drifts."""
    origins = np.floor(np.arange(int(length_px / step0_px) + 1) * step0_px + 0.5).astype(np.int64)
    return np.asarray(origins[origins + math.ceil(size0_px - 1e-6) <= length_px])


def keep_tiles(
    mask: Bool[np.ndarray, "h w"],
    downsample: float,
    x_px: Int64[np.ndarray, " columns"],
    y_px: Int64[np.ndarray, " rows"],
    size0_px: float,
    settings: TileSettings,
) -> Bool[np.ndarray, "rows columns"]:
    """The tiles of a grid that a rule keeps."""
    edge_px = math.floor(size0_px + 0.5)

    def index(points: np.ndarray, length: int) -> np.ndarray:
        return np.minimum((points / downsample).astype(np.int64), length)

    if settings.rule == "min_coverage":
        area = np.pad(mask.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))  # mask pixels above and left of each corner
        top, left = index(y_px, mask.shape[0] - 1), index(x_px, mask.shape[1] - 1)
        bottom, right = index(y_px + edge_px - 1, mask.shape[0] - 1) + 1, index(x_px + edge_px - 1, mask.shape[1] - 1) + 1
        inside = area[np.ix_(bottom, right)] - area[np.ix_(top, right)] - area[np.ix_(bottom, left)] + area[np.ix_(top, left)]
        return np.asarray(inside >= settings.min_coverage * np.outer(bottom - top, right - left))
    half = edge_px // 2
    offsets = (0, edge_px - 1) if settings.rule == "corners" else (half - half // 2, half + half // 2)
    kept = np.zeros((len(y_px), len(x_px)), bool)
    for down in offsets:
        for across in offsets:
            kept |= mask[np.ix_(index(y_px + down, mask.shape[0] - 1), index(x_px + across, mask.shape[1] - 1))]
    return kept


def evenly(count: int, most: int) -> Int64[np.ndarray, " n"]:
    """At most `most` indices spread evenly over `count`."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    return (2 * np.arange(most, dtype=np.int64) + 1) * count // (2 * most)


def by_place(
    weights: Float[np.ndarray, " N"], grid: TileGrid, slide_size_px: tuple[int, int] | None = None
) -> Float32[np.ndarray, "rows columns"]:
    """The value of each tile, one pixel for each place of the slide's one grid; 0 where there is no tile or it is not finite.

    Of tiles on grids of their own, as in files of CLAM, several may be nearest to one place: the highest value counts.

    Args:
        slide_size_px: width and height of level 0; None ends with the last tile.
    """
    column, row = np.rint(grid.xy_px / grid.step0_px).astype(int).T
    columns, rows = int(column.max()) + 1, int(row.max()) + 1
    if slide_size_px is not None:
        columns, rows = (len(grid_origins(length, grid.size0_px, grid.step0_px)) for length in slide_size_px)
    values = np.zeros((rows, columns), np.float32)
    np.maximum.at(values, (row, column), np.where(np.isfinite(weights), weights, 0).astype(np.float32))
    return values


def paint(
    weights: Float[np.ndarray, " N"], grid: TileGrid, slide_size_px: tuple[int, int], shape: tuple[int, int]
) -> Float32[np.ndarray, "h w"]:
    """The value of each tile on a thumbnail; the mean where tiles overlap, 0 where there is none or it is not finite.

    Args:
        slide_size_px: width and height of level 0.
        shape: rows and columns of the thumbnail.
    """
    total, count = np.zeros(shape), np.zeros(shape)
    scale = np.array([shape[1] / slide_size_px[0], shape[0] / slide_size_px[1]])
    first = np.floor(grid.xy_px * scale + 0.5).astype(int)
    last = np.maximum(np.floor((grid.xy_px + grid.size0_px) * scale + 0.5).astype(int), first + 1)
    first = np.minimum(first, [shape[1] - 1, shape[0] - 1])  # the last row of a coarse thumbnail may round away
    for weight, (x, y), (right, lower) in zip(np.where(np.isfinite(weights), weights, 0), first, last, strict=True):
        total[y:lower, x:right] += weight
        count[y:lower, x:right] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)
