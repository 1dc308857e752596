"""CT and clinical values to one logit.

    ct (B D H W) --ViT--> (B L E)
    clinical (B V) --a token for each variable, or its "unknown" token--> (B V E), with a CLS token before: (B 1+V E)
    each layer: the tokens ask the CT tokens (first those in the middle); they ask the variables; MLP      CLS --MLP--> logit (B)
    beside it (wide): each variable's value, and times what is read (vit3d.Reading) where it looked in the CT, straight to the logit

    fusion   cross        as drawn
             concat       the variables without the CT, CLS beside the mean CT token
             clinical     the variables alone
             image        CLS asks the CT tokens alone

Source: "Cross-Attention Multimodal Learning for Predicting Response to Neoadjuvant Imatinib in Gastrointestinal Stromal Tumors",
abstract only: clinical variables and tumour-centred CT by cross-attention. Widths, depths and the form of the tokens are ours. A linear
answer with products beside a deep one: Cheng et al. 2016 (wide and deep); that they are of values and readings of the CT is ours. A small
factor on what attention finds: LayerScale, Touvron et al. 2021.
Re-implementation; official code not available.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from HARM3Logic.batch import Batch
from HARM3Logic.clinical import Scaling, gist
from HARM3Logic.errors import MissingInput
from HARM3Logic.models.layers import CrossAttention
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.vit3d import ViTConfig, ViTTrunk

WIDEST = 5.0  # spreads that a scaled number may reach: one slip of a typist must not rule the model


@dataclass(frozen=True)
class CTClinicalConfig:
    """Of the published framework the fusion is known, nothing of its sizes: all values are ours.

    Args:
        levels: of each clinical variable: number of categories, or 0 for a number.
        scaling: of the numbers, fitted on the cases that trained; empty leaves them as they are.
        width, heads, layers, hidden: of the fusion.
        near: how far from the middle of the crop, where the tumour is, CT tokens are asked at the start, as a share of half its edges.
        layer_scale: start of a factor, learned for each channel, on what the tokens of variables find in the CT; 0 leaves it out. A small
            one keeps few labels from learning by heart what tells patients apart.
        wide: how many times the straight answer of the variables counts; 0 leaves it out. Its products with readings, which cross-attention
            alone has, let few labels learn that a value turns what the CT means.
        needs: inputs that may not be missing; without `ct` in it a learned token stands in for an absent CT.
    """

    fusion: Literal["cross", "concat", "clinical", "image"] = "cross"
    trunk: ViTConfig = field(default_factory=ViTConfig)
    levels: tuple[int, ...] = field(default_factory=lambda: gist().levels)
    scaling: Scaling = field(default_factory=lambda: Scaling((), ()))
    width: int = 384
    heads: int = 4
    layers: int = 2
    hidden: int = 768
    dropout: float = 0.1
    head: int = 128
    near: float = 0.35
    layer_scale: float = 0.0
    wide: float = 0.0
    needs: tuple[str, ...] = ()


def paper() -> CTClinicalConfig:
    """A ViT-S trunk: about 26 M parameters."""
    return CTClinicalConfig()


def compact() -> CTClinicalConfig:
    """Under 1 M parameters, for the demo and for processors without a GPU."""
    return CTClinicalConfig(
        trunk=ViTConfig(volume_shape=(16, 48, 48), patch=(4, 8, 8), width=96, heads=4, layers=4, hidden=192, readings=2),
        width=96,
        heads=8,
        hidden=192,
        head=32,
        near=0.2,
        layer_scale=0.01,
        wide=6.0,
    )


class CTClinical(nn.Module):
    """The full network; see the module's diagram."""

    def __init__(self, config: CTClinicalConfig = CTClinicalConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.sees = c.fusion != "clinical"
        self.reads = c.fusion != "image"
        self.cls = nn.Parameter(torch.randn(1, 1, c.width) * 0.02)
        if self.sees:
            self.trunk = ViTTrunk(c.trunk)
            self.to_width = nn.Linear(c.trunk.width, c.width) if c.trunk.width != c.width else nn.Identity()
            self.absent = nn.Parameter(torch.randn(1, 1, c.width) * 0.02)
        asks = c.fusion in ("cross", "image")
        self.prior = nn.Parameter(_middle(c.trunk.map_shape, c.near)) if asks else None
        if self.reads:
            self.variables = _Variables(c)
        layers = [_Layer(c, asks_ct=asks, asks_row=self.reads) for _ in range(c.layers)]
        self.layers = nn.ModuleList(layers)
        self.wide = _Wide(c) if c.wide and self.reads else None
        width = 2 * c.width if c.fusion == "concat" else c.width
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, c.head), nn.GELU(), nn.Dropout(c.dropout), nn.Linear(c.head, 1)
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """One logit per case.

        Raises:
            MissingInput: a case lacks what the config says it needs, or all that the model reads.
        """
        cases = len(batch)
        tokens = self.cls.expand(cases, -1, -1)
        ct, here, reading = self._ct_tokens(batch) if self.sees else (None, None, None)
        if self.reads:
            row = self._row(batch, cases)
            tokens = torch.cat([tokens, row], dim=1)
        to_row, to_ct = [], []
        for layer in self.layers:
            tokens, among, image = layer(tokens, ct, self.prior)
            to_row.append(among)
            to_ct.append(image)
        attention: dict[str, Tensor] = {}
        if self.reads:
            attention["clinical"] = torch.stack(to_row).mean(dim=0)
        if self.prior is not None:
            assert here is not None
            attention["ct"] = torch.stack(to_ct).mean(dim=0) * here[:, None, None]
        answer = tokens[:, 0]
        if self.config.fusion == "concat":
            assert ct is not None
            answer = torch.cat([answer, ct.mean(dim=1)], dim=1)
        logit = self.head(answer)[:, 0]
        if self.wide is not None:
            logit = logit + self.wide(row, None if reading is None else attention["ct"][:, 1:] @ reading)
        return Output(logit, {}, attention)

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return ("ct",) * self.sees + ("clinical",) * self.reads

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """The trunk's last tokens as a grid; its rows are the cases with a CT."""
        return (CamLayer(self.trunk.map, ("ct",), by_place=True),) if self.sees else ()

    def hold_trunk(self, held: bool) -> None:
        """Keep what makes the CT tokens as it is, or let it learn again."""
        if self.sees:
            self.trunk.requires_grad_(not held).train(not held)

    def _ct_tokens(self, batch: Batch) -> tuple[Float[Tensor, "B L E"], Bool[Tensor, " B"], Float[Tensor, "B L R"] | None]:
        """The tokens of each case's CT, the stand-in for an absent one, whose is there, and what is read off the tokens."""
        c, shape = self.config, self.config.trunk.map_shape
        needed = "ct" in c.needs or c.fusion == "image"
        if batch.ct is None:
            if needed:
                batch.need("ct")
            here = torch.zeros(len(batch), dtype=torch.bool, device=self.cls.device)
        else:
            here = ~batch.ct.isnan().flatten(1).any(dim=1)
            if needed and not here.all():
                raise MissingInput(f"a case has no ct; {', '.join(c.needs) or 'ct'} must be there for this model.", "Load the CT.")
        full = self.absent.expand(len(here), shape[0] * shape[1] * shape[2], -1)
        multiplies = self.wide is not None and self.wide.readings > 0
        reading = full.new_zeros(*full.shape[:2], c.trunk.readings) if multiplies else None
        if batch.ct is not None and here.any():
            tokens = self.trunk(batch.ct[here])
            full = _put(full, here, self.to_width(tokens))
            if reading is not None and self.trunk.reading is not None:
                reading = _put(reading, here, self.trunk.reading(tokens))
        return full, here, reading

    def _row(self, batch: Batch, cases: int) -> Float[Tensor, "B V E"]:
        """The tokens of the variables; without a row at all every one is unknown, where the CT can answer alone."""
        values, known = batch.clinical, batch.clinical_mask
        if values is None or known is None:
            if "clinical" in self.config.needs or not self.sees or batch.ct is None:
                batch.need("clinical", "clinical_mask")
            values = self.cls.new_zeros(cases, len(self.config.levels))
            known = torch.zeros_like(values, dtype=torch.bool)
        if values.shape[1] != len(self.config.levels):
            raise MissingInput(
                f"the rows have {values.shape[1]} clinical variables; the model needs {len(self.config.levels)}.",
                "Use the schema of the checkpoint.",
            )
        return self.variables(values, known)


