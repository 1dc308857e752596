"""Clinical values: a schema of variables, and a row of text turned into numbers with a mask of what is known.

    row {name: text} --Schema.read--> values (V), known (V) --Scaling--> what a model gets

A schema is a JSON or TOML file with a list `variables`, each with `name`, `kind` and where they help `unit`, `allowed`, `range`,
`description`; `inferred` guesses one from a table for a person to confirm. Standard library and numpy only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from HARM3Logic.case import Case
from HARM3Logic.clinical_schema import KINDS, UNKNOWN, YES_NO, Scaling, Schema, Variable, fit_scaling
from HARM3Logic.errors import BadClinical

__all__ = [
    "Scaling", "Schema", "Variable", "as_text", "fit_scaling", "gist", "inferred", "read_row", "read_schema", "row_of", "schema_from_plain",
]  # fmt: skip

MOST_LEVELS = 10  # of a column that `inferred` takes for a category
FEWEST_PER_LEVEL = 2  # rows, on average; below, a column of text is taken for free text


def read_schema(path: str | Path) -> Schema:
    """The schema of a JSON or TOML file.

    Raises:
        BadClinical: the file is missing, is neither, or describes something that cannot be.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        data = _toml(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise BadClinical(f"the schema {str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
    except ValueError as error:
        raise BadClinical(f"the schema {str(path)!r} is not {path.suffix[1:].upper() or 'JSON'} ({error}).", "Correct it.") from error
    return schema_from_plain(data, f"the schema {str(path)!r}")


def gist() -> Schema:
    """The schema that comes with the package: the variables of the GIST abstract, and two of ours."""
    return read_schema(Path(__file__).with_name("schemas") / "gist.json")


def schema_from_plain(data: Any, where: str) -> Schema:
    """The schema that `Schema.to_dict` described.

    Raises:
        BadClinical: a field is missing, unknown or of the wrong type; the message starts with `where`.
    """
    rows = data.get("variables") if isinstance(data, Mapping) else None
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not all(isinstance(row, Mapping) for row in rows):
        raise BadClinical(f"{where} has no list 'variables' of objects.", "Write it as HARM3Logic/schemas/gist.json does.")
    return Schema(tuple(_variable(row, where) for row in rows))


def _variable(row: Mapping[str, Any], where: str) -> Variable:
    fields = Variable.__dataclass_fields__
    unknown = sorted(set(row) - set(fields))
    if unknown or "name" not in row or "kind" not in row:
        fault = f"the unknown field {unknown[0]!r}" if unknown else "no name or no kind"
        raise BadClinical(f"{where}: the variable {row.get('name', '')!r} has {fault}.", f"Its fields are {', '.join(fields)}.")
    if row["kind"] not in KINDS:
        raise BadClinical(f"{where}: the variable {row['name']!r} is of the kind {row['kind']!r}.", f"Use {', '.join(KINDS)}.")
    try:
        ends = row.get("range")
        low, high = (0.0, 0.0) if ends is None else (float(end) for end in ends)
    except (TypeError, ValueError) as error:
        raise BadClinical(f"{where}: {row['name']} has the range {row['range']!r}; two numbers are wanted.", "Correct it.") from error
    allowed = row.get("allowed") or ()
    if isinstance(allowed, str) or not isinstance(allowed, Sequence):
        raise BadClinical(f"{where}: {row['name']} allows {allowed!r}; a list is wanted.", "Correct it.")
    texts = {key: str(row.get(key) or "") for key in ("name", "unit", "description", "title")}
    return Variable(kind=row["kind"], allowed=tuple(str(value) for value in allowed), range=None if ends is None else (low, high), **texts)


def read_row(path: str | Path) -> dict[str, str]:
    """One patient's row from a JSON object of variable to value or null.

    Raises:
        BadClinical: the file cannot be read or is no such object.
    """
    path = Path(path)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadClinical(f"the clinical row {str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
    except ValueError as error:
        raise BadClinical(f"the clinical row {str(path)!r} is not JSON ({error}).", 'Write it as {"age": 61, "sex": "female"}.') from error
    if not isinstance(row, dict) or any(isinstance(value, (dict, list)) for value in row.values()):
        raise BadClinical(f"the clinical row {str(path)!r} is no object of variable to value.", 'Write it as {"age": 61}.')
    return {str(name): "" if value is None else str(value) for name, value in row.items()}


def row_of(case: Case) -> dict[str, str]:
    """The clinical row of a case, from its values or its file; empty where it has neither.

    Raises:
        BadClinical: the file cannot be read, or both give values.
    """
    own = {name: text for name, text in case.clinical.items() if text}
    if "clinical" not in case.inputs:
        return own
    path = case.inputs["clinical"][0]
    if own:
        raise BadClinical(f"case {case.case_id!r} has clinical values and the file {path.name!r} of them.", "Give one of both.")
    return read_row(path)


def inferred(rows: Sequence[Mapping[str, str]]) -> Schema:
    """A schema guessed from a table, to be shown and confirmed before it is used.

    A column of numbers is numeric, with no range (a table cannot tell what is impossible); one of few words is binary or categorical.
    Numbers that stand for categories look like numbers: a person has to say so.

    Raises:
        BadClinical: a column holds neither numbers nor few words.
    """
    found = []
    for name in dict.fromkeys(name for row in rows for name in row):
        texts = [row[name].strip() for row in rows if row.get(name, "").strip().casefold() not in UNKNOWN]
        words = list(dict.fromkeys(text.casefold() for text in texts))
        if set(words) <= set.union(*YES_NO) and len(words) == 2:
            found.append(Variable(name, "binary", allowed=tuple(sorted(words, key=lambda word: word in YES_NO[1]))))
        elif texts and all(_is_number(text) for text in texts):
            found.append(Variable(name, "numeric"))
        elif 2 <= len(words) <= MOST_LEVELS and len(texts) >= FEWEST_PER_LEVEL * len(words):
            first = {text.casefold(): text for text in reversed(texts)}
            allowed = tuple(first[word] for word in sorted(words))
            found.append(Variable(name, "binary" if len(allowed) == 2 else "categorical", allowed=allowed))
        else:
            shown = ", ".join(words[:3]) or "nothing"
            raise BadClinical(
                f"the column {name!r} holds {len(words)} different texts ({shown}); numbers or few words are wanted.",
                "Leave it out or write a schema.",
            )
    return Schema(tuple(found))


def as_text(schema: Schema) -> str:
    """The schema as lines for a person to check."""
    lines = []
    for v in schema.variables:
        what = ", ".join(v.allowed) if v.allowed else ("any number" if v.range is None else f"{v.range[0]:g} to {v.range[1]:g}")
        lines.append("  ".join(part for part in (f"{v.name:<20} {v.kind:<12} {what}", v.unit, v.description) if part))
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _toml(text: str) -> Any:
    if sys.version_info < (3, 11):
        raise ValueError("Python reads TOML from version 3.11 on")
    import tomllib  # type: ignore[import-not-found, unused-ignore]  # mypy looks with the eyes of Python 3.10

    return tomllib.loads(text)
