"""Where the tissue of a stained section lies, found on a small picture of the slide.

    picture h w 3 --S of HSV--> h w --majority > threshold--> bool --closing--> bool --dark, ink, small removed--> mask h w

Plain array operations; reading the slide is the work of `slide`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from HARM3Logic.errors import BadOption
from HARM3Logic.tissue_folds import tissue_folds

DARK_GREY = 60  # luminance of a dark field; dense keratin comes near it, so it never decides about single pixels
BLACK = 50  # brightest channel of unscanned area or black ink; the densest stain stays brighter
WHITE = 180  # darkest channel of empty glass
BLURRED = 0.28  # `sharpness` at 0.5 µm per pixel: real sharp tissue has 0.44 to 1.3, after a Gaussian of 1 µm 0.05 to 0.28
BAND = 512  # rows of a picture worked on at a time, so that memory stays flat
INK = 20  # both stains absorb green most, so green above red by this much is blue or green ink, not H&E


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is told from glass.

    Args:
        mask_mpp: wanted µm per mask pixel; the nearest whole multiple of a pyramid level is taken.
        mask_downsample: level-0 pixels per mask pixel, averaged from level 0 whatever the pyramid; replaces `mask_mpp`.
        threshold: tissue has S of HSV (0..255) above it, by the median of its surroundings.
        median_px: odd edge of the median window, mask pixels.
        close_px: edge of the closing kernel, mask pixels; 0 leaves it out.
        even_kernel_shift: with an even `close_px`, move the mask one pixel to the lower right as OpenCV does.
        min_area_mm2: smaller pieces are dirt.
        exclude_dark: leave out pixels that are almost black (unscanned area, black ink); their saturation is noise.
        exclude_pen: leave out blue and green ink. Red ink cannot be told from blood and stays.
        blur_samples: number of places in the tissue whose focus is judged; 0 leaves `fractions["blurred"]` out.

    Raises:
        BadOption: a value is out of range.
    """

    mask_mpp: float = 8.0
    mask_downsample: int | None = None
    threshold: int = 15
    median_px: int = 7
    close_px: int = 5
    even_kernel_shift: bool = False
    min_area_mm2: float = 0.02
    exclude_dark: bool = True
    exclude_pen: bool = True
    blur_samples: int = 64

    def __post_init__(self) -> None:
        check(
            self,
            {
                "mask_mpp": (self.mask_mpp > 0, "above 0"),
                "mask_downsample": (self.mask_downsample is None or self.mask_downsample >= 1, "1 or more, or None"),
                "threshold": (0 <= self.threshold <= 254, "0 to 254"),
                "median_px": (self.median_px >= 1 and self.median_px % 2 == 1, "odd"),
                "close_px": (self.close_px >= 0, "0 or more"),
                "min_area_mm2": (self.min_area_mm2 >= 0, "0 or more"),
                "blur_samples": (self.blur_samples >= 0, "0 or more"),
            },
        )

    @classmethod
    def parity(cls) -> TissueSettings:
        """The settings of the golden tile origins: fixed downsample 16, closing 4x4 with OpenCV's shift, nothing removed."""
        return cls(
            mask_downsample=16,
            close_px=4,
            even_kernel_shift=True,
            min_area_mm2=0.0,
            exclude_dark=False,
            exclude_pen=False,
            blur_samples=0,
        )


def check(settings: object, limits: dict[str, tuple[bool, str]]) -> None:
    """Refuse settings with a value out of range.

    Args:
        limits: name to whether its value is good and what is wanted.

    Raises:
        BadOption: a value is not good.
    """
    for name, (good, wanted) in limits.items():
        if not good:
            value = getattr(settings, name)
            raise BadOption(f"{type(settings).__name__}.{name} is {value!r}; it must be {wanted}.", "Correct it.")


