"""What attention over variables says of two groups, how much each variable matters to the answers, and how well both find what was planted.

Plain functions of arrays: N patients, V variables. Every fold's model pays attention in its own way, so that groups are compared within
folds alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, rankdata

from Training import metrics
from Training.comparison import benjamini_hochberg
from Training.metrics import Estimate

LEVEL = 0.05  # false among all findings
LEAST = 1e-12  # share, for its logarithm
MOST = 2 / 3  # of a variable's ratios to others


@dataclass(frozen=True)
class Contrast:
    """Attention to one variable, responders against non-responders.

    Args:
        responders, others: means.
        larger: probability that a responder's is larger than a non-responder's of the same fold, ties half; 0.5 says nothing.
        p, q: two-sided, and after Benjamini-Hochberg over the variables.
    """

    name: str
    responders: float
    others: float
    larger: float
    z: float
    p: float
    q: float

    @property
    def found(self) -> bool:
        return self.q <= LEVEL


def stratified(
    values: Float[np.ndarray, "N V"], label: Int[np.ndarray, " N"], fold: Sequence[str]
) -> tuple[Float[np.ndarray, " V"], Float[np.ndarray, " V"]]:
    """Of each column the probability that a responder's value is the larger one within a fold, and z of the test that it is a half.

    With one fold this is the Mann-Whitney test (normal approximation, ties allowed for). A fold without one of the groups says nothing.

    Source: van Elteren 1960: ranks within each stratum of size n, weighed by 1 / (n + 1).

    Raises:
        ValueError: no fold has both groups, or values are no numbers.
    """
    shift, variance, most = np.zeros(values.shape[1]), np.zeros(values.shape[1]), 0.0
    for name in dict.fromkeys(fold):
        own = np.flatnonzero(np.array(fold) == name)
        responder = label[own] == 1
        m, n = int(responder.sum()), int((~responder).sum())
        if not (m and n):
            continue
        ranks, weight = rankdata(values[own], axis=0), 1 / (m + n + 1)
        shift += weight * (ranks[responder].sum(axis=0) - m * (m + n + 1) / 2)
        variance += weight**2 * m * n * ranks.var(axis=0, ddof=1) / (m + n)
        most += weight * m * n / 2
    if not most or not np.isfinite(values).all():
        raise ValueError(f"{int((label == 1).sum())} responders and {int((label != 1).sum())} others cannot be compared within folds")
    z = np.divide(shift, np.sqrt(variance), out=np.zeros_like(shift), where=variance > 0)
    return 0.5 + 0.5 * shift / most, z


def contrasts(
    attention: Float[np.ndarray, "N V"], label: Int[np.ndarray, " N"], names: Sequence[str], fold: Sequence[str]
) -> list[Contrast]:
    """Each variable's test; one that gets the same attention from everyone has p = 1.

    Raises:
        ValueError: no fold has both groups, or values are no numbers.
    """
    larger, z = stratified(attention, label, fold)
    p = 2 * norm.sf(np.abs(z))
    means = [attention[label == group].mean(axis=0).tolist() for group in (1, 0)]
    return [
        Contrast(*row) for row in zip(names, *means, larger.tolist(), z.tolist(), p.tolist(), benjamini_hochberg(p).tolist(), strict=True)
    ]


def relative(attention: Float[np.ndarray, "N V"], label: Int[np.ndarray, " N"], fold: Sequence[str]) -> Float[np.ndarray, " V"]:
    """p-values of each variable's ratios to all others, after Benjamini-Hochberg over the variables.

    Shares of one whole pull at each other: where one variable gets more, all others get less, and would be found too. Their ratios to
    each other stay as they were. A variable counts where two thirds of its ratios differ, so that fewer than a third of the variables
    may move together. Their p-values are merged as 3/2 of the quantile at 2/3, which holds however they depend on each other.

    Source: ratios to all others, Mandal et al. 2015 (ANCOM); the merging, Ruschendorf 1982. The threshold is ours.
    """
    count = attention.shape[1]
    if count < 2:
        return np.ones(count)
    logs = np.log(np.maximum(attention, LEAST))
    first, second = np.triu_indices(count, 1)
    p = 2 * norm.sf(np.abs(stratified(logs[:, first] - logs[:, second], label, fold)[1]))
    pairs = [p[(first == v) | (second == v)] for v in range(count)]
    merged = [min(1.0, float(np.quantile(own, MOST, method="higher")) / MOST) for own in pairs]
    return benjamini_hochberg(merged)


def auc_drop(
    label: Int[np.ndarray, " N"],
    score: Float[np.ndarray, " N"],
    changed: Float[np.ndarray, "R N"],
    patient: Sequence[str] | None = None,
    draws: int = metrics.DRAWS,
    seed: int = 0,
) -> tuple[Estimate, float]:
    """AUC of the scores minus the mean AUC of what they become, with a bootstrap over patients of both at once, and the one-sided p.

    Args:
        changed: scores of the same cases, one row for each repetition.
    """
    p, n = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if not (p.size and n.size):
        return Estimate(math.nan, math.nan, math.nan), math.nan
    lost = _wins(score, p, n) - np.mean([_wins(row, p, n) for row in changed], axis=0)
    weights = metrics.resample(label, patient, draws, seed)
    drawn = np.einsum("kn,kn->k", weights[:, p] @ lost, weights[:, n])
    drawn /= weights[:, p].sum(axis=1) * weights[:, n].sum(axis=1)
    spread = float(np.nanstd(drawn, ddof=1))
    return metrics.interval(float(lost.mean()), drawn), float(norm.sf(lost.mean() / spread)) if spread else 1.0


def _wins(score: Float[np.ndarray, " N"], p: Int[np.ndarray, " P"], n: Int[np.ndarray, " M"]) -> Float[np.ndarray, "P M"]:
    """1 where the positive case has the larger score, a half where both have the same: the AUC is its mean."""
    wins: Float[np.ndarray, "P M"] = (score[p][:, None] > score[n]) + 0.5 * (score[p][:, None] == score[n])
    return wins


def shares(drops: Mapping[str, Estimate]) -> dict[str, float]:
    """Each input's part of what all lose, an input without which the AUC does not fall having none; not numbers where none falls."""
    falls = {name: max(0.0, drop.value) for name, drop in drops.items()}
    total = sum(falls.values())
    return {name: fall / total if total > 0 else math.nan for name, fall in falls.items()}


