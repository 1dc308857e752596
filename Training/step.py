"""One step of a training: all losses of a batch, and their gradient, in as many pieces as memory asks for."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from HARM3Logic.batch import Batch
from HARM3Logic.errors import BadCohort, BadOption, HARM3Error, OutOfMemory
from Training.experiment import Experiment

if TYPE_CHECKING:
    from lightning_fabric import Fabric


Stage = Literal["masks", "fusion", "response"]
UNLABELLED = ("recon", "kl", "contra", "tumour_change")  # what teaches a fusion without labels: LD-VAE's eqs. 4 and 5, and masks


class Losses(nn.Module):
    """The losses of a batch by name, of tensors by name: Fabric cannot look into a frozen `Batch`.

    `stage` says which: those that masks teach the trunk, those that need no label, or all with that of the response.
    """

    stage: Stage = "response"

    def __init__(self, model: nn.Module, positive_weight: float) -> None:
        super().__init__()
        self.model, self.positive_weight = model, positive_weight

    def forward(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch = Batch(**tensors)
        if self.stage == "masks":
            return self.model.mask_losses(batch) if hasattr(self.model, "mask_losses") else {}  # type: ignore[operator]
        if self.stage == "fusion":
            found = self.model(dataclasses.replace(batch, label=None)).losses
            return {name: found[name] for name in UNLABELLED if name in found}
        output = self.model(batch)
        (label,) = batch.need("label")
        return {"bce": bce(output.logit.float(), label.float(), self.positive_weight), **output.losses}


@dataclass
class Trainee:
    """All that changes while a model is trained.

    Args:
        losses: around the same model, as Fabric runs it.
        micro: cases that go through the model at once.
    """

    experiment: Experiment
    fabric: Fabric
    model: nn.Module
    losses: nn.Module
    average: AveragedModel | None
    optimiser: torch.optim.Optimizer
    micro: int

    @property
    def judged(self) -> nn.Module:
        return self.average.module if self.average is not None else self.model


def gradients(trainee: Trainee, batch: Batch, names: Sequence[str], share: float, kl: float) -> dict[str, float]:
    """Leave the gradient of the batch in the parameters; its losses. Halves the micro-batch until it fits into memory.

    Args:
        share: of the step's cases that this process holds.
        kl: factor on the KL term.
    """
    while True:
        try:
            return _accumulate(trainee, batch, names, share, kl)
        except torch.cuda.OutOfMemoryError as error:
            most = min(trainee.micro, len(batch))
            if most == 1 or trainee.fabric.world_size > 1:  # the others of a group are waiting already
                raise OutOfMemory(
                    f"the device {trainee.fabric.device} has too little memory for {most} cases at once.",
                    "Use a smaller model or volume." if most == 1 else f"Set micro_batch={most // 2} in the experiment.",
                ) from error
            trainee.micro = (most + 1) // 2
        tqdm.write(f"out of memory: from now on {trainee.micro} cases at once; their gradients are added up", sys.stderr)
        torch.cuda.empty_cache()  # nothing without a GPU


def _accumulate(trainee: Trainee, batch: Batch, names: Sequence[str], share: float, kl: float) -> dict[str, float]:
    fabric, starts = trainee.fabric, range(0, len(batch), trainee.micro)
    sums: dict[str, float] = {}
    trainee.optimiser.zero_grad(set_to_none=True)
    for start in starts:
        rows = torch.arange(start, min(start + trainee.micro, len(batch)))
        part = (batch if len(starts) == 1 else batch.take(rows)).to(fabric.device)
        weight = share * len(rows) / len(batch)
        with fabric.no_backward_sync(trainee.losses, enabled=fabric.world_size > 1 and start != starts[-1]):
            losses = trainee.losses(part.tensors())
            if not losses:
                raise _nothing_to_learn(trainee.losses.module.stage, names)
            if "kl" in losses:
                losses["kl"] = losses["kl"] * kl
            stacked = torch.stack([value.float() for value in losses.values()])
            # a group takes the mean of its processes' gradients
            fabric.backward(stacked.sum() * (weight * fabric.world_size))
        for name, value in zip(losses, stacked.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + weight * value
    return sums


def _nothing_to_learn(stage: Stage, names: Sequence[str]) -> HARM3Error:
    if stage == "fusion":
        return BadOption(
            "the experiment has fusion_epochs, and its model neither has an LD-VAE nor learns from masks what therapy changed.",
            "Set fusion_epochs=0.",
        )
    return BadCohort(
        f"the experiment begins with tumour masks, and {', '.join(names)} have none or the model does not use them.",
        "Give masks or set mask_epochs=0.",
    )


def bce(logit: Tensor, label: Tensor, positive_weight: float) -> Tensor:
    """Mean cross-entropy; a responder's counts `positive_weight` times."""
    weight = None if positive_weight == 1 else torch.full_like(logit[:1], positive_weight)
    return F.binary_cross_entropy_with_logits(logit, label, pos_weight=weight)
