"""The pixels of a slide's tiles, decoded ahead of whoever uses them.

    blocks of whole pyramid tiles, each decoded once --crop--> level pixels --one Lanczos pass to the true µm per pixel--> tiles n S S 3

A level that is within 1 % of the wanted µm per pixel gives its pixels as they are: no scanner's scale is known better, and they stay sharp.

Blocks are shared by the tiles that overlap them and dropped after the last of these, so memory follows the width of the tissue and
never its area.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from HARM3Logic.slide_file import Slide
from HARM3Logic.tiles import TileGrid

SHARE = 8  # tiles one reader thread makes at a time
AHEAD = 64  # tiles decoded at one go where decoding and encoding take turns on the same cores
NATIVE = 0.01  # share by which a level's µm per pixel may miss the wanted one before it is resampled
KEEP_BYTES = 512 << 20  # decoded blocks kept at most; what is dropped too early is decoded again
Block = tuple[int, int]  # column and row


def reader_count() -> int:
    """Threads that decode."""
    return min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Cut:
    """How tiles are cut from a level: as its own pixels, or exactly where they lie, between its pixels too.

    Args:
        edge: of a tile, in pixels of `level`; not whole.
        level_px: width and height of `level`; not whole.
    """

    slide: Slide
    level: int
    downsample: float
    edge: float
    size_px: int
    block_px: tuple[int, int]
    level_px: tuple[float, float]

    @classmethod
    def of(cls, slide: Slide, size0_px: float, size_px: int) -> Cut:
        level = slide.best_level(size0_px / size_px)
        downsample = slide.level_downsamples[level]
        level_px = (slide.width_px / downsample, slide.height_px / downsample)
        return cls(slide, level, downsample, size0_px / downsample, size_px, slide.block_px(level), level_px)

    @property
    def native(self) -> bool:
        """Its pixels are taken as they are."""
        return abs(self.edge / self.size_px - 1) <= NATIVE

    def box(self, x_px: int, y_px: int) -> tuple[int, int, int, int]:
        """Left, top, right and lower edge, in whole pixels of the level, of all that a tile needs."""
        x, y = x_px / self.downsample, y_px / self.downsample
        if self.native:
            left, top = (self._begin(v, length) for v, length in zip((x, y), self.level_px, strict=True))
            return left, top, left + self.size_px, top + self.size_px
        right, lower = (math.ceil(v + self.edge - 1e-6) for v in (x, y))
        return math.floor(x + 1e-6), math.floor(y + 1e-6), right, lower

    def _begin(self, v: float, length: float) -> int:
        """Where whole pixels begin: those of a tile that lies within the level stay within, those of one that hangs over do not move."""
        begin = math.floor(v + 0.5)
        return begin if v + self.edge > length + 1e-6 else min(begin, max(0, math.floor(length) - self.size_px))

    def blocks(self, box: tuple[int, int, int, int]) -> list[Block]:
        wide, high = self.block_px
        left, top, right, lower = box
        return [(c, r) for r in range(top // high, -(-lower // high)) for c in range(left // wide, -(-right // wide))]

    def decode(self, block: Block) -> UInt8[np.ndarray, "h w 3"]:
        x, y = (round(k * edge * self.downsample) for k, edge in zip(block, self.block_px, strict=True))
        return self.slide.read_region_rgb(x, y, self.level, *self.block_px)

    def resample(self, pixels: UInt8[np.ndarray, "h w 3"], x_px: int, y_px: int) -> UInt8[np.ndarray, "S S 3"]:
        """A tile from the pixels of its box."""
        if self.native:
            return pixels
        height, width = pixels.shape[:2]
        x, y = (max(0.0, v / self.downsample - math.floor(v / self.downsample + 1e-6)) for v in (x_px, y_px))
        box = (x, y, min(x + self.edge, width), min(y + self.edge, height))
        return np.asarray(Image.fromarray(pixels).resize((self.size_px, self.size_px), Image.Resampling.LANCZOS, box=box))


class Blocks:
    """Decoded blocks, shared between threads; one is dropped when all the tiles that need it have been made."""

    def __init__(self, cut: Cut, xy_px: Int64[np.ndarray, "N 2"], keep_bytes: int = KEEP_BYTES) -> None:
        self.cut = cut
        self._uses = Counter(block for x, y in xy_px.tolist() for block in cut.blocks(cut.box(x, y)))
        self._most = max(1, keep_bytes // (4 * cut.block_px[0] * cut.block_px[1]))
        self._held: OrderedDict[Block, Future[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def tile(self, x_px: int, y_px: int) -> UInt8[np.ndarray, "S S 3"]:
        """The tile at a corner; each tile is asked for once.

        Raises:
            BadSlide: the pixels cannot be decoded.
        """
        left, top, right, lower = box = self.cut.box(x_px, y_px)
        pixels = np.empty((lower - top, right - left, 3), np.uint8)
        wide, high = self.cut.block_px
        for block in self.cut.blocks(box):
            part = self._get(block)
            x, y = block[0] * wide, block[1] * high
            to = (slice(max(y - top, 0), y + high - top), slice(max(x - left, 0), x + wide - left))
            pixels[to] = part[max(top - y, 0) : lower - y, max(left - x, 0) : right - x]
        return self.cut.resample(pixels, x_px, y_px)

    def _get(self, block: Block) -> UInt8[np.ndarray, "h w 3"]:
        with self._lock:
            found = self._held.get(block)
            mine = found is None
            if found is None:
                found = self._held[block] = Future()
            self._held.move_to_end(block)
            self._uses[block] -= 1
            if self._uses[block] <= 0:
                del self._held[block]
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        if mine:
            try:
                found.set_result(self.cut.decode(block))
            except BaseException as error:
                found.set_exception(error)
        return found.result()


def read_tile(slide: Slide, x_px: int, y_px: int, size0_px: float, size_px: int) -> UInt8[np.ndarray, "S S 3"]:
    """One tile anywhere, of `size0_px` level-0 pixels.

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    cut = Cut.of(slide, size0_px, size_px)
    left, top, right, lower = cut.box(x_px, y_px)
    x, y = (round(v * cut.downsample) for v in (left, top))
    return cut.resample(slide.read_region_rgb(x, y, cut.level, right - left, lower - top), x_px, y_px)