class _Variables(nn.Module):
    """Clinical values to tokens: a number along a learned direction, a category by its own vector, an unknown value by its variable's."""

    mean: Tensor
    spread: Tensor
    first: Tensor
    category: Tensor

    def __init__(self, c: CTClinicalConfig) -> None:
        super().__init__()
        count, levels = len(c.levels), torch.tensor(c.levels)
        self.direction = nn.Parameter(torch.randn(count, c.width) * 0.5)
        self.place = nn.Parameter(torch.randn(count, c.width) * 0.5)
        self.unknown = nn.Parameter(torch.randn(count, c.width) * 0.5)
        self.categories = nn.Embedding(max(1, sum(c.levels)), c.width)
        nn.init.normal_(self.categories.weight, std=0.5)
        plain = {"persistent": False}  # the config holds them in full precision
        self.register_buffer("mean", torch.tensor(c.scaling.mean or (0.0,) * count), **plain)
        self.register_buffer("spread", torch.tensor(c.scaling.spread or (1.0,) * count), **plain)
        self.register_buffer("first", levels.cumsum(0) - levels, **plain)
        self.register_buffer("category", levels > 0, **plain)

    def forward(self, values: Float[Tensor, "B V"], known: Bool[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
        scaled = ((values - self.mean) / self.spread).clamp(-WIDEST, WIDEST)
        index = (values.long() + self.first) * (self.category & known)  # any row will do where it is not used
        number = scaled[..., None] * self.direction
        token = self.place + torch.where(self.category[:, None], self.categories(index), number)
        return torch.where(known[..., None], token, self.unknown)


class _Layer(nn.Module):
    """The tokens ask the CT, then the variables, then pass an MLP, each on top of what they were."""

    def __init__(self, c: CTClinicalConfig, *, asks_ct: bool, asks_row: bool) -> None:
        super().__init__()
        self.ask_ct = _Ask(c.width, c.heads, c.dropout, c.layer_scale if asks_row else 0.0) if asks_ct else None
        self.ask_row = _Ask(c.width, c.heads, c.dropout) if asks_row else None
        self.mlp = nn.Sequential(
            nn.LayerNorm(c.width), nn.Linear(c.width, c.hidden), nn.GELU(), nn.Dropout(c.dropout),
            nn.Linear(c.hidden, c.width), nn.Dropout(c.dropout),
        )  # fmt: skip

    def forward(
        self, tokens: Float[Tensor, "B Q E"], ct: Float[Tensor, "B L E"] | None, prior: Float[Tensor, " L"] | None
    ) -> tuple[Float[Tensor, "B Q E"], Tensor | None, Tensor | None]:
        """The tokens, the attention of CLS over the variables (B 1 V), and of every token over the CT (B Q L)."""
        row = image = None
        if self.ask_ct is not None and ct is not None:
            found, image = self.ask_ct(tokens, ct, prior)
            tokens = tokens + found
        if self.ask_row is not None:
            found, row = self.ask_row(tokens, tokens[:, 1:])
            tokens, row = tokens + found, row[:, :1]
        return tokens + self.mlp(tokens), row, image


class _Ask(nn.Module):
    """Attention with the norms and the projection that a residual sum needs."""

    def __init__(self, width: int, heads: int, dropout: float, scale: float = 0.0) -> None:
        super().__init__()
        self.norm_asking, self.norm_answering = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.out = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), scale)) if scale else None
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, asking: Float[Tensor, "B Q E"], answering: Float[Tensor, "B L E"], prior: Float[Tensor, " L"] | None = None
    ) -> tuple[Float[Tensor, "B Q E"], Float[Tensor, "B Q L"]]:
        mixed, attention = self.attention(self.norm_asking(asking), self.norm_answering(answering), prior=prior)
        found = self.dropout(self.out(mixed))
        return found if self.scale is None else found * self.scale, attention


