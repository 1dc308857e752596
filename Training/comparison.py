"""Is one model better than another: paired tests on the same cases, corrected for many tests and for overlapping training sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata, t

from Training.metrics import LEVEL, Estimate, Z

POWER = float(norm.ppf(0.8))


@dataclass(frozen=True)
class Difference:
    """Of two AUCs.

    Args:
        detectable: the smallest true difference that a test at 5 % would find in 80 % of studies of this size.
    """

    difference: Estimate
    variance: float
    z: float
    p: float
    detectable: float


def delong(
    label: Int[np.ndarray, " N"], *scores: Float[np.ndarray, " N"], patient: Sequence[str] | None = None
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, "M M"]]:
    """AUC of each score and their covariance.

    Args:
        patient: of each case; cases of one patient are not independent. None: each case is a patient's only one.

    Source: DeLong, DeLong and Clarke-Pearson 1988, by the mid-ranks of Sun and Xu 2014; several cases of a patient: Obuchowski 1997.
    """
    positive, negative = label == 1, label == 0
    m, n = int(positive.sum()), int(negative.sum())
    if min(m, n) < 2:
        raise ValueError(f"{m} positive and {n} negative cases; two of each are needed for a variance")
    of_positive, of_negative = np.empty((len(scores), m)), np.empty((len(scores), n))
    for k, score in enumerate(scores):
        ranks = rankdata(score)
        of_positive[k] = (ranks[positive] - rankdata(score[positive])) / n
        of_negative[k] = 1 - (ranks[negative] - rankdata(score[negative])) / m
    area = of_positive.mean(axis=1)
    if patient is None or len(set(patient)) == len(label):
        return area, np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n
    _, who = np.unique(np.asarray(patient), return_inverse=True)
    sums = []
    for side, values in ((positive, of_positive), (negative, of_negative)):
        of_patient = np.stack([np.bincount(who[side], row, who.max() + 1) for row in values - area[:, None]])
        sums.append(of_patient / side.sum())
    patients, with_positive, with_negative = (len(set(part.tolist())) for part in (who, who[positive], who[negative]))
    x, y = sums
    cross = x @ y.T * patients / (patients - 1)
    weighed = x @ x.T * with_positive / max(1, with_positive - 1) + y @ y.T * with_negative / max(1, with_negative - 1)
    return area, weighed + cross + cross.T


def auc_delong(label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], patient: Sequence[str] | None = None) -> Estimate:
    """AUC with DeLong's interval, cut to [0, 1]; not a number where there are fewer than two cases of a label.

    An AUC of 1 (or 0) has the exact bound of a share of 1 among the patients of the rarer label.

    Args:
        patient: as in `delong`.
    """
    if min(np.sum(label == 1), np.sum(label == 0)) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    (value,), ((variance,),) = (x.tolist() for x in delong(label, score, patient=patient))
    half = Z * math.sqrt(max(variance, 0.0))
    if value in (0.0, 1.0):  # all pairs in order, or none: the spread is 0, and what so few cases leave open is not
        half = 1 - (1 - LEVEL[1]) ** (1 / min(len(_of_label(label, patient, kind)) for kind in (0, 1)))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def _of_label(label: Int[np.ndarray, " N"], patient: Sequence[str] | None, kind: int) -> set[Any]:
    """The patients that have a case of a label; the cases, where none is named."""
    rows = np.flatnonzero(label == kind).tolist()
    return set(rows if patient is None else (patient[k] for k in rows))


def paired(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], other: Float[np.ndarray, " N"], patient: Sequence[str] | None = None
) -> Difference:
    """AUC of `other` minus that of `score`, both of the same cases; two-sided p."""
    return paired_means(label, [score], [other], patient)


def paired_means(
    label: Int[np.ndarray, " N"],
    scores: Sequence[Float[np.ndarray, " N"]],
    others: Sequence[Float[np.ndarray, " N"]],
    patient: Sequence[str] | None = None,
) -> Difference:
    """Mean AUC of several models minus that of several others, all of the same cases; two-sided p, for other cases and these models.

    Not a number where there are fewer than two cases of a label.

    Args:
        patient: as in `delong`.
    """
    if min(np.sum(label == 1), np.sum(label == 0)) < 2:
        return Difference(Estimate(*[math.nan] * 3), *[math.nan] * 4)
    areas, covariance = delong(label, *scores, *others, patient=patient)
    sign = np.repeat([-1 / len(scores), 1 / len(others)], [len(scores), len(others)])
    return _difference(float(sign @ areas), float(sign @ covariance @ sign))


def unpaired(
    label: Int[np.ndarray, " N"], score: Float[np.ndarray, " N"], other_label: Int[np.ndarray, " M"], other_score: Float[np.ndarray, " M"]
) -> Difference:
    """AUC on other cases minus that on the first, of which no patient is among them; two-sided p."""
    (first, one), (second, two) = delong(label, score), delong(other_label, other_score)
    return _difference(float(second[0] - first[0]), float(one[0, 0] + two[0, 0]))


def _difference(step: float, variance: float) -> Difference:
    spread = math.sqrt(max(variance, 0.0))
    if spread <= 1e-12:  # both put the cases in the same order, or both are all right or all wrong, which says nothing of other cases
        same = abs(step) <= 1e-12
        return Difference(Estimate(step, *[0.0 if same else math.nan] * 2), variance, *((0.0, 1.0, 0.0) if same else [math.nan] * 3))
    low, high = step - Z * spread, step + Z * spread
    return Difference(Estimate(step, low, high), variance, step / spread, float(2 * norm.sf(abs(step / spread))), (Z + POWER) * spread)


def holm(p: Sequence[float]) -> Float[np.ndarray, " M"]:
    """p-values so adjusted that any false finding at all is as rare as the level says (Holm 1979); what is not a number is no test."""
    return _adjusted(p, lambda values: np.maximum.accumulate(np.sort(values) * np.arange(len(values), 0, -1)))


def benjamini_hochberg(p: Sequence[float]) -> Float[np.ndarray, " M"]:
    """p-values so adjusted that the share of false among all findings is as small as the level says (1995)."""
    return _adjusted(p, lambda values: np.minimum.accumulate(np.sort(values)[::-1] * len(values) / np.arange(len(values), 0, -1))[::-1])


def _adjusted(p: Sequence[float], steps: Callable[[np.ndarray], np.ndarray]) -> Float[np.ndarray, " M"]:
    """Each p with what `steps` makes of them in rising order, at most 1."""
    adjusted = np.array(p, dtype=float)
    known = np.flatnonzero(np.isfinite(adjusted))
    order = known[np.argsort(adjusted[known], kind="stable")]
    adjusted[order] = np.minimum(steps(adjusted[known]), 1.0)
    return adjusted


def over_folds(values: Sequence[float], train: float, test: float) -> tuple[Estimate, float, float]:
    """Mean over folds with an interval that knows that their training sets overlap, and t and p of the mean against 0.

    Args:
        values: one figure, or one difference of two models, for each fold.
        train, test: cases that trained and judged in a fold, on average.

    Source: Nadeau and Bengio 2003: variance (1/k + test/train) s^2, t with k - 1 degrees of freedom.
    """
    folds = np.asarray(values, dtype=float)
    folds = folds[np.isfinite(folds)]
    k = len(folds)
    if k < 2 or train <= 0:
        return Estimate(float(folds.mean()) if k else math.nan, math.nan, math.nan), math.nan, math.nan
    mean = float(folds.mean())
    spread = math.sqrt((1 / k + test / train) * float(folds.var(ddof=1)))
    half = float(t.ppf(LEVEL[1], k - 1)) * spread
    score = mean / spread if spread else math.copysign(math.inf, mean) if mean else 0.0
    return Estimate(mean, mean - half, mean + half), score, float(2 * t.sf(abs(score), k - 1))
