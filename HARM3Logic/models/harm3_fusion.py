"""HARM3-Fusion: four MRI volumes and a slide to one logit.

    mri (B T S D H W) --trunk of each sequence--> (B T S L E) --LD-VAE of each sequence--> F_temporal (B S T*L E)
        --"attention 1": self-attention over all sequences--> F_MRI (B S*T*L E)
    tiles (B N F) --linear--> (B N E) --K queries--> F_WSI (B K E)
        --"attention 2": F_WSI asks F_MRI (eqs. 6, 7)--> (B K E) --CNN, MLP--> logit (B)

Source: Wang et al., HARM3-Fusion (HNSCC-pCR). Re-implementation; official code not available.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS
from HARM3Logic.models.bags import read_any
from HARM3Logic.models.channels import check
from HARM3Logic.models.layers import AttentionPooling, CrossAttention, FeatureScale, RelativeBias, TokenHead, TransformerLayer
from HARM3Logic.models.ldvae import LDVAE, LdvaeConfig
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.resnet3d import ResNetTrunk, TrunkConfig
from HARM3Logic.models.tumour import Change, Radiomics, belief_of_case, mask_loss

DRAWS_AT_ONCE = 64  # of the latents: copies of a case that go through the fusion together


@dataclass(frozen=True)
class HARM3FusionConfig:
    """Defaults are the paper's, or ours where it gives no value (width, tile features and eqs. 6, 7 are given).

    Args:
        tile_features: width F of the tile encoder.
        ldvae, attn1: False concatenates instead (rows of the ablation).
        attn2: cross (eqs. 6, 7), concat (both token sequences into the same CNN) or mri_only (no slide at all).
        mask_weight, radiomics_weight, change_weight: weights of auxiliary losses in training, where masks are given: the trunk's gate
            learns where the tumour is, its tokens how large and bright it is, and what the head is given what therapy changed
            (`models.tumour`).
        cam_layer: submodule of the trunk whose output Grad-CAM explains.
        l1: weight of the L1 norm of the fusion and head parameters.
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    vae: LdvaeConfig = field(default_factory=LdvaeConfig)
    volume_shape: tuple[int, int, int] = (32, 128, 128)
    tile_features: int = 768
    width: int = 512
    heads: int = 8
    hidden: int = 1024
    layers: int = 1
    dropout: float = 0.1
    collaborative: bool = False
    temporal: Literal["concatenate", "sum"] = "concatenate"  # eq. 3: its text concatenates, its formula sums
    pooled: int = 64
    cross_heads: int = 1
    cross_residual: bool = False
    head_widths: tuple[int, int, int] = (256, 128, 64)
    head_norm: Literal["batch", "group"] = "batch"
    head_dropout: float = 0.25
    ldvae: bool = True
    attn1: bool = True
    attn2: Literal["cross", "concat", "mri_only"] = "cross"
    mask_weight: float = 0.0
    radiomics_weight: float = 0.0
    change_weight: float = 0.0
    cam_layer: str = "layer4"
    l1: float = 1e-5
    needs: tuple[str, ...] = field(default=())  # inputs that may not be missing; empty: any one volume will do


def paper() -> HARM3FusionConfig:
    """ResNet-18 trunks, 512 wide: about 75 M parameters."""
    return HARM3FusionConfig(cam_layer="layer4.1.conv2")


def compact() -> HARM3FusionConfig:
    """At most 3 M parameters, for the demo and for processors without a GPU."""
    return HARM3FusionConfig(
        trunk=TrunkConfig(depth=10, widen=0.25, stem="strided", output_stride=32, focus=True),
        vae=LdvaeConfig(width=128, hidden=128, latent=64, recon_weight=1.0, contra_weight=0.01, start_log_variance=-6.0, compare=True),
        volume_shape=(16, 64, 64),
        width=128,
        heads=4,
        hidden=256,
        pooled=16,
        cross_heads=4,
        cross_residual=True,
        head_widths=(64, 64, 32),
        mask_weight=4.0,
        radiomics_weight=1.0,
        change_weight=1.0,
        cam_layer="focus",
        l1=1e-7,  # at the higher learning rate of the small model 1e-5 empties the attention before it has learned anything
    )