@dataclass(frozen=True, eq=False)
class Tissue:
    """The tissue of a slide.

    Args:
        mask: pixel (r, c) covers the level-0 pixels [r, r+1) x [c, c+1) times `downsample`.
        downsample: level-0 pixels per mask pixel.
        fractions: `tissue`, `pen` and `dark` as shares of the slide's area, `blurred` as share of the judged places in the tissue,
            `stained_pen` and `stained_dark` as shares of all that is stained, tissue or not, `folds` as share of what is stained and no ink
            (left out where the picture is too coarse).
        artefacts: ink, folds, and what is almost black (unscanned area, opaque folds), on the same pixels; None where nobody looked.
    """

    mask: Bool[np.ndarray, "h w"]
    downsample: float
    fractions: dict[str, float]
    artefacts: Bool[np.ndarray, "h w"] | None = None


def find_tissue(picture: UInt8[np.ndarray, "h w 3"], downsample: float, mpp: float, settings: TissueSettings) -> Tissue:
    """The tissue on a picture of a whole slide.

    Args:
        downsample: level-0 pixels per pixel of the picture.
        mpp: µm per level-0 pixel.
    """
    mask = majority(banded(lambda part: saturation(part) > settings.threshold, picture), settings.median_px)
    if settings.close_px:
        mask = closing(mask, settings.close_px, settings.even_kernel_shift)
    stained = mask
    dark, pen = banded(lambda part: part.max(axis=2) < BLACK, picture), banded(ink, picture)
    if settings.exclude_dark:
        mask = mask & ~majority(dark, settings.median_px)
    if settings.exclude_pen:
        # one pixel more all round: the edge of a stroke mixes with the glass
        mask = mask & ~ndimage.binary_dilation(majority(pen, 3), iterations=1)
    if settings.min_area_mm2:
        pixel_mm2 = (downsample * mpp / 1000) ** 2
        mask = without_small(mask, settings.min_area_mm2 / pixel_mm2)
    fractions = {"tissue": float(mask.mean()), "pen": float(pen.mean()), "dark": float(dark.mean())}
    for name, bad in (("stained_pen", pen), ("stained_dark", dark)):
        every = stained | bad  # black has no colour of its own
        fractions[name] = float(bad.sum() / max(1, every.sum()))
    whole = stained & ~ndimage.binary_dilation(pen)  # before the removal of black, which the middle of a fold may be
    folds = tissue_folds(picture, whole, downsample * mpp)
    if folds is not None:
        fractions["folds"] = float(folds.sum() / max(1, whole.sum()))
    return Tissue(mask, downsample, fractions, pen | dark if folds is None else pen | dark | folds)


