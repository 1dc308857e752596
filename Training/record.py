"""What a run says of itself: its experiment, and the card of each checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from HARM3Logic import __version__
from HARM3Logic.case import Case
from HARM3Logic.checkpoint import Calibration, Card
from HARM3Logic.clinical import Schema
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.writing import write_text
from Training import start
from Training.experiment import Experiment
from Training.folds import Split
from Training.judgement import Rule

COHORT = ("case_id", "patient_id", "centre")
INTENDED_USE = "Research on treatment response. Not for clinical use."


def same_experiment(path: Path, settings: dict[str, Any], experiment: Experiment) -> None:
    """Refuse a folder of other settings; one that was written before a setting existed has its default.

    A folder in which nothing has been trained yet takes new settings: a start that failed does not hold it.
    """
    # the trunk itself is named by its hash, wherever it lies
    plain = json.loads(json.dumps({**dataclasses.asdict(experiment), **settings}))
    if path.is_file() and any(part.is_dir() for part in (*path.parent.glob("fold-*"), path.parent / "whole")):
        older = {"external": [], "by_centre": False, "shuffle_labels": None, "labels": None}
        before = _completed({**older, **json.loads(path.read_text())}, experiment)
        differ = [key for key in {**before, **plain} if before.get(key) != plain.get(key)]
        if differ:
            raise BadOption(
                f"{str(path.parent)!r} holds a run of other settings ({', '.join(differ)}).", "Choose another --out or remove it."
            )
    write_text(path, json.dumps(plain, indent=2))


def same_cases(path: Path, cases: Sequence[Case]) -> None:
    """Write who a run is of; refuse a folder in which other cases have been learned from: their folds would differ.

    `Training.external` reads from it whom a model must not judge.
    """
    rows = [{name: str(getattr(case, name) or "") for name in COHORT} | {"label": str(case.label)} for case in cases]
    if path.is_file() and any(part.is_dir() for part in (*path.parent.glob("fold-*"), path.parent / "whole")):
        with open(path, encoding="utf-8", newline="") as file:
            before = list(csv.DictReader(file))
        differ = [row["case_id"] for row in (*before, *rows) if row not in before or row not in rows]
        if differ:
            raise BadOption(
                f"{str(path.parent)!r} holds a run of other cases, patients, centres or labels ({differ[0]!r} differs).",
                "Choose another --out or remove it.",
            )
    write_cohort(path, rows)


def _completed(before: dict[str, Any], now: Any) -> dict[str, Any]:
    """What was written of a dataclass, with the defaults of fields it did not have then."""
    added = {f.name: _plain(f.default) for f in dataclasses.fields(now) if f.default is not dataclasses.MISSING}
    nested = {
        name: _completed(value, getattr(now, name))
        for name, value in before.items()
        if dataclasses.is_dataclass(getattr(now, name, None)) and isinstance(value, dict)
    }
    return {**added, **before, **nested}


def _plain(value: Any) -> Any:
    """As a JSON file gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value))  # type: ignore[call-overload]


def card_of(experiment: Experiment, model: torch.nn.Module, calibration: Calibration, rule: Rule, training: dict[str, object]) -> Card:
    inputs = tuple(model.inputs())  # type: ignore[operator]
    encoder = TileEncoder.load(experiment.tile_encoder) if "slide" in inputs else None
    return Card(
        model=experiment.model,
        config=dataclasses.asdict(model.config),  # type: ignore[call-overload]
        preprocessing=experiment.preprocessing,
        inputs=inputs,
        intended_use=INTENDED_USE,
        tile_encoder={"name": encoder.entry.name, "weights_sha256": encoder.weights_sha256} if encoder else {},
        calibration=calibration,
        threshold=rule.threshold,
        uncertain_zone=rule.zone,
        training=training,
        clinical=experiment.schema if "clinical" in inputs else Schema(),
    )


def provenance(name: str, cases: Sequence[Case], split: Split, found: dict[str, object], experiment: Experiment) -> dict[str, object]:
    files = [path for case in cases for paths in case.inputs.values() for path in paths]
    synthetic = bool(files) and all((path.parent / "phantom.json").is_file() for path in files)
    return {
        "experiment": name,
        "synthetic": synthetic,
        "data": "trained on synthetic phantoms" if synthetic else "trained on the cohort of its makers",
        "cohort_size": len(cases),
        "responders": sum(case.label or 0 for case in cases),
        "cases": {"train": len(split.train), "choose": len(split.choose), "judge": len(split.judge)},
        "epochs": experiment.epochs,
        "seed": experiment.seed,
        **start.provenance(experiment),
        **found,
        "code": {"version": __version__, "commit": _commit()},
    }


def _commit() -> str:
    root = Path(__file__).resolve().parents[1]
    asked = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
