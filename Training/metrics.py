"""Numbers that say how good predictions are, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def auc(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], draws: int = 2000, seed: int = 0) -> Estimate:
    """Area under the ROC curve; the interval is a bootstrap over patients, stratified by label."""
    rng = np.random.default_rng(seed)
    positive, negative = score[label == 1], score[label == 0]
    values = np.empty(draws)
    for k in range(draws):
        p, n = rng.choice(positive, len(positive)), np.sort(rng.choice(negative, len(negative)))
        below, upto = np.searchsorted(n, p, "left"), np.searchsorted(n, p, "right")
        values[k] = (below + upto).mean() / (2 * len(n))
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(roc_auc_score(label, score)), float(low), float(high))


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
    order = np.sort(np.unique(probability))
    cuts = np.concatenate([[order[0] / 2], (order[1:] + order[:-1]) / 2])
    sensitivity = np.array([(probability[label == 1] >= c).mean() for c in cuts])
    specificity = np.array([(probability[label == 0] < c).mean() for c in cuts])
    return float(cuts[np.argmax(sensitivity + specificity)])
