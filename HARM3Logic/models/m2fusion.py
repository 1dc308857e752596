"""M2Fusion: one sequence before and after therapy and the slide, fused by what each has that the other lacks.

    one sequence of mri (B T D H W) --one trunk, mean of the map--> f_pre, f_post (B E) --linear--> f_mri (B E)
    tiles (B N F) --linear--> (B N E) --gated attention pooling--> f_wsi (B E)
    [f_mri, f_wsi less its part along f_mri, f_wsi, f_mri less its part along f_wsi] (B 4E) --MLP--> logit (B)
    training only: a contrastive loss on f_pre and f_post of unit length

Source: Zhang et al., MICCAI 2024 (multi-time MRI contrastive loss, orthogonal multimodal fusion). Re-implementation from the paper;
official code not available. How f_pre and f_post are joined, the encoders, margin and weight are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.case import SEQUENCES, TIMEPOINTS
from HARM3Logic.errors import MissingInput
from HARM3Logic.models.bags import read_any
from HARM3Logic.models.layers import FeatureScale, GatedPooling
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.resnet3d import ResNetTrunk, TrunkConfig


@dataclass(frozen=True)
class M2FusionConfig:
    """Args:
    sequence: the one that is read; the contrast-enhanced T1, as the paper reads one contrast-enhanced sequence.
    tile_features: width F of the tile encoder.
    gate: hidden width of the slide's gated attention.
    pairs: what the contrastive loss compares. timepoints: a case before and after therapy, alike where it did not respond and apart where
        it did. cases: the joint MRI features of two cases, alike where they share a label and apart where they do not.
    margin: distance (of vectors of unit length) from which a pair is far enough apart.
    standardise: scale tile features by what training has seen (`FeatureScale`; ours).
    cam_layer: submodule of the trunk whose output Grad-CAM explains.
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    sequence: Literal["t1", "t2"] = "t1"
    tile_features: int = 768
    width: int = 512
    gate: int = 256
    dropout: float = 0.25
    pairs: Literal["timepoints", "cases"] = "timepoints"
    margin: float = 1.0
    contrast_weight: float = 0.1
    standardise: bool = False
    cam_layer: str = "layer4"


def paper() -> M2FusionConfig:
    """A ResNet-18 and features 512 wide: about 36 M parameters."""
    return M2FusionConfig(cam_layer="layer4.1.conv2")


def compact() -> M2FusionConfig:
    """At most 3 M parameters: the trunk of the compact HARM3-Fusion without its gate, which learns from masks."""
    return M2FusionConfig(
        trunk=TrunkConfig(depth=10, widen=0.25, stem="strided", output_stride=32), width=128, gate=64, standardise=True, cam_layer="focus"
    )


