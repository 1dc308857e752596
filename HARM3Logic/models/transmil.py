"""TransMIL: self-attention between the tiles of a slide, in a time that grows with their number and not its square.

    tiles (N F) --linear, ReLU--> (N E) --first tokens repeated--> a square (S*S E) --class token in front--> (1+S*S E)
        --Nystrom attention--> --convolutions over the square (PPEG)--> --Nystrom attention--> class token (E) --linear--> logit

Each case goes through alone: its square, the zeros before it and the start of its pseudo-inverse depend on no neighbour.

Source: Shao et al. 2021, "TransMIL: transformer based correlated multiple instance learning", and its official code; Nystrom attention:
Xiong et al. 2021, "Nystromformer".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.errors import BadCheckpoint
from HARM3Logic.models.bags import log_odds, read
from HARM3Logic.models.layers import FeatureScale
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.reference import bare, fill, renamed


@dataclass(frozen=True)
class TransMILConfig:
    """Defaults are the authors', but for the width of the tile encoder, which was 1024.

    Args:
        tile_features: width F of the tile encoder.
        landmarks: tokens that stand for all; half the width.
        iterations: of the pseudo-inverse.
        kernel: tokens that the convolution over the values spans.
        compat_nystrom_009: take the first tokens of the padded sequence for the result, as nystrom-attention 0.0.9 did, which the
            official code names; later versions take the last, which are the tokens that went in.
        standardise: scale features by what training has seen (`FeatureScale`; ours).
    """

    tile_features: int = 768
    width: int = 512
    heads: int = 8
    landmarks: int = 256
    iterations: int = 6
    kernel: int = 33
    classes: int = 2
    dropout: float = 0.1
    compat_nystrom_009: bool = False
    standardise: bool = False
    needs: tuple[str, ...] = ("slide",)


def paper() -> TransMILConfig:
    """512 wide."""
    return TransMILConfig()


def compact() -> TransMILConfig:
    """A quarter of the width."""
    return TransMILConfig(width=128, heads=4, landmarks=64, standardise=True)


class TransMIL(nn.Module):
    """The network; see the module's diagram."""

    def __init__(self, config: TransMILConfig = TransMILConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.scale = FeatureScale(c.tile_features) if c.standardise else None
        self.embed = nn.Sequential(nn.Linear(c.tile_features, c.width), nn.ReLU())
        self.class_token = nn.Parameter(torch.randn(1, 1, c.width))
        self.layer1, self.layer2 = NystromLayer(c), NystromLayer(c)
        self.position = PositionEncoding(c.width)
        self.norm = nn.LayerNorm(c.width)
        self.classify = nn.Linear(c.width, c.classes)

    def forward(self, batch: Batch) -> Output:
        """One logit per case. Attention: the class token's in the second layer, mean of the heads.

        Nystrom's approximation of an attention may be negative; what is below 0 counts as none, and the rest is made to sum to 1 (ours).

        Raises:
            MissingInput: a case has no tile.
        """
        tiles, present = read(batch, "transmil", self.config.tile_features)
        if self.scale is not None:
            tiles = self.scale(tiles, present)
        scores, attention = [], tiles.new_zeros(len(tiles), 1, tiles.shape[1], dtype=torch.float32)
        for row, (bag, here) in enumerate(zip(tiles, present, strict=True)):
            found, seen = self.judge(bag[here][None])
            scores.append(found)
            attention[row, 0, here] = _shares(seen[0])
        return Output(log_odds(torch.cat(scores)), {}, {"slide": attention})

    def judge(self, bags: Float[Tensor, "B N F"], together: bool = False) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B N"]]:
        """The scores of the classes, and what the class token sees of each tile, for bags of one length without gaps.

        Args:
            together: one start of the pseudo-inverse for all bags, as in the official code; a bag's scores then depend on its neighbours.
        """
        tokens = self.tokens(bags)
        side = math.isqrt(tokens.shape[1] - 1)
        tokens, _ = self.layer1(tokens, together)
        tokens = self.position(tokens, side)
        tokens, seen = self.layer2(tokens, together)
        count = bags.shape[1]
        repeated = seen[:, 1 + count :]
        seen = seen[:, 1 : 1 + count] + F.pad(repeated, (0, count - repeated.shape[1]))  # a repeated tile was seen twice
        return self.classify(self.norm(tokens)[:, 0]), seen

    def tokens(self, bags: Float[Tensor, "B N F"]) -> Float[Tensor, "B L E"]:
        """The class token and a square of tiles, whose last places the first tiles take again."""
        embedded = self.embed(bags)
        count = embedded.shape[1]
        side = math.isqrt(count - 1) + 1  # the root, rounded up
        return torch.cat([self.class_token.expand(len(bags), -1, -1), embedded, embedded[:, : side * side - count]], dim=1)

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """None: no volume goes in."""
        return ()

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return ("slide",)


class NystromLayer(nn.Module):
    """Pre-norm residual attention."""

    def __init__(self, c: TransMILConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c.width)
        self.attention = NystromAttention(c)

    def forward(self, tokens: Float[Tensor, "B L E"], together: bool = False) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L"]]:
        change, seen = self.attention(self.norm(tokens), together)
        return tokens + change, seen


class NystromAttention(nn.Module):
    """Attention through landmarks, means of neighbouring tokens: softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V.

    Zeros on the left fill the sequence up to a multiple of the landmarks, and are attended to like tokens; the reference has no mask.

    Source: Xiong et al. 2021, eq. 14, with the depth-wise convolution of its section 4.
    """

    def __init__(self, c: TransMILConfig) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations, self.keep_first = c.heads, c.landmarks, c.iterations, c.compat_nystrom_009
        self.query_key_value = nn.Linear(c.width, 3 * c.width, bias=False)
        self.local = nn.Conv2d(c.heads, c.heads, (c.kernel, 1), padding=(c.kernel // 2, 0), groups=c.heads, bias=False)
        self.out = nn.Linear(c.width, c.width)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, tokens: Float[Tensor, "B L E"], together: bool = False) -> tuple[Float[Tensor, "B L E"], Float[Tensor, "B L"]]:
        """The new tokens, and what the first one sees of each (mean of the heads)."""
        length = tokens.shape[1]
        with torch.autocast(tokens.device.type, enabled=False):  # the pseudo-inverse does not survive 16 bits
            v, left, inverse, right = self.parts(tokens.float(), together)
            through = left @ inverse
            mixed = through @ (right @ v) + self.local(v)
            padding = v.shape[2] - length
            kept = slice(0, length) if self.keep_first else slice(padding, None)
            seen = (through[:, :, kept.start, None] @ right)[:, :, 0, padding:].mean(dim=1)
            return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))[:, kept], seen

    def parts(
        self, tokens: Float[Tensor, "B L E"], together: bool = False
    ) -> tuple[Float[Tensor, "B H P e"], Float[Tensor, "B H P M"], Float[Tensor, "B H M M"], Float[Tensor, "B H M P"]]:
        """Values, tokens to landmarks, the inverse between landmarks, landmarks to tokens, all of the padded sequence."""
        group = -(-tokens.shape[1] // self.landmarks)  # tokens of a landmark
        tokens = F.pad(tokens, (0, 0, group * self.landmarks - tokens.shape[1], 0))
        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.query_key_value(tokens).chunk(3, dim=2))
        q = q * q.shape[3] ** -0.5
        q_mean, k_mean = (x.unflatten(2, (self.landmarks, group)).mean(dim=3) for x in (q, k))
        left, between, right = ((a @ b.transpose(2, 3)).softmax(dim=3) for a, b in ((q, k_mean), (q_mean, k_mean), (q_mean, k)))
        return v, left, pseudo_inverse(between, self.iterations, together), right


