"""Random changes of a training batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from HARM3Logic.batch import Batch
from Training.experiment import Augmentation

# Own code, not MONAI's array transforms: those draw from numpy one array at a time, so that all volumes and the mask of a case would
# need the same transform replayed, an absent volume would be filled, and no draw could be made for the whole batch (see `size`).


def augment(
    batch: Batch, how: Augmentation, generator: torch.Generator, places: Sequence[int] | None = None, size: int | None = None
) -> Batch:
    """A changed copy; every case gets its own changes, all volumes of a case the same geometry.

    Args:
        places, size: where the cases stand in a larger batch of `size` for which the numbers are drawn, so that processes which share
            a batch change it as one process would. None: they are the whole batch.
    """
    mri, shown = batch.need("mri", "mri_mask")
    places = range(len(mri)) if places is None else places
    size = len(mri) if size is None else size
    own = torch.tensor(list(places))

    def chance(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    moves = [(bool(chance(1) < how.flip), [int((2 * chance(1) - 1) * (most + 0.999)) for most in how.shift]) for _ in range(size)]
    moved, tumour = torch.empty_like(mri), None if batch.tumour is None else torch.empty_like(batch.tumour)
    for row, place in enumerate(places):
        flipped, shifts = moves[place]
        for source, result in ((mri, moved), (batch.tumour, tumour)):
            if source is not None and result is not None:
                result[row] = torch.roll(source[row].flip(-1) if flipped else source[row], shifts, dims=(-3, -2, -1))
    volumes = shown.shape[1:]
    scale = 1 + how.scale * torch.randn(size, *volumes, 1, 1, 1, generator=generator)[own]
    offset = how.offset * torch.randn(size, *volumes, 1, 1, 1, generator=generator)[own]
    kept = shown & (chance(size, *volumes)[own] >= how.drop_volume)
    kept[~kept.flatten(1).any(dim=1)] = shown[~kept.flatten(1).any(dim=1)]  # never a case without a volume
    changes: dict[str, torch.Tensor] = {"mri": (moved * scale + offset) * kept[..., None, None, None], "mri_mask": kept}
    if tumour is not None:
        changes["tumour"] = tumour
    if batch.tile_mask is not None:
        tile_mask = batch.tile_mask & (chance(size, 1)[own] >= how.drop_slide)
        if how.drop_tiles:  # drawn last: its numbers depend on the longest bag
            fewer = tile_mask & (chance(size, tile_mask.shape[1])[own] >= how.drop_tiles)
            tile_mask = torch.where(fewer.any(dim=1, keepdim=True), fewer, tile_mask)
        changes["tile_mask"] = tile_mask
    return dataclasses.replace(batch, **changes)
