"""Who trains, who chooses and who judges: folds that keep a patient together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort

NAMED = 5  # patients or centres an error names before it only counts


@dataclass(frozen=True)
class Split:
    """Indices of the cases that train, that choose (early stopping, calibration, threshold) and that judge.

    Args:
        number: of the fold; the cohort's own where it has a `fold` column. None where nobody judges.
    """

    train: tuple[int, ...]
    choose: tuple[int, ...]
    judge: tuple[int, ...]
    number: int | None = None


def folds(
    cases: Sequence[Case],
    count: int,
    seed: int,
    choose_share: float = 0.15,
    *,
    by_centre: bool = False,
    external: Iterable[str] = (),
) -> tuple[Split, ...]:
    """Outer folds, stratified by label and grouped by patient; the cohort's own `fold` column where it has one.

    Args:
        by_centre: each centre is judged by a model that saw none of it (in the order of their names; `count` is not used).
        external: centres that are locked: their cases are in no part of any split, and may lack a label.

    Raises:
        BadCohort: a label is missing, a class has too few patients, one patient stands in two folds, in two centres that are to
            be kept apart, or inside and outside the locked centres; a locked centre does not exist; `by_centre` meets a case
            without a centre, a cohort of one centre or one with folds of its own.
    """
    inside = _inside(cases, external)
    kept = [cases[k] for k in inside]
    labels, groups = _labels(kept), _groups(kept)
    if by_centre:
        number = _centre_numbers(kept, groups)
    elif any(case.fold is not None for case in kept):
        number = _given_numbers(kept, groups)
    else:
        number = _assign(labels, groups, count, seed)
    everyone = np.arange(len(kept))
    found = []
    for k in np.unique(number):
        split = _split(everyone[number != k], everyone[number == k], labels, groups, choose_share, seed)
        found.append(_moved(split, inside, int(k)))
    return tuple(found)


def whole(cases: Sequence[Case], seed: int, choose_share: float = 0.15, *, external: Iterable[str] = ()) -> Split:
    """All cases train or choose, none judges: for a model that is judged on another cohort.

    Args:
        external: as in `folds`.
    """
    inside = _inside(cases, external)
    kept = [cases[k] for k in inside]
    everyone = np.arange(len(kept))
    return _moved(_split(everyone, everyone[:0], _labels(kept), _groups(kept), choose_share, seed), inside, None)


def fewer(split: Split, cases: Sequence[Case], patients: int, seed: int, choose_share: float = 0.15) -> Split:
    """The same judges, but only so many patients who train or choose, both labels in their share: what fewer labels would have taught.

    Raises:
        BadCohort: there are not so many, or too few of a label among them.
    """
    labels, groups = _labels(cases), _groups(cases)
    rest = np.array(sorted({*split.train, *split.choose}))
    names, first = np.unique(groups[rest], return_index=True)
    if not 4 <= patients <= len(names):
        raise BadCohort(f"{patients} patients were asked for to learn from; a fold has {len(names)}.", f"Ask for 4 to {len(names)}.")
    if patients < len(names):
        names, _ = train_test_split(names, train_size=patients, stratify=labels[rest][first], random_state=seed)
    own = rest[np.isin(groups[rest], names)]
    return replace(_split(own, np.array(split.judge, dtype=int), labels, groups, choose_share, seed), number=split.number)


def _inside(cases: Sequence[Case], external: Iterable[str]) -> tuple[int, ...]:
    """Indices of the cases that are not locked away."""
    locked = set(external)
    centres = {case.centre for case in cases}
    if locked - centres:
        raise BadCohort(
            f"the external centre {min(locked - centres)!r} is not in the cohort; it has {', '.join(map(repr, sorted(centres)))}.",
            "Correct the name, letter by letter.",
        )
    groups = _groups(cases)
    both = {g for g, case in zip(groups, cases, strict=True) if case.centre in locked} & {
        g for g, case in zip(groups, cases, strict=True) if case.centre not in locked
    }
    if both:
        raise BadCohort(
            f"{_patients(both)} cases both inside and outside the external centres; what is locked must not be learned from.",
            "Remove these cases from one side.",
        )
    return tuple(k for k, case in enumerate(cases) if case.centre not in locked)


def _labels(cases: Sequence[Case]) -> np.ndarray:
    for case in cases:
        if case.label is None:
            raise BadCohort(f"case {case.case_id!r} has no label; training needs 0 or 1 for every case.", "Fill it in or remove the row.")
    return np.array([case.label for case in cases], dtype=int)


def _groups(cases: Sequence[Case]) -> np.ndarray:
    return np.array([case.patient_id or case.case_id for case in cases], dtype=str)


def _given_numbers(cases: Sequence[Case], groups: np.ndarray) -> np.ndarray:
    without = next((case.case_id for case in cases if case.fold is None), None)
    if without is not None:
        raise BadCohort(f"case {without!r} has no fold but others have one; all or none are wanted.", "Fill the column or remove it.")
    number = np.array([case.fold for case in cases], dtype=int)
    torn = _torn(groups, number)
    if torn:
        raise BadCohort(f"{_patients(torn)} cases in more than one fold of the cohort.", "Give all of a patient's cases one fold.")
    if len(set(number.tolist())) < 2:
        raise BadCohort(f"the cohort has only the fold {number[0]}; at least two are wanted.", "Fill the column or remove it.")
    return number


def _centre_numbers(cases: Sequence[Case], groups: np.ndarray) -> np.ndarray:
    given = next((case.case_id for case in cases if case.fold is not None), None)
    if given is not None:
        raise BadCohort(f"case {given!r} has a fold of its own, and folds by centre were asked for.", "Remove the column, or do not ask.")
    without = next((case.case_id for case in cases if not case.centre), None)
    if without is not None:
        raise BadCohort(f"case {without!r} has no centre; folds by centre need one for every case.", "Fill the column.")
    names = sorted({case.centre for case in cases})
    if len(names) < 2:
        raise BadCohort(f"the cohort has only the centre {names[0]!r}; folds by centre need two or more.", "Use folds by patient.")
    number = np.array([names.index(case.centre) for case in cases], dtype=int)
    torn = _torn(groups, number)
    if torn:
        raise BadCohort(f"{_patients(torn)} cases in more than one centre, which are to be kept apart.", "Give each patient one centre.")
    return number


def _torn(groups: np.ndarray, number: np.ndarray) -> set[str]:
    """Patients in more than one fold."""
    return {str(group) for group in set(groups.tolist()) if len(set(number[groups == group].tolist())) > 1}


def _patients(names: set[str]) -> str:
    """The subject of a sentence: patient 'A' has ..."""
    shown = ", ".join(map(repr, sorted(map(str, names))[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"patient {shown} has" if len(names) == 1 else f"patients {shown}{more} have"


def _fewest(labels: np.ndarray, groups: np.ndarray) -> int:
    """Patients of the rarer class."""
    return min(len(set(groups[labels == label])) for label in (0, 1))


def _counted(patients: int) -> str:
    return f"{patients} patient{'' if patients == 1 else 's'}"


def _assign(labels: np.ndarray, groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    patients = _fewest(labels, groups)
    if patients < count:
        raise BadCohort(
            f"a class has {_counted(patients)}; {count} folds need at least {count} of each.", "Use fewer folds or more patients."
        )
    number = np.zeros(len(labels), dtype=int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for k, (_, judge) in enumerate(splitter.split(labels, labels, groups)):
        number[judge] = k
    return number


def _split(rest: np.ndarray, judge: np.ndarray, labels: np.ndarray, groups: np.ndarray, share: float, seed: int) -> Split:
    patients = _fewest(labels[rest], groups[rest])
    if patients < 2:
        raise BadCohort(
            f"a class has {_counted(patients)} beside those who judge; one must train and one choose the epoch.",
            "Use other folds or more patients.",
        )
    parts = max(2, min(round(1 / share), patients))  # a small cohort lets a larger share choose, so that both classes are in it
    inner = _assign(labels[rest], groups[rest], parts, seed + 1)
    return Split(tuple(rest[inner != 0].tolist()), tuple(rest[inner == 0].tolist()), tuple(judge.tolist()))


def _moved(split: Split, inside: Sequence[int], number: int | None) -> Split:
    """The same split in indices of the whole cohort."""
    train, choose, judge = (tuple(inside[k] for k in part) for part in (split.train, split.choose, split.judge))
    return Split(train, choose, judge, number)
