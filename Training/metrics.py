"""Numbers that say how good predictions are, with intervals.

Bootstraps draw patients, stratified by label. A draw is a row of weights (how often each case is in it), so that a metric of all
draws is one product of matrices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import norm

from HARM3Logic.errors import HARM3Error

DRAWS = 2000
LEVEL = (0.025, 0.975)
Z = float(norm.ppf(LEVEL[1]))
THRESHOLDS = np.arange(1, 20) / 20  # of a decision curve: 0.05 to 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; not a number where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "-"
        return f"{self.value:.3f}" + (f" ({self.low:.3f}-{self.high:.3f})" if math.isfinite(self.low) else "")


def resample(
    label: Int[np.ndarray, " N"], patient: Sequence[str] | None = None, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "K N"]:
    """How often each case is in each bootstrap draw; patients are drawn, within those who have a positive case and the others.

    Args:
        patient: of each case; None where each case is a patient.
    """
    groups = np.arange(len(label)) if patient is None else np.unique(np.asarray(patient), return_inverse=True)[1]
    positive = np.zeros(groups.max() + 1, dtype=bool)
    np.logical_or.at(positive, groups, label == 1)
    rng = np.random.default_rng(seed)
    times = np.zeros((draws, len(positive)))
    for members in (np.flatnonzero(positive), np.flatnonzero(~positive)):
        if len(members):
            times[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return times[:, groups]


def interval(value: float, draws: Float[np.ndarray, " K"]) -> Estimate:
    """The value with the percentiles of its bootstrap draws; draws in which it is not defined are left out."""
    kept = draws[np.isfinite(draws)]
    if not kept.size or not math.isfinite(value):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(kept, LEVEL)
    return Estimate(float(value), float(low), float(high))


def auc(
    label: Int[np.ndarray, " N"],
    score: Float[np.ndarray, " N"],
    draws: int = DRAWS,
    seed: int = 0,
    patient: Sequence[str] | None = None,
) -> Estimate:
    """Area under the ROC curve; the interval is a bootstrap over patients, stratified by label."""
    p, n = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if not (p.size and n.size):
        return Estimate(math.nan, math.nan, math.nan)
    wins = (score[p][:, None] > score[n]) + 0.5 * (score[p][:, None] == score[n])
    weights = resample(label, patient, draws, seed)
    drawn = np.einsum("kn,kn->k", weights[:, p] @ wins, weights[:, n])
    pairs = weights[:, p].sum(axis=1) * weights[:, n].sum(axis=1)
    return interval(float(wins.mean()), _ratio(drawn, pairs))


def average_precision(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], weights: Float[np.ndarray, "K N"] | None = None
) -> Float[np.ndarray, " K"]:
    """Area under the precision-recall curve, in steps; one value per row of weights."""
    weights = np.ones((1, len(label))) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each group of equal scores
    all_, hits = (np.cumsum(w[:, order], axis=1)[:, last] for w in (weights, weights * label))
    recall_gain = np.diff(hits, axis=1, prepend=0)
    precision = np.divide(hits, all_, out=np.zeros_like(hits), where=all_ > 0)
    return _ratio((recall_gain * precision).sum(axis=1), hits[:, -1])


def wilson(hits: float, count: float) -> Estimate:
    """A share with Wilson's interval."""
    if count <= 0:
        return Estimate(math.nan, math.nan, math.nan)
    share, spread = hits / count, Z * Z / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def decisions(label: Int[np.ndarray, " N"], called: Bool[np.ndarray, " N"], weights: Float[np.ndarray, "K N"]) -> dict[str, Estimate]:
    """What follows from yes and no: shares with Wilson's interval, the others with the interval of the bootstrap draws.

    Args:
        called: responder or not, each case by its own threshold.

    Raises:
        HARM3Error: the accuracy does not lie between sensitivity and specificity.
    """
    cells = np.stack([called & (label == 1), called & (label == 0), ~called & (label == 1), ~called & (label == 0)], axis=1).astype(float)
    tp, fp, fn, tn = cells.sum(axis=0).tolist()
    found = {
        "accuracy": wilson(tp + tn, tp + fp + fn + tn),
        "sensitivity": wilson(tp, tp + fn),
        "specificity": wilson(tn, tn + fp),
        "ppv": wilson(tp, tp + fp),
        "npv": wilson(tn, tn + fn),
    }
    refuse_impossible(*(found[name].value for name in ("accuracy", "sensitivity", "specificity")))
    drawn = _summaries(weights @ cells)
    point = _summaries(cells.sum(axis=0, keepdims=True))
    found |= {name: interval(float(point[name][0]), drawn[name]) for name in point}
    return found


