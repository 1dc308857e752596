"""What a search may change: fields of an experiment by dotted path, each with its bounds, as plain values.

A file of Training/experiments may hold `SPACE`, a dictionary of path to `Float`, `Int` or `Choice`; without one, `usual` takes those
of the usual fields that the experiment has.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from HARM3Logic.errors import BadOption
from Training.experiment import Experiment


@dataclass(frozen=True)
class Float:
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Int:
    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    values: tuple[Any, ...]


Space = Mapping[str, Float | Int | Choice]

# ours: the second paper names the optimiser of its hyperparameters, not what it searched
USUAL: dict[str, Float | Int | Choice] = {
    "learning_rate": Float(1e-5, 1e-3, log=True),
    "weight_decay": Float(1e-6, 1e-2, log=True),
    "batch_size": Choice((4, 8, 16)),
    "config.dropout": Float(0.0, 0.5),
    "config.layers": Int(1, 4),
    "config.heads": Choice((2, 4, 8)),
    "lora.rank": Choice((4, 8, 16)),
}


def space_of(name: str, experiment: Experiment) -> dict[str, Float | Int | Choice]:
    """The space that the file of the experiment NAME[:VARIANT] holds, or the usual one.

    Raises:
        BadOption: a path of the file's space is no field of this experiment, or its bounds are no bounds.
    """
    module = importlib.import_module(f"Training.experiments.{name.partition(':')[0]}")
    space: dict[str, Float | Int | Choice] = getattr(module, "SPACE", None) or usual(experiment)
    for path, kind in space.items():
        own(experiment, path)
        if isinstance(kind, Choice):
            if len({repr(value) for value in kind.values}) < max(2, len(kind.values)):
                raise BadOption(f"SPACE has for {path} the choice {kind.values!r}; two or more different values are wanted.", "Correct it.")
        elif not kind.low < kind.high < math.inf or not kind.low > (0 if kind.log else -math.inf):
            raise BadOption(
                f"SPACE has for {path} the bounds {kind.low} and {kind.high}; two numbers that rise are wanted, above 0 on a log scale.",
                "Correct it.",
            )
    return space


def usual(experiment: Experiment) -> dict[str, Float | Int | Choice]:
    """Those of the usual fields that the experiment has; heads that do not divide the width are left out."""
    found = {path: kind for path, kind in USUAL.items() if _has(experiment, path)}
    heads, width = found.get("config.heads"), getattr(experiment.config, "width", None)
    if isinstance(heads, Choice) and isinstance(width, int):
        fitting = tuple(count for count in heads.values if width % count == 0)
        if len(fitting) < 2:
            del found["config.heads"]
        else:
            found["config.heads"] = Choice(fitting)
    return found


def own(experiment: Experiment, path: str) -> Any:
    """The experiment's own value of a field.

    Raises:
        BadOption: it has none of that path.
    """
    value: Any = experiment
    for name in path.split("."):
        names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        if name not in names:
            there = f"there are {', '.join(names)}" if names else "nothing is below it"
            raise BadOption(
                f"the search names the field {path!r}, which this experiment does not have ({name}: {there}).", "Correct SPACE."
            )
        value = getattr(value, name)
    return value


def _has(experiment: Experiment, path: str) -> bool:
    try:
        return own(experiment, path) is not None
    except BadOption:
        return False


def put(value: Any, changes: Mapping[str, Any]) -> Any:
    """A dataclass with the fields at these dotted paths changed."""
    direct = {path: new for path, new in changes.items() if "." not in path}
    for first in dict.fromkeys(path.partition(".")[0] for path in changes if "." in path):
        below = {path.partition(".")[2]: new for path, new in changes.items() if path.startswith(f"{first}.")}
        direct[first] = put(direct.get(first, getattr(value, first)), below)
    return dataclasses.replace(value, **direct)
