"""3D vision transformer trunk: a volume to a grid of tokens.

    (N D H W) -> patches, each a token with its place (N L E) -> layers of self-attention and MLP -> (N E d h w)
    reading: tokens -> a few numbers that pretraining has found in each (N L R), against what is usual at its place

Source: Dosovitskiy et al. 2021, built from timm's blocks. Its class token is left out: what asks the tokens lies outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from HARM3Logic.errors import BadCheckpoint


@dataclass(frozen=True)
class ViTConfig:
    """Of ViT-S in three dimensions.

    Args:
        patch: voxels of a token, D H W; each divides the volume.
        readings: numbers that are read off each token; 0 has no such layer.
    """

    volume_shape: tuple[int, int, int] = (48, 96, 96)
    patch: tuple[int, int, int] = (8, 16, 16)
    width: int = 384
    heads: int = 6
    layers: int = 12
    hidden: int = 1536
    dropout: float = 0.0
    readings: int = 0

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Tokens along D H W."""
        d, h, w = (n // p for n, p in zip(self.volume_shape, self.patch, strict=True))
        return d, h, w


def block(width: int, heads: int, hidden: int, dropout: float = 0.0) -> nn.Module:
    """Pre-norm self-attention and MLP: (N L E) -> (N L E)."""
    from timm.models.vision_transformer import Block  # here, for it takes seconds

    return Block(width, heads, mlp_ratio=hidden / width, qkv_bias=True, proj_drop=dropout, attn_drop=dropout)


class ViTTrunk(nn.Module):
    """See the module's diagram."""

    def __init__(self, config: ViTConfig = ViTConfig()) -> None:
        super().__init__()
        self.config = c = config
        d, h, w = c.map_shape
        self.embed = nn.Conv3d(1, c.width, c.patch, stride=c.patch)
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, d * h * w, c.width), std=0.02))
        self.layers = nn.ModuleList(block(c.width, c.heads, c.hidden, c.dropout) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.reading = Reading(c.width, c.readings, d * h * w) if c.readings else None
        self.map = nn.Identity()  # the last tokens as a grid, by a name that Grad-CAM can take

    def forward(self, volumes: Float[Tensor, "N D H W"]) -> Float[Tensor, "N L E"]:
        tokens = self.encode(self.tokens(volumes))
        grid = self.map(tokens.transpose(1, 2).unflatten(2, self.config.map_shape))  # (N, E, d, h, w)
        return grid.flatten(2).transpose(1, 2)

    def tokens(self, volumes: Float[Tensor, "N D H W"]) -> Float[Tensor, "N L E"]:
        """One for each patch, with its place added."""
        return self.embed(volumes[:, None]).flatten(2).transpose(1, 2) + self.places

    def encode(self, tokens: Float[Tensor, "N l E"]) -> Float[Tensor, "N l E"]:
        """What the layers make of tokens, all of a volume or some."""
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens)


class Reading(nn.Module):
    """A few numbers of every token, less what is usual at its place and over how much they vary there.

    Many directions of a token tell patients apart and few tell what a tumour is like; few labels cannot find these among the others.
    From pretraining come weights and what is usual (`mae3d.fit_reading`); without it the weights are random and learn.
    """

    usual: Tensor
    spread: Tensor

    def __init__(self, width: int, count: int, places: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, count, bias=False)
        nn.init.normal_(self.linear.weight, std=width**-0.5)  # the tokens were normalised: about unit spread from the start
        self.register_buffer("usual", torch.zeros(places, count))
        self.register_buffer("spread", torch.ones(places, count))

    def forward(self, tokens: Float[Tensor, "N L E"]) -> Float[Tensor, "N L R"]:
        return (self.linear(tokens) - self.usual) / self.spread


def load_trunk(trunk: ViTTrunk, weights: Mapping[str, Tensor], where: str) -> None:
    """Take over pretrained weights.

    Raises:
        BadCheckpoint: they are of a trunk of another shape.
    """
    try:
        trunk.load_state_dict(dict(weights))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise BadCheckpoint(f"{where} does not fit the trunk ({first}).", "Pretrain a trunk of the same shape.") from error
