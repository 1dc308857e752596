"""Random changes of a training batch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

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
    cases = len(batch)
    draw = _Draws(generator, range(cases) if places is None else places, cases if size is None else size)
    changes: dict[str, torch.Tensor] = {}
    if batch.mri is not None:
        changes |= _volumes(batch, how, draw)
    if batch.ct is not None:
        changed = _moved(batch.ct, draw.moves(how))
        factor, step = (1 + how.scale * draw.normal(1, 1, 1), how.offset * draw.normal(1, 1, 1))
        changes["ct"] = changed.mul_(factor).add_(step).clamp_(-1, 1)  # its window; what is absent stays NaN
    if batch.clinical_mask is not None:
        known = batch.clinical_mask
        changes["clinical_mask"] = known & (draw.uniform(known.shape[1]) >= how.drop_value)
        if batch.ct is not None:  # one of both is withheld, never both, and neither where it is all there is
            both = known.any(dim=1) & ~batch.ct.isnan().flatten(1).any(dim=1)
            chance = draw.uniform()
            changes["ct"][both & (chance < how.drop_ct)] = torch.nan
            changes["clinical_mask"][both & (chance >= 1 - how.drop_row)] = False
    if batch.tile_mask is not None:
        tile_mask = batch.tile_mask & (draw.uniform(1) >= how.drop_slide)
        if how.drop_tiles:  # drawn last: its numbers depend on the longest bag
            fewer = tile_mask & (draw.uniform(tile_mask.shape[1]) >= how.drop_tiles)
            tile_mask = torch.where(fewer.any(dim=1, keepdim=True), fewer, tile_mask)
        changes["tile_mask"] = tile_mask
    return dataclasses.replace(batch, **changes)


@dataclasses.dataclass(frozen=True)
class _Draws:
    """Numbers for every case of the larger batch, of which those of our own cases are given."""

    generator: torch.Generator
    places: Sequence[int]
    size: int

    def uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(self.size, *shape, generator=self.generator)[list(self.places)]

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(self.size, *shape, generator=self.generator)[list(self.places)]

    def moves(self, how: Augmentation) -> list[tuple[bool, list[int]]]:
        """For each case whether it is flipped, and its shift D H W."""

        def chance() -> torch.Tensor:
            return torch.rand(1, generator=self.generator)

        moves = [(bool(chance() < how.flip), [int((2 * chance() - 1) * (most + 0.999)) for most in how.shift]) for _ in range(self.size)]
        return [moves[place] for place in self.places]


def _volumes(batch: Batch, how: Augmentation, draw: _Draws) -> dict[str, torch.Tensor]:
    """MRI and the masks of the tumour on it."""
    mri, shown = batch.need("mri", "mri_mask")
    moves = draw.moves(how)
    volumes = shown.shape[1:]
    scale = 1 + how.scale * draw.normal(*volumes, 1, 1, 1)
    offset = how.offset * draw.normal(*volumes, 1, 1, 1)
    kept = shown & (draw.uniform(*volumes) >= how.drop_volume)
    kept[~kept.flatten(1).any(dim=1)] = shown[~kept.flatten(1).any(dim=1)]  # never a case without a volume
    there = kept[..., None, None, None]
    changes = {"mri": _moved(mri, moves).mul_(scale * there).add_(offset * there), "mri_mask": kept}
    if batch.tumour is not None:
        changes["tumour"] = _moved(batch.tumour, moves)
    return changes


def _moved(volumes: torch.Tensor, moves: Sequence[tuple[bool, list[int]]]) -> torch.Tensor:
    """A copy, each case flipped or not, then shifted; what leaves on one side comes in on the other.

    Block by block into the copy: `torch.roll` makes a new one for every axis, and fresh memory of that size costs more than the move.
    """
    moved = torch.empty_like(volumes)
    for given, made, (flipped, shift) in zip(volumes, moved, moves, strict=True):
        source = given.flip(-1) if flipped else given
        for blocks in itertools.product(*(_parts(*axis) for axis in zip(given.shape[-3:], shift, strict=True))):
            ends, starts = zip(*blocks, strict=True)
            made[(..., *ends)] = source[(..., *starts)]
    return moved


def _parts(length: int, shift: int) -> Iterator[tuple[slice, slice]]:
    """The parts of a shifted axis: where each comes to lie, and where it lay."""
    shift %= length
    yield slice(shift, length), slice(0, length - shift)
    if shift:
        yield slice(0, shift), slice(length - shift, length)
