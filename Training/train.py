"""Train an experiment on a cohort: python -m Training.train NAME[:VARIANT] --cohort COHORT.csv --out DIR [--fold K | --whole].

Writes into DIR: `experiment.json`, `cache/`, and per fold `fold-K/` with `metrics.jsonl`, `predictions.csv` and
`checkpoint.safetensors`; with --whole, `whole/`. A stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from HARM3Logic import __version__, checkpoint
from HARM3Logic.case import Case, write_text
from HARM3Logic.checkpoint import Calibration, Card
from HARM3Logic.cohort import read_cohort, write_cohort
from HARM3Logic.device import choose
from HARM3Logic.errors import BadOption, HARM3Error
from HARM3Logic.familiarity import learn
from HARM3Logic.predict import decide, writable
from HARM3Logic.tile_encoder import TileEncoder
from Training import cache as caching
from Training import metrics
from Training.cache import Cache
from Training.experiment import Experiment, find
from Training.folds import Split, folds, whole
from Training.loop import logits, train

SLOPE_PRIOR = 0.25  # spread of log(slope) before any case is seen
ZONE = 0.10  # probabilities this near the threshold are "I do not know"
INTENDED_USE = "Research on treatment response. Not for clinical use."


def run(
    experiment: Experiment, name: str, cohort: Path, out: Path, fold: int | None, every: bool, device: torch.device, workers: int | None
) -> None:
    """Train the asked folds (all of them by default) or one model on every case."""
    cases = read_cohort(cohort)
    splits = [("whole", whole(cases, experiment.seed))] if every else [
        (f"fold-{k}", split) for k, split in enumerate(folds(cases, experiment.folds, experiment.seed)) if fold in (None, k)
    ]  # fmt: skip
    if not splits:
        raise BadOption(f"fold {fold} does not exist; the cohort has fewer.", "Correct --fold.")
    plain = json.dumps({"name": name, "cohort": cohort.name, **dataclasses.asdict(experiment)}, indent=2)
    _same_experiment(writable(out) / "experiment.json", plain)
    tensors = caching.build(
        cases, experiment.preprocessing, experiment.tile_encoder, out / "cache",
        ignore_masks=experiment.ignore_masks, device=device.type, workers=workers,
    )  # fmt: skip
    for label, split in splits:
        finish(experiment, name, tensors, split, out / label, device)


def _same_experiment(path: Path, plain: str) -> None:
    if path.is_file() and path.read_text() != plain:
        raise BadOption(f"{str(path.parent)!r} holds a run of other settings.", "Choose another --out or remove it.")
    write_text(path, plain)


def finish(experiment: Experiment, name: str, tensors: Cache, split: Split, out: Path, device: torch.device) -> None:
    """Train one split, calibrate it on its choosing cases, judge it and write its checkpoint."""
    if (out / "checkpoint.safetensors").is_file():
        print(f"{out.name}: finished before")
        return
    model = checkpoint.half(train(experiment, tensors, split, out, device))
    logit, label = logits(model, tensors, split.choose, experiment.batch_size, device)
    calibration, threshold = calibrate(label, logit)
    probability = calibration(logit)
    zone = (max(0.0, threshold - ZONE), min(1.0, threshold + ZONE))
    rows = [_row(tensors.cases[k], "choose", p, threshold, zone) for k, p in zip(split.choose, probability, strict=True)]
    found = {"inner_auc": dataclasses.asdict(metrics.auc(label, logit))}
    if split.judge:
        judged, truth = logits(model, tensors, split.judge, experiment.batch_size, device)
        rows += [_row(tensors.cases[k], "judge", p, threshold, zone) for k, p in zip(split.judge, calibration(judged), strict=True)]
        found["auc"] = dataclasses.asdict(metrics.auc(truth, judged))
    write_cohort(out / "predictions.csv", rows)
    encoder = TileEncoder.load(experiment.tile_encoder)
    card = Card(
        model=experiment.model,
        config=dataclasses.asdict(experiment.config),
        preprocessing=experiment.preprocessing,
        inputs=tuple(model.inputs()),  # type: ignore[operator]
        intended_use=INTENDED_USE,
        tile_encoder={"name": encoder.entry.name, "weights_sha256": encoder.weights_sha256},
        calibration=calibration,
        threshold=threshold,
        uncertain_zone=zone,
        training=_provenance(name, tensors.cases, split, found, experiment),
    )
    familiarity = learn(tensors[k] for k in split.train)
    checkpoint.save(out / "checkpoint.safetensors", model.cpu(), card, familiarity)
    print(f"{out.name}: " + ", ".join(f"{key} {metrics.Estimate(**value)}" for key, value in found.items()))


def calibrate(label: np.ndarray, logit: np.ndarray) -> tuple[Calibration, float]:
    """Slope, intercept and Youden's threshold from cases that did not train."""
    fit = metrics.logistic(label, logit, SLOPE_PRIOR)
    (a, b), (_, d) = fit.covariance.tolist()
    calibration = Calibration(fit.slope, fit.intercept, ((a, b), (b, d)))
    return calibration, metrics.youden(label, calibration(logit))


def _row(case: Case, role: str, probability: float, threshold: float, zone: tuple[float, float]) -> dict[str, object]:
    decision = decide(float(probability), threshold, zone)
    return {
        "case_id": case.case_id, "patient_id": case.patient_id, "centre": case.centre, "role": role,
        "label": case.label, "probability": float(probability), "decision": decision,
    }  # fmt: skip


def _provenance(name: str, cases: Sequence[Case], split: Split, found: dict[str, object], experiment: Experiment) -> dict[str, object]:
    synthetic = all((path.parent / "phantom.json").is_file() for case in cases for path in case.inputs.get("t1_pre", ()))
    return {
        "experiment": name,
        "synthetic": synthetic,
        "data": "trained on synthetic phantoms" if synthetic else "trained on the cohort of its makers",
        "cohort_size": len(cases),
        "responders": sum(case.label or 0 for case in cases),
        "cases": {"train": len(split.train), "choose": len(split.choose), "judge": len(split.judge)},
        "epochs": experiment.epochs,
        "seed": experiment.seed,
        **found,
        "code": {"version": __version__, "commit": _commit()},
    }


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    asked = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m Training.train", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", metavar="NAME[:VARIANT]", help="a file of Training/experiments and one of its variants")
    parser.add_argument("--cohort", type=Path, required=True, help="table of cases with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fold", type=int, help="train this fold only")
    which.add_argument("--whole", action="store_true", help="train one model on all cases, judged on none")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")
    parser.add_argument("--workers", type=int, help="processes that prepare cases (default: one per core)")
    options = parser.parse_args(arguments)
    try:
        device = choose(options.device)
        if device.type == "cpu":
            torch.set_flush_denormal(True)
        run(find(options.experiment), options.experiment, options.cohort, options.out, options.fold, options.whole, device, options.workers)
    except HARM3Error as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
