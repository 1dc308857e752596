"""Masked autoencoder: a CT trunk that learns without labels to fill in what it does not see.

    ct (N D H W) -> patch tokens (N L E) --a quarter of them--> trunk (N l E) --linear, mask tokens and places--> (N L e)
        --decoder--> answers (N L A)         loss: squared error to the patches (N L P) that were hidden

What a patch is told as (`MAEConfig.target`) decides what can be learned: at mean 0 and spread 1 it has lost its density and how much that
varies, which is what Hounsfield units are for. A trunk that is asked for both, of the patches it saw too, keeps them in its tokens.

Source: He et al. 2022, sections 3 and 4.1 (mask ratio, loss on hidden patches, targets normalised in each patch). Written from the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from HARM3Logic.errors import BadOption
from HARM3Logic.models.vit3d import ViTConfig, ViTTrunk, block

EVEN = 1e-6  # added to a patch's variance: air is the same everywhere
RIDGE = 1e-3  # of a token's square, in reading
ALIKE = 0.05  # least spread of a reading: where all crops show air it has none
LEAST = 0.02  # added to a patch's spread before its logarithm: noise of 5 HU in a window of 500


@dataclass(frozen=True)
class MAEConfig:
    """Args:
    hidden_share: of the patches that the trunk does not see.
    target: a hidden patch as "normalised" (mean 0, spread 1: He et al.), "plain" (in the window's units), or "moments": normalised, and
        beside it the mean and the logarithm of the spread of every patch, hidden or not. The last is ours.
    moments_weight: of these two in the loss.
    """

    trunk: ViTConfig = field(default_factory=ViTConfig)
    hidden_share: float = 0.75
    target: Literal["normalised", "plain", "moments"] = "normalised"
    moments_weight: float = 5.0
    width: int = 192
    heads: int = 6
    layers: int = 4
    hidden: int = 768


class MAE3D(nn.Module):
    """See the module's diagram; `trunk` is what is kept."""

    def __init__(self, config: MAEConfig = MAEConfig()) -> None:
        super().__init__()
        self.config = c = config
        if c.trunk.readings and (c.trunk.readings != 2 or c.target != "moments"):
            raise BadOption(
                f"the trunk has {c.trunk.readings} readings and the target is {c.target!r}; a target of moments teaches 2, others none.",
                "Correct the recipe.",
            )
        self.trunk = ViTTrunk(c.trunk)
        d, h, w = c.trunk.map_shape
        p, q, r = c.trunk.patch
        self.to_width = nn.Linear(c.trunk.width, c.width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, c.width) * 0.02)
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, d * h * w, c.width), std=0.02))
        self.decoder = nn.Sequential(*(block(c.width, c.heads, c.hidden) for _ in range(c.layers)), nn.LayerNorm(c.width))
        self.to_patch = nn.Linear(c.width, p * q * r + 2 * (c.target == "moments"))

    def forward(self, ct: Float[Tensor, "N D H W"], generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """The loss under a fresh random mask."""
        found, hidden = self.fill_in(ct, generator)
        own = self.patches(ct)
        if self.config.target == "plain":
            return ((found - own) ** 2).mean(dim=2)[hidden].mean()
        pattern, _, _ = normalised(own)
        loss = ((found[..., : own.shape[2]] - pattern) ** 2).mean(dim=2)[hidden].mean()
        if self.config.target == "moments":
            told = moments(own)
            loss = loss + self.config.moments_weight * ((found[..., own.shape[2] :] - told) ** 2).sum(dim=2).mean()
        return loss

    def fill_in(
        self, ct: Float[Tensor, "N D H W"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "N L A"], Bool[Tensor, "N L"]]:
        """Every patch as the model believes the target to be, and which it did not see."""
        tokens = self.trunk.tokens(ct)
        cases, count, width = tokens.shape
        kept = max(1, round(count * (1 - self.config.hidden_share)))
        order = torch.rand(cases, count, generator=generator).argsort(dim=1).to(ct.device)
        shown = order[:, :kept]
        seen = self.to_width(self.trunk.encode(tokens.gather(1, shown[..., None].expand(-1, -1, width))))
        full = self.mask_token.to(seen.dtype).expand(cases, count, -1)
        full = full.scatter(1, shown[..., None].expand(-1, -1, seen.shape[2]), seen)
        hidden = torch.ones(cases, count, dtype=torch.bool, device=ct.device).scatter(1, shown, False)
        return self.to_patch(self.decoder(full + self.places)).float(), hidden

    def patches(self, ct: Float[Tensor, "N D H W"]) -> Float[Tensor, "N L P"]:
        """The volume's patches, in the order of the trunk's tokens."""
        c = self.config.trunk
        (d, h, w), (p, q, r) = c.map_shape, c.patch
        cut = ct.reshape(len(ct), d, p, h, q, w, r)
        return cut.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(ct), d * h * w, p * q * r)

    def assemble(self, patches: Float[Tensor, "N L P"]) -> Float[Tensor, "N D H W"]:
        """The volume of its patches."""
        c = self.config.trunk
        (d, h, w), (p, q, r) = c.map_shape, c.patch
        parts = patches.reshape(len(patches), d, h, w, p, q, r)
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(patches), d * p, h * q, w * r)

    @torch.inference_mode()
    def pictures(
        self, ct: Float[Tensor, "N D H W"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "N D H W"], Float[Tensor, "N D H W"]]:
        """The volume as it was shown (hidden patches at the window's lower end), and with them filled in."""
        found, hidden = self.fill_in(ct, generator)
        own = self.patches(ct)
        mean, spread = torch.zeros(()), torch.ones(())
        if self.config.target == "normalised":
            _, mean, spread = normalised(own)  # the answer has neither: the patch's own are lent to it
        elif self.config.target == "moments":
            mean, spread = found[..., -2:-1], (found[..., -1:].exp() - LEAST).clamp(min=0)
        filled = torch.where(hidden[..., None], found[..., : own.shape[2]] * spread + mean, own)
        return self.assemble(own.masked_fill(hidden[..., None], -1.0)), self.assemble(filled)


