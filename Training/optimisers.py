"""Optimisers, and learning rates that fall in steps, as the authors of the comparison methods use them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import Lookahead
from torch import nn

from Training.experiment import Experiment

MOMENTUM = 0.9


def build(experiment: Experiment, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all parameters that learn; a group's `factor` multiplies its learning rate."""
    rate, decay = experiment.learning_rate, experiment.weight_decay
    spared = experiment.optimiser == "lookahead_radam"  # TransMIL's authors let no bias and no norm decay
    parts: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = 10.0 if name.startswith(experiment.tenfold) else 1.0
            parts.setdefault((factor, 0.0 if spared and parameter.ndim == 1 else decay), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": some, "factor": factor, "weight_decay": its_decay} for (factor, its_decay), some in parts.items()
    ]
    if experiment.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM)
    if experiment.optimiser == "lookahead_radam":
        # timm's steps back every 6th time to halfway, Zhang et al. 2019; decoupled decay as in the authors' RAdam
        lookahead: torch.optim.Optimizer = Lookahead(torch.optim.RAdam(groups, lr=rate, decoupled_weight_decay=True))
        return lookahead
    kind = torch.optim.Adam if experiment.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate)


def decayed(experiment: Experiment, epoch: int, inner: Sequence[float]) -> float:
    """Factor on the learning rate of an epoch.

    Args:
        inner: inner-validation losses of the epochs before.
    """
    best, since, halvings = math.inf, 0, 0
    for loss in inner if experiment.plateau else ():
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since >= experiment.plateau:
            halvings, since = halvings + 1, 0
    return 0.1 ** sum(epoch >= step for step in experiment.decay_at) * 0.5**halvings
