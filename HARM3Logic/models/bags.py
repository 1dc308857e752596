"""Bags of tiles as models read them, and the logit of several classes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from HARM3Logic.batch import Batch
from HARM3Logic.errors import MissingInput

RESPONDER = 1  # the class whose log-odds are the logit


def read(batch: Batch, model: str, width: int) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B N"]]:
    """The tiles of each case, and which of them are there.

    Raises:
        MissingInput: a case has no tile, or the tiles have another width.
    """
    tiles, present = batch.need("tiles", "tile_mask")
    if not present.any(dim=1).all():
        raise MissingInput(f"a case has no slide; {model} reads nothing else.", "Load one or choose a checkpoint that reads MRI.")
    return _of_width(tiles, width), present


def read_any(batch: Batch, width: int) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B N"]]:
    """The same for models of MRI that do without slides: where no case has one, a bag of one absent tile for each.

    Raises:
        MissingInput: the tiles have another width.
    """
    if batch.tiles is None or batch.tile_mask is None:
        (mri,) = batch.need("mri")
        return mri.new_zeros(len(mri), 1, width), torch.zeros(len(mri), 1, dtype=torch.bool, device=mri.device)
    return _of_width(batch.tiles, width), batch.tile_mask


def _of_width(tiles: Float[Tensor, "B N F"], width: int) -> Float[Tensor, "B N F"]:
    if tiles.shape[-1] != width:
        raise MissingInput(
            f"the tiles have {tiles.shape[-1]} features; the model needs {width}.", "Use the tile encoder the checkpoint names."
        )
    return tiles


def log_odds(scores: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """The responder's score less the (log of the summed exponentials of the) others': with two classes z1 - z0."""
    others = [k for k in range(scores.shape[1]) if k != RESPONDER]
    return scores[:, RESPONDER] - scores[:, others].logsumexp(dim=1)
