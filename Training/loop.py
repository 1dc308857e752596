"""The training loop of one split: epochs, running average of the weights, early stopping, exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from HARM3Logic.batch import Batch, collate
from HARM3Logic.device import best_precision
from HARM3Logic.errors import BadCohort, HARM3Error
from HARM3Logic.models import MODELS
from Training.augment import augment
from Training.cache import Cache
from Training.experiment import Experiment
from Training.folds import Split


class Diverged(HARM3Error):
    """The loss is no number any more."""

    code = "diverged"


def train(experiment: Experiment, cache: Cache, split: Split, out: Path, device: torch.device) -> nn.Module:
    """Train on one split and return the model in evaluation mode; a run that was stopped goes on after its last epoch.

    Every epoch draws its order, changes and noise from the seed and its own number alone, so a resumed run equals an
    uninterrupted one.

    Raises:
        Diverged: the loss became infinite or no number; the cases of the batch are named.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(experiment.seed)
    model = MODELS[experiment.model](experiment.config).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(experiment.average), use_buffers=True) if experiment.average else None
    optimiser = torch.optim.AdamW(model.parameters(), lr=experiment.learning_rate, weight_decay=experiment.weight_decay)
    parts: dict[str, Any] = {"model": model, "optimiser": optimiser} | ({"average": average} if average else {})
    state = _resume(out / "state.pt", parts)
    steps = math.ceil(len(split.train) / experiment.batch_size)
    epochs = tqdm(
        range(state["epoch"], experiment.epochs), out.name, initial=state["epoch"], total=experiment.epochs, unit="epoch", disable=None
    )
    for epoch in epochs:
        if experiment.patience and epoch - max(state["best_epoch"], experiment.mask_epochs) > experiment.patience:
            break
        began = time.monotonic()
        losses = _epoch(experiment, cache, split.train, model, average, optimiser, epoch, steps)
        if epoch == experiment.mask_epochs - 1 and average is not None:
            average.load_state_dict({"n_averaged": torch.tensor(0), **{f"module.{k}": v for k, v in model.state_dict().items()}})
        judged = average.module if average else model
        logit, label = logits(judged, cache, split.choose, experiment.batch_size, device)
        chosen = float(F.binary_cross_entropy_with_logits(torch.from_numpy(logit), torch.from_numpy(label).double()))
        if chosen < state["best"] and epoch >= experiment.mask_epochs:
            state.update(best=chosen, best_epoch=epoch)
            if experiment.patience:
                _save(out / "best.pt", judged.state_dict())
        state["epoch"] = epoch + 1
        # the log first: a line without its state is written again, a state without its line would never be
        _log(out / "metrics.jsonl", {"epoch": epoch, "seconds": time.monotonic() - began, "inner_loss": chosen, **losses}, epoch)
        _save(out / "state.pt", {"state": state, **{name: part.state_dict() for name, part in parts.items()}})
        epochs.set_postfix(
            inner=f"{chosen:.3f}", **{name: f"{value:.3f}" for name, value in losses.items() if name in ("bce", "tumour_mask")}
        )
    final = average.module if average else model
    if experiment.patience:
        final.load_state_dict(torch.load(out / "best.pt", map_location=device, weights_only=True))
    return final.eval()


