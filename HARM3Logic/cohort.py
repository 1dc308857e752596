"""A cohort: a CSV table with one row per case."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HARM3Logic.case import INPUTS, MASKS, Case, case_from_fields
from HARM3Logic.errors import BadCase, BadCohort

FILE_COLUMNS = (*(name for name in INPUTS if name != "clinical"), *MASKS)
COLUMNS = ("case_id", "patient_id", "centre", *FILE_COLUMNS, "slide_mpp", "tumour_point_mm", "label", "fold")
CLINICAL = "clinical."  # prefix of clinical columns


def read_cohort(path: str | os.PathLike[str]) -> tuple[Case, ...]:
    """The cases of a cohort table, in its order; paths are relative to the file.

    Raises:
        BadCohort: the file cannot be read, a column is missing or unknown, a case stands twice or a value is wrong.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), list(reader.fieldnames or ())
    except OSError as error:
        raise BadCohort(f"cohort {str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadCohort(f"cohort {str(path)!r} is not a CSV table in UTF-8 ({error}).", "Save it as CSV UTF-8.") from error
    unknown = [c for c in columns if c not in COLUMNS and not (c or "").startswith(CLINICAL)]
    if "case_id" not in columns or unknown:
        wrong = f"has the unknown column {unknown[0]!r}" if unknown else "has no column 'case_id'"
        raise BadCohort(
            f"cohort {str(path)!r} {wrong}; the columns are {', '.join(COLUMNS)} and {CLINICAL}<variable>.",
            "Rename or remove the column.",
        )
    if not rows:
        raise BadCohort(f"cohort {str(path)!r} has no rows.", "Add one row per case.")
    cases = tuple(_case(row, line, path) for line, row in enumerate(rows, start=2))
    seen: dict[str, int] = {}
    for line, case in enumerate(cases, start=2):
        if case.case_id in seen:
            raise BadCohort(
                f"cohort {str(path)!r} has case_id {case.case_id!r} in lines {seen[case.case_id]} and {line}; each may stand once.",
                "Remove or rename one.",
            )
        seen[case.case_id] = line
    return cases


def _case(row: Mapping[str, Any], line: int, path: Path) -> Case:
    where = f"cohort {str(path)!r} line {line}"
    if None in row:
        raise BadCohort(f"{where} has more values than there are columns.", "Quote values that hold a comma.")
    values = {key: (value or "").strip() for key, value in row.items()}
    inputs = {name: [p.strip() for p in values[name].split(";")] for name in FILE_COLUMNS if values.get(name)}
    clinical = {key[len(CLINICAL) :]: value for key, value in values.items() if key.startswith(CLINICAL)}
    try:
        return case_from_fields({**values, "inputs": inputs, "clinical": clinical}, path.parent, where)
    except BadCase as error:
        message = error.message if error.message.startswith(where) else f"{where}: {error.message}"
        raise BadCohort(message, error.advice) from error


def write_cohort(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV table whole or not at all; the first row's keys are the columns."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
