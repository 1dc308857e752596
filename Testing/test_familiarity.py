"""How unlike the training data an input looks."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from HARM3Logic.batch import Prepared
from HARM3Logic.case import MRI
from HARM3Logic.familiarity import MARGIN, describe, learn, unfamiliar

SHAPE = (6, 20, 20)


def case(seed: int, smooth: float = 2.0, shift: float = 0.0) -> Prepared:
    """Smooth volumes within a body, and a bag of tiles."""
    rng = np.random.default_rng(seed)
    body = torch.zeros(SHAPE, dtype=torch.bool)
    body[1:5, 3:17, 3:17] = True
    volumes = ndimage.gaussian_filter(rng.normal(size=(2, 2, *SHAPE)), (0, 0, smooth / 2, smooth, smooth))
    mri = torch.from_numpy(volumes).float()
    inside = mri[..., body]
    mri = (mri - inside.mean(-1)[..., None, None, None]) / inside.std(-1)[..., None, None, None]
    tiles = torch.from_numpy(rng.normal(size=(30, 5))).float() + shift
    return Prepared(f"case {seed}", mri, torch.ones(2, 2, dtype=torch.bool), body, tiles=tiles, tile_xy_um=torch.zeros(30, 2))


@pytest.fixture(scope="module")
def training() -> list[Prepared]:
    return [case(seed) for seed in range(12)]


def test_training_cases_are_familiar(training: list[Prepared]) -> None:
    references = learn(training)
    assert set(references) == {*MRI, "slide"}
    assert all(unfamiliar(one, references) == {} for one in training)
    for name, reference in references.items():
        distances = [reference.distance(describe(one)[name]) for one in training]
        assert np.sqrt(np.mean(np.square(distances))) == pytest.approx(1, abs=0.05)
        assert reference.limit == pytest.approx(MARGIN * max(distances))


def test_a_further_case_like_them_is_familiar(training: list[Prepared]) -> None:
    references = learn(training)
    assert sum(bool(unfamiliar(case(seed), references)) for seed in range(100, 120)) <= 2


def test_another_texture_is_told_by_name(training: list[Prepared]) -> None:
    good = dataclasses.replace(case(50), tiles=None, tile_xy_um=None)
    mri = good.mri.clone()
    mri[1, 0] = case(51, smooth=0.0).mri[1, 0]
    found = unfamiliar(dataclasses.replace(good, mri=mri), learn(training))
    assert set(found) == {"t1_post"}
    assert found["t1_post"] > 2


def test_another_stain_is_told(training: list[Prepared]) -> None:
    assert set(unfamiliar(case(50, shift=5.0), learn(training))) == {"slide"}


def test_only_the_body_counts(training: list[Prepared]) -> None:
    one = case(50)
    changed = dataclasses.replace(one, mri=torch.where(one.body, one.mri, torch.full((), 99.0)))
    before, after = describe(one), describe(changed)
    assert np.array_equal(before["t1_pre"][:6], after["t1_pre"][:6])


def test_absent_inputs_are_not_judged(training: list[Prepared]) -> None:
    mask = torch.tensor([[True, False], [False, True]])
    one = dataclasses.replace(case(50, smooth=0.0), mri_mask=mask, tiles=None, tile_xy_um=None)
    assert set(describe(one)) == {"t1_pre", "t2_post"}
    assert set(unfamiliar(one, learn(training))) == {"t1_pre", "t2_post"}


def test_an_input_seen_once_or_never_alike_does_not_break(training: list[Prepared]) -> None:
    single = learn(training[:1])
    assert unfamiliar(training[0], single) == {}
    assert all(np.isfinite(ratio) for ratio in unfamiliar(training[1], single).values())
    assert unfamiliar(training[1], {}) == {}
