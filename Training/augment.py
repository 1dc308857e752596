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

    moved = torch.empty_like(mri)
    for row in range(cases):
        case = mri[row].flip(-1) if chance(1) < how.flip else mri[row]
        shifts = [int((2 * chance(1) - 1) * (most + 0.999)) for most in how.shift]
        moved[row] = torch.roll(case, shifts, dims=(-3, -2, -1))
    scale = 1 + how.scale * torch.randn(*shown.shape, 1, 1, 1, generator=generator)
    offset = how.offset * torch.randn(*shown.shape, 1, 1, 1, generator=generator)
    kept = shown & (chance(*shown.shape) >= how.drop_volume)
    kept[~kept.flatten(1).any(dim=1)] = shown[~kept.flatten(1).any(dim=1)]  # never a case without a volume
    changes: dict[str, torch.Tensor] = {"mri": (moved * scale + offset) * kept[..., None, None, None], "mri_mask": kept}
    if batch.tile_mask is not None:
        changes["tile_mask"] = batch.tile_mask & (chance(cases, 1) >= how.drop_slide)
    return dataclasses.replace(batch, **changes)