@dataclass(frozen=True)
class Recovery:
    """How well a test finds the variables that decide, over several cohorts.

    Args:
        sensitivity: share of the planted variables that were found, of all cohorts together; Wilson's interval.
        false_discoveries: variables that were found and not planted, of each cohort.
        false_share: mean over cohorts of the share of false among all findings, 0 where nothing was found: what Benjamini-Hochberg
            keeps at 0.05 or less.
        found: variable to the number of cohorts in which it was found.
    """

    cohorts: int
    sensitivity: Estimate
    false_discoveries: tuple[int, ...]
    false_share: float
    found: Mapping[str, int]


def recovery(findings: Sequence[Collection[str]], planted: Collection[str], names: Sequence[str]) -> Recovery:
    """What was found in each cohort against what was planted.

    Args:
        names: of all variables.

    Raises:
        ValueError: nothing was judged, or what is planted or found is no variable.
    """
    strange = {*planted, *(name for found in findings for name in found)} - set(names)
    if strange or not findings or not planted:
        raise ValueError(
            f"of {len(findings)} cohorts and {len(planted)} planted variables these are none of the variables: {sorted(strange)}"
        )
    right = [len(set(found) & set(planted)) for found in findings]
    wrong = tuple(len(set(found) - set(planted)) for found in findings)
    return Recovery(
        cohorts=len(findings),
        sensitivity=metrics.wilson(sum(right), len(findings) * len(set(planted))),
        false_discoveries=wrong,
        false_share=float(np.mean([b / max(1, a + b) for a, b in zip(right, wrong, strict=True)])),
        found={name: sum(name in found for found in findings) for name in names},
    )


def plain(value: Any) -> Any:
    """As JSON wants it: what is no number is null."""
    if isinstance(value, Estimate):
        return {"value": plain(value.value), "low": plain(value.low), "high": plain(value.high)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
