"""Both tables of the paper for a cohort: python -m Training.table1 --cohort COHORT.csv --out DIR [--methods M ...] [--folds N] [--jobs N].

Trains every comparison method and every row of the ablation on the same folds, one after the other or side by side (on a GPU of its own
each where there are several), measures what each costs and where its heat lies, and compares all with HARM3-Fusion on the same cases.

A stopped call goes on where it was; runs that lie finished in DIR/runs/METHOD are taken as they are. Writes into DIR: `table1.html`,
`report.html` (the same runs as Training.evaluate reports them), `tables.csv` and `results.json`; prepared cases go to DIR/cache.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from HARM3Logic.case import INPUTS, MRI, Case, write_text
from HARM3Logic.cohort import read_cohort
from HARM3Logic.device import choose
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from Training import cache as caching
from Training import command, cost, evaluate, loop, page, published, side_by_side, start, train, trunks
from Training.devices import open_fabric
from Training.experiment import Experiment, find, shortened
from Training.folds import Split
from Training.runs import Run, read_runs
from Training.side_by_side import Job

OURS = "harm3_fusion"
VARIANTS = ("compact", "equal", "paper")  # equal: small networks, all trained as HARM3-Fusion is


def methods(variant: str = "compact") -> dict[str, str]:
    """Every row of both tables and the experiment that trains it, in the order of the tables."""
    compared = {name: f"baselines:{name}_{variant}" for name in published.METHODS if name != OURS}
    size = "paper" if variant == "paper" else "compact"
    tail = "" if variant == "paper" else f":{size}"
    rows = {name: f"harm3_ablations:{name}{tail}" for name in published.ABLATIONS if name != OURS}
    return {**compared, OURS: f"{OURS}:{size}", **rows}


def chosen(names: Sequence[str], variant: str) -> dict[str, str]:
    """The asked rows, or all of them; any other experiment may be named as LABEL=NAME:VARIANT.

    Raises:
        BadOption: a row does not exist.
    """
    known = methods(variant)
    asked = {}
    for name in names or known:
        label, _, experiment = name.partition("=")
        if not experiment and label not in known:
            raise BadOption(f"there is no method {name!r}; there are {', '.join(known)}.", "Name one, or give LABEL=NAME:VARIANT.")
        asked[label] = experiment or known[label]
    return asked


def train_all(
    experiments: Mapping[str, tuple[str, Experiment]],
    cohort: Path,
    out: Path,
    places: Sequence[tuple[str, int]],
    external: Sequence[str] = (),
    *,
    whole: bool = False,
    costs: bool = True,
) -> dict[str, str]:
    """Train and measure what is not there yet; label to the reason of each that failed.

    Args:
        experiments: label to name and recipe.
        places: device and threads of each process, as `side_by_side.slots` gives them.
        whole: train a model of all cases beside the folds.
        costs: measure, too.

    Raises:
        BadOption, BadCohort: a recipe contradicts itself, or cases cannot be prepared.
    """
    cases = read_cohort(cohort)
    wanted = shared([experiment for _, experiment in experiments.values()], cases)
    for _, experiment in experiments.values():  # once, and not in each of several processes
        start.check(experiment)
        _tensors(cases, experiment, out, external, places[0][0], wanted)
    failed = side_by_side.run(_teachings(experiments, cases, cohort, out, tuple(external), wanted), places)
    trainings, measurements = [], []
    for label, (name, experiment) in experiments.items():
        log = out / "logs" / f"{label}.log" if len(places) > 1 else None
        trainings.append(Job(label, _train, (experiment, name, cohort, out, label, tuple(external), wanted, whole), log))
        measurements.append(Job(label, _measure, (experiment, cohort, out, label, tuple(external), wanted), log))
    failed |= side_by_side.run(trainings, places)
    # one at a time: what is timed must not share its cores
    return failed | side_by_side.run([job for job in measurements if costs and job.name not in failed], places[:1])


def _teachings(
    experiments: Mapping[str, tuple[str, Experiment]],
    cases: Sequence[Case],
    cohort: Path,
    out: Path,
    external: tuple[str, ...],
    wanted: Sequence[str],
) -> list[Job]:
    """The work that several rows have in common: each fold's trunk, where masks teach it alike."""
    alike: dict[str, list[tuple[str, Experiment]]] = {}
    for label, (_, experiment) in experiments.items():
        if trunks.shareable(experiment):
            alike.setdefault(trunks.recipe(experiment), []).append((label, experiment))
    jobs = []
    for of_group in alike.values():
        left = [experiment for label, experiment in of_group if not (out / "runs" / label).exists()]
        for split in train.partition(cases, left[0], False, external, False)[1] if len(left) > 1 else ():
            name = f"trunk of fold {split.number}"
            jobs.append(Job(name, _teach, (left[0], split.number, cohort, out, external, wanted), out / "logs" / f"{name}.log"))
    return jobs


