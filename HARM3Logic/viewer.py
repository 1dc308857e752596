"""A slide to walk about in, with the attention over it: a page that a browser opens from disk, and its pictures beside it.

    Slide --squares, four of which make the one above them--> slide_files/<level>/<column>_<row>.jpg
    SlideView --slide.html.j2--> slide.html

Level 0 is the whole slide in one square and each level has twice the pixels of the one before, as in a Deep Zoom pyramid. Squares
without tissue are not divided further once they are as fine as `GLASS_MPP`, and the finest level is bounded by `MOST_BYTES`: what is
written follows the area of the tissue and never exceeds a budget. Nothing of the label or the file's name is written.
"""

from __future__ import annotations

import base64
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from HARM3Logic import report
from HARM3Logic.errors import BadOption
from HARM3Logic.picture import GREEN, picture
from HARM3Logic.slide import Slide
from HARM3Logic.slide_view import FADE, SlideSource, SlideView, attention_table, levels
from HARM3Logic.tile_reader import read_tile, reader_count
from HARM3Logic.tiles import TileGrid, by_place

EDGE = 512  # of a square, pixels
FINEST_MPP = 0.5  # what the tiles of a model have; more is only for the pathologist's own viewer
GLASS_MPP = 8.0  # without tissue
MOST_BYTES = 64 << 20
QUALITY = 75
BYTES_PER_PX = 0.15  # at that quality; 0.10 and 0.15 were measured on two sections at 0.5 µm per pixel
MOST_SHRINK = 4  # level pixels a side read for one pixel, so that memory stays flat on slides with few levels
CRAMPED_PX = 1 << 28  # of the slide, to decode (some seconds of one core): above it a finest level that needs half as many is taken
VENDOR = Path(__file__).with_name("vendor")  # filled by `make viewer`; the library is no part of this repository
LIBRARY = ("openseadragon.min.js", "openseadragon.LICENSE.txt")
Square = tuple[int, int, int]  # level, column, row


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The squares of a slide.

    Args:
        factor: level-0 pixels per pixel of the finest level; a power of two.
        margin_px: level-0 pixels round the tissue that are as fine as it.
    """

    slide: Slide
    source: SlideSource
    factor: int
    margin_px: float

    @cached_property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the finest level."""
        return -(-self.slide.width_px // self.factor), -(-self.slide.height_px // self.factor)

    @cached_property
    def finest(self) -> int:
        """Number of the finest level."""
        return max(0, math.ceil(math.log2(max(self.size_px) / EDGE)))

    @cached_property
    def divided(self) -> tuple[Bool[np.ndarray, "rows columns"], ...]:
        """For each level, the squares that four finer ones make."""
        tissue, found = self.tissue, list[np.ndarray]()
        for level in range(self.finest, -1, -1):
            step = self.factor << (self.finest - level)
            source = self.slide.level_downsamples[self.slide.best_level(step)]
            deeper = step * self.slide.mpp > GLASS_MPP or step > MOST_SHRINK * source
            found.append(np.zeros_like(tissue) if level == self.finest else tissue | deeper)
            rows, columns = tissue.shape
            even = np.pad(tissue, ((0, rows % 2), (0, columns % 2)))
            tissue = even[::2, ::2] | even[1::2, ::2] | even[::2, 1::2] | even[1::2, 1::2]
        for below, above in zip(found[-2::-1], found[:0:-1], strict=True):  # what is not there cannot be divided
            below &= above.repeat(2, 0).repeat(2, 1)[: below.shape[0], : below.shape[1]]
        return tuple(found[::-1])

    @cached_property
    def tissue(self) -> Bool[np.ndarray, "rows columns"]:
        """The squares of the finest level near tissue."""
        mask, scale = self.source.tissue, self.source.tissue_px
        area = np.pad(mask.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))

        def ends(length_px: int, most: int) -> tuple[np.ndarray, np.ndarray]:
            corners = np.arange(0, length_px, EDGE) * self.factor
            first, last = corners - self.margin_px, corners + EDGE * self.factor + self.margin_px
            return np.clip(np.floor(first / scale), 0, most).astype(int), np.clip(np.ceil(last / scale), 0, most).astype(int)

        (left, right), (top, bottom) = (ends(length, most) for length, most in zip(self.size_px, mask.shape[::-1], strict=True))
        inside = area[np.ix_(bottom, right)] - area[np.ix_(top, right)] - area[np.ix_(bottom, left)] + area[np.ix_(top, left)]
        return np.asarray(inside > 0)

    @property
    def bytes(self) -> float:
        """About what its files take."""
        return 4 / 3 * BYTES_PER_PX * EDGE**2 * float(self.tissue.sum())

    @property
    def decoded_px(self) -> float:
        """Pixels of the slide that its finest level needs."""
        source = self.slide.level_downsamples[self.slide.best_level(self.factor)]
        return float(self.tissue.sum()) * (EDGE * self.factor / source) ** 2

    def children(self, square: Square) -> Iterator[Square]:
        """The up to four finer squares it is made of."""
        level, column, row = square
        if not self.divided[level][row, column]:
            return
        rows, columns = self.divided[level + 1].shape
        for r in range(2 * row, min(2 * row + 2, rows)):
            for c in range(2 * column, min(2 * column + 2, columns)):
                yield level + 1, c, r

    def read(self, square: Square) -> Image.Image:
        """Its pixels, from the slide.

        Raises:
            BadSlide: they cannot be decoded.
        """
        level, column, row = square
        step = self.factor << (self.finest - level)
        pixels = read_tile(self.slide, column * EDGE * step, row * EDGE * step, float(EDGE * step), EDGE)
        across, down = (-(-length * self.factor // step) for length in self.size_px)
        width, height = min(EDGE, across - column * EDGE), min(EDGE, down - row * EDGE)
        return Image.fromarray(pixels[:height, :width])


def pyramid(slide: Slide, source: SlideSource, margin_px: float) -> Pyramid:
    """The finest pyramid within the budget."""
    factor = 2 ** max(0, round(math.log2(FINEST_MPP / slide.mpp)))
    while True:
        made, coarser = (Pyramid(slide, source, f, margin_px) for f in (factor, 2 * factor))
        slow = made.decoded_px > CRAMPED_PX and coarser.decoded_px <= made.decoded_px / 2
        if made.finest == 0 or (made.bytes <= MOST_BYTES and not slow):
            return made
        factor *= 2


def write_squares(made: Pyramid, folder: Path) -> int:
    """Write the squares as JPEG files, and tell how many bytes they have.

    Raises:
        BadSlide: pixels cannot be decoded.
        OSError: a file cannot be written.
    """
    for level in range(made.finest + 1):
        (folder / str(level)).mkdir(parents=True)
    done: dict[Square, tuple[Image.Image, int]] = {}

    def make(square: Square) -> tuple[Image.Image, int]:
        """The square at half its size, for the one above, and the bytes written."""
        if square in done:
            return done.pop(square)
        level, column, row = square
        parts = [(child, *make(child)) for child in made.children(square)]
        if parts:
            width = sum(part.width for (_, c, r), part, _ in parts if r == 2 * row)
            height = sum(part.height for (_, c, r), part, _ in parts if c == 2 * column)
            whole = Image.new("RGB", (width, height))
            for (_, c, r), part, _ in parts:
                whole.paste(part, ((c - 2 * column) * EDGE // 2, (r - 2 * row) * EDGE // 2))
        else:
            whole = made.read(square)
        file = folder / str(level) / f"{column}_{row}.jpg"
        whole.save(file, "jpeg", quality=QUALITY)
        return whole.reduce(2), file.stat().st_size + sum(size for *_, size in parts)

    squares: list[Square] = [(0, 0, 0)]
    below = squares
    while below and len(squares) < 4 * reader_count():  # enough to share out; what has nothing below it is made at the end
        squares, below = below, [child for square in below for child in made.children(square)]
    pool = ThreadPoolExecutor(reader_count(), thread_name_prefix="viewer")
    try:
        done.update(zip(squares, pool.map(make, squares), strict=True))
        return make((0, 0, 0))[1]
    finally:
        pool.shutdown(cancel_futures=True)


def source_of(slide: Slide, grid: TileGrid, attention: Float[np.ndarray, " N"]) -> SlideSource:
    """What a view of the slide is made from.

    Args:
        attention: of the grid's tiles, 0 to 1 relative to the highest; 0 is taken where it is not finite.
    """
    by_tile = by_place(attention, grid, (slide.width_px, slide.height_px))
    return SlideSource(slide.path, slide.mpp, by_tile, grid.step0_px, grid.tissue.mask, grid.tissue.downsample)


def installed() -> bool:
    """Whether OpenSeadragon, on which the page stands, is there."""
    return all((VENDOR / name).is_file() for name in LIBRARY)


def write_viewer(view: SlideView, folder: Path, case_id: str) -> bool:
    """Write `slide.html` and `slide_files/` into an empty folder; False where the slide is not at hand.

    Raises:
        BadOption: the library is not installed.
        BadSlide: the slide cannot be read any more.
        OSError: the folder cannot be written.
    """
    if not installed():
        raise BadOption("the slide viewer's library OpenSeadragon is not installed.", "Fetch it with make viewer, or leave the viewer out.")
    if view.source is None:
        return False
    files = folder / "slide_files"
    with Slide.open(view.source.path, view.source.mpp) as slide:
        made = pyramid(slide, view.source, view.tile_px)
        write_squares(made, files)
    for name in LIBRARY:
        shutil.copyfile(VENDOR / name, files / name)
    page = report.template("slide.html.j2").render(case_id=case_id, view=_described(view, view.source, made), colours=GREEN, fade=FADE)
    (folder / "slide.html").write_text(page, encoding="utf-8")
    return True


def _described(view: SlideView, source: SlideSource, made: Pyramid) -> dict[str, Any]:
    """What the page knows of the slide; lengths in pixels of the finest level unless they say otherwise."""
    width, height = made.size_px
    rows, columns = source.by_tile.shape
    # cells are as wide as the way to the next tile; where tiles overlap each lies in the middle of its own
    first, step = (view.tile_px - source.step_px) / 2 / made.factor, source.step_px / made.factor
    return {
        "width": width,
        "height": height,
        "edge": EDGE,
        "um": source.mpp * made.factor,
        "scan_um": source.mpp,
        "factor": made.factor,
        "divided": [base64.b64encode(np.packbits(level).tobytes()).decode() for level in made.divided],
        "columns": [level.shape[1] for level in made.divided],
        "rows": [level.shape[0] for level in made.divided],
        "tile": view.tile_px / made.factor,
        "tiles": [
            {
                "rank": tile.rank,
                "x": tile.x_px / made.factor,
                "y": tile.y_px / made.factor,
                "x0": tile.x_px,
                "y0": tile.y_px,
                "share": report.percent(tile.weight, 1),
                "image": picture(tile.image),
            }
            for tile in view.tiles
            if tile.image is not None
        ],
        "attention": {
            "image": picture(levels(source.by_tile), attention_table()),
            "first": first,
            "step": step,
            "columns": columns,
            "rows": rows,
        },
    }
