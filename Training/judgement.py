"""From the logits of a trained fold to its tables: calibration, threshold, and who was judged how, with all inputs and without each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from HARM3Logic.case import Case
from HARM3Logic.checkpoint import Calibration
from HARM3Logic.cohort import write_cohort
from HARM3Logic.explain import leave_one_out
from HARM3Logic.predict import decide
from Training import feed, metrics
from Training.cache import Cache
from Training.runs import WITHOUT

SLOPE_PRIOR = 0.25  # spread of log(slope) before any case is seen
DRAWS = 500
CENTRAL = (0.05, 0.95)  # of the thresholds that other cases of the same kind would have given


@dataclass(frozen=True)
class Rule:
    """From which probability on a case is called a responder, and between which two the model says that it does not know."""

    threshold: float
    zone: tuple[float, float]

    def __call__(self, probability: float) -> str:
        return decide(probability, self.threshold, self.zone)


def calibrate(label: Int[np.ndarray, " N"], logit: Float[np.ndarray, " N"]) -> tuple[Calibration, Rule]:
    """Slope, intercept and decision rule from cases that did not train: Youden's threshold, and the range in which it may as well lie.

    The range is that of the thresholds of bootstrap draws: between them the cases at hand do not say which answer is better.
    """
    fit = metrics.logistic(label, logit, SLOPE_PRIOR)
    (a, b), (_, d) = fit.covariance.tolist()
    calibration = Calibration(fit.slope, fit.intercept, ((a, b), (b, d)))
    probability = calibration(logit)
    threshold = metrics.youden(label, probability)
    low, high = np.quantile(_drawn(label, probability), CENTRAL).tolist()
    return calibration, Rule(threshold, (min(low, threshold), max(high, threshold)))


def _drawn(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> list[float]:
    """Youden's threshold of bootstrap draws, each with as many of both kinds as there are."""
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(label == value) for value in (0, 1)]
    draws = [np.concatenate([rng.choice(kind, len(kind)) for kind in kinds]) for _ in range(DRAWS)]
    return [metrics.youden(label[draw], probability[draw]) for draw in draws]


def prediction_rows(cases: Sequence[Case], role: str, probability: Float[np.ndarray, " N"], rule: Rule) -> list[dict[str, object]]:
    """Lines of `predictions.csv`."""
    return [
        {
            "case_id": case.case_id, "patient_id": case.patient_id, "centre": case.centre, "role": role,
            "label": case.label, "probability": p, "decision": rule(p),
        }
        for case, p in zip(cases, probability.tolist(), strict=True)
    ]  # fmt: skip


def logits_without(
    model: nn.Module, cache: Cache, wanted: Sequence[int], logit: Float[np.ndarray, " N"], device: torch.device
) -> dict[str, Float[np.ndarray, " N"]]:
    """Input to the logits of the named cases without it, all inputs of a case in one forward.

    A case that lacks the input, or whose only volume it is, keeps its own logit; an input no case can do without is not in the result.

    Args:
        logit: of these cases with all they have.
    """
    model.eval()
    found: dict[str, Float[np.ndarray, " N"]] = {}
    for place, (batch, _, _) in enumerate(feed.batches(cache, feed.groups(wanted, 1))):
        for name, value in leave_one_out(model, batch.to(device)).items():
            found.setdefault(name, logit.copy())[place] = value
    return found


def write_without(
    folder: Path, cases: Sequence[Case], logit: Mapping[str, Float[np.ndarray, " N"]], calibration: Calibration, rule: Rule
) -> None:
    """One table for each input that was withheld, read as `predictions.csv` is: same calibration, same threshold."""
    for name, values in logit.items():
        write_cohort(folder / f"{WITHOUT}{name}.csv", prediction_rows(cases, "judge", calibration(values), rule))
