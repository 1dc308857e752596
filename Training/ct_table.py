"""The second paper's table for a cohort: python -m Training.ct_table --cohort C.csv --crops DIR --external CENTRE ... --out DIR.

Pretrains a trunk once on crops of other patients; trains from it (low-rank updates) and from scratch, on the clinical values, the CT,
both side by side and by cross-attention, each on the same folds; then all of them together judge the locked centres, once. Compares each
start and each input with what it is to beat, inside and outside, and draws the gap between the two.

A stopped call goes on where it was. Writes into DIR: `ct_table.html`, `report.html` (the same runs as Training.evaluate reports them),
`tables.csv`, `results.json`, `runs/ROW`, `pretrained/` and `cache/`; and, beside the cohort's table, the ledger of its locked cases.
The whole road on phantoms:

    harm3 phantom --kind gist --cases 120 --crops 200 --seed 1 --out runs/gist && python -m Training.ct_table --cohort runs/gist/cohort.csv
        --crops runs/gist/crops --external centre-4 --out runs/ct_table --jobs 2
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from HARM3Logic.clinical import Schema, read_schema
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from HARM3Logic.writing import write_text
from Training import command, ct_table_page, evaluate, external, pretrain, side_by_side, start, tables
from Training.comparison import holm, paired, unpaired
from Training.ct_table_page import LORA
from Training.experiment import Experiment, find, shortened
from Training.metrics import Estimate
from Training.runs import Run, read_runs
from Training.table1 import train_all

SIZES = ("compact", "paper")
FUSIONS = ("clinical", "image", "concat", "cross")
OURS = "cross" + LORA


def names(size: str) -> dict[str, str]:
    """Every row and the experiment that trains it; the clinical values alone have no trunk to pretrain."""
    found = {}
    for fusion in FUSIONS:
        variant = size if fusion == "cross" else f"{size}_{fusion}"
        found[fusion] = f"ct_clinical:{variant}"
        if fusion != "clinical":
            found[fusion + LORA] = f"ct_clinical:{variant}{LORA}"
    return found


def planned(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Row and the row it is to beat: cross-attention each simpler input of the same start, the pretrained start the other."""
    pairs = [(f"cross{tail}", fusion + (tail if fusion != "clinical" else "")) for tail in (LORA, "") for fusion in FUSIONS[:-1]]
    pairs += [(fusion + LORA, fusion) for fusion in FUSIONS if fusion != "clinical"]
    return [pair for pair in pairs if set(pair) <= set(labels)]


def experiments(
    size: str, trunk: Path | None, epochs: int | None, schema: Schema | None, folds: int | None = None
) -> dict[str, tuple[str, Experiment]]:
    """Label to name and recipe; without a trunk the rows from scratch alone."""
    found = {}
    for label, name in names(size).items():
        recipe = shortened(find(name), epochs)
        recipe = dataclasses.replace(recipe, folds=folds or recipe.folds)
        if schema is not None:
            recipe = start.with_schema(recipe, schema)
        if recipe.lora is not None:
            if trunk is None:
                continue
            recipe = dataclasses.replace(recipe, pretrained=str(trunk))
        found[label] = (name, recipe)
    return found


def open_locked(cohort: Path, runs: Sequence[Run], out: Path) -> dict[str, dict[str, Any]]:
    """Run to its figures on the locked centres; all models are finished and named before the first case is opened."""
    external.register(cohort, runs)
    return {run.name: external.evaluate(cohort, run.path, out / "runs" / run.name) for run in runs}


def tabulate(cohort: Path, out: Path, labels: Sequence[str], locked: bool) -> dict[str, Any]:
    """The figures of all finished runs, written as a page and tables.

    Raises:
        BadOption, BadCohort: runs cannot be compared, or the locked cases cannot be opened.
    """
    runs = read_runs([out / "runs" / label for label in labels])
    reference = next((run for run in runs if run.name == OURS), runs[-1])
    outside = open_locked(cohort, runs, out) if locked else {}
    results = evaluate.evaluate(runs, reference, outside=outside.get(reference.name))
    inside = {row["run"]: row["auc"] for row in results["runs"]}
    seen = {run.name: external.judged(cohort, run) for run in runs} if locked else {}
    results["methods"] = [_row(run, inside[run.name], outside.get(run.name, {}), seen) for run in runs]
    by_name = {run.name: run for run in runs}
    pairs = planned(labels)
    results["planned"] = [
        {**row, "where": "internal"} for row in tables.compare_pairs([(by_name[one], by_name[other]) for one, other in pairs])
    ] + (_compare_outside(pairs, seen) if locked else [])
    write_text(writable(out) / "ct_table.html", ct_table_page.render(results))
    evaluate.write(results, runs, reference, out)
    return results


