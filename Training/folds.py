"""Who trains, who chooses and who judges: folds that keep a patient together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort


@dataclass(frozen=True)
class Split:
    """Indices of the cases that train, that choose (early stopping, calibration, threshold) and that judge."""

    train: tuple[int, ...]
    choose: tuple[int, ...]
    judge: tuple[int, ...]


def folds(cases: Sequence[Case], count: int, seed: int, choose_share: float = 0.15) -> tuple[Split, ...]:
    """Outer folds, stratified by label and grouped by patient; the cohort's own `fold` column where it has one.

    Raises:
        BadCohort: a label is missing, a class has too few patients, or one patient stands in two folds of the table.
    """
    labels, groups = _labels(cases), _groups(cases)
    given = [case.fold for case in cases]
    if any(f is not None for f in given):
        without = next((case.case_id for case in cases if case.fold is None), None)
        if without is not None:
            raise BadCohort(f"case {without!r} has no fold but others have one; all or none are wanted.", "Fill the column or remove it.")
        number = np.array(given)
        for group in set(groups):
            if len(set(number[groups == group])) > 1:
                raise BadCohort(f"patient {group!r} stands in more than one fold of the cohort.", "Give all of a patient's cases one fold.")
    else:
        number = _assign(labels, groups, count, seed)
    everyone = np.arange(len(cases))
    return tuple(_split(everyone[number != k], everyone[number == k], labels, groups, choose_share, seed) for k in np.unique(number))


def whole(cases: Sequence[Case], seed: int, choose_share: float = 0.15) -> Split:
    """All cases train or choose, none judges: for a model that is judged on another cohort."""
    everyone = np.arange(len(cases))
    return _split(everyone, everyone[:0], _labels(cases), _groups(cases), choose_share, seed)


def _labels(cases: Sequence[Case]) -> np.ndarray:
    for case in cases:
        if case.label is None:
            raise BadCohort(f"case {case.case_id!r} has no label; training needs 0 or 1 for every case.", "Fill it in or remove the row.")
    return np.array([case.label for case in cases])


def _groups(cases: Sequence[Case]) -> np.ndarray:
    return np.array([case.patient_id or case.case_id for case in cases])


def _assign(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    patients = min((len(set(groups[labels == label])) for label in (0, 1)), default=0)
    if patients < count:
        raise BadCohort(
            f"a class has {patients} patients; {count} folds need at least {count} of each.", "Use fewer folds or more patients."
        )
    number = np.zeros(len(labels), dtype=int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for k, (_, judge) in enumerate(splitter.split(labels, labels, groups)):
        number[judge] = k
    return number


def _split(rest: np.ndarray, judge: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> Split:
    parts = max(2, round(1 / share))
    inner = _assign(labels[rest], groups[rest], parts, seed + 1)
    return Split(tuple(rest[inner != 0].tolist()), tuple(rest[inner == 0].tolist()), tuple(judge.tolist()))
