"""Clinical values in Slicer: the form a checkpoint's schema asks for, what its variables may be, values out of a table node.

The schema is that of the checkpoint's card: {"variables": [{"name", "kind": "numeric|binary|categorical|ordinal", "unit", "allowed",
"range", "description", "title"}]}. Values are text, as in case.json; nothing and the words of `UNKNOWN` mean that a value is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from HARM3Logic.errors import BadClinical

UNKNOWN = ("", "?", "-", "na", "n/a", "nan", "none", "null", "unknown", "not known", "missing")  # unless a variable allows the word
YES_NO = ({"no", "0", "false"}, {"yes", "1", "true"})  # words that stand for each other where a binary variable uses any of them
LONGEST_UNIT = 16  # characters beside a variable's name
PREFIX = "clinical."  # of the columns of a cohort table


@dataclass(frozen=True)
class Variable:
    """A clinical variable of the form.

    Args:
        kind: numeric, binary, categorical or ordinal; "" where the card does not say: anything goes.
        allowed: the values it may have; empty for a number.
        range: least and greatest number that can be meant.
    """

    name: str
    kind: str = ""
    unit: str = ""
    allowed: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    description: str = ""
    title: str = ""

    @property
    def label(self) -> str:
        """Name and unit as the form shows them; a long unit is left to `help`."""
        words = self.name.replace("_", " ")
        return (self.title or f"{words[:1].upper()}{words[1:]}") + (f" ({self.unit})" if 0 < len(self.unit) <= LONGEST_UNIT else "")

    @property
    def help(self) -> str:
        """What it means and what it may be."""
        if self.allowed:
            may = ", ".join(self.allowed) + "; or not known."
        else:
            may = "" if self.range is None else f"{self.range[0]:g} to {self.range[1]:g}, or nothing where it is not known."
        unit = f"In {self.unit}." if self.unit else ""
        return " ".join(part for part in (self.description, unit, may) if part)

    def read(self, text: str) -> str:
        """The value as a case has it: in the schema's spelling, "" for unknown.

        Raises:
            BadClinical: it cannot be meant.
        """
        text = text.strip()
        word = text.casefold()
        for allowed in self.allowed:
            if word == allowed.casefold():
                return allowed
        if word in UNKNOWN:
            return ""
        if self.kind == "numeric":
            return self._number(text)
        same = [a for group in YES_NO if word in group for a in self.allowed if a.casefold() in group]
        if self.kind == "binary" and same:
            return same[0]
        if not self.allowed:
            return text
        raise BadClinical(f"{self.name} is {text!r}; {', '.join(self.allowed)} or nothing is wanted.", "Correct it or leave it empty.")

    def _number(self, text: str) -> str:
        unit = f" in {self.unit}" if self.unit else ""
        plain = text.replace(",", ".") if text.count(",") == 1 and "." not in text else text  # a decimal comma
        try:
            number = float(plain)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadClinical(f"{self.name} is {text!r}; a number{unit} or nothing is wanted.", "Correct it or leave it empty.")
        if self.range is not None and not self.range[0] <= number <= self.range[1]:
            between = f"{self.range[0]:g} to {self.range[1]:g}{unit}"
            raise BadClinical(f"{self.name} is {text}; {between} is possible.", "Check the value and its unit.")
        return plain


def variablesOf(schema: Any) -> tuple[Variable, ...]:
    """The variables of a card's schema.

    Raises:
        BadClinical: it is no such schema.
    """
    rows = schema.get("variables") if isinstance(schema, Mapping) else schema
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, Mapping) and row.get("name") for row in rows):
        raise BadClinical("the checkpoint's list of clinical variables cannot be read.", "Get the checkpoint again.")
    found = []
    for row in rows:
        ends = row.get("range")
        try:
            between = None if not ends else (float(ends[0]), float(ends[1]))
        except (TypeError, ValueError, IndexError) as error:
            raise BadClinical(f"the checkpoint gives {row['name']} the range {ends!r}.", "Get the checkpoint again.") from error
        allowed = tuple(str(value) for value in row.get("allowed") or ())
        texts = {key: str(row.get(key) or "") for key in ("name", "kind", "unit", "description", "title")}
        found.append(Variable(allowed=allowed, range=between, **texts))
    return tuple(found)


def readAll(variables: Iterable[Variable], values: Mapping[str, Any]) -> dict[str, str]:
    """The known values of a case, in the schema's spelling; without variables all of them as they are.

    Raises:
        BadClinical: a value cannot be meant.
    """
    texts = {str(name): "" if value is None else str(value).strip() for name, value in values.items()}
    variables = tuple(variables)
    if variables:
        texts = {variable.name: variable.read(texts.get(variable.name, "")) for variable in variables}
    return {name: text for name, text in texts.items() if text}


def problem(variables: Iterable[Variable], values: Mapping[str, Any]) -> str:
    """What is wrong with the values in a sentence; empty when nothing is."""
    try:
        readAll(variables, values)
    except BadClinical as error:
        return str(error)
    return ""


def fromTable(table: Any, variables: Iterable[Variable], caseId: str = "") -> dict[str, str]:
    """Values of a table node: a column for each variable, or two columns of names and values.

    Args:
        caseId: the row to take where the table has a column `case_id` and more than one row.

    Raises:
        BadClinical: the table names none of the variables, has no row of this case, or holds what cannot be meant.
    """
    variables = tuple(variables)
    columns = [table.GetColumnName(i) or "" for i in range(table.GetNumberOfColumns())]
    text = table.GetCellText
    places = {_folded(name): i for i, name in enumerate(columns)}
    found = {v.name: places[_folded(v.name)] for v in variables if _folded(v.name) in places}
    if found:
        row = _rowOf(table, places.get("case_id"), caseId)
        return readAll(variables, {name: text(row, column) for name, column in found.items()})
    if len(columns) == 2:
        pairs = {_folded(text(row, 0)): text(row, 1) for row in range(table.GetNumberOfRows())}
        values = {v.name: pairs[_folded(v.name)] for v in variables if _folded(v.name) in pairs}
        if values:
            return readAll(variables, values)
    wanted = ", ".join(variable.name for variable in variables)
    raise BadClinical(f"the table {table.GetName()!r} has none of the variables {wanted}.", "Choose a table with a column for each.")


def _rowOf(table: Any, column: int | None, caseId: str) -> int:
    rows = table.GetNumberOfRows()
    if column is not None and rows > 1:
        same = [row for row in range(rows) if table.GetCellText(row, column) == caseId]
        if len(same) == 1:
            return same[0]
        raise BadClinical(
            f"the table {table.GetName()!r} has {len(same)} rows with the case_id {caseId!r}; one is wanted.",
            "Write the case's name as there.",
        )
    if rows != 1:
        raise BadClinical(f"the table {table.GetName()!r} has {rows} rows and no column case_id; one row is wanted.", "Choose another.")
    return 0


def _folded(name: str) -> str:
    """A variable's name as tables write it: "Tumour size" and "clinical.tumour_size" are tumour_size."""
    return name.strip().casefold().removeprefix(PREFIX).replace(" ", "_")
