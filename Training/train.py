"""Train an experiment on a cohort: python -m Training.train NAME[:VARIANT] --cohort COHORT.csv --out DIR [--fold K | --whole].

Writes into DIR: `experiment.json`, `cache/`, and per fold `fold-K/` with `metrics.jsonl`, `predictions.csv`, one
`predictions_without_<input>.csv` for each input the model can do without, and `checkpoint.safetensors`; with --whole, `whole/`. A
stopped run goes on where it was. On several GPUs or machines the same command runs under torchrun (`torchrun --nproc-per-node 4 -m
Training.train ...`) or srun; DIR must be one folder that all of them see.

Learning curve: with --labels N only N patients of each fold are learned from, and as many as ever are judged.

Leak check: with --shuffle-labels SEED the labels are dealt out anew among the cases, so that nothing can be learned; if the
out-of-fold AUC's interval does not hold 0.5, something of the judged cases reached the model.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from HARM3Logic import checkpoint
from HARM3Logic.case import Case
from HARM3Logic.clinical import read_schema
from HARM3Logic.cohort import read_cohort, write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.familiarity import learn
from HARM3Logic.prediction import writable
from Training import cache as caching
from Training import command, metrics, start
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment, find, lengthened, shortened
from Training.folds import Split, fewer, folds, whole
from Training.judgement import Rule, calibrate, logits_without, prediction_rows, write_without
from Training.loop import logits, train
from Training.record import card_of, provenance, same_experiment
from Training.runs import WITHOUT

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def run(
    experiment: Experiment,
    name: str,
    cohort: Path,
    out: Path,
    fold: int | None,
    every: bool,
    device: str | torch.device,
    workers: int | None,
    *,
    external: Sequence[str] = (),
    by_centre: bool = False,
    tensorboard: bool = False,
    shuffle: int | None = None,
    labels: int | None = None,
    cache: Path | None = None,
    wanted: Sequence[str] | None = None,
) -> None:
    """Train the asked folds (all of them by default) or one model on every case.

    Args:
        external: centres that are locked: none of their files is opened.
        by_centre: each centre is judged by a model that saw none of it.
        tensorboard: write the losses for TensorBoard, too.
        shuffle: seed with which labels are dealt out anew among the cases, for a leak check.
        labels: patients of a fold who are learned from, for a learning curve; None takes all.
        cache: folder of prepared cases, which several runs may share, and with them the trunks that masks have taught; None takes
            `out`'s own.
        wanted: the inputs that are prepared, where runs of several models share the cache; None takes what this model reads.

    Raises:
        BadOption, BadCohort: the settings or the cases cannot be used, or another run lies in the folder.
    """
    start.check(experiment)
    fabric = open_fabric(str(device))
    everyone = shuffled(read_cohort(cohort), shuffle)
    start.refuse_pretrained_patients(experiment, everyone)
    cases, found = partition(everyone, experiment, every, external, by_centre)
    if labels is not None:
        found = [fewer(split, cases, labels, experiment.seed) for split in found]
    splits = [("whole" if split.number is None else f"fold-{split.number}", split) for split in found]
    splits = [(label, split) for label, split in splits if fold in (None, split.number)]
    if not splits:
        raise BadOption(f"fold {fold} does not exist; there are {', '.join(str(s.number) for s in found)}.", "Correct --fold.")
    if fabric.is_global_zero:
        settings: dict[str, Any] = {
            "name": name, "cohort": cohort.name, "external": sorted(external), "by_centre": by_centre, "shuffle_labels": shuffle,
            "labels": labels,
        }  # fmt: skip
        settings |= start.provenance(experiment)
        same_experiment(writable(out) / "experiment.json", settings, experiment)
    with fabric.rank_zero_first():  # the others find everything prepared
        tensors = prepared(cases, experiment, cache or out / "cache", fabric.device.type, workers, wanted)
    told = name if shuffle is None else f"{name} on shuffled labels (seed {shuffle})"
    taught = None if cache is None else cache / "trunks"
    for label, split in splits:
        on_epoch = _board(out / "tensorboard" / label, fabric) if tensorboard else _nothing
        finish(experiment, told, tensors, split, out / label, fabric, on_epoch, taught)


def prepared(
    cases: Sequence[Case],
    experiment: Experiment,
    folder: Path,
    device: str = "cpu",
    workers: int | None = None,
    wanted: Sequence[str] | None = None,
) -> Cache:
    """The cases as the experiment's model sees them, without what it does not read.

    Args:
        wanted: as in `run`.

    Raises:
        BadCohort: cases cannot be prepared.
    """
    own = start.inputs(experiment)
    return caching.build(
        cases, experiment.preprocessing, experiment.tile_encoder, folder, wanted=own if wanted is None else wanted, read=own,
        schema=experiment.schema, ignore_masks=experiment.ignore_masks, device=device, workers=workers,
    )  # fmt: skip


def shuffled(cases: Sequence[Case], seed: int | None) -> tuple[Case, ...]:
    """The cases with each other's labels; as they are without a seed. Cases without a label stay without."""
    if seed is None:
        return tuple(cases)
    known = [k for k, case in enumerate(cases) if case.label is not None]
    dealt = dict(zip(known, np.random.default_rng(seed).permutation(known).tolist(), strict=True))
    return tuple(dataclasses.replace(case, label=cases[dealt[k]].label) if k in dealt else case for k, case in enumerate(cases))


