"""The tissue of a slide, and the grid of tiles on it.

    Slide --tissue--> mask --tile_grid--> origins N 2

Coordinates are (x, y) in level-0 pixels unless a name says otherwise.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from HARM3Logic.errors import BadSlide
from HARM3Logic.slide_file import Slide
from HARM3Logic.tile_reader import read_batches, read_tile, read_tiles, reader_count
from HARM3Logic.tiles import TileGrid, TileSettings, evenly, grid_origins, keep_tiles, paint
from HARM3Logic.tissue import BLURRED, Tissue, TissueSettings, find_tissue, is_dark_field, sharpness

__all__ = [
    "NoTissue",
    "Slide",
    "TileGrid",
    "TileSettings",
    "Tissue",
    "TissueSettings",
    "focused",
    "paint",
    "read_batches",
    "read_tiles",
    "reader_count",
    "tile_grid",
    "tissue",
]

FOCUS_PX, FOCUS_MPP = 96, 0.5  # the places whose focus is judged
MAX_ENLARGEMENT = 2.5  # a 10x scan may serve for 20x tiles; beyond that pixels are invented


class NoTissue(BadSlide):
    """No tile holds tissue; `tissue` is what was found, on the slide at `path` with `mpp` µm per pixel."""

    def __init__(self, message: str, advice: str, tissue: Tissue, path: Path, mpp: float) -> None:
        super().__init__(message, advice)
        self.tissue, self.path, self.mpp = tissue, path, mpp


def tissue(slide: Slide, settings: TissueSettings, focus: bool = True) -> Tissue:
    """The tissue of a slide.

    Args:
        focus: judge the focus too; False leaves it to `focused`.

    Raises:
        BadSlide: the slide is dark where it should be empty (fluorescence), or its pixels cannot be read.
    """
    wanted = settings.mask_downsample or settings.mask_mpp / slide.mpp
    level = 0 if settings.mask_downsample else slide.best_level(wanted)
    block_px = max(1, round(wanted / slide.level_downsamples[level]))
    picture = slide.whole(level, block_px)
    if is_dark_field(picture):
        raise BadSlide(
            f"slide {slide.path.name!r} has a dark background, as in fluorescence; a stained section on white glass is wanted.",
            "Choose the H&E slide.",
        )
    found = find_tissue(picture, block_px * slide.level_downsamples[level], slide.mpp, settings)
    return _judged(slide, found, settings) if focus else found


def focused(slide: Slide, grid: TileGrid) -> TileGrid:
    """A grid with its focus judged, where `tile_grid` was told to leave that out.

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    return replace(grid, tissue=_judged(slide, grid.tissue, grid.tissue_settings))


def _judged(slide: Slide, found: Tissue, settings: TissueSettings) -> Tissue:
    blurred = _blurred(slide, found, settings.blur_samples)
    return found if blurred is None else replace(found, fractions={**found.fractions, "blurred": blurred})


def _blurred(slide: Slide, found: Tissue, samples: int) -> float | None:
    """Share of even places in the tissue that are out of focus; None where nothing can be judged."""
    rows, columns = np.nonzero(found.mask)
    if not samples or not rows.size or slide.mpp > 1.5 * FOCUS_MPP:  # a coarse scan has no detail to judge
        return None
    size0_px = FOCUS_PX * FOCUS_MPP / slide.mpp
    last = [max(0, int(length - size0_px)) for length in (slide.width_px, slide.height_px)]  # the slide's edge is no detail

    def judge(i: int) -> float:
        centre = (np.array([columns[i], rows[i]]) + 0.5) * found.downsample
        x_px, y_px = np.clip((centre - size0_px / 2).astype(int), 0, last)
        return sharpness(read_tile(slide, int(x_px), int(y_px), size0_px, FOCUS_PX))

    with ThreadPoolExecutor(reader_count(), thread_name_prefix="slide") as pool:
        values = list(pool.map(judge, evenly(rows.size, samples).tolist()))
    return float(np.mean(np.array(values) < BLURRED))


def tile_grid(slide: Slide, tissue: TissueSettings, tiles: TileSettings, focus: bool = True) -> TileGrid:
    """The tiles of one grid from (0, 0) over the slide that hold tissue; complete tiles only, row by row.

    Args:
        focus: judge the focus too; False leaves it to `focused`.

    Raises:
        NoTissue: no tile holds tissue.
        BadSlide: the slide is too coarse for the tiles wanted, or dark.
    """
    if tiles.mpp is not None and slide.mpp > MAX_ENLARGEMENT * tiles.mpp:
        raise BadSlide(
            f"slide {slide.path.name!r} has {slide.mpp:g} µm per pixel; for tiles of {tiles.mpp:g} it must be "
            f"{MAX_ENLARGEMENT * tiles.mpp:g} or less.",
            "Give a finer scan, or its true µm per pixel with --mpp." + _doubts(slide),
        )
    mpp = slide.mpp if tiles.mpp is None else tiles.mpp
    size0_px = tiles.size_px * mpp / slide.mpp
    step0_px = (tiles.size_px - tiles.overlap_px) * mpp / slide.mpp
    x, y = (grid_origins(length, size0_px, step0_px) for length in (slide.width_px, slide.height_px))
    if not (x.size and y.size):
        raise BadSlide(
            f"slide {slide.path.name!r} has {slide.width_px} x {slide.height_px} px of {slide.mpp:g} µm, which is less than one tile of "
            f"{tiles.size_px} px at {mpp:g} µm per pixel.",
            "Give the whole slide, or its true µm per pixel with --mpp." + _doubts(slide),
        )
    found = _find(slide, tissue, focus)
    kept = keep_tiles(found.mask, found.downsample, x, y, size0_px, tiles)
    rows, columns = np.nonzero(kept)
    if not rows.size:
        spoilt = (("pen", "blue or green ink"), ("dark", "black"))
        rest = [f", {100 * share:.2g} % {word}" for kind, word in spoilt if (share := found.fractions[kind]) > 0.001]
        raise NoTissue(
            f"slide {slide.path.name!r} has no tile of {tiles.size_px} px at {mpp:g} µm per pixel with tissue; "
            f"{100 * found.fractions['tissue']:.2g} % of its {slide.width_px} x {slide.height_px} px is tissue{''.join(rest)}.",
            "Check the slide, its µm per pixel and the tissue threshold." + _doubts(slide),
            found,
            slide.path,
            slide.mpp,
        )
    xy_px = np.stack([x[columns], y[rows]], axis=1)
    if tiles.max_tiles is not None:
        xy_px = xy_px[evenly(len(xy_px), tiles.max_tiles)]
    return TileGrid(xy_px, size0_px, mpp, found, int(rows.size), tissue, tiles)


def _doubts(slide: Slide) -> str:
    """What was odd about the slide, behind an advice."""
    return "".join(f" Beware: {sentence}" for sentence in slide.warnings)


_find = tissue  # `tile_grid` has a parameter of this name
