"""One trial of a search: how good an experiment is on the training part of a fold, which is split again inside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from HARM3Logic.errors import OutOfMemory
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment, shortened
from Training.folds import Split, folds
from Training.loop import Diverged, logits, train
from Training.space import put

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CRASHED = 1.0  # the cost of a trial that ends without a result: no AUC is worse

# values of the space by path, epochs -> 1 - AUC or None where the training crashed, and what else is known of it
Objective = Callable[[Mapping[str, Any], int], tuple[float | None, dict[str, Any]]]


def objective(
    experiment: Experiment, tensors: Cache, rows: Sequence[int], count: int, device: str, threads: int | None = None
) -> Objective:
    """The function a search makes small.

    Args:
        rows: cases that train in the outer fold; no other is read.
        count: inner folds.
        threads: of each process; None leaves them as they are.
    """

    def cost(values: Mapping[str, Any], epochs: int) -> tuple[float | None, dict[str, Any]]:
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            areas = inner_aucs(shortened(put(experiment, values), epochs), tensors, rows, count, _fabric(device))
        except (Diverged, OutOfMemory) as error:
            return None, {"reason": str(error)}
        return 1 - float(np.mean(areas)), {"inner_aucs": areas}

    return cost


def inner_aucs(experiment: Experiment, tensors: Cache, rows: Sequence[int], count: int, fabric: Fabric) -> list[float]:
    """AUC of each inner fold, judged by a model that the others of `rows` trained and chose.

    Raises:
        Diverged: a loss or a logit is no number.
    """
    found = []
    for split in inner_splits(tensors, rows, count, experiment.seed):
        with TemporaryDirectory() as folder:
            model = train(experiment, tensors, split, Path(folder) / "trial", fabric)
        logit, label = logits(model, tensors, split.judge, experiment.batch_size, fabric.device)
        if not np.isfinite(logit).all():
            raise Diverged("the trained model's logits are no numbers.", "Lower the learning rate.")
        found.append(float(roc_auc_score(label, logit)))
    return found


def inner_splits(tensors: Cache, rows: Sequence[int], count: int, seed: int) -> list[Split]:
    """Folds within `rows`, in indices of the whole cache; folds the cohort itself names are those of the outer loop."""
    cases = [dataclasses.replace(tensors.cases[k], fold=None) for k in rows]
    found = folds(cases, count, seed)
    return [Split(*(tuple(rows[k] for k in part) for part in (s.train, s.choose, s.judge)), s.number) for s in found]


@functools.cache
def _fabric(device: str) -> Fabric:
    return open_fabric(device)
