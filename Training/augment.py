"""Random changes of a training batch."""

from __future__ import annotations

import dataclasses

import torch

from HARM3Logic.batch import Batch
from Training.experiment import Augmentation


def augment(batch: Batch, how: Augmentation, generator: torch.Generator) -> Batch:
    """A changed copy; every case gets its own changes, all volumes of a case the same geometry."""
    mri, shown = batch.need("mri", "mri_mask")
    cases = len(mri)

    def chance(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    moved, tumour = torch.empty_like(mri), None if batch.tumour is None else torch.empty_like(batch.tumour)
    for row in range(cases):
        flipped = chance(1) < how.flip
        shifts = [int((2 * chance(1) - 1) * (most + 0.999)) for most in how.shift]
        for source, result in ((mri, moved), (batch.tumour, tumour)):
            if source is not None and result is not None:
                result[row] = torch.roll(source[row].flip(-1) if flipped else source[row], shifts, dims=(-3, -2, -1))
    scale = 1 + how.scale * torch.randn(*shown.shape, 1, 1, 1, generator=generator)
    offset = how.offset * torch.randn(*shown.shape, 1, 1, 1, generator=generator)
    kept = shown & (chance(*shown.shape) >= how.drop_volume)
    kept[~kept.flatten(1).any(dim=1)] = shown[~kept.flatten(1).any(dim=1)]  # never a case without a volume
    changes: dict[str, torch.Tensor] = {"mri": (moved * scale + offset) * kept[..., None, None, None], "mri_mask": kept}
    if tumour is not None:
        changes["tumour"] = tumour
    if batch.tile_mask is not None:
        changes["tile_mask"] = batch.tile_mask & (chance(cases, 1) >= how.drop_slide)
    return dataclasses.replace(batch, **changes)