def _summaries(cells: Float[np.ndarray, "K 4"]) -> dict[str, Float[np.ndarray, " K"]]:
    tp, fp, fn, tn = cells.T
    f1 = _ratio(2 * tp, 2 * tp + fp + fn, 0.0)
    other = _ratio(2 * tn, 2 * tn + fp + fn, 0.0)
    under = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return {
        "balanced_accuracy": (_ratio(tp, tp + fn) + _ratio(tn, tn + fp)) / 2,
        "mcc": _ratio(tp * tn - fp * fn, under, 0.0),
        "f1_positive": f1,
        "f1_macro": (f1 + other) / 2,
    }


def _ratio(over: np.ndarray, under: np.ndarray, otherwise: float = math.nan) -> np.ndarray:
    return np.divide(over, under, out=np.full(np.shape(over), otherwise, dtype=float), where=under > 0)


def refuse_impossible(accuracy: float, sensitivity: float, specificity: float, slack: float = 1e-9) -> None:
    """Accuracy is a mean of sensitivity and specificity, weighted by the share of responders, and so lies between them.

    Args:
        slack: for numbers that were rounded, one unit of their last digit.

    Raises:
        HARM3Error: it does not.
    """
    low, high = min(sensitivity, specificity), max(sensitivity, specificity)
    if accuracy < low - slack or accuracy > high + slack:
        raise HARM3Error(
            f"an accuracy of {accuracy:.4f} is impossible with a sensitivity of {sensitivity:.4f} and a specificity of {specificity:.4f}; "
            "it must lie between them.",
            "Take all three from the same cases at the same threshold.",
        )


def net_benefit(
    label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"], thresholds: Float[np.ndarray, " T"] = THRESHOLDS
) -> Float[np.ndarray, " T"]:
    """Net benefit per patient of acting on the model at each threshold; ones as probabilities give "treat all", none gives 0.

    Source: Vickers and Elkin 2006.
    """
    called = probability[:, None] >= thresholds
    hits, alarms = (called & (label == 1)[:, None]).mean(axis=0), (called & (label == 0)[:, None]).mean(axis=0)
    benefit: Float[np.ndarray, " T"] = hits - alarms * thresholds / (1 - thresholds)
    return benefit


@dataclass(frozen=True)
class Logistic:
    """label ~ sigmoid(slope * logit + intercept), with the covariance of (slope, intercept)."""

    slope: float
    intercept: float
    covariance: Float[np.ndarray, "2 2"]


def logistic(label: Int[np.ndarray, " N"], logit: Float[np.ndarray, " N"], prior_spread: float = np.inf) -> Logistic:
    """Maximum-likelihood slope and intercept of a recalibration.

    Args:
        prior_spread: standard deviation of a log-normal prior of the slope round 1; keeps it sane on few cases.
    """

    def cost(x: Float[np.ndarray, "2"]) -> float:
        z = np.exp(x[0]) * logit + x[1]
        return float(np.sum(np.logaddexp(0, z) - label * z) + 0.5 * (x[0] / prior_spread) ** 2)

    found = minimize(cost, np.zeros(2), method="BFGS")
    slope, intercept = float(np.exp(found.x[0])), float(found.x[1])
    p = expit(slope * logit + intercept)
    design = np.stack([logit, np.ones_like(logit)], axis=1)
    information = design.T @ (design * (p * (1 - p))[:, None])
    information[0, 0] += (1 - np.log(slope)) / (slope * prior_spread) ** 2
    return Logistic(slope, intercept, np.linalg.inv(information))


def youden(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> float:
    """The threshold with the largest sensitivity + specificity - 1, half-way to the next lower probability."""
    values, at = np.unique(probability, return_inverse=True)
    events, others = np.bincount(at, label == 1), np.bincount(at, label == 0)
    found, kept = events[::-1].cumsum()[::-1], others.cumsum() - others  # at or above each value; below it
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])
    return float(cuts[np.argmax(found * others.sum() + kept * events.sum())])