def _row(run: Run, auc: Estimate, outside: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, Any]:
    share = run.experiment.get("learning") or {}
    row: dict[str, Any] = {
        "run": run.name,
        "inputs": list(run.inputs),
        "start": "pretrained, low-rank updates" if share else "from scratch",
        "learning": share.get("trainable", 0) / share["total"] if share else 1.0,
        "auc": auc,
        "external": {key: outside[key] for key in ("cases", "responders", "auc", "by_centre", "failures") if key in outside},
        "gap": None,
    }
    if "auc" in outside and math.isfinite(outside["auc"].value):  # not with a single case of a label
        cases, probability = seen[run.name]
        row["gap"] = unpaired(run.label, run.probability, np.array([case.label for case in cases]), probability).difference
    return row


def _compare_outside(pairs: Sequence[tuple[str, str]], seen: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same pairs on the locked cases that both models judged."""
    rows = []
    for one, other in pairs:
        cases, probability = seen[one]
        theirs = {case.case_id: value for case, value in zip(*seen[other], strict=True)}
        both = [k for k, case in enumerate(cases) if case.case_id in theirs]
        label = np.array([cases[k].label for k in both], dtype=int)
        if min(np.sum(label == 1), np.sum(label == 0)) < 2:
            continue
        found = paired(label, np.array([theirs[cases[k].case_id] for k in both]), probability[both])
        figures = {"difference": found.difference, "z": found.z, "p": found.p, "detectable": found.detectable}
        rows.append({"run": one, "reference": other, "where": "external", **figures})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


def run(asked: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """Pretrain, train, open the locked centres, tabulate; the results, and label to the reason of each row that failed.

    Raises:
        HARM3Error: nothing could be trained, or something of it is not as it must be.
    """
    out, trunk = writable(asked.out), asked.pretrained
    places = side_by_side.slots(asked.jobs, asked.device)
    if asked.crops:
        recipe = pretrain.RECIPES[asked.variant]
        recipe = recipe if asked.epochs is None else dataclasses.replace(recipe, epochs=asked.epochs)
        trunk = pretrain.run(recipe, asked.crops, None, out / "pretrained", [asked.cohort], places[0][0])
    chosen = experiments(asked.variant, trunk, asked.epochs, read_schema(asked.schema) if asked.schema else None, asked.folds)
    failed = train_all(chosen, asked.cohort, out, places, asked.external, whole=bool(asked.external), costs=False)
    if failed and asked.external:  # all models are named before the locked cases are opened: none can be added later
        raise BadOption(
            f"{', '.join(failed)} failed ({next(iter(failed.values()))}), so the locked centres stay closed.",
            "Mend it and start again: what is finished is kept.",
        )
    if len(failed) == len(chosen):
        raise BadOption(f"no row could be trained ({next(iter(failed.values()))}).", "Mend it and start again.")
    return tabulate(asked.cohort, out, [label for label in chosen if label not in failed], bool(asked.external)), failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("ct_table", __doc__, 1, 2)
    parser.add_argument("--cohort", type=Path, required=True, help="table of cases with ct, clinical.* and labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the table")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--crops", type=Path, metavar="DIR", help="CT crops of other patients, to pretrain on")
    source.add_argument("--pretrained", type=Path, metavar="FILE", help="a trunk pretrained before; without either only from scratch")
    parser.add_argument("--external", nargs="+", default=[], metavar="CENTRE", help="centres that all models together judge, once")
    parser.add_argument("--variant", choices=SIZES, default=SIZES[0], help="sizes and training")
    parser.add_argument("--schema", type=Path, metavar="FILE", help="clinical variables in place of the GIST abstract's")
    command.add_table(parser, "rows", "instead of each training's own")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> int:
    command.at_least(asked, jobs=1, epochs=1, folds=2)
    results, failed = run(asked)
    for label, reason in failed.items():
        print(f"{label} failed: {reason}", file=sys.stderr)
    for row in results["methods"]:
        print(f"{row['run']}: AUC {row['auc']}, external {row['external'].get('auc', '-')}")
    print(f"Table: {asked.out / 'ct_table.html'}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