def pseudo_inverse(matrix: Float[Tensor, "B H M M"], iterations: int, together: bool = False) -> Float[Tensor, "B H M M"]:
    """Approximate Moore-Penrose inverses.

    Args:
        together: one start for all cases (the reference); otherwise each case's heads have their own.

    Source: Xiong et al. 2021, eq. 11 (Razavi et al. 2014), started from the transpose over the largest row and column sums.
    """
    axes = (0, 1, 2) if together else (1, 2)
    rows, columns = (matrix.abs().sum(dim=axis).amax(dim=axes, keepdim=True)[..., None] for axis in (3, 2))
    inverse = matrix.transpose(2, 3) / (rows * columns)
    one = torch.eye(matrix.shape[3], device=matrix.device, dtype=matrix.dtype)
    for _ in range(iterations):
        product = matrix @ inverse
        inverse = inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return inverse


class PositionEncoding(nn.Module):
    """Pyramid position encoding: tokens as a square picture, to which depth-wise convolutions of three sizes are added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.middle, self.narrow = (nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3))

    def forward(self, tokens: Float[Tensor, "B L E"], side: int) -> Float[Tensor, "B L E"]:
        picture = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        picture = picture + self.wide(picture) + self.middle(picture) + self.narrow(picture)
        return torch.cat([tokens[:, :1], picture.flatten(2).transpose(1, 2)], dim=1)


def _shares(seen: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What is above 0, as shares; equal ones where nothing is."""
    above = seen.clamp(min=0)
    return above / above.sum() if above.sum() > 0 else torch.full_like(above, 1 / len(above))


NAMES = {
    "cls_token": "class_token",
    "_fc1.0.": "embed.0.",
    "pos_layer.proj.": "position.wide.",
    "pos_layer.proj1.": "position.middle.",
    "pos_layer.proj2.": "position.narrow.",
    **{
        f"layer{k}.{theirs}": f"layer{k}.{ours}"
        for k in (1, 2)
        for theirs, ours in (
            ("norm.", "norm."), ("attn.to_qkv.", "attention.query_key_value."),
            ("attn.to_out.0.", "attention.out."), ("attn.res_conv.", "attention.local."),
        )
    },
    "norm.": "norm.",
    "_fc2.": "classify.",
}  # fmt: skip


def reference_config(weights: Mapping[str, Tensor]) -> TransMILConfig:
    """The sizes of the official code's weights; what weights do not show has its default.

    Raises:
        BadCheckpoint: they are not TransMIL's.
    """
    named = renamed(bare(weights), NAMES, "TransMIL")
    try:
        width, features = named["embed.0.weight"].shape
        heads, _, kernel, _ = named["layer1.attention.local.weight"].shape
        classes = len(named["classify.weight"])
    except (KeyError, ValueError) as error:
        raise BadCheckpoint(f"the weights are not those of TransMIL ({error}).", "Choose the file of such a model.") from error
    if classes < 2:
        raise BadCheckpoint(f"the weights of TransMIL know {classes} class; 2 or more are wanted.", "Choose another file.")
    return TransMILConfig(features, width, heads, width // 2, kernel=kernel, classes=classes)


def load_reference(model: TransMIL, weights: Mapping[str, Tensor]) -> None:
    """Fill the model with a state dict of the official TransMIL, with or without the `model.` of its Lightning checkpoints.

    Raises:
        BadCheckpoint: they do not fit.
    """
    fill(model, renamed(bare(weights), NAMES, "TransMIL"), "TransMIL")
