"""Locked cases are judged once, by one model or by several named together: a ledger beside their table says by which."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from HARM3Logic.card import read_header
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadCohort, BadOption
from HARM3Logic.writing import write_text
from Training import calibration, metrics
from Training.comparison import auc_delong
from Training.runs import Run, read_experiment

Predict = Callable[[Sequence[Case], Path, Path], tuple[dict[str, dict[str, Any]], list[str]]]


def model_of(folder: Path) -> Path:
    """The one checkpoint of a run that may meet locked cases: trained on all its cases, or made of its folds.

    Raises:
        BadOption: there is none.
    """
    places = [folder / "checkpoint.safetensors", folder / "whole" / "checkpoint.safetensors"]
    for place in places:
        if place.is_file():
            return place
    raise BadOption(
        f"run {str(folder)!r} has no single model for external cases ({' or '.join(str(p.relative_to(folder)) for p in places)}).",
        "Train it with --whole into the same folder.",
    )


def ledger_of(cohort: Path) -> Path:
    """Where it is written who opened a cohort."""
    return cohort.with_name(f"{cohort.name}.opened.json")


def evaluate(cohort: Path, folder: Path, out: Path, predict: Predict | None = None) -> dict[str, Any]:
    """Figures on locked cases; they are predicted the first time, read from the ledger ever after.

    Args:
        folder: of the run whose model judges.
        out: where predictions are written case by case.
        predict: cases, checkpoint and folder to the rows by case_id and the reasons of failures.

    Raises:
        BadOption: another model judged the cohort before, or the run has no model for it.
        BadCohort: the table changed since then, a case lacks its label, or a patient was learned from.
    """
    path = model_of(folder)
    model = _sha256(path)
    cases = _locked(read_cohort(cohort), folder)
    book = _opened(cohort, {model: folder.resolve().name})
    own = book["models"][model]
    if any(case.case_id not in own["predictions"] for case in cases):
        work = predict or partial(_predict, ignore_masks=bool(read_experiment(folder).get("ignore_masks")))
        rows, failures = work(cases, path, out / "external")
        kept = {name: {key: row[key] for key in ("probability", "decision")} for name, row in rows.items()}
        own |= {"predictions": {**kept, **own["predictions"]}, "failures": failures}  # what was predicted once stays
        _write(ledger_of(cohort), book)
    about = {"model_sha256": model, "cohort_sha256": book["cohort_sha256"], "opened": book["opened"], "models": len(book["models"])}
    return {
        **about, **_figures(cases, own, path), "ledger": ledger_of(cohort).name, "run": folder.resolve().name,
        "trained_apart": learned_from(folder)[1],
    }  # fmt: skip


def register(cohort: Path, runs: Sequence[Run]) -> None:
    """Open locked cases for several models at once: all are named before the first case is predicted, and none can be added.

    Raises:
        BadOption, BadCohort: as `evaluate` does.
    """
    for run in runs:
        _locked(read_cohort(cohort), run.path)
    _opened(cohort, {_sha256(model_of(run.path)): run.name for run in runs})


def judged(cohort: Path, run: Run) -> tuple[tuple[Case, ...], Float[np.ndarray, " N"]]:
    """The locked cases that the model of a run has judged, and its probabilities."""
    book = _read(ledger_of(cohort))["models"][_sha256(model_of(run.path))]["predictions"]
    done = tuple(case for case in _locked(read_cohort(cohort), run.path) if case.case_id in book)
    return done, np.array([book[case.case_id]["probability"] for case in done], dtype=float)


def _opened(cohort: Path, models: Mapping[str, str]) -> dict[str, Any]:
    """The ledger of a cohort, begun now if there is none.

    Args:
        models: hash of each model that is to judge, to the name of its run.
    """
    ledger, table = ledger_of(cohort), _sha256(cohort)
    if not ledger.is_file():
        begun = {
            "cohort_sha256": table,
            "opened": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "models": {model: {"run": name, "predictions": {}, "failures": []} for model, name in models.items()},
        }
        _write(ledger, begun)  # before the first case is predicted: a stopped run has opened them too
    book = _read(ledger)
    known = book["models"]
    other = next((model for model in models if model not in known), None)
    if other is not None:
        several = len(known) > 1
        named = ", ".join(model[:12] for model in known)
        raise BadOption(
            f"the locked cases of {str(cohort)!r} were opened on {book['opened'][:10]} for the model{'s' * several} {named}; "
            f"this is the model {other[:12]}, and they may judge {'those models' if several else 'one model'} only.",
            "Report the first result, or collect new cases for the new model.",
        )
    if book["cohort_sha256"] != table:
        raise BadCohort(
            f"the table {str(cohort)!r} changed after its locked cases were opened on {book['opened'][:10]}.",
            "Restore it as it was then.",
        )
    return book


def _read(ledger: Path) -> dict[str, Any]:
    book: dict[str, Any] = json.loads(ledger.read_text(encoding="utf-8"))
    if "models" not in book:  # written when a ledger named one model
        own = {key: book.pop(key) for key in ("run", "predictions", "failures")}
        book["models"] = {book.pop("model_sha256"): own}
    return book


def _locked(cases: Sequence[Case], folder: Path) -> tuple[Case, ...]:
    """The cases to be judged: those of the run's external centres where it names some, else all."""
    centres = set(read_experiment(folder).get("external") or ())
    kept = tuple(case for case in cases if not centres or case.centre in centres)
    without = next((case.case_id for case in kept if case.label is None), None)
    if without is not None or not kept:
        what = f"case {without!r} has no label" if kept else f"there is no case of the external centres {', '.join(sorted(centres))}"
        raise BadCohort(f"{what}; every locked case needs one.", "Fill in the column, or remove the row.")
    learned, _ = learned_from(folder)
    both = next((c.case_id for c in kept if c.case_id in learned or (c.patient_id and c.patient_id in learned)), None)
    if both is not None:
        name = folder.resolve().name
        raise BadCohort(f"the locked case {both!r}, or its patient, is among those that run {name!r} learned from.", "Remove it.")
    return kept


