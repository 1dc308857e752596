"""What clinical variables there are, and how a row of text becomes numbers with a mask of what is known; `clinical` offers it all."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from HARM3Logic.errors import BadClinical

Kind = Literal["numeric", "binary", "categorical", "ordinal"]
KINDS: tuple[str, ...] = get_args(Kind)
UNKNOWN = ("", "?", "-", "na", "n/a", "nan", "none", "null", "unknown", "missing")  # unless a variable allows the word
YES_NO = ({"no", "0", "false"}, {"yes", "1", "true"})  # words that stand for each other where a binary variable uses any of them


@dataclass(frozen=True)
class Variable:
    """One clinical variable.

    Args:
        allowed: the values of a binary, categorical or ordinal variable; an ordinal one's from least to most.
        range: least and greatest number that can be meant in this unit; beyond it a value is refused.
        title: what a reader is shown in place of the name, such as CD117.
    """

    name: str
    kind: Kind
    unit: str = ""
    allowed: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    description: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        fault = self._fault()
        if fault:
            raise BadClinical(f"the clinical variable {self.name!r} {fault}.", "Correct the schema.")

    def _fault(self) -> str:
        if not self.name:
            return "has no name"
        if self.kind == "numeric":
            if self.allowed:
                return "is numeric and lists allowed values; a range or another kind is wanted"
            if self.range is not None and not (len(self.range) == 2 and self.range[0] < self.range[1]):
                return f"has the range {list(self.range)}; two rising numbers are wanted"
            return ""
        if self.range is not None:
            return f"is {self.kind} and has a range; allowed values are wanted"
        folded = [text.casefold() for text in self.allowed]
        if len(set(folded)) != len(folded):
            return f"allows one value twice ({', '.join(self.allowed)})"
        if len(folded) < 2 or (self.kind == "binary" and len(folded) != 2):
            return f"is {self.kind} and allows {len(folded)} values; {'two' if self.kind == 'binary' else 'at least two'} are wanted"
        return ""

    @property
    def label(self) -> str:
        """The variable as a reader is shown it."""
        return self.title or self.name.replace("_", " ").capitalize()

    @property
    def levels(self) -> int:
        """Number of categories without an order; 0 for what is read as a number."""
        return len(self.allowed) if self.kind in ("binary", "categorical") else 0

    def read(self, text: str) -> float | None:
        """The number a text stands for: itself, or the place among the allowed values; None for unknown.

        Raises:
            BadClinical: it can be neither.
        """
        word = text.strip().casefold()
        folded = [allowed.casefold() for allowed in self.allowed]
        if word in folded:
            return float(folded.index(word))
        if word in UNKNOWN:
            return None
        if self.kind == "numeric":
            return self._number(text)
        for group in YES_NO if self.kind == "binary" else ():
            same = [k for k, allowed in enumerate(folded) if allowed in group]
            if word in group and same:
                return float(same[0])
        raise BadClinical(f"{self.name} is {text!r}; {', '.join(self.allowed)} or nothing is wanted.", "Correct it or leave it empty.")

    def _number(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        unit = f" in {self.unit}" if self.unit else ""
        if not math.isfinite(number):
            raise BadClinical(f"{self.name} is {text!r}; a number{unit} or nothing is wanted.", "Correct it or leave it empty.")
        if self.range is not None and not self.range[0] <= number <= self.range[1]:
            between = f"{self.range[0]:g} to {self.range[1]:g}"
            raise BadClinical(f"{self.name} is {number:g}; {between}{unit} is possible.", "Check the value and its unit.")
        return number


@dataclass(frozen=True)
class Schema:
    """The clinical variables of a model, in its order."""

    variables: tuple[Variable, ...] = ()

    def __post_init__(self) -> None:
        for k, name in enumerate(self.names):
            if name in self.names[:k]:
                raise BadClinical(f"the schema has the clinical variable {name!r} twice.", "Remove or rename one.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)

    @property
    def levels(self) -> tuple[int, ...]:
        """Of each variable; see `Variable.levels`."""
        return tuple(variable.levels for variable in self.variables)

    def read(self, row: Mapping[str, str]) -> tuple[Float[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
        """A row's values and which of them are known; unknown ones are 0.

        Raises:
            BadClinical: a value cannot be.
        """
        found = [variable.read(row.get(variable.name, "")) for variable in self.variables]
        known = np.array([value is not None for value in found], dtype=bool)
        return np.array([0.0 if value is None else value for value in found], dtype=np.float64), known

    def strangers(self, row: Mapping[str, str]) -> list[str]:
        """A sentence for each variable of the row that the schema does not have."""
        told = []
        for name in row:
            if name not in self.names:
                near = difflib.get_close_matches(name, self.names, 1)
                told.append(f"the clinical variable {name!r} is not used" + (f"; is {near[0]!r} meant?" if near else "."))
        return told

    def to_dict(self) -> dict[str, Any]:
        """As the file and a checkpoint's card have it."""
        return asdict(self)


@dataclass(frozen=True)
class Scaling:
    """Mean and spread of each variable over the cases that train; 0 and 1 for categories, which are not scaled."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]


def fit_scaling(schema: Schema, values: Float[np.ndarray, "N V"], known: Bool[np.ndarray, "N V"]) -> Scaling:
    """Fitted on the known values of the given cases: give it those that train, and no others."""
    mean, spread = [], []
    for k, variable in enumerate(schema.variables):
        column = values[known[:, k], k]
        scaled = not variable.levels and len(column) > 0
        mean.append(float(column.mean()) if scaled else 0.0)
        deviation = float(column.std()) if scaled else 1.0
        spread.append(deviation if deviation > 0 else 1.0)
    return Scaling(tuple(mean), tuple(spread))
