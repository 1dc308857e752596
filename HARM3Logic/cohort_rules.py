"""What is wrong between the rows and columns of a cohort table; part of harm3 check. Standard library only."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations
from typing import Literal

from HARM3Logic.case import MRI, Case
from HARM3Logic.cohort import DATES, FILE_COLUMNS, Table

FEW_CASES = 10  # of a centre; below, leave-one-centre-out says little
RARE = 0.1  # share of a class below which five folds hold too few of it


@dataclass(frozen=True)
class Problem:
    """Something to mend or to look at.

    Args:
        case_id: empty where it is the cohort as a whole.
        column: of the table; empty where it is not one.
        severity: error: prediction or training would stop or be wrong; warning: look at it.
        message, advice: what is wrong, with its value; what to do.
    """

    case_id: str
    column: str
    severity: Literal["error", "warning"]
    code: str
    message: str
    advice: str


def table_problems(table: Table) -> Iterator[Problem]:
    """The faults of a table, and what its rows and columns say against each other."""
    for fault in table.faults:
        yield error(fault.case_id, fault.column, "table", f"The cohort {fault.message}", fault.advice)
    for rule in (_missing_files, _inputs, _labels, _centres, _patients, _folds, _dates):
        yield from rule(table)


def error(case_id: str, column: str, code: str, message: str, advice: str) -> Problem:
    return Problem(case_id, column, "error", code, message, advice)


def warning(case_id: str, column: str, code: str, message: str, advice: str) -> Problem:
    return Problem(case_id, column, "warning", code, message, advice)


def _missing_files(table: Table) -> Iterator[Problem]:
    for case in table.cases:
        for name, paths in case.inputs.items():
            for path in paths:
                if not path.exists():
                    yield error(case.case_id, name, "missing_file", f"{name}: there is no file {str(path)!r}.", "Check the path.")


def _inputs(table: Table) -> Iterator[Problem]:
    counts = Counter(name for case in table.cases for name in case.inputs)
    for case in table.cases:
        if not any(case.clinical.values()) and not any(name in case.inputs for name in (*MRI, "ct", "slide")):
            message = "The case has no MRI volume, no CT, no slide and no clinical value."
            yield error(case.case_id, "", "no_image", message, "Name its files or remove the row.")
            continue
        for name in FILE_COLUMNS:
            if counts[name] > len(table.cases) / 2 and name not in case.inputs:
                have = f"{counts[name]} of {len(table.cases)} cases have one"
                yield warning(case.case_id, name, "missing_input", f"The case has no {name}; {have}.", "Add it if it exists.")


def _labels(table: Table) -> Iterator[Problem]:
    faulty = {(f.case_id, f.column) for f in table.faults}
    without = [c for c in table.cases if c.label is None and (c.case_id, "label") not in faulty]
    labels = [c.label for c in table.cases if c.label is not None]
    if not labels:
        if table.cases:
            yield warning("", "label", "no_labels", "No case has a label: the cohort can be predicted, not trained on.", "Add 1 or 0.")
        return
    for case in without:
        message = f"The case has no label; {len(labels)} others have one, and training wants all."
        yield error(case.case_id, "label", "no_label", message, "Fill it in or remove the row.")
    share = sum(labels) / len(labels)
    if share in (0, 1):
        yield error("", "label", "one_class", f"All {len(labels)} labels are {labels[0]}; both classes are wanted.", "Check the labels.")
    elif not RARE <= share <= 1 - RARE:
        message = f"{sum(labels)} of {len(labels)} cases respond ({share:.0%}): intervals will be wide and folds may lack a class."
        yield warning("", "label", "rare_class", message, "Check that 1 means responder; use fewer folds.")


def _centres(table: Table) -> Iterator[Problem]:
    by_centre: dict[str, list[Case]] = defaultdict(list)
    for case in table.cases:
        by_centre[case.centre].append(case)
    if set(by_centre) <= {""}:
        if table.cases:
            yield warning("", "centre", "no_centre", "No case has a centre: centres can be neither held out nor compared.", "Add them.")
        return
    if "" in by_centre:
        for case in by_centre.pop(""):
            yield warning(case.case_id, "centre", "no_centre", "The case has no centre, though others have.", "Fill it in.")
    for one, other in combinations(sorted(by_centre), 2):
        if one.casefold().replace(" ", "") == other.casefold().replace(" ", ""):
            message = f"The centres {one!r} and {other!r} differ only in case or blanks and count as two."
            yield warning("", "centre", "centre_spelling", message, "Spell them alike.")
    for centre, cases in sorted(by_centre.items()):
        labels = {case.label for case in cases} - {None}
        if len(cases) < FEW_CASES:
            message = f"Centre {centre!r} has {len(cases)} cases; below {FEW_CASES} it says little when held out."
            yield warning("", "centre", "small_centre", message, "Know it when you read its results.")
        elif len(labels) == 1:
            message = f"All {len(cases)} cases of centre {centre!r} have the label {labels.pop()}: a model can learn the scanner instead."
            yield warning("", "centre", "one_class_centre", message, "Look at how its cases were chosen.")


def _patients(table: Table) -> Iterator[Problem]:
    without = [case.case_id for case in table.cases if not case.patient_id]
    if without:
        message = f"{len(without)} of {len(table.cases)} cases have no patient_id and count as patients of their own ({_few(without)})."
        yield warning("", "patient_id", "no_patient", message, "Fill it in where a patient has several cases.")
    for patient, cases in _by_patient(table.cases).items():
        labels = {case.label for case in cases} - {None}
        if len(labels) > 1:
            names = _few([case.case_id for case in cases])
            yield warning(cases[0].case_id, "label", "two_labels", f"Patient {patient!r} has both labels ({names}).", "Check them.")


def _folds(table: Table) -> Iterator[Problem]:
    given = {case.fold for case in table.cases} - {None}
    if not given:
        return
    faulty = {(f.case_id, f.column) for f in table.faults}
    for case in table.cases:
        if case.fold is None and (case.case_id, "fold") not in faulty:
            yield error(case.case_id, "fold", "no_fold", "The case has no fold, though others have one.", "Fill the column or empty it.")
    for patient, cases in _by_patient(table.cases).items():
        numbers = sorted({case.fold for case in cases if case.fold is not None})
        if len(numbers) > 1:
            message = f"Patient {patient!r} stands in the folds {', '.join(map(str, numbers))} ({_few([c.case_id for c in cases])})."
            yield error(cases[0].case_id, "fold", "patient_in_two_folds", message, "Give all of a patient's cases one fold.")
    for fold in sorted(number for number in given if number is not None):
        labels = {case.label for case in table.cases if case.fold == fold} - {None}
        if len(labels) == 1:
            message = f"All labels of fold {fold} are {labels.pop()}; without both classes it has no AUC."
            yield error("", "fold", "one_class_fold", message, "Deal the cases out again, or leave the column out.")
    if len(given) == 1:
        message = f"Every case stands in fold {given.pop()}; at least two folds are wanted."
        yield error("", "fold", "one_fold", message, "Fill the column or remove it.")


def _dates(table: Table) -> Iterator[Problem]:
    if not table.cases:
        return
    if not any(row.get(name) for row in table.rows for name in DATES):
        message = f"The cohort gives no {' and '.join(DATES)}: that pre comes before post cannot be checked."
        yield warning("", DATES[0], "no_dates", message, "Add the days of the scans as YYYY-MM-DD.")
        return
    for case, row in zip(table.cases, table.rows, strict=True):
        days = {}
        for name in DATES:
            text = row.get(name, "")
            try:
                days[name] = date.fromisoformat(text) if text else None
            except ValueError:
                message = f"{name} is {text!r}; a day as YYYY-MM-DD is wanted."
                yield error(case.case_id, name, "bad_date", message, "Correct it.")
                continue
            if not text:
                yield warning(case.case_id, name, "no_date", f"The case has no {name}, though others have one.", "Fill it in.")
        pre, post = (days.get(name) for name in DATES)
        if pre and post and pre >= post:
            message = f"date_pre {pre} is not before date_post {post}."
            yield error(case.case_id, DATES[0], "dates_swapped", message, "Check whether pre and post are swapped.")


def _by_patient(cases: Iterable[Case]) -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.patient_id:
            found[case.patient_id].append(case)
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def summary(cases: Sequence[Case]) -> str:
    """A sentence about the cohort: cases, patients, responders, centres."""
    if not cases:
        return "No cases were read."
    labels = [case.label for case in cases if case.label is not None]
    patients = len({case.patient_id or f"case {case.case_id}" for case in cases})
    centres = Counter(case.centre for case in cases if case.centre)
    parts = [f"{len(cases)} cases of {patients} patients"]
    if labels:
        parts.append(f"{sum(labels)} of {len(labels)} respond ({sum(labels) / len(labels):.0%})")
    if centres:
        parts.append("centres " + ", ".join(f"{name}: {count}" for name, count in sorted(centres.items())))
    return "; ".join(parts) + "."
