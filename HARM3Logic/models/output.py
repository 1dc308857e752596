"""What every model gives back, and where its heatmaps can be taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Output:
    """Args:
    logit: of "responder".
    losses: by name, each already weighted; empty in evaluation mode.
    attention: by input, (B, Q, tokens of that input), rows sum to 1 (0 for an absent input).
    """

    logit: Float[Tensor, " B"]
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)
    attention: Mapping[str, Float[Tensor, "B Q L"]] = field(default_factory=dict)


@dataclass(frozen=True)
class CamLayer:
    """A module whose output (rows C d h w) Grad-CAM explains.

    Args:
        inputs: inputs it reads, in the order of its rows within a case; absent inputs have no row.
        by_place: each place counts with its own gradient, not with the mean of all: for tokens that attention chooses among, since a
            mean would light up those that nobody asked.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    by_place: bool = False