def moments(patches: Float[Tensor, "N L P"]) -> Float[Tensor, "N L 2"]:
    """Mean and logarithm of the spread of each patch."""
    _, mean, spread = normalised(patches)
    return torch.cat([mean, (spread + LEAST).log()], dim=2)


@torch.inference_mode()
def fit_reading(model: MAE3D, batches: Callable[[], Iterable[Float[Tensor, "N D H W"]]]) -> None:
    """Let the trunk's readings be mean and log-spread of each patch as a line through its token tells them best, in place.

    Ridge regression on whole crops; then, at each place, less their mean over the crops and over their spread.
    """
    trunk, reading = model.eval().trunk, model.trunk.reading
    assert reading is not None
    width = trunk.config.width
    square = reading.linear.weight.new_zeros(width + 1, width + 1, dtype=torch.float64)
    product = square.new_zeros(width + 1, trunk.config.readings)
    for ct in batches():
        tokens = nn.functional.pad(trunk(ct), (0, 1), value=1.0).double().flatten(0, 1)
        square += tokens.T @ tokens
        product += tokens.T @ moments(model.patches(ct)).double().flatten(0, 1)
    shrink = RIDGE * square[-1, -1] * torch.eye(width + 1, dtype=square.dtype, device=square.device)
    shrink[-1, -1] = 0.0  # not the constant, which goes into what is usual
    reading.linear.weight.copy_(torch.linalg.solve(square + shrink, product)[:-1].T)
    found = torch.cat([reading.linear(trunk(ct)) for ct in batches()])
    reading.usual.copy_(found.mean(dim=0))
    reading.spread.copy_(found.std(dim=0, unbiased=False).clamp(min=ALIKE))


def normalised(patches: Float[Tensor, "N L P"]) -> tuple[Float[Tensor, "N L P"], Float[Tensor, "N L 1"], Float[Tensor, "N L 1"]]:
    """Each patch with mean 0 and variance 1, the mean it had, and its spread."""
    mean, spread = patches.mean(dim=2, keepdim=True), (patches.var(dim=2, keepdim=True) + EVEN).sqrt()
    return (patches - mean) / spread, mean, spread