def learned_from(folder: Path) -> tuple[set[str], bool]:
    """Names of the cases and patients a run learned from, as far as its folder tells; whether these are all."""
    whole = folder / "cases.csv"
    tables = [whole] if whole.is_file() else [*folder.glob("fold-*/predictions.csv"), *folder.glob("whole/predictions.csv")]
    names: set[str] = set()
    for table in tables:  # a fold's own cases trained the other folds; who trained a run of old is known where all folds are there
        with open(table, encoding="utf-8", newline="") as file:
            names |= {row[key] for row in csv.DictReader(file) for key in ("case_id", "patient_id") if row.get(key)}
    folds = read_experiment(folder).get("folds")
    return names, whole.is_file() or (bool(folds) and len(list(folder.glob("fold-*/predictions.csv"))) >= folds)


def _predict(cases: Sequence[Case], path: Path, out: Path, *, ignore_masks: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
    from HARM3Logic.predict_cohort import predict_cohort  # torch and all it needs: only where something is predicted

    failures = predict_cohort(cases, out, path, ignore_masks=ignore_masks)
    table = out / "predictions.csv"
    if not table.is_file():
        return {}, failures
    with open(table, encoding="utf-8", newline="") as file:
        return {row["case_id"]: {**row, "probability": float(row["probability"])} for row in csv.DictReader(file)}, failures


def _figures(cases: Sequence[Case], own: dict[str, Any], path: Path) -> dict[str, Any]:
    done = [case for case in cases if case.case_id in own["predictions"]]
    label = np.array([case.label for case in done], dtype=int)
    probability = np.array([own["predictions"][case.case_id]["probability"] for case in done], dtype=float)
    threshold = float(read_header(path).get("threshold", 0.5))
    found: dict[str, Any] = {
        "threshold": threshold, "cases": len(done), "responders": int(label.sum()), "failures": own["failures"]
    }  # fmt: skip
    if 0 < label.sum() < len(label):
        patient = [case.patient_id or f"case {case.case_id}" for case in done]
        weights = metrics.resample(label, patient)
        found |= {
            "auc": auc_delong(label, probability, patient),
            "auc_bootstrap": metrics.auc(label, probability, patient=patient),
            "at_half": metrics.decisions(label, probability >= 0.5, weights),
            "at_threshold": metrics.decisions(label, probability >= threshold, weights),
            "calibration": calibration.summary(label, probability, weights),
            "by_centre": by_centre(done, probability),
        }
    return found


def by_centre(cases: Sequence[Case], probability: Float[np.ndarray, " N"]) -> dict[str, metrics.Estimate]:
    """AUC in each centre."""
    centre, label = np.array([case.centre for case in cases]), np.array([case.label for case in cases], dtype=int)
    return {name: auc_delong(label[centre == name], probability[centre == name]) for name in sorted(set(centre.tolist()))}


def _write(ledger: Path, book: dict[str, Any]) -> None:
    try:
        write_text(ledger, json.dumps(book, indent=2) + "\n")
    except OSError as error:
        raise BadOption(f"the ledger {str(ledger)!r} cannot be written ({error.strerror}).", "Make its folder writable.") from error


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadCohort(f"{str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
