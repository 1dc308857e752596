"""The folder of a run, read back: who judged whom in which fold, and what the checkpoints say of themselves."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from HARM3Logic.card import read_header
from HARM3Logic.errors import BadOption
from Training.metrics import youden

COLUMNS = ("case_id", "patient_id", "centre", "role", "label", "probability", "decision")
NAMED = 5  # cases an error names before it only counts
WITHOUT = "predictions_without_"


@dataclass(frozen=True)
class Run:
    """Out-of-fold predictions of one experiment; every case stands once, in the order of case_id.

    Args:
        fold: name of the folder whose model judged the case.
        threshold: Youden's, on the choosing cases of that fold; not a number where it has none.
        train: fold to the number of cases that neither chose nor judged in it.
        without: input to the probabilities predicted without it.
        partly: input to the folds that lack a prediction without it, where others have one.
        cards: fold to the card of its checkpoint.
        further: further columns of the tables.
    """

    name: str
    path: Path
    case_id: tuple[str, ...]
    patient_id: tuple[str, ...]
    centre: tuple[str, ...]
    decision: tuple[str, ...]
    fold: tuple[str, ...]
    label: Int[np.ndarray, " N"]
    probability: Float[np.ndarray, " N"]
    threshold: Float[np.ndarray, " N"]
    train: Mapping[str, int]
    without: Mapping[str, Float[np.ndarray, " N"]] = field(default_factory=dict)
    partly: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    experiment: Mapping[str, Any] = field(default_factory=dict)
    cards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    further: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def folds(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.fold), key=_natural))

    @property
    def patients(self) -> tuple[str, ...]:
        """One name for each case; a case without a patient is its own."""
        return tuple(patient or f"case {case}" for patient, case in zip(self.patient_id, self.case_id, strict=True))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the model sees, as the card or else the experiment says; empty where neither does."""
        for source in (*self.cards.values(), self.experiment):
            if source.get("inputs"):
                return tuple(source["inputs"])
        return ()

    @property
    def synthetic(self) -> bool:
        return any((card.get("training") or {}).get("synthetic") for card in self.cards.values())

    def of(self, fold: str) -> Int[np.ndarray, " n"]:
        """Indices of the cases a fold judged."""
        return np.flatnonzero(np.array(self.fold) == fold)


def read_run(path: Path, name: str = "") -> Run:
    """The run in a folder.

    Raises:
        BadOption: there are no predictions, a table is not whole, a case is judged twice or chose what it was judged by.
    """
    tables = sorted(path.glob("fold-*/predictions.csv"), key=lambda p: _natural(p.parent.name))
    if not tables:
        raise BadOption(f"{str(path)!r} has no fold-K/predictions.csv.", "Name the folder a training wrote with --out.")
    rows: list[dict[str, Any]] = []
    chosen: dict[str, int] = {}
    for table in tables:
        found = _read(table)
        chosen[table.parent.name] = sum(row["role"] == "choose" for row in found)
        rows += _judged(found, table)
    rows.sort(key=lambda row: row["case_id"])
    _once(rows, path)
    sizes = {fold: sum(row["fold"] == fold for row in rows) for fold in chosen}
    without, partly = _missing_inputs([table.parent for table in tables], rows)
    columns = {key: tuple(str(row[key]) for row in rows) for key in rows[0] if all(key in row for row in rows)}
    checkpoints = [table.parent / "checkpoint.safetensors" for table in tables]
    cards = {path.parent.name: read_header(path) for path in checkpoints if path.is_file()}
    return Run(
        name=name or path.resolve().name,
        path=path,
        **{key: columns[key] for key in ("case_id", "patient_id", "centre", "decision", "fold")},
        label=np.array([row["label"] for row in rows]),
        probability=np.array([row["probability"] for row in rows]),
        threshold=np.array([row["threshold"] for row in rows]),
        train={fold: _trained(cards.get(fold, {}), len(rows) - sizes[fold] - chosen[fold]) for fold in chosen},
        without=without,
        partly=partly,
        experiment=read_experiment(path),
        cards=cards,
        further={key: value for key, value in columns.items() if key not in (*COLUMNS, "fold", "threshold")},
    )  # fmt: skip


def _trained(card: dict[str, Any], rest: int) -> int:
    """How many cases trained a fold, as its card says; without one the cases that neither chose nor were judged, 0 where none is left."""
    return int(((card.get("training") or {}).get("cases") or {}).get("train") or max(rest, 0))


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a table, with numbers as numbers."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[dict[str, Any]] = list(reader)
            columns = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadOption(f"{str(path)!r} cannot be read ({error}).", "Train that fold again.") from error
    absent = [name for name in COLUMNS if name not in columns]
    if absent or not rows:
        raise BadOption(
            f"{str(path)!r} has no {f'column {absent[0]!r}' if absent else 'rows'}; the columns are {', '.join(COLUMNS)}.",
            "Train that fold again.",
        )
    for line, row in enumerate(rows, start=2):
        try:
            row["label"], row["probability"] = float(row["label"]), float(row["probability"])
        except (TypeError, ValueError):
            row["label"] = -1
        if row["label"] not in (0, 1) or not 0 <= row["probability"] <= 1 or row["role"] not in ("choose", "judge"):
            raise BadOption(
                f"{str(path)!r} line {line} has no label 0 or 1, probability from 0 to 1 and role choose or judge.",
                "Train that fold again.",
            )
        row["label"] = int(row["label"])
    return rows


