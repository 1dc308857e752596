"""A whole-slide image: its pixels, its tissue, the grid of tiles on it, and values painted back onto it.

    file --open--> Slide --tissue--> mask --tile_grid--> origins N 2 --read_batches--> tiles n S S 3
                                                          weights N --paint--> picture h w

The only home of OpenSlide. Coordinates are (x, y) in level-0 pixels unless a name says otherwise.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image

from HARM3Logic.errors import BadSlide
from HARM3Logic.tiles import TileGrid, TileSettings, evenly, grid_origins, keep_tiles, paint
from HARM3Logic.tissue import BLURRED, Tissue, TissueSettings, block_means, find_tissue, holds_ycbcr, is_dark_field, sharpness

__all__ = [
    "Slide",
    "TileGrid",
    "TileSettings",
    "Tissue",
    "TissueSettings",
    "focused",
    "paint",
    "read_batches",
    "read_tiles",
    "tile_grid",
    "tissue",
]

MPP_RANGE = (0.05, 20.0)  # µm per pixel a microscope can have
MANY_FILES = {".dcm", ".vms", ".vmu"}  # one slide is spread over the files of its folder
BLOCK_PX = 2048  # edge of the blocks in which a level is read whole
FOCUS_PX, FOCUS_MPP = 224, 0.5  # the places whose focus is judged
MAX_ENLARGEMENT = 2.5  # a 10x scan may serve for 20x tiles; beyond that pixels are invented
CACHE_BYTES = 128 << 20  # decoded pixels kept by OpenSlide, so that neighbouring tiles decode each other's borders once


class Slide:
    """An open slide; a context manager. `warnings` says what was mended while reading."""

    def __init__(self, path: Path, handle: openslide.OpenSlide, mpp: float) -> None:
        self.path = path
        self.mpp = mpp  # µm per level-0 pixel
        self.width_px, self.height_px = handle.dimensions
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        self.vendor: str = handle.properties.get("openslide.vendor", "")
        self._level_sizes_px: tuple[tuple[int, int], ...] = handle.level_dimensions
        self._handle = handle
        self._reads, self._closed, self._quiet = 0, False, threading.Condition()
        # some DICOM writers store YCbCr and tag it RGB; OpenSlide believes the tag
        self._ycbcr = False
        self._ycbcr = self.vendor == "dicom" and holds_ycbcr(self.thumbnail(256))
        self.warnings = (f"slide {path.name!r} calls its YCbCr pixels RGB; they were converted.",) if self._ycbcr else ()

    @classmethod
    def open(cls, path: str | os.PathLike[str], mpp: float | None = None) -> Slide:
        """The slide in a file, or in a folder of DICOM files.

        Args:
            mpp: true µm per level-0 pixel; replaces what the file says.

        Raises:
            BadSlide: the file is missing, broken or no slide, or its µm per pixel is missing or impossible.
        """
        path = Path(path)
        if not path.exists():
            raise BadSlide(f"slide {str(path)!r} does not exist.", "Check the path.")
        if mpp is not None and not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
            raise BadSlide(f"µm per pixel given for slide {path.name!r} is {mpp:g}; {_range()} is wanted.", "Correct it.")
        handle = _open(path)
        try:
            handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            return cls(path, handle, mpp if mpp is not None else _mpp(path, handle.properties))
        except BaseException:
            handle.close()
            raise

    def __enter__(self) -> Slide:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file once no thread reads from it; OpenSlide would crash otherwise."""
        with self._quiet:
            self._closed = True
            self._quiet.wait_for(lambda: self._reads == 0)
        self._handle.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._quiet:
            if self._closed:
                raise BadSlide(f"slide {str(self.path)!r} is closed; its pixels can no longer be read.", "Read before closing it.")
            self._reads += 1
        try:
            yield
        finally:
            with self._quiet:
                self._reads -= 1
                self._quiet.notify_all()

    @cached_property
    def sha256(self) -> str:
        """Hash of the slide's content; of a slide in several files, the hash of their hashes in order of name."""
        many = self.path.is_dir() or self.path.suffix.lower() in MANY_FILES or self.vendor == "dicom"
        folder = self.path if self.path.is_dir() else self.path.parent
        files = [f for f in folder.iterdir() if f.is_file()] if many else [self.path]
        if self.path.suffix.lower() == ".mrxs":  # its pixels lie in the folder of the same name
            files += [f for f in self.path.with_suffix("").rglob("*") if f.is_file()]
        try:
            hashes = [_file_sha256(f) for f in sorted(files)]
        except OSError as error:
            raise BadSlide(f"slide {str(self.path)!r} cannot be read ({error.strerror}).", "Check the file.") from error
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def best_level(self, downsample: float) -> int:
        """The smallest level that still has the detail of `downsample`."""
        # 1 % more is the rounding of level sizes (2.0005 for a half), not lost detail
        return max(i for i, d in enumerate(self.level_downsamples) if i == 0 or d <= 1.01 * downsample)

    def read_region_rgb(self, x_px: int, y_px: int, level: int, width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
        """A rectangle of one level; what is transparent or outside is white.

        Args:
            x_px: left edge in level-0 pixels; likewise `y_px`.
            width: in pixels of `level`; likewise `height`.

        Raises:
            BadSlide: the pixels cannot be decoded.
        """
        try:
            with self._reading():
                picture = self._handle.read_region((x_px, y_px), level, (width, height))
        except openslide.OpenSlideError as error:
            raise BadSlide(
                f"slide {str(self.path)!r} is damaged; its pixels cannot be read ({error}).", "Copy or export it again."
            ) from error
        if self._ycbcr:
            *channels, alpha = picture.split()
            picture = Image.merge("YCbCr", channels).convert("RGBA")
            picture.putalpha(alpha)
        if picture.getchannel("A").getextrema() != (255, 255):
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return np.asarray(picture)[..., :3]

    def whole(self, level: int, block_px: int) -> UInt8[np.ndarray, "h w 3"]:
        """The whole slide, each pixel the mean of a square block of `level`; partial blocks at the border count."""
        width, height = self._level_sizes_px[level]
        step = block_px * max(1, BLOCK_PX // block_px)
        out = np.empty((-(-height // block_px), -(-width // block_px), 3), np.uint8)
        for y in range(0, height, step):
            for x in range(0, width, step):
                x_px, y_px = (round(v * self.level_downsamples[level]) for v in (x, y))
                part = self.read_region_rgb(x_px, y_px, level, min(step, width - x), min(step, height - y))
                means = block_means(part, block_px)
                row, column = y // block_px, x // block_px
                out[row : row + means.shape[0], column : column + means.shape[1]] = means
        return out

    def thumbnail(self, max_px: int = 1024) -> UInt8[np.ndarray, "H W 3"]:
        """The whole slide with its longer edge at `max_px` or less."""
        scale = max(1.0, max(self.width_px, self.height_px) / max_px)
        level = self.best_level(scale)
        block_px = max(1, int(scale / self.level_downsamples[level]))
        picture = Image.fromarray(self.whole(level, block_px))
        size = (max(1, round(self.width_px / scale)), max(1, round(self.height_px / scale)))
        return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def _open(path: Path) -> openslide.OpenSlide:
    files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    slides = [f for f in files if openslide.OpenSlide.detect_format(f)]
    if not slides:
        raise BadSlide(
            f"{str(path)!r} is not a slide OpenSlide can read, or is cut short.",
            "Give a whole SVS, NDPI, MRXS, pyramidal TIFF or DICOM slide; copy it again if its copy was interrupted.",
        )
    try:
        handle = openslide.OpenSlide(slides[0])
        series = handle.properties.get("dicom.SeriesInstanceUID")
        for other in slides[1:]:
            with openslide.OpenSlide(other) as beside:
                one = series is not None and beside.properties.get("dicom.SeriesInstanceUID") == series
            if not one:
                handle.close()
                raise BadSlide(f"folder {str(path)!r} holds several slides; one is wanted.", "Give the file of one of them.")
    except openslide.OpenSlideError as error:
        raise BadSlide(f"slide {str(path)!r} is damaged; it cannot be opened ({error}).", "Copy or export it again.") from error
    return handle


def _mpp(path: Path, properties: Mapping[str, str]) -> float:
    texts = [properties.get(key) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    advice = "Give it with --mpp or the column slide_mpp."
    try:
        x, y = (float(text or "nan") for text in texts)
    except ValueError:
        x = y = math.nan
    if math.isnan(x) or math.isnan(y):
        raise BadSlide(f"slide {path.name!r} does not say its µm per pixel; sizes cannot be guessed.", advice)
    if not all(MPP_RANGE[0] <= v <= MPP_RANGE[1] for v in (x, y)):
        raise BadSlide(f"slide {path.name!r} says {x:g} x {y:g} µm per pixel; {_range()} is wanted.", advice)
    if abs(x - y) > 0.1 * (x + y) / 2:
        raise BadSlide(f"slide {path.name!r} says {x:g} µm per pixel in x and {y:g} in y; equal values are wanted.", advice)
    return (x + y) / 2


def _range() -> str:
    return f"{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}"


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
        return sharpness(_read_tile(slide, int(x_px), int(y_px), size0_px, FOCUS_PX))

    with ThreadPoolExecutor(_readers(), thread_name_prefix="slide") as pool:
        values = list(pool.map(judge, evenly(rows.size, samples).tolist()))
    return float(np.mean(np.array(values) < BLURRED))


def _readers() -> int:
    return min(8, os.cpu_count() or 1)


def tile_grid(slide: Slide, tissue: TissueSettings, tiles: TileSettings, focus: bool = True) -> TileGrid:
    """The tiles of one grid from (0, 0) over the slide that hold tissue; complete tiles only, row by row.

    Args:
        focus: judge the focus too; False leaves it to `focused`.

    Raises:
        BadSlide: no tile holds tissue, or the slide is too coarse for the tiles wanted.
    """
    if tiles.mpp is not None and slide.mpp > MAX_ENLARGEMENT * tiles.mpp:
        raise BadSlide(
            f"slide {slide.path.name!r} has {slide.mpp:g} µm per pixel; for tiles of {tiles.mpp:g} it must be "
            f"{MAX_ENLARGEMENT * tiles.mpp:g} or less.",
            "Give a finer scan, or its true µm per pixel with --mpp.",
        )
    mpp = slide.mpp if tiles.mpp is None else tiles.mpp
    size0_px = tiles.size_px * mpp / slide.mpp
    step0_px = (tiles.size_px - tiles.overlap_px) * mpp / slide.mpp
    found = _find(slide, tissue, focus)
    x, y = (grid_origins(length, size0_px, step0_px) for length in (slide.width_px, slide.height_px))
    kept = keep_tiles(found.mask, found.downsample, x, y, size0_px, tiles)
    rows, columns = np.nonzero(kept)
    if not rows.size:
        share = found.fractions["tissue"]
        raise BadSlide(
            f"slide {slide.path.name!r} has no tile of {tiles.size_px} px at {mpp:g} µm per pixel with tissue; "
            f"{100 * share:.2g} % of its {slide.width_px} x {slide.height_px} px is tissue.",
            "Check the slide, its µm per pixel and the tissue threshold.",
        )
    xy_px = np.stack([x[columns], y[rows]], axis=1)
    if tiles.max_tiles is not None:
        xy_px = xy_px[evenly(len(xy_px), tiles.max_tiles)]
    return TileGrid(xy_px, size0_px, mpp, found, int(rows.size), tissue, tiles)


_find = tissue  # `tile_grid` has a parameter of this name


def read_tiles(slide: Slide, grid: TileGrid, start: int, stop: int) -> UInt8[np.ndarray, "n S S 3"]:
    """Tiles `start` to `stop` (exclusive) of a grid.

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    size_px = grid.tile_settings.size_px
    tiles = [_read_tile(slide, int(x), int(y), grid.size0_px, size_px) for x, y in grid.xy_px[start:stop]]
    return np.stack(tiles) if tiles else np.empty((0, size_px, size_px, 3), np.uint8)


def read_batches(
    slide: Slide, grid: TileGrid, batch: int, readers: int | None = None
) -> Generator[UInt8[np.ndarray, "n S S 3"], None, None]:
    """All tiles of a grid in order, `batch` at a time, decoded ahead by `readers` threads (None: up to 8, as the machine has).

    Raises:
        BadSlide: the pixels cannot be decoded.
    """
    readers = readers or _readers()
    pool = ThreadPoolExecutor(readers, thread_name_prefix="slide")
    ahead: deque[Future[np.ndarray]] = deque()
    try:
        for start in range(0, len(grid.xy_px), batch):
            ahead.append(pool.submit(read_tiles, slide, grid, start, start + batch))
            if len(ahead) > readers:  # never more in memory than the readers and one
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_tile(slide: Slide, x_px: int, y_px: int, size0_px: float, size_px: int) -> UInt8[np.ndarray, "S S 3"]:
    level = slide.best_level(size0_px / size_px)
    edge = size0_px / slide.level_downsamples[level]
    whole = math.ceil(edge - 1e-6)
    tile = slide.read_region_rgb(x_px, y_px, level, whole, whole)
    if whole == size_px and abs(edge - whole) <= 1e-6:
        return tile
    box = (0.0, 0.0, min(edge, whole), min(edge, whole))
    return np.asarray(Image.fromarray(tile).resize((size_px, size_px), Image.Resampling.LANCZOS, box=box))
