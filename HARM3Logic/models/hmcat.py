"""HMCAT (re-implementation from the abstract): the MRI asks two levels of the slide, tiles and regions, what matters to it.

    mri (B T S D H W) --trunk of each sequence--> radiology (B T*S*L E)
    tiles (B N F) --linear--> (B N E) --pooled within each square of the slide--> regions (B R E)
    tiles, regions --co-attention, radiology is the query--> (B T*S*L E) for each level
    two levels, radiology --each its transformer, gated pooling--> 3 x (B E) --MLP--> logit (B)

Source: Li et al., IEEE TMI 42(9), 2023: hierarchical histology features, radiology-guided co-attention at each level, both combined into
one score. Re-implementation from the paper; official code not available. The parts the abstract leaves open are those of MCAT,
Chen et al. 2021, whose co-attention it extends. There are no free weights of a network that reads regions of 4096 pixels, so that a
region here is what its tiles say, by a pooling that is learned. The survival loss became cross-entropy for the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS
from HARM3Logic.models.bags import read_any
from HARM3Logic.models.channels import check
from HARM3Logic.models.layers import CoAttention, FeatureScale, GatedPooling
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.resnet3d import ResNetTrunk, TrunkConfig


@dataclass(frozen=True)
class HMCATConfig:
    """Defaults are MCAT's where the abstract is silent.

    Args:
        tile_features: width F of the tile encoder.
        region_um: edge of a region. HIPT's are 2048 (4096 pixels of 0.5 µm), which a biopsy seldom holds; half of that is ours.
        width, heads, hidden, layers, dropout: of the transformers; co-attention has one head.
        standardise: scale tile features by what training has seen (`FeatureScale`; ours).
        cam_layer: submodule of the trunk whose output Grad-CAM explains.
        needs: inputs that may not be missing; empty: any one volume will do.
    """

    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    tile_features: int = 768
    region_um: float = 1024.0
    width: int = 256
    heads: int = 8
    hidden: int = 512
    layers: int = 2
    dropout: float = 0.25
    standardise: bool = False
    cam_layer: str = "layer4"
    needs: tuple[str, ...] = field(default=())


def paper() -> HMCATConfig:
    """MCAT's widths behind ResNet-18 trunks: about 72 M parameters."""
    return HMCATConfig(cam_layer="layer4.1.conv2")


def compact() -> HMCATConfig:
    """At most 3 M parameters: the trunk of the compact HARM3-Fusion without its gate, which learns from masks."""
    return HMCATConfig(
        trunk=TrunkConfig(depth=10, widen=0.25, stem="strided", output_stride=32),
        region_um=224.0,  # two tiles by two: the phantom's cores are a few hundred µm wide
        width=128,
        hidden=256,
        layers=1,
        standardise=True,
        cam_layer="focus",
    )


