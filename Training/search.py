"""Search hyperparameters, then train with the best: python -m Training.search NAME[:VARIANT] --cohort COHORT.csv --out DIR.

Each outer fold has a search of its own, which reads the cases that train in that fold and no other: a trial trains on parts of them and
judges the rest (mean AUC of inner folds). SMAC3 chooses the trials: Hyperband gives many of them few epochs and the best the most, a
random forest says where to look. What may be changed is the dictionary SPACE of the experiment's file, or the usual fields. Then the
fold is trained with the best values, and judged, as by Training.train: Training.evaluate reads DIR as any run.

Writes into DIR: `experiment.json`, `cache/`, `search.html`, and per fold `fold-K/` with `search.json` (all a stopped search needs to go
on), `smac/` (SMAC's own files), `trials.csv`, `path.csv` (the best so far, each time it changed), `best.json` and what a training
writes. The same command goes on where it was stopped; with one worker and no stop the same seed takes the same path.

Source: SMAC3, Lindauer et al. 2022; Hyperband, Li et al. 2018.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from Training import command, search_page, start
from Training.devices import open_fabric
from Training.experiment import Experiment
from Training.folds import Split
from Training.history import best_of, read_history, write_history
from Training.plan import partition, prepared
from Training.record import same_experiment
from Training.space import Space, put, space_of
from Training.train import asked_experiment, finish
from Training.trial import inner_splits, objective

try:
    from Training.optimise import Plan, optimise, workers
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    print(f"the search needs the package {error.name}, which is not installed. pip install 'harm3slicer[search]'", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from dask.distributed import Client
    from lightning_fabric import Fabric

    from Training.cache import Cache


def run(
    experiment: Experiment,
    name: str,
    cohort: Path,
    out: Path,
    plan: Plan,
    *,
    fold: int | None = None,
    device: str = "auto",
    external: Sequence[str] = (),
    by_centre: bool = False,
    cache: Path | None = None,
) -> None:
    """Search and train the asked folds, all of them by default; arguments as in `Training.train.run`."""
    start.check(experiment)
    space = space_of(name, experiment)
    fabric = open_fabric(device)
    if fabric.world_size > 1:
        raise BadOption(f"a search was started in a group of {fabric.world_size} processes.", "Start it once, with --workers.")
    cases, found = partition(read_cohort(cohort), experiment, False, external, by_centre)
    splits = [split for split in found if fold in (None, split.number)]
    if not splits:
        raise BadOption(f"fold {fold} does not exist; there are {', '.join(str(s.number) for s in found)}.", "Correct --fold.")
    settings: dict[str, Any] = {
        "name": name, "cohort": cohort.name, "external": sorted(external), "by_centre": by_centre, "shuffle_labels": None,
        "search": {"space": {path: [type(kind).__name__, dataclasses.asdict(kind)] for path, kind in space.items()},
                   "epochs": plan.epochs, "inner": plan.inner, "seed": plan.seed},
    }  # fmt: skip
    same_experiment(writable(out) / "experiment.json", settings | start.provenance(experiment), experiment)
    start.refuse_pretrained_patients(experiment, cases)
    tensors = prepared(cases, experiment, (cache or out / "cache").resolve(), fabric.device.type)
    for split in splits:
        inner_splits(tensors, split.train, plan.inner, experiment.seed)  # what it cannot split is told before any fold is searched
    with workers(plan, out) as client:
        for split in splits:
            _fold(experiment, name, tensors, split, out, space, plan, client, device, fabric)
    search_page.write(out, name, experiment, space, [out / f"fold-{split.number}" for split in found])


def _fold(
    experiment: Experiment, name: str, tensors: Cache, split: Split, out: Path, space: Space, plan: Plan,
    client: Client | None, device: str, fabric: Fabric,
) -> None:  # fmt: skip
    """Search one outer fold and train it with the best values."""
    folder = out / f"fold-{split.number}"
    folder.mkdir(exist_ok=True)
    done = read_history(folder, space)
    if (folder / "metrics.jsonl").is_file() and len(done) < plan.trials:
        raise BadOption(
            f"{folder.name} was trained with the best of {len(done)} trials; {plan.trials} were asked for.",
            f"Ask for {len(done)}, or choose another --out.",
        )
    threads = max(1, (os.cpu_count() or 1) // plan.workers) if client is not None else None
    trials = optimise(objective(experiment, tensors, split.train, plan.inner, device, threads), space, experiment, folder, plan, client)
    write_history(folder, trials)
    best = best_of(trials, folder.name)
    finish(put(experiment, best.values), name, tensors, split, folder, fabric)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("search", __doc__, 0, 1)
    command.add_training(parser, "folder of the search and of the run", "outer fold", "folder of prepared cases")
    parser.add_argument("--trials", type=int, default=50, help="of each outer fold (default: 50)")
    parser.add_argument("--min-epochs", type=int, metavar="A", help="of the shortest trials (default: a ninth of the longest)")
    parser.add_argument("--max-epochs", type=int, metavar="B", help="of the longest trials (default: the experiment's)")
    parser.add_argument("--inner", type=int, default=3, help="folds within the training part of an outer fold (default: 3)")
    parser.add_argument("--workers", type=int, default=1, help="trials at once on this machine (default: 1)")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler whose workers make the trials; all must see --out")
    parser.add_argument("--fold", type=int, help="this outer fold only")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    experiment = asked_experiment(asked)
    run(
        experiment, asked.experiment, asked.cohort, asked.out, _plan(asked, experiment), fold=asked.fold, device=asked.device,
        external=asked.external, by_centre=asked.by_centre, cache=asked.cache,
    )  # fmt: skip


def _plan(asked: argparse.Namespace, experiment: Experiment) -> Plan:
    high = asked.max_epochs or experiment.epochs
    low = asked.min_epochs or max(1, high // 9)
    if not 1 <= low <= high:
        raise BadOption(f"trials of {low} to {high} epochs were asked for; 1 or more, rising, are wanted.", "Correct --min-epochs.")
    command.at_least(asked, trials=4, inner=2, workers=1)
    return Plan(asked.trials, (low, high), asked.inner, asked.seed, asked.workers, asked.scheduler)


if __name__ == "__main__":
    sys.exit(main())
