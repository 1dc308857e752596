"""Random changes of CT and clinical values; those of MRI are held in test_loop and test_step."""

import dataclasses

import torch

from HARM3Logic.batch import Batch
from Training.augment import augment
from Training.experiment import Augmentation

STILL = Augmentation(flip=0.0, shift=(0, 0, 0), scale=0.0, offset=0.0, drop_ct=0.0, drop_row=0.0, drop_value=0.0)
CASES, SHAPE = 400, (3, 4, 5)


def batch(cases: int = CASES) -> Batch:
    generator = torch.Generator().manual_seed(2)
    return Batch(
        ct=torch.rand(cases, *SHAPE, generator=generator) * 2 - 1,
        clinical=torch.arange(cases * 6.0).view(cases, 6),
        clinical_mask=torch.rand(cases, 6, generator=generator) < 0.9,
    )


def changed(given: Batch, seed: int = 0, **how: object) -> Batch:
    return augment(given, dataclasses.replace(STILL, **how), torch.Generator().manual_seed(seed))


def test_nothing_asked_changes_nothing() -> None:
    given, found = batch(), changed(batch())
    assert torch.equal(found.ct, given.ct) and torch.equal(found.clinical_mask, given.clinical_mask)


def test_a_ct_is_flipped_left_to_right_and_shifted() -> None:
    given = batch()
    found = changed(given, flip=0.3).ct
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(found, given.ct, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(found, given.ct, strict=True)])
    assert (flipped ^ same).all() and 0.2 < flipped.float().mean() < 0.4
    shifted = changed(given, shift=(1, 0, 2)).ct
    wanted = [torch.roll(given.ct, (d, w), (1, 3)) for d in (-1, 0, 1) for w in (-2, -1, 0, 1, 2)]
    assert all(any(torch.equal(row, one[k]) for one in wanted) for k, row in enumerate(shifted))


def test_densities_change_within_the_window_and_an_absent_ct_stays_absent() -> None:
    given = batch()
    given.ct[0] = torch.nan
    found = changed(given, scale=0.3, offset=0.3, flip=1.0, shift=(1, 1, 1)).ct
    assert found[0].isnan().all() and not found[1:].isnan().any()
    assert found[1:].min() >= -1 and found[1:].max() <= 1
    spread = found[1:].std() / given.ct[1:].std()
    assert 0.8 < spread < 1.3 and not torch.equal(found[1:], given.ct[1:])


def test_values_become_unknown_and_never_known() -> None:
    given = batch()
    found = changed(given, drop_value=0.25)
    assert not (found.clinical_mask & ~given.clinical_mask).any()
    assert 0.2 < 1 - found.clinical_mask.sum() / given.clinical_mask.sum() < 0.3
    assert torch.equal(found.clinical, given.clinical)


def test_a_row_or_a_ct_is_withheld_never_both_nor_all_there_is() -> None:
    given = batch()
    given.clinical_mask[:40] = False  # the CT is all they have
    given.ct[40:80] = torch.nan  # the row is
    found = changed(given, drop_ct=0.3, drop_row=0.2)
    ct, row = ~found.ct.isnan().flatten(1).any(dim=1), found.clinical_mask.any(dim=1)
    assert ct[:40].all() and row[40:80].all() and (ct | row).all()
    assert 0.2 < 1 - ct[80:].float().mean() < 0.4 and 0.12 < 1 - row[80:].float().mean() < 0.28


def test_processes_that_share_a_batch_change_it_as_one_does() -> None:
    given, how = batch(7), Augmentation(shift=(1, 1, 1), drop_ct=0.4, drop_row=0.4)
    whole = augment(given, how, torch.Generator().manual_seed(3))
    own = torch.tensor([1, 4])
    part = augment(given.take(own), how, torch.Generator().manual_seed(3), (1, 4), 7)
    for name in ("ct", "clinical_mask"):
        wanted, found = getattr(whole, name)[own], getattr(part, name)
        assert torch.equal(wanted.nan_to_num(9), found.nan_to_num(9)) if name == "ct" else torch.equal(wanted, found)


def test_a_slide_alone_is_a_batch_too() -> None:
    given = Batch(tiles=torch.zeros(50, 4, 2), tile_mask=torch.ones(50, 4, dtype=torch.bool))
    found = changed(given, drop_tiles=0.5, drop_slide=0.0)
    assert 0.3 < found.tile_mask.float().mean() < 0.7 and found.tile_mask.any(dim=1).all()
