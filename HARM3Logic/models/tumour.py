"""What tumour masks teach in training; predicting never needs them.

    gate logit (N d h w)  --where--> share of each cell that is tumour
    tokens (N L E)        --what-->  diameter and mean intensity of the tumour in that volume
    fused (B Q E)         --change-> diameter after therapy over before, mean intensity of what is left on every sequence

The second is the plain first-order radiomics of a mask, the third its delta-radiomics: a few hundred labels cannot teach a trunk to
measure a tumour, nor a fusion to compare two, as many masks can. Ours; the paper has masks and does not say whether it trained with them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

DIAMETER_SCALE = 30.0  # gives the cube root of the tumour's share of the grid a spread near that of its intensity, which else drowns it
NOWHERE = -30.0  # a logit whose sigmoid is 0 in every precision
RATIO_SCALE = 5.0  # the same for the ratio of two diameters
FEWEST_VOXELS = 2.0  # smaller residues have no mean intensity worth learning


def mask_loss(logit: Float[Tensor, "N d h w"], tumour: Float[Tensor, "N D H W"]) -> Float[Tensor, ""]:
    """Cross-entropy against the share of each cell that is tumour; volumes without a mask (NaN) do not count."""
    known = ~tumour.isnan().flatten(1).any(dim=1)
    depth, height, width = logit.shape[1:]
    share = F.adaptive_avg_pool3d(tumour[known], (depth, height, width))
    return F.binary_cross_entropy_with_logits(logit[known].float(), share, reduction="sum") / max(1, share.numel())


class Radiomics(nn.Module):
    """Reads the tumour's diameter and mean intensity from the mean of a volume's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, 2)

    def forward(self, tokens: Float[Tensor, "N L E"]) -> Float[Tensor, "N 2"]:
        """`DIAMETER_SCALE` times the cube root of the tumour's share of the grid, and its mean z-score."""
        return self.read(tokens.mean(dim=1))

    def loss(
        self, tokens: Float[Tensor, "N L E"], volumes: Float[Tensor, "N D H W"], tumour: Float[Tensor, "N D H W"]
    ) -> Float[Tensor, ""]:
        """Huber loss against what the mask says; volumes without a mask (NaN) do not count, nor the intensity of nothing."""
        known = ~tumour.isnan().flatten(1).any(dim=1)
        read, volumes, tumour = self(tokens[known]).float(), volumes[known].flatten(1).float(), tumour[known].flatten(1)
        voxels, mean, solid = _measured(volumes, tumour)
        diameter = DIAMETER_SCALE * (voxels / tumour.shape[1]) ** (1 / 3)
        total = F.smooth_l1_loss(read[:, 0], diameter, reduction="sum") + F.smooth_l1_loss(read[solid, 1], mean[solid], reduction="sum")
        return total / max(1, len(read))


class Change(nn.Module):
    """Reads what therapy did to a tumour from the mean of a case's fused tokens."""

    def __init__(self, width: int, sequences: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, 1 + sequences)

    def forward(self, tokens: Float[Tensor, "B Q E"]) -> Float[Tensor, "B R"]:
        """`RATIO_SCALE` times the diameter after therapy over that before, and the rest's mean z-score on each sequence."""
        return self.read(tokens.mean(dim=1))

    def loss(
        self,
        tokens: Float[Tensor, "B Q E"],
        mri: Float[Tensor, "B T S D H W"],
        present: Bool[Tensor, "B T S"],
        tumour: Float[Tensor, "B T D H W"],
    ) -> Float[Tensor, ""]:
        """Huber loss against what the masks say. A ratio counts where both masks are known (not NaN) and both timepoints have a volume, an
        intensity where the volume is there and something is left to measure."""
        known, tumour = ~tumour.isnan().flatten(2).any(dim=2), tumour.nan_to_num().flatten(2)
        before, after = tumour.sum(dim=2).unbind(dim=1)
        ratio = RATIO_SCALE * (after / before.clamp(min=FEWEST_VOXELS)) ** (1 / 3)
        _, left, solid = _measured(mri[:, 1].flatten(2).float(), tumour[:, 1:])
        compared = known.all(dim=1) & present.any(dim=2).all(dim=1) & (before >= FEWEST_VOXELS)
        counted = torch.cat([compared[:, None], present[:, 1] & known[:, 1:] & solid], dim=1)
        error = F.smooth_l1_loss(self(tokens).float(), torch.cat([ratio[:, None], left], dim=1), reduction="none")
        return (error * counted).sum() / counted.numel()


def _measured(
    volumes: Float[Tensor, "... V"], tumour: Float[Tensor, "... V"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."], Bool[Tensor, "..."]]:
    """A tumour's voxels, the mean intensity in them, and whether they are enough for one."""
    voxels = tumour.sum(dim=-1)
    return voxels, (volumes * tumour).sum(dim=-1) / voxels.clamp(min=FEWEST_VOXELS), voxels >= FEWEST_VOXELS


def belief_of_case(beliefs: list[Float[Tensor, "_ d h w"]], present: Bool[Tensor, "B T S"]) -> Float[Tensor, "B T d h w"]:
    """Per timepoint the mean of its sequences' gate logits; no tumour at all where a timepoint has no volume.

    Args:
        beliefs: per sequence the logits of its present volumes, in the order of `present`.
    """
    full = beliefs[0].new_zeros(*present.shape, *beliefs[0].shape[1:])
    for s, belief in enumerate(beliefs):
        full[:, :, s][present[:, :, s]] = belief
    count = present.sum(dim=2)[..., None, None, None]
    return (full.sum(dim=2) / count.clamp(min=1)).masked_fill(count == 0, NOWHERE)