def read_tiles(slide: Slide, grid: TileGrid, start: int, stop: int) -> UInt8[np.ndarray, "n S S 3"]:
    """Tiles `start` to `stop` (exclusive) of a grid.

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    size_px, corners = grid.tile_settings.size_px, grid.xy_px[start:stop]
    out = np.empty((len(corners), size_px, size_px, 3), np.uint8)
    _make(Blocks(Cut.of(slide, grid.size0_px, size_px), corners), corners, out)
    return out


def _make(blocks: Blocks, corners: Int64[np.ndarray, "n 2"], out: UInt8[np.ndarray, "n S S 3"]) -> None:
    for k, (x, y) in enumerate(corners.tolist()):
        out[k] = blocks.tile(x, y)


def read_batches(
    slide: Slide,
    grid: TileGrid,
    batch: int,
    readers: int | None = None,
    *,
    start: int = 0,
    turns: bool = False,
    pool: ThreadPoolExecutor | None = None,
) -> Generator[UInt8[np.ndarray, "n S S 3"], None, None]:
    """The tiles of a grid in order, `batch` at a time, decoded ahead.

    Args:
        readers: threads that decode; None takes one per core, 16 at most.
        start: number of the first tile.
        turns: decode nothing while a batch is in use; for whoever then takes all cores itself.
        pool: threads that several slides share; None starts `readers` for this one.

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    readers = readers or reader_count()
    size_px, corners = grid.tile_settings.size_px, grid.xy_px[start:]
    blocks = Blocks(Cut.of(slide, grid.size0_px, size_px), corners)
    share = min(SHARE, max(1, batch // readers))
    most = 1 + -(-(AHEAD if turns else readers * share) // batch)
    threads = pool or ThreadPoolExecutor(readers, thread_name_prefix="slide")
    ahead: deque[tuple[np.ndarray, list[Future[None]]]] = deque()

    def begin(first: int) -> None:
        part = corners[first : first + batch]
        out = np.empty((len(part), size_px, size_px, 3), np.uint8)
        pieces = [slice(k, k + share) for k in range(0, len(part), share)]
        ahead.append((out, [threads.submit(_make, blocks, part[p], out[p]) for p in pieces]))

    try:
        firsts = deque(range(0, len(corners), batch))
        while firsts or ahead:
            if not (turns and ahead):
                while firsts and len(ahead) < most:
                    begin(firsts.popleft())
                if turns:
                    wait([each for _, pieces in ahead for each in pieces])
            out, waiting = ahead.popleft()
            for each in waiting:
                each.result()
            yield out
    finally:
        left = [each for _, pieces in ahead for each in pieces if not each.cancel()]
        wait(left)  # the slide may be closed after this
        if pool is None:
            threads.shutdown(wait=True)
