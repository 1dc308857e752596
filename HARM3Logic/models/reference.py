"""Weights of other people's code under our names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from HARM3Logic.errors import BadCheckpoint


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


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights under our names into a model, all of them or none.

    Args:
        source: what they were read from, for the message.

    Raises:
        BadCheckpoint: a weight is missing, unknown, or of another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own or weights[name].shape != own[name].shape:
            found = tuple(weights[name].shape) if name in weights else "nothing"
            wanted = tuple(own[name].shape) if name in own else "nothing"
            raise BadCheckpoint(
                f"the weights of {source} do not fit: {name} is {found}, the model wants {wanted}.",
                "Build the model with the widths and inputs the weights were made for.",
            )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
