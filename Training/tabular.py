"""Judge plain models of a table by the road of Training.train: python -m Training.tabular TABLE --out DIR [--dataset NAME[:FEATURES]].

The same folds, calibration, threshold and files, with scikit-learn's logistic regression and gradient boosting in place of the network:
a check of folds and statistics on labels that nobody here made, and the bar for a network on the same cohort. TABLE is one of
`datasets.DATASETS` (told by its file name), or a cohort table whose columns `clinical.*` are the features.

Writes DIR/logistic and DIR/boosting, each a run folder that Training.evaluate reads (`experiment.json`, `fold-K/predictions.csv`), the
further seeds of --repeats beside them as `logistic-seed1` ..., and DIR/summary.json; of a published table also DIR/cohort.csv and
DIR/schema.json, with which a network is trained on the same cases, columns and folds:

    python -m Training.train ct_clinical:compact_clinical --cohort DIR/cohort.csv --schema DIR/schema.json --out RUN
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn.base import ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from HARM3Logic import __version__
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from HARM3Logic.writing import write_text
from Training import command, comparison, metrics
from Training.datasets import Table, read_table, write_as_cohort
from Training.folds import Split, folds
from Training.judgement import calibrate, prediction_rows

# Set before any table was seen, and not tuned on one: scikit-learn's own values, and small trees for small tables.
MODELS: dict[str, ClassifierMixin] = {
    "logistic": LogisticRegression(max_iter=5000),
    "boosting": HistGradientBoostingClassifier(max_iter=100, learning_rate=0.05, max_depth=3, min_samples_leaf=10, random_state=0),
}


def pipeline(model: str, frame: pd.DataFrame) -> Pipeline:
    """Imputation, scaling and a classifier as one thing, so that all of it is fitted on the training cases alone."""
    numbers = [c for c in frame if pd.api.types.is_numeric_dtype(frame[c])]
    words = [c for c in frame if c not in numbers]
    number = make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), StandardScaler())
    word = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = ColumnTransformer([("number", number, numbers), ("word", word, words)])
    return Pipeline([("columns", columns), ("model", sklearn.base.clone(MODELS[model]))])


def judge(table: Table, split: Split, model: str) -> list[dict[str, Any]]:
    """The rows of a fold's `predictions.csv`: fitted on the cases that train, calibrated on those that choose."""
    label = np.array([-1 if case.label is None else case.label for case in table.cases])  # -1: locked, and in no part of the split
    train, choose = list(split.train), list(split.choose)
    fitted = pipeline(model, table.frame).fit(table.frame.iloc[train], label[train])
    calibration, rule = calibrate(label[choose], fitted.decision_function(table.frame.iloc[choose]))
    found = []
    for role, part in (("choose", choose), ("judge", list(split.judge))):
        probability = calibration(fitted.decision_function(table.frame.iloc[part]))
        found += prediction_rows([table.cases[k] for k in part], role, probability, rule)
    return found


