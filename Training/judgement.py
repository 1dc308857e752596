"""From the logits of a trained fold to its tables: calibration, threshold, and who was judged how, with all inputs and without each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
ZONE = 0.10  # probabilities this near the threshold are "I do not know"


def zone_around(threshold: float) -> tuple[float, float]:
    """Probabilities for which the model says that it does not know."""
    return max(0.0, threshold - ZONE), min(1.0, threshold + ZONE)


def calibrate(label: Int[np.ndarray, " N"], logit: Float[np.ndarray, " N"]) -> tuple[Calibration, float]:
    """Slope, intercept and Youden's threshold from cases that did not train."""
    fit = metrics.logistic(label, logit, SLOPE_PRIOR)
    (a, b), (_, d) = fit.covariance.tolist()
    calibration = Calibration(fit.slope, fit.intercept, ((a, b), (b, d)))
    return calibration, metrics.youden(label, calibration(logit))


def prediction_rows(cases: Sequence[Case], role: str, probability: Float[np.ndarray, " N"], threshold: float) -> list[dict[str, object]]:
    """Lines of `predictions.csv`."""
    zone = zone_around(threshold)
    return [
        {
            "case_id": case.case_id, "patient_id": case.patient_id, "centre": case.centre, "role": role,
            "label": case.label, "probability": p, "decision": decide(p, threshold, zone),
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
    folder: Path, cases: Sequence[Case], logit: Mapping[str, Float[np.ndarray, " N"]], calibration: Calibration, threshold: float
) -> None:
    """One table for each input that was withheld, read as `predictions.csv` is: same calibration, same threshold."""
    for name, values in logit.items():
        write_cohort(folder / f"{WITHOUT}{name}.csv", prediction_rows(cases, "judge", calibration(values), threshold))