class HMCAT(nn.Module):
    """The full network; see the module's diagram."""

    def __init__(self, config: HMCATConfig = HMCATConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.trunks = nn.ModuleDict({s: ResNetTrunk(c.trunk) for s in SEQUENCES})
        channels = self._trunk(SEQUENCES[0]).channels
        self.to_width = nn.ModuleDict({s: nn.Linear(channels, c.width) for s in SEQUENCES})
        # ours: co-attention and transformers see a set, in which before and after therapy would be one
        self.volume_code = nn.Parameter(torch.randn(len(TIMEPOINTS), len(SEQUENCES), 1, c.width) * c.width**-0.5)
        self.scale = FeatureScale(c.tile_features) if c.standardise else None
        self.tile_to_width = nn.Sequential(nn.Linear(c.tile_features, c.width), nn.ReLU(), nn.Dropout(c.dropout))
        self.regions = RegionPooling(c.width, c.region_um)
        self.ask_tiles, self.ask_regions = _Level(c), _Level(c)
        self.radiology = _Branch(c)
        self.head = nn.Sequential(
            nn.Linear(3 * c.width, c.width), nn.ReLU(), nn.Linear(c.width, c.width), nn.ReLU(), nn.Linear(c.width, 1)
        )  # fmt: skip

    def forward(self, batch: Batch) -> Output:
        """One logit per case. A volume that is absent asks nothing; without tiles the answer is zero.

        Raises:
            MissingInput: a case has no volume, or lacks one the config says it needs; the tiles come from another encoder.
        """
        radiology, asking = self._radiology_tokens(batch)
        tiles, present = self._tile_tokens(batch)
        regions = self.regions(tiles, present, batch.tile_xy_um)
        from_tiles, to_tiles = self.ask_tiles(radiology, asking, tiles, present)
        from_regions, to_regions = self.ask_regions(radiology, asking, regions.tokens, regions.present)
        logit = self.head(torch.cat([from_tiles, from_regions, self.radiology(radiology, asking)], dim=1)).squeeze(1)
        return Output(logit, {}, {"slide": torch.stack([to_tiles, regions.spread(to_regions)], dim=1)})

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """One per sequence; its rows are the present (case, timepoint) pairs in order."""
        return tuple(
            CamLayer(self._trunk(s).get_submodule(self.config.cam_layer), tuple(f"{s}_{t}" for t in TIMEPOINTS)) for s in SEQUENCES
        )

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return (*MRI, "slide")

    def _trunk(self, sequence: str) -> ResNetTrunk:
        trunk = self.trunks[sequence]
        assert isinstance(trunk, ResNetTrunk)
        return trunk

    def _radiology_tokens(self, batch: Batch) -> tuple[Float[Tensor, "B Q E"], Bool[Tensor, "B Q"]]:
        mri, present = batch.need("mri", "mri_mask")
        check(batch, MRI, self.config.needs, "hmcat")
        found = []
        for s, name in enumerate(SEQUENCES):
            trunk = self._trunk(name)
            maps = trunk.end(*trunk.begin(mri[:, :, s][present[:, :, s]][:, None]))  # only volumes that are there go in
            found.append(self.to_width[name](maps.flatten(2).transpose(1, 2)))
        tokens = mri.new_zeros(*present.shape, *found[0].shape[1:], dtype=found[0].dtype)
        for s, rows in enumerate(found):
            tokens[:, :, s][present[:, :, s]] = rows
        tokens = tokens + self.volume_code
        return tokens.flatten(1, 3), present.flatten(1).repeat_interleave(tokens.shape[3], dim=1)

    def _tile_tokens(self, batch: Batch) -> tuple[Float[Tensor, "B N E"], Bool[Tensor, "B N"]]:
        tiles, present = read_any(batch, self.config.tile_features)
        return self.tile_to_width(tiles if self.scale is None else self.scale(tiles, present)), present


@dataclass(frozen=True)
class Regions:
    """The squares of a bag's slides that hold tiles.

    Args:
        weight: of each tile present in its square's pooling; those of a square sum to 1.
        case, place: of each tile present, and the place of its square among the case's.
        tile: where each of them stands in its bag.
    """

    tokens: Float[Tensor, "B R E"]
    present: Bool[Tensor, "B R"]
    weight: Float[Tensor, " M"]
    case: Int[Tensor, " M"]
    place: Int[Tensor, " M"]
    tile: Int[Tensor, " M"]
    bag: int

    def spread(self, values: Float[Tensor, "B R"]) -> Float[Tensor, "B N"]:
        """Each square's value shared out among its tiles by their weights."""
        tiles = values.new_zeros(len(values), self.bag)
        tiles[self.case, self.tile] = values[self.case, self.place] * self.weight.to(values.dtype)
        return tiles


class RegionPooling(nn.Module):
    """A token for each square of the slide: the mean of its tiles and their attention pooling, mixed by a linear layer.

    Squares are those of a grid on the slide. A bag without coordinates is one region. Tiles of several slides that lie at the same
    place share one, as a batch does not tell slides apart.
    """

    def __init__(self, width: int, edge_um: float) -> None:
        super().__init__()
        self.edge_um = edge_um
        self.score = nn.Linear(width, 1)
        self.mix = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())

    def forward(self, tiles: Float[Tensor, "B N E"], present: Bool[Tensor, "B N"], xy_um: Float[Tensor, "B N 2"] | None) -> Regions:
        case, tile = present.nonzero(as_tuple=True)
        square = torch.zeros_like(case)[:, None] if xy_um is None else (xy_um[present] / self.edge_um).floor().long()
        found, of = torch.unique(torch.cat([case[:, None], square], dim=1), dim=0, return_inverse=True)  # sorted by case
        owner = found[:, 0]
        count = torch.bincount(owner, minlength=len(tiles))
        rank = torch.arange(len(found), device=owner.device) - (count.cumsum(0) - count)[owner]
        tokens, weight = self._pool(tiles[present], of, len(found))
        shape = (len(tiles), max(1, int(count.max())))
        full, there = tiles.new_zeros(*shape, tiles.shape[-1]), torch.zeros(shape, dtype=torch.bool, device=tiles.device)
        full[owner, rank], there[owner, rank] = tokens.to(full.dtype), True
        return Regions(full, there, weight, case, rank[of], tile, tiles.shape[1])

    def _pool(self, rows: Float[Tensor, "M E"], of: Int[Tensor, " M"], regions: int) -> tuple[Float[Tensor, "G E"], Float[Tensor, " M"]]:
        score = self.score(rows)[:, 0].float()
        highest = score.new_full((regions,), -torch.inf).scatter_reduce(0, of, score.detach(), "amax")
        weight = (score - highest[of]).exp()
        weight = weight / weight.new_zeros(regions).index_add(0, of, weight)[of]
        even = 1 / torch.bincount(of, minlength=regions)[of]
        pooled = [
            rows.new_zeros(regions, rows.shape[1], dtype=torch.float32).index_add(0, of, share[:, None] * rows.float())
            for share in (even, weight)
        ]
        return self.mix(torch.cat(pooled, dim=1)), weight


class _Branch(nn.Module):
    """A set of tokens to one vector: transformer, gated attention pooling, MLP (MCAT's)."""

    def __init__(self, c: HMCATConfig) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(c.width, c.heads, c.hidden, c.dropout, batch_first=True)
        # nested tensors would shorten a padded batch
        self.transformer = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.pooling = GatedPooling(c.width, c.width, dropout=c.dropout)
        self.rho = nn.Sequential(nn.Linear(c.width, c.width), nn.ReLU(), nn.Dropout(c.dropout))

    def forward(self, tokens: Float[Tensor, "B L E"], present: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        pooled, _ = self.pooling(self.transformer(tokens, src_key_padding_mask=~present), present)
        return self.rho(pooled[:, 0])


class _Level(nn.Module):
    """One level of the slide, asked by the radiology tokens."""

    def __init__(self, c: HMCATConfig) -> None:
        super().__init__()
        self.attention = CoAttention(c.width)
        self.branch = _Branch(c)

    def forward(
        self, asking: Float[Tensor, "B Q E"], asks: Bool[Tensor, "B Q"], tokens: Float[Tensor, "B N E"], present: Bool[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B N"]]:
        """The level's vector, and the attention to its tokens: the mean over those that ask; zero for an empty bag."""
        answer, attention = self.attention(asking, tokens, present)
        return self.branch(answer, asks), (attention * asks[..., None]).sum(dim=1) / asks.sum(dim=1, keepdim=True)
