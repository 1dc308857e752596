"""The training loop of one split: epochs, running average of the weights, early stopping, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from HARM3Logic.batch import Batch
from HARM3Logic.errors import HARM3Error
from HARM3Logic.progress import progress
from HARM3Logic.writing import whole, write_text
from Training import feed, optimisers, start, trunks
from Training.augment import augment
from Training.cache import Cache
from Training.experiment import Experiment
from Training.folds import Split
from Training.step import Losses, Stage, Trainee, bce, gradients

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SHOWN = ("inner_loss", "bce", "tumour_mask", "tumour_change", "recon")  # beside the progress, of the losses an epoch has
RANK_SEED = 1_000_000_007  # far from the seeds of all epochs: each process draws its own dropout and latent noise


class Diverged(HARM3Error):
    """The loss is no number any more."""

    code = "diverged"


def train(
    experiment: Experiment,
    cache: Cache,
    split: Split,
    out: Path,
    fabric: Fabric,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
    taught: Path | None = None,
) -> nn.Module:
    """Train on one split and return the model in evaluation mode; a run that was stopped goes on after its last epoch.

    Every epoch draws its order, changes and noise from the seed and its own number alone, so a resumed run equals an
    uninterrupted one. In a group of processes the first one judges and writes; batch statistics are each process's own.

    Args:
        on_epoch: is given each row of `metrics.jsonl`.
        taught: folder in which runs share the trunks that masks have taught; the outcome is the same, the epochs are run once.

    Raises:
        Diverged: the loss became infinite or no number; the cases of the batch are named.
        OutOfMemory: a single case is too large for the device.
    """
    out.mkdir(parents=True, exist_ok=True)
    trainee, chosen_by = new_trainee(experiment, cache, split.train, fabric)
    parts = _parts(trainee)
    state = {"epoch": 0, "best": math.inf, "best_epoch": 0, "micro": trainee.micro, "inner": []} | _resume(out / "state.pt", parts)
    trainee.micro = state["micro"]
    trunk = None
    if taught is not None and trunks.shareable(experiment):
        trunk = trunks.place(taught, experiment, cache, split.train, fabric.device, fabric.world_size)
        if state["epoch"] == 0 and fabric.broadcast(trunk.is_file()):
            state["epoch"] = _take(trunk, trainee, out, on_epoch)
    left, silent = range(state["epoch"], experiment.epochs), not fabric.is_global_zero
    epochs = progress(left, out.name, experiment.epochs, initial=state["epoch"], unit="epoch", disable=silent)
    for epoch in epochs:
        if _enough(experiment, epoch, state["best_epoch"]):
            break
        began = time.monotonic()
        losses = _epoch(trainee, cache, split.train, epoch, optimisers.decayed(experiment, epoch, state["inner"]))
        if epoch + 1 in (experiment.mask_epochs, experiment.untaught_epochs):
            _average_anew(trainee)
        if epoch >= experiment.untaught_epochs:  # before, there is no answer to judge
            losses["inner_loss"] = chosen = _choose(trainee, cache, split.choose, chosen_by)
            state["inner"].append(chosen)
            if chosen < state["best"]:
                state.update(best=chosen, best_epoch=epoch)
                if experiment.patience and fabric.is_global_zero:
                    _save(out / "best.pt", trainee.judged.state_dict())
        state.update(epoch=epoch + 1, micro=trainee.micro)
        if fabric.is_global_zero:
            row = {"epoch": epoch, "seconds": time.monotonic() - began, **losses}
            _keep(out, row, state, parts)
            if trunk is not None and epoch + 1 == experiment.mask_epochs:
                trunks.keep(trunk, trainee.model, read_log(out))
            on_epoch(row)
        epochs.set_postfix({name: losses[name] for name in SHOWN if name in losses}, refresh=False)
    fabric.barrier()
    if experiment.patience:
        trainee.judged.load_state_dict(torch.load(out / "best.pt", map_location=fabric.device, weights_only=True))
    return start.finished(experiment, trainee.judged).eval()


def read_log(out: Path) -> list[dict[str, Any]]:
    """The log of a run, an epoch a row."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _take(trunk: Path, trainee: Trainee, out: Path, on_epoch: Callable[[dict[str, Any]], None]) -> int:
    """Start with a trunk that another run has taught; the number of epochs that this saves."""
    log = trunks.take(trunk, trainee.model)
    _average_anew(trainee)
    if trainee.fabric.is_global_zero:
        for row in log:
            _log(out / "metrics.jsonl", row, row["epoch"])
            on_epoch(row)
    return len(log)


