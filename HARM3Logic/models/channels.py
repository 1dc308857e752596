"""What the convolutional comparison methods share: volumes as channels, heat that several volumes share.

    Batch --gather--> (B V D H W), (B V) --network--> (B C d h w) --EachVolume--> (n C d h w) --joined--> (B C d h w)

Grad-CAM wants a row for every volume that is there. Networks that mix the volumes have one map for all: `EachVolume` gives each its
copy, `joined` puts them together again, so that each shows the map of its case with an equal share of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI
from HARM3Logic.errors import MissingInput
from HARM3Logic.models.output import CamLayer, Output


def gather(batch: Batch, volumes: Sequence[str]) -> tuple[Float[Tensor, "B V D H W"], Bool[Tensor, "B V"]]:
    """The named volumes as channels and which of them are there; an absent one is 0, the mean of a normalised volume."""
    mri, mask = batch.need("mri", "mri_mask")
    columns = [MRI.index(name) for name in volumes]
    channels, present = mri.flatten(1, 2)[:, columns], mask.flatten(1)[:, columns]
    return channels.masked_fill(~present[..., None, None, None], 0.0), present


def check(batch: Batch, volumes: Sequence[str], needs: Sequence[str], model: str) -> None:
    """Raises:
    MissingInput: a case has none of the volumes the model reads, or lacks one that is needed.
    """
    (mask,) = batch.need("mri_mask")
    columns = dict(zip(MRI, mask.flatten(1).unbind(dim=1), strict=True))
    if not torch.stack([columns[name] for name in volumes]).any(dim=0).all():
        raise MissingInput(f"a case has no MRI volume that {model} reads; it needs at least one of {', '.join(volumes)}.", "Load one.")
    for name in needs:
        if name in columns and not columns[name].all():
            raise MissingInput(f"a case has no {name}; this checkpoint needs {', '.join(needs)}.", f"Load {name}.")


class EachVolume(nn.Module):
    """A map of each case as one row for each of its present volumes."""

    def forward(self, shared: Float[Tensor, "B C d h w"], present: Bool[Tensor, "B V"]) -> Float[Tensor, "n C d h w"]:
        return shared[present.nonzero()[:, 0]]


def joined(rows: Float[Tensor, "n C d h w"], present: Bool[Tensor, "B V"]) -> Float[Tensor, "B C d h w"]:
    """The mean of each case's rows; 0 for a case that has none."""
    total = rows.new_zeros(len(present), *rows.shape[1:]).index_add(0, present.nonzero()[:, 0], rows)
    return total / present.sum(dim=1).clamp(min=1).to(rows.dtype)[:, None, None, None, None]


class ChannelClassifier(nn.Module):
    """A network with the volumes as channels and two classes; who inherits names itself and says how it classifies."""

    name: str

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config  # has `volumes` and `needs`
        self.each = EachVolume()

    def classify(self, channels: Float[Tensor, "B V D H W"], present: Bool[Tensor, "B V"] | None = None) -> Float[Tensor, "B 2"]:
        """The source's network: the two classes before the softmax.

        Args:
            present: None: all channels are there.
        """
        raise NotImplementedError

    def forward(self, batch: Batch) -> Output:
        """One logit per case.

        Raises:
            MissingInput: a case has none of the volumes, or lacks one the config says it needs.
        """
        check(batch, self.config.volumes, self.config.needs, self.name)
        classes = self.classify(*gather(batch, self.config.volumes))
        return Output(classes[:, 1] - classes[:, 0])

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """One, which all volumes share."""
        return (CamLayer(self.each, self.config.volumes),)

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        volumes: tuple[str, ...] = self.config.volumes
        return volumes
