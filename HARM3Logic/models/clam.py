"""CLAM: attention over the tiles of a slide, and clusters of tiles that teach it.

    tiles (B N F) --linear, ReLU--> (B N E) --gated attention, K rows--> (B K E) --linear--> one score per class (B C) --> logit (B)
    in training: the tiles with most and least attention --linear of the true class--> "belongs to it" or not

K is 1 (single branch, SB) or C (multi-branch, MB: each class has its own attention).

Source: Lu et al. 2021, "Data-efficient and weakly supervised computational pathology on whole-slide images", and its official code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.errors import BadCheckpoint
from HARM3Logic.models.bags import log_odds, read
from HARM3Logic.models.layers import FeatureScale, GatedPooling
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.reference import bare, fill, renamed

ATTENTION_DROPOUT = 0.25  # of the official code whenever it drops out at all


@dataclass(frozen=True)
class CLAMConfig:
    """Defaults are the authors', but for the width of the tile encoder, which was 1024.

    Args:
        tile_features: width F of the tile encoder.
        width, hidden: E and the width in which attention is scored: 512 and 256 ("small"), 512 and 384 ("big").
        branches: SB or MB.
        sampled: tiles with most, and as many with least attention that the instance loss looks at; a case with fewer gives all of them.
        bag_weight: share of the bag's cross-entropy in the loss. The training loop gives that term the weight 1, so the instance loss
            has (1 - bag_weight) / bag_weight: the authors' loss but for a common factor.
        subtyping: classes exclude each other: tiles with most attention for one belong to no other.
        margin: of the instance loss: 0 is cross-entropy, 1 the smooth top-1 SVM (temperature 1; Berrada et al. 2018) that the
            authors offer.
        standardise: scale features by what training has seen (`FeatureScale`; ours).
    """

    tile_features: int = 768
    width: int = 512
    hidden: int = 256
    branches: Literal["single", "multi"] = "single"
    classes: int = 2
    dropout: float = 0.25
    sampled: int = 8
    bag_weight: float = 0.7
    subtyping: bool = False
    margin: float = 0.0
    standardise: bool = False
    needs: tuple[str, ...] = ("slide",)


def paper() -> CLAMConfig:
    """CLAM-SB, "small"."""
    return CLAMConfig()


def compact() -> CLAMConfig:
    """A quarter of the width."""
    return CLAMConfig(width=128, hidden=64, standardise=True)


class CLAM(nn.Module):
    """The network; see the module's diagram."""

    def __init__(self, config: CLAMConfig = CLAMConfig()) -> None:
        super().__init__()
        self.config = c = config
        self.scale = FeatureScale(c.tile_features) if c.standardise else None
        self.embed = nn.Sequential(nn.Linear(c.tile_features, c.width), nn.ReLU(), nn.Dropout(c.dropout))
        rows = c.classes if c.branches == "multi" else 1
        self.pool = GatedPooling(c.width, c.hidden, rows, ATTENTION_DROPOUT if c.dropout else 0.0)
        self.classify = nn.Linear(c.width, c.classes)
        self.instance = nn.Linear(c.width, 2 * c.classes)  # of each class: "is not of it", "is of it"

    def forward(self, batch: Batch) -> Output:
        """One logit per case.

        Raises:
            MissingInput: a case has no tile.
        """
        tiles, present = read(batch, "clam", self.config.tile_features)
        embedded = self.embed_tiles(tiles, present)
        pooled, attention = self.pool(embedded, present)
        losses = {}
        if self.training and batch.label is not None:
            weight = (1 - self.config.bag_weight) / self.config.bag_weight
            losses["instance"] = weight * self.instance_loss(embedded, attention, present, batch.label)
        return Output(log_odds(self.class_scores(pooled)), losses, {"slide": attention})

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """None: no volume goes in."""
        return ()

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return ("slide",)

    def embed_tiles(self, tiles: Float[Tensor, "B N F"], present: Bool[Tensor, "B N"]) -> Float[Tensor, "B N E"]:
        if self.scale is not None:
            tiles = self.scale(tiles, present)
        embedded: Tensor = self.embed(tiles)
        return embedded

    def class_scores(self, pooled: Float[Tensor, "B K E"]) -> Float[Tensor, "B C"]:
        """Each class scores the pooled token of its own branch, or of the only one."""
        return (pooled * self.classify.weight).sum(dim=2) + self.classify.bias

    def instance_loss(
        self, embedded: Float[Tensor, "B N E"], attention: Float[Tensor, "B K N"], present: Bool[Tensor, "B N"], label: Int[Tensor, " B"]
    ) -> Float[Tensor, ""]:
        """How badly the tiles that count most and least are told apart, mean over the cases."""
        each = []
        for tiles, rows, here, own in zip(embedded, attention, present, label.tolist(), strict=True):
            parts = self.instances(tiles[here], rows[:, here], own)
            terms = [F.cross_entropy(z + self.config.margin * (1 - F.one_hot(t, 2)), t) for z, t in parts]
            each.append(torch.stack(terms).sum() / (self.config.classes if self.config.subtyping else 1))
        return torch.stack(each).mean()

    def instances(
        self, tiles: Float[Tensor, "N E"], attention: Float[Tensor, "K N"], label: int
    ) -> list[tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]]:
        """Scores and pseudo-labels of the sampled tiles, class by class.

        For the true class: those with most attention, descending, which belong to it, then those with least, ascending, which do not. Other
        classes count with `subtyping` alone: those with most attention do not belong to them.
        """
        count = min(self.config.sampled, len(tiles))
        scores = self.instance(tiles).unflatten(1, (-1, 2))
        found = []
        for k in range(self.config.classes):
            row = attention[k if len(attention) > 1 else 0]
            most = row.topk(count).indices
            if k == label:
                chosen = torch.cat([most, (-row).topk(count).indices])
                found.append((scores[chosen, k], (torch.arange(2 * count, device=row.device) < count).long()))
            elif self.config.subtyping:
                found.append((scores[most, k], torch.zeros_like(most)))
        return found