class M2Fusion(nn.Module):
    """The full network; see the module's diagram."""

    def __init__(self, config: M2FusionConfig = M2FusionConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.trunk = ResNetTrunk(c.trunk)
        self.to_width = nn.Linear(self.trunk.channels, c.width) if self.trunk.channels != c.width else nn.Identity()
        self.join = nn.Linear(len(TIMEPOINTS) * c.width, c.width)
        self.scale = FeatureScale(c.tile_features) if c.standardise else None
        self.tile_to_width = nn.Sequential(nn.Linear(c.tile_features, c.width), nn.ReLU(), nn.Dropout(c.dropout))
        self.pooling = GatedPooling(c.width, c.gate, dropout=c.dropout)
        self.head = nn.Sequential(nn.Linear(4 * c.width, c.width), nn.ReLU(), nn.Dropout(c.dropout), nn.Linear(c.width, 1))

    def forward(self, batch: Batch) -> Output:
        """One logit per case; the feature of an absent timepoint or slide is zero.

        Raises:
            MissingInput: a case has nothing the model reads, or the tiles come from another encoder.
        """
        times, present = self._times(batch)
        self._check(batch, present)
        slide, attention = self._slide(batch)
        mri = self.join(times.flatten(1))
        # half precision would leave a part of one along the other
        logit = self.head(orthogonal_fusion(mri.float(), slide.float())).squeeze(1)
        losses: dict[str, Tensor] = {}
        if self.training and batch.label is not None:
            losses["contrast"] = self.config.contrast_weight * self._contrast(times.float(), mri.float(), present, batch.label)
        return Output(logit, losses, {"slide": attention})

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """The trunk both timepoints share; its rows are the present (case, timepoint) pairs in order."""
        return (CamLayer(self.trunk.get_submodule(self.config.cam_layer), self._volumes()),)

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return (*self._volumes(), "slide")

    def _volumes(self) -> tuple[str, ...]:
        return tuple(f"{self.config.sequence}_{t}" for t in TIMEPOINTS)

    def _times(self, batch: Batch) -> tuple[Float[Tensor, "B T E"], Bool[Tensor, "B T"]]:
        s = SEQUENCES.index(self.config.sequence)
        mri, mask = batch.need("mri", "mri_mask")
        present = mask[:, :, s]
        maps = self.trunk.end(*self.trunk.begin(mri[:, :, s][present][:, None]))  # only volumes that are there go in
        found = self.to_width(maps.mean(dim=(2, 3, 4)))
        times = found.new_zeros(*present.shape, found.shape[1])
        times[present] = found
        return times, present

    def _slide(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B 1 N"]]:
        tiles, present = read_any(batch, self.config.tile_features)
        tokens = self.tile_to_width(tiles if self.scale is None else self.scale(tiles, present))
        pooled, attention = self.pooling(tokens, present)
        return pooled[:, 0], attention

    def _check(self, batch: Batch, times: Bool[Tensor, "B T"]) -> None:
        """A case needs something to be judged by; in training an augmentation may withhold all of it."""
        there = times.any(dim=1) if batch.tile_mask is None else times.any(dim=1) | batch.tile_mask.any(dim=1)
        if not self.training and not there.all():
            raise MissingInput(f"a case has none of {', '.join(self.inputs())}; m2fusion needs at least one of them.", "Load one.")

    def _contrast(
        self, times: Float[Tensor, "B T E"], mri: Float[Tensor, "B E"], present: Bool[Tensor, "B T"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        if self.config.pairs == "timepoints":
            both = present.all(dim=1)
            return contrast(times[both, 0], times[both, 1], label[both] == 0, self.config.margin)
        seen = present.any(dim=1)
        mri, label = mri[seen], label[seen]
        first, second = torch.triu_indices(len(mri), len(mri), offset=1, device=mri.device)
        return contrast(mri[first], mri[second], label[first] == label[second], self.config.margin)


def orthogonal_part(x: Float[Tensor, "B E"], y: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
    """What x has at a right angle to y."""
    along = (x * y).sum(dim=1, keepdim=True) / (y.square().sum(dim=1, keepdim=True) + 1e-8)
    return x - along * y


def orthogonal_fusion(mri: Float[Tensor, "B E"], slide: Float[Tensor, "B E"]) -> Float[Tensor, "B 4*E"]:
    """Both features, each followed by what the other adds to it."""
    return torch.cat([mri, orthogonal_part(slide, mri), slide, orthogonal_part(mri, slide)], dim=1)


def contrast(x: Float[Tensor, "P E"], y: Float[Tensor, "P E"], alike: Bool[Tensor, " P"], margin: float) -> Float[Tensor, ""]:
    """Mean of d^2 over pairs that should be alike and of max(0, margin - d)^2 over the others, d between vectors of unit length.

    Zero without pairs.

    Source: Hadsell et al. 2006, eq. 4, without its factor of one half.
    """
    square = (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1)
    distance = (square + 1e-12).sqrt()  # a root of 0 has no gradient
    terms = torch.where(alike, square, (margin - distance).relu().square())
    return terms.sum() / max(1, len(terms))
