"""From runs to the figures of a report, as plain values; every figure comes from the stored predictions of the judged cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from HARM3Logic.case import MRI
from HARM3Logic.errors import BadOption
from Training import calibration, metrics
from Training.comparison import auc_delong, benjamini_hochberg, holm, over_folds, paired
from Training.metrics import Estimate
from Training.runs import Run

WORST = 10  # cases the list of failures names
MOST_VALUES = 6  # a column of numbers with more values is cut at its median
PARTS = {"ldvae": "LD-VAE", "attn1": "Attention-1", "attn2": "Attention-2"}  # of the paper's Table 2
Figures = dict[str, Any]


def figures(run: Run, draws: int = metrics.DRAWS, seed: int = 0) -> Figures:
    """All figures of one run over all its judged cases, and per fold.

    Raises:
        HARM3Error: an accuracy does not lie between sensitivity and specificity.
    """
    label, probability = run.label, run.probability
    weights = metrics.resample(label, run.patients, draws, seed)
    precision = metrics.interval(
        float(metrics.average_precision(label, probability)[0]), metrics.average_precision(label, probability, weights)
    )
    inner = None
    if np.all(np.isfinite(run.threshold)):
        inner = metrics.decisions(label, probability >= run.threshold, weights)
    folds = [_fold(run, fold, draws, seed) for fold in run.folds]
    mean, _, _ = over_folds([row["auc"].value for row in folds], *_sizes(run))
    return {
        "run": run.name,
        "experiment": run.experiment.get("name"),
        "inputs": list(run.inputs),
        "parts": parts(run),
        "auc": auc_delong(label, probability, run.patients),
        "auc_bootstrap": metrics.auc(label, probability, draws, seed, run.patients),
        "auc_over_folds": Estimate(mean.value, float(np.clip(mean.low, 0, 1)), float(np.clip(mean.high, 0, 1))),
        "average_precision": precision,
        "at_half": metrics.decisions(label, probability >= 0.5, weights),
        "at_inner_youden": inner,
        "calibration": calibration.summary(label, probability, weights),
        "reliability": calibration.reliability(label, probability),
        "net_benefit": {
            "thresholds": list(metrics.THRESHOLDS),
            "model": list(metrics.net_benefit(label, probability)),
            "all": list(metrics.net_benefit(label, np.ones(len(label)))),
        },
        "uncertain": sum(decision == "uncertain" for decision in run.decision),
        "folds": folds,
    }


def _fold(run: Run, fold: str, draws: int, seed: int) -> Figures:
    k = run.of(fold)
    label, probability, threshold = run.label[k], run.probability[k], float(run.threshold[k[0]])
    patients = [run.patients[i] for i in k]
    weights = metrics.resample(label, patients, draws, seed)
    inner = metrics.decisions(label, probability >= threshold, weights) if math.isfinite(threshold) else None
    return {
        "fold": fold,
        "train": run.train[fold],
        "cases": len(k),
        "responders": int(label.sum()),
        "threshold": threshold,
        "auc": auc_delong(label, probability, patients),
        "at_half": metrics.decisions(label, probability >= 0.5, weights),
        "at_inner_youden": inner,
        "brier": float(np.mean((probability - label) ** 2)),
    }


def _sizes(run: Run) -> tuple[float, float]:
    """Mean number of cases that train and that judge in a fold."""
    return float(np.mean([run.train[fold] for fold in run.folds])), len(run.case_id) / len(run.folds)


def parts(run: Run) -> dict[str, bool] | None:
    """Which parts of the network are in use, where the experiment has such switches."""
    config = run.experiment.get("config") or {}
    if not all(name in config for name in PARTS):
        return None
    return {name: config[name] is True or config[name] == "cross" for name in PARTS}


def sees(run: Run) -> dict[str, Any]:
    """Columns MRI and WSI of the paper's Table 1, and the names of all other inputs; None where nothing is known."""
    if not run.inputs:
        return {"mri": None, "wsi": None, "other": []}
    return {
        "mri": any(name in MRI for name in run.inputs),
        "wsi": "slide" in run.inputs,
        "other": [name for name in run.inputs if name not in (*MRI, "slide")],
    }


def compare(runs: Sequence[Run], reference: Run) -> list[Figures]:
    """Each run against the reference on the same cases: paired DeLong with Holm's and Benjamini-Hochberg's p, and over the folds."""
    return compare_pairs([(run, reference) for run in runs if run is not reference])


def compare_pairs(pairs: Sequence[tuple[Run, Run]]) -> list[Figures]:
    """Each first run against its second on the same cases, corrected for the number of pairs."""
    rows = []
    for run, reference in pairs:
        found = paired(reference.label, reference.probability, run.probability, run.patients)
        steps = [b["auc"].value - a["auc"].value for a, b in zip(_aucs(reference), _aucs(run), strict=True)]
        mean, score, p = over_folds(steps, *_sizes(run))
        rows.append(
            {
                "run": run.name, "reference": reference.name, "difference": found.difference, "z": found.z, "p": found.p,
                "detectable": found.detectable, "over_folds": mean, "t": score, "p_over_folds": p,
            }
        )  # fmt: skip
    for row, h, b in zip(rows, holm([r["p"] for r in rows]), benjamini_hochberg([r["p"] for r in rows]), strict=True):
        row |= {"p_holm": float(h), "p_bh": float(b)}
    return rows


