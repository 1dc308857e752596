"""LD-VAE: the loss-enhanced dual-stream VAE that splits what stays (inherent) from what therapy changed (variant).

    X_pre  (B L E) -> norm -> E_pre  -> Z_pre  -> [inherent | variant] -> D_pre  -> (B L E)
                                                      X (cross reconstruction, training only)
    X_post (B L E) -> norm -> E_post -> Z_post -> [inherent | variant] -> D_post -> (B L E)

With `compare`, what both timepoints say together is added to what each is decoded to:
D_i(inherent_i, variant_i) + C_i(inherent, variant_i, variant_j).

Source: HARM3-Fusion, section 2.1. Re-implementation; official code not available.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from HARM3Logic.errors import MissingInput

Reduction = Literal["mean", "sum"]
KlReduction = Literal["mean", "sum_latent", "sum_all"]
Cosine = Literal["abs", "signed", "relu", "label_aware"]


@dataclass(frozen=True)
class LdvaeConfig:
    """Defaults are ours where the paper gives no value.

    Args:
        kind: token_mlp (fully connected, as section 2.1 says of the split) or conv1d (the abstract's "convolutional").
        kl_scope: KL terms counted: 2, once per branch, or 4, inside eq. 4's double sum.
        cos: eq. 5 as written (`signed`), its absolute value, its positive part, or steered by the label: pCR pairs apart, others alike.
        cos_per: one cosine per token, or one over the whole flattened sequence.
        losses_reach_trunk: let eqs. 4 and 5 shape the trunk too. Ours is no: the trunk then wins them by making every token
            alike (the reconstruction error falls tenfold within three epochs and the label is no longer learned).
        compare: ours, beside eq. 3, by which each timepoint tells of itself alone: add to a token what its parts and those of the other
            timepoint say together, so that what therapy changed need not be found by attention over tokens (measured: RESULTS.md).
    """

    kind: Literal["token_mlp", "conv1d"] = "token_mlp"
    width: int = 512
    hidden: int = 512
    latent: int = 256
    reduction: Reduction = "mean"
    kl_reduction: KlReduction = "mean"
    kl_scope: Literal[2, 4] = 2
    kl_weight: float = 1e-3
    cos: Cosine = "abs"
    cos_per: Literal["token", "flat"] = "token"
    balance: float = 0.5  # lambda of eq. 5
    start_log_variance: float = -4.0  # ours: at 0 the noise drowns the untrained means and nothing is learned for many epochs
    recon_weight: float = 0.1
    contra_weight: float = 0.1
    losses_reach_trunk: bool = False
    compare: bool = False


@dataclass(frozen=True)
class Latent:
    """One branch's latent: q(Z|X) and the two parts of the Z that was taken."""

    mean: Float[Tensor, "B L Z"]
    log_variance: Float[Tensor, "B L Z"]
    inherent: Float[Tensor, "B L z"]
    variant: Float[Tensor, "B L z"]


class Branch(nn.Module):
    """Encoder, split and decoder of one timepoint."""

    def __init__(self, config: LdvaeConfig) -> None:
        super().__init__()
        width, hidden, latent = config.width, config.hidden, config.latent
        half = latent // 2
        conv = config.kind == "conv1d"
        self.encode = _Mixer(width, hidden, conv)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        nn.init.constant_(self.log_variance.bias, config.start_log_variance)
        self.inherent = nn.Linear(latent, half)
        self.variant = nn.Linear(latent, half)
        self.decode_in = _Mixer(2 * half, hidden, conv)
        self.decode_out = nn.Linear(hidden, width)
        self.compare = nn.Sequential(nn.Linear(3 * half, hidden), nn.ReLU(), nn.Linear(hidden, width)) if config.compare else None

    def latent(self, x: Float[Tensor, "B L E"], noise: Float[Tensor, "B L Z"] | None) -> Latent:
        """The latent of `x`; without noise Z is its mean."""
        hidden = self.encode(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden).clamp(-10, 10)
        z = mean if noise is None else reparametrise(mean, log_variance, noise)
        return Latent(mean, log_variance, self.inherent(z), self.variant(z))  # eq. 2

    def decode(self, inherent: Float[Tensor, "B L z"], variant: Float[Tensor, "B L z"]) -> Float[Tensor, "B L E"]:
        return self.decode_out(self.decode_in(torch.cat([inherent, variant], dim=-1)))

    def compared(
        self, inherent: Float[Tensor, "B L z"], variant: Float[Tensor, "B L z"], other: Float[Tensor, "B L z"]
    ) -> Float[Tensor, "B L E"]:
        """What its own and the other timepoint's variant part say together; only where the config says that they are compared."""
        assert self.compare is not None
        return self.compare(torch.cat([inherent, variant, other], dim=-1))


class _Mixer(nn.Module):
    """Linear + ReLU per token, or the same over three neighbouring tokens."""

    def __init__(self, width_in: int, width_out: int, conv: bool) -> None:
        super().__init__()
        self.layer = nn.Conv1d(width_in, width_out, 3, padding=1) if conv else nn.Linear(width_in, width_out)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L hidden"]:
        if isinstance(self.layer, nn.Conv1d):
            return self.layer(x.transpose(1, 2)).transpose(1, 2).relu()
        return self.layer(x).relu()


class LDVAE(nn.Module):
    """Both branches for one sequence."""

    def __init__(self, config: LdvaeConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.width)
        self.pre, self.post = Branch(config), Branch(config)

    def forward(
        self,
        x: Float[Tensor, "B 2 L E"],
        present: Bool[Tensor, "B 2"],
        label: Int[Tensor, " B"] | None,
        noise: Float[Tensor, "B 2 L Z"] | None,
    ) -> tuple[Float[Tensor, "B 2 L E"], dict[str, Float[Tensor, ""]]]:
        """Tokens of both timepoints, decoded and (where the config says so) compared, and the losses in training mode.

        Args:
            present: False where a timepoint is missing; such a case adds to no loss that would need it.
            noise: standard normal; None takes Z = its mean.
        """
        # A missing volume's tokens are zeros, whose norm has no useful gradient; they are masked in every loss below.
        x = self.norm(x)
        branches = (self.pre, self.post)
        latents = [b.latent(x[:, t], None if noise is None else noise[:, t]) for t, b in enumerate(branches)]
        own = [b.decode(z.inherent, z.variant) for b, z in zip(branches, latents, strict=True)]  # eq. 3
        told = torch.stack(own, dim=1)
        if self.config.compare:
            told = told + self._compared(latents, present)
        if not self.training:
            return told, {}
        target, seen = x.detach(), (latents, own)
        if not self.config.losses_reach_trunk:
            again = [b.latent(target[:, t], None if noise is None else noise[:, t]) for t, b in enumerate(branches)]
            seen = (again, [b.decode(z.inherent, z.variant) for b, z in zip(branches, again, strict=True)])
        return told, self._losses(target, *seen, present, label)

    def _compared(self, latents: list[Latent], present: Bool[Tensor, "B 2"]) -> Float[Tensor, "B 2 L E"]:
        """What both timepoints say together, for each of them; a missing one says nothing."""
        inherent = torch.stack([z.inherent for z in latents], dim=1)
        variant = torch.stack([z.variant for z in latents], dim=1)
        here = present.to(variant.dtype)[:, :, None, None]
        shared = (inherent * here).sum(dim=1) / here.sum(dim=1).clamp(min=1)
        pre, post = (variant * here).unbind(dim=1)
        return torch.stack([self.pre.compared(shared, pre, post), self.post.compared(shared, post, pre)], dim=1)

    def _losses(
        self, target: Tensor, latents: list[Latent], own: list[Tensor], present: Tensor, label: Tensor | None
    ) -> dict[str, Float[Tensor, ""]]:
        c = self.config
        both = present.all(dim=1)
        pre, post = latents
        crossed = (self.pre.decode(post.inherent, pre.variant), self.post.decode(pre.inherent, post.variant))
        recon = sum(
            _mean_over(squared_error(target[:, t], own[t], c.reduction), present[:, t])
            + _mean_over(squared_error(target[:, t], crossed[t], c.reduction), both)
            for t in (0, 1)
        )
        kl = sum(_mean_over(kl_divergence(z.mean, z.log_variance, c.kl_reduction), present[:, t]) for t, z in enumerate(latents))
        contra = contrast(pre.variant, post.variant, pre.inherent, post.inherent, c, label)
        return {
            "recon": c.recon_weight * torch.as_tensor(recon),  # eq. 4, first term
            "kl": c.recon_weight * c.kl_weight * (c.kl_scope / 2) * torch.as_tensor(kl),  # eq. 4, second term
            "contra": c.contra_weight * _mean_over(contra, both),
        }


def reparametrise(mean: Float[Tensor, "*s"], log_variance: Float[Tensor, "*s"], noise: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Source: HARM3-Fusion eq. 1 with Kingma & Welling 2013, section 2.4."""
    return mean + (log_variance / 2).exp() * noise  # eq. 1


def squared_error(target: Float[Tensor, "B L E"], made: Float[Tensor, "B L E"], reduction: Reduction) -> Float[Tensor, " B"]:
    """Squared error per case, over tokens and features: their sum (eq. 4 as written) or mean."""
    error = (target - made).square().flatten(1)
    return error.sum(dim=1) if reduction == "sum" else error.mean(dim=1)


def kl_divergence(mean: Float[Tensor, "B L Z"], log_variance: Float[Tensor, "B L Z"], reduction: KlReduction) -> Float[Tensor, " B"]:
    """KL(q(Z|X) || N(0, I)) per case.

    Args:
        reduction: over tokens and latents the mean, the sum, or (`sum_latent`) the sum over latents and mean over tokens.
    """
    terms = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    if reduction == "sum_all":
        return terms.sum(dim=(1, 2))
    return terms.sum(dim=2).mean(dim=1) if reduction == "sum_latent" else terms.mean(dim=(1, 2))


def cosine_term(
    pre: Float[Tensor, "B L z"], post: Float[Tensor, "B L z"], form: Cosine, per: str, label: Int[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """The first term of eq. 5 per case; see `LdvaeConfig.cos`.

    Raises:
        MissingInput: `label_aware` without labels.
    """
    if form == "label_aware" and label is None:
        raise MissingInput("the batch has no labels; the cosine term 'label_aware' needs them.", "Give labels or choose another form.")
    if per == "flat":
        pre, post = pre.flatten(1)[:, None], post.flatten(1)[:, None]
    dot = (pre * post).sum(dim=-1)
    cos = dot / (pre.norm(dim=-1).clamp_min(1e-8) * post.norm(dim=-1).clamp_min(1e-8))
    if form == "abs":
        cos = cos.abs()
    elif form == "relu":
        cos = cos.relu()
    elif label is not None and form == "label_aware":
        cos = torch.where(label[:, None] == 1, cos.abs(), 1 - cos)
    return cos.mean(dim=1)


def contrast(
    variant_pre: Float[Tensor, "B L z"],
    variant_post: Float[Tensor, "B L z"],
    inherent_pre: Float[Tensor, "B L z"],
    inherent_post: Float[Tensor, "B L z"],
    config: LdvaeConfig,
    label: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Variant parts apart, inherent parts together; per case, unweighted."""
    cos = cosine_term(variant_pre, variant_post, config.cos, config.cos_per, label)
    return config.balance * cos + (1 - config.balance) * squared_error(inherent_pre, inherent_post, "mean")  # eq. 5


def _mean_over(values: Float[Tensor, " B"], rows: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    return (values * rows).sum() / rows.sum().clamp_min(1)
