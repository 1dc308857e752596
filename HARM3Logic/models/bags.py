"""What the models share that read nothing but the slide: bags, the logit of several classes, the names of published weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from HARM3Logic.batch import Batch
from HARM3Logic.errors import BadCheckpoint, MissingInput

RESPONDER = 1  # the class whose log-odds are the logit


def read(batch: Batch, model: str, width: int) -> tuple[Float[Tensor, "B N F"], Bool[Tensor, "B N"]]:
    """The tiles of each case, and which of them are there.

    Raises:
        MissingInput: a case has no tile, or the tiles have another width.
    """
    tiles, present = batch.need("tiles", "tile_mask")
    if not present.any(dim=1).all():
        raise MissingInput(f"a case has no slide; {model} reads nothing else.", "Load one or choose a checkpoint that reads MRI.")
    if tiles.shape[-1] != width:
        raise MissingInput(
            f"the tiles have {tiles.shape[-1]} features; the model needs {width}.", "Use the tile encoder the checkpoint names."
        )
    return tiles, present


def log_odds(scores: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    """The responder's score less the (log of the summed exponentials of the) others': with two classes z1 - z0."""
    others = [k for k in range(scores.shape[1]) if k != RESPONDER]
    return scores[:, RESPONDER] - scores[:, others].logsumexp(dim=1)


def bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of the network itself, without those of DataParallel (`module.`, anywhere) and Lightning (`model.`)."""
    return {name.replace("module.", "").removeprefix("model."): torch.as_tensor(value) for name, value in weights.items()}


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str], source: str) -> dict[str, Tensor]:
    """Weights under our names.

    Args:
        names: start of the source's name to ours; the first that fits counts.
        source: of the weights, for the message.

    Raises:
        BadCheckpoint: a weight has no counterpart.
    """
    found = {}
    for name, value in weights.items():
        start = next((start for start in names if name.startswith(start)), None)
        if start is None:
            raise BadCheckpoint(f"the weights of {source} hold {name!r}, which it does not have.", "Choose the file of that model.")
        found[names[start] + name.removeprefix(start)] = value
    return found