def _aucs(run: Run) -> list[Figures]:
    return [{"auc": auc_delong(run.label[run.of(fold)], run.probability[run.of(fold)])} for fold in run.folds]


def without_inputs(run: Run) -> list[Figures]:
    """What is lost when an input is withheld, for each input of which all folds have predictions."""
    rows: list[Figures] = []
    for name, probability in run.without.items():
        found = paired(run.label, run.probability, probability, run.patients)
        values = {"auc": auc_delong(run.label, probability, run.patients), "difference": found.difference, "p": found.p}
        brier = float(np.mean((probability - run.label) ** 2))
        rows.append({"run": run.name, "input": name, **values, "brier": brier})
    for row, h in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row["p_holm"] = float(h)
    return rows


def groups(run: Run, column: str, cohort: Mapping[str, Mapping[str, str]] | None = None) -> tuple[str, ...]:
    """The subgroup of each case; numbers of many values are cut at their median.

    Args:
        cohort: case_id to the row of the cohort table, where the column is not in the predictions.

    Raises:
        BadOption: no table has the column.
    """
    if column == "centre":
        values: Sequence[str] = run.centre
    elif column in run.further:
        values = run.further[column]
    elif cohort and all(column in row for row in cohort.values()):
        lacking = next((case for case in run.case_id if case not in cohort), None)
        if lacking is not None:
            raise BadOption(f"case {lacking!r} is not in the table given with --cohort.", "Give the table the run was trained on.")
        values = [cohort[case][column] for case in run.case_id]
    else:
        known = sorted({"centre", *run.further, *(next(iter(cohort.values())) if cohort else ())})
        raise BadOption(f"there is no column {column!r} to group by; there are {', '.join(known)}.", "Correct --subgroup or give --cohort.")
    values = [value.strip() or "unknown" for value in values]
    numbers = [_number(value) for value in values if value != "unknown"]
    if len(set(numbers)) <= MOST_VALUES or any(number is None for number in numbers):
        return tuple(values)
    middle = float(np.median([number for number in numbers if number is not None]))
    return tuple(value if value == "unknown" else f"{'below' if float(value) < middle else 'from'} {middle:g}" for value in values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def by_group(run: Run, column: str, group: Sequence[str], draws: int = metrics.DRAWS) -> list[Figures]:
    """Figures of each subgroup; decisions at the inner threshold where every fold has one, else at 0.5."""
    inner = bool(np.all(np.isfinite(run.threshold)))
    called = run.probability >= (run.threshold if inner else 0.5)
    rows = []
    for value in sorted(set(group)):
        k = np.flatnonzero(np.array(group) == value)
        label, probability = run.label[k], run.probability[k]
        patients = [run.patients[i] for i in k]
        weights = metrics.resample(label, patients, draws)
        made = metrics.decisions(label, called[k], weights) if 0 < label.sum() < len(k) else {}
        undefined = Estimate(*[math.nan] * 3)
        rows.append(
            {
                "run": run.name, "column": column, "value": value, "cases": len(k), "responders": int(label.sum()),
                "auc": auc_delong(label, probability, patients),
                "sensitivity": made.get("sensitivity", undefined), "specificity": made.get("specificity", undefined),
                "brier": calibration.brier(label, probability, weights),
                "calibration_in_the_large": calibration.in_the_large(label, probability),
            }
        )  # fmt: skip
    return rows


def failures(runs: Sequence[Run], reference: Run, count: int = WORST) -> list[Figures]:
    """The cases whose probability is farthest from what came true, with what the other runs said of them."""
    error = np.abs(reference.label - reference.probability)
    order = np.argsort(-error, kind="stable")[:count]
    return [
        {
            "case_id": reference.case_id[k], "centre": reference.centre[k], "fold": reference.fold[k], "label": int(reference.label[k]),
            "probability": float(reference.probability[k]), "threshold": float(reference.threshold[k]), "decision": reference.decision[k],
            "others": {run.name: float(run.probability[k]) for run in runs if run is not reference},
        }
        for k in order
    ]  # fmt: skip


def cohort_figures(run: Run) -> Figures:
    """Who was judged."""
    patients = len(set(run.patients))
    centres = {
        c: {"cases": run.centre.count(c), "responders": int(run.label[np.array(run.centre) == c].sum())} for c in sorted(set(run.centre))
    }
    return {
        "cases": len(run.case_id), "patients": patients, "responders": int(run.label.sum()), "centres": centres,
        "folds": len(run.folds), "folds_wanted": None if run.experiment.get("by_centre") else run.experiment.get("folds"),
        "synthetic": run.synthetic,
        "shuffled": run.experiment.get("shuffle_labels"),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """The same as JSON can hold it: dataclasses as objects, what is not a finite number as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def rows_of(table: str, label: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lines of `tables.csv`: one for each number or estimate among the values, nested names joined with a dot."""
    found: list[dict[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += [{**row, "metric": f"{name}.{row['metric']}"} for row in rows_of(table, label, value)]
        elif isinstance(value, Estimate):
            found.append({"table": table, "row": label, "metric": name, **plain(value)})
        elif isinstance(value, float | int) and not isinstance(value, bool):
            found.append({"table": table, "row": label, "metric": name, "value": plain(value), "low": None, "high": None})
    return found
