"""Make one checkpoint of a cross-validated run: python -m Training.export RUN [--how ensemble|refit|best] [--out M.safetensors].

    ensemble  the models of all folds in one file; their mean answers
    refit     the model of RUN/whole, trained on all cases with --whole
    best      the fold that told its own choosing cases apart best (never by the cases it judged)

The card of each says how good the folds were on the cases they did not see. Without --out it is RUN/checkpoint.safetensors.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from HARM3Logic import checkpoint
from HARM3Logic.checkpoint import Card, Checkpoint
from HARM3Logic.errors import BadOption
from HARM3Logic.familiarity import Reference
from HARM3Logic.models import MODELS
from HARM3Logic.prediction import writable
from Training import calibration, command, metrics
from Training.judgement import calibrate
from Training.runs import Run, read_run

HOW = ("ensemble", "refit", "best")
ENSEMBLES = {"harm3_fusion": "harm3_fusion_ensemble"}  # model to the one that holds several of it


def export(path: Path, out: Path, how: str = "ensemble") -> Card:
    """Write the checkpoint; its card.

    Raises:
        BadOption: folds are missing, or what is asked for was not trained.
        BadCheckpoint: what was written cannot be read again.
    """
    run = read_run(path)
    found = _folds(path, run)
    figures = {"how": how, "folds": len(found), "out_of_fold": out_of_fold(run)}
    if how == "ensemble":
        _ensemble(run, found, out, figures)
    else:
        source = _refitted(path) if how == "refit" else max(found, key=_inner_auc)
        card = dataclasses.replace(source.card, training={**_without_own(source.card.training), **figures, "from": source.path.parent.name})
        checkpoint.save(out, source.model, card, source.familiarity)
    return checkpoint.load(out).card


def out_of_fold(run: Run) -> dict[str, Any]:
    """Figures of the folds on the cases they did not see, at the threshold of each."""
    weights = metrics.resample(run.label, run.patients)
    found = {"auc": metrics.auc(run.label, run.probability, patient=run.patients)}
    if np.all(np.isfinite(run.threshold)):  # else a fold's inner cases had one label
        decided = metrics.decisions(run.label, run.probability >= run.threshold, weights)
        found |= {name: decided[name] for name in ("sensitivity", "specificity")}
    found["brier"] = calibration.brier(run.label, run.probability, weights)
    return {
        "cases": len(run.label),
        "responders": int(run.label.sum()),
        **{name: dataclasses.asdict(value) for name, value in found.items()},
    }


def _folds(path: Path, run: Run) -> list[Checkpoint]:
    places = [path / fold / "checkpoint.safetensors" for fold in run.folds]
    absent = next((place for place in places if not place.is_file()), None)
    if absent is not None:
        raise BadOption(f"{str(absent)!r} is not there.", "Finish the training first: the same command goes on where it stopped.")
    found = [checkpoint.load(place) for place in places]
    wanted = int(found[0].card.training.get("cohort_size", len(run.label)))
    if len(run.label) != wanted:
        raise BadOption(
            f"the folds of {str(path)!r} judged {len(run.label)} of {wanted} cases; all are wanted.", "Train the folds that are missing."
        )
    return found


def _refitted(path: Path) -> Checkpoint:
    place = path / "whole" / "checkpoint.safetensors"
    if not place.is_file():
        raise BadOption(
            f"{str(path)!r} has no model of all cases ({place.parent.name}/{place.name}).",
            "Train it first: the same command with --whole, into the same folder.",
        )
    return checkpoint.load(place)


def _inner_auc(fold: Checkpoint) -> float:
    return float(fold.card.training["inner_auc"]["value"])


def _without_own(training: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance less the figure of the one fold, which is part of the figures of all."""
    return {key: value for key, value in training.items() if key != "auc"}


def _ensemble(run: Run, found: Sequence[Checkpoint], out: Path, figures: Mapping[str, Any]) -> None:
    """Calibrated, with its threshold, on the cases each member did not see: the ensemble as a whole has seen them all."""
    first = found[0].card
    name = ENSEMBLES.get(first.model, "")
    if name not in MODELS:
        raise BadOption(f"folds of {first.model} cannot be put into one model yet.", "Use --how refit or --how best.")
    config = {**first.config, "members": len(found)}
    model = checkpoint.build(name, config, out.name)
    with torch.no_grad():
        for k, fold in enumerate(found):
            model.members[k].load_state_dict(fold.model.state_dict())  # type: ignore[index,union-attr]
            model.scale[k], model.shift[k] = fold.card.calibration.slope, fold.card.calibration.intercept  # type: ignore[index]
    fitted, rule = calibrate(run.label, calibration.log_odds(run.probability))
    card = dataclasses.replace(
        first,
        model=name,
        config=config,
        calibration=fitted,
        threshold=rule.threshold,
        uncertain_zone=rule.zone,
        training={**{key: value for key, value in _without_own(first.training).items() if key not in ("inner_auc", "cases")}, **figures},
    )
    checkpoint.save(out, model, card, merged([fold.familiarity for fold in found]))


def merged(parts: Sequence[Mapping[str, Reference]]) -> dict[str, Reference]:
    """What is familiar to all folds together: the spread within and between them, and the widest limit."""
    found = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        own = [part[name] for part in parts if name in part]
        means, spreads = (np.stack([getattr(reference, key) for reference in own]) for key in ("mean", "spread"))
        spread = np.sqrt((spreads**2).mean(axis=0) + means.var(axis=0))
        found[name] = Reference(means.mean(axis=0), spread, max(reference.limit for reference in own))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("export", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that Training.train wrote")
    parser.add_argument("--how", choices=HOW, default="ensemble", help="which model to take (default: ensemble)")
    parser.add_argument("--out", type=Path, help="file to write (default: RUN/checkpoint.safetensors)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    out = asked.out or asked.run / "checkpoint.safetensors"
    writable(out.parent)
    card = export(asked.run, out, asked.how)
    print(
        f"{out}: {asked.how} of {card.training['folds']} folds, out-of-fold AUC {metrics.Estimate(**card.training['out_of_fold']['auc'])}"
    )


if __name__ == "__main__":
    sys.exit(main())
