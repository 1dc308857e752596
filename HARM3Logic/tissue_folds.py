"""Where a section lies folded over itself, found on the small picture its tissue is found on.

    optical density h w 3 --about a layer too much for its surroundings, in their own colour--> bool --thin and long--> folds h w

Light passes a fold's tissue twice or three times: its density is a multiple of that beside it, with the same share of each stain. Crowded
nuclei are dark too, but bluer than their surroundings and in round groups. Ours; that folds stand out by depth of colour is the
observation of Bautista & Yagi 2009, doi 10.1117/12.812080, and Kothari et al. 2013, doi 10.4103/2153-3539.117448.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8
from scipy import ndimage

COARSEST_UM = 16.0  # µm per pixel of a picture on which a fold still has a width
AROUND_UM = 1000.0  # edge of the surroundings a place is compared with: many times a fold's width
LAYERS = 1.75  # times the density of the surroundings, in the mean of a fold; two layers have 2, less what the picture's pixels blur
EDGE = 1.4  # as much all over it
GAP_UM = 24.0  # gaps and holes up to this width belong to a piece when its width is measured: a net of nuclei is a region
DENSER = 0.12  # and this much more, in natural units a channel: faint tissue has no folds to be seen
BLUER = 0.04  # more of the density in red than the surroundings have, and it is nuclei (haematoxylin has 0.4 there, eosin 0.06)
WIDEST_UM = 150.0  # wider, it is a region of the tissue
LONGEST_UM, SLENDER = 250.0, 3.0  # least length, and least length over width
GLASS = 244.0  # brightness without tissue
CELL = 4  # picture pixels of a cell of the surroundings, which are far wider
BAND = 128 * CELL  # rows of a picture worked on at a time, so that memory stays flat


def tissue_folds(picture: UInt8[np.ndarray, "h w 3"], tissue: Bool[np.ndarray, "h w"], um: float) -> Bool[np.ndarray, "h w"] | None:
    """The folds in the tissue of a slide; None where the picture is too coarse to tell.

    Args:
        um: µm per pixel of the picture.
    """
    if um > COARSEST_UM:
        return None
    ratio = np.zeros(tissue.shape, np.float16)
    beside = tissue
    for _ in range(2):  # the second time without what the first found, which makes the surroundings darker than they are
        usual, usual_red = _surroundings(picture, beside, um)
        for rows, cells in _bands(len(tissue)):
            grey, red = _density(picture[rows])
            base, base_red = (_spread(each[cells], grey.shape) for each in (usual, usual_red))
            own = tissue[rows] & (grey - base > DENSER) & (red * base < (base_red + BLUER * 3 * base) * grey)
            layers = grey / np.maximum(base, 1e-3)
            ratio[rows] = np.where(own & (layers > EDGE), np.minimum(layers, 100), 0)
        beside = tissue & ~ndimage.binary_dilation(ratio > 0)
    return _slender(ratio, um)


def _bands(height: int) -> Iterator[tuple[slice, slice]]:
    """Rows of a picture, some at a time, and the rows of cells they fill."""
    for row in range(0, height, BAND):
        yield slice(row, row + BAND), slice(row // CELL, (row + BAND) // CELL)


def _density(picture: UInt8[np.ndarray, "h w 3"]) -> tuple[Float32[np.ndarray, "h w"], Float32[np.ndarray, "h w"]]:
    """Optical density, the mean of the channels, and that of red."""
    table = np.log(GLASS / np.maximum(np.arange(256), 1.0)).clip(0).astype(np.float32)
    red = table[picture[..., 0]]
    return (red + table[picture[..., 1]] + table[picture[..., 2]]) / np.float32(3), red


def _surroundings(
    picture: UInt8[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"], um: float
) -> tuple[Float32[np.ndarray, "v u"], Float32[np.ndarray, "v u"]]:
    """Mean density and that of red, by cell, of the tissue round it."""
    shape = tuple(-(-length // CELL) for length in where.shape)
    count, grey, red = (np.zeros(shape, np.float32) for _ in range(3))
    for rows, cells in _bands(len(where)):
        inside = where[rows]
        for total, part in zip((count, grey, red), (inside, *_density(picture[rows])), strict=True):
            total[cells] = _cells(np.where(inside, part, np.float32(0)))
    size = 2 * round(AROUND_UM / (um * CELL) / 2) + 1
    every, dark, dark_red = (np.asarray(ndimage.uniform_filter(each, size, mode="constant")) for each in (count, grey, red))
    return dark / np.maximum(every, 1e-6), dark_red / np.maximum(every, 1e-6)


def _cells(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "v u"]:
    """Sums over cells; those at the right and lower border may be partial."""
    rows, columns = (-(-length // CELL) for length in values.shape)
    whole = np.zeros((rows * CELL, columns * CELL), np.float32)
    whole[: values.shape[0], : values.shape[1]] = values
    return np.asarray(whole.reshape(rows, CELL, columns, CELL).sum(axis=(1, 3)))


def _spread(cells: Float32[np.ndarray, "v u"], shape: tuple[int, ...]) -> Float32[np.ndarray, "h w"]:
    """The value of each pixel's cell."""
    return np.asarray(cells.repeat(CELL, 0).repeat(CELL, 1)[: shape[0], : shape[1]])


def _slender(ratio: Float16[np.ndarray, "h w"], um: float) -> Bool[np.ndarray, "h w"]:
    """The pieces that are dense enough, long and thin, straight or not.

    Args:
        ratio: density over that of the surroundings; 0 where nothing is suspected.
    """
    kept = np.zeros(ratio.shape, bool)
    reach = max(1, round(GAP_UM / um / 2))
    closed = ndimage.binary_closing(np.pad(ratio > 0, reach), iterations=reach)[reach:-reach, reach:-reach]
    pieces, count = ndimage.label(closed, structure=np.ones((3, 3)))
    area = np.zeros(count + 1, np.int64)
    for rows, _ in _bands(len(pieces)):
        area += np.bincount(pieces[rows].ravel(), minlength=count + 1)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        if area[number] * um < LONGEST_UM:  # too small even where it is one pixel wide
            continue
        whole = np.pad(ndimage.binary_fill_holes(pieces[box] == number), 1)
        width = (2 * float(ndimage.distance_transform_edt(whole).max()) - 1) * um
        length = float(whole.sum()) * um**2 / width
        mask = (ratio[box] > 0) & (pieces[box] == number)
        if width <= WIDEST_UM and length >= max(LONGEST_UM, SLENDER * width) and ratio[box][mask].mean(dtype=np.float64) > LAYERS:
            kept[box] |= mask
    return kept
