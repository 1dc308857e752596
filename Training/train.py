"""Train an experiment on a cohort: python -m Training.train NAME[:VARIANT] --cohort COHORT.csv --out DIR [--fold K | --whole].

Writes into DIR: `experiment.json`, `cases.csv` (who it is of), `cache/`, and per fold `fold-K/` with `metrics.jsonl`,
`predictions.csv`, one `predictions_without_<input>.csv` for each input the model can do without, and `checkpoint.safetensors`; with
--whole, `whole/`. A stopped run goes on where it was.

With --jobs N so many folds are trained at once, each in a process of its own (on a GPU of its own where there are several). All of one
fold's batches are shared out between several GPUs or machines where the same command runs under torchrun (`torchrun --nproc-per-node 4
-m Training.train ...`) or srun; DIR must be one folder that all of them see.

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

import torch

from HARM3Logic import checkpoint
from HARM3Logic.case import Case
from HARM3Logic.clinical import read_schema
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption, HARM3Error
from HARM3Logic.familiarity import learn
from Training import command, metrics, side_by_side, start
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment, find, lengthened, shortened
from Training.folds import Split
from Training.judgement import Rule, calibrate, logits_without, prediction_rows, write_without
from Training.loop import logits, train
from Training.plan import Plan, planned
from Training.record import card_of, provenance
from Training.runs import WITHOUT
from Training.side_by_side import Job

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def run(experiment: Experiment, name: str, cohort: Path, out: Path, device: str | torch.device, at_once: int = 1, **options: Any) -> None:
    """Train the asked folds (all of them by default) or one model on every case.

    Args:
        at_once: folds that are trained at once, each in a process of its own.
        options: of `planned`.

    Raises:
        BadOption, BadCohort: as `planned`.
        HARM3Error: a fold cannot be trained.
    """
    fabric = open_fabric(str(device))
    if at_once > 1 and fabric.world_size > 1:
        raise BadOption(f"--jobs is {at_once} in a group of {fabric.world_size} processes; one of both is wanted.", "Leave --jobs out.")
    plan = planned(experiment, name, cohort, out, fabric, **options)
    if at_once == 1:
        for label in plan.splits:
            train_split(plan, label, fabric)
        return
    failed = side_by_side.run(jobs(plan, name), side_by_side.slots(min(at_once, len(plan.splits)), str(device)))
    if failed:
        reasons = "; ".join(f"{job.rpartition('/')[2]}: {reason}" for job, reason in failed.items())
        raise HARM3Error(
            f"{len(failed)} of {len(plan.splits)} folds cannot be trained: {reasons}",
            "Start again when it is mended: what is finished is kept.",
        )


def train_split(plan: Plan, label: str, fabric: Fabric) -> None:
    """Train one split of a run, unless that was done before."""
    on_epoch = _board(plan.out / "tensorboard" / label, fabric) if plan.tensorboard else _nothing
    finish(plan.experiment, plan.told, plan.tensors, plan.splits[label], plan.out / label, fabric, on_epoch, plan.taught)


def jobs(plan: Plan, row: str, logs: Path | None = None) -> list[Job]:
    """Every split of a run as work for a process of its own.

    Args:
        row: what the run is called; its jobs are ROW/fold-K.
        logs: folder for what they print; None leaves it on the screen.
    """
    names = {label: f"{row}/{label}" for label in plan.splits}
    return [Job(name, _alone, (plan, label), logs and logs / f"{name}.log") for label, name in names.items()]


def _alone(device: str, plan: Plan, label: str) -> None:
    train_split(plan, label, open_fabric(device))


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
    parser.add_argument("--jobs", type=int, default=1, help="folds trained side by side (default: 1)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, workers=1, epochs=1, folds=2, seed=0, jobs=1)
    experiment = shortened(asked_experiment(asked), asked.epochs)
    given = {name: getattr(asked, name) for name in ("seed", "folds") if getattr(asked, name) is not None}
    run(
        dataclasses.replace(experiment, **given), asked.experiment, asked.cohort, asked.out, asked.device, asked.jobs,
        fold=asked.fold, every=asked.whole, workers=asked.workers, external=asked.external, by_centre=asked.by_centre,
        tensorboard=asked.tensorboard, shuffle=asked.shuffle_labels, labels=asked.labels, cache=asked.cache,
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
