"""A whole-slide image as a file: what it says of itself, and its pixels.

    file --open--> Slide --read_region_rgb--> h w 3

The only home of OpenSlide. Coordinates are (x, y) in level-0 pixels unless a name says otherwise. The label and macro pictures of a
slide carry names; nothing here reads them.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import openslide
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from HARM3Logic.case import file_sha256
from HARM3Logic.errors import BadSlide
from HARM3Logic.tissue import block_means, holds_ycbcr

MPP_RANGE = (0.05, 20.0)  # µm per pixel a microscope can have
MANY_FILES = {".dcm", ".vms", ".vmu"}  # one slide is spread over the files of its folder
PLAIN = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}  # pictures without a pyramid
PLAIN_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}  # of 8 bits a channel
ALIKE = 0.01  # share by which the µm per pixel given and those of the file may differ without a word
PLAIN_PX = 400_000_000  # such a picture is decoded whole; its pixels take 4 bytes each
WHOLE_PX = 2048  # edge of the blocks in which a level is read whole
TILE_PX = (192, 1024)  # edges of pyramid tiles that are read one by one
CACHE_BYTES = 64 << 20  # decoded pixels kept by OpenSlide


class Slide:
    """An open slide; a context manager. `warnings` says what was mended while reading."""

    def __init__(self, path: Path, handle: openslide.AbstractSlide, mpp: float, warnings: tuple[str, ...] = ()) -> None:
        self.path = path
        self.mpp = mpp  # µm per level-0 pixel
        self.width_px, self.height_px = handle.dimensions
        self.level_downsamples: tuple[float, ...] = handle.level_downsamples
        self.vendor: str = handle.properties.get("openslide.vendor", "")
        self._level_sizes_px: tuple[tuple[int, int], ...] = handle.level_dimensions
        # Trap: nothing but pixels may be asked of the handle later; while another thread closes it, that would crash the process.
        self._blocks_px = tuple(_block_px(handle.properties, level) for level in range(handle.level_count))
        self._handle = handle
        self._reads, self._closed, self._quiet = 0, False, threading.Condition()
        # some DICOM writers store YCbCr and tag it RGB; OpenSlide believes the tag
        self._ycbcr = False
        self._ycbcr = self.vendor == "dicom" and holds_ycbcr(self.thumbnail(256))
        mended = ("its file calls YCbCr pixels RGB; they were converted.",) if self._ycbcr else ()
        self.warnings = (*warnings, *mended)

    @classmethod
    def open(cls, path: str | os.PathLike[str], mpp: float | None = None) -> Slide:
        """The slide in a file, in a folder of DICOM files, or a plain picture whose µm per pixel is given.

        Args:
            mpp: true µm per level-0 pixel; replaces what the file says.

        Raises:
            BadSlide: the file is missing, broken or no slide, or its µm per pixel is missing or impossible.
        """
        path = Path(path)
        if not path.exists():
            raise BadSlide(f"slide {str(path)!r} does not exist.", "Check the path.")
        if mpp is not None:
            check_mpp(path, mpp)
        handle = _open(path)
        try:
            handle.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            if mpp is None:
                return cls(path, handle, _mpp(path, handle.properties))
            return cls(path, handle, mpp, _contradiction(handle.properties, mpp))
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
            hashes = [file_sha256(f) for f in sorted(files)]
        except OSError as error:
            raise BadSlide(f"slide {str(self.path)!r} cannot be read ({error.strerror}).", "Check the file.") from error
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    def best_level(self, downsample: float) -> int:
        """The smallest level that still has the detail of `downsample`."""
        # 1 % more is the rounding of level sizes (2.0005 for a half), not lost detail
        return max(i for i, d in enumerate(self.level_downsamples) if i == 0 or d <= 1.01 * downsample)

    def block_px(self, level: int) -> tuple[int, int]:
        """Width and height of blocks of whole pyramid tiles: one tile, or as many as make a worthwhile read."""
        return self._blocks_px[level]

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
            raise _unreadable(self.path, error, "its pixels cannot be read") from error
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
        step = block_px * max(1, WHOLE_PX // block_px)
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


def check_mpp(path: Path, mpp: float) -> None:
    """Refuse µm per pixel that no microscope has.

    Raises:
        BadSlide: as said.
    """
    if not MPP_RANGE[0] <= mpp <= MPP_RANGE[1]:
        raise BadSlide(f"µm per pixel given for slide {path.name!r} is {mpp:g}; {_range()} is wanted.", "Correct it.")


def _open(path: Path) -> openslide.AbstractSlide:
    try:
        files = sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
        slides = [f for f in files if openslide.OpenSlide.detect_format(f)]
        if not slides:
            return _plain(path)
        handle = openslide.OpenSlide(slides[0])
        series = handle.properties.get("dicom.SeriesInstanceUID")
        for other in slides[1:]:
            with openslide.OpenSlide(other) as beside:
                one = series is not None and beside.properties.get("dicom.SeriesInstanceUID") == series
            if not one:
                handle.close()
                raise BadSlide(f"folder {str(path)!r} holds several slides; one is wanted.", "Give the file of one of them.")
    except openslide.OpenSlideError as error:
        raise _unreadable(path, error, "it cannot be opened") from error
    return handle


def _unreadable(path: Path, error: openslide.OpenSlideError, what: str) -> BadSlide:
    if re.search("unsupported|can not handle", str(error), re.IGNORECASE):  # the words of OpenSlide and of libtiff
        advice = "Convert it into a pyramidal TIFF of 8-bit colour (vips tiffsave --tile --pyramid --compression jpeg)."
        return BadSlide(f"slide {str(path)!r} is stored in a way that OpenSlide cannot read ({error}).", advice)
    return BadSlide(f"slide {str(path)!r} is damaged; {what} ({error}).", "Copy or export it again.")


def _plain(path: Path) -> openslide.ImageSlide:
    """A picture without a pyramid, decoded whole, behind OpenSlide's interface."""
    if path.is_dir():
        raise BadSlide(
            f"folder {str(path)!r} holds no slide.", "Give a slide's file, or the folder that holds the files of one DICOM slide."
        )
    if path.suffix.lower() not in PLAIN:
        raise BadSlide(
            f"{str(path)!r} is not a slide OpenSlide can read, or is cut short.",
            "Give a whole SVS, NDPI, MRXS, pyramidal TIFF or DICOM slide; copy it again if its copy was interrupted.",
        )
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # its own limit is a slide's ordinary size
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > PLAIN_PX:
                raise BadSlide(
                    f"picture {path.name!r} has {picture.width} x {picture.height} px; at most {PLAIN_PX:g} are read without a pyramid.",
                    "Convert it into a pyramidal TIFF (vips tiffsave --tile --pyramid).",
                )
            if picture.mode not in PLAIN_MODES:
                raise BadSlide(f"picture {path.name!r} has pixels of kind {picture.mode!r}; 8-bit colour is wanted.", "Convert it.")
            if picture.has_transparency_data:
                clear = picture.convert("RGBA")
                flat = Image.new("RGB", clear.size, "white")
                flat.paste(clear, mask=clear.getchannel("A"))
            else:
                flat = picture if picture.mode == "RGB" else picture.convert("RGB")  # no copy of what may take a gigabyte
                flat.load()
            return openslide.ImageSlide(flat)
    except UnidentifiedImageError:
        raise BadSlide(f"{str(path)!r} is neither a slide nor a picture, or is cut short.", "Check the file, or copy it again.") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's answers to damaged files
        if isinstance(error, BadSlide):
            raise
        raise BadSlide(f"{str(path)!r} is cut short or damaged; it cannot be decoded ({error}).", "Copy or export it again.") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _block_px(properties: Mapping[str, str], level: int) -> tuple[int, int]:
    stored = [int(properties.get(f"openslide.level[{level}].tile-{side}", 0)) for side in ("width", "height")]
    low, high = TILE_PX
    # larger blocks decode glass nobody asked for, and are no faster: a tile's pixels stay in the processor's cache
    width, height = (2 * 256 if not 0 < n <= high else n * -(-low // n) for n in stored)
    return width, height


def _said(properties: Mapping[str, str]) -> tuple[float, float]:
    """µm per pixel in x and y as the file says; not a number where it does not."""
    texts = [properties.get(key) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)]
    try:
        x, y = (float(text or "nan") for text in texts)
    except ValueError:
        return math.nan, math.nan
    return x, y


def _contradiction(properties: Mapping[str, str], given: float) -> tuple[str, ...]:
    """A warning where µm per pixel that a microscope can have are replaced by others."""
    said = max(_said(properties))
    if not MPP_RANGE[0] <= said <= MPP_RANGE[1] or abs(given / said - 1) <= ALIKE:
        return ()
    return (f"its file says {said:.4g} µm per pixel; the {given:.4g} that was given is taken instead.",)


def _mpp(path: Path, properties: Mapping[str, str]) -> float:
    advice = "Give it with --mpp or the column slide_mpp."
    x, y = _said(properties)
    if math.isnan(x) or math.isnan(y):
        what = f"slide {path.name!r}" if properties else f"picture {path.name!r} is no scanner's slide and"
        raise BadSlide(f"{what} does not say its µm per pixel; sizes cannot be guessed.", advice)
    if not all(MPP_RANGE[0] <= v <= MPP_RANGE[1] for v in (x, y)):
        raise BadSlide(f"slide {path.name!r} says {x:g} x {y:g} µm per pixel; {_range()} is wanted.", advice)
    if abs(x - y) > 0.1 * (x + y) / 2:
        raise BadSlide(f"slide {path.name!r} says {x:g} µm per pixel in x and {y:g} in y; equal values are wanted.", advice)
    return (x + y) / 2


def _range() -> str:
    return f"{MPP_RANGE[0]:g} to {MPP_RANGE[1]:g}"