def partition(
    cases: Sequence[Case], experiment: Experiment, every: bool, external: Sequence[str], by_centre: bool
) -> tuple[tuple[Case, ...], list[Split]]:
    """The cases that are not locked, and who of them trains, chooses and judges."""
    if every:
        found = [whole(cases, experiment.seed, external=external)]
    else:
        found = list(folds(cases, experiment.folds, experiment.seed, by_centre=by_centre, external=external))
    inside = sorted({*found[0].train, *found[0].choose, *found[0].judge})
    place = {k: n for n, k in enumerate(inside)}
    moved = [Split(*(tuple(place[k] for k in part) for part in (split.train, split.choose, split.judge)), split.number) for split in found]
    return tuple(cases[k] for k in inside), moved


def _board(folder: Path, fabric: Fabric) -> Callable[[dict[str, Any]], None]:
    """Writes each row of the losses for TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise BadOption("--tensorboard needs the package tensorboard, which is not installed.", "pip install tensorboard") from error
    if not fabric.is_global_zero:
        return _nothing
    writer = SummaryWriter(str(folder))

    def write(row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key, value, row["epoch"])
        writer.flush()

    return write


def _nothing(row: dict[str, Any]) -> None:
    pass


def finish(
    experiment: Experiment,
    name: str,
    tensors: Cache,
    split: Split,
    out: Path,
    fabric: Fabric,
    on_epoch: Callable[[dict[str, Any]], None] = _nothing,
    taught: Path | None = None,
) -> None:
    """Train one split, calibrate it on its choosing cases, judge it with and without each input and write its checkpoint.

    Args:
        taught: folder of trunks that masks have taught; see `loop.train`.
    """
    if fabric.broadcast((out / "checkpoint.safetensors").is_file()):
        fabric.print(f"{out.name}: finished before")
        if split.judge and fabric.is_global_zero and not any(out.glob(f"{WITHOUT}*.csv")):
            _without_inputs(checkpoint.load(out / "checkpoint.safetensors", fabric.device), tensors, split, out, fabric)
        return
    experiment = lengthened(experiment, len(split.train))
    if experiment.lora is not None:
        fabric.print(f"{out.name}: {start.learning(experiment)}")
    model = checkpoint.half(train(experiment, tensors, split, out, fabric, on_epoch, taught))
    if not fabric.is_global_zero:
        return
    logit, label = logits(model, tensors, split.choose, experiment.batch_size, fabric.device)
    calibration, rule = calibrate(label, logit)
    table = prediction_rows(_of(tensors, split.choose), "choose", calibration(logit), rule)
    found = {"inner_auc": dataclasses.asdict(metrics.auc(label, logit))}
    if split.judge:
        judged, truth = logits(model, tensors, split.judge, experiment.batch_size, fabric.device)
        table += prediction_rows(_of(tensors, split.judge), "judge", calibration(judged), rule)
        found["auc"] = dataclasses.asdict(metrics.auc(truth, judged))
        without = logits_without(model, tensors, split.judge, judged, fabric.device)
        write_without(out, _of(tensors, split.judge), without, calibration, rule)
    write_cohort(out / "predictions.csv", table)
    card = card_of(experiment, model, calibration, rule, provenance(name, tensors.cases, split, found, experiment))
    familiarity = learn(tensors[k] for k in split.train)
    checkpoint.save(out / "checkpoint.safetensors", model.cpu(), card, familiarity)
    print(f"{out.name}: " + ", ".join(f"{key} {metrics.Estimate(**value)}" for key, value in found.items()))


def _without_inputs(done: checkpoint.Checkpoint, tensors: Cache, split: Split, out: Path, fabric: Fabric) -> None:
    """The tables without an input of a fold that was finished before there were any."""
    judged, _ = logits(done.model, tensors, split.judge, 8, fabric.device)
    without = logits_without(done.model, tensors, split.judge, judged, fabric.device)
    write_without(out, _of(tensors, split.judge), without, done.card.calibration, Rule(done.card.threshold, done.card.uncertain_zone))


def _of(cache: Cache, rows: Sequence[int]) -> list[Case]:
    return [cache.cases[k] for k in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("train", __doc__, 0, -1)
    command.add_training(parser, "folder of the run", "fold", "prepared cases and taught trunks")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fold", type=int, help="train this fold only")
    which.add_argument("--whole", action="store_true", help="train one model on all cases, judged on none")
    parser.add_argument("--tensorboard", action="store_true", help="write the losses for TensorBoard, too")
    parser.add_argument("--shuffle-labels", type=int, metavar="SEED", help="leak check: nothing can be learned, the AUC must be 0.5")
    parser.add_argument("--labels", type=int, metavar="N", help="learning curve: learn from N patients of each fold, judge as many as ever")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's; each of its stages takes the same share of them")
    parser.add_argument("--seed", type=int, help="of folds, drawn patients and training, instead of the recipe's")
    command.add_folds(parser)
    parser.add_argument("--workers", type=int, help="processes that prepare cases (default: one per core)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, workers=1, epochs=1, folds=2, seed=0)
    experiment = shortened(asked_experiment(asked), asked.epochs)
    given = {name: getattr(asked, name) for name in ("seed", "folds") if getattr(asked, name) is not None}
    run(
        dataclasses.replace(experiment, **given), asked.experiment, asked.cohort, asked.out, asked.fold, asked.whole, asked.device,
        asked.workers,
        external=asked.external, by_centre=asked.by_centre, tensorboard=asked.tensorboard,
        shuffle=asked.shuffle_labels, labels=asked.labels, cache=asked.cache,
    )  # fmt: skip


def asked_experiment(asked: argparse.Namespace) -> Experiment:
    """The experiment that the options of `command.add_training` name.

    Raises:
        BadOption, BadClinical: there is none, or it cannot have the schema that was asked for.
    """
    experiment = find(asked.experiment)
    if asked.schema:
        experiment = start.with_schema(experiment, read_schema(asked.schema))
    if asked.pretrained:
        experiment = dataclasses.replace(experiment, pretrained=str(asked.pretrained))
    return experiment


if __name__ == "__main__":
    sys.exit(main())