class _Wide(nn.Module):
    """What each value says by itself and what it makes of what was read in the CT, added up: nothing at the start."""

    def __init__(self, c: CTClinicalConfig) -> None:
        super().__init__()
        self.gain, self.readings = c.wide, c.trunk.readings * (c.fusion == "cross")
        self.norm = nn.LayerNorm(c.width)
        self.dropout = nn.Dropout(c.dropout)
        self.weigh = nn.Linear(c.width, 1 + self.readings, bias=False)
        nn.init.zeros_(self.weigh.weight)

    def forward(self, row: Float[Tensor, "B V E"], found: Float[Tensor, "B V R"] | None) -> Float[Tensor, " B"]:
        weights = self.weigh(self.dropout(self.norm(row)))
        alone = weights[..., 0].sum(dim=1)
        return self.gain * (alone if found is None else alone + (weights[..., 1:] * found).sum(dim=(1, 2)))


def _put(into: Float[Tensor, "B L E"], here: Bool[Tensor, " B"], some: Float[Tensor, "b L E"]) -> Float[Tensor, "B L E"]:
    """A copy with the cases that are there."""
    full = into.to(some.dtype).clone()
    full[here] = some
    return full


def _middle(shape: tuple[int, int, int], near: float) -> Float[Tensor, " L"]:
    """Logarithm of a bell round the middle of the map; the edges lie at 1 along each axis."""
    axes = [(2 * torch.arange(n) + 1 - n) / n for n in shape]
    squared = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(dim=0)
    return -squared.flatten() / (2 * near**2)