def run(table: Table, splits: Sequence[Split], model: str, out: Path, settings: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Write the run folder of one model; the judged rows of each fold.

    Raises:
        BadOption: the folder holds a run of other settings.
    """
    described = {"name": f"tabular {model}", "cohort": table.name, "model": model, "parameters": MODELS[model].get_params()}
    versions = {"harm3slicer": __version__, "scikit-learn": sklearn.__version__}
    plain = json.dumps({**described, **settings, **table.notes, "versions": versions}, indent=2, ensure_ascii=False)
    path = writable(out) / "experiment.json"
    if path.is_file() and path.read_text(encoding="utf-8") != plain:
        raise BadOption(f"{str(out)!r} holds a run of other settings.", "Choose another --out or remove it.")
    write_text(path, plain)
    judged = []
    for split in splits:
        rows = judge(table, split, model)
        write_cohort(writable(out / f"fold-{split.number}") / "predictions.csv", rows)
        judged.append([row for row in rows if row["role"] == "judge"])
    return judged


def areas(judged: Sequence[Sequence[dict[str, Any]]]) -> list[metrics.Estimate]:
    """The AUC of each group of rows, with DeLong's interval."""
    found = []
    for rows in judged:
        label, probability = np.array([row["label"] for row in rows]), np.array([row["probability"] for row in rows])
        found.append(comparison.auc_delong(label, probability))
    return found


def summarise(repeats: Sequence[Sequence[Sequence[dict[str, Any]]]], splits: Sequence[Split]) -> dict[str, metrics.Estimate]:
    """`pooled`: all judged cases of the first seed at once. `folds`: the mean over the folds of all seeds, its interval knowing
    that the training sets overlap."""
    pooled = areas([[row for rows in repeats[0] for row in rows]])[0]
    each = [area.value for judged in repeats for area in areas(judged)]
    trained, tested = (float(np.mean([len(part) for part in parts])) for parts in zip(*((s.train, s.judge) for s in splits), strict=True))
    return {"pooled": pooled, "folds": comparison.over_folds(each, trained, tested)[0]}


def tabular(table: Table, out: Path, options: argparse.Namespace) -> dict[str, dict[str, metrics.Estimate]]:
    """Both models over all asked folds and seeds: the run folders, `summary.json` and what it holds."""
    cases, only = table.cases, None
    if options.judge_centres:
        unknown = sorted(set(options.judge_centres) - {case.centre for case in cases})
        if unknown:
            raise BadOption(f"the table has no centre {unknown[0]!r}.", "Correct --judge-centres.")
        only = 1  # fold 0 holds the other centres, and nobody judges them
        cases = tuple(dataclasses.replace(case, fold=int(case.centre in options.judge_centres)) for case in cases)
    table = dataclasses.replace(table, cases=cases)
    found = {}
    for model in MODELS:
        repeats = []
        for seed in range(options.seed, options.seed + options.repeats):
            splits = folds(cases, options.folds, seed, by_centre=options.by_centre, external=options.external)
            splits = tuple(split for split in splits if only in (None, split.number))
            settings = {"seed": seed, "folds": len(splits), "by_centre": options.by_centre, "external": options.external,
                        "judge_centres": options.judge_centres}  # fmt: skip
            folder = out / (model if seed == options.seed else f"{model}-seed{seed}")
            repeats.append(run(table, splits, model, folder, settings))
        found[model] = summarise(repeats, splits)
        mean = f", mean over folds {found[model]['folds']}" if len(splits) > 1 else ""
        print(f"{table.name} {model}: pooled AUC {found[model]['pooled']}{mean}")
    plain = {model: {key: dataclasses.asdict(value) for key, value in estimates.items()} for model, estimates in found.items()}
    counts = {"table": table.name, "cases": len(table.cases), "positive": sum(case.label or 0 for case in table.cases)}
    write_text(out / "summary.json", json.dumps({**counts, **plain}, indent=2).replace("NaN", "null") + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("tabular", __doc__)
    parser.add_argument("table", type=Path, metavar="TABLE", help="a published table, or a cohort with columns clinical.*")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--dataset", default="", metavar="NAME[:FEATURES]", help="where the file serves several; features: a named set")
    parser.add_argument("--ct", type=Path, metavar="DIR", help="CASE/ct.* and CASE/tumour.* of a published table, for DIR/cohort.csv")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    parser.add_argument("--repeats", type=int, default=1, help="seeds from --seed on (default: 1)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--by-centre", action="store_true", help="judge each centre by a model that saw none of it")
    which.add_argument("--judge-centres", nargs="+", default=[], metavar="CENTRE", help="train on the other centres, judge these")
    parser.add_argument("--external", nargs="+", default=[], metavar="CENTRE", help="locked: neither train, choose nor judge")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, repeats=1, folds=2)
    table = read_table(asked.table, asked.dataset)
    if table.published:
        write_as_cohort(table, writable(asked.out), asked.ct)
    elif asked.ct is not None:
        raise BadOption(f"{str(asked.table)!r} is a cohort, which says itself where its CTs are.", "Leave out --ct.")
    tabular(table, asked.out, asked)


if __name__ == "__main__":
    sys.exit(main())