def reference_config(weights: Mapping[str, Tensor]) -> CLAMConfig:
    """The sizes of the official code's weights; what weights do not show has its default.

    Raises:
        BadCheckpoint: they are not CLAM's.
    """
    named = _ours(weights)
    try:
        width, features = named["embed.0.weight"].shape
        rows, hidden = named["pool.score.weight"].shape
        classes = len(named["classify.weight"])
    except (KeyError, ValueError) as error:
        raise BadCheckpoint(
            f"the weights are not those of CLAM with gated attention ({error}).", "Choose the file of such a model."
        ) from error
    if classes < 2:
        raise BadCheckpoint(f"the weights of CLAM know {classes} class; 2 or more are wanted.", "Choose another file.")
    return CLAMConfig(features, width, hidden, "single" if rows == 1 else "multi", classes)


def load_reference(model: CLAM, weights: Mapping[str, Tensor]) -> None:
    """Fill the model with a state dict of the official CLAM_SB or CLAM_MB, of one or several GPUs (`attention_net.module.`).

    Weights that were kept for prediction may lack the instance classifiers, which only training reads; they are then 0.

    Raises:
        BadCheckpoint: they do not fit.
    """
    given = _ours(weights)
    if not any(name.startswith("instance.") for name in given):
        given |= {f"instance.{name}": torch.zeros_like(value) for name, value in model.instance.state_dict().items()}
    fill(model, given, "CLAM")


def _ours(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official weights under our names; classifiers that stand alone there are rows of one here."""
    plain = {name: value for name, value in bare(weights).items() if not name.startswith("instance_loss_fn")}
    if any(re.match(r"attention_net\.\d\.\d\.weight", name) for name in plain):  # of Attn_Net, whose layers stand in `module`
        raise BadCheckpoint("the weights are those of CLAM without a gate in its attention; only gated ones can be read.", "Choose others.")
    matches = (re.match(r"(attention_net\.\d\.)attention_a\.0\.weight", name) for name in plain)
    attention = next((match[1] for match in matches if match), "attention_net.3.")
    names = {
        "attention_net.0.": "embed.0.",
        f"{attention}attention_a.0.": "pool.content.",  # its number tells whether a dropout stands before it
        f"{attention}attention_b.0.": "pool.gate.",
        f"{attention}attention_c.": "pool.score.",
        "classifiers.": "classify.",
        "instance_classifiers.": "instance.",
    }
    found = renamed(plain, names, "CLAM")
    for part in ("classify", "instance"):
        for kind in ("weight", "bias"):
            rows = sorted((name for name in found if re.fullmatch(rf"{part}\.\d+\.{kind}", name)), key=lambda name: int(name.split(".")[1]))
            if rows:
                found[f"{part}.{kind}"] = torch.cat([found.pop(name) for name in rows])
    return found