def _teach(device: str, experiment: Experiment, fold: int, cohort: Path, out: Path, external: Sequence[str], wanted: Sequence[str]) -> None:
    tensors, splits = _tensors(read_cohort(cohort), experiment, out, external, device, wanted)
    scratch = out / "cache" / "trunks" / f"fold-{fold}"
    split = next(split for split in splits if split.number == fold)
    loop.train(
        replace(experiment, epochs=experiment.mask_epochs, patience=0), tensors, split, scratch, open_fabric(device), taught=scratch.parent
    )
    shutil.rmtree(scratch)


def shared(experiments: Sequence[Experiment], cases: Sequence[Case]) -> tuple[str, ...]:
    """What is prepared for all of them at once; where there is MRI, all volumes and the slide, for rows that are trained later."""
    read = {name for experiment in experiments for name in start.inputs(experiment)}
    if read & set(caching.USUAL) and any(name in case.inputs for case in cases for name in MRI):
        read |= set(caching.USUAL)
    return tuple(name for name in INPUTS if name in read)


def _train(
    device: str,
    experiment: Experiment,
    name: str,
    cohort: Path,
    out: Path,
    label: str,
    external: Sequence[str],
    wanted: Sequence[str] = caching.USUAL,
    whole: bool = False,
) -> None:
    place = out / "runs" / label
    print(f"{label}: {name} on {device}")
    for every in (False, True) if whole else (False,):
        train.run(experiment, name, cohort, place, None, every, device, 1, external=external, cache=out / "cache", wanted=wanted)


def _measure(
    device: str,
    experiment: Experiment,
    cohort: Path,
    out: Path,
    label: str,
    external: Sequence[str],
    wanted: Sequence[str] = caching.USUAL,
) -> None:
    place = out / "runs" / label
    if not cost.measured(place):
        tensors, splits = _tensors(read_cohort(cohort), experiment, out, external, device, wanted)
        cost.measure(experiment, tensors, splits, place, device)


def _tensors(
    cases: Sequence[Case], experiment: Experiment, out: Path, external: Sequence[str], device: str, wanted: Sequence[str]
) -> tuple[caching.Cache, list[Split]]:
    inside, splits = train.partition(cases, experiment, False, external, False)
    return train.prepared(inside, experiment, out / "cache", choose(device).type, wanted=wanted), splits


def tabulate(out: Path, labels: Sequence[str]) -> dict[str, Any]:
    """The figures of all finished runs: those of `Training.evaluate`, and what each method costs beside the paper's figures.

    Raises:
        BadOption: HARM3-Fusion is not among them, or runs cannot be compared.
    """
    runs = read_runs([out / "runs" / label for label in labels])
    reference = next((run for run in runs if run.name == OURS), runs[0])
    results = evaluate.evaluate(runs, reference)
    results["methods"] = [_method(run) for run in runs]
    write_text(writable(out) / "table1.html", page.render_tables(results, runs, reference))
    evaluate.write(results, runs, reference, out)
    return results


def _method(run: Run) -> dict[str, Any]:
    found = cost.measured(run.path)
    return {
        "run": run.name,
        "experiment": run.experiment.get("name"),
        "train_seconds": cost.trained_seconds(run.path),
        **{key: found.get(key) for key in ("device", "threads", "parameters", "inference_ms", "peak_mib", "masks", "localisation")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("table1", __doc__, 1, 2)
    parser.add_argument("--cohort", type=Path, required=True, help="table of cases with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the tables")
    parser.add_argument("--methods", nargs="+", default=[], metavar="M", help=f"{', '.join(methods())}, or LABEL=NAME:VARIANT")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="sizes and training; equal: all as ours")
    command.add_external(parser)
    command.add_table(parser, "methods", "instead of each method's own; its stages shrink alike")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> int:
    command.at_least(asked, jobs=1, epochs=1, folds=2)
    names = chosen(asked.methods, asked.variant)
    found = {label: shortened(find(name), asked.epochs) for label, name in names.items()}
    experiments = {label: (names[label], replace(each, folds=asked.folds or each.folds)) for label, each in found.items()}
    failed = train_all(experiments, asked.cohort, writable(asked.out), side_by_side.slots(asked.jobs, asked.device), asked.external)
    for label, reason in failed.items():
        print(f"{label} failed: {reason}", file=sys.stderr)
    if not names.keys() - failed.keys():
        return 2
    results = tabulate(asked.out, [label for label in names if label not in failed])
    for row in results["runs"]:
        print(f"{row['run']}: AUC {row['auc']}")
    print(f"Tables: {asked.out / 'table1.html'}")
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