def new_trainee(experiment: Experiment, cache: Cache, rows: Sequence[int], fabric: Fabric) -> tuple[Trainee, float]:
    """The fresh model with all that trains it, and the weight of a responder in the inner-validation loss."""
    model = start.new_model(experiment, cache, rows).to(fabric.device)
    average = AveragedModel(model, multi_avg_fn=_running_mean(experiment.average), use_buffers=True) if experiment.average else None
    optimiser = optimisers.build(experiment, model)
    trained, chosen_by = _positive_weights(experiment, cache, rows)
    losses = fabric.setup_module(Losses(model, trained))
    return Trainee(experiment, fabric, model, losses, average, optimiser, experiment.micro_batch or experiment.batch_size), chosen_by


def _running_mean(decay: float) -> Callable[[Any, Any, Any], None]:
    """Trap: torch's own mean also weighs whole numbers, which lose one with every rounding; a table's rows then point elsewhere."""
    mean = get_ema_multi_avg_fn(decay)

    def update(averaged: Any, current: Any, count: Any) -> None:
        if averaged[0].is_floating_point():  # torch gives tensors of one kind at a time
            mean(averaged, current, count)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return update


def _average_anew(trainee: Trainee) -> None:
    """From here on the running mean knows nothing of what was before."""
    if trainee.average is not None:
        learned = {f"module.{name}": value for name, value in trainee.model.state_dict().items()}
        trainee.average.load_state_dict({"n_averaged": torch.tensor(0), **learned})


def _parts(trainee: Trainee) -> dict[str, Any]:
    """What is kept after each epoch."""
    return {"model": trainee.model, "optimiser": trainee.optimiser} | ({"average": trainee.average} if trainee.average else {})


def _epoch(trainee: Trainee, cache: Cache, rows: Sequence[int], epoch: int, decay: float = 1.0) -> dict[str, float]:
    """One pass over the training cases at `decay` times the learning rate; the mean of each loss."""
    experiment, fabric = trainee.experiment, trainee.fabric
    seed = experiment.seed * 100_003 + epoch
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed + RANK_SEED * fabric.global_rank)  # dropout and latent noise
    labels = [case.label for case in cache.cases]
    order = feed.order(rows, labels, experiment.balanced_sampler, generator)
    groups = feed.groups(order, experiment.batch_size, fabric.global_rank, fabric.world_size)

    def change(batch: Batch, group: feed.Group) -> Batch:
        return augment(batch, experiment.augmentation, generator, group.places, group.size)

    trainee.model.train()
    stage, begin, end = _stage(experiment, epoch)
    trainee.losses.module.stage = stage
    if experiment.fusion_epochs or experiment.frozen_epochs:
        held = stage == "fusion" or (stage == "response" and epoch < begin + experiment.frozen_epochs)
        trainee.model.hold_trunk(held)  # type: ignore[operator]
    sums: dict[str, float] = {}
    for step, (batch, names, share) in enumerate(feed.batches(cache, groups, change)):
        done = (epoch - begin + step / len(groups)) / (end - begin)  # of the stage that is being trained
        for group in trainee.optimiser.param_groups:
            peak = experiment.learning_rate if stage == "response" else experiment.mask_learning_rate
            group["lr"] = peak * _rate(done, experiment.warm_up) * decay * group["factor"]
        kl = min(1.0, done / experiment.kl_warm_up) if experiment.kl_warm_up else 1.0
        losses = gradients(trainee, batch, names, share, kl)
        if not math.isfinite(sum(losses.values())):
            raise Diverged(
                f"the loss is {sum(losses.values())} in epoch {epoch} at the cases {', '.join(names)}.",
                "Lower the learning rate or look at them.",
            )
        nn.utils.clip_grad_norm_(trainee.model.parameters(), experiment.clip)
        trainee.optimiser.step()
        if trainee.average is not None:
            trainee.average.update_parameters(trainee.model)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value / len(groups)
    return _gathered(fabric, sums)


