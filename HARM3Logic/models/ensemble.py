"""The models of several folds as one.

    Batch --member 1..M--> logits (M B) --scale and shift of each--> log-odds (M B) --mean--> logit (B)

Members overfit differently, so that their logits have different spreads; what each learned from its choosing cases puts them on one
scale before the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from HARM3Logic.batch import Batch
from HARM3Logic.models.harm3_fusion import HARM3Fusion, HARM3FusionConfig
from HARM3Logic.models.output import CamLayer, Output


@dataclass(frozen=True)
class EnsembleConfig(HARM3FusionConfig):
    """Of one member, which all others equal, and their number."""

    members: int = 5


class Ensemble(nn.Module):
    """The mean of models that differ in their weights only."""

    scale: Tensor
    shift: Tensor

    def __init__(self, config: EnsembleConfig = EnsembleConfig()) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(HARM3Fusion(config) for _ in range(config.members))
        self.register_buffer("scale", torch.ones(config.members))
        self.register_buffer("shift", torch.zeros(config.members))

    def forward(self, batch: Batch) -> Output:
        """One logit per case.

        Raises:
            MissingInput: as a member raises it.
        """
        outputs: list[Output] = [member(batch) for member in self.members]
        logit = self._log_odds(torch.stack([output.logit for output in outputs])).mean(dim=0)
        attention = {name: torch.stack([output.attention[name] for output in outputs]).mean(dim=0) for name in outputs[0].attention}
        losses = {name: torch.stack([output.losses[name] for output in outputs]).mean() for name in outputs[0].losses}
        return Output(logit, losses, attention)

    def sample(self, batch: Batch, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n B"]:
        """Logits under n draws of the latents, each by the next member in turn: where they disagree the ensemble is unsure."""
        generator = generator or torch.Generator().manual_seed(0)
        count = len(self.members)
        drawn = []
        for k, member in enumerate(self.members):
            turns = len(range(k, n, count))
            if turns:
                assert isinstance(member, HARM3Fusion)
                drawn.append(self.scale[k] * member.sample(batch, turns, generator) + self.shift[k])
        return torch.cat(drawn)

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """Those of all members: an input has as many as there are members."""
        return tuple(layer for member in self.members for layer in self._member(member).cam_layers())

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return self._member(self.members[0]).inputs()

    def _log_odds(self, logits: Float[Tensor, "M B"]) -> Float[Tensor, "M B"]:
        return self.scale[:, None] * logits + self.shift[:, None]

    @staticmethod
    def _member(member: nn.Module) -> HARM3Fusion:
        assert isinstance(member, HARM3Fusion)
        return member