class HARM3Fusion(nn.Module):
    """The full network; see the module's diagram."""

    places: Tensor

    def __init__(self, config: HARM3FusionConfig = HARM3FusionConfig()) -> None:
        super().__init__()
        self.config = c = config
        trunks = {s: ResNetTrunk(c.trunk) for s in SEQUENCES}
        self.trunks = nn.ModuleDict(trunks)
        channels = trunks[SEQUENCES[0]].channels
        self.to_width = nn.ModuleDict({s: nn.Linear(channels, c.width) if channels != c.width else nn.Identity() for s in SEQUENCES})
        self.radiomics = nn.ModuleDict({s: Radiomics(c.width) for s in SEQUENCES}) if c.radiomics_weight else None
        self.vaes = nn.ModuleDict({s: LDVAE(c.vae) for s in SEQUENCES}) if c.ldvae else None
        stride = c.trunk.output_stride
        self.map_shape = tuple(-(-n // s) for n, s in zip(c.volume_shape, (stride // 2, stride, stride), strict=True))
        if c.attn1:
            self.bias = RelativeBias(c.heads, (len(SEQUENCES), len(TIMEPOINTS), *self.map_shape))
            self.fuse_sequences = nn.ModuleList(
                TransformerLayer(c.width, c.heads, c.hidden, c.dropout, c.collaborative) for _ in range(c.layers)
            )
        else:
            self.fuse_sequences = nn.ModuleList([nn.Linear(c.width, c.width)])
        if c.attn2 != "mri_only":
            self.tile_norm = FeatureScale(c.tile_features, of_batch=True)
            self.tile_to_width = nn.Linear(c.tile_features, c.width)
            self.pool_tiles = AttentionPooling(c.width, c.pooled, c.heads)
        if c.attn2 == "cross":
            self.cross = CrossAttention(c.width, c.cross_heads, c.cross_residual)
        self.head = TokenHead(c.width, c.head_widths, c.head_norm, c.head_dropout)
        self.change = Change(c.width, len(SEQUENCES)) if c.change_weight else None
        self.register_buffer("places", self._places(), persistent=False)

    def forward(self, batch: Batch) -> Output:
        """One logit per case.

        Raises:
            MissingInput: a case has no volume, or lacks one the config says it needs.
        """
        tokens, losses = self._mri_tokens(batch)
        assert batch.mri_mask is not None  # _mri_tokens has asked for it
        slide, attention = self._slide_tokens(batch)
        fused, terms, looked = self._fuse(tokens, batch.mri_mask, slide, batch.label, None)
        if self.training and self.change is not None and batch.mri is not None and batch.tumour is not None:
            terms["tumour_change"] = self.config.change_weight * self.change.loss(fused, batch.mri, batch.mri_mask, batch.tumour)
        return Output(self.head(fused), {**terms, **losses}, {**attention, **looked})

    def sample(self, batch: Batch, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n B"]:
        """Logits under n draws of the latents; the trunk and the slide are read once."""
        tokens, _ = self._mri_tokens(batch)
        slide, _ = self._slide_tokens(batch)
        generator = generator or torch.Generator().manual_seed(0)
        assert batch.mri_mask is not None
        draws = []
        for start in range(0, n, DRAWS_AT_ONCE):
            rows = torch.arange(len(batch), device=tokens.device).repeat(min(DRAWS_AT_ONCE, n - start))
            copies = None if slide is None else slide[rows]
            draws.append(self.head(self._fuse(tokens[rows], batch.mri_mask[rows], copies, None, generator)[0]))
        return torch.cat(draws).unflatten(0, (n, len(batch)))

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """One per sequence; its rows are the present (case, timepoint) pairs in order."""
        return tuple(
            CamLayer(self.trunks[s].get_submodule(self.config.cam_layer), tuple(f"{s}_{t}" for t in TIMEPOINTS)) for s in SEQUENCES
        )

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return MRI if self.config.attn2 == "mri_only" else (*MRI, "slide")

    def mask_losses(self, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        """What tumour masks teach, of `trunk_parts` alone; nothing else of the network is run."""
        return self._mri_tokens(batch)[1]

    def trunk_parts(self) -> dict[str, nn.Module]:
        """What makes the MRI tokens, by attribute."""
        parts: dict[str, nn.Module | None] = {"trunks": self.trunks, "to_width": self.to_width, "radiomics": self.radiomics}
        return {name: part for name, part in parts.items() if part is not None}

    def hold_trunk(self, held: bool) -> None:
        """Keep what makes the MRI tokens as it is, batch statistics included, or let it learn again."""
        for part in self.trunk_parts().values():
            part.requires_grad_(not held).train(not held)

    def _mri_tokens(self, batch: Batch) -> tuple[Float[Tensor, "B T S L E"], dict[str, Float[Tensor, ""]]]:
        mri, present = batch.need("mri", "mri_mask")
        check(batch, MRI, self.config.needs, "harm3_fusion")
        # only volumes that are there go in: no neighbour, no zero reaches the statistics
        shown = [present[:, :, s] for s in range(len(SEQUENCES))]
        begun = [self._trunk(name).begin(mri[:, :, s][shown[s]][:, None]) for s, name in enumerate(SEQUENCES)]
        beliefs = [belief for _, belief in begun if belief is not None]
        belief = belief_of_case(beliefs, present) if beliefs else None
        bed = None if belief is None else belief.amax(dim=1, keepdim=True).expand_as(belief)  # where tumour is or was
        tokens = []
        for s, name in enumerate(SEQUENCES):
            maps = self._trunk(name).end(begun[s][0], None if bed is None else bed[shown[s]])
            tokens.append(self.to_width[name](maps.flatten(2).transpose(1, 2)))
        losses = self._tumour_losses(batch, tokens, belief) if self.training else {}
        out = mri.new_zeros(*present.shape, *tokens[0].shape[1:])
        for s, rows in enumerate(tokens):
            out[:, :, s][shown[s]] = rows.to(out.dtype)
        return out, losses

    def _trunk(self, sequence: str) -> ResNetTrunk:
        trunk = self.trunks[sequence]
        assert isinstance(trunk, ResNetTrunk)
        return trunk

    def _tumour_losses(self, batch: Batch, tokens: list[Tensor], belief: Tensor | None) -> dict[str, Tensor]:
        """What masks teach; nothing without masks."""
        c, tumour, present = self.config, batch.tumour, batch.mri_mask
        losses: dict[str, Tensor] = {}
        if tumour is None or present is None or batch.mri is None:
            return losses
        if c.mask_weight and belief is not None:
            seen = present.any(dim=2)
            losses["tumour_mask"] = c.mask_weight * mask_loss(belief[seen], tumour[seen])
        if self.radiomics is not None:
            terms = []
            for s, name in enumerate(SEQUENCES):
                shown, part = present[:, :, s], self.radiomics[name]
                assert isinstance(part, Radiomics)
                terms.append(part.loss(tokens[s], batch.mri[:, :, s][shown], tumour[shown]))
            losses["tumour_radiomics"] = c.radiomics_weight * torch.stack(terms).mean()
        return losses

    def _fuse(
        self,
        tokens: Float[Tensor, "B T S L E"],
        present: Bool[Tensor, "B T S"],
        slide: Float[Tensor, "B K E"] | None,
        label: Int[Tensor, " B"] | None,
        sample: torch.Generator | None,
    ) -> tuple[Float[Tensor, "B Q E"], dict[str, Tensor], dict[str, Tensor]]:
        """What the head is given, the losses (in training) and the attention."""
        c = self.config
        losses: dict[str, Tensor] = {}
        if self.vaes is not None:
            tokens, losses = self._decouple(tokens, present, label, sample)
        length = tokens.shape[3]
        here = present[:, :, :, None].expand(-1, -1, -1, length).transpose(1, 2).flatten(1)  # (B, S*T*L)
        fused = tokens.transpose(1, 2).flatten(1, 3)
        if c.attn1:
            bias = self.bias(self.places)
            for layer in self.fuse_sequences:
                fused = layer(fused, here, bias)
        else:
            fused = self.fuse_sequences[0](fused)
        attention: dict[str, Tensor] = {}
        if c.temporal == "sum":
            fused, here = self._sum_times(fused, here)
        if slide is not None and c.attn2 == "cross":
            fused, attention["mri"] = self.cross(slide, fused, here)
        else:
            fused = fused * here[..., None]
            fused = fused if slide is None else torch.cat([fused, slide], dim=1)
        if self.training and c.l1:
            parts = [self.fuse_sequences, self.head, *([self.cross] if c.attn2 == "cross" else [])]
            losses["l1"] = c.l1 * torch.stack([p.abs().sum() for part in parts for p in part.parameters()]).sum()
        return fused, losses, attention

    def _decouple(
        self, tokens: Tensor, present: Tensor, label: Int[Tensor, " B"] | None, sample: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.vaes is not None
        decoded, losses = [], dict.fromkeys(("recon", "kl", "contra"), tokens.new_zeros(())) if self.training else {}
        for s, name in enumerate(SEQUENCES):
            x = tokens[:, :, s]
            shape = (*x.shape[:-1], self.config.vae.latent)
            noise = None
            if sample is not None:
                noise = torch.randn(shape, generator=sample, device=sample.device).to(x)
            elif self.training:
                noise = torch.randn(shape, device=x.device, dtype=x.dtype)
            out, terms = self.vaes[name](x, present[:, :, s], label, noise)
            decoded.append(out)
            losses = {key: losses[key] + value for key, value in terms.items()}
        return torch.stack(decoded, dim=2), losses

    def _slide_tokens(self, batch: Batch) -> tuple[Float[Tensor, "B K E"] | None, dict[str, Tensor]]:
        """The pooled slide and the attention over its tiles; nothing for a model without a slide."""
        if self.config.attn2 == "mri_only":
            return None, {}
        tiles, mask = read_any(batch, self.config.tile_features)
        pooled, attention = self.pool_tiles(self.tile_to_width(self.tile_norm(tiles, mask)), mask)
        return pooled, {"slide": attention}

    def _sum_times(self, tokens: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 3's formula: add pre and post; a missing one adds nothing."""
        shape = (len(SEQUENCES), len(TIMEPOINTS), -1)
        mask = here.unflatten(1, shape)
        summed = (tokens.unflatten(1, shape) * mask[..., None]).sum(dim=2)
        return summed.flatten(1, 2), mask.any(dim=2).flatten(1)

    def _places(self) -> Int[Tensor, "L 5"]:
        """Sequence, timepoint and map position of every token, in the order S, T, d, h, w."""
        axes = [torch.arange(n) for n in (len(SEQUENCES), len(TIMEPOINTS), *self.map_shape)]
        return torch.cartesian_prod(*axes)
