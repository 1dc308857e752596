"""Facts about folds: a doubled band of tissue is found where it lies; crowded nuclei, phantoms and whole regions are none."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

from HARM3Logic import bag
from HARM3Logic.phantom_slide import draw_slide
from HARM3Logic.tiles import TileGrid, TileSettings
from HARM3Logic.tissue import TissueSettings, block_means, find_tissue, saturation
from HARM3Logic.tissue_folds import tissue_folds

MPP, BLOCK = 1.0, 8  # of the drawn slide, and its pixels for one of the picture
UM = MPP * BLOCK
NUCLEI = np.array([0.65, 0.70, 0.29])  # haematoxylin, as phantom_slide has it


@functools.cache
def drawn(lymphocytes: float, seed: int = 0) -> np.ndarray:
    made = draw_slide(np.random.default_rng(seed), lymphocytes, MPP, (2600, 1600))
    made.setflags(write=False)
    return made


def small(slide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its picture and what is stained there."""
    picture = block_means(slide, BLOCK)
    return picture, saturation(picture) > 15


def band(slide: np.ndarray, width_um: float) -> np.ndarray:
    """A bent band across the tissue, from its upper to its lower edge."""
    y, x = np.mgrid[: slide.shape[0], : slide.shape[1]]
    return np.abs(x - 1200 - 60 * np.sin(y / 150)) * MPP < width_um / 2


def folded(slide: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The light passes the tissue twice."""
    bright = slide / 244
    return np.where(where[..., None], 244 * bright**2, slide).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("lymphocytes", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("width_um", [32, 70])
def test_a_fold_thinner_than_a_tile_is_found_where_it_lies(lymphocytes: float, width_um: float) -> None:
    slide = drawn(lymphocytes)
    where = band(slide, width_um)
    picture, stained = small(folded(slide, where))
    found = tissue_folds(picture, stained, UM)
    truth = (block_means(np.repeat(where[..., None].astype(np.uint8) * 255, 3, axis=2), BLOCK)[..., 0] > 127) & stained
    near = np.array([truth[max(0, r - 2) : r + 3, max(0, c - 2) : c + 3].any() for r, c in np.argwhere(found)])
    assert found is not None and (found & truth).sum() > 0.35 * truth.sum()
    assert near.mean() > 0.5  # dark nuclei that touch it may count as its own


@pytest.mark.parametrize("lymphocytes", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_phantom_has_none(lymphocytes: float, seed: int) -> None:
    found = tissue_folds(*small(drawn(lymphocytes, seed)), UM)
    assert found is not None and not found.any()


@pytest.mark.parametrize("amount", [0.6, 1.2])
def test_a_band_of_crowded_nuclei_is_none(amount: float) -> None:
    slide = drawn(0.0)
    dense = np.where(band(slide, 70)[..., None], slide * np.exp(-amount * NUCLEI), slide).astype(np.uint8)
    picture, stained = small(dense)
    before, after = (block_means(s, BLOCK)[band(slide, 70)[::BLOCK, ::BLOCK]].mean() for s in (slide, dense))
    assert after < before - 40  # as dark as a fold
    assert not tissue_folds(picture, stained, UM).any()


def test_a_dark_region_is_none() -> None:
    slide = drawn(0.0)
    assert not tissue_folds(*small(folded(slide, band(slide, 500))), UM).any()


def test_a_coarse_picture_is_not_judged() -> None:
    assert tissue_folds(*small(drawn(0.0)), 20.0) is None


def test_the_share_is_told_to_the_reader() -> None:
    slide = drawn(0.0)
    where = band(slide, 100)
    picture, plain = block_means(folded(slide, where), BLOCK), block_means(slide, BLOCK)
    settings = TissueSettings()
    found, none = (find_tissue(each, float(BLOCK), MPP, settings) for each in (picture, plain))
    wanted = (where[::BLOCK, ::BLOCK] & found.mask).sum() / found.mask.sum()
    assert found.fractions["folds"] == pytest.approx(wanted, rel=0.4) and found.fractions["folds"] > 0.02 and none.fractions["folds"] == 0
    assert found.artefacts is not None and none.artefacts is not None and found.artefacts.sum() > none.artefacts.sum()
    assert (found.mask & none.mask).sum() > 0.98 * none.mask.sum()  # a fold stays tissue
    grid = TileGrid(np.zeros((1, 2), np.int64), 224.0, 1.0, found, 1, settings, TileSettings(mpp=1.0))
    (share,) = bag.shares([grid])
    assert share["folds"] == found.fractions["folds"] and "folds" in share["poor"]
    (share,) = bag.shares([replace(grid, tissue=none)])
    assert share["folds"] == 0 and "folds" not in share["poor"]