def _enough(experiment: Experiment, done: int, best: int) -> bool:
    """Whether patience is at its end after so many epochs, of which the best was number `best` from 0."""
    waited = done - max(best, experiment.untaught_epochs)
    return bool(experiment.patience) and waited > experiment.patience and done >= experiment.least_epochs


def _stage(experiment: Experiment, epoch: int) -> tuple[Stage, int, int]:
    """What an epoch is for, and the first and last (exclusive) epoch that are for the same."""
    if epoch < experiment.mask_epochs:
        return "masks", 0, experiment.mask_epochs
    if epoch < experiment.untaught_epochs:
        return "fusion", experiment.mask_epochs, experiment.untaught_epochs
    return "response", experiment.untaught_epochs, experiment.epochs


def _positive_weights(experiment: Experiment, cache: Cache, rows: Sequence[int]) -> tuple[float, float]:
    """The weight of a responder while training, and while choosing: a balanced sampler weighs too, by what it draws."""
    responders = sum(cache.cases[k].label == 1 for k in rows)
    odds = (len(rows) - responders) / max(1, responders)
    weight = experiment.positive_weight or odds
    return weight, weight * (odds if experiment.balanced_sampler else 1.0)


def _choose(trainee: Trainee, cache: Cache, rows: Sequence[int], weight: float) -> float:
    """The inner-validation loss, the same in every process."""
    found, size = 0.0, min(trainee.experiment.batch_size, trainee.micro)
    if trainee.fabric.is_global_zero:
        logit, label = logits(trainee.judged, cache, rows, size, trainee.fabric.device)
        found = float(bce(torch.from_numpy(logit), torch.from_numpy(label).double(), weight))
    return found if trainee.fabric.world_size == 1 else float(trainee.fabric.broadcast(found))


def _gathered(fabric: Fabric, sums: dict[str, float]) -> dict[str, float]:
    """The sum over all processes; one may lack a loss, where its cases lack masks."""
    if fabric.world_size == 1:
        return sums
    found: list[dict[str, float]] = [{} for _ in range(fabric.world_size)]
    torch.distributed.all_gather_object(found, sums)
    return {name: sum(part.get(name, 0.0) for part in found) for name in dict.fromkeys(n for part in found for n in part)}


@torch.inference_mode()
def logits(model: nn.Module, cache: Cache, rows: Sequence[int], batch_size: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the named cases, in evaluation mode."""
    model.eval()
    found = [
        (model(batch.to(device)).logit.double().cpu(), batch.need("label")[0])
        for batch, _, _ in feed.batches(cache, feed.groups(rows, batch_size))
    ]
    if not found:
        return np.zeros(0), np.zeros(0, dtype=int)
    return torch.cat([z for z, _ in found]).numpy(), torch.cat([y for _, y in found]).numpy()


def _rate(done: float, warm_up: float) -> float:
    """Factor on the learning rate: linear rise, then half a cosine to 0; constant 1 without warm-up, as in the paper."""
    if not warm_up:
        return 1.0
    return done / warm_up if done < warm_up else 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _keep(out: Path, row: dict[str, Any], state: dict[str, Any], parts: dict[str, Any]) -> None:
    """The log first: a line without its state is written again, a state without its line would never be."""
    _log(out / "metrics.jsonl", row, row["epoch"])
    _save(out / "state.pt", {"state": state, **{name: part.state_dict() for name, part in parts.items()}})


def _resume(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    state: dict[str, Any] = saved["state"]
    return state


def _save(path: Path, value: Any) -> None:
    with whole(path) as temporary:
        torch.save(value, temporary)


def _log(path: Path, row: dict[str, Any], epoch: int) -> None:
    """Append a line; lines of epochs that a crash undid are dropped."""
    kept = path.read_text().splitlines()[:epoch] if path.is_file() else []
    write_text(path, "\n".join([*kept, json.dumps(row)]) + "\n")
