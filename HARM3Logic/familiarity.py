"""How unlike the training data an input looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from HARM3Logic.batch import Prepared
from HARM3Logic.case import MRI

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MARGIN = 1.5  # ours: how much farther than the farthest training case still counts as alike


@dataclass(frozen=True)
class Reference:
    """Mean and spread of one input's description over the training cases, and the distance that is still familiar."""

    mean: Float[np.ndarray, " F"]
    spread: Float[np.ndarray, " F"]
    limit: float

    def distance(self, description: Float[np.ndarray, " F"]) -> float:
        """Root mean square of the standardised differences; about 1 for a training case."""
        return float(np.sqrt(np.mean(((description - self.mean) / self.spread) ** 2)))


def describe(case: Prepared) -> dict[str, Float[np.ndarray, " F"]]:
    """A few numbers per present input: contrast and texture of a volume, mean and spread of a slide's features."""
    found: dict[str, Float[np.ndarray, " F"]] = {}
    if case.mri is not None and case.mri_mask is not None and case.body is not None:
        shown, volumes = case.mri_mask.flatten(), case.mri.flatten(0, 1)
        found = {name: _volume(volumes[k], case.body) for k, name in enumerate(MRI) if shown[k]}
    if case.ct is not None:
        found["ct"] = _volume(case.ct, case.ct > -1)  # above the window's lower end
    if case.tiles is not None and len(case.tiles):
        found["slide"] = torch.cat([case.tiles.mean(dim=0), case.tiles.std(dim=0, unbiased=False)]).double().numpy()
    return found


def _volume(volume: Float[Tensor, "D H W"], body: Tensor) -> Float[np.ndarray, " F"]:
    inside = volume[body]
    numbers = [torch.quantile(inside, torch.tensor(QUANTILES)), (inside**3).mean()[None]]
    for axis in range(3):
        steps = volume.diff(dim=axis)[body.narrow(axis, 1, body.shape[axis] - 1)]
        numbers.append(torch.stack([steps.abs().mean(), steps.abs().quantile(0.95) if steps.numel() else steps.sum()]))
    return torch.cat(numbers).double().numpy()


def learn(cases: Iterable[Prepared]) -> dict[str, Reference]:
    """What is familiar, from the training cases."""
    seen: dict[str, list[Float[np.ndarray, " F"]]] = {}
    for case in cases:
        for name, description in describe(case).items():
            seen.setdefault(name, []).append(description)
    references = {}
    for name, rows in seen.items():
        table = np.stack(rows)
        spread = table.std(axis=0) + 1e-3 * (np.abs(table).mean() + 1e-6)  # a constant column must not divide by nothing
        reference = Reference(table.mean(axis=0), spread, 0.0)
        farthest = max(1.0, *(reference.distance(row) for row in rows))  # an input seen once has no distance of its own
        references[name] = Reference(reference.mean, spread, MARGIN * farthest)
    return references


def unfamiliar(case: Prepared, references: Mapping[str, Reference]) -> dict[str, float]:
    """Present inputs farther from the training cases than any of those, with the distance in units of the limit."""
    distances = {name: references[name].distance(d) / references[name].limit for name, d in describe(case).items() if name in references}
    return {name: ratio for name, ratio in distances.items() if ratio > 1}
