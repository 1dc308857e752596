"""What a search has tried, read back from the file it keeps after every trial, and which values it holds for the best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float as FloatArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold

from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import HARM3Error
from HARM3Logic.writing import write_text
from Training.metrics import Estimate, interval
from Training.space import Choice, Float, Int, Space

KEPT = "search.json"
EPOCHS = "epochs"  # the name of the further column of what the forest sees
FEWEST = 10  # trials a forest is fitted to
FORESTS, TREES, SHUFFLES = 5, 100, 10


@dataclass(frozen=True)
class Trial:
    """One training of a search.

    Args:
        number: from 1, in the order in which the results came.
        values: by path of the space.
        auc: mean of the inner folds; None where it crashed.
        reason: why it crashed.
    """

    number: int
    values: Mapping[str, Any]
    epochs: int
    auc: float | None
    seconds: float
    reason: str = ""


def read_history(folder: Path, space: Space) -> tuple[Trial, ...]:
    """The trials of a fold's search, empty where it has not begun."""
    path = folder / KEPT
    if not path.is_file():
        return ()
    found = json.loads(json.loads(path.read_text(encoding="utf-8"))["runhistory"])
    done = sorted((row for row in found["data"] if row["status"]), key=lambda row: row["endtime"])  # 0: it had not ended
    return tuple(_trial(number, row, found["configs"][str(row["config_id"])], space) for number, row in enumerate(done, start=1))


def _trial(number: int, row: Mapping[str, Any], values: Mapping[str, Any], space: Space) -> Trial:
    about = row["additional_info"]
    ended = row["status"] == 1
    return Trial(
        number,
        decoded(space, values),
        epochs_of(row["budget"]),
        1 - row["cost"] if ended else None,
        row["time"],
        "" if ended else about.get("reason") or about.get("error", "it ended without a result"),
    )


def epochs_of(budget: float) -> int:
    """Hyperband divides the most epochs by 3 again and again."""
    return max(1, round(budget))


def encoded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as SMAC keeps them: a choice by its text, for JSON knows no tuples."""
    return {path: repr(value) if isinstance(space[path], Choice) else value for path, value in values.items()}


def decoded(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the space again, in its order."""
    found: dict[str, Any] = {}
    for path, kind in space.items():
        if isinstance(kind, Choice):
            found[path] = {repr(value): value for value in kind.values}[values[path]]
        else:
            found[path] = int(values[path]) if isinstance(kind, Int) else float(values[path])
    return found


def incumbents(trials: tuple[Trial, ...]) -> list[Trial]:
    """The best trial so far, each time it changes: the highest AUC among those of the most epochs any has ended.

    SMAC's own incumbent may be one of few epochs, whose AUC was not measured as the others' was.
    """
    found: list[Trial] = []
    for trial in trials:
        if trial.auc is None:
            continue
        if not found or (trial.epochs, trial.auc) > (found[-1].epochs, found[-1].auc or 0.0):
            found.append(trial)
    return found


def best_of(trials: tuple[Trial, ...], name: str) -> Trial:
    """The best trial.

    Raises:
        HARM3Error: all crashed.
    """
    path = incumbents(trials)
    if not path:
        last = trials[-1].reason if trials else "there was none"
        raise HARM3Error(f"none of the {len(trials)} trials of {name} ended with a result; the last: {last}", "Narrow the search space.")
    return path[-1]


def write_history(folder: Path, trials: tuple[Trial, ...]) -> None:
    """`trials.csv`, `path.csv` and `best.json` of a fold."""
    best = best_of(trials, folder.name)
    write_cohort(folder / "trials.csv", [{**_row(trial), "seconds": round(trial.seconds, 3), "reason": trial.reason} for trial in trials])
    write_cohort(folder / "path.csv", [_row(trial) for trial in incumbents(trials)])
    plain = {
        "values": dict(best.values), "inner_auc": best.auc, "epochs": best.epochs, "trial": best.number, "trials": len(trials),
        "crashed": sum(trial.auc is None for trial in trials),
    }  # fmt: skip
    write_text(folder / "best.json", json.dumps(plain, indent=2))


def _row(trial: Trial) -> dict[str, Any]:
    return {"trial": trial.number, "epochs": trial.epochs, "inner_auc": "" if trial.auc is None else trial.auc, **trial.values}


def matrix(trials: tuple[Trial, ...], space: Space) -> tuple[FloatArray[np.ndarray, "N P"], FloatArray[np.ndarray, " N"]]:
    """What a forest sees of the trials that ended, the epochs last, and their AUC."""
    ended = [trial for trial in trials if trial.auc is not None]
    columns = [[_place(kind, trial.values[path]) for trial in ended] for path, kind in space.items()]
    columns.append([float(np.log(trial.epochs)) for trial in ended])
    return np.array(columns).T.reshape(len(ended), len(columns)), np.array([trial.auc for trial in ended], dtype=float)


def _place(kind: Float | Int | Choice, value: Any) -> float:
    if isinstance(kind, Choice):
        return float([repr(v) for v in kind.values].index(repr(value)))
    return float(np.log(value)) if kind.log else float(value)


def importance(trials: tuple[Trial, ...], space: Space, seed: int = 0) -> dict[str, Estimate]:
    """How much worse a random forest predicts the AUC of trials it did not see when one hyperparameter is shuffled among them.

    In units of AUC (mean absolute error), with the range of the shuffles; empty where too few trials ended. It says what mattered
    within this space and for these trials, which a search gathers where it is good already.

    Source: permutation importance, Breiman 2001.
    """
    seen, area = matrix(trials, space)
    if len(area) < FEWEST:
        return {}
    drops = []
    for train, test in KFold(FORESTS, shuffle=True, random_state=seed).split(seen):
        forest = forest_of(seen[train], area[train], seed)
        found = permutation_importance(
            forest, seen[test], area[test], scoring="neg_mean_absolute_error", n_repeats=SHUFFLES, random_state=seed
        )
        drops.append(found.importances)
    every = np.concatenate(drops, axis=1)
    return {name: interval(float(row.mean()), row) for name, row in zip([*space, EPOCHS], every, strict=True)}


def forest_of(seen: FloatArray[np.ndarray, "N P"], area: FloatArray[np.ndarray, " N"], seed: int = 0) -> RandomForestRegressor:
    return RandomForestRegressor(TREES, min_samples_leaf=2, random_state=seed).fit(seen, area)


def dependence(trials: tuple[Trial, ...], space: Space, path: str, seed: int = 0, points: int = 30) -> tuple[list[Any], list[float]]:
    """Values of one hyperparameter, and the mean AUC a forest expects there at the most epochs, the others as they were in the trials."""
    seen, area = matrix(trials, space)
    forest, kind = forest_of(seen, area, seed), space[path]
    at: list[Any] = list(kind.values) if isinstance(kind, Choice) else np.unique(_grid(kind, points)).tolist()
    means = []
    for value in at:
        moved = seen.copy()
        moved[:, list(space).index(path)], moved[:, -1] = _place(kind, value), seen[:, -1].max()
        means.append(float(forest.predict(moved).mean()))
    return at, means


def _grid(kind: Float | Int, points: int) -> np.ndarray:
    found = np.geomspace(kind.low, kind.high, points) if kind.log else np.linspace(kind.low, kind.high, points)
    return found.round().astype(int) if isinstance(kind, Int) else found