def _epoch(
    experiment: Experiment,
    cache: Cache,
    rows: Sequence[int],
    model: nn.Module,
    average: AveragedModel | None,
    optimiser: torch.optim.Optimizer,
    epoch: int,
    steps: int,
) -> dict[str, float]:
    """One pass over the training cases; the mean of each loss."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(experiment.seed * 100_003 + epoch)
    torch.manual_seed(experiment.seed * 100_003 + epoch)  # dropout and latent noise
    order = [rows[k] for k in torch.randperm(len(rows), generator=generator).tolist()]
    model.train()
    masks_only = epoch < experiment.mask_epochs
    if experiment.frozen_epochs:
        model.hold_trunk(not masks_only and epoch < experiment.mask_epochs + experiment.frozen_epochs)  # type: ignore[operator]
    sums: dict[str, float] = {}
    for step, (batch, names) in enumerate(_batches(cache, order, experiment.batch_size)):
        share = (epoch + step / steps) / max(1, experiment.mask_epochs)  # of the stage that is being trained
        if not masks_only:
            share = (epoch - experiment.mask_epochs + step / steps) / max(1, experiment.epochs - experiment.mask_epochs)
        for group in optimiser.param_groups:
            peak = experiment.mask_learning_rate if masks_only else experiment.learning_rate
            group["lr"] = peak * _rate(share, experiment.warm_up)
        batch = augment(batch, experiment.augmentation, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=best_precision(device) == "bfloat16"):
            output = model(batch)
        (label,) = batch.need("label")
        losses = {"bce": F.binary_cross_entropy_with_logits(output.logit.float(), label.float()), **output.losses}
        if "kl" in losses and experiment.kl_warm_up:
            losses["kl"] = losses["kl"] * min(1.0, share / experiment.kl_warm_up)
        if masks_only:
            losses = _mask_losses(output.losses, names)
        total = torch.stack([value.float() for value in losses.values()]).sum()
        if not torch.isfinite(total):
            raise Diverged(
                f"the loss is {total.item()} in epoch {epoch} at the cases {', '.join(names)}.", "Lower the learning rate or look at them."
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), experiment.clip)
        optimiser.step()
        if average is not None:
            average.update_parameters(model)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / steps
    return sums


def _mask_losses(losses: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    found = {name: value for name, value in losses.items() if name.startswith("tumour_")}
    if not found:
        raise BadCohort(
            f"the experiment begins with tumour masks, and {', '.join(names)} have none or the model does not use them.",
            "Give masks or set mask_epochs=0.",
        )
    return found


@torch.inference_mode()
def logits(model: nn.Module, cache: Cache, rows: Sequence[int], batch_size: int, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of the named cases, in evaluation mode."""
    model.eval()
    found = [(model(batch.to(device)).logit.double().cpu(), batch.need("label")[0]) for batch, _ in _batches(cache, rows, batch_size)]
    if not found:
        return np.zeros(0), np.zeros(0, dtype=int)
    return torch.cat([z for z, _ in found]).numpy(), torch.cat([y for _, y in found]).numpy()


def _batches(cache: Cache, rows: Sequence[int], size: int) -> Iterator[tuple[Batch, list[str]]]:
    """Batches and the names of their cases, read one ahead while the model works."""
    queue: Queue[tuple[Batch, list[str]] | BaseException | None] = Queue(maxsize=2)

    def read() -> None:
        try:
            for start in range(0, len(rows), size):
                cases = [cache[k] for k in rows[start : start + size]]
                queue.put((collate(cases), [case.case_id for case in cases]))
            queue.put(None)
        except BaseException as error:  # handed to the training thread, which raises it
            queue.put(error)

    Thread(target=read, daemon=True).start()
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def _rate(done: float, warm_up: float) -> float:
    """Factor on the learning rate: linear rise, then half a cosine to 0; constant 1 without warm-up, as in the paper."""
    if not warm_up:
        return 1.0
    return done / warm_up if done < warm_up else 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def _resume(path: Path, parts: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {"epoch": 0, "best": math.inf, "best_epoch": 0}
    if path.is_file():
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        state = saved["state"]
    return state


def _save(path: Path, value: Any) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(value, temporary)
    temporary.replace(path)


def _log(path: Path, row: dict[str, Any], epoch: int) -> None:
    """Append a line; lines of epochs that a crash undid are dropped."""
    kept = path.read_text().splitlines()[:epoch] if path.is_file() else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join([*kept, json.dumps(row)]) + "\n")
    temporary.replace(path)
