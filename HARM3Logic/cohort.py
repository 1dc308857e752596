"""A cohort: a CSV table with one row per case."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from HARM3Logic.case import INPUTS, MASKS, Case, case_from_fields
from HARM3Logic.errors import BadCase, BadCohort
from HARM3Logic.writing import whole

FILE_COLUMNS = (*(name for name in INPUTS if name != "clinical"), *MASKS)
DATES = ("date_pre", "date_post")  # days of the scans, read by `harm3 check` alone
COLUMNS = ("case_id", "patient_id", "centre", *FILE_COLUMNS, "slide_mpp", "slide_encoder", "tumour_point_mm", *DATES, "label", "fold")
CLINICAL = "clinical."  # prefix of clinical columns


@dataclass(frozen=True)
class Fault:
    """Something in a table that cannot be.

    Args:
        case_id: whose row it is; empty for the table as a whole.
        column: where it stands; empty where it is not one column.
        message: what is wrong, as a sentence that begins after "cohort <path>".
    """

    case_id: str
    column: str
    message: str
    advice: str


@dataclass(frozen=True)
class Table:
    """What could be read of a cohort table, and all that could not.

    Args:
        columns: as the table has them.
        cases: in the table's order; a faulty value is left out, a row without any sense too.
        rows: each case's values as text.
    """

    columns: tuple[str, ...]
    cases: tuple[Case, ...]
    rows: tuple[Mapping[str, str], ...]
    faults: tuple[Fault, ...]


def read_cohort(path: str | os.PathLike[str]) -> tuple[Case, ...]:
    """The cases of a cohort table, in its order; paths are relative to the file.

    Raises:
        BadCohort: the file cannot be read, a column is missing or unknown, a case stands twice or a value is wrong.
    """
    table = scan_cohort(path)
    for fault in table.faults:
        raise BadCohort(f"cohort {str(path)!r} {fault.message}", fault.advice)
    return table.cases


def scan_cohort(path: str | os.PathLike[str]) -> Table:
    """A cohort table with all its faults, not only the first.

    Raises:
        BadCohort: the file cannot be read at all.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
            columns = [column or "" for column in reader.fieldnames or ()]
    except OSError as error:
        raise BadCohort(f"cohort {str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadCohort(f"cohort {str(path)!r} is not a CSV table in UTF-8 ({error}).", "Save it as CSV UTF-8.") from error
    other = next((mark for mark in ";\t" if len(columns) == 1 and mark in columns[0]), "")
    if other:
        name = {";": "semicolons", "\t": "tabulators"}[other]
        raise BadCohort(
            f"cohort {str(path)!r} has {name} between its values; commas are wanted.", "Save it with commas between the values."
        )
    faults = list(_column_faults(columns))
    if "case_id" not in columns:
        return Table(tuple(columns), (), (), tuple(faults))
    if not rows:
        faults.append(Fault("", "", "has no rows.", "Add one row per case."))
    cases: list[Case] = []
    texts: list[Mapping[str, str]] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        case, wrong = _case(row, line, path.parent)
        faults += wrong
        if case is None:
            continue
        if case.case_id in seen:
            message = f"has case_id {case.case_id!r} in lines {seen[case.case_id]} and {line}; each may stand once."
            faults.append(Fault(case.case_id, "case_id", message, "Remove or rename one."))
            continue
        seen[case.case_id] = line
        cases.append(case)
        texts.append({key: (value or "").strip() for key, value in row.items() if isinstance(key, str)})
    return Table(tuple(columns), tuple(cases), tuple(texts), tuple(faults))


def _column_faults(columns: Sequence[str]) -> Iterator[Fault]:
    known = f"the columns are {', '.join(COLUMNS)} and {CLINICAL}<variable>."
    if "case_id" not in columns:
        yield Fault("", "case_id", f"has no column 'case_id'; {known}", "Rename or add the column.")
    for k, column in enumerate(columns):
        if column not in COLUMNS and not column.startswith(CLINICAL):
            yield Fault("", column, f"has the unknown column {column!r}; {known}", "Rename or remove the column.")
        elif column in columns[:k]:
            yield Fault("", column, f"has the column {column!r} twice; each may stand once.", "Remove or rename one.")


def _case(row: Mapping[str, Any], line: int, folder: Path) -> tuple[Case | None, list[Fault]]:
    """A row's case without its faulty values, and a fault for each of these."""
    where = f"line {line}"
    if None in row:
        message = f"{where} has more values than there are columns."
        return None, [Fault((row["case_id"] or "").strip(), "", message, "Quote values that hold a comma.")]
    values = {key: (value or "").strip() for key, value in row.items()}
    try:
        return _made(values, folder, where), []
    except BadCase:
        return _value_by_value(values, line, folder)


def _value_by_value(values: Mapping[str, str], line: int, folder: Path) -> tuple[Case, list[Fault]]:
    """One value or several are wrong: each is tried by itself."""
    where = f"line {line}"
    faults: list[Fault] = []
    good: dict[str, str] = {}
    for column, value in {"case_id": values["case_id"], **values}.items():
        try:
            _made({"case_id": good.get("case_id", where), column: value}, folder, where)
            good[column] = value
        except BadCase as error:
            message = error.message if error.message.startswith(where) else f"{where}: {error.message}"
            faults.append(Fault(values["case_id"], column, message, error.advice))
    return _made({"case_id": where, **good}, folder, where), faults


def _made(values: Mapping[str, str], folder: Path, where: str) -> Case:
    inputs = {name: [p.strip() for p in values[name].split(";")] for name in FILE_COLUMNS if values.get(name)}
    clinical = {key[len(CLINICAL) :]: value for key, value in values.items() if key.startswith(CLINICAL)}
    return case_from_fields({**values, "inputs": inputs, "clinical": clinical}, folder, where)


def write_cohort(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV table whole or not at all; the first row's keys are the columns."""
    with whole(Path(path)) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