def _judged(rows: list[dict[str, Any]], table: Path) -> list[dict[str, Any]]:
    """The judged rows of a fold, with its name and the threshold its choosing cases give."""
    choose, judge = ([row for row in rows if row["role"] == role] for role in ("choose", "judge"))
    if not judge:
        raise BadOption(f"{str(table)!r} judges no case.", "Train that fold again.")
    both = set.intersection(*({name for row in rows for name in (_patient(row), row["case_id"])} for rows in (choose, judge)))
    if both:
        raise BadOption(
            f"{str(table)!r}: {_some(both)} chose the threshold and is judged by it.", "Train again with folds that keep patients together."
        )
    labels = np.array([row["label"] for row in choose])
    cut = math.nan
    if len(set(labels.tolist())) == 2:
        cut = youden(labels, np.array([row["probability"] for row in choose]))
    return [{**row, "fold": table.parent.name, "threshold": cut} for row in judge]


def _once(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    seen: dict[str, str] = {}
    home: dict[str, str] = {}
    for row in rows:
        if row["case_id"] in seen:
            raise BadOption(
                f"run {str(path)!r} judges case {row['case_id']!r} in {seen[row['case_id']]} and {row['fold']}; once is wanted.",
                "Train again with folds that do not overlap.",
            )
        seen[row["case_id"]] = row["fold"]
        if home.setdefault(_patient(row), row["fold"]) != row["fold"]:
            raise BadOption(
                f"run {str(path)!r} has patient {_patient(row)!r} in {home[_patient(row)]} and in {row['fold']}.",
                "Train again with folds that keep patients together.",
            )


def _missing_inputs(
    folders: Sequence[Path], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Float[np.ndarray, " N"]], dict[str, tuple[str, ...]]]:
    """Probabilities of the judged cases without an input, where every fold has them; folds that lack them otherwise."""
    names = {p.stem.removeprefix(WITHOUT) for folder in folders for p in folder.glob(f"{WITHOUT}*.csv")}
    whole, partly = {}, {}
    for name in sorted(names):
        lacking = tuple(folder.name for folder in folders if not (folder / f"{WITHOUT}{name}.csv").is_file())
        if lacking:
            partly[name] = lacking
            continue
        tables = [folder / f"{WITHOUT}{name}.csv" for folder in folders]
        found = {row["case_id"]: row["probability"] for table in tables for row in _read(table) if row["role"] == "judge"}
        differ = {row["case_id"] for row in rows} ^ set(found)
        if differ:
            raise BadOption(f"predictions without {name} are of other cases than those judged: {_some(differ)}.", "Predict again.")
        whole[name] = np.array([found[row["case_id"]] for row in rows])
    return whole, partly


def read_experiment(path: Path) -> dict[str, Any]:
    """What `experiment.json` of a run says; empty where there is none."""
    file = path / "experiment.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadOption(f"{str(file)!r} is not JSON ({error}).", "Restore the file the training wrote.") from error
    return found if isinstance(found, dict) else {}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Runs that may be compared: same cases, labels and folds. Equal folder names are told apart by their parents.

    Raises:
        BadOption: a run cannot be read, or two differ; the message says in what.
    """
    names = [path.resolve().name for path in paths]
    full = [f"{p.resolve().parent.name}/{n}" if names.count(n) > 1 else n for p, n in zip(paths, names, strict=True)]
    twice = next((name for name in full if full.count(name) > 1), None)
    if twice is not None:
        raise BadOption(f"two runs are called {twice!r}.", "Name each run once, in folders of different names.")
    runs = [read_run(path, name) for path, name in zip(paths, full, strict=True)]
    for run in runs[1:]:
        _same(runs[0], run)
    return runs


def _same(first: Run, other: Run) -> None:
    advice = "Train both on the same cohort with the same folds and seed."
    mine, theirs = set(first.case_id), set(other.case_id)
    if mine != theirs:
        sides = [f"only in {run.name}: {_some(cases)}" for run, cases in ((first, mine - theirs), (other, theirs - mine)) if cases]
        raise BadOption(f"runs {first.name!r} and {other.name!r} judge different cases ({'; '.join(sides)}).", advice)
    for what, a, b in (
        ("labels", first.label, other.label),
        ("folds", first.fold, other.fold),
        ("patients", first.patients, other.patients),
    ):
        differ = {case for case, x, y in zip(first.case_id, a, b, strict=True) if x != y}
        if differ:
            raise BadOption(f"runs {first.name!r} and {other.name!r} give different {what} to {_some(differ)}.", advice)


def _some(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:NAMED])
    return f"{shown} and {len(names) - NAMED} more" if len(names) > NAMED else shown


def _patient(row: Mapping[str, Any]) -> str:
    return str(row["patient_id"] or f"case {row['case_id']}")


def _natural(name: str) -> tuple[object, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)