def banded(
    rule: Callable[[UInt8[np.ndarray, "n w 3"]], Bool[np.ndarray, "n w"]], picture: UInt8[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """A rule about single pixels, told of a few rows at a time."""
    return np.concatenate([rule(picture[row : row + BAND]) for row in range(0, len(picture), BAND)])


def is_dark_field(picture: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether most of a slide is dark and nothing on it is white glass, as in fluorescence."""
    if banded(lambda part: part.min(axis=2) > WHITE, picture).mean() >= 0.05:
        return False
    return bool(banded(lambda part: luminance(part) < DARK_GREY, picture).mean() > 0.5)


def holds_ycbcr(picture: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether the channels of a stained section are Y, Cb, Cr: its glass is bright in the first and neutral (128) in the others."""
    glass = picture[picture[..., 0] > 200].astype(np.int16)
    return len(glass) > 0 and bool((np.abs(glass[:, 1:] - 128) < 8).all(axis=1).mean() > 0.8)


def saturation(picture: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
    """S of HSV in 0..255, with OpenCV's rounding (12-bit fixed point)."""
    highest = picture.max(axis=2)
    spread = (highest - picture.min(axis=2)).astype(np.int32)
    scale = np.zeros(256, np.int32)
    scale[1:] = np.rint((255 << 12) / np.arange(1, 256))
    return np.asarray((spread * scale[highest] + (1 << 11)) >> 12, np.uint8)


def luminance(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Brightness as the eye weighs it, 0..255."""
    grey: np.ndarray = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    return grey


def ink(picture: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Pixels of blue or green ink."""
    red, green = picture[..., 0].astype(np.int16), picture[..., 1].astype(np.int16)
    return np.asarray(green - red > INK)


def majority(mask: Bool[np.ndarray, "h w"], size_px: int) -> Bool[np.ndarray, "h w"]:
    """Pixels whose square surroundings are mostly true, the border replicated.

    Equal to thresholding after an odd-sized median filter, without sorting.
    """
    kind = np.uint8 if size_px * size_px < 256 else np.int32  # the smallest that holds a count
    ones = np.ones(size_px, np.int32)
    count = ndimage.convolve1d(mask.view(np.uint8), ones, axis=0, output=kind, mode="nearest")
    count = ndimage.convolve1d(count, ones, axis=1, output=kind, mode="nearest")
    return np.asarray(count > size_px * size_px // 2)


def closing(mask: Bool[np.ndarray, "h w"], size_px: int, even_kernel_shift: bool) -> Bool[np.ndarray, "h w"]:
    """Dilation, then erosion, with a square kernel; what lies outside the picture is ignored."""
    wide = ndimage.maximum_filter(mask.astype(np.uint8), size_px, mode="constant", cval=0)
    # an even kernel reaches one pixel further up and left; the true closing mirrors it in the erosion
    origin = 0 if even_kernel_shift or size_px % 2 else -1
    return np.asarray(ndimage.minimum_filter(wide, size_px, mode="constant", cval=1, origin=origin), bool)


def without_small(mask: Bool[np.ndarray, "h w"], min_pixels: float) -> Bool[np.ndarray, "h w"]:
    """The pieces (8-neighbourhood) of at least `min_pixels`."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))
    bands = (pieces[row : row + BAND] for row in range(0, len(pieces), BAND))
    keep = sum((np.bincount(band.ravel(), minlength=count + 1) for band in bands), np.zeros(count + 1)) >= min_pixels
    keep[0] = False
    return np.asarray(keep[pieces], bool)


def block_means(picture: UInt8[np.ndarray, "h w 3"], block_px: int) -> UInt8[np.ndarray, "u v 3"]:
    """Means of square blocks, rounded half up; blocks at the right and lower border may be partial."""
    if block_px == 1:
        return picture
    b, (height, width) = block_px, picture.shape[:2]
    rows, columns = -(-height // b), -(-width // b)
    whole = np.zeros((rows * b, columns * b, 3), np.uint8)
    whole[:height, :width] = picture
    wide = np.uint32 if b <= 2048 else np.uint64  # holds twice the sum of a block
    # added up slice by slice: many times faster than a reduction over short axes
    lines = whole[::b].astype(wide)
    for i in range(1, b):
        lines += whole[i::b]
    sums = lines[:, ::b].copy()
    for i in range(1, b):
        sums += lines[:, i::b]
    high, broad = (np.minimum(b, length - b * np.arange(count)) for length, count in ((height, rows), (width, columns)))
    counts = np.outer(high, broad)[..., None].astype(wide)
    return np.asarray((2 * sums + counts) // (2 * counts), np.uint8)


def sharpness(tile: UInt8[np.ndarray, "h w 3"]) -> float:
    """Energy of a tile's Laplacian over that of its gradient, after a smoothing that takes most of the noise.

    Both come from edges, so neither the contrast of the tissue nor how much of it a tile holds moves the ratio, as it would move a
    variance of the brightness; a blur of s pixels leaves about 1 / s². One grey level squared is forgiven. Ours.
    """
    grey = ndimage.gaussian_filter(luminance(tile), 0.8)
    finest = ndimage.laplace(grey)[1:-1, 1:-1]
    across, down = (grey[1:-1, 2:] - grey[1:-1, :-2]) / 2, (grey[2:, 1:-1] - grey[:-2, 1:-1]) / 2
    return float((finest**2).sum() / ((across**2).sum() + (down**2).sum() + finest.size))
