"""The tables of a batch: the cohort that goes in, the predictions that come out."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from HARM3Logic.case import INPUTS, MASKS, Case, case_from_fields
from HARM3Logic.errors import BadCohort
from HARM3SlicerLib import words

ANSWERS = {"responder": "likely", "non-responder": "unlikely", "uncertain": "I do not know"}
CLINICAL = "clinical."  # prefix of clinical columns


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Case, probability, interval, answer and truth of a row of predictions.csv, as text."""
    low, high = float(row["low"]), float(row["high"])
    truth = {"1": "responder", "0": "non-responder"}.get(str(row.get("label", "")), "")
    interval = f"{100 * low:.0f} to {words.percent(high)}"
    return str(row["case_id"]), words.percent(float(row["probability"])), interval, ANSWERS.get(str(row.get("decision")), ""), truth


def readRows(file: Path) -> list[dict[str, Any]]:
    """The rows of a predictions.csv; none when it cannot be read or is another table."""
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error):
        return []
    return [row for row in rows if row.get("case_id") and row.get("probability") and row.get("low") and row.get("high")]


def cohortCase(cohort: Path, caseId: str) -> Case:
    """One row of a cohort table as a case.

    Raises:
        BadCohort: the table cannot be read or has no such case.
        BadCase: the row says something a case cannot be.
    """
    try:
        with open(cohort, newline="", encoding="utf-8-sig") as stream:
            row = next((row for row in csv.DictReader(stream) if row.get("case_id") == caseId), None)
    except (OSError, ValueError, csv.Error) as error:
        raise BadCohort(f"the cohort table {str(cohort)!r} cannot be read ({error}).", "Check the path.") from error
    if row is None:
        raise BadCohort(f"case {caseId!r} is not in {str(cohort)!r}.", "Choose the table the batch was made from.")
    values = {key: value for key, value in row.items() if key and value}
    inputs: dict[str, Any] = {}
    for name in (*INPUTS, *MASKS):
        text = values.pop(name, "")
        if text and name != "clinical":
            inputs[name] = [part.strip() for part in text.split(";")] if name == "slide" else text
    clinical = {key[len(CLINICAL) :]: value for key, value in values.items() if key.startswith(CLINICAL)}
    return case_from_fields({**values, "inputs": inputs, "clinical": clinical}, cohort.parent, f"{cohort.name}, case {caseId!r}")
