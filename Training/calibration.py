"""Do probabilities mean what they say: recalibration, reliability, expected error, Brier score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit, logit

from Training.metrics import Estimate, Z, interval

EDGE = 1e-6  # probabilities are kept this far from 0 and 1 where their logit is taken
SPAN = 0.75  # share of the cases a point of the smooth curve looks at
STEPS = 100


@dataclass(frozen=True)
class Reliability:
    """What was said and what came true, in bins that hold cases."""

    predicted: Float[np.ndarray, " B"]
    observed: Float[np.ndarray, " B"]
    count: Int[np.ndarray, " B"]

    @property
    def error(self) -> float:
        """Expected calibration error: the gap of each bin, weighted by its cases."""
        return float(np.sum(self.count * np.abs(self.observed - self.predicted)) / self.count.sum())


def log_odds(probability: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """The logit of each, finite."""
    kept: Float[np.ndarray, " N"] = logit(np.clip(probability, EDGE, 1 - EDGE))
    return kept


def recalibration(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> tuple[Estimate, Estimate]:
    """Intercept and slope of label ~ logit(probability), unpenalised, with Wald's interval; 0 and 1 are ideal.

    Not a number where the labels are perfectly told apart or there is only one probability.
    """
    z = log_odds(probability)
    found = _newton(label, np.stack([np.ones_like(z), z], axis=1), np.zeros(len(z)))
    if found is None:
        return Estimate(*[math.nan] * 3), Estimate(*[math.nan] * 3)
    (a, b), errors = found
    return tuple(Estimate(float(v), float(v - Z * e), float(v + Z * e)) for v, e in zip((a, b), errors, strict=True))  # type: ignore[return-value]


def in_the_large(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"]) -> Estimate:
    """The shift of all logits that would make the mean probability right; 0 is ideal."""
    z = log_odds(probability)
    found = _newton(label, np.ones((len(z), 1)), z)
    if found is None:
        return Estimate(*[math.nan] * 3)
    (value,), (error,) = found
    return Estimate(float(value), float(value - Z * error), float(value + Z * error))


def _newton(label: np.ndarray, design: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Coefficients and standard errors; None where there is no finite maximum."""
    x = np.zeros(design.shape[1])
    for _ in range(STEPS):
        p = expit(design @ x + offset)
        information = design.T @ (design * (p * (1 - p))[:, None])
        if not np.all(np.isfinite(information)) or np.linalg.cond(information) > 1e12:
            return None
        step = np.linalg.solve(information, design.T @ (label - p))
        x = x + step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-300))  # far from the maximum a full step may overshoot
        if np.abs(step).max() < 1e-10:
            return x, np.sqrt(np.diag(np.linalg.inv(information)))
    return None


def reliability(
    label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"], bins: int = 10, kind: Literal["mass", "width"] = "mass"
) -> Reliability:
    """Bins of equal mass (edges are percentiles; a probability on an edge belongs to the lower bin) or of equal width."""
    member = _members(probability, bins, kind)
    kept = [k for k in range(bins) if np.any(member == k)]
    predicted, observed = (np.array([values[member == k].mean() for k in kept]) for values in (probability, label))
    return Reliability(predicted, observed, np.array([np.sum(member == k) for k in kept]))


def _members(probability: np.ndarray, bins: int, kind: str) -> np.ndarray:
    edges = np.percentile(probability, np.linspace(0, 100, bins + 1)) if kind == "mass" else np.linspace(0, 1, bins + 1)
    return np.searchsorted(edges[1:-1], probability, side="left")


def smooth(probability: Float[np.ndarray, " N"], at: Float[np.ndarray, " M"], span: float = SPAN) -> Float[np.ndarray, "M N"]:
    """Weights of each case at each point of a smooth curve: tricube over the nearest `span` of the cases."""
    gap = np.abs(at[:, None] - probability)
    reach = np.sort(gap, axis=1)[:, min(len(probability), max(2, math.ceil(span * len(probability)))) - 1]
    near = np.clip(1 - (gap / np.maximum(reach, 1e-9)[:, None]) ** 3, 0, 1) ** 3
    return near


def smooth_curve(
    label: Int[np.ndarray, " N"],
    probability: Float[np.ndarray, " N"],
    at: Float[np.ndarray, " M"],
    weights: Float[np.ndarray, "K N"] | None = None,
) -> Float[np.ndarray, "K M"]:
    """Observed share as a function of the probability: a line fitted round each point (loess of degree 1), one curve per row of weights."""
    weights = np.ones((1, len(label))) if weights is None else weights
    near = smooth(probability, at)
    s0, s1, s2, y0, y1 = (
        weights @ (near * column).T for column in (np.ones_like(probability), probability, probability**2, label, label * probability)
    )
    spread = s0 * s2 - s1 * s1
    slope = np.divide(s0 * y1 - s1 * y0, spread, out=np.zeros_like(spread), where=spread > 1e-9 * s0 * s0)
    share = (y0 - slope * s1) / np.maximum(s0, 1e-12) + slope * at
    return np.clip(share, 0, 1)


def brier(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"], weights: Float[np.ndarray, "K N"]) -> Estimate:
    """Mean squared distance of probability and truth."""
    squared = (probability - label) ** 2
    return interval(float(squared.mean()), weights @ squared / weights.sum(axis=1))


def summary(label: Int[np.ndarray, " N"], probability: Float[np.ndarray, " N"], weights: Float[np.ndarray, "K N"]) -> dict[str, Estimate]:
    """All figures of calibration; intervals are Wald's for the recalibration, of the bootstrap draws for the others.

    Bins and reach of the smooth curve are those of the full data in every draw. ECE and ICI are means of absolute gaps: draws
    add noise to each gap, so that their interval may lie above the value.
    """
    intercept, slope = recalibration(label, probability)
    squared = (probability - label) ** 2
    total, responders = weights.sum(axis=1), (weights @ label)
    prevalence = responders / total
    member = _members(probability, 10, "mass")
    gaps = np.stack([(member == k) * (label - probability) for k in range(10)], axis=1)
    ece = np.abs(weights @ gaps).sum(axis=1) / total
    ici = np.sum(np.abs(smooth_curve(label, probability, probability, weights) - probability) * weights, axis=1) / total
    share = float(label.mean())
    chance = share * (1 - share)
    own = smooth_curve(label, probability, probability)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = 1 - (weights @ squared / total) / (prevalence * (1 - prevalence))
    return {
        "brier": brier(label, probability, weights),
        "scaled_brier": interval(1 - float(squared.mean()) / chance if chance else math.nan, scaled),
        "calibration_intercept": intercept,
        "calibration_slope": slope,
        "calibration_in_the_large": in_the_large(label, probability),
        "ece": interval(reliability(label, probability).error, ece),
        "ici": interval(float(np.abs(own - probability).mean()), ici),
    }
